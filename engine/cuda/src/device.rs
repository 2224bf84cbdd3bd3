//! One GPU: its primary context, its streams, and copies between it and this process.

use crate::{
    error::{CudaError, During},
    modules::Modules,
};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};
use std::sync::Arc;

/// CUDA version whose drivers load what this build holds.
const CUDA_VERSION: i32 = 13_000;

/// An address in device memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Ptr(pub u64);

impl Ptr {
    /// What kernels take for "none".
    pub const NULL: Self = Self(0);

    pub fn offset(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

/// A device's primary context.
#[derive(Debug)]
pub struct Context {
    inner: Arc<CudaContext>,
    pub name: String,
    /// Compute capability, such as (9, 0).
    pub capability: (i32, i32),
    pub multiprocessors: i32,
    /// Dynamic shared memory that a block may ask for, bytes.
    pub shared_bytes: u32,
}

impl Context {
    /// Opens a device.
    ///
    /// # Errors
    /// Says which of library, driver, device is missing or too old.
    pub fn open(ordinal: usize) -> Result<Arc<Self>, CudaError> {
        // SAFETY: loads the driver's library, if there is one, and nothing else.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoLibrary);
        }
        let mut found = 0;
        // SAFETY: the out pointer is valid.
        unsafe { sys::cuDriverGetVersion(&mut found) }.result().during("cuDriverGetVersion")?;
        if found < CUDA_VERSION {
            return Err(CudaError::DriverTooOld { found, needed: CUDA_VERSION });
        }
        result::init().during("cuInit")?;
        let count = CudaContext::device_count().during("cuDeviceGetCount")?.max(0) as usize;
        if count == 0 {
            return Err(CudaError::NoDevice);
        }
        if ordinal >= count {
            return Err(CudaError::NoSuchDevice { ordinal, count });
        }
        let inner = CudaContext::new(ordinal).during("cuDevicePrimaryCtxRetain")?;
        let name = inner.name().during("cuDeviceGetName")?;
        let attribute = |attribute| inner.attribute(attribute).during("cuDeviceGetAttribute");
        use sys::CUdevice_attribute as A;
        let (major, minor) = (
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if major < 8 {
            return Err(CudaError::DeviceTooOld { name, major, minor });
        }
        let multiprocessors = attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let shared_bytes = attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?.max(0) as u32;
        Ok(Arc::new(Self { inner, name, capability: (major, minor), multiprocessors, shared_bytes }))
    }

    pub fn ordinal(&self) -> usize {
        self.inner.ordinal()
    }

    /// Makes it the calling thread's.
    pub fn bind(&self) -> Result<(), CudaError> {
        self.inner.bind_to_thread().during("cuCtxSetCurrent")
    }

    /// Bytes free and in all.
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        let (free, total) = self.inner.mem_get_info().during("cuMemGetInfo")?;
        Ok((free as u64, total as u64))
    }
}

/// A context with its streams and the kernels that were asked for so far.
#[derive(Debug)]
pub struct Device {
    pub context: Arc<Context>,
    /// Where steps run.
    pub stream: Arc<CudaStream>,
    /// Where weights travel.
    pub upload: Arc<CudaStream>,
    pub modules: Modules,
}

impl Device {
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        let context = Context::open(ordinal)?;
        let stream = || context.inner.new_stream().during("cuStreamCreate");
        let (stream, upload) = (stream()?, stream()?);
        let modules = Modules::new(&context);
        Ok(Self { context, stream, upload, modules })
    }

    /// Runs a kernel on the step's stream; `args` is the one struct that it takes.
    ///
    /// # Safety
    /// `args` must be what the kernel takes, and every address in it must hold what the kernel expects there, until the
    /// stream has come past the launch.
    pub unsafe fn launch<A: Copy>(&mut self, kernel: &str, launch: Launch, args: &A) -> Result<(), CudaError> {
        let stream = self.stream.clone();
        // SAFETY: the caller's word.
        unsafe { self.launch_on(&stream, kernel, launch, args) }
    }

    /// The same on any stream of the device.
    ///
    /// # Safety
    /// As for [`Device::launch`].
    pub unsafe fn launch_on<A: Copy>(
        &mut self,
        stream: &CudaStream,
        kernel: &str,
        launch: Launch,
        args: &A,
    ) -> Result<(), CudaError> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let function = self.modules.function(kernel, launch.shared_bytes)?;
        let mut parameters = [std::ptr::from_ref(args).cast_mut().cast()];
        let [x, y, z] = launch.grid;
        // SAFETY: the function is of a module that lives as long as the device; the rest is the caller's word.
        unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (launch.threads, 1, 1),
                launch.shared_bytes,
                stream.cu_stream(),
                &mut parameters,
            )
        }
        .during("cuLaunchKernel")
    }

    /// Copies to the device, on a stream.
    ///
    /// # Safety
    /// `to` must have room; `from` must stay until the stream has come past the copy.
    pub unsafe fn to_device<T: Copy>(&self, stream: &CudaStream, to: Ptr, from: &[T]) -> Result<(), CudaError> {
        if from.is_empty() {
            return Ok(());
        }
        self.context.bind()?;
        // SAFETY: the caller's word.
        unsafe { result::memcpy_htod_async(to.0, from, stream.cu_stream()) }.during("cuMemcpyHtoD")
    }

    /// Copies from the device once all before is done, and waits for it.
    ///
    /// # Safety
    /// `from` must hold that many numbers, and any bits must make a `T`.
    pub unsafe fn to_host<T: Copy>(&self, to: &mut [T], from: Ptr) -> Result<(), CudaError> {
        self.context.bind()?;
        if !to.is_empty() {
            // SAFETY: the caller's word; `to` outlives the wait below.
            unsafe { result::memcpy_dtoh_async(to, from.0, self.stream.cu_stream()) }.during("cuMemcpyDtoH")?;
        }
        self.wait(&self.stream)
    }

    /// Fills with zeros, on the step's stream.
    ///
    /// # Safety
    /// `at` must have room.
    pub unsafe fn clear(&self, at: Ptr, bytes: u64) -> Result<(), CudaError> {
        self.context.bind()?;
        // SAFETY: the caller's word.
        unsafe { result::memset_d8_async(at.0, 0, bytes as usize, self.stream.cu_stream()) }.during("cuMemsetD8")
    }

    /// Until a stream has nothing left to do. Errors of what ran on it come out here.
    pub fn wait(&self, stream: &CudaStream) -> Result<(), CudaError> {
        let wait = || -> Result<(), DriverError> { stream.synchronize() };
        wait().during("cuStreamSynchronize")
    }
}

/// How a kernel is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks; none at all if one is zero.
    pub grid: [u32; 3],
    /// Of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
}
