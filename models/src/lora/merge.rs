//! A checkpoint with an adapter merged into it: `W + scale · B A`, in f32, rounded to the type that W is stored in. A file is written for each
//! file of the source, tensor by tensor; `config.json` comes last, so that half of a checkpoint is none.

use super::adapter::{Adapter, Pair};
use super::error::AdapterError;
use super::spec::{AdapterLimits, AdapterSpec, Target};
use crate::config::{ModelConfig, json};
use crate::files::CONFIG_FILE;
use crate::weights::export::{copy_others, file_name, prepare, write_index, write_json};
use crate::weights::files::{SINGLE_FILE, WeightFiles};
use crate::weights::header::TensorInfo;
use crate::weights::write::{Entry, TensorFile};
use crate::{LoadError, ModelFiles};
use kernels::{DType, HostTensor, WeightRows};
use std::collections::BTreeMap;
use std::path::Path;

/// Any rank that is not a mistake.
const MAX_RANK: usize = 1 << 12;

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Merged {
    /// Matrices that the adapter changed.
    pub changed: usize,
    /// Tensors that were copied.
    pub copied: usize,
    pub bytes_written: u64,
}

/// Writes a copy of a model with the adapter of a folder merged into it, to a folder that is empty or not there yet. The model's weights are
/// floats. `progress` gets the bytes written so far, and all.
pub fn merge(
    files: &ModelFiles,
    adapter: &Path,
    output: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Merged, AdapterError> {
    let config = ModelConfig::read(files)?;
    if config.published.is_some() {
        let message = "an adapter is merged into weights in floats only, and the checkpoint is quantised";
        return Err(LoadError::config(&files.describe(CONFIG_FILE), "quantization_config", message).into());
    }
    let limits = AdapterLimits { max_rank: MAX_RANK, experts: true };
    let spec = AdapterSpec::new(&config.decoder, limits);
    let adapter = Adapter::read(adapter, &spec)?;
    if config.decoder.tied_head && adapter.pairs.contains_key(&(0, Target::Head)) {
        let message = "the adapter changes the output head, which is the embedding of this model as well: merged it would change both";
        return Err(LoadError::config(&files.describe(CONFIG_FILE), "tie_word_embeddings", message).into());
    }
    let weights = WeightFiles::open(files)?;
    let job = Job { adapter: &adapter, targets: targets(&spec, &adapter, &weights)? };
    prepare(output)?;
    let total = weights.tensors.values().map(|(_, info)| info.range.len() as u64).sum();
    let mut merged = Merged::default();
    let mut placed = serde_json::Map::new();
    for (number, (name, content)) in weights.files.iter().enumerate() {
        let own = weights.tensors.values().filter(|(file, _)| *file == number);
        let mut tensors: Vec<&TensorInfo> = own.map(|(_, info)| info).collect();
        tensors.sort_by_key(|info| info.range.start);
        let name = file_name(name);
        let entry = |info: &&TensorInfo| Entry {
            name: info.name.clone(),
            type_name: info.type_name.clone(),
            shape: info.shape.clone(),
            len: info.range.len(),
        };
        let mut file = TensorFile::create(&output.join(&name), tensors.iter().map(entry).collect())?;
        for info in tensors {
            let data = &content[info.range.clone()];
            match job.changed(info, data) {
                Some(changed) => {
                    file.write(&info.name, &changed)?;
                    merged.changed += 1;
                }
                None => {
                    file.write(&info.name, data)?;
                    merged.copied += 1;
                }
            }
            merged.bytes_written += data.len() as u64;
            progress(merged.bytes_written, total);
            placed.insert(info.name.clone(), name.clone().into());
        }
        file.finish()?;
    }
    if weights.files.len() > 1 || file_name(&weights.files[0].0) != SINGLE_FILE {
        write_index(output, merged.bytes_written, placed)?;
    }
    copy_others(files, output)?;
    let object = json::read_object(files, CONFIG_FILE)?.expect("it was read before");
    write_json(&output.join(CONFIG_FILE), &object)?;
    Ok(merged)
}

/// The tensors that the adapter changes, by name.
fn targets(
    spec: &AdapterSpec,
    adapter: &Adapter,
    weights: &WeightFiles,
) -> Result<BTreeMap<String, (usize, Target)>, LoadError> {
    let mut targets = BTreeMap::new();
    for &(layer, target) in adapter.pairs.keys() {
        let module = spec.module(layer, target).expect("the adapter was read for this model");
        let name = format!("{}.weight", spec.path(layer, &module));
        weights.find(&name, &[module.n, module.k])?;
        targets.insert(name, (layer, target));
    }
    Ok(targets)
}

struct Job<'a> {
    adapter: &'a Adapter,
    targets: BTreeMap<String, (usize, Target)>,
}

impl Job<'_> {
    /// A tensor that the adapter changes, as it is stored.
    fn changed(&self, info: &TensorInfo, data: &[u8]) -> Option<Vec<u8>> {
        let pair = &self.adapter.pairs[self.targets.get(&info.name)?];
        let dtype = info.dtype.expect("it was found among floats");
        let weight = HostTensor { dtype, shape: &info.shape, data };
        let mut bytes = Vec::with_capacity(data.len());
        rows(self.adapter, pair, &weight, &mut |row| store(dtype, row, &mut bytes));
        Some(bytes)
    }
}

/// The merged rows, from first to last.
fn rows(adapter: &Adapter, pair: &Pair, weight: &HostTensor, take: &mut dyn FnMut(&[f32])) {
    let [a, b] = adapter.matrices(pair);
    let [n, k] = WeightRows::shape(weight);
    let mut low = vec![0.0; pair.rank * k];
    for (row, out) in low.chunks_exact_mut(k).enumerate() {
        WeightRows::read_f32(&a, row, out);
    }
    let (mut row, mut delta, mut factors) = (vec![0.0; k], vec![0.0f32; k], vec![0.0; pair.rank]);
    for index in 0..n {
        WeightRows::read_f32(weight, index, &mut row);
        WeightRows::read_f32(&b, index, &mut factors);
        delta.fill(0.0);
        for (&factor, low) in factors.iter().zip(low.chunks_exact(k)) {
            delta.iter_mut().zip(low).for_each(|(sum, &value)| *sum += factor * value);
        }
        row.iter_mut().zip(&delta).for_each(|(value, &delta)| *value += pair.scale * delta);
        take(&row);
    }
}

/// To nearest even.
fn store(dtype: DType, row: &[f32], bytes: &mut Vec<u8>) {
    match dtype {
        DType::BF16 => bytes.extend(row.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes())),
        DType::F16 => bytes.extend(row.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes())),
        _ => bytes.extend(row.iter().flat_map(|v| v.to_le_bytes())),
    }
}
