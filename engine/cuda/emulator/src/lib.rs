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

/// Set on a machine with a GPU, where the same tests are to run on it: nothing is emulated then.
const REAL: &str = "FORESHOCK_REAL_GPU";
/// The folder that stands for the repository where there is none: a bundle's.
const ROOT: &str = "FORESHOCK_BUNDLE";

/// The repository, or the bundle that was made of it: below it lie checkpoints and reference outputs.
pub fn root() -> PathBuf {
    std::env::var_os(ROOT).map_or_else(|| library::folder().join("../../.."), PathBuf::from)
}

/// The emulated GPU, fresh, for as long as this is held: other tests of the process wait for their turn. Contexts, streams and
/// memory should be dropped before it.
///
/// With `FORESHOCK_REAL_GPU` set it is the machine's own GPU, and what only an emulator can do is not done: see
/// [`Emulator::is_real`].
pub struct Emulator {
    controls: Option<&'static Controls>,
    _turn: MutexGuard<'static, ()>,
}

/// The emulated GPU with the kernels of the CUDA backend. The first call of all processes compiles them.
pub fn load() -> Result<Emulator, Error> {
    load_from(&library::folder().join("../kernels"))
}

/// The emulated GPU with the kernels of a folder: every `.cu` file in it.
pub fn load_from(kernels: &Path) -> Result<Emulator, Error> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if std::env::var_os(REAL).is_some() {
        return Ok(Emulator { controls: None, _turn: turn });
    }
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
    Ok(Emulator { controls: Some(&loaded.controls), _turn: turn })
}

/// Builds the emulated driver and gives the folder that holds it: a process that is started with it on its LD_LIBRARY_PATH has
/// the emulated GPU, the product itself for one.
///
/// Such a process is set by variables: `FORESHOCK_EMULATOR_MEMORY=BYTES`, and `FORESHOCK_EMULATOR_LOSE_DEVICE=NTH:ERROR` for a device
/// that is lost at its nth launch with one of CUDA's errors.
pub fn driver_folder() -> Result<PathBuf, Error> {
    let libraries = library::build(&library::folder().join("../kernels"))?;
    Ok(libraries.driver.parent().unwrap_or(Path::new("/")).to_owned())
}

impl Emulator {
    /// Whether this is a real GPU. Faults cannot be planted in it, so tests of them have nothing to do.
    pub fn is_real(&self) -> bool {
        self.controls.is_none()
    }

    fn set(&self, setting: impl FnOnce(&Controls)) {
        if let Some(controls) = self.controls {
            setting(controls);
        }
    }

    /// The order in which the threads of a block run between two points where they meet.
    pub fn order(&self, order: Order) {
        self.set(|controls| controls.order(order));
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
        self.set(|controls| controls.defer(seed));
    }

    /// The device's memory, bytes (4 GiB unless set).
    pub fn memory(&self, bytes: u64) {
        self.set(|controls| controls.memory(bytes));
    }

    /// How many devices there are, their compute capability and the driver's version (13000 is CUDA 13.0).
    pub fn devices(&self, count: i32, capability: (i32, i32), driver_version: i32) {
        self.set(|controls| controls.devices(count, capability, driver_version));
    }

    /// The `nth` allocation from now (1 is the next) fails with one of CUDA's errors; 0 takes it back.
    pub fn fail_allocation(&self, nth: u64, error: i32) {
        self.set(|controls| controls.fail_allocation(nth, error));
    }

    /// The `nth` launch from now fails with one of CUDA's errors, and so does every call after it: the device is lost.
    pub fn lose_device(&self, nth: u64, error: i32) {
        self.set(|controls| controls.fail_launch(nth, error));
    }

    /// When a kernel has run `nth` times from now, the first `bytes` behind a pointer among its arguments hold NaN: the pointer at
    /// word `argument`, words having 8 bytes; a struct's fields are counted through, any other argument takes one.
    pub fn corrupt(&self, kernel: &str, nth: u64, argument: usize, bytes: u64) {
        self.set(|controls| controls.corrupt(kernel, nth, argument, bytes));
    }

    /// What the last fault of a kernel was, where; empty when there was none.
    pub fn fault(&self) -> String {
        self.controls.map(Controls::fault).unwrap_or_default()
    }

    /// What was done since the emulator was loaded for this test.
    pub fn counters(&self) -> Counters {
        self.controls.map(Controls::counters).unwrap_or_default()
    }
}
