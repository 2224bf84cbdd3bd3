//! What the emulator's tests share: its kernels, loaded through the unmodified cudarc.

#![allow(dead_code, reason = "each test program uses its part of this")]

use cudarc::driver::sys::{CUfunction, CUmodule, CUresult};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DriverError, result};
use engine_cuda_emulator::Emulator;
use std::ffi::{CString, c_void};
use std::path::Path;
use std::sync::Arc;

pub struct Device {
    pub context: Arc<CudaContext>,
    pub stream: Arc<CudaStream>,
    /// The one of the emulator, or those that a bundle has for a real GPU, one for each file of kernels.
    modules: Vec<CUmodule>,
    /// Last, so that the next test begins when nothing of this one is left.
    pub emulator: Emulator,
}

/// Kernels as the driver takes them; the emulated one takes any bytes.
fn images(emulator: &Emulator) -> Vec<Vec<u8>> {
    if !emulator.is_real() {
        return vec![b"image".to_vec()];
    }
    let folder = engine_cuda_emulator::root().join("images");
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let read = |path: std::path::PathBuf| [std::fs::read(path).expect("it was listed"), vec![0]].concat();
    files.map(|file| read(file.expect("a folder").path())).collect()
}

/// A launch's argument by its bytes.
pub enum Argument {
    Pointer(u64),
    Int(i32),
}

impl From<i32> for Argument {
    fn from(value: i32) -> Self {
        Self::Int(value)
    }
}

impl Device {
    pub fn new() -> Self {
        let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels");
        let emulator = engine_cuda_emulator::load_from(&kernels).unwrap_or_else(|error| panic!("{error}"));
        let context = CudaContext::new(0).expect("a context");
        let stream = context.new_stream().expect("a stream");
        // SAFETY: the emulated driver takes any bytes for an image; a real one gets text that ends with a zero.
        let load = |image: Vec<u8>| unsafe { result::module::load_data(image.as_ptr().cast()) }.expect("a module");
        let modules = images(&emulator).into_iter().map(load).collect();
        Self { context, stream, modules, emulator }
    }

    pub fn function(&self, name: &str) -> CUfunction {
        let name = CString::new(name).expect("no zero in it");
        // SAFETY: the modules are loaded for as long as this is there.
        let find = |module: &CUmodule| unsafe { result::module::get_function(*module, name.clone()) }.ok();
        self.modules.iter().find_map(find).expect("the kernel is found by its name")
    }

    /// Launches a kernel: blocks, threads of each, bytes of dynamic shared memory.
    pub fn launch(
        &self,
        name: &str,
        (blocks, threads, shared): (u32, u32, u32),
        arguments: &[Argument],
    ) -> Result<(), DriverError> {
        let mut parameters: Vec<*mut c_void> = arguments
            .iter()
            .map(|argument| match argument {
                Argument::Pointer(at) => std::ptr::from_ref(at).cast_mut().cast(),
                Argument::Int(value) => std::ptr::from_ref(value).cast_mut().cast(),
            })
            .collect();
        let (grid, block) = ((blocks, 1, 1), (threads, 1, 1));
        let function = self.function(name);
        // SAFETY: the tests give each kernel the arguments that it has; wrong ones are what some of them are about.
        unsafe {
            result::launch_kernel(function, grid, block, shared, self.stream.cu_stream(), &mut parameters)?;
        }
        self.stream.synchronize()
    }

    /// A buffer of the device as an argument.
    pub fn pointer<T>(&self, slice: &CudaSlice<T>) -> Argument {
        Argument::Pointer(slice.device_ptr(&self.stream).0)
    }

    /// Launches a kernel that must fail, and gives CUDA's error and what the emulator says of it.
    pub fn fault(&self, name: &str, shape: (u32, u32, u32), arguments: &[Argument]) -> (CUresult, String) {
        let error = self.launch(name, shape, arguments).expect_err("the kernel has a bug");
        (error.0, self.emulator.fault())
    }
}
