//! Planted bugs are caught, each by name: by a wrong result in at least one order of threads, or by a fault that says
//! what happened. Their mended twins pass in all orders.

mod device;

use cudarc::driver::sys::CUresult;
use cudarc::driver::sys::cudaError_enum::{
    CUDA_ERROR_ILLEGAL_ADDRESS, CUDA_ERROR_LAUNCH_FAILED, CUDA_ERROR_LAUNCH_TIMEOUT, CUDA_ERROR_MISALIGNED_ADDRESS,
};
use device::Device;
use engine_cuda_emulator::Order;

/// Runs a kernel that writes `want.len()` numbers, mended and not: the mended one gives `want` in every order, and the other
/// one in some order something else.
fn shows_in_some_order(kernel: &str, threads: u32, input: Option<&[f32]>, want: &[u32]) {
    let device = Device::new();
    let out = device.stream.alloc_zeros::<u32>(want.len()).expect("allocated");
    let from = input.map(|numbers| device.stream.clone_htod(numbers).expect("copied in"));
    let run = |right: i32| {
        let pointers = std::iter::once(device.pointer(&out)).chain(from.iter().map(|from| device.pointer(from)));
        let arguments: Vec<_> = pointers.chain([right.into()]).collect();
        device.launch(kernel, (1, threads, 0), &arguments).expect("no fault");
        device.stream.clone_dtoh(&out).expect("copied out")
    };
    for got in device.emulator.in_each_order(|_| run(1)) {
        assert_eq!(got, want, "{kernel}, mended");
    }
    let wrong = device.emulator.in_each_order(|_| run(0));
    assert!(wrong.iter().any(|got| got != want), "{kernel} is not caught");
}

/// Runs a kernel that faults, in every order, each time on a new device; the mended one does not.
fn faults(kernel: &str, shape: (u32, u32, u32), error: CUresult, says: &str) {
    for order in [Order::Forward, Order::Reverse, Order::Shuffled(3)] {
        let device = Device::new();
        device.emulator.order(order);
        let out = device.stream.alloc_zeros::<i32>(shape.1 as usize).expect("allocated");
        device.launch(kernel, shape, &[device.pointer(&out), 1.into()]).expect("the mended kernel runs");
        let (got, text) = device.fault(kernel, shape, &[device.pointer(&out), 0.into()]);
        assert_eq!(got, error, "{text}");
        assert!(text.contains(says), "{kernel}: {text}");
        assert!(text.contains(&format!("kernel {kernel}, block (0,0,0), thread (")), "{text}");
        // As on a GPU, nothing works any more until the process (here: the test) ends.
        assert_eq!(device.stream.synchronize().expect_err("the context is lost").0, error);
    }
}

fn floats(values: impl Iterator<Item = f32>) -> Vec<u32> {
    values.map(f32::to_bits).collect()
}

#[test]
fn missing_barrier() {
    shows_in_some_order("missing_barrier", 64, None, &floats((0..64).map(|i| 63.0 - i as f32)));
}

#[test]
fn wrong_ldmatrix_lane() {
    let want: Vec<u32> = (0..128u32)
        .map(|i| {
            let (lane, matrix) = (i / 4, i % 4);
            let first = matrix * 64 + lane / 4 * 8 + lane % 4 * 2;
            first | (first + 1) << 16
        })
        .collect();
    shows_in_some_order("wrong_ldmatrix_lane", 32, None, &want);
}

#[test]
fn uninitialised_shared_memory() {
    shows_in_some_order("uninitialised_shared_memory", 64, None, &floats((0..64).map(|_| 1.0)));
}

#[test]
fn missing_copy_wait() {
    let input: Vec<f32> = (0..128).map(|i| i as f32).collect();
    shows_in_some_order("missing_copy_wait", 32, Some(&input), &floats(input.iter().copied()));
}

#[test]
fn missing_barrier_after_copy() {
    let input: Vec<f32> = (0..256).map(|i| i as f32).collect();
    let want = floats((0..64).map(|i| (63 - i) as f32 * 4.0));
    shows_in_some_order("missing_barrier_after_copy", 64, Some(&input), &want);
}

#[test]
fn race_of_orders() {
    shows_in_some_order("race_of_orders", 64, None, &[0; 64]);
}

#[test]
fn uninitialised_device_memory() {
    let device = Device::new();
    let out = device.stream.alloc_zeros::<f32>(32).expect("allocated");
    // SAFETY: that nobody has written it is the bug.
    let never_written = unsafe { device.stream.alloc::<f32>(32) }.expect("allocated");
    device
        .launch("uninitialised_device_memory", (1, 32, 0), &[device.pointer(&out), device.pointer(&never_written)])
        .expect("no fault");
    assert!(device.stream.clone_dtoh(&out).expect("copied out").iter().all(|x| x.is_nan()));
}

#[test]
fn read_past_the_end() {
    for n in [64usize, 1024, 4096] {
        let device = Device::new();
        let from = device.stream.clone_htod(&vec![1.0f32; n]).expect("copied in");
        let out = device.stream.alloc_zeros::<f32>(32).expect("allocated");
        let arguments = |right: i32| [device.pointer(&out), device.pointer(&from), (n as i32).into(), right.into()];
        device.launch("read_past_the_end", (1, 32, 0), &arguments(1)).expect("the mended kernel runs");
        let (error, text) = device.fault("read_past_the_end", (1, 32, 0), &arguments(0));
        assert_eq!(error, CUDA_ERROR_ILLEGAL_ADDRESS);
        let says = format!("0 bytes past the end of an allocation of {} bytes", n * 4);
        assert!(text.contains(&says) && text.contains("thread (0,0,0)"), "{text}");
    }
}

#[test]
fn write_before_the_beginning() {
    // Found at once where the allocation fills its page, else by the fence in front of it when it is freed.
    let device = Device::new();
    let out = device.stream.alloc_zeros::<f32>(1024).expect("allocated");
    let (error, text) = device.fault("write_before_the_beginning", (1, 32, 0), &[device.pointer(&out), 0.into()]);
    assert_eq!(error, CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(text.contains("4 bytes before an allocation of 4096 bytes"), "{text}");
    drop((out, device));

    let device = Device::new();
    let out = device.stream.alloc_zeros::<f32>(32).expect("allocated");
    device.launch("write_before_the_beginning", (1, 32, 0), &[device.pointer(&out), 0.into()]).expect("not found yet");
    drop(out);
    device.stream.synchronize().expect_err("found when it was freed");
    assert!(
        device.emulator.fault().contains("just outside of an allocation of 128 bytes"),
        "{}",
        device.emulator.fault()
    );
}

#[test]
fn use_after_free() {
    let device = Device::new();
    let from = device.stream.clone_htod(&[1.0f32; 64]).expect("copied in");
    let out = device.stream.alloc_zeros::<f32>(32).expect("allocated");
    let gone = device.pointer(&from);
    drop(from);
    let (error, text) =
        device.fault("read_past_the_end", (1, 32, 0), &[device.pointer(&out), gone, 64.into(), 1.into()]);
    assert_eq!(error, CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(text.contains("argument 1") && text.contains("256 bytes that was freed"), "{text}");
}

#[test]
fn shuffle_from_inactive_lane() {
    let says = "lane 0 reads lane 20, which is not in the mask 0000ffff";
    faults("shuffle_from_inactive_lane", (1, 32, 0), CUDA_ERROR_LAUNCH_FAILED, says);
}

#[test]
fn shuffle_with_lanes_that_left() {
    faults(
        "shuffle_with_lanes_that_left",
        (1, 32, 0),
        CUDA_ERROR_LAUNCH_FAILED,
        "__shfl_xor_sync names inactive lanes",
    );
}

#[test]
fn divergent_barrier() {
    faults("divergent_barrier", (1, 64, 0), CUDA_ERROR_LAUNCH_FAILED, "divergent barrier: threads wait at ");
}

#[test]
fn barrier_after_some_left() {
    let says = "divergent barrier: 48 thread(s) wait at ";
    faults("barrier_after_some_left", (1, 64, 0), CUDA_ERROR_LAUNCH_TIMEOUT, says);
}

#[test]
fn write_past_shared_array() {
    let says = "a write past the end of the shared array value (128 bytes)";
    faults("write_past_shared_array", (1, 32, 0), CUDA_ERROR_ILLEGAL_ADDRESS, says);
}

#[test]
fn write_past_dynamic_memory() {
    faults("write_past_dynamic_memory", (1, 32, 128), CUDA_ERROR_ILLEGAL_ADDRESS, "access of memory at ");
}

#[test]
fn diverged_warp() {
    faults("diverged_warp", (1, 32, 0), CUDA_ERROR_LAUNCH_FAILED, "warp divergence: this lane is at ");
}

#[test]
fn endless_recursion() {
    faults("endless_recursion", (1, 32, 0), CUDA_ERROR_ILLEGAL_ADDRESS, "the stack of a kernel's thread is full");
}

#[test]
fn division_by_zero() {
    faults("division_by_zero", (1, 32, 0), CUDA_ERROR_LAUNCH_FAILED, "an integer was divided by zero");
}

#[test]
fn misaligned_load() {
    let device = Device::new();
    let from = device.stream.clone_htod(&[1.0f32; 64]).expect("copied in");
    let out = device.stream.alloc_zeros::<f32>(32).expect("allocated");
    let arguments = |right: i32| [device.pointer(&out), device.pointer(&from), right.into()];
    device.launch("misaligned_load", (1, 32, 0), &arguments(1)).expect("the mended kernel runs");
    let (error, text) = device.fault("misaligned_load", (1, 32, 0), &arguments(0));
    assert_eq!(error, CUDA_ERROR_MISALIGNED_ADDRESS);
    assert!(text.contains("not aligned to its type"), "{text}");
}
