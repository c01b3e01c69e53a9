//! Compact bf16 in whole models: the bits and the promises of plain bf16, wherever both are multiplied alike, and what becomes of weights that
//! cannot be kept so.

mod common;

use common::{FAMILIES, emulated, files, fixture, options};
use kernels::{ActivationType, WeightType};
use models::{
    ActivationsChoice, DTypeChoice, LoadError, LoadOptions, Loaded, ModelFiles, QuantizationChoice,
    WeightLayoutChoice,
};
use scheduler::{Batch, BatchItem, BlockId, Sample, SamplingParams, SequenceId};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn load(files: &ModelFiles, options: &LoadOptions) -> Result<Loaded, LoadError> {
    models::load(files, options, &mut |_| {})
}

/// In bf16, of this form.
fn bf16(weight_layout: WeightLayoutChoice) -> LoadOptions {
    LoadOptions { dtype: DTypeChoice::BF16, weight_layout, ..options() }
}

/// The bits of the distributions after the tokens of some sequences of these lengths.
fn bits(loaded: &mut Loaded, lengths: &[usize]) -> Vec<u32> {
    let per_sequence = 300usize.div_ceil(loaded.plan.block_size) as u32;
    let item = |(index, &len): (usize, &usize)| BatchItem {
        prompt_len: len,
        sample: Some(Sample::new(Arc::new(SamplingParams::default()), len, 0)),
        ..BatchItem::new(
            SequenceId(index as u64),
            (0..len).map(|i| ((i * 37 + 11 + index) % 64) as u32).collect(),
            0,
            (0..len.div_ceil(loaded.plan.block_size) as u32)
                .map(|block| BlockId(index as u32 * per_sequence + block))
                .collect(),
        )
    };
    let batch = Batch { items: lengths.iter().enumerate().map(item).collect(), ..Batch::default() };
    loaded.runner.distributions(&batch).concat().iter().map(|value| value.to_bits()).collect()
}

#[test]
fn every_family_has_the_bits_of_plain_weights() {
    use WeightLayoutChoice::{Compact, Plain};
    for &family in FAMILIES {
        for (quantization, activations) in [
            (QuantizationChoice::Auto, ActivationsChoice::F32),
            (QuantizationChoice::Auto, ActivationsChoice::Auto),
            (QuantizationChoice::Int8, ActivationsChoice::Auto),
        ] {
            let what = format!("{family} {quantization:?} {activations:?}");
            let [mut plain, mut compact] = [Plain, Compact].map(|weight_layout| {
                let options = LoadOptions { quantization, activations, ..bf16(weight_layout) };
                let planned = models::plan(&files(family), &options).unwrap();
                let loaded = load(&files(family), &options).unwrap();
                assert_eq!(loaded.plan, planned, "{what}");
                assert_eq!(loaded.runner.device().allocated_bytes(), planned.memory.total, "{what}");
                assert!(loaded.not_compact.is_none(), "{what}");
                loaded
            });
            assert_eq!([plain.info.weight_layout, compact.info.weight_layout], ["plain", "compact"]);
            assert!(compact.plan.memory.weights < plain.plan.memory.weights, "{what}");
            assert_eq!(compact.plan.memory.vision_weights, plain.plan.memory.vision_weights, "{what}");
            let device = compact.runner.device();
            let [of_plain, of_compact] =
                [WeightType::BF16, WeightType::CompactBf16].map(|w| device.activation_type(w));
            if of_plain != of_compact {
                assert_eq!(
                    (activations, of_compact),
                    (ActivationsChoice::Auto, ActivationType::Int16),
                    "{what}"
                );
                // Whoever compares fingerprints sees it.
                assert_ne!(compact.info.activations, plain.info.activations, "{what}");
                continue;
            }
            for lengths in [&[1][..], &[23], &[1, 9, 3, 1, 77]] {
                assert!(
                    bits(&mut compact, lengths) == bits(&mut plain, lengths),
                    "{what}: sequences of {lengths:?}"
                );
            }
        }
    }
}

/// A copy of a fixture of which one matrix has exponents from all over the place.
fn with_scattered_weights(name: &str, tensor: &str) -> PathBuf {
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("compact-{name}"));
    let _ = fs::remove_dir_all(&to);
    fs::create_dir_all(&to).unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    let path = to.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let info = &header[tensor];
    assert_eq!(info["dtype"], "BF16");
    let [start, end] = [0, 1].map(|i| 8 + header_len + info["data_offsets"][i].as_u64().unwrap() as usize);
    for (i, word) in bytes[start..end].as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let exponent = 80 + (i * 31 % 48) as u16;
        *word = (exponent << 7 | (i * 7 % 128) as u16 | ((i % 2) as u16) << 15).to_le_bytes();
    }
    fs::write(&path, bytes).unwrap();
    to
}

#[test]
fn weights_that_cannot_be_compact_stay_plain() {
    let tensor = "model.layers.0.mlp.down_proj.weight";
    let files = ModelFiles::Directory(with_scattered_weights("llama31", tensor));
    let options = |weight_layout| LoadOptions { activations: ActivationsChoice::Auto, ..bf16(weight_layout) };
    let mut plain = load(&files, &options(WeightLayoutChoice::Plain)).unwrap();
    let error = load(&files, &options(WeightLayoutChoice::Compact)).err().expect("it cannot be compact");
    let expected = "weight_layout: model.layers.0.mlp.down_proj has too many exponents that differ from those of its row to be kept in \
                    compact form: use auto or plain";
    assert_eq!(error.to_string(), expected);
    let mut auto = load(&files, &options(WeightLayoutChoice::Auto)).unwrap();
    assert_eq!(auto.plan, plain.plan);
    assert_eq!(auto.runner.device().allocated_bytes(), auto.plan.memory.total);
    assert!(bits(&mut auto, &[5, 70]) == bits(&mut plain, &[5, 70]));
    // Where `auto` would have taken it there is a reason to tell.
    let planned = models::plan(&files, &options(WeightLayoutChoice::Auto)).unwrap();
    let reason = auto.not_compact.map(|reason| reason.to_string());
    assert_eq!(reason, (planned.weight_layout == "compact").then(|| expected.to_string()));
}

#[test]
fn what_cannot_be_compact_is_refused_by_name() {
    let compact = WeightLayoutChoice::Compact;
    let text = |options: &LoadOptions| load(&files("llama31"), options).err().expect("an error").to_string();
    assert_eq!(
        text(&LoadOptions { dtype: DTypeChoice::F32, ..bf16(compact) }),
        "weight_layout: compact is a form of bfloat16, and weights are kept in float32"
    );
    let on_gpu = LoadOptions { dtype: DTypeChoice::BF16, weight_layout: compact, ..emulated() };
    assert_eq!(text(&on_gpu), "weight_layout: a GPU has no compact weights: use auto or plain");
    assert_eq!(models::plan(&files("llama31"), &on_gpu).unwrap_err().to_string(), text(&on_gpu));
}
