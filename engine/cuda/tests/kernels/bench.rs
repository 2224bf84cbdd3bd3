//! A device with memory for one test, and activations as kernels lay them out.

use engine_cuda::{
    Arena,
    device::{Device, Ptr},
    kernels::Activations,
};
use half::bf16;

pub struct Bench {
    pub device: Device,
    arena: Arena,
}

impl Bench {
    pub fn new() -> Self {
        let device = Device::open(0).expect("the emulated device");
        let arena = Arena::new(&device.context, "a test", 1 << 30).expect("addresses");
        Self { device, arena }
    }

    pub fn take(&mut self, bytes: usize) -> Ptr {
        self.arena.take(bytes as u64).expect("memory")
    }

    pub fn upload<T: Copy>(&mut self, from: &[T]) -> Ptr {
        let at = self.take(size_of_val(from));
        // SAFETY: just taken; waited for.
        unsafe { self.device.to_device(&self.device.stream, at, from) }.expect("a copy");
        self.device.wait(&self.device.stream).expect("a copy");
        at
    }

    pub fn download<T: Copy + Default>(&self, at: Ptr, count: usize) -> Vec<T> {
        let mut out = vec![T::default(); count];
        // SAFETY: the test knows what it has put there; plain numbers.
        unsafe { self.device.to_host(&mut out, at) }.expect("a copy");
        out
    }

    /// Room for activations, cleared.
    pub fn activations(&mut self, tokens: usize, cols: usize, planes: usize) -> Activations {
        let stride = cols.next_multiple_of(64);
        let numbers = self.upload(&vec![0u16; planes * tokens * stride]);
        let sums = self.upload(&vec![0f32; tokens * stride / 16]);
        let (plane, stride, planes) = ((tokens * stride) as i64, stride as i32, planes as i32);
        Activations { numbers, sums, plane, stride, planes }
    }

    /// The numbers that activations stand for, and their sums of 16.
    pub fn read(&self, at: Activations, tokens: usize, cols: usize) -> (Vec<f64>, Vec<f32>) {
        let (stride, planes) = (at.stride as usize, at.planes as usize);
        let numbers: Vec<u16> = self.download(at.numbers, planes * tokens * stride);
        let sums: Vec<f32> = self.download(at.sums, tokens * stride / 16);
        let number = |token: usize, col: usize| -> f64 {
            let at = |plane: usize| numbers[plane * tokens * stride + token * stride + place(col)];
            (0..planes).map(|plane| f64::from(bf16::from_bits(at(plane)).to_f32())).sum()
        };
        let all = (0..tokens).flat_map(|token| (0..cols).map(move |col| (token, col)));
        (all.map(|(token, col)| number(token, col)).collect(), sums)
    }

    /// Activations of known numbers, as kernels would store them, and the rounded numbers.
    pub fn stored(&mut self, x: &[f32], cols: usize, planes: usize) -> (Activations, Vec<f64>) {
        let tokens = x.len() / cols;
        let stride = cols.next_multiple_of(64);
        let mut numbers = vec![0u16; planes * tokens * stride];
        let mut sums = vec![0f32; tokens * stride / 16];
        let mut kept = Vec::new();
        for (index, x) in x.iter().enumerate() {
            let (token, col) = (index / cols, index % cols);
            let (mut rest, mut sum) = (*x, 0.0);
            for plane in 0..planes {
                let rounded = bf16::from_f32(rest);
                numbers[(plane * tokens + token) * stride + place(col)] = rounded.to_bits();
                rest -= rounded.to_f32();
                sum += rounded.to_f32();
            }
            sums[token * stride / 16 + col / 16] += sum;
            kept.push(f64::from(sum));
        }
        let (numbers, sums) = (self.upload(&numbers), self.upload(&sums));
        let (plane, stride, planes) = ((tokens * stride) as i64, stride as i32, planes as i32);
        (Activations { numbers, sums, plane, stride, planes }, kept)
    }
}

/// Where a column stands, from the words in kernels/activations.cuh.
pub fn place(col: usize) -> usize {
    let (s, t, j) = (col % 32 / 16, col % 16 / 4, col % 4);
    col / 32 * 32 + 8 * t + 4 * s + j
}
