//! The tensors of a GGUF file under the names of the published checkpoint: rows in their published order, as floats or in the groups
//! that the file has.

use super::host::HostWeights;
use crate::LoadError;
use crate::content::{Content, release_rows};
use crate::files::GgufFiles;
use crate::gguf::{BlockType, Blocks, Gguf, Place, RowOrder, place};
use kernels::{DType, FileMap, GROUP, GroupedRow, WeightRows, WeightType};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

pub(super) struct GgufWeights {
    files: Arc<GgufFiles>,
    /// Tensors of which something was taken.
    used: RefCell<BTreeSet<String>>,
}

/// A matrix `[N, K]` or, with one row, a vector.
pub struct GgufRows<'a> {
    shape: [usize; 2],
    block_type: BlockType,
    blocks: &'a [u8],
    rows: RowOrder,
    head_dim: usize,
    map: Option<&'a FileMap>,
}

impl GgufWeights {
    pub fn new(files: Arc<GgufFiles>) -> Self {
        Self { files, used: RefCell::default() }
    }

    fn gguf(&self) -> &Gguf {
        &self.files.gguf
    }

    /// The file, for messages.
    pub fn described(&self) -> &str {
        self.gguf().described()
    }

    /// Where tensors are in each of its parts.
    pub fn parts(&self) -> Vec<(&Content, Vec<Range<usize>>)> {
        self.gguf().ranges()
    }

    pub fn maps(&self) -> impl Iterator<Item = &FileMap> {
        self.gguf().maps()
    }

    pub fn total_bytes(&self) -> u64 {
        self.gguf().total_bytes()
    }

    /// Names of tensors of which nothing was taken.
    pub fn left(&self) -> Vec<&str> {
        let used = self.used.borrow();
        // A table that became a setting, and layers that only speculate.
        let is_known = |name: &str| name == "rope_freqs.weight" || self.gguf().is_speculating(name);
        self.gguf().tensor_names().filter(|name| !used.contains(*name) && !is_known(name)).collect()
    }

    pub fn num_mtp_tensors(&self) -> usize {
        self.gguf().tensor_names().filter(|name| self.gguf().is_speculating(name)).count()
    }

    /// A tensor of floats or, where it is quantised in the file, of what its blocks stand for.
    pub fn floats(&self, name: &str, shape: &[usize]) -> Result<HostWeights<'_>, LoadError> {
        if let Some(values) = self.latent_halves(name, shape)? {
            return Ok(owned(shape, &values));
        }
        let (n, k) = match *shape {
            [k] => (1, k),
            [n, k] => (n, k),
            _ => unreachable!("the models served have vectors and matrices"),
        };
        let rows = self.find(name, shape, [n, k])?;
        let dtype = match rows.block_type {
            BlockType::F32 => Some(DType::F32),
            BlockType::F16 => Some(DType::F16),
            BlockType::BF16 => Some(DType::BF16),
            _ => None,
        };
        if let (Some(dtype), RowOrder::Same) = (dtype, rows.rows) {
            return Ok(HostWeights {
                dtype,
                shape: shape.to_vec(),
                data: Cow::Borrowed(rows.blocks),
                map: rows.map,
            });
        }
        let mut values = vec![0.0; n * k];
        for (row, out) in values.chunks_exact_mut(k).enumerate() {
            rows.read_f32(row, out);
        }
        // A bias has a value where the matrix has a row.
        if let [len] = *shape {
            values = (0..len).map(|row| values[rows.rows.row(row, rows.head_dim)]).collect();
        }
        Ok(owned(shape, &values))
    }

    /// A matrix in the file's own blocks.
    pub fn rows(&self, name: &str, shape: [usize; 2]) -> Result<GgufRows<'_>, LoadError> {
        self.find(name, &shape, shape)
    }

    fn find(&self, name: &str, asked: &[usize], [n, k]: [usize; 2]) -> Result<GgufRows<'_>, LoadError> {
        let gguf = self.gguf();
        let missing =
            |tensor: &str| LoadError::MissingTensor { file: gguf.described().into(), tensor: tensor.into() };
        let found = place(gguf.architecture(), name).ok_or_else(|| missing(name))?;
        let alone =
            found.of_one_expert().filter(|one| !gguf.has_tensor(&found.tensor) && gguf.has_tensor(one));
        let Place { tensor, rows, expert } = match alone {
            Some(tensor) => Place { tensor, expert: None, ..found },
            None => found,
        };
        let Blocks { info, bytes: blocks, map } = gguf.blocks(&tensor).ok_or_else(|| missing(&tensor))?;
        self.used.borrow_mut().insert(tensor.clone());
        let experts = expert.and(info.shape.first().copied());
        let own: Vec<usize> = experts.into_iter().chain(asked.iter().copied()).collect();
        // A matrix of one row is a vector there.
        let is_same = info.shape == own || (own == [1, k] && info.shape == [k]);
        if !is_same || expert.is_some_and(|expert| experts.is_none_or(|count| expert >= count)) {
            let (expected, found) = (asked.to_vec(), info.shape.clone());
            return Err(LoadError::Shape { file: gguf.described().into(), tensor, expected, found });
        }
        // The configuration was read before: heads have an even number of rows that share out the matrix, or values that share out a bias.
        let head_dim = gguf.head_dim().unwrap_or(asked[0]);
        let bytes = n * info.block_type.row_bytes(k).expect("the head was checked");
        let blocks = &blocks[expert.unwrap_or(0) * bytes..][..bytes];
        Ok(GgufRows { shape: [n, k], block_type: info.block_type, blocks, rows, head_dim, map })
    }

    /// Newer files have the two halves of `kv_b_proj` apart, the keys' turned round.
    fn latent_halves(&self, name: &str, shape: &[usize]) -> Result<Option<Vec<f32>>, LoadError> {
        let gguf = self.gguf();
        let Some(layer) = name.strip_suffix(".self_attn.kv_b_proj.weight") else { return Ok(None) };
        let layer = layer.rsplit('.').next().unwrap_or_default();
        let [key, value] = ["k", "v"].map(|half| format!("blk.{layer}.attn_{half}_b.weight"));
        let (Some([heads, rank, nope]), Some([_, width, _])) = (gguf.shape3(&key), gguf.shape3(&value))
        else {
            return Ok(None);
        };
        if [rank, nope, width].contains(&0)
            || shape != [heads * (nope + width), rank]
            || gguf.shape3(&value) != Some([heads, width, rank])
        {
            let (expected, found) = (shape.to_vec(), vec![heads, rank, nope]);
            return Err(LoadError::Shape { file: gguf.described().into(), tensor: key, expected, found });
        }
        let [keys, values] = [gguf.vector(&key)?, gguf.vector(&value)?];
        let mut both = Vec::with_capacity(keys.len() + values.len());
        for (keys, values) in keys.chunks_exact(rank * nope).zip(values.chunks_exact(width * rank)) {
            both.extend((0..nope).flat_map(|row| (0..rank).map(move |column| keys[column * nope + row])));
            both.extend(values);
        }
        self.used.borrow_mut().extend([key, value]);
        Ok(Some(both))
    }
}

fn owned(shape: &[usize], values: &[f32]) -> HostWeights<'static> {
    let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    HostWeights { dtype: DType::F32, shape: shape.to_vec(), data: Cow::Owned(data), map: None }
}

impl<'a> GgufRows<'a> {
    pub fn blocks(&self) -> &'a [u8] {
        self.blocks
    }

    pub fn map(&self) -> Option<&'a FileMap> {
        self.map
    }

    fn row(&self, row: usize) -> &[u8] {
        let bytes = self.blocks.len() / self.shape[0];
        &self.blocks[self.rows.row(row, self.head_dim) * bytes..][..bytes]
    }
}

impl WeightRows for GgufRows<'_> {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn read_f32(&self, row: usize, out: &mut [f32]) {
        self.block_type.dequantize(self.row(row), out);
    }

    fn read_groups(&self, row: usize, stored_as: WeightType, out: &mut GroupedRow) -> bool {
        const { assert!(GROUP == 32, "groups are ggml's blocks") };
        self.block_type.read_groups(self.row(row), stored_as, out)
    }

    fn done(&self, rows: Range<usize>) {
        if let RowOrder::Same = self.rows {
            release_rows(self.map, self.blocks, self.shape[0], rows);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelFiles;
    use crate::gguf::GgufValue;

    /// A bias of queries is in the order of their rows: pairs side by side in the file, in two halves in the published checkpoint.
    #[test]
    fn biases_change_places_as_rows_do() {
        let numbers: Vec<u8> = (0..8).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let of = |architecture: &str| {
            let metadata = [
                ("general.architecture".to_string(), GgufValue::Text(architecture.into())),
                (format!("{architecture}.attention.key_length"), GgufValue::Int(4)),
            ];
            let tensors = ["blk.0.attn_q.bias", "blk.0.attn_v.bias"].map(|name| (name, vec![8]));
            let gguf = Gguf::in_memory(metadata.into(), numbers.clone().leak(), &tensors);
            let ModelFiles::Gguf(files) = ModelFiles::of_gguf(gguf) else { unreachable!() };
            let weights = GgufWeights::new(files);
            ["q", "v"].map(|part| {
                let name = format!("model.layers.0.self_attn.{part}_proj.bias");
                weights.floats(&name, &[8]).unwrap().to_f32()
            })
        };
        let as_it_is: Vec<f32> = (0..8).map(|i| i as f32).collect();
        let halves = vec![0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0];
        assert_eq!(of("llama"), [halves, as_it_is.clone()]);
        assert_eq!(of("qwen2"), [as_it_is.clone(), as_it_is]);
    }
}
