//! What is in the files comes out, and files that are damaged in any way give an error and never a panic.

use super::files::{INDEX_FILE, SINGLE_FILE};
use super::*;
use serde_json::{Value, json};
use std::path::Path;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

/// A safetensors file with this header and so many bytes of data.
fn file(header: &Value, data_len: usize) -> Vec<u8> {
    let header = header.to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend((0..data_len).map(|i| i as u8));
    file
}

fn embedded(files: Vec<(&'static str, Vec<u8>)>) -> ModelFiles {
    let files: Vec<(&'static str, &'static [u8])> =
        files.into_iter().map(|(name, bytes)| (name, &*bytes.leak())).collect();
    ModelFiles::Embedded(files.leak())
}

fn single(header: Value, data_len: usize) -> Result<Checkpoint, LoadError> {
    Checkpoint::open(&embedded(vec![(SINGLE_FILE, file(&header, data_len))]))
}

fn error(result: Result<Checkpoint, LoadError>) -> String {
    result.err().expect("an error").to_string()
}

fn two_tensors() -> Value {
    json!({
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
        "b": {"dtype": "BF16", "shape": [3], "data_offsets": [8, 14]}
    })
}

#[test]
fn tensors_are_taken_by_name_and_shape() {
    let checkpoint = single(two_tensors(), 14).unwrap();
    assert_eq!(checkpoint.total_bytes(), Some(14));
    let b = checkpoint.take("b", &[3]).unwrap();
    assert_eq!((b.view().dtype, b.view().data), (DType::BF16, &[8, 9, 10, 11, 12, 13][..]));
    assert_eq!(b.to_f32()[0], half::bf16::from_bits(0x0908).to_f32());
    let found = checkpoint.take("a", &[2, 1]).unwrap_err().to_string();
    assert_eq!(found, "embedded model.safetensors: tensor a: expected shape [2, 1], found [1, 2]");
    let missing = checkpoint.take("c", &[1]).unwrap_err().to_string();
    assert_eq!(missing, "embedded model.safetensors: tensor c is missing");
    assert_eq!(checkpoint.bytes_taken(), 6);
}

#[test]
fn leftovers_are_named() {
    let checkpoint = single(two_tensors(), 14).unwrap();
    checkpoint.take("a", &[1, 2]).unwrap();
    let message = checkpoint.finish(|_| false).unwrap_err().to_string();
    assert_eq!(message, "1 tensors belong to no part of the model: b");
    checkpoint.finish(|name| name == "b").unwrap();
}

#[test]
fn other_types_are_refused_when_they_are_needed() {
    let header = json!({"q": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}});
    let message = single(header, 4).unwrap().take("q", &[4]).unwrap_err().to_string();
    let expected =
        "embedded model.safetensors: tensor q: type F8_E4M3 is not supported, only F32, BF16 and F16 are";
    assert_eq!(message, expected);
}

#[test]
fn damaged_headers_are_described() {
    let check = |header: Value, data_len: usize, end: &str| {
        let message = error(single(header, data_len));
        assert!(
            message.starts_with("embedded model.safetensors is not a valid safetensors file: "),
            "{message}"
        );
        assert!(message.ends_with(end), "{message}");
    };
    let a = |dtype: &str, shape: Value, offsets: Value| json!({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}});
    check(a("F32", json!([2]), json!([0, 8])), 7, "its bytes 0..8 are not inside the 7 bytes of data");
    check(a("F32", json!([2]), json!([8, 0])), 8, "its bytes 8..0 are not inside the 8 bytes of data");
    check(a("F32", json!([3]), json!([0, 8])), 8, "shape [3] of F32 does not take the 8 bytes it has");
    let huge = json!([1u64 << 62, 1u64 << 62]);
    check(a("F32", huge, json!([0, 8])), 8, "of F32 does not take the 8 bytes it has");
    check(a("F32", json!([-1]), json!([0, 8])), 8, "tensor a: shape holds -1");
    check(a("F32", json!([2]), json!([0, u64::MAX])), 8, "are not inside the 8 bytes of data");
    check(a("F32", json!([2]), json!([0])), 8, "data_offsets are not two numbers");
    check(a("F32", json!([2]), json!([0, 8])), 9, "its tensors end at byte 70, the file at byte 71");
    check(a("F32", json!([2]), json!([1, 9])), 9, "its data does not follow the tensor before it");
    check(json!({"a": 3}), 0, "tensor a: it has no dtype");
    check(json!([]), 0, "header: invalid type: sequence, expected a map at line 1 column 0");
    let check_file = |bytes: Vec<u8>, end: &str| {
        let message = error(Checkpoint::open(&embedded(vec![(SINGLE_FILE, bytes)])));
        assert!(message.ends_with(end), "{message}");
    };
    check_file(vec![], "it has 0 bytes, too few for a header");
    check_file(vec![1, 2, 3], "it has 3 bytes, too few for a header");
    check_file(u64::MAX.to_le_bytes().to_vec(), "a header of 18446744073709551615 bytes is too long");
    check_file(90u64.to_le_bytes().to_vec(), "its header ends at byte 98, after the file's 8 bytes");
}

fn sharded(index: Value, shards: Vec<(&'static str, Vec<u8>)>) -> Result<Checkpoint, LoadError> {
    let mut files = shards;
    files.push((INDEX_FILE, index.to_string().into_bytes()));
    Checkpoint::open(&embedded(files))
}

#[test]
fn shards_must_agree_with_their_index() {
    let one = |name: &str| file(&json!({name: {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}), 2);
    let index = |map: Value| json!({"metadata": {}, "weight_map": map});
    let good = index(json!({"a": "one", "b": "two"}));
    let checkpoint = sharded(good.clone(), vec![("one", one("a")), ("two", one("b"))]).unwrap();
    checkpoint.take("a", &[1]).unwrap();
    let missing = error(sharded(good.clone(), vec![("one", one("a"))]));
    assert_eq!(missing, "embedded two is missing");
    let swapped = error(sharded(good.clone(), vec![("one", one("b")), ("two", one("a"))]));
    assert_eq!(swapped, "embedded one: tensor a is missing");
    let twice = error(sharded(good, vec![("one", one("a")), ("two", one("a"))]));
    assert_eq!(twice, "embedded two: tensor a is also in embedded one");
    for shard in ["../two", "/etc/passwd", "", ".", "a/b"] {
        let message = error(sharded(index(json!({"a": shard})), vec![]));
        assert!(message.starts_with("embedded model.safetensors.index.json: weight_map.a: "), "{message}");
    }
    for broken in [json!({}), json!({"weight_map": []}), json!({"weight_map": {}})] {
        let message = error(sharded(broken, vec![]));
        assert!(message.starts_with("embedded model.safetensors.index.json: weight_map: "), "{message}");
    }
    assert_eq!(error(Checkpoint::open(&embedded(vec![]))), "embedded model.safetensors is missing");
}

#[test]
fn files_are_mapped() {
    for name in ["llama", "mixtral"] {
        let files = ModelFiles::Directory(Path::new(FIXTURES).join(name));
        let checkpoint = Checkpoint::open(&files).unwrap();
        let norm = checkpoint.take("model.norm.weight", &[40]).unwrap().to_f32();
        assert!(norm.iter().all(|x| x.is_finite() && x.abs() < 3.0), "{norm:?}");
    }
}

/// Damages a real file in 200 ways and takes every tensor that is still named: an error or the data, and no panic.
#[test]
fn mutants_never_panic() {
    let original = std::fs::read(Path::new(FIXTURES).join("llama/model.safetensors")).unwrap();
    let header_len = u64::from_le_bytes(*original.first_chunk().unwrap()) as usize;
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let mut refused = 0;
    for mutant in 0..200 {
        let mut bytes = original.clone();
        match mutant % 4 {
            0 => bytes.truncate(random(original.len())),
            1 => bytes[random(8)] ^= 1 << random(8),
            2 => bytes[8 + random(header_len)] = b"0129-[]{}\",:aN\xff"[random(15)],
            _ => {
                let (from, to) = (8 + random(header_len), 8 + random(header_len));
                let len = 1 + random(20);
                let piece = original[from..from + len].to_vec();
                bytes.splice(to..to + random(4), piece);
            }
        }
        let opened = Checkpoint::open(&embedded(vec![(SINGLE_FILE, bytes)]));
        let Ok(checkpoint) = opened else {
            refused += 1;
            continue;
        };
        let Source::Files(files) = &checkpoint.source else { unreachable!() };
        for (name, (_, info)) in &files.tensors {
            if let Ok(weights) = checkpoint.take(name, &info.shape) {
                assert_eq!(weights.to_f32().len(), info.shape.iter().product::<usize>());
            }
        }
    }
    // A changed letter of a name is not damage that a header can show; most of the rest is.
    assert!((150..200).contains(&refused), "{refused} of 200 were refused");
}

#[test]
fn dummy_weights_have_any_shape_and_depend_on_seed_and_name() {
    let values =
        |seed, name: &str, shape: &[usize]| Checkpoint::dummy(seed).take(name, shape).unwrap().to_f32();
    let w = values(1, "w.weight", &[37, 101]);
    assert_eq!(w, values(1, "w.weight", &[37, 101]));
    assert_ne!(w, values(2, "w.weight", &[37, 101]));
    assert_ne!(w, values(1, "v.weight", &[37, 101]));
    let variance = w.iter().map(|x| f64::from(x * x)).sum::<f64>() / w.len() as f64;
    assert!((variance * 101.0 - 1.0).abs() < 0.1, "variance {variance} is not 1/101");
    assert_eq!(values(1, "norm.weight", &[3]), [1.0; 3]);
    assert_eq!(values(1, "q_proj.bias", &[2]), [0.0; 2]);
}
