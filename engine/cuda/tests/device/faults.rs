//! What goes wrong on a GPU, made to happen: each is an error that says so, and nothing hangs or crashes.

use crate::{
    common::{Driver, emulated, options},
    tiny::{TINY, VOCAB},
};
use engine_core::{Batch, BatchSequence, Forward, ForwardError};
use engine_cuda::{CudaError, CudaForward, CudaOptions};

const OUT_OF_MEMORY: i32 = 2;
const ECC_UNCORRECTABLE: i32 = 214;
const LAUNCH_FAILED: i32 = 719;

fn one_token() -> Batch {
    let sequence = BatchSequence { new_tokens: 1, start: 0, blocks: vec![0], logits: 1, adapter: None };
    Batch { tokens: vec![1], sequences: vec![sequence] }
}

fn load(options: CudaOptions) -> Result<CudaForward, CudaError> {
    CudaForward::load(&TINY.checkpoint(), options)
}

#[test]
fn no_device_an_old_driver_and_an_old_device_are_told_apart() {
    let Some(gpu) = emulated() else { return };
    gpu.devices(0, (9, 0), 13_000);
    assert!(matches!(load(options()), Err(CudaError::NoDevice)));
    gpu.devices(1, (9, 0), 12_040);
    let error = load(options()).err().expect("refused");
    assert!(matches!(error, CudaError::DriverTooOld { found: 12_040, .. }), "{error}");
    assert!(error.to_string().contains("12.4"), "{error}");
    gpu.devices(1, (7, 5), 13_000);
    assert!(matches!(load(options()), Err(CudaError::DeviceTooOld { major: 7, minor: 5, .. })));
    gpu.devices(1, (8, 0), 13_000);
    load(options()).expect("a device of the oldest kind");
}

#[test]
fn a_pool_that_does_not_fit_becomes_smaller() {
    let Some(gpu) = emulated() else { return };
    gpu.memory(256 << 20);
    let device = load(CudaOptions { kv_bytes: 8 << 30, ..options() }).expect("a smaller pool");
    let blocks = device.shape().kv_blocks as u64;
    let bytes = blocks * 16 * 2 * 2 * 2 * 32 * 2;
    assert!(bytes > (64 << 20) && bytes < (256 << 20), "{bytes} bytes");
    drop(device);
    assert_eq!(gpu.counters().bytes_in_use, 0, "everything is given back");
}

#[test]
fn too_little_memory_for_weights_or_buffers_is_an_error_that_gives_everything_back() {
    let Some(gpu) = emulated() else { return };
    gpu.memory(8 << 20);
    let error = load(options()).err().expect("no room");
    assert!(matches!(error, CudaError::OutOfMemory { .. }), "{error}");
    assert_eq!(gpu.counters().bytes_in_use, 0);
    gpu.memory(4 << 30);
    for nth in 1..6 {
        gpu.fail_allocation(nth, OUT_OF_MEMORY);
        // One refusal makes a smaller pool, or ends the load.
        match load(options()) {
            Ok(mut device) => device.forward(&one_token(), &mut Vec::new()).expect("a step"),
            Err(error) => assert!(matches!(error, CudaError::OutOfMemory { .. }), "{error}"),
        }
        gpu.fail_allocation(0, 0);
        assert_eq!(gpu.counters().bytes_in_use, 0, "allocation {nth}");
    }
}

#[test]
fn a_lost_device_fails_this_step_and_every_later_one() {
    for (nth, error) in [(1, LAUNCH_FAILED), (7, ECC_UNCORRECTABLE)] {
        let Some(gpu) = emulated() else { return };
        let mut device = load(options()).expect("a device");
        gpu.lose_device(nth, error);
        for _ in 0..2 {
            match device.forward(&one_token(), &mut Vec::new()) {
                Err(ForwardError::Lost { message }) => assert!(message.contains("device lost"), "{message}"),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn numbers_that_are_none_name_their_sequence_and_leave_others_alone() {
    let Some(gpu) = emulated() else { return };
    let mut driver = Driver::new(load(options()).expect("a device"));
    let mut good = driver.sequence(&[1, 2, 3], 0);
    let clean = driver.step(&mut [&mut good], &[3]);
    for (row, tokens) in [(0, 2), (1, 3)] {
        // The residual stream of the batch's first rows becomes NaN, after the first norm has read it.
        let (mut bad, mut other) = (driver.sequence(&[4, 5], 0), driver.sequence(&[1, 2, 3], 0));
        let mut batch = Batch::default();
        let mut order = [&mut bad, &mut other];
        order.rotate_left(row);
        for sequence in &mut order {
            let new_tokens = sequence.tokens.len();
            sequence.add(&mut batch, new_tokens, 1);
        }
        gpu.corrupt("rms_norm", 1, 0, 4 * 64 * tokens);
        match driver.device.forward(&batch, &mut Vec::new()) {
            Err(ForwardError::NonFinite { sequence: 0 }) => {}
            other => panic!("{other:?}"),
        }
        // What the others left in the pool, and what comes after in the same blocks, is as if nothing had been.
        let mut again = if row == 0 { other } else { bad };
        if row == 1 {
            again.tokens = vec![1, 2, 3];
        }
        again.done = 0;
        assert_eq!(driver.step(&mut [&mut again], &[3]), clean);
    }
    assert_eq!((clean[0].len(), gpu.fault()), (VOCAB, String::new()));
}
