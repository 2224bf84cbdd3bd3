//! The functions by which a test sets the emulated device and reads from it (runtime/control.cpp).

use crate::Error;
use crate::library::Libraries;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW, Symbol};
use std::ffi::{CStr, CString, c_char, c_int};

/// The order in which the threads of a block run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// By their numbers; each warp as far as it can go before the next.
    Forward,
    /// The other way round.
    Reverse,
    /// Warps and lanes mixed anew at every turn, by a seed.
    Shuffled(u64),
}

/// What the emulated device has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Kernels launched, those of graphs included.
    pub launches: u64,
    pub graph_launches: u64,
    /// Calls by which the host waited.
    pub synchronisations: u64,
    pub copies: u64,
    /// Blocks run, since the process began.
    pub blocks: u64,
    /// Switches between threads, since the process began.
    pub switches: u64,
    pub live_allocations: u64,
    pub bytes_in_use: u64,
}

/// The loaded driver's own functions. The libraries stay loaded for good: cudarc keeps pointers into them.
pub(crate) struct Controls {
    reset: Symbol<unsafe extern "C" fn()>,
    order: Symbol<unsafe extern "C" fn(c_int, u64)>,
    submission: Symbol<unsafe extern "C" fn(c_int, u64)>,
    memory: Symbol<unsafe extern "C" fn(u64)>,
    devices: Symbol<unsafe extern "C" fn(c_int, c_int, c_int, c_int)>,
    fail_allocation: Symbol<unsafe extern "C" fn(u64, c_int)>,
    fail_launch: Symbol<unsafe extern "C" fn(u64, c_int)>,
    corrupt: Symbol<unsafe extern "C" fn(*const c_char, u64, c_int, u64)>,
    fault: Symbol<unsafe extern "C" fn(*mut c_char, u64)>,
    counters: Symbol<unsafe extern "C" fn(*mut u64)>,
}

impl Controls {
    pub fn load(libraries: &Libraries) -> Result<Self, Error> {
        // SAFETY: the library was built from this package; its initialisers only fill a table of kernels.
        let driver = unsafe { Library::open(Some(&libraries.driver), RTLD_NOW | RTLD_LOCAL) }?;
        // SAFETY: as above; it has no initialisers and finds the driver that is loaded.
        let blas = unsafe { Library::open(Some(&libraries.blas), RTLD_NOW | RTLD_LOCAL) }?;
        // SAFETY: the types are those of the functions in runtime/control.cpp.
        let controls = unsafe {
            Self {
                reset: driver.get(b"foreshock_emulator_reset")?,
                order: driver.get(b"foreshock_emulator_order")?,
                submission: driver.get(b"foreshock_emulator_submission")?,
                memory: driver.get(b"foreshock_emulator_memory")?,
                devices: driver.get(b"foreshock_emulator_devices")?,
                fail_allocation: driver.get(b"foreshock_emulator_fail_allocation")?,
                fail_launch: driver.get(b"foreshock_emulator_fail_launch")?,
                corrupt: driver.get(b"foreshock_emulator_corrupt")?,
                fault: driver.get(b"foreshock_emulator_fault")?,
                counters: driver.get(b"foreshock_emulator_counters")?,
            }
        };
        std::mem::forget((driver, blas));
        Ok(controls)
    }

    pub fn reset(&self) {
        // SAFETY: takes nothing; the driver locks itself.
        unsafe { (self.reset)() }
    }

    pub fn order(&self, order: Order) {
        let (number, seed) = match order {
            Order::Forward => (0, 0),
            Order::Reverse => (1, 0),
            Order::Shuffled(seed) => (2, seed),
        };
        // SAFETY: takes numbers, the first one of the three that it knows.
        unsafe { (self.order)(number, seed) }
    }

    pub fn defer(&self, seed: u64) {
        // SAFETY: takes numbers.
        unsafe { (self.submission)(1, seed) }
    }

    pub fn memory(&self, bytes: u64) {
        // SAFETY: takes a number.
        unsafe { (self.memory)(bytes) }
    }

    pub fn devices(&self, count: i32, capability: (i32, i32), driver_version: i32) {
        // SAFETY: takes numbers.
        unsafe { (self.devices)(count, capability.0, capability.1, driver_version) }
    }

    pub fn fail_allocation(&self, nth: u64, error: i32) {
        // SAFETY: takes numbers.
        unsafe { (self.fail_allocation)(nth, error) }
    }

    pub fn fail_launch(&self, nth: u64, error: i32) {
        // SAFETY: takes numbers.
        unsafe { (self.fail_launch)(nth, error) }
    }

    pub fn corrupt(&self, kernel: &str, nth: u64, argument: usize, bytes: u64) {
        // A name with a zero in it names no kernel.
        let kernel = CString::new(kernel).unwrap_or_default();
        let argument = c_int::try_from(argument).unwrap_or(0);
        // SAFETY: the text ends with a zero and is copied before the call returns.
        unsafe { (self.corrupt)(kernel.as_ptr(), nth, argument, bytes) }
    }

    pub fn fault(&self) -> String {
        let mut text = [0u8; 1024];
        // SAFETY: writes at most as many bytes as the array has, with a zero at the end.
        unsafe { (self.fault)(text.as_mut_ptr().cast(), text.len() as u64) };
        CStr::from_bytes_until_nul(&text).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
    }

    pub fn counters(&self) -> Counters {
        let mut values = [0u64; 8];
        // SAFETY: writes eight numbers.
        unsafe { (self.counters)(values.as_mut_ptr()) };
        let [launches, graph_launches, synchronisations, copies, blocks, switches, live_allocations, bytes_in_use] =
            values;
        Counters {
            launches,
            graph_launches,
            synchronisations,
            copies,
            blocks,
            switches,
            live_allocations,
            bytes_in_use,
        }
    }
}
