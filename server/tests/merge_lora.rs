//! `perilune merge-lora` and `perilune quantize` as processes: what they write and print, and what they say where they cannot.

use crate::harness;

use harness::batches::Folder;
use models::ModelFiles;
use perilune::load::{WriteCache, load};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const QUERY: &str = "language_model.model.layers.0.self_attn.q_proj";
const RANK: usize = 2;

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

fn perilune(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perilune"));
    command.env_clear().env("HF_HUB_OFFLINE", "1").env("HOME", "/nonexistent").args(args);
    command.output().expect("runs")
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn said(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

/// Of one matrix of the demonstration model, `[192, 128]`: the columns of `B` and the rows of `A` are constant.
fn write_adapter(folder: &Path, alpha: usize) {
    fs::create_dir_all(folder).expect("a folder");
    let config = json!({"peft_type": "LORA", "r": RANK, "lora_alpha": alpha, "target_modules": ["q_proj"]});
    fs::write(folder.join("adapter_config.json"), config.to_string()).expect("writes");
    let bytes = |len: usize, value: f32| value.to_le_bytes().repeat(len);
    let (a, b) = (bytes(RANK * 128, 0.25), bytes(192 * RANK, 0.5));
    let view = |shape: Vec<usize>, data| TensorView::new(Dtype::F32, shape, data).expect("a tensor");
    let tensors = [
        (format!("base_model.model.{QUERY}.lora_A.weight"), view(vec![RANK, 128], &a)),
        (format!("base_model.model.{QUERY}.lora_B.weight"), view(vec![192, RANK], &b)),
    ];
    let file = serialize(tensors, None).expect("a file");
    fs::write(folder.join("adapter_model.safetensors"), file).expect("writes");
}

fn bf16(bytes: &[u8]) -> Vec<f32> {
    let value = |pair: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([pair[0], pair[1]])) << 16);
    bytes.chunks_exact(2).map(value).collect()
}

#[test]
fn a_merged_copy_is_the_base_with_the_adapter_in_it() {
    let folder = Folder::new("merge-lora");
    let (adapter, output) = (folder.0.join("adapter"), folder.0.join("merged"));
    write_adapter(&adapter, 4);
    let base = demo();
    let args = ["merge-lora", utf8(&base), utf8(&adapter), "--output", utf8(&output)];
    let done = perilune(&args);
    assert!(done.status.success(), "{}", said(&done.stderr));
    let line = said(&done.stdout);
    assert!(line.starts_with(&format!("{}: 1 matrices changed, ", output.display())), "{line}");
    assert!(said(&done.stderr).ends_with("100 %\n"), "{}", said(&done.stderr));

    let [before, after] =
        [&base, &output].map(|model| fs::read(model.join("model.safetensors")).expect("a file"));
    let [before, after] = [&before, &after].map(|file| SafeTensors::deserialize(file).expect("safetensors"));
    assert_eq!(before.len(), after.len());
    // scale · B A: 4 / 2 · 2 · 0.5 · 0.25 everywhere.
    let delta = 0.5;
    for (name, tensor) in before.tensors() {
        let merged = after.tensor(&name).expect("it is there");
        assert_eq!((merged.dtype(), merged.shape()), (tensor.dtype(), tensor.shape()), "{name}");
        if name.ends_with(&format!("{QUERY}.weight")) {
            for (value, base) in bf16(merged.data()).into_iter().zip(bf16(tensor.data())) {
                let exact = base + delta;
                assert!((value - exact).abs() <= exact.abs() / 256.0, "{base} became {value}");
            }
        } else {
            assert_eq!(merged.data(), tensor.data(), "{name}");
        }
    }
    let others =
        ["generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"];
    for name in others {
        assert_eq!(fs::read(output.join(name)).ok(), fs::read(base.join(name)).ok(), "{name}");
    }
    let config = |model: &Path| -> Value {
        serde_json::from_slice(&fs::read(model.join("config.json")).expect("a file")).expect("JSON")
    };
    assert_eq!(config(&output), config(&base));
    // It is a model like any other.
    load(&ModelFiles::Directory(output.clone()), &harness::small_load(), WriteCache::Now).expect("loads");

    let again = perilune(&args);
    assert_eq!(again.status.code(), Some(1));
    assert!(said(&again.stderr).contains("the folder is not empty"), "{}", said(&again.stderr));
}

#[test]
fn what_is_wrong_is_said_once() {
    let folder = Folder::new("merge-lora-wrong");
    let (adapter, file, output) = (folder.0.join("adapter"), folder.0.join("file"), folder.0.join("output"));
    write_adapter(&adapter, 4);
    fs::write(&file, "no folder").expect("writes");
    let below = file.join("below");
    let (base, nothing) = (demo(), folder.0.join("nothing"));
    fs::create_dir_all(&nothing).expect("a folder");
    let merge = |adapter: &Path, output: &Path| {
        perilune(&["merge-lora", utf8(&base), utf8(adapter), "--output", utf8(output)])
    };
    let quantize = perilune(&["quantize", utf8(&base), "--quantization", "int8", "--output", utf8(&below)]);
    for (done, reason) in [
        (merge(&adapter, &below), "Not a directory"),
        (quantize, "Not a directory"),
        (merge(&nothing, &output), "adapter_config.json is missing"),
    ] {
        let error = said(&done.stderr);
        assert_eq!((done.status.code(), said(&done.stdout)), (Some(1), ""), "{error}");
        assert!(error.starts_with("error: failed to "), "{error}");
        assert_eq!(error.matches(reason).count(), 1, "{error}");
    }
    assert!(!output.exists(), "nothing is begun before the adapter is read");
}
