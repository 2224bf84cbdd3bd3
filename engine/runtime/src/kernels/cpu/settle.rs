//! Moves weights from the checkpoint's map into huge pages, a few megabytes with each step after the first.
//!
//! A file's pages are 4 KiB. A decode step walks them all, and under a hypervisor a miss of the translation cache costs
//! up to twenty-four reads: measured, two cores read 98 MB of weights at 17 to 20 GB/s from the map and at 27 to 37 GB/s from huge
//! pages. At load this would cost the cold start more than all the rest, so it waits until tokens flow.

use super::{
    arena::Writer,
    matrix::{BAND, Matrix},
    pool::Pool,
};
use std::{io, ops::Range};

/// Bytes moved with one step, to a band: a few milliseconds at most, and that much more memory while it is copied.
const STEP_BYTES: usize = 4 << 20;
/// Matrices stay aligned to cache lines.
const ALIGN: usize = 64;
/// Bytes a thread copies at once: whole huge pages are faulted in by one thread.
const CHUNK_BYTES: usize = 2 << 20;

/// How far a model's weights have been moved.
#[derive(Default)]
pub struct Settling {
    steps: u64,
    /// None before the second step, and for good when there is nothing to move or nowhere to move it.
    writer: Option<Writer>,
}

impl Settling {
    /// To be called after each step, always with the same matrices. Moves those that lie in a file.
    pub fn step(&mut self, pool: &mut Pool, mut matrices: Vec<&mut Matrix>) {
        self.steps = self.steps.saturating_add(1);
        if self.steps == 2 {
            // No addresses, or a kernel without huge pages: the map serves as well as before.
            self.writer = begin(&mut matrices).ok();
        }
        match &mut self.writer {
            // Whoever populates the map may have been behind, and brought pages back.
            Some(writer) if writer.is_full() && self.steps.is_power_of_two() => {
                matrices.iter().for_each(|matrix| matrix.release());
            }
            Some(writer) if !writer.is_full() => move_some(pool, writer, &mut matrices),
            _ => {}
        }
    }
}

/// Gives each matrix its place.
fn begin(matrices: &mut [&mut Matrix]) -> io::Result<Writer> {
    let places: Vec<usize> = matrices
        .iter()
        .scan(0, |end, matrix| {
            let start = *end;
            *end += matrix.file_bytes().next_multiple_of(ALIGN);
            Some(start)
        })
        .collect();
    let last = places.last().zip(matrices.last());
    let writer = Writer::new(last.map_or(0, |(start, matrix)| start + matrix.file_bytes().next_multiple_of(ALIGN)))?;
    for (matrix, start) in matrices.iter_mut().zip(places) {
        if matrix.file_bytes() > 0 {
            matrix.set_home(writer.arena().clone(), start);
        }
    }
    Ok(writer)
}

/// What is copied of one matrix: its bytes, and where they go.
struct Part {
    matrix: usize,
    bytes: Range<usize>,
    to: usize,
}

fn move_some(pool: &mut Pool, writer: &mut Writer, matrices: &mut [&mut Matrix]) {
    let from = writer.filled();
    let mut end = from;
    let mut parts = Vec::new();
    for (index, matrix) in matrices.iter().enumerate() {
        let Some((place, moved)) = matrix.home() else { continue };
        let (bytes, band) = (matrix.file_bytes(), BAND * matrix.row_bytes());
        if moved == bytes {
            continue;
        }
        let room = (STEP_BYTES.saturating_sub(place + moved - from) / band * band).max(if parts.is_empty() {
            band
        } else {
            0
        });
        let until = bytes.min(moved + room);
        if until > moved {
            parts.push(Part { matrix: index, bytes: moved..until, to: place + moved });
            end = place + until;
        }
        if until < bytes {
            break;
        }
        end = end.next_multiple_of(ALIGN);
    }
    writer.fill_to(end, |out| {
        pool.for_each_chunk(out, CHUNK_BYTES, |index, chunk| {
            let start = from + index * CHUNK_BYTES;
            parts.iter().for_each(|part| copy(part, matrices[part.matrix].file(), start, chunk));
        });
    });
    for part in parts {
        matrices[part.matrix].set_moved(part.bytes.end);
    }
}

/// Copies what of a part falls into `chunk`, which lies at `start`.
fn copy(part: &Part, file: &[u8], start: usize, chunk: &mut [u8]) {
    let (from, to) = (part.to.max(start), (part.to + part.bytes.len()).min(start + chunk.len()));
    if from < to {
        let source = part.bytes.start + from - part.to;
        chunk[from - start..to - start].copy_from_slice(&file[source..source + to - from]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_store::{GgmlType, Safetensors, TensorData};
    use std::{fs, path::Path};

    /// Matrices of f32 in a file, of so many rows of 64.
    fn stored(path: &Path, rows: &[usize]) -> Vec<Matrix> {
        let mut end = 0;
        let entry = |(index, rows): (usize, &usize)| {
            let start = end;
            end += rows * 256;
            format!(r#""{index}":{{"dtype":"F32","shape":[{rows},64],"data_offsets":[{start},{end}]}}"#)
        };
        let header = format!("{{{}}}", rows.iter().enumerate().map(entry).collect::<Vec<_>>().join(","));
        let header = format!("{header:width$}", width = header.len().next_multiple_of(8));
        let numbers = (0..end / 4).flat_map(|index| (index as f32).to_le_bytes());
        let length = (header.len() as u64).to_le_bytes();
        fs::write(path, length.into_iter().chain(header.into_bytes()).chain(numbers).collect::<Vec<u8>>())
            .expect("a file");
        let file = Safetensors::open(path).expect("whole");
        (0..rows.len()).map(|index| Matrix::new(file.tensor_data(&index.to_string()).expect("there"))).collect()
    }

    fn bands(matrix: &Matrix) -> Vec<u8> {
        (0..matrix.bands()).flat_map(|band| matrix.band(band).to_vec()).collect()
    }

    fn place(matrix: &Matrix, band: usize) -> *const u8 {
        matrix.band(band).as_ptr()
    }

    /// Bytes of a file that this process has mapped and touched.
    fn resident_bytes(path: &Path) -> usize {
        let maps = fs::read_to_string("/proc/self/smaps").expect("Linux");
        let after = |line: &str| line.ends_with(&*path.to_string_lossy());
        let sizes = maps.lines().skip_while(|line| !after(line)).find_map(|line| line.strip_prefix("Rss:"));
        sizes.expect("mapped").trim().trim_end_matches(" kB").parse::<usize>().expect("a number") << 10
    }

    #[test]
    fn weights_are_the_same_while_and_after_they_move() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.safetensors");
        // Several to a step, one larger than a step, one with a tail; and one that is in memory already.
        let mut matrices = stored(&path, &[16, 4000, 50_000, 21, 160]);
        let made = TensorData::from_bytes(GgmlType::F32, vec![64, 16], vec![7; 4096]).expect("right size");
        matrices.insert(1, Matrix::new(made));
        let before: Vec<Vec<u8>> = matrices.iter().map(bands).collect();
        let first: Vec<_> = matrices.iter().map(|matrix| place(matrix, 0)).collect();
        assert!(resident_bytes(&path) > 13 << 20);
        let (mut pool, mut settling) = (Pool::new(2, |_| {}).expect("two threads"), Settling::default());
        let mut moved = Vec::new();
        for _ in 0..8 {
            settling.step(&mut pool, matrices.iter_mut().collect());
            assert!(matrices.iter().map(bands).eq(before.iter().cloned()));
            moved.push(matrices.iter().zip(&first).filter(|(matrix, place)| self::place(matrix, 0) != **place).count());
        }
        // Where the kernel has no huge pages, nothing moves at all.
        if moved[7] > 0 {
            assert_eq!(moved, [0, 3, 3, 3, 5, 5, 5, 5]);
            assert!(resident_bytes(&path) <= 256 << 10, "{} bytes", resident_bytes(&path));
        }
    }
}
