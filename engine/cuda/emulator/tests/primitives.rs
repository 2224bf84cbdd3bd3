//! Every primitive against a plain reference that is written here from the PTX manual, in three orders of threads.

mod device;

use device::{Argument, Device};
use half::{bf16, f16};

/// Numbers that repeat on every machine, in [-1, 1).
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn zeros<T: cudarc::driver::DeviceRepr + cudarc::driver::ValidAsZeroBits>(
    device: &Device,
    count: usize,
) -> cudarc::driver::CudaSlice<T> {
    device.stream.alloc_zeros(count).expect("allocated")
}

#[test]
fn shuffles_take_the_lanes_that_the_manual_names() {
    let device = Device::new();
    let out = zeros::<i32>(&device, 128);
    for (width, by) in [(32, 1), (32, 16), (32, 31), (16, 3), (8, 5), (4, 2), (32, 0)] {
        let want = |lane: i32| {
            let (first, last) = (lane / width * width, lane / width * width + width - 1);
            let kept = |source: i32, valid: bool| 100 + if valid { source } else { lane };
            [
                100 + first + by % width,
                kept(lane - by, lane - by >= first),
                kept(lane + by, lane + by <= last),
                kept(lane ^ by, lane ^ by <= last),
            ]
        };
        device.emulator.in_each_order(|order| {
            device.launch("shuffles", (1, 32, 0), &[device.pointer(&out), width.into(), by.into()]).expect("it runs");
            let got = device.stream.clone_dtoh(&out).expect("copied out");
            for lane in 0..32 {
                let of_lane = [0, 32, 64, 96].map(|kind| got[kind + lane]);
                assert_eq!(of_lane, want(lane as i32), "lane {lane}, width {width}, by {by}, {order:?}");
            }
        });
    }
}

#[test]
fn parts_of_a_warp_shuffle_apart() {
    let device = Device::new();
    let out = zeros::<i32>(&device, 32);
    device.emulator.in_each_order(|_| {
        device.launch("halves", (1, 32, 0), &[device.pointer(&out), 10.into()]).expect("it runs");
        let want: Vec<i32> = (0..32).map(|lane| if lane < 10 { 0 } else { 31 }).collect();
        assert_eq!(device.stream.clone_dtoh(&out).expect("copied out"), want);
    });
}

#[test]
fn votes_and_reductions_count_lanes() {
    let device = Device::new();
    let out = zeros::<u32>(&device, 10);
    for limit in [0u32, 1, 17, 31] {
        device.emulator.in_each_order(|_| {
            device.launch("votes", (1, 64, 0), &[device.pointer(&out), (limit as i32).into()]).expect("it runs");
            let one = [(1u32 << limit) - 1, 1, 0, 496, 31 * limit];
            assert_eq!(device.stream.clone_dtoh(&out).expect("copied out"), [one, one].concat());
        });
    }
}

#[test]
fn barriers_count_threads() {
    let device = Device::new();
    let out = zeros::<i32>(&device, 96);
    for limit in [0i32, 1, 50, 96] {
        device.emulator.in_each_order(|_| {
            device.launch("counts", (1, 96, 0), &[device.pointer(&out), limit.into()]).expect("it runs");
            let want = limit * 4 + i32::from(limit > 0) * 2 + i32::from(limit == 96);
            assert_eq!(device.stream.clone_dtoh(&out).expect("copied out"), vec![want; 96]);
        });
    }
}

#[test]
fn blocks_reduce_through_shared_memory() {
    let device = Device::new();
    for (n, threads) in [(1000usize, 256u32), (77, 64), (32, 32)] {
        let input = numbers(n, 3);
        let from = device.stream.clone_htod(&input).expect("copied in");
        let blocks = n.div_ceil(threads as usize);
        let out = zeros::<f32>(&device, blocks);
        let sums = device.emulator.in_each_order(|_| {
            let arguments = [device.pointer(&out), device.pointer(&from), (n as i32).into()];
            device.launch("block_sums", (blocks as u32, threads, 0), &arguments).expect("it runs");
            device.stream.clone_dtoh(&out).expect("copied out")
        });
        assert!(sums[0] == sums[1] && sums[1] == sums[2], "bits depend on no order");
        for (block, sum) in sums[0].iter().enumerate() {
            let want: f64 =
                input.iter().skip(block * threads as usize).take(threads as usize).map(|x| f64::from(*x)).sum();
            assert!((f64::from(*sum) - want).abs() < 1e-4, "block {block}: {sum} instead of {want}");
        }
    }
}

#[test]
fn atomic_operations_lose_nothing() {
    let device = Device::new();
    device.emulator.in_each_order(|_| {
        let (counter, largest, swapped) =
            (zeros::<i32>(&device, 1), zeros::<i32>(&device, 1), zeros::<u32>(&device, 1));
        let sum = zeros::<f32>(&device, 1);
        let arguments =
            [device.pointer(&counter), device.pointer(&sum), device.pointer(&largest), device.pointer(&swapped)];
        device.launch("atomics", (5, 96, 0), &arguments).expect("it runs");
        assert_eq!(device.stream.clone_dtoh(&counter).expect("copied out"), [480]);
        assert_eq!(device.stream.clone_dtoh(&sum).expect("copied out"), [240.0]);
        assert_eq!(device.stream.clone_dtoh(&largest).expect("copied out"), [4095]);
        let [first] = device.stream.clone_dtoh(&swapped).expect("copied out")[..] else { panic!("one number") };
        assert!(first > 0 && (first - 1) / 1000 < 5 && (first - 1) % 1000 < 96, "{first} is no thread's mark");
    });
}

/// Row and column of element `i` of a lane's fragment, of 16-bit (m16n8k16) or 8-bit (m16n8k32) numbers.
fn place_in_a(lane: usize, i: usize, bytes: usize) -> (usize, usize) {
    let (group, in_group) = (lane / 4, lane % 4);
    match bytes {
        2 => (group + i / 2 % 2 * 8, in_group * 2 + i % 2 + if i < 4 { 0 } else { 8 }),
        _ => (group + i / 4 % 2 * 8, in_group * 4 + i % 4 + if i < 8 { 0 } else { 16 }),
    }
}

fn place_in_b(lane: usize, i: usize, bytes: usize) -> (usize, usize) {
    let (group, in_group) = (lane / 4, lane % 4);
    match bytes {
        2 => (in_group * 2 + i % 2 + if i < 2 { 0 } else { 8 }, group),
        _ => (in_group * 4 + i % 4 + if i < 4 { 0 } else { 16 }, group),
    }
}

fn place_in_d(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4 + if i < 2 { 0 } else { 8 }, lane % 4 * 2 + i % 2)
}

/// Registers of all lanes for a matrix whose elements have these bits.
fn fragments(
    count: usize,
    bytes: usize,
    place: fn(usize, usize, usize) -> (usize, usize),
    bits: impl Fn(usize, usize) -> u32,
) -> Vec<u32> {
    let in_word = 4 / bytes;
    let word = |lane: usize, register: usize| {
        (0..in_word).fold(0, |word, j| {
            let (row, column) = place(lane, register * in_word + j, bytes);
            word | bits(row, column) << (8 * bytes * j)
        })
    };
    (0..32).flat_map(|lane| (0..count).map(move |register| (lane, register))).map(|(l, r)| word(l, r)).collect()
}

fn multiply_floats(kernel: &str, bits: fn(f32) -> u32, value: fn(f32) -> f64) {
    let device = Device::new();
    let (a, b, c) = (numbers(256, 1), numbers(128, 2), numbers(128, 3));
    let a_words = fragments(4, 2, place_in_a, |row, k| bits(a[row * 16 + k]));
    let b_words = fragments(2, 2, place_in_b, |k, column| bits(b[k * 8 + column]));
    let start: Vec<f32> = (0..128)
        .map(|i| {
            let (row, column) = place_in_d(i / 4, i % 4);
            c[row * 8 + column]
        })
        .collect();
    let (a_device, b_device) =
        (device.stream.clone_htod(&a_words).expect("in"), device.stream.clone_htod(&b_words).expect("in"));
    device.emulator.in_each_order(|_| {
        let d = device.stream.clone_htod(&start).expect("copied in");
        let arguments = [device.pointer(&d), device.pointer(&a_device), device.pointer(&b_device)];
        device.launch(kernel, (1, 32, 0), &arguments).expect("it runs");
        for (i, got) in device.stream.clone_dtoh(&d).expect("copied out").into_iter().enumerate() {
            let (row, column) = place_in_d(i / 4, i % 4);
            let products = (0..16).map(|k| value(a[row * 16 + k]) * value(b[k * 8 + column]));
            let want = f64::from(c[row * 8 + column]) + products.sum::<f64>();
            assert!((f64::from(got) - want).abs() < 1e-5, "{kernel} ({row}, {column}): {got} instead of {want}");
        }
    });
}

#[test]
fn mma_multiplies_bf16() {
    multiply_floats("mma_bf16", |x| bf16::from_f32(x).to_bits().into(), |x| bf16::from_f32(x).to_f64());
}

#[test]
fn mma_multiplies_f16() {
    multiply_floats("mma_f16", |x| f16::from_f32(x).to_bits().into(), |x| f16::from_f32(x).to_f64());
}

#[test]
fn mma_multiplies_bytes() {
    let device = Device::new();
    let byte = |x: f32| (x * 127.0) as i8;
    let (a, b): (Vec<i8>, Vec<i8>) =
        (numbers(512, 1).into_iter().map(byte).collect(), numbers(256, 2).into_iter().map(byte).collect());
    let a_words = fragments(4, 1, place_in_a, |row, k| u32::from(a[row * 32 + k] as u8));
    let b_words = fragments(2, 1, place_in_b, |k, column| u32::from(b[k * 8 + column] as u8));
    let d = device.stream.clone_htod(&vec![7i32; 128]).expect("copied in");
    let (a_device, b_device) =
        (device.stream.clone_htod(&a_words).expect("in"), device.stream.clone_htod(&b_words).expect("in"));
    let arguments = [device.pointer(&d), device.pointer(&a_device), device.pointer(&b_device)];
    device.launch("mma_s8", (1, 32, 0), &arguments).expect("it runs");
    for (i, got) in device.stream.clone_dtoh(&d).expect("copied out").into_iter().enumerate() {
        let (row, column) = place_in_d(i / 4, i % 4);
        let want: i32 = (0..32).map(|k| i32::from(a[row * 32 + k]) * i32::from(b[k * 8 + column])).sum();
        assert_eq!(got, want + 7, "({row}, {column})");
    }
}

#[test]
fn ldmatrix_gives_each_lane_two_neighbours_of_a_row() {
    let device = Device::new();
    let input: Vec<u16> = (0..256).map(|i| i * 3 + 1).collect();
    let from = device.stream.clone_htod(&input).expect("copied in");
    let at = |matrix: usize, row: usize, column: usize| u32::from(input[matrix * 64 + row * 8 + column]);
    let pair = |matrix: usize, lane: usize, transposed: bool| {
        let (row, column) = (lane / 4, lane % 4 * 2);
        if transposed {
            at(matrix, column, row) | at(matrix, column + 1, row) << 16
        } else {
            at(matrix, row, column) | at(matrix, row, column + 1) << 16
        }
    };
    let out = zeros::<u32>(&device, 128);
    for transposed in [false, true] {
        device.emulator.in_each_order(|_| {
            let arguments = [device.pointer(&out), device.pointer(&from), i32::from(transposed).into()];
            device.launch("load_matrices", (1, 32, 0), &arguments).expect("it runs");
            let want: Vec<u32> = (0..128).map(|i| pair(i % 4, i / 4, transposed)).collect();
            assert_eq!(device.stream.clone_dtoh(&out).expect("copied out"), want);
        });
    }
    let two = zeros::<u32>(&device, 64);
    device.launch("load_two_matrices", (1, 32, 0), &[device.pointer(&two), device.pointer(&from)]).expect("it runs");
    let want: Vec<u32> = (0..64).map(|i| pair(i % 2, i / 2, false)).collect();
    assert_eq!(device.stream.clone_dtoh(&two).expect("copied out"), want);
}

#[test]
fn shared_memory_belongs_to_a_block_and_a_declaration() {
    let device = Device::new();
    let input = numbers(256, 5);
    let from = device.stream.clone_htod(&input).expect("copied in");
    let out = zeros::<f32>(&device, 256);
    device.emulator.in_each_order(|_| {
        device.launch("reverse", (4, 64, 256), &[device.pointer(&out), device.pointer(&from)]).expect("it runs");
        let want: Vec<f32> = (0..256).map(|i| input[i / 64 * 64 + 63 - i % 64] + input[i / 64 * 64]).collect();
        assert_eq!(device.stream.clone_dtoh(&out).expect("copied out"), want);
        device.launch("instances", (1, 64, 0), &[device.pointer(&out)]).expect("it runs");
        let got = device.stream.clone_dtoh(&out).expect("copied out");
        // In the array of 32, lanes 32 apart write to one place: a race whose winner is one of the two.
        for (i, value) in got[..64].iter().enumerate() {
            let (low, high) = (value % 1000.0, (value / 1000.0).floor());
            assert_eq!(low as usize % 32, (i + 1) % 32);
            assert_eq!(high as usize, 100 + (i + 1) % 64);
        }
    });
}

#[test]
fn copies_land_at_their_wait_and_fill_with_zeros() {
    let device = Device::new();
    for (pieces, bytes_of_last) in [(1usize, 16), (4, 8), (3, 4), (5, 0)] {
        let input = numbers(pieces * 128, 9);
        let from = device.stream.clone_htod(&input).expect("copied in");
        let out = zeros::<f32>(&device, pieces * 128);
        device.emulator.in_each_order(|order| {
            let arguments = [device.pointer(&out), device.pointer(&from), (pieces as i32).into(), bytes_of_last.into()];
            device.launch("pipeline", (1, 32, 0), &arguments).expect("it runs");
            let want = |i: usize| {
                let (piece, thread, element) = (i / 128, i / 4 % 32, i % 4);
                let read = piece + 1 < pieces || (element as i32) < bytes_of_last / 4;
                if read { input[piece * 128 + (thread + 1) % 32 * 4 + element] } else { 0.0 }
            };
            let want: Vec<f32> = (0..pieces * 128).map(want).collect();
            assert_eq!(device.stream.clone_dtoh(&out).expect("copied out"), want, "{order:?}");
        });
    }
}

#[test]
fn conversions_round_to_the_nearest_with_ties_to_even() {
    let device = Device::new();
    if device.emulator.is_real() {
        return;
    }
    let mut input = numbers(2000, 11);
    let scaled: Vec<f32> = input.iter().enumerate().map(|(i, x)| x * 2f32.powi(i as i32 % 60 - 40)).collect();
    input.extend(scaled);
    input.extend([
        0.0,
        -0.0,
        448.0,
        464.0,
        1e9,
        -1e9,
        0.001953125,
        0.0009765625,
        1.5 / 1024.0,
        65504.0,
        65520.0,
        17.0,
        19.0,
    ]);
    let from = device.stream.clone_htod(&input).expect("copied in");
    let n = input.len();
    let out = [0; 3].map(|_| zeros::<f32>(&device, n));
    let arguments = [
        device.pointer(&out[0]),
        device.pointer(&out[1]),
        device.pointer(&out[2]),
        device.pointer(&from),
        (n as i32).into(),
    ];
    device.launch("round_trips", (n.div_ceil(128) as u32, 128, 0), &arguments).expect("it runs");
    let got = out.map(|one| device.stream.clone_dtoh(&one).expect("copied out"));
    let fp8 = fp8_numbers();
    for (i, x) in input.iter().enumerate() {
        assert_eq!(got[0][i], bf16::from_f32(*x).to_f32(), "bf16 of {x}");
        assert_eq!(got[1][i], f16::from_f32(*x).to_f32(), "f16 of {x}");
        assert_eq!(got[2][i], nearest(&fp8, *x), "fp8 of {x}");
    }
}

/// The finite numbers of e4m3 that are not negative, by their codes.
fn fp8_numbers() -> Vec<f32> {
    let value = |code: i32| match code >> 3 {
        0 => (code & 7) as f32 * 2f32.powi(-9),
        exponent => (8 + (code & 7)) as f32 * 2f32.powi(exponent - 10),
    };
    (0..0x7f).map(value).collect()
}

/// The nearest one, of two equally near the one with an even code; beyond the largest, the largest.
fn nearest(numbers: &[f32], x: f32) -> f32 {
    let distance = |code: &usize| (f64::from(numbers[*code]) - f64::from(x.abs())).abs();
    let code = (0..numbers.len())
        .min_by(|a, b| distance(a).total_cmp(&distance(b)).then((a % 2).cmp(&(b % 2))))
        .expect("there are some");
    numbers[code].copysign(x)
}

#[test]
fn fp8_codes_have_their_values() {
    let device = Device::new();
    if device.emulator.is_real() {
        return;
    }
    let out = zeros::<f32>(&device, 256);
    device.launch("fp8_values", (1, 256, 0), &[device.pointer(&out)]).expect("it runs");
    let got = device.stream.clone_dtoh(&out).expect("copied out");
    for (code, want) in fp8_numbers().into_iter().enumerate() {
        assert_eq!((got[code], got[code + 128]), (want, -want), "code {code:#x}");
    }
    assert!(got[0x7f].is_nan() && got[0xff].is_nan());
    assert_eq!(got[0x7e], 448.0);
}

#[test]
fn integer_instructions_do_what_the_manual_says() {
    let device = Device::new();
    let out = zeros::<i32>(&device, 8);
    device.launch("integers", (1, 1, 0), &[device.pointer(&out)]).expect("it runs");
    let dot = 2 - 3 + 4 * 0x7f - 5 * 128 + 10;
    let want = [dot, 0x7755_3311, 0xffff_fff0u32 as i32, 0x8811_2233u32 as i32, 3132, 408, 1, 3];
    assert_eq!(device.stream.clone_dtoh(&out).expect("copied out"), want);
}

#[test]
fn threads_know_their_places() {
    let device = Device::new();
    let out = zeros::<i32>(&device, 6 * 24);
    let function = device.function("places");
    let Argument::Pointer(at) = device.pointer(&out) else { panic!("a buffer is a pointer") };
    let mut parameters = [std::ptr::from_ref(&at).cast_mut().cast()];
    // SAFETY: the kernel has this one argument, a buffer of as many numbers as it has threads.
    unsafe {
        let stream = device.stream.cu_stream();
        cudarc::driver::result::launch_kernel(function, (3, 2, 1), (4, 3, 2), 0, stream, &mut parameters)
    }
    .expect("it runs");
    let want: Vec<i32> = (0..6).flat_map(|block| (0..24).map(move |thread| block * 1000 + thread)).collect();
    assert_eq!(device.stream.clone_dtoh(&out).expect("copied out"), want);
}
