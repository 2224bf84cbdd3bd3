//! Manifests that are not as they were written: each is refused, and the error says why.

use engine_store::{CHUNK_BYTES, Checksum, GgmlType, Manifest, ManifestError, Object, PackedTensor};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A file of that JSON, with a checksum that is right.
fn sealed(body: &str) -> Vec<u8> {
    format!("{body}\n{}\n", Checksum::of(body.as_bytes())).into_bytes()
}

/// Two objects: one of two small tensors, one of a large.
fn good() -> Value {
    let sum = |text: &str| Checksum::of(text.as_bytes());
    let object = |bytes: u64, chunks: &[Checksum]| Object::new(bytes, chunks.to_vec()).unwrap();
    let tensor = |name: &str, dims: &[u64], object, offset, bytes| PackedTensor {
        name: name.to_owned(),
        kind: GgmlType::F32,
        dims: dims.to_vec(),
        object,
        offset,
        bytes,
    };
    let manifest = Manifest {
        revision: "abc+q8_0".into(),
        layout: "stored-1".into(),
        objects: vec![object(4096, &[sum("a")]), object(CHUNK_BYTES + 4096, &[sum("b"), sum("c")])],
        tensors: vec![
            tensor("norm", &[16], 0, 0, 64),
            tensor("bias", &[16], 0, 64, 128),
            tensor("matrix", &[1024, 256], 1, 0, 1 << 20),
        ],
    };
    let text = manifest.to_text();
    assert_eq!(Manifest::parse(text.as_bytes()).unwrap(), manifest);
    serde_json::from_str(text.lines().next().unwrap()).unwrap()
}

fn error(change: impl FnOnce(&mut Value)) -> ManifestError {
    let mut value = good();
    change(&mut value);
    Manifest::parse(&sealed(&value.to_string())).unwrap_err()
}

#[test]
fn every_bad_field_is_named() {
    let cases: [(&str, &str, Value, &str); 24] = [
        ("/format", "", json!(2), "it has format 2, and this version reads format 1"),
        ("/revision", "", json!("../../etc"), "revision \"../../etc\" is no plain name"),
        ("/layout", "", json!(""), "layout \"\" is no plain name"),
        ("/objects/0/name", "", json!("../../../etc/passwd"), "object 0: its name, length and checksums do not belong"),
        ("/objects/1/bytes", "", json!(1u64 << 62), "object 1:"),
        ("/objects/1/bytes", "", json!(0), "object 1:"),
        ("/objects/1/bytes", "", json!(CHUNK_BYTES + 8192), "object 1:"),
        ("/objects/1/chunks", "", json!("00".repeat(64)), "object 1:"),
        ("/objects/1/chunks", "", json!("ä".repeat(64)), "object 1:"),
        ("/objects/1", "/objects/0", Value::Null, "is listed twice"),
        ("/tensors/0/name", "", json!("bias"), "tensor \"bias\" is listed twice"),
        ("/tensors/0/name", "", json!(""), "its name has 0 bytes"),
        ("/tensors/0/kind", "", json!("F31"), "tensor \"norm\": type \"F31\" is not known"),
        ("/tensors/0/kind", "", json!("Q8_0"), "Q8_0 cannot have dimensions [16]"),
        ("/tensors/0/dims", "", json!([]), "tensor \"norm\": dimensions []; 1 to 4 are allowed"),
        ("/tensors/0/dims", "", json!([16, 0]), "none of them zero"),
        ("/tensors/0/dims", "", json!([1u64 << 40, 1u64 << 40]), "F32 cannot have dimensions"),
        ("/tensors/0/bytes", "", json!(60), "60 bytes for F32 of [16], which takes 64"),
        ("/tensors/0/bytes", "", json!(u64::MAX), "which takes 64"),
        ("/tensors/0/bytes", "", json!(65), "tensors \"norm\" and \"bias\" overlap"),
        ("/tensors/0/offset", "", json!(u64::MAX - 63), "do not fit into an object of 4096"),
        ("/tensors/0/offset", "", json!(32), "do not fit into an object of 4096"),
        ("/tensors/0/object", "", json!(2), "it would lie in object 2 of 2"),
        ("/tensors/2/object", "/tensors/2/bytes", json!(0), "tensor \"matrix\":"),
    ];
    for (place, from, value, want) in cases {
        let found = error(|all| {
            let value = match all.pointer(from).filter(|_| value.is_null()) {
                Some(other) => other.clone(),
                None => value,
            };
            *all.pointer_mut(place).unwrap() = value;
        });
        assert!(found.to_string().contains(want), "{place}: {found}");
    }
    let unused = error(|all| drop(all["tensors"].as_array_mut().unwrap().pop()));
    assert!(matches!(unused, ManifestError::Unused { .. }), "{unused}");
    let unknown = error(|all| all["more"] = json!(1));
    assert!(matches!(unknown, ManifestError::Json { .. }), "{unknown}");
    let huge = error(|all| all["tensors"][0]["dims"] = json!([1e300]));
    assert!(matches!(huge, ManifestError::Json { .. }), "{huge}");
}

#[test]
fn tensors_of_the_same_bytes_may_lie_in_one_place() {
    let mut value = good();
    let mut twin = value["tensors"][2].clone();
    twin["name"] = json!("twin");
    value["tensors"].as_array_mut().unwrap().push(twin);
    assert_eq!(Manifest::parse(&sealed(&value.to_string())).unwrap().tensors.len(), 4);
}

#[test]
fn a_cut_or_a_changed_bit_is_seen_wherever_it_is() {
    let text = sealed(&good().to_string());
    for end in 0..text.len() {
        assert!(Manifest::parse(&text[..end]).is_err(), "cut to {end}");
    }
    for at in 0..text.len() {
        for bit in [1, 0x20, 0x80] {
            let mut text = text.clone();
            text[at] ^= bit;
            assert!(Manifest::parse(&text).is_err(), "bit {bit} of byte {at}");
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(body: String, bytes: Vec<u8>) {
        prop_assert!(Manifest::parse(&bytes).is_err());
        prop_assert!(Manifest::parse(&sealed(&body)).is_err());
    }
}
