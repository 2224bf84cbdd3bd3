//! The unmodified cudarc runs a kernel on the emulated device.

mod device;

use device::Device;

#[test]
fn cudarc_runs_a_kernel() {
    let device = Device::new();
    for n in [1usize, 255, 1000] {
        let input: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let from = device.stream.clone_htod(&input).expect("copied in");
        let to = device.stream.alloc_zeros::<f32>(n).expect("allocated");
        let arguments = [device.pointer(&to), device.pointer(&from), (n as i32).into()];
        device.launch("add_one", (n.div_ceil(128) as u32, 128, 0), &arguments).expect("it runs");
        let want: Vec<f32> = input.iter().map(|x| x + 1.0).collect();
        assert_eq!(device.stream.clone_dtoh(&to).expect("copied out"), want);
    }
    assert_eq!(device.emulator.fault(), "");
}
