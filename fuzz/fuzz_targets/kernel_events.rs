//! Kernel events: any bytes in place of what the ring buffer gives. Parsing and the rebuilding of requests must
//! return, never panic, and hold no more connections than they were given room for.

#![no_main]

use controller_witness::PortRole;
use controller_witness::reassembly::Reassembly;
use libfuzzer_sys::fuzz_target;

/// Room for connections; small, so that the bound is reached.
const CONNECTIONS: usize = 8;

fuzz_target!(|data: &[u8]| {
    let Some((size, bytes)) = data.split_first() else { return };
    let mut machine = Reassembly::new(CONNECTIONS);
    machine.watch(8080, PortRole::Gateway);
    let mut finished = Vec::new();
    for chunk in bytes.chunks(usize::from(*size).max(64)) {
        if let Ok(event) = ebpf_types::parse(chunk) {
            machine.apply(&event, &mut finished);
            assert!(machine.connections() <= CONNECTIONS);
            let _ = machine.take_samples();
        }
    }
    machine.sweep(u64::MAX, &mut finished);
});
