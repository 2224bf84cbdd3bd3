//! The compiled kernels that this build carries, loaded as they are asked for: the image that was made for the device,
//! or the portable one that its driver compiles.

use crate::{
    device::Context,
    error::{CudaError, During},
};
use cudarc::driver::{result, sys};
use std::{borrow::Cow, collections::HashMap, sync::Arc};

mod images {
    include!(concat!(env!("OUT_DIR"), "/images.rs"));
}

/// Prefixes of kernels' names, and the file that holds them.
const FILES: [(&str, &str); 12] = [
    ("few", "matmul"),
    ("many", "matmul"),
    ("embed", "embed"),
    ("decode", "attention"),
    ("prefill", "attention"),
    ("merge", "attention"),
    ("pack", "pack"),
    ("rms_norm", "norm"),
    ("gate", "gate"),
    ("rotate", "rotary"),
    ("copy_blocks", "rotary"),
    ("choose", "sample"),
];

/// Dynamic shared memory that every kernel may use without asking, bytes.
const SHARED_UNASKED: u32 = 48 << 10;

/// Modules and functions by name.
#[derive(Debug)]
pub struct Modules {
    context: Arc<Context>,
    modules: HashMap<&'static str, sys::CUmodule>,
    functions: HashMap<String, (sys::CUfunction, u32)>,
}

// SAFETY: handles of the driver, which may be used on any thread; changing the maps needs `&mut`.
unsafe impl Send for Modules {}
// SAFETY: as above.
unsafe impl Sync for Modules {}

impl Modules {
    pub(crate) fn new(context: &Arc<Context>) -> Self {
        Self { context: context.clone(), modules: HashMap::new(), functions: HashMap::new() }
    }

    /// A kernel that may use `shared_bytes`.
    pub(crate) fn function(&mut self, kernel: &str, shared_bytes: u32) -> Result<sys::CUfunction, CudaError> {
        self.context.bind()?;
        let (function, allowed) = match self.functions.get(kernel) {
            Some(known) => *known,
            None => (self.load(kernel)?, SHARED_UNASKED),
        };
        if shared_bytes > allowed {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is loaded.
            unsafe { result::function::set_function_attribute(function, attribute, shared_bytes as i32) }
                .during("cuFuncSetAttribute")?;
        }
        self.functions.insert(kernel.to_owned(), (function, allowed.max(shared_bytes)));
        Ok(function)
    }

    fn load(&mut self, kernel: &str) -> Result<sys::CUfunction, CudaError> {
        let (major, minor) = self.context.capability;
        let missing = || CudaError::NoImage { kernel: kernel.to_owned(), major, minor };
        let (_, file) = FILES.iter().find(|(prefix, _)| kernel.starts_with(prefix)).ok_or_else(missing)?;
        let module = match self.modules.get(file) {
            Some(module) => *module,
            None => {
                let image = image(file, (major, minor)).ok_or_else(missing)?;
                // SAFETY: a whole image as the compiler wrote it, ended by a zero byte if it is text.
                let module = unsafe { result::module::load_data(image.as_ptr().cast()) }.during("cuModuleLoadData")?;
                self.modules.insert(file, module);
                module
            }
        };
        let name = std::ffi::CString::new(kernel).map_err(|_| missing())?;
        // SAFETY: the module is loaded.
        unsafe { result::module::get_function(module, name) }.during("cuModuleGetFunction")
    }
}

impl Drop for Modules {
    fn drop(&mut self) {
        let _ = self.context.bind();
        for module in self.modules.values() {
            // SAFETY: loaded by `load`, once; functions go with this.
            let _ = unsafe { result::module::unload(*module) };
        }
    }
}

/// The best image of a file for a device: its own architecture's, one of the same major version that is older, or text
/// that its driver compiles.
fn image(file: &str, (major, minor): (i32, i32)) -> Option<Cow<'static, [u8]>> {
    let named = |name: &str| {
        let plain = images::IMAGES.iter().find(|(image, _)| *image == name).map(|(_, bytes)| Cow::Borrowed(*bytes));
        plain.or_else(|| {
            let packed = format!("{name}.zst");
            let (_, bytes) = images::IMAGES.iter().find(|(image, _)| *image == packed)?;
            zstd::stream::decode_all(*bytes).ok().map(Cow::Owned)
        })
    };
    let exact = [format!("{file}.sm_{major}{minor}a.cubin"), format!("{file}.sm_{major}{minor}.cubin")];
    let older = (0..minor).rev().map(|minor| format!("{file}.sm_{major}{minor}.cubin"));
    exact.into_iter().chain(older).find_map(|name| named(&name)).or_else(|| {
        let mut text = named(&format!("{file}.ptx"))?.into_owned();
        text.push(0);
        Some(Cow::Owned(text))
    })
}
