//! The unmodified cudarc runs a kernel on the emulated device.

use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use std::path::Path;

#[test]
fn cudarc_runs_a_kernel() {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels");
    let emulator = engine_cuda_emulator::load_from(&kernels).expect("the emulator is built");
    let context = CudaContext::new(0).expect("a context");
    let stream = context.new_stream().expect("a stream");
    let module = context.load_module(Ptx::from_binary(b"any image".to_vec())).expect("a module");
    let add_one = module.load_function("add_one").expect("the kernel is found by its name");
    for n in [1usize, 255, 1000] {
        let input: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let from = stream.clone_htod(&input).expect("copied in");
        let mut to = stream.alloc_zeros::<f32>(n).expect("allocated");
        let count = n as i32;
        let mut launch = stream.launch_builder(&add_one);
        launch.arg(&mut to).arg(&from).arg(&count);
        let shape = LaunchConfig { grid_dim: (n.div_ceil(128) as u32, 1, 1), block_dim: (128, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are those of the kernel, which checks its index.
        unsafe { launch.launch(shape) }.expect("launched");
        let want: Vec<f32> = (0..n).map(|i| i as f32 + 1.0).collect();
        assert_eq!(stream.clone_dtoh(&to).expect("copied out"), want);
    }
    assert_eq!(emulator.fault(), "");
}
