//! The driver around the kernels: errors, memory at reserved addresses, late work, graphs, fail points, matrix products.

mod device;

use cudarc::cublaslt::{Activation, CudaBlasLT, Matmul, MatmulConfig};
use cudarc::driver::sys::cudaError_enum::*;
use cudarc::driver::sys::{self, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaSlice, DriverError};
use device::{Argument, Device};
use half::bf16;
use std::ffi::c_void;

const GRANULE: usize = 2 << 20;

fn error<T>(outcome: Result<T, DriverError>) -> sys::CUresult {
    outcome.err().map_or(CUDA_SUCCESS, |error| error.0)
}

/// Access for reading and writing by the one device.
fn access() -> sys::CUmemAccessDesc {
    // SAFETY: a struct of numbers, of which zero is a value.
    let mut access: sys::CUmemAccessDesc = unsafe { std::mem::zeroed() };
    access.location.type_ = sys::CUmemLocationType_enum::CU_MEM_LOCATION_TYPE_DEVICE;
    access.flags = sys::CUmemAccess_flags_enum::CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    access
}

fn reserve(bytes: usize) -> u64 {
    let mut at = 0;
    // SAFETY: writes one address.
    assert_eq!(unsafe { sys::cuMemAddressReserve(&mut at, bytes, 0, 0, 0) }, CUDA_SUCCESS);
    at
}

fn create(bytes: usize) -> Result<u64, DriverError> {
    let mut handle = 0;
    // SAFETY: a struct of numbers, of which zero is a value; the call writes one handle.
    unsafe { sys::cuMemCreate(&mut handle, bytes, &std::mem::zeroed(), 0) }.result().map(|()| handle)
}

#[test]
fn reserved_addresses_take_memory_and_swap_it() {
    let device = Device::new();
    let at = reserve(2 * GRANULE);
    let (one, two) = (create(GRANULE).expect("made"), create(GRANULE).expect("made"));
    let used = device.emulator.counters().bytes_in_use;
    let map = |offset: usize, handle: u64| {
        // SAFETY: addresses that were reserved.
        unsafe {
            sys::cuMemMap(at + offset as u64, GRANULE, 0, handle, 0).result()?;
            sys::cuMemSetAccess(at + offset as u64, GRANULE, &access(), 1).result()
        }
    };
    let launch = || device.launch("doubled", (1, 64, 0), &[Argument::Pointer(at)]);
    map(0, one).expect("mapped");
    map(GRANULE, two).expect("mapped beside it");
    assert_eq!(error(map(0, two)), CUDA_ERROR_ALREADY_MAPPED);
    let write = |value: f32| {
        let values = [value; 64];
        // SAFETY: 256 bytes of mapped memory.
        unsafe { cudarc::driver::result::memcpy_htod_sync(at, &values) }.expect("copied in");
    };
    let read = || {
        let mut values = [0f32; 64];
        // SAFETY: 256 bytes of mapped memory.
        unsafe { cudarc::driver::result::memcpy_dtoh_sync(&mut values, at) }.expect("copied out");
        values[63]
    };
    write(3.0);
    launch().expect("it runs");
    assert_eq!(read(), 6.0);
    // SAFETY: what was mapped.
    unsafe { sys::cuMemUnmap(at, GRANULE).result() }.expect("unmapped");
    // The second memory now lies at both addresses; it is as poisoned as any new one.
    map(0, two).expect("mapped");
    assert!(read().is_nan());
    write(5.0);
    launch().expect("it runs");
    assert_eq!(read(), 10.0);
    // SAFETY: handles of this test.
    unsafe { sys::cuMemRelease(one).result() }.expect("released");
    assert_eq!(device.emulator.counters().bytes_in_use, used - GRANULE as u64);
    // SAFETY: what was mapped.
    unsafe { sys::cuMemUnmap(at, 2 * GRANULE).result() }.expect("unmapped");
    assert_eq!(error(launch()), CUDA_ERROR_ILLEGAL_ADDRESS);
    assert!(device.emulator.fault().contains("reserved and has no memory"), "{}", device.emulator.fault());
}

#[test]
fn memory_runs_out_and_comes_back() {
    let device = Device::new();
    device.emulator.memory(8 << 20);
    let kept = device.stream.alloc_zeros::<u8>(5 << 20).expect("allocated");
    assert_eq!(error(device.stream.alloc_zeros::<u8>(4 << 20)), CUDA_ERROR_OUT_OF_MEMORY);
    assert_eq!(error(create(2 * GRANULE)), CUDA_ERROR_OUT_OF_MEMORY);
    assert_eq!(cudarc::driver::result::mem_get_info().expect("told"), (3 << 20, 8 << 20));
    drop(kept);
    device.stream.alloc_zeros::<u8>(8 << 20).expect("all of it");
    device.emulator.fail_allocation(2, CUDA_ERROR_OUT_OF_MEMORY as i32);
    device.stream.alloc_zeros::<u8>(16).expect("the first one");
    assert_eq!(error(device.stream.alloc_zeros::<u8>(16)), CUDA_ERROR_OUT_OF_MEMORY);
    device.stream.alloc_zeros::<u8>(16).expect("the third one");
}

#[test]
fn a_lost_device_answers_everything_with_its_error() {
    let device = Device::new();
    let at = device.stream.clone_htod(&[1.0f32; 64]).expect("copied in");
    device.emulator.lose_device(2, CUDA_ERROR_ECC_UNCORRECTABLE as i32);
    let launch = || device.launch("doubled", (1, 64, 0), &[device.pointer(&at)]);
    launch().expect("the first one");
    assert_eq!(error(launch()), CUDA_ERROR_ECC_UNCORRECTABLE);
    assert_eq!(error(device.stream.clone_dtoh(&at)), CUDA_ERROR_ECC_UNCORRECTABLE);
    assert_eq!(error(device.stream.alloc_zeros::<u8>(16)), CUDA_ERROR_ECC_UNCORRECTABLE);
}

#[test]
fn a_kernel_s_output_is_corrupted_on_request() {
    let device = Device::new();
    let at = device.stream.clone_htod(&[1.0f32; 64]).expect("copied in");
    device.emulator.corrupt("doubled", 2, 0, 8);
    let run = || {
        device.launch("doubled", (1, 64, 0), &[device.pointer(&at)]).expect("it runs");
        device.stream.clone_dtoh(&at).expect("copied out")
    };
    assert_eq!(run(), [2.0; 64]);
    let corrupted = run();
    assert!(corrupted[0].is_nan() && corrupted[1].is_nan());
    assert_eq!(corrupted[2..], [4.0; 62]);
}

#[test]
fn no_device_and_an_old_driver_are_told() {
    let device = Device::new();
    device.emulator.devices(0, (9, 0), 12040);
    assert_eq!(error(CudaContext::new(0)), CUDA_ERROR_NO_DEVICE);
    let mut version = 0;
    // SAFETY: writes one number.
    assert_eq!(unsafe { sys::cuDriverGetVersion(&mut version) }, CUDA_SUCCESS);
    assert_eq!(version, 12040);
}

#[test]
fn limits_of_launches_are_those_of_the_device() {
    let device = Device::new();
    let out = device.stream.alloc_zeros::<f32>(64).expect("allocated");
    let launch = |threads: u32| error(device.launch("doubled", (1, threads, 0), &[device.pointer(&out)]));
    assert_eq!(launch(64), CUDA_SUCCESS);
    assert_eq!(launch(65), CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
    assert_eq!(launch(2048), CUDA_ERROR_INVALID_VALUE);
    let fill = |bytes: u32| {
        error(device.launch("fill_dynamic", (1, 32, bytes), &[device.pointer(&out), (bytes as i32 / 4).into()]))
    };
    assert_eq!(fill(48 << 10), CUDA_SUCCESS);
    assert_eq!(fill((48 << 10) + 4), CUDA_ERROR_INVALID_VALUE);
    let allow = |bytes: i32| {
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: a function that was just found.
        unsafe { sys::cuFuncSetAttribute(device.function("fill_dynamic"), attribute, bytes) }
    };
    assert_eq!(allow(228 << 10), CUDA_ERROR_INVALID_VALUE);
    assert_eq!(allow(227 << 10), CUDA_SUCCESS);
    assert_eq!(fill(227 << 10), CUDA_SUCCESS);
    for (capability, most) in [((8, 0), 163), ((8, 6), 99), ((8, 9), 99), ((10, 0), 227), ((12, 0), 99)] {
        device.emulator.devices(1, capability, 13000);
        assert_eq!(allow((most << 10) + 1), CUDA_ERROR_INVALID_VALUE, "{capability:?}");
        assert_eq!(allow(most << 10), CUDA_SUCCESS, "{capability:?}");
    }
}

/// Captures two launches and a fill of a buffer.
fn captured(device: &Device, at: &CudaSlice<f32>) -> cudarc::driver::CudaGraph {
    // The launches below wait for the stream, which a capture does not allow; so they are made by hand.
    let function = device.function("doubled");
    let Argument::Pointer(pointer) = device.pointer(at) else { panic!("a buffer is a pointer") };
    device.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("begun");
    for _ in 0..2 {
        let mut parameters: [*mut c_void; 1] = [std::ptr::from_ref(&pointer).cast_mut().cast()];
        let stream = device.stream.cu_stream();
        // SAFETY: the kernel has this one argument.
        unsafe { cudarc::driver::result::launch_kernel(function, (1, 1, 1), (64, 1, 1), 0, stream, &mut parameters) }
            .expect("captured");
    }
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    device.stream.end_capture(flags).expect("ended").expect("a graph")
}

#[test]
fn graphs_replay_on_what_memory_then_holds() {
    let device = Device::new();
    // SAFETY: this test orders its work by one stream.
    unsafe { device.context.disable_event_tracking() };
    for deferred in [false, true] {
        if deferred {
            device.emulator.defer(5);
        }
        let mut at = device.stream.clone_htod(&[1.0f32; 64]).expect("copied in");
        let graph = captured(&device, &at);
        assert_eq!(device.stream.clone_dtoh(&at).expect("copied out"), [1.0; 64], "capturing runs nothing");
        let before = device.emulator.counters();
        for start in [1.0f32, 10.0] {
            device.stream.memcpy_htod(&[start; 64], &mut at).expect("copied in");
            graph.launch().expect("launched");
            graph.launch().expect("launched");
            assert_eq!(device.stream.clone_dtoh(&at).expect("copied out"), [start * 16.0; 64]);
        }
        let after = device.emulator.counters();
        assert_eq!((after.graph_launches - before.graph_launches, after.launches - before.launches), (4, 8));
    }
}

#[test]
fn what_a_capture_forbids_spoils_it() {
    let device = Device::new();
    device.stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("begun");
    assert_eq!(error(device.stream.synchronize()), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    assert_eq!(error(device.stream.end_capture(flags)), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    device.stream.synchronize().expect("the stream works again");
}

/// What one stream reads of another's work, without an event between them and with one.
#[test]
fn a_missing_wait_between_streams_shows_when_work_is_deferred() {
    let read = |waits: bool, seed: u64| {
        let device = Device::new();
        // SAFETY: ordering streams by hand is what this test is about.
        unsafe { device.context.disable_event_tracking() };
        let at = device.stream.clone_htod(&[1.0f32; 64]).expect("copied in");
        device.stream.synchronize().expect("done");
        device.emulator.defer(seed);
        let other = device.context.new_stream().expect("a stream");
        let pointer = device.pointer(&at);
        let Argument::Pointer(pointer) = pointer else { panic!("a buffer is a pointer") };
        let mut parameters: [*mut c_void; 1] = [std::ptr::from_ref(&pointer).cast_mut().cast()];
        let (function, stream) = (device.function("doubled"), device.stream.cu_stream());
        // SAFETY: the kernel has this one argument.
        unsafe { cudarc::driver::result::launch_kernel(function, (1, 1, 1), (64, 1, 1), 0, stream, &mut parameters) }
            .expect("launched");
        if waits {
            let event = device.stream.record_event(None).expect("recorded");
            other.wait(&event).expect("waits");
        }
        other.clone_dtoh(&at).expect("copied out")[0]
    };
    assert!((0..8).all(|seed| read(true, seed) == 2.0));
    assert!((0..8).any(|seed| read(false, seed) == 1.0), "the copy never overtook the kernel");
}

#[test]
fn registered_memory_is_read_when_the_copy_is_done() {
    let device = Device::new();
    let mut host = vec![1.0f32; 1024];
    // SAFETY: the memory outlives the registration.
    let register = unsafe { sys::cuMemHostRegister_v2(host.as_mut_ptr().cast(), 4096, 0) };
    assert_eq!(register, CUDA_SUCCESS);
    device.emulator.defer(1);
    let at = device.stream.clone_htod(&host).expect("copied in");
    // Too early: the copy has not been waited for.
    host.fill(2.0);
    assert_eq!(device.stream.clone_dtoh(&at).expect("copied out"), vec![2.0; 1024]);
    // SAFETY: registered above.
    assert_eq!(unsafe { sys::cuMemHostUnregister(host.as_mut_ptr().cast()) }, CUDA_SUCCESS);
    let at = device.stream.clone_htod(&host).expect("copied in");
    host.fill(3.0);
    assert_eq!(device.stream.clone_dtoh(&at).expect("copied out"), vec![2.0; 1024], "plain memory was staged");
}

/// Marks the process in which the next test does its work.
const CHILD: &str = "FORESHOCK_EMULATOR_TEST_CHILD";

#[test]
fn a_process_that_finds_the_library_is_set_by_its_environment() {
    if std::env::var_os(CHILD).is_some() {
        return use_what_is_found();
    }
    let folder = engine_cuda_emulator::driver_folder().unwrap_or_else(|error| panic!("{error}"));
    let this = "a_process_that_finds_the_library_is_set_by_its_environment";
    let child = std::process::Command::new(std::env::current_exe().expect("a test program"))
        .args(["--exact", this])
        .env("LD_LIBRARY_PATH", folder)
        .env("FORESHOCK_EMULATOR_MEMORY", "33554432")
        .env("FORESHOCK_EMULATOR_LOSE_DEVICE", "1:214")
        .env(CHILD, "1")
        .output()
        .expect("started");
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
}

/// Any kernel of the backend will do: its launch is refused before it runs.
fn use_what_is_found() {
    let context = CudaContext::new(0).expect("a context");
    let stream = context.new_stream().expect("a stream");
    assert_eq!(error(stream.alloc_zeros::<u8>(32 << 20)), CUDA_SUCCESS);
    assert_eq!(error(stream.alloc_zeros::<u8>((32 << 20) + 1)), CUDA_ERROR_OUT_OF_MEMORY);
    // SAFETY: the emulated driver takes any bytes for an image; the arguments are as long as the kernel's.
    let launch = unsafe {
        let module = cudarc::driver::result::module::load_data(b"image".as_ptr().cast()).expect("a module");
        let kernel = cudarc::driver::result::module::get_function(module, c"rms_norm".into()).expect("a kernel");
        let arguments = [0u8; 256];
        let mut parameters: [*mut c_void; 1] = [arguments.as_ptr().cast_mut().cast()];
        cudarc::driver::result::launch_kernel(kernel, (1, 1, 1), (32, 1, 1), 0, stream.cu_stream(), &mut parameters)
    };
    assert_eq!(error(launch), CUDA_ERROR_ECC_UNCORRECTABLE);
    assert_eq!(error(stream.synchronize()), CUDA_ERROR_ECC_UNCORRECTABLE);
}

#[test]
fn cublaslt_multiplies_in_columns() {
    let device = Device::new();
    let blas = CudaBlasLT::new(device.stream.clone()).expect("a handle");
    let (m, n, k) = (5usize, 3usize, 7usize);
    let number = |i: usize| bf16::from_f32((i * 37 % 19) as f32 / 8.0 - 1.0);
    let a: Vec<bf16> = (0..m * k).map(number).collect();
    let b: Vec<bf16> = (0..k * n).map(|i| number(i + 5)).collect();
    let bias: Vec<bf16> = (0..m).map(|i| number(i + 11)).collect();
    let [a_device, b_device, bias_device] =
        [&a, &b, &bias].map(|one| device.stream.clone_htod(one).expect("copied in"));
    for (transposed, activation) in [(false, None), (true, Some(Activation::Relu))] {
        let mut out = device.stream.alloc_zeros::<bf16>(m * n).expect("allocated");
        let shape = MatmulConfig {
            transa: transposed,
            transb: false,
            transc: false,
            m: m as u64,
            n: n as u64,
            k: k as u64,
            alpha: 0.5,
            lda: if transposed { k } else { m } as i64,
            ldb: k as i64,
            beta: 0.0,
            ldc: m as i64,
            stride_a: None,
            stride_b: None,
            stride_c: None,
            stride_bias: None,
            batch_size: None,
        };
        // SAFETY: the shape is that of the buffers.
        unsafe { blas.matmul(shape, &a_device, &b_device, &mut out, Some(&bias_device), activation.as_ref()) }
            .expect("multiplied");
        let got = device.stream.clone_dtoh(&out).expect("copied out");
        for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
            let at = |i: usize| if transposed { a[i + row * k] } else { a[row + i * m] }.to_f32();
            let sum: f32 = (0..k).map(|i| at(i) * b[i + column * k].to_f32()).sum();
            let value = 0.5 * sum + bias[row].to_f32();
            let want = bf16::from_f32(if activation.is_some() { value.max(0.0) } else { value });
            assert_eq!(got[row + column * m], want, "({row}, {column})");
        }
    }
}
