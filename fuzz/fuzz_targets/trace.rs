//! Any bytes at all as a trace: reading them returns, with repair and without, and what is read is in order and in bounds.
#![no_main]

use controller_sim::trace::{Load, Options, read};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let strict = read("fuzz", data, Options::default());
    let mended = read("fuzz", data, Options { repair: true });
    if let Ok(strict) = strict {
        assert_eq!(Some(strict), mended.as_ref().ok().cloned());
    }
    if let Ok(trace) = mended {
        assert!(trace.requests() > 0);
        if let Load::Requests(arrivals) = &trace.load {
            assert!(arrivals.windows(2).all(|pair| pair[0].at_ns <= pair[1].at_ns));
            assert!(arrivals.iter().all(|arrival| arrival.at_ns < trace.duration_ns));
        }
    }
});
