//! Weights that are quantised: published forms against the weights that they stand for, and what `quantize` writes against
//! quantising while loading.

mod common;

use common::{files, options};
use models::{
    DTypeChoice, Exported, LoadError, LoadOptions, Loaded, ModelFiles, Quantization, QuantizationChoice,
};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use scheduler::{Batch, BatchItem, BlockId, Sample, SamplingParams, SequenceId};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Sums in another order differ by about 1e-5; the scales of these files are numbers of f16.
const TOLERANCE: f32 = 1e-3;

const FORMS: [&str; 10] = [
    "compressed_int4",
    "compressed_int4_zeros",
    "compressed_int8",
    "compressed_bytes",
    "awq",
    "gptq",
    "gptq_int8",
    "gptq_zeros",
    "gptq_v2_zeros",
    "fp8",
];

fn form(name: &str) -> PathBuf {
    common::fixture("quantised").join(name)
}

fn load(directory: &Path, options: &LoadOptions) -> Result<Loaded, LoadError> {
    models::load(&ModelFiles::Directory(directory.into()), options, &mut |_| {})
}

/// Log-probabilities after each token, in steps of `chunk` tokens: only those after a step.
fn log_probs(loaded: &mut Loaded, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
    let blocks = (0..tokens.len().div_ceil(loaded.plan.block_size) as u32).map(BlockId);
    let blocks: Vec<BlockId> = blocks.collect();
    let mut step = |from: usize, to: usize| {
        let item = BatchItem {
            prompt_len: to,
            sample: Some(Sample::new(Arc::new(SamplingParams::default()), to, 0)),
            ..BatchItem::new(SequenceId(1), tokens[from..to].to_vec(), from, blocks.clone())
        };
        let batch = Batch { items: vec![item], ..Default::default() };
        loaded.runner.distributions(&batch).pop().expect("one distribution")
    };
    (0..tokens.len()).step_by(chunk).map(|from| step(from, tokens.len().min(from + chunk))).collect()
}

fn golden(name: &str) -> (Vec<u32>, Vec<Vec<f32>>) {
    let json: Value =
        serde_json::from_slice(&std::fs::read(form(name).join("golden.json")).unwrap()).unwrap();
    let prompt = json["prompt_token_ids"].as_array().unwrap().iter();
    let prompt: Vec<u32> = prompt.map(|id| id.as_u64().unwrap() as u32).collect();
    let bytes = std::fs::read(form(name).join("golden.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let values = tensors.tensor("log_probs").unwrap();
    let values: Vec<f32> =
        values.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    (prompt.clone(), values.chunks(values.len() / prompt.len()).map(<[f32]>::to_vec).collect())
}

#[test]
fn published_forms_agree_with_the_weights_they_stand_for() {
    for name in FORMS {
        let (prompt, expected) = golden(name);
        let planned = models::plan(&ModelFiles::Directory(form(name)), &options()).unwrap();
        let mut loaded = load(&form(name), &options()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(loaded.plan, planned, "{name}");
        assert_eq!(loaded.runner.device().allocated_bytes(), planned.memory.total, "{name}");
        let method = name.split('_').next().unwrap();
        assert!(planned.quantization.unwrap().starts_with(method), "{name}: {:?}", planned.quantization);
        let found = log_probs(&mut loaded, &prompt, 1);
        assert_eq!(found.len(), expected.len());
        let pairs = found.iter().zip(&expected).flat_map(|(a, b)| a.iter().zip(b));
        let largest = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(largest < TOLERANCE, "{name}: log-probabilities differ by {largest:.1e}");
        // In one piece: other code paths, the same bits as the last of the steps.
        let whole = log_probs(&mut load(&form(name), &options()).unwrap(), &prompt, prompt.len());
        assert_eq!(whole.last(), found.last(), "{name}");
    }
}

/// A form that is read as floats is quantised like floats when that is asked for.
#[test]
fn fp8_can_be_quantised_again() {
    let (prompt, expected) = golden("fp8");
    let options = LoadOptions { quantization: QuantizationChoice::Int8, ..options() };
    let mut loaded = load(&form("fp8"), &options).unwrap();
    assert_eq!(loaded.runner.device().allocated_bytes(), loaded.plan.memory.total);
    let found = log_probs(&mut loaded, &prompt, 1);
    let pairs = found.iter().zip(&expected).flat_map(|(a, b)| a.iter().zip(b));
    let largest = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!((TOLERANCE..1.0).contains(&largest), "rounded once more, but not beyond recognition: {largest}");
}

/// A copy of a fixture's folder with one file changed.
fn changed(name: &str, what: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
    let directory = scratch(&format!("changed_{name}_{what}"));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::copy(form(name).join("model.safetensors"), directory.join("model.safetensors")).unwrap();
    let mut config = serde_json::from_slice(&std::fs::read(form(name).join("config.json")).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    directory
}

fn scratch(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("quantised").join(name);
    let _ = std::fs::remove_dir_all(&directory);
    directory
}

#[test]
fn files_that_are_not_what_the_configuration_says_are_refused() {
    let check = |name: &str, what: &str, change: fn(&mut Value), expected: &str| {
        let directory = changed(name, what, change);
        let message = load(&directory, &options()).err().expect("an error").to_string();
        assert!(message.contains(expected), "{name} {what}: {message}");
    };
    check(
        "gptq_zeros",
        "sym",
        |config| config["quantization_config"]["sym"] = json!(true),
        "has zeros of its own, though sym is true",
    );
    check(
        "gptq",
        "group",
        |config| config["quantization_config"]["group_size"] = json!(128),
        "qzeros: expected shape [1, 8], found [2, 8]",
    );
    check(
        "compressed_int4",
        "all",
        |config| config["quantization_config"]["ignore"] = json!([]),
        "self_attn.q_proj.weight_packed is missing",
    );
    check(
        "compressed_int4",
        "none",
        |config| _ = config.as_object_mut().unwrap().remove("quantization_config"),
        "experts.0.w1.weight is missing",
    );
    check(
        "awq",
        "method",
        |config| config["quantization_config"]["quant_method"] = json!("gptq"),
        "expected shape [8, 64], found [64, 8]",
    );
}

/// A copy of a fixture's folder with one tensor more: two-byte floats.
fn with_tensor(form_name: &str, tensor: &str, values: &[u16]) -> PathBuf {
    let directory = changed(form_name, tensor, |_| {});
    let file = directory.join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let added: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let added = TensorView::new(Dtype::F16, vec![values.len()], &added).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let all = tensors.tensors().into_iter().chain([(tensor.to_string(), added)]);
    std::fs::write(file, safetensors::serialize(all, None).unwrap()).unwrap();
    directory
}

/// Packers of GPTQ gave every layer a bias, which is zero where the model has none; others leave scales of activations in the files.
#[test]
fn tensors_that_change_nothing_may_be_there() {
    let bias = "model.layers.0.self_attn.q_proj.bias";
    for (name, tensor, values, is_taken) in [
        ("gptq", bias, &[0; 64], true),
        ("gptq", bias, &[0x3c00; 64], false),
        ("compressed_int8", bias, &[0; 64], false),
        ("compressed_int8", "model.layers.0.self_attn.q_proj.input_scale", &[0x3c00; 64], true),
        ("gptq", "model.layers.0.self_attn.q_proj.input_scale", &[0x3c00; 64], false),
    ] {
        match load(&with_tensor(name, tensor, values), &options()) {
            Ok(mut loaded) => {
                assert!(is_taken, "{name} {tensor}");
                let (prompt, _) = golden(name);
                let whole = |loaded: &mut Loaded| log_probs(loaded, &prompt, prompt.len());
                assert_eq!(whole(&mut loaded), whole(&mut load(&form(name), &options()).unwrap()), "{name}");
            }
            Err(error) => assert!(!is_taken && error.to_string().contains(tensor), "{name}: {error}"),
        }
    }
}

/// The fp8 fixture with `quantization_config` as given, and its scales under a name and with what `scales` makes of them and of a matrix's
/// rows: their shape and values.
fn small_floats(
    what: &str,
    quantization: &Value,
    name: &str,
    scales: impl Fn(&[f32], usize) -> (Vec<usize>, Vec<f32>),
) -> PathBuf {
    let directory = changed("fp8", what, |config| config["quantization_config"] = quantization.clone());
    let file = directory.join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut all = Vec::new();
    for (tensor, view) in tensors.tensors() {
        let Some(module) = tensor.strip_suffix(".weight_scale_inv") else {
            all.push((tensor, view.dtype(), view.shape().to_vec(), view.data().to_vec()));
            continue;
        };
        let rows = tensors.tensor(&format!("{module}.weight")).unwrap().shape()[0];
        let old: Vec<f32> = view.data().as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
        let (shape, values) = scales(&old, rows);
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        all.push((format!("{module}.{name}"), Dtype::F32, shape, data));
    }
    let view = |(name, dtype, shape, data): &'_ (String, Dtype, Vec<usize>, Vec<u8>)| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), data.clone().leak()).unwrap())
    };
    std::fs::write(file, safetensors::serialize(all.iter().map(view), None).unwrap()).unwrap();
    directory
}

/// compressed-tensors has the same blocks under another name, and scales of rows and of whole matrices, which are blocks as well.
#[test]
fn small_floats_of_compressed_tensors() {
    let compressed = |strategy: &str| {
        json!({"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"],
               "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
                   "num_bits": 8, "type": "float", "strategy": strategy, "block_structure": [128, 128]}}}})
    };
    let blocks =
        |rows: usize| json!({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [rows, 1 << 20]});
    let (prompt, expected) = golden("fp8");
    let run = |directory: PathBuf| {
        let mut loaded = load(&directory, &options()).unwrap();
        assert_eq!(loaded.runner.device().allocated_bytes(), loaded.plan.memory.total);
        log_probs(&mut loaded, &prompt, prompt.len()).pop().unwrap()
    };
    let of_rows = |old: &[f32], rows: usize| {
        ([rows, 1].to_vec(), (0..rows).map(|row| old[0] * (1 + row % 3) as f32).collect::<Vec<_>>())
    };
    let of_all = |shape: &'static [usize]| move |old: &[f32], _: usize| (shape.to_vec(), vec![old[0]]);
    let found = run(small_floats("block", &compressed("block"), "weight_scale", |old, rows| {
        let shape = [rows.div_ceil(128), old.len() / rows.div_ceil(128)];
        (shape.to_vec(), old.to_vec())
    }));
    let pairs = found.iter().zip(expected.last().unwrap());
    let largest = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(largest < TOLERANCE, "blocks: log-probabilities differ by {largest:.1e}");
    let rows = run(small_floats("rows", &compressed("channel"), "weight_scale", of_rows));
    assert_eq!(rows, run(small_floats("of_rows", &blocks(1), "weight_scale_inv", of_rows)));
    let whole = run(small_floats("whole", &compressed("tensor"), "weight_scale", of_all(&[1])));
    assert_eq!(whole, run(small_floats("of_whole", &blocks(1 << 20), "weight_scale_inv", of_all(&[1, 1]))));
    assert_eq!(whole, run(small_floats("number", &compressed("tensor"), "weight_scale", of_all(&[]))));
    assert!(rows != whole && whole != found);
    // Others write the same: scales of activations beside them, the other name, a method of its own for rows.
    let fp8 = json!({"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]});
    assert_eq!(whole, run(small_floats("fp8_whole", &fp8, "weight_scale", of_all(&[]))));
    assert_eq!(whole, run(small_floats("fp8_list", &fp8, "weight_scale", of_all(&[1]))));
    assert_eq!(whole, run(small_floats("fp8_inv", &fp8, "weight_scale_inv", of_all(&[]))));
    let fbgemm = json!({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0});
    assert_eq!(rows, run(small_floats("fbgemm", &fbgemm, "weight_scale", of_rows)));
    let odd = small_floats("fp8_two", &fp8, "weight_scale", |old, _| (vec![2], vec![old[0]; 2]));
    let message = load(&odd, &options()).err().expect("an error").to_string();
    assert!(message.contains("weight_scale: expected shape [1], found [2]"), "{message}");
}

fn quantize(family: &str, quantization: Quantization) -> (PathBuf, Exported) {
    let directory = scratch(&format!("{family}_{quantization:?}"));
    let mut reported = Vec::new();
    let mut report = |read, total| reported.push((read, total));
    let exported = models::quantize(&files(family), quantization, &directory, Some(2), &mut report).unwrap();
    assert!(reported.is_sorted());
    assert!(reported.last().is_some_and(|(read, total)| read == total), "{family}");
    (directory, exported)
}

#[test]
fn what_is_written_loads_as_the_same_weights() {
    let tokens: Vec<u32> = (0..23).map(|i| (i * 37 + 5) % 110).collect();
    for family in
        ["llama31", "qwen2", "qwen3_moe", "mixtral", "moonlight", "deepseek_v3", "kimi_vl", "qwen3_vl_moe"]
    {
        for (quantization, choice) in
            [(Quantization::Int8, QuantizationChoice::Int8), (Quantization::Int4, QuantizationChoice::Int4)]
        {
            let what = format!("{family} {quantization:?}");
            let (directory, exported) = quantize(family, quantization);
            assert!(exported.quantised > 0 && exported.copied > 0, "{what}: {exported:?}");
            let auto = LoadOptions { dtype: DTypeChoice::Auto, ..options() };
            let mut written = load(&directory, &auto).unwrap_or_else(|error| panic!("{what}: {error}"));
            let at_load = LoadOptions { quantization: choice, ..auto.clone() };
            let mut loaded = models::load(&files(family), &at_load, &mut |_| {}).unwrap();
            assert_eq!(written.plan.memory, loaded.plan.memory, "{what}");
            for chunk in [1, tokens.len()] {
                let [a, b] = [&mut written, &mut loaded].map(|model| log_probs(model, &tokens, chunk));
                assert!(a.concat().iter().all(|x| x.is_finite()), "{what}");
                assert_eq!(a, b, "{what} in chunks of {chunk}");
            }
            let float = log_probs(&mut models::load(&files(family), &auto, &mut |_| {}).unwrap(), &tokens, 1);
            assert_ne!(float, log_probs(&mut written, &tokens, 1), "{what}: nothing was rounded");
            // A copy of a copy is refused, and so is a folder that is in use.
            let source = ModelFiles::Directory(directory.clone());
            let again = models::quantize(&source, quantization, &scratch("again"), None, &mut |_, _| {});
            assert!(
                again.unwrap_err().to_string().ends_with("the checkpoint is quantised already"),
                "{what}"
            );
            let used = models::quantize(&files(family), quantization, &directory, None, &mut |_, _| {});
            assert!(used.unwrap_err().to_string().ends_with("the folder is not empty"), "{what}");
        }
    }
}
