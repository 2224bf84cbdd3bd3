//! The kernels of the CUDA backend compile for the emulator, every one of them.

#[test]
fn they_compile_and_load() {
    engine_cuda_emulator::load().unwrap_or_else(|error| panic!("{error}"));
}
