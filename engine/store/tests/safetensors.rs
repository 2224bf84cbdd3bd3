//! Reading safetensors: good files, everything that can be wrong with one, and shards.

use engine_store::{GgmlType, Safetensors, SafetensorsError, safetensors::Dtype};
use proptest::prelude::*;
use std::path::Path;

/// A file with this header and `data_bytes` bytes 0, 1, 2, ...
fn file(header: &str, data_bytes: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend((0..data_bytes).map(|index| index as u8));
    out
}

/// Two matrices and a vector; 48 bytes. The header is padded to eight bytes, as writers do.
fn good() -> Vec<u8> {
    file(&format!("{:<248}", GOOD), 48)
}

const GOOD: &str = r#"{"__metadata__":{"format":"pt"},
"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},
"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},
"c":{"dtype":"I64","shape":[1,2],"data_offsets":[32,48]}}"#;

#[test]
fn tensors_are_views_of_the_file() {
    let opened = Safetensors::from_bytes(good()).unwrap();
    let names: Vec<&str> = opened.tensors().map(|tensor| tensor.name).collect();
    assert_eq!(names, ["a", "b", "c"]);
    let a = opened.tensor("a").unwrap();
    assert_eq!((a.dtype, a.shape, a.bytes.len(), a.bytes[23]), (Dtype::F32, &[2, 3][..], 24, 23));
    let b = opened.tensor_data("b").unwrap();
    assert_eq!((b.kind(), b.dims(), &b[..2]), (GgmlType::BF16, &[4][..], &[24, 25][..]));
    let a = opened.tensor_data("a").unwrap();
    assert_eq!((a.kind(), a.dims()), (GgmlType::F32, &[3, 2][..]));
    assert_eq!(opened.file_bytes(), 8 + 248 + 48);
    assert!(opened.get("d").is_none());
}

/// Numbers are aligned in memory even where a writer did not pad its header.
#[test]
fn unaligned_tensors_are_copied_whole() {
    for pad in 0..8 {
        let opened = Safetensors::from_bytes(file(&format!("{GOOD}{:pad$}", ""), 48)).unwrap();
        for (name, bytes) in [("a", 0..24), ("b", 24..32), ("c", 32..48)] {
            let data = opened.tensor_data(name).unwrap();
            assert!(data.iter().copied().eq(bytes.clone()), "{name} with {pad} blanks");
            assert!(data.as_ptr().addr().is_multiple_of(data.kind().block_bytes() as usize));
        }
    }
}

/// The error's text must name what is wrong.
fn check(bytes: Vec<u8>, expected: &str) {
    match Safetensors::from_bytes(bytes) {
        Ok(_) => panic!("accepted, expected {expected:?}"),
        Err(error) => assert!(error.to_string().contains(expected), "{error} does not say {expected:?}"),
    }
}

fn check_edit(from: &str, to: &str, expected: &str) {
    assert!(GOOD.contains(from), "{from}");
    check(file(&GOOD.replace(from, to), 48), expected);
}

#[test]
fn every_fault_is_named() {
    check(Vec::new(), "0 bytes, less than a header");
    check(b"PK\x03\x04...............".to_vec(), "more than the limit");
    check(good()[..100].to_vec(), "truncated? download it again");
    check(good()[..290].to_vec(), "ends at byte 290, but its tensors end at 304: truncated?");
    check([good(), vec![0; 3]].concat(), "3 bytes follow its last tensor");
    check(file("[]", 0), "its header is not as it should be");
    check(file("{\"a\":", 0), "EOF while parsing");
    check(file(&"[".repeat(10_000), 0), "its header is not as it should be");
    check_edit("\"BF16\"", "\"F3\"", "tensor \"b\": unknown variant `F3`");
    check_edit("[4]", "[-4]", "tensor \"b\"");
    check_edit("[4]", "[5]", "tensor \"b\": BF16 of shape [5] do not fill its 8 bytes");
    check_edit("[4]", "[4,1,1,1,1,1,1,1,1]", "9 dimensions");
    check_edit("[4]", "[4294967296,4294967296]", "tensor \"b\": shape [4294967296, 4294967296] overflows");
    check_edit("[24,32]", "[32,24]", "tensor \"b\": it ends at 24, before it begins");
    // Overlap, hole, name twice.
    check_edit("[24,32]", "[16,24]", "invalid offset for tensor `b`");
    check_edit("[32,48]", "[40,56]", "invalid offset for tensor `c`");
    check_edit("\"b\":", "\"a\":", "invalid offset for tensor `a`");
    check_edit("\"shape\":[4],", "", "tensor \"b\": missing field `shape`");
    let missing = Safetensors::from_bytes(good()).unwrap().tensor("d").unwrap_err();
    assert_eq!(missing.to_string(), "memory has no tensor \"d\"");
    let fp8 = GOOD.replace("BF16", "F8_E4M3").replace("[4]", "[8]");
    let fp8 = Safetensors::from_bytes(file(&fp8, 48)).unwrap().tensor_data("b");
    assert!(fp8.err().unwrap().to_string().contains("tensor \"b\": type F8_E4M3 cannot be read"));
}

/// One F32 of the value `x`.
fn shard(name: &str, x: f32) -> Vec<u8> {
    let header = format!(r#"{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
    let mut bytes = file(&header, 4);
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&x.to_le_bytes());
    bytes
}

fn open_sharded(index: &str, edit: impl FnOnce(&Path)) -> Result<Safetensors, SafetensorsError> {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("m-1.safetensors"), shard("a", 1.0)).unwrap();
    std::fs::write(path("m-2.safetensors"), shard("b", 2.0)).unwrap();
    std::fs::write(path("model.safetensors.index.json"), index).unwrap();
    edit(folder.path());
    Safetensors::open_folder(folder.path())
}

const INDEX: &str = r#"{"metadata":{"total_size":8},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}}"#;

#[test]
fn shards_are_one_set_of_tensors() {
    let opened = open_sharded(INDEX, |_| {}).unwrap();
    let values: Vec<(&str, f32)> =
        opened.tensors().map(|x| (x.name, f32::from_le_bytes(x.bytes.try_into().unwrap()))).collect();
    assert_eq!(values, [("a", 1.0), ("b", 2.0)]);
    assert_eq!(opened.files().count(), 2);
}

#[test]
fn every_fault_of_shards_is_named() {
    let check = |index: &str, edit: &dyn Fn(&Path), expected: &str| match open_sharded(index, edit) {
        Ok(_) => panic!("accepted, expected {expected:?}"),
        Err(error) => assert!(error.to_string().contains(expected), "{error} does not say {expected:?}"),
    };
    let keep: &dyn Fn(&Path) = &|_| {};
    check("{", keep, "model.safetensors.index.json: EOF");
    check("{}", keep, "missing field `weight_map`");
    check(r#"{"weight_map":{}}"#, keep, "lists no tensor");
    for name in ["../m-1.safetensors", "/etc/m-1.safetensors", "..\\m.safetensors", "..", "", "m.bin", ".safetensors"] {
        let index = serde_json::json!({"weight_map": {"a": name}}).to_string();
        check(&index, keep, "tensor \"a\" is said to be in");
    }
    check(&INDEX.replace("m-2", "m-3"), keep, "shard \"m-3.safetensors\"");
    check(&INDEX.replace("\"b\"", "\"c\""), keep, "tensor \"c\" is not in \"m-2.safetensors\"");
    let swapped = INDEX.replace("m-1", "m-0").replace("m-2", "m-1").replace("m-0", "m-2");
    check(&swapped, keep, "tensor \"a\" is not in \"m-2.safetensors\"");
    let write =
        |name: &'static str, bytes: Vec<u8>| move |folder: &Path| std::fs::write(folder.join(name), &bytes).unwrap();
    check(INDEX, &write("m-2.safetensors", shard("a", 3.0)), "tensor \"a\" is in both");
    check(INDEX, &write("m-2.safetensors", shard("b", 3.0)[..65].to_vec()), "m-2.safetensors ends at byte 65");
    check(INDEX, &write("m-2.safetensors", Vec::new()), "m-2.safetensors is no safetensors file");
    let without_index: &dyn Fn(&Path) =
        &|folder| std::fs::remove_file(folder.join("model.safetensors.index.json")).unwrap();
    check(INDEX, without_index, "neither model.safetensors nor");
    let folder_for_file: &dyn Fn(&Path) = &|folder| {
        std::fs::remove_file(folder.join("m-2.safetensors")).unwrap();
        std::fs::create_dir(folder.join("m-2.safetensors")).unwrap();
    };
    check(INDEX, folder_for_file, "not a regular file");
}

/// Uses all that a reader uses.
fn exercise(bytes: Vec<u8>) {
    let Ok(opened) = Safetensors::from_bytes(bytes) else { return };
    for tensor in opened.tensors() {
        let bits = tensor.shape.iter().product::<u64>() * tensor.dtype.bitsize() as u64;
        assert_eq!(bits, tensor.bytes.len() as u64 * 8);
        if let Ok(data) = opened.tensor_data(tensor.name) {
            assert_eq!(&*data, tensor.bytes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn damaged_bytes_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = good();
        for (index, value) in flips {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        exercise(bytes);
    }

    #[test]
    fn other_numbers_never_panic(at in any::<prop::sample::Index>(), digits in "[0-9]{1,20}|-1|0|1e3|null") {
        let starts: Vec<usize> = GOOD.match_indices(|c: char| c.is_ascii_digit()).map(|(at, _)| at).collect();
        let at = starts[at.index(starts.len())];
        exercise(file(&[&GOOD[..at], &digits, &GOOD[at + 1..]].concat(), 48));
    }

    #[test]
    fn every_truncation_is_refused(len in 0..304usize) {
        prop_assert!(Safetensors::from_bytes(good()[..len].to_vec()).is_err());
    }
}
