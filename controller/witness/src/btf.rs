//! Offsets of kernel structure members, from the running kernel's BTF (BPF Type Format; layout as in the
//! kernel's Documentation/bpf/btf.rst). Members of anonymous structs and unions are found by their own
//! name. Every read is checked: a malformed file gives None, never a panic.

use std::path::Path;

/// Type kinds that matter here.
const KIND_PTR: u32 = 2;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_FUNC_PROTO: u32 = 13;
/// typedef, volatile, const, restrict and type_tag stand for another type.
const KINDS_OF_OTHER_NAMES: [u32; 5] = [8, 9, 10, 11, 18];
/// Anonymous members inside each other, and names for names; real kernels need three.
const DEPTH_LIMIT: usize = 16;

/// A parsed BTF file.
pub struct Btf {
    data: Vec<u8>,
    /// Where each type begins; type ids count from 1.
    types: Vec<usize>,
    strings: usize,
}

impl Btf {
    /// The running kernel's, where it keeps it; None when it has none.
    pub fn read(path: &Path) -> Option<Self> {
        Self::parse(std::fs::read(path).ok()?)
    }

    /// Reads the type table of a BTF file.
    pub fn parse(data: Vec<u8>) -> Option<Self> {
        if data.get(..2)? != [0x9f, 0xeb] {
            return None;
        }
        let header = word(&data, 4)? as usize;
        let start = header.checked_add(word(&data, 8)? as usize)?;
        let end = start.checked_add(word(&data, 12)? as usize)?.min(data.len());
        let strings = header.checked_add(word(&data, 16)? as usize)?;
        let mut types = vec![0];
        let mut at = start;
        while at < end {
            types.push(at);
            at = at.checked_add(12 + payload_bytes(word(&data, at + 4)?))?;
        }
        Some(Self { data, types, strings })
    }

    /// Byte offset of `path` (members separated by dots) in `structure`.
    pub fn offset(&self, structure: &str, path: &str) -> Option<u32> {
        let mut id = (1..self.types.len()).find(|&id| {
            self.kind(id) == Some(KIND_STRUCT) && self.members(id) > 0 && self.name(id) == Some(structure.as_bytes())
        })?;
        let mut offset = 0u32;
        for part in path.split('.') {
            let (at, member_type) = self.member(self.resolve(id)?, part.as_bytes(), 0)?;
            offset = offset.checked_add(at)?;
            id = member_type;
        }
        Some(offset)
    }

    /// How many arguments a tracepoint gives to programs.
    pub fn tracepoint_arguments(&self, tracepoint: &str) -> Option<usize> {
        let name = format!("btf_trace_{tracepoint}");
        let id = (1..self.types.len()).find(|&id| self.name(id) == Some(name.as_bytes()))?;
        let pointer = self.resolve(id)?;
        let function = word(&self.data, self.types.get(pointer)? + 8)? as usize;
        // The first is the kernel's own.
        (self.kind(function)? == KIND_FUNC_PROTO).then(|| self.members(function).saturating_sub(1))
    }

    fn info(&self, id: usize) -> Option<u32> {
        word(&self.data, self.types.get(id)? + 4)
    }

    fn kind(&self, id: usize) -> Option<u32> {
        Some(self.info(id)? >> 24 & 31)
    }

    fn members(&self, id: usize) -> usize {
        self.info(id).map_or(0, |info| (info & 0xffff) as usize)
    }

    fn name(&self, id: usize) -> Option<&[u8]> {
        self.string(word(&self.data, *self.types.get(id)?)?)
    }

    fn string(&self, offset: u32) -> Option<&[u8]> {
        let rest = self.data.get(self.strings.checked_add(offset as usize)?..)?;
        rest.split(|&b| b == 0).next()
    }

    /// The type behind other names for it.
    fn resolve(&self, id: usize) -> Option<usize> {
        let mut id = id;
        for _ in 0..DEPTH_LIMIT {
            let kind = self.kind(id)?;
            if kind == KIND_PTR || !KINDS_OF_OTHER_NAMES.contains(&kind) {
                return Some(id);
            }
            id = word(&self.data, self.types.get(id)? + 8)? as usize;
        }
        None
    }

    fn member(&self, id: usize, name: &[u8], depth: usize) -> Option<(u32, usize)> {
        let start = *self.types.get(id)?;
        let bitfields = self.info(id)? >> 31 == 1;
        if depth > DEPTH_LIMIT || !matches!(self.kind(id)?, KIND_STRUCT | KIND_UNION) {
            return None;
        }
        for i in 0..self.members(id) {
            let at = start + 12 + i * 12;
            let own_name = self.string(word(&self.data, at)?)?;
            let member_type = word(&self.data, at + 4)? as usize;
            let raw = word(&self.data, at + 8)?;
            let bytes = if bitfields { raw & 0xff_ffff } else { raw } / 8;
            if own_name == name {
                return Some((bytes, member_type));
            }
            if own_name.is_empty()
                && let Some((inner, inner_type)) = self.member(self.resolve(member_type)?, name, depth + 1)
            {
                return Some((bytes.checked_add(inner)?, inner_type));
            }
        }
        None
    }
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(data.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// Bytes that follow the 12 of a type's common part.
fn payload_bytes(info: u32) -> usize {
    let members = (info & 0xffff) as usize;
    match info >> 24 & 31 {
        1 | 14 | 17 => 4,
        3 => 12,
        4 | 5 | 15 | 19 => members * 12,
        6 | KIND_FUNC_PROTO => members * 8,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn this_kernel_has_what_the_probes_read() {
        let Some(btf) = Btf::read(Path::new("/sys/kernel/btf/vmlinux")) else {
            println!("skipped: this kernel has no BTF");
            return;
        };
        assert_eq!(btf.offset("sock", "__sk_common"), Some(0));
        assert!(btf.offset("sock", "sk_ack_backlog").is_some());
        // Inside an anonymous union of struct sock_common.
        assert!(btf.offset("sock", "__sk_common.skc_dport").is_some());
        assert_eq!(btf.offset("sock", "no_such_member"), None);
        assert_eq!(btf.offset("no_such_struct", "x"), None);
        assert!(btf.tracepoint_arguments("sched_switch").is_some_and(|arguments| arguments >= 3));
        assert_eq!(btf.tracepoint_arguments("no_such_tracepoint"), None);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(tail in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut data = vec![0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 200, 0, 0, 0, 200, 0, 0, 0, 90, 0, 0, 0];
            data.extend(tail);
            if let Some(btf) = Btf::parse(data) {
                let _ = btf.offset("sock", "a.b");
                let _ = btf.offset("", "");
                let _ = btf.tracepoint_arguments("x");
            }
        }
    }
}
