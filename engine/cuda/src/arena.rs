//! Device memory at reserved addresses: a range of addresses is set aside once, and memory is mapped into it as it is
//! needed. What has been handed out never moves, so captured graphs stay valid while an arena grows, and nothing is
//! fragmented.

use crate::{
    device::{Context, Ptr},
    error::{CudaError, During},
};
use cudarc::driver::{result::mem_get_info, sys};
use std::sync::Arc;

/// Every piece begins at a multiple of this, in bytes.
const ALIGNMENT: u64 = 256;
/// Memory is mapped in steps of at least this many bytes, since each costs a call.
const STEP: u64 = 8 << 20;

/// A growing run of device memory. What it gave lives as long as it.
#[derive(Debug)]
pub struct Arena {
    context: Arc<Context>,
    purpose: &'static str,
    base: Ptr,
    reserved: u64,
    granularity: u64,
    mapped: u64,
    used: u64,
    /// (offset, bytes, handle)
    pieces: Vec<(u64, u64, sys::CUmemGenericAllocationHandle)>,
}

impl Arena {
    /// Sets addresses for `reserved` bytes aside. Costs no memory.
    pub fn new(context: &Arc<Context>, purpose: &'static str, reserved: u64) -> Result<Self, CudaError> {
        context.bind()?;
        let properties = properties(context.ordinal());
        let (mut granularity, mut base) = (0usize, 0);
        // SAFETY: both out pointers are valid, and the properties are filled in.
        unsafe {
            sys::cuMemGetAllocationGranularity(
                &mut granularity,
                &properties,
                sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_RECOMMENDED,
            )
        }
        .result()
        .during("cuMemGetAllocationGranularity")?;
        let granularity = granularity.max(1) as u64;
        let reserved = reserved.max(1).next_multiple_of(granularity);
        // SAFETY: the out pointer is valid; any address will do.
        unsafe { sys::cuMemAddressReserve(&mut base, reserved as usize, 0, 0, 0) }
            .result()
            .during("cuMemAddressReserve")?;
        let (base, context) = (Ptr(base), context.clone());
        Ok(Self { context, purpose, base, reserved, granularity, mapped: 0, used: 0, pieces: Vec::new() })
    }

    /// `bytes` of uninitialised memory.
    ///
    /// # Errors
    /// When the device has no more, or the reservation is used up.
    pub fn take(&mut self, bytes: u64) -> Result<Ptr, CudaError> {
        let start = self.used;
        let end = start + bytes.next_multiple_of(ALIGNMENT);
        if end > self.mapped {
            self.map(end - self.mapped)?;
        }
        self.used = end;
        Ok(self.base.offset(start))
    }

    fn map(&mut self, bytes: u64) -> Result<(), CudaError> {
        let room = self.reserved - self.mapped;
        let bytes = bytes.next_multiple_of(self.granularity);
        if bytes > room {
            return Err(CudaError::OutOfMemory { purpose: self.purpose, bytes, free: room });
        }
        let stepped = bytes.max(STEP.next_multiple_of(self.granularity)).min(room);
        // A whole step if there is one, and just what is needed otherwise.
        self.map_exactly(stepped).or_else(|error| if stepped > bytes { self.map_exactly(bytes) } else { Err(error) })
    }

    fn map_exactly(&mut self, bytes: u64) -> Result<(), CudaError> {
        self.context.bind()?;
        let (properties, mut handle, at) = (properties(self.context.ordinal()), 0, self.base.offset(self.mapped).0);
        // SAFETY: the out pointer is valid, and the properties are filled in.
        let created = unsafe { sys::cuMemCreate(&mut handle, bytes as usize, &properties, 0) }.result();
        if let Err(error) = created {
            let free = mem_get_info().map_or(0, |(free, _)| free as u64);
            return Err(match error.0 {
                sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                    CudaError::OutOfMemory { purpose: self.purpose, bytes, free }
                }
                _ => CudaError::new("cuMemCreate", error),
            });
        }
        let access = sys::CUmemAccessDesc {
            location: properties.location,
            flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        // SAFETY: the range is reserved and nothing is mapped there; the handle is as large.
        let mapped = unsafe { sys::cuMemMap(at, bytes as usize, 0, handle, 0) }.result();
        // SAFETY: the range has just been mapped.
        let open = || unsafe { sys::cuMemSetAccess(at, bytes as usize, &access, 1) }.result();
        if let Err(error) = mapped.and_then(|()| open()) {
            // SAFETY: the handle is ours, and this its only release on this way; an unmapped range is left alone.
            unsafe {
                if mapped.is_ok() {
                    let _ = sys::cuMemUnmap(at, bytes as usize);
                }
                let _ = sys::cuMemRelease(handle);
            }
            return Err(CudaError::new("cuMemMap", error));
        }
        self.pieces.push((self.mapped, bytes, handle));
        self.mapped += bytes;
        Ok(())
    }

    /// Bytes handed out.
    pub fn used(&self) -> u64 {
        self.used
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let _ = self.context.bind();
        for (offset, bytes, handle) in self.pieces.drain(..) {
            // SAFETY: mapped by `map_exactly`, once; nobody reads what an arena that is gone has given.
            unsafe {
                let _ = sys::cuMemUnmap(self.base.offset(offset).0, bytes as usize);
                let _ = sys::cuMemRelease(handle);
            }
        }
        // SAFETY: reserved by `new`, and nothing is mapped any more.
        let _ = unsafe { sys::cuMemAddressFree(self.base.0, self.reserved as usize) };
    }
}

fn properties(ordinal: usize) -> sys::CUmemAllocationProp {
    sys::CUmemAllocationProp {
        type_: sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE,
        location: sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: ordinal as i32 },
        win32HandleMetaData: std::ptr::null_mut(),
        allocFlags: sys::CUmemAllocationProp_st__bindgen_ty_1 {
            compressionType: 0,
            gpuDirectRDMACapable: 0,
            usage: 0,
            reserved: [0; 4],
        },
    }
}
