//! Weights packed on the device, byte for byte.

use crate::{
    bench::Bench,
    pack::{Stored, pack},
    tiny,
};
use engine_cuda::{format::FORMATS, kernels::Matrix};

#[test]
fn every_type_is_packed_as_the_layout_says_whole_and_in_pieces() {
    let gpu = engine_cuda_emulator::load().unwrap_or_else(|error| panic!("{error}"));
    for format in FORMATS {
        let (rows, kind) = (53, format.kind);
        let cols = if format.unit_cols == 256 { 768 } else { 96 };
        let bytes = tiny::weights(kind, rows * cols, 9);
        let expected = pack(Stored { kind, rows, cols, bytes: &bytes });
        let mut bench = Bench::new();
        let stored = bench.upload(&bytes);
        let row_bytes = kind.bytes(cols as u64).expect("whole blocks");
        for pieces in [&[(0, 53)][..], &[(32, 21), (0, 16), (16, 16)]] {
            let matrix = Matrix { format, at: bench.take(expected.len()), rows, cols };
            for (first, count) in pieces {
                let at = stored.offset(*first as u64 * row_bytes);
                // SAFETY: rows of the matrix, which has room for them.
                unsafe { bench.device.pack(matrix, *first, *count, at) }.expect("a launch");
            }
            bench.device.wait(&bench.device.upload).expect("packed");
            assert!(bench.download::<u8>(matrix.at, expected.len()) == expected, "{format:?}, {pieces:?}");
        }
    }
    assert_eq!(gpu.fault(), "");
}
