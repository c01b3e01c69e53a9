//! A checkpoint of floats to one that is quantised, in the form of compressed-tensors, as `pack-quantized` in groups of 32.
//!
//! What is quantised, and how, is what `--quantization` does while a checkpoint of floats is loaded: loading what is written here
//! gives the same weights, bit for bit. What keeps its precision is copied. A file is written for each file of the source, tensor
//! by tensor; `config.json` comes last, so that half of a checkpoint is none.

use super::experts::{ExpertPart, Together, together};
use super::files::{INDEX_FILE, SINGLE_FILE, WeightFiles};
use super::header::TensorInfo;
use super::host::HostWeights;
use super::tensor::WeightTensor;
use super::write::{Entry, TensorFile};
use crate::config::{ExpertNames, ModelConfig, OWN_KEY, json};
use crate::content::Content;
use crate::device::processor;
use crate::files::CONFIG_FILE;
use crate::parts::{Part, Quantization};
use crate::storage::Storage;
use crate::{LoadError, ModelFiles};
use kernels::{Device, GROUP, GroupedRow, WeightRows, WeightType};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Files with these endings are weights in other forms.
const OTHER_WEIGHTS: [&str; 8] = ["safetensors", "bin", "pt", "pth", "gguf", "onnx", "h5", "msgpack"];

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exported {
    /// Matrices that were quantised.
    pub quantised: usize,
    /// Tensors that were copied.
    pub copied: usize,
    pub bytes_read: u64,
    pub bytes_written: u64,
}

/// Writes a quantised copy of a model to a folder that is empty or not there yet. `progress` gets the bytes read so far, and all.
pub fn quantize(
    files: &ModelFiles,
    quantization: Quantization,
    output: &Path,
    threads: Option<usize>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Exported, LoadError> {
    let config = ModelConfig::read(files)?;
    if config.published.is_some() {
        let message = "the checkpoint is quantised already";
        return Err(LoadError::config(&files.describe(CONFIG_FILE), "quantization_config", message));
    }
    if config.decoder.moe.as_ref().is_some_and(|moe| moe.names == ExpertNames::Fused) {
        let message =
            "experts in one tensor are not written in int8 or int4; serve with --quantization instead";
        return Err(LoadError::config(&files.describe(CONFIG_FILE), "architectures", message));
    }
    let weights = WeightFiles::open(files)?;
    let total = weights.tensors.values().map(|(_, info)| info.range.len() as u64).sum();
    prepare(output)?;
    let storage = Storage { quantization, ..Storage::floats(config.dtype) };
    let job = Job { config: &config, weights: &weights, storage, device: &processor(threads)?, output };
    let mut exported = Exported::default();
    let mut placed = Map::new();
    for (number, (name, content)) in weights.files.iter().enumerate() {
        let mut tensors: Vec<&TensorInfo> =
            weights.tensors.values().filter(|(file, _)| *file == number).map(|(_, info)| info).collect();
        tensors.sort_by_key(|info| info.range.start);
        let file = file_name(name);
        let mut report = |read: u64| progress(read, total);
        let names = job.write_file(&output.join(&file), content, &tensors, &mut exported, &mut report)?;
        placed.extend(names.into_iter().map(|name| (name, Value::from(file.clone()))));
    }
    if weights.files.len() > 1 || file_name(&weights.files[0].0) != SINGLE_FILE {
        write_index(output, exported.bytes_written, placed)?;
    }
    copy_others(files, output)?;
    let mut object = json::read_object(files, CONFIG_FILE)?.expect("it was read before");
    object.insert("quantization_config".into(), job.quantization_config());
    let own = serde_json::json!({"quantization": quantization.name().expect("quantised to something")});
    object.insert(OWN_KEY.into(), own);
    write_json(&output.join(CONFIG_FILE), &object)?;
    Ok(exported)
}

/// A name alone, of a path or of an embedded file.
pub(crate) fn file_name(described: &str) -> String {
    described.rsplit(['/', '\\', ' ']).next().unwrap_or(described).to_string()
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> LoadError + '_ {
    |reason| LoadError::Write { path: path.display().to_string(), reason }
}

pub(crate) fn prepare(output: &Path) -> Result<(), LoadError> {
    std::fs::create_dir_all(output).map_err(failed(output))?;
    if std::fs::read_dir(output).map_err(failed(output))?.next().is_some() {
        return Err(failed(output)(std::io::Error::other("the folder is not empty")));
    }
    Ok(())
}

pub(crate) fn write_json(path: &Path, object: &Map<String, Value>) -> Result<(), LoadError> {
    let text = serde_json::to_string_pretty(object).expect("JSON can be written");
    std::fs::write(path, text + "\n").map_err(failed(path))
}

/// Which file has which tensor.
pub(crate) fn write_index(
    output: &Path,
    bytes_written: u64,
    placed: Map<String, Value>,
) -> Result<(), LoadError> {
    let mut index = Map::new();
    let mut metadata = Map::new();
    metadata.insert("total_size".into(), bytes_written.into());
    index.insert("metadata".into(), metadata.into());
    index.insert("weight_map".into(), placed.into());
    write_json(&output.join(INDEX_FILE), &index)
}

/// Tokenizer, templates, processors, licences.
pub(crate) fn copy_others(files: &ModelFiles, output: &Path) -> Result<(), LoadError> {
    let is_other = |name: &str| {
        let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
        !(name.starts_with('.')
            || OTHER_WEIGHTS.contains(&ending)
            || [INDEX_FILE, CONFIG_FILE].contains(&name))
    };
    match files {
        ModelFiles::Embedded(files) => {
            for (name, content) in files.iter().filter(|(name, _)| is_other(name)) {
                std::fs::write(output.join(name), content).map_err(failed(&output.join(name)))?;
            }
        }
        ModelFiles::Directory(directory) => {
            for entry in std::fs::read_dir(directory).map_err(failed(directory))? {
                let from: PathBuf = entry.map_err(failed(directory))?.path();
                let name = from.file_name().and_then(|name| name.to_str()).unwrap_or(".");
                if is_other(name) && from.is_file() {
                    std::fs::copy(&from, output.join(name)).map_err(failed(&from))?;
                }
            }
        }
        ModelFiles::Gguf(_) => unreachable!("refused before anything was written"),
    }
    Ok(())
}

struct Job<'a> {
    config: &'a ModelConfig,
    weights: &'a WeightFiles,
    storage: Storage,
    device: &'a Device,
    output: &'a Path,
}

impl Job<'_> {
    /// The name of a tensor of the decoder within its layer.
    fn within_layer<'n>(&self, name: &'n str) -> Option<&'n str> {
        let decoder = &self.config.decoder;
        let rest = name.strip_prefix(decoder.prefix)?.strip_prefix(decoder.body)?.strip_prefix("layers.")?;
        let (index, within) = rest.split_once('.')?;
        let is_layer = index.parse::<usize>().is_ok_and(|index| index < decoder.num_layers);
        is_layer.then_some(within)
    }

    /// What of a tensor is to be quantised: the weight of a linear layer within a layer of the decoder, or each of the matrices of experts that lie
    /// together. Nothing of what is copied.
    fn targets(&self, info: &TensorInfo) -> Vec<Target> {
        let (Some(within), Some(_)) = (self.within_layer(&info.name), info.dtype) else { return Vec::new() };
        let mut targets = self.experts(info, within);
        if let (Some(module), &[n, k]) = (info.name.strip_suffix(".weight"), &info.shape[..]) {
            let within = within.strip_suffix(".weight").expect("of the same name");
            // Some norms have a row for each head.
            let is_kept =
                [".kv_b_proj", ".gate", ".router", "_norm"].iter().any(|ending| within.ends_with(ending));
            if !is_kept {
                targets.push(Target { module: module.into(), shape: [n, k], expert: None });
            }
        }
        targets.retain(|target| self.storage.of(Part::Linear, &target.module).is_quantised());
        targets
    }

    fn experts(&self, info: &TensorInfo, within: &str) -> Vec<Target> {
        let parts = match within {
            "mlp.experts.gate_up_proj" => &[(ExpertPart::Gate, "gate_proj"), (ExpertPart::Up, "up_proj")][..],
            "mlp.experts.down_proj" => &[(ExpertPart::Down, "down_proj")],
            _ => return Vec::new(),
        };
        let Some(moe) = &self.config.decoder.moe else { return Vec::new() };
        let (module, _) = info.name.rsplit_once('.').expect("a name within a layer");
        let [gate_up, down] = together(module)
            .map(|name| self.weights.tensors.get(&name).map_or(&[][..], |(_, info)| &info.shape[..]));
        let (inner, hidden) = (moe.intermediate_size, self.config.decoder.hidden_size);
        let Some(layout) = Together::of([gate_up, down], [moe.num_experts, inner, hidden]) else {
            return Vec::new();
        };
        let target = |expert: usize, (part, name): (ExpertPart, &str)| Target {
            module: format!("{module}.{expert}.{name}"),
            shape: if part == ExpertPart::Down { [hidden, inner] } else { [inner, hidden] },
            expert: Some((layout, expert, part)),
        };
        let experts = 0..moe.num_experts;
        experts.flat_map(|expert| parts.iter().map(move |&part| target(expert, part))).collect()
    }

    /// Writes the tensors of one file; gives the names of what was written.
    fn write_file(
        &self,
        path: &Path,
        content: &Content,
        tensors: &[&TensorInfo],
        exported: &mut Exported,
        report: &mut dyn FnMut(u64),
    ) -> Result<Vec<String>, LoadError> {
        debug_assert!(path.starts_with(self.output));
        let entries: Vec<Entry> = tensors.iter().flat_map(|info| self.entries(info)).collect();
        exported.bytes_written += entries.iter().map(|entry| entry.len as u64).sum::<u64>();
        let names = entries.iter().map(|entry| entry.name.clone()).collect();
        let mut file = TensorFile::create(path, entries)?;
        for info in tensors {
            let data = &content[info.range.clone()];
            let targets = self.targets(info);
            for target in &targets {
                let module = &target.module;
                let Packed { words, scales } = self.pack(target, info, data);
                let shape: Vec<u8> = target.shape.iter().flat_map(|&n| (n as u64).to_le_bytes()).collect();
                file.write(&format!("{module}.weight_packed"), &words)?;
                file.write(&format!("{module}.weight_scale"), &scales)?;
                file.write(&format!("{module}.weight_shape"), &shape)?;
                exported.quantised += 1;
            }
            if targets.is_empty() {
                file.write(&info.name, data)?;
                exported.copied += 1;
            }
            exported.bytes_read += data.len() as u64;
            report(exported.bytes_read);
        }
        file.finish()?;
        Ok(names)
    }

    /// What is written in place of a tensor.
    fn entries(&self, info: &TensorInfo) -> Vec<Entry> {
        let targets = self.targets(info);
        if targets.is_empty() {
            let (name, type_name) = (info.name.clone(), info.type_name.clone());
            return vec![Entry { name, type_name, shape: info.shape.clone(), len: info.range.len() }];
        }
        let (scale_type, scale_len) = self.scale_type();
        let of = |Target { module, shape: [n, k], .. }: Target| {
            let stored_as = self.storage.of(Part::Linear, &module);
            let (words, groups) = (k.div_ceil(32 / bits(stored_as)), k.div_ceil(GROUP));
            let entry = |part: &str, type_name: &str, shape: Vec<usize>, size: usize| {
                let len = shape.iter().product::<usize>() * size;
                Entry { name: format!("{module}.{part}"), type_name: type_name.into(), shape, len }
            };
            [
                entry("weight_packed", "I32", vec![n, words], 4),
                entry("weight_scale", scale_type, vec![n, groups], scale_len),
                entry("weight_shape", "I64", vec![2], 8),
            ]
        };
        targets.into_iter().flat_map(of).collect()
    }

    /// Scales are numbers of every type of floats: they are written in that of the model, as readers expect.
    fn scale_type(&self) -> (&'static str, usize) {
        match self.config.dtype {
            kernels::DType::BF16 => ("BF16", 2),
            kernels::DType::F16 => ("F16", 2),
            _ => ("F32", 4),
        }
    }

    fn scale_bytes(&self, scale: half::f16) -> Vec<u8> {
        match self.config.dtype {
            kernels::DType::BF16 => half::bf16::from_f32(scale.to_f32()).to_le_bytes().to_vec(),
            kernels::DType::F16 => scale.to_le_bytes().to_vec(),
            _ => scale.to_f32().to_le_bytes().to_vec(),
        }
    }

    /// Rows are shared out to all threads.
    fn pack(&self, target: &Target, info: &TensorInfo, data: &[u8]) -> Packed {
        let stored_as = self.storage.of(Part::Linear, &target.module);
        let dtype = info.dtype.expect("a target is of floats");
        let tensor = HostWeights { dtype, shape: info.shape.clone(), data: Cow::Borrowed(data), map: None };
        let source = match target.expert {
            None => WeightTensor::Floats(tensor),
            Some((layout, expert, part)) => {
                WeightTensor::Slice(layout.slice(&Arc::new(tensor), expert, part))
            }
        };
        let [n, k] = target.shape;
        let per_word = 32 / bits(stored_as);
        let row_words = 4 * k.div_ceil(per_word);
        let row_scales = self.scale_type().1 * k.div_ceil(GROUP);
        let (mut words, mut scales) = (vec![0; n * row_words], vec![0; n * row_scales]);
        let places = words.chunks_mut(row_words).zip(scales.chunks_mut(row_scales));
        let blocks: Vec<Mutex<Vec<_>>> = {
            let mut rows = places.enumerate().peekable();
            let mut blocks = Vec::new();
            while rows.peek().is_some() {
                blocks.push(Mutex::new(rows.by_ref().take(ROWS_PER_TASK).collect::<Vec<_>>()));
            }
            blocks
        };
        self.device.for_each(blocks.len(), &|block, _| {
            let (mut values, mut groups) = (vec![0.0; k], GroupedRow::new(k));
            for (row, (words, scales)) in blocks[block].lock().expect("no task panics").iter_mut() {
                WeightRows::read_f32(&source, *row, &mut values);
                groups.quantize(stored_as, &values);
                let middle = 1i32 << (bits(stored_as) - 1);
                for (word, levels) in words.chunks_exact_mut(4).zip(groups.levels.chunks(per_word)) {
                    let number = levels.iter().rev().fold(0u32, |number, &level| {
                        number << bits(stored_as) | (i32::from(level) + middle).cast_unsigned()
                    });
                    word.copy_from_slice(&number.to_le_bytes());
                }
                for (place, &scale) in scales.chunks_exact_mut(self.scale_type().1).zip(&groups.scales) {
                    place.copy_from_slice(&self.scale_bytes(scale));
                }
            }
        });
        drop(blocks);
        Packed { words, scales }
    }

    fn quantization_config(&self) -> Value {
        let decoder = &self.config.decoder;
        let mut ignore =
            vec![r"re:.*lm_head$", r"re:.*\.kv_b_proj$", r"re:.*\.(mlp|block_sparse_moe)\.gate$"];
        if self.config.vision.is_some() {
            let towers = [r"re:.*vision_tower\..*", r"re:.*multi_modal_projector\..*", r"re:.*visual\..*"];
            ignore.extend(towers);
        }
        let mut ignore: Vec<String> = ignore.into_iter().map(String::from).collect();
        ignore.extend(
            (0..decoder.num_mtp_layers)
                .map(|i| format!(r"re:.*model\.layers\.{}\..*", decoder.num_layers + i)),
        );
        let bits = bits(self.storage.of(Part::Linear, ""));
        serde_json::json!({
            "config_groups": {"group_0": {
                "input_activations": null,
                "output_activations": null,
                "targets": ["Linear"],
                "weights": {
                    "dynamic": false, "group_size": GROUP, "num_bits": bits, "strategy": "group", "symmetric": true,
                    "type": "int"
                }
            }},
            "format": "pack-quantized",
            "ignore": ignore,
            "kv_cache_scheme": null,
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed"
        })
    }
}

/// A matrix that is to be quantised.
struct Target {
    module: String,
    shape: [usize; 2],
    /// Where it lies with others in a tensor.
    expert: Option<(Together, usize, ExpertPart)>,
}

/// A matrix as it is written.
struct Packed {
    words: Vec<u8>,
    scales: Vec<u8>,
}

const ROWS_PER_TASK: usize = 64;

fn bits(stored_as: WeightType) -> usize {
    match stored_as {
        WeightType::Int8 => 8,
        _ => 4,
    }
}
