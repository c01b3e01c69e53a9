//! Packed weights on disk: the same bits as without, and nothing but what was written is ever served.

mod common;

use common::{FAMILIES, fixture, options};
use models::gguf::Gguf;
use models::{
    CacheUse, DTypeChoice, HeadScreeningChoice, LoadOptions, Loaded, ModelFiles, QuantizationChoice,
    WeightLayoutChoice, WeightsCache, Written,
};
use scheduler::{Batch, BatchItem, BlockId, ImageEncode, ImageRows, Sample, SamplingParams, SequenceId};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const PICTURE: (usize, usize) = (56, 42);

/// An empty folder of this test's own.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("weights-cache-{name}"));
    let _ = fs::remove_dir_all(&folder);
    folder
}

fn cached(folder: &Path) -> LoadOptions {
    let cache = WeightsCache { folder: folder.into(), max_bytes: 1 << 30, min_bytes: 0 };
    LoadOptions { weights_cache: Some(cache), ..options() }
}

fn load(files: &ModelFiles, options: &LoadOptions) -> Loaded {
    models::load(files, options, &mut |_| {}).unwrap_or_else(|error| panic!("{files:?}: {error}"))
}

/// The bits of the distribution after some tokens, with a picture before them where the model sees pictures.
fn bits(loaded: &mut Loaded) -> Vec<u32> {
    let mut tokens: Vec<u32> = (0..23).map(|i| (i * 37 + 11) % 64).collect();
    let mut batch = Batch::default();
    let mut images = Vec::new();
    if let Some(processor) = &loaded.image_processor {
        let (width, height) = PICTURE;
        let pixels: Vec<u8> = (0..width * height * 3).map(|i| (i * 31 % 253) as u8).collect();
        let image = Arc::new(processor.process(&pixels, width, height).expect("a picture").into_rows());
        let rows: Vec<BlockId> = (0..image.num_tokens as u32).map(BlockId).collect();
        let placeholder = loaded.info.image_token_id.expect("the model sees pictures");
        tokens.splice(3..3, vec![placeholder; image.num_tokens]);
        let (len, position_grid) = (image.num_tokens, image.position_grid);
        images.push(ImageRows { first_token: 3, first_row: 0, len, position_grid, rows: rows.clone() });
        batch.encodes.push(ImageEncode { image, rows, ahead: false });
    }
    let blocks = tokens.len().div_ceil(loaded.plan.block_size) as u32;
    batch.items.push(BatchItem {
        prompt_len: tokens.len(),
        images,
        sample: Some(Sample::new(Arc::new(SamplingParams::default()), tokens.len(), 0)),
        ..BatchItem::new(SequenceId(1), tokens, 0, (0..blocks).map(BlockId).collect())
    });
    let distribution = loaded.runner.distributions(&batch).pop().expect("one distribution");
    distribution.iter().map(|value| value.to_bits()).collect()
}

/// Whether weights were packed, why the file that was there was not used, and what was written.
fn pack(loaded: &mut Loaded) -> (Option<String>, Written) {
    match std::mem::replace(&mut loaded.cache_use, CacheUse::None) {
        CacheUse::Packed { write, rejected } => (rejected, write.run().expect("it can be written")),
        CacheUse::Mapped { path, .. } => panic!("{} was mapped", path.display()),
        CacheUse::None => panic!("there was no cache"),
    }
}

fn is_mapped(loaded: &Loaded) -> bool {
    matches!(loaded.cache_use, CacheUse::Mapped { .. })
}

fn check(name: &str, files: &ModelFiles, options: &LoadOptions) {
    let mut without = load(files, &LoadOptions { weights_cache: None, ..options.clone() });
    assert!(matches!(without.cache_use, CacheUse::None));
    let expected = bits(&mut without);
    let mut first = load(files, options);
    let planned = first.plan.weights_cache_bytes;
    assert_eq!(planned, first.plan.memory.weights + first.plan.memory.vision_weights, "{name}");
    assert_eq!(bits(&mut first), expected, "{name}, packed");
    let (rejected, written) = pack(&mut first);
    assert_eq!(rejected, None);
    assert_eq!(written.bytes, fs::metadata(&written.path).unwrap().len(), "{name}");
    assert!(written.bytes >= planned, "{name}: {} of {planned}", written.bytes);
    assert_eq!(bits(&mut first), expected, "{name}, written");
    let mut second = load(files, options);
    assert!(is_mapped(&second), "{name}");
    assert_eq!(second.runner.allocated_bytes(), second.plan.memory.total, "{name}: what is mapped counts");
    // Whoever has it mapped keeps it: the file may go.
    fs::remove_file(&written.path).unwrap();
    assert_eq!(bits(&mut second), expected, "{name}, mapped");
}

#[test]
fn the_same_bits_packed_and_mapped() {
    let folder = folder("bits");
    for name in FAMILIES {
        check(name, &common::files(name), &cached(&folder));
    }
    let int4 = QuantizationChoice::Int4;
    for name in ["kimi_vl", "llama31", "deepseek_v2"] {
        let options = LoadOptions { dtype: DTypeChoice::BF16, quantization: int4, ..cached(&folder) };
        check(name, &common::files(name), &options);
    }
    for name in ["kimi_vl", "llama31", "deepseek_v2", "qwen3_moe"] {
        let weight_layout = WeightLayoutChoice::Compact;
        let options = LoadOptions { dtype: DTypeChoice::BF16, weight_layout, ..cached(&folder) };
        check(name, &common::files(name), &options);
    }
    for name in ["kimi_vl", "llama31", "qwen3_moe"] {
        let head_screening = HeadScreeningChoice::On;
        let options = LoadOptions { dtype: DTypeChoice::BF16, head_screening, ..cached(&folder) };
        check(name, &common::files(name), &options);
    }
    for name in ["awq", "fp8", "compressed_int4_zeros", "gptq_int8"] {
        let directory = ModelFiles::Directory(fixture("quantised").join(name));
        check(name, &directory, &LoadOptions { dtype: DTypeChoice::Auto, ..cached(&folder) });
    }
    for name in ["llama31", "deepseek_v3"] {
        let gguf = Gguf::open(&fixture("gguf").join(format!("{name}.gguf"))).unwrap();
        check(name, &ModelFiles::gguf(gguf, Vec::new()).unwrap(), &cached(&folder));
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "nothing is left behind");
}

#[test]
fn a_file_that_is_not_what_was_written_is_packed_anew() {
    let folder = folder("damage");
    let (files, options) = (common::files("moonlight"), cached(&folder));
    let mut first = load(&files, &options);
    let expected = bits(&mut first);
    let path = pack(&mut first).1.path;
    let good = fs::read(&path).unwrap();
    let changed = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        bytes
    };
    let data_start = good.len() / (2 << 20) * (2 << 20);
    let other = {
        let mut other = load(&common::files("mixtral"), &options);
        fs::read(pack(&mut other).1.path).unwrap()
    };
    let damaged = [
        (Vec::new(), "it is cut short"),
        (good[..30].to_vec(), "it is cut short"),
        (good[..good.len() / 2].to_vec(), "its header is of another length"),
        (good[..good.len() - 1].to_vec(), "its header is of another length"),
        ([&good[..], &[0]].concat(), "its header is of another length"),
        (vec![0; good.len()], "it does not begin as such a file does"),
        (changed(3), "it does not begin as such a file does"),
        (changed(9), "its header is damaged"),
        (changed(14), "it is cut short"),
        (changed(20), "its header is damaged"),
        (changed(60), "its header is damaged"),
        (changed(good.len() - 5), "its data is damaged from byte"),
        (changed(data_start), "its data is damaged from byte"),
        (other, "it was made of other weights"),
    ];
    for (bytes, expected_reason) in damaged {
        fs::write(&path, bytes).unwrap();
        let mut again = load(&files, &options);
        assert_eq!(bits(&mut again), expected, "{expected_reason}");
        let (rejected, written) = pack(&mut again);
        let reason = rejected.unwrap_or_default();
        assert!(reason.contains(expected_reason), "{reason}, not {expected_reason}");
        assert_eq!(written.path, path);
        assert!(fs::read(&path).unwrap() == good, "{expected_reason}: the same file is written again");
        assert!(is_mapped(&load(&files, &options)));
    }
}

/// A copy of a fixture that may be changed.
fn copy_of(name: &str, to: &Path) -> PathBuf {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let from = entry.unwrap().path();
        fs::copy(&from, to.join(from.file_name().unwrap())).unwrap();
    }
    to.join("model.safetensors")
}

#[test]
fn other_sources_and_other_options_are_other_files() {
    let folder = folder("sources");
    let copy = folder.join("model");
    let weights = copy_of("llama31", &copy);
    let (files, options) = (ModelFiles::Directory(copy.clone()), cached(&folder.join("cache")));
    let mut paths = vec![pack(&mut load(&files, &options)).1.path];
    let mut is_new = |options: &LoadOptions, what: &str| {
        let (rejected, written) = pack(&mut load(&files, options));
        assert_eq!(rejected, None, "{what}");
        assert!(!paths.contains(&written.path), "{what}");
        paths.push(written.path);
        assert!(is_mapped(&load(&files, options)), "{what}");
    };
    for quantization in [QuantizationChoice::Int8, QuantizationChoice::Int4] {
        is_new(&LoadOptions { quantization, ..options.clone() }, "another type");
    }
    for weight_layout in [WeightLayoutChoice::Plain, WeightLayoutChoice::Compact] {
        let options = LoadOptions { dtype: DTypeChoice::BF16, weight_layout, ..options.clone() };
        is_new(&options, "another type of floats, and another form");
    }
    // What changes no weight takes the same file.
    let more = LoadOptions { max_num_seqs: 3, threads: Some(1), block_size: 7, ..options.clone() };
    assert!(is_mapped(&load(&files, &more)));

    // Another training: the same names, shapes and times.
    let time = fs::metadata(&weights).unwrap().modified().unwrap();
    let mut bytes = fs::read(&weights).unwrap();
    let data_start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for byte in &mut bytes[data_start..] {
        *byte ^= 1;
    }
    fs::write(&weights, &bytes).unwrap();
    File::options().write(true).open(&weights).unwrap().set_modified(time).unwrap();
    is_new(&options, "other values");
    File::options()
        .write(true)
        .open(&weights)
        .unwrap()
        .set_modified(time - std::time::Duration::from_secs(9))
        .unwrap();
    is_new(&options, "another time");
    let config = copy.join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text + "\n").unwrap();
    is_new(&options, "another configuration");
}

#[test]
fn a_cache_that_cannot_be_written_costs_nothing_else() {
    let folder = folder("refused");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("file"), "not a folder").unwrap();
    let files = common::files("llama31");
    let mut expected = load(&files, &options());
    let mut loaded = load(&files, &cached(&folder.join("file/cache")));
    assert_eq!(bits(&mut loaded), bits(&mut expected));
    match loaded.cache_use {
        CacheUse::Packed { write, .. } => {
            let message = write.run().expect_err("a file is no folder").to_string();
            assert!(message.starts_with("failed to write ") && message.contains("file/cache"), "{message}");
        }
        _ => panic!("nothing can have been mapped"),
    }
}

#[test]
fn models_that_are_not_worth_it_are_not_kept() {
    let folder = folder("small");
    let files = common::files("llama31");
    let options = cached(&folder);
    let planned = models::plan(&files, &options).unwrap();
    let bytes = planned.weights_cache_bytes;
    assert_eq!(bytes, planned.memory.weights);
    let line = planned.to_string().lines().find(|line| line.contains("on disk: weights")).map(str::to_owned);
    assert!(line.as_ref().is_some_and(|line| line.contains(&format!(" {bytes} bytes"))), "{line:?}");
    let of = |min_bytes, max_bytes| {
        let cache = WeightsCache { folder: folder.clone(), min_bytes, max_bytes };
        LoadOptions { weights_cache: Some(cache), ..options.clone() }
    };
    for (min_bytes, max_bytes, is_kept) in
        [(bytes, bytes, true), (bytes + 1, 1 << 30, false), (0, bytes - 1, false)]
    {
        let options = of(min_bytes, max_bytes);
        let planned = models::plan(&files, &options).unwrap();
        assert_eq!(planned.weights_cache_bytes, if is_kept { bytes } else { 0 });
        assert_eq!(planned.to_string().contains("on disk"), is_kept, "{planned}");
        assert_eq!(matches!(load(&files, &options).cache_use, CacheUse::Packed { .. }), is_kept);
    }
    assert!(!folder.exists(), "nothing is written unless it is asked for");
}
