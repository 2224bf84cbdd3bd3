//! Tiles of AMX (Intel SDM, chapter 18): permission, shapes, and a guard that clears them again. Written with `asm!`, because the
//! intrinsics are not stable.
//!
//! Tiles 0 and 1 hold sums, 2 activations, 3 weights; 4 to 6 are 0 to 2 with fewer rows, for the last tokens.

use std::arch::asm;

/// Rows of a tile, and 32-bit columns.
pub(super) const TILE: usize = 16;

/// Whether the CPU has int8 tiles and the kernel lets this process use them. Asking is asking for permission: tiles add
/// 8 KiB to a thread's saved state, so Linux wants it said once per process.
pub(super) fn request() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const AMX_TILE: u32 = 1 << 24;
    const AMX_INT8: u32 = 1 << 25;
    let has = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & (AMX_TILE | AMX_INT8) == AMX_TILE | AMX_INT8;
    has && permitted()
}

#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let result: i64;
    // SAFETY: a system call that only widens what this process may use; the kernel clobbers rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The operand of `ldtilecfg`: palette 1, bytes per row and rows of each tile.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Configured tiles of this thread. Dropping clears them, so that a sleeping thread has no tile state to save.
pub(super) struct Tiles(());

impl Tiles {
    /// Tiles whose products run over `columns` bytes (a multiple of four, at most 64); the narrow ones have `rows`
    /// rows (at most 16).
    ///
    /// # Safety
    /// [`request`] must have answered true.
    pub(super) unsafe fn new(columns: usize, rows: usize) -> Self {
        let (wide, all, bytes) = (4 * TILE as u16, TILE as u8, columns as u16);
        let (k, m) = ((columns / 4) as u8, rows.max(1) as u8);
        let config = Config {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [wide, wide, bytes, wide, wide, wide, bytes, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            rows: [all, all, all, k, m, m, m, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        };
        // SAFETY: reads 64 bytes of a struct of that size; palette 1 and these shapes are valid.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly, preserves_flags)) };
        Self(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: clears tile registers, which nothing but this module uses.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// Operations, two for each multiply-add, in one turn of [`spin`].
pub(super) const SPIN_OPS: u64 = 4 * 2 * 16 * 16 * 64;

/// Products of whole tiles in registers, as many as the unit takes at once, `turns` times: for measuring its peak.
///
/// # Safety
/// [`request`] must have answered true.
pub(super) unsafe fn spin(turns: u64) {
    // SAFETY: permission was given, as the caller vouches.
    let _tiles = unsafe { Tiles::new(4 * TILE, TILE) };
    // SAFETY: tiles are configured; nothing but tile registers is touched.
    unsafe {
        asm!(
            "2:",
            "tdpbssd tmm0, tmm2, tmm3",
            "tdpbssd tmm1, tmm2, tmm3",
            "tdpbssd tmm4, tmm2, tmm3",
            "tdpbssd tmm5, tmm2, tmm3",
            "dec {n}",
            "jnz 2b",
            n = inout(reg) turns => _,
            options(nomem, nostack),
        );
    }
}

/// Sums of one product: a row per token, a column per weight row.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(super) struct Sums(pub(super) [[i32; TILE]; TILE]);

/// `out = a . w`: `a` is rows of signed bytes, `stride` bytes apart; `w` holds four columns of 16 weight rows in each
/// of its rows, 64 bytes apart. `ODD` chooses one of two sets of sums, so that neighbouring products overlap; `NARROW`
/// the tiles of fewer rows.
///
/// # Safety
/// Tiles must be configured, and `a` and `w` readable in the shapes given to [`Tiles::new`].
#[inline(always)]
pub(super) unsafe fn product<const ODD: bool, const NARROW: bool>(
    a: *const u8,
    stride: usize,
    w: *const u8,
    out: &mut Sums,
) {
    // Tile registers stand by name in the text of an instruction, so each choice is a text of its own.
    macro_rules! product {
        ($sum:literal, $a:literal) => {
            // SAFETY: the caller vouches for the reads; 16 rows of 64 bytes are written to a struct of that size.
            unsafe {
                asm!(
                    concat!("tileloadd ", $a, ", [{a} + {stride}]"),
                    "tileloadd tmm3, [{w} + {row}]",
                    concat!("tilezero ", $sum),
                    concat!("tdpbssd ", $sum, ", ", $a, ", tmm3"),
                    concat!("tilestored [{out} + {row}], ", $sum),
                    a = in(reg) a,
                    stride = in(reg) stride,
                    w = in(reg) w,
                    row = in(reg) 64usize,
                    out = in(reg) out.0.as_mut_ptr(),
                    options(nostack, preserves_flags),
                )
            }
        };
    }
    match (ODD, NARROW) {
        (false, false) => product!("tmm0", "tmm2"),
        (true, false) => product!("tmm1", "tmm2"),
        (false, true) => product!("tmm4", "tmm6"),
        (true, true) => product!("tmm5", "tmm6"),
    }
}
