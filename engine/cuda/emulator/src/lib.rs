//! A GPU for tests: kernels run on the CPU, behind a libcuda that the unmodified CUDA backend loads.
//!
//! [`load`] compiles the `.cu` files with g++ against the SIMT emulator in this folder (`include/`, `runtime/`) and loads the result
//! under the name that cudarc asks for first. What CUDA calls a thread is a fiber; fibers run in a chosen [`Order`]; memory is
//! poisoned and fenced; a fault becomes the error that a GPU would answer, and a text that says where ([`Emulator::fault`]).
//! Not emulated: real concurrency and timing, mbarriers, TMA, wgmma, and the rounding of tensor cores.

mod control;
mod library;
mod scan;

pub use control::{Counters, Order};

use control::Controls;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Why there is no emulated GPU.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {problem}")]
    File { path: PathBuf, problem: std::io::Error },
    #[error("{path}:{line}: {problem}")]
    Source { path: PathBuf, line: usize, problem: String },
    #[error("cannot start {compiler} (install g++): {problem}")]
    Compiler { compiler: &'static str, problem: std::io::Error },
    #[error("{path} does not compile for the emulator:\n{output}")]
    Compile { path: PathBuf, output: String },
    #[error("cannot load the emulated driver: {0}")]
    Load(#[from] libloading::Error),
    #[error("this process has loaded the kernels of {0}; one process has one driver")]
    OtherKernels(PathBuf),
}

struct Loaded {
    kernels: PathBuf,
    controls: Controls,
}

static LOADED: OnceLock<Loaded> = OnceLock::new();
static TURN: Mutex<()> = Mutex::new(());

/// The emulated GPU, fresh, for as long as this is held: other tests of the process wait for their turn.
pub struct Emulator {
    controls: &'static Controls,
    _turn: MutexGuard<'static, ()>,
}

/// The emulated GPU with the kernels of the CUDA backend. The first call of all processes compiles them.
pub fn load() -> Result<Emulator, Error> {
    load_from(&library::folder().join("../kernels"))
}

/// The emulated GPU with the kernels of a folder: every `.cu` file in it.
pub fn load_from(kernels: &Path) -> Result<Emulator, Error> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let loaded = match LOADED.get() {
        Some(loaded) => loaded,
        None => {
            let controls = Controls::load(&library::build(kernels)?)?;
            LOADED.get_or_init(|| Loaded { kernels: kernels.to_owned(), controls })
        }
    };
    if loaded.kernels != kernels {
        return Err(Error::OtherKernels(loaded.kernels.clone()));
    }
    loaded.controls.reset();
    Ok(Emulator { controls: &loaded.controls, _turn: turn })
}

impl Emulator {
    /// The order in which the threads of a block run between two points where they meet.
    pub fn order(&self, order: Order) {
        self.controls.order(order);
    }

    /// Runs a test in the three orders; what it gives should not depend on them.
    pub fn in_each_order<T>(&self, mut test: impl FnMut(Order) -> T) -> [T; 3] {
        [Order::Forward, Order::Reverse, Order::Shuffled(7)].map(|order| {
            self.order(order);
            test(order)
        })
    }

    /// Work on streams is done when something waits for it, streams interleaved by a seed, instead of when it is submitted.
    pub fn defer(&self, seed: u64) {
        self.controls.defer(seed);
    }

    /// The device's memory, bytes (4 GiB unless set).
    pub fn memory(&self, bytes: u64) {
        self.controls.memory(bytes);
    }

    /// How many devices there are, their compute capability and the driver's version (13000 is CUDA 13.0).
    pub fn devices(&self, count: i32, capability: (i32, i32), driver_version: i32) {
        self.controls.devices(count, capability, driver_version);
    }

    /// The `nth` allocation from now (1 is the next) fails with one of CUDA's errors; 0 takes it back.
    pub fn fail_allocation(&self, nth: u64, error: i32) {
        self.controls.fail_allocation(nth, error);
    }

    /// The `nth` launch from now fails with one of CUDA's errors, and so does every call after it: the device is lost.
    pub fn lose_device(&self, nth: u64, error: i32) {
        self.controls.fail_launch(nth, error);
    }

    /// When a kernel has run `nth` times from now, the first `bytes` behind its argument number `argument` hold NaN.
    pub fn corrupt(&self, kernel: &str, nth: u64, argument: usize, bytes: u64) {
        self.controls.corrupt(kernel, nth, argument, bytes);
    }

    /// What the last fault of a kernel was, where; empty when there was none.
    pub fn fault(&self) -> String {
        self.controls.fault()
    }

    /// What was done since the emulator was loaded for this test.
    pub fn counters(&self) -> Counters {
        self.controls.counters()
    }
}
