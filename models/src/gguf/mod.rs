//! GGUF files: what a file says of its model becomes the files of the Hugging Face format, and its tensors answer to the published
//! names. So everything above reads one format, with one set of checks.
//!
//! ```text
//! metadata ─▶ config ─▶ config.json            metadata ─▶ (server) ─▶ tokenizer.json, tokenizer_config.json
//! tensors  ─▶ places (names, order of rows) ─▶ blocks ─▶ rows of weights
//! ```

mod blocks;
mod config;
mod experts;
mod groups;
mod keys;
mod metadata;
mod places;

pub use blocks::BlockType;
pub use metadata::Value as GgufValue;
pub(crate) use places::{Place, RowOrder, place};

use crate::LoadError;
use crate::content::{Content, map_file};
use kernels::FileMap;
use metadata::{Head, TensorInfo};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A file, or all the parts of one that was split, mapped.
pub struct Gguf {
    described: String,
    parts: Vec<Content>,
    /// Of the first part.
    metadata: BTreeMap<String, GgufValue>,
    /// With the part that each is in.
    tensors: BTreeMap<String, (usize, TensorInfo)>,
}

/// The blocks of a tensor where they are.
pub(crate) struct Blocks<'a> {
    pub info: &'a TensorInfo,
    pub bytes: &'a [u8],
    pub map: Option<&'a FileMap>,
}

impl Gguf {
    /// Maps `path` and, where it is the first of several parts, the others beside it.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let mut gguf = Self {
            described: path.display().to_string(),
            parts: vec![],
            metadata: BTreeMap::new(),
            tensors: BTreeMap::new(),
        };
        for (number, path) in part_paths(path).into_iter().enumerate() {
            let file = path.display().to_string();
            let content = map_file(&path)?.ok_or_else(|| LoadError::MissingFile { file: file.clone() })?;
            let Head { metadata, tensors } = metadata::parse(&content)
                .map_err(|message| LoadError::Corrupt { file: file.clone(), message })?;
            if number == 0 {
                gguf.metadata = metadata;
            }
            for (name, info) in tensors {
                if gguf.tensors.insert(name.clone(), (number, info)).is_some() {
                    let other = gguf.described.clone();
                    return Err(LoadError::Duplicate { file, tensor: name, other });
                }
            }
            gguf.parts.push(content);
        }
        let expected = gguf.metadata.get("split.count");
        match expected {
            Some(GgufValue::Int(count)) if *count > 1 && *count != gguf.parts.len() as i128 => Err(gguf
                .fail("split.count", format!("{count} parts, of which only one was named: give the first"))),
            _ => Ok(gguf),
        }
    }

    /// A file of f32 tensors that begin at its first byte.
    #[cfg(test)]
    pub(crate) fn in_memory(
        metadata: BTreeMap<String, GgufValue>,
        bytes: &'static [u8],
        tensors: &[(&str, Vec<usize>)],
    ) -> Self {
        let place = |shape: &Vec<usize>| {
            let range = 0..4 * shape.iter().product::<usize>();
            (0, TensorInfo { shape: shape.clone(), block_type: BlockType::F32, range })
        };
        let tensors = tensors.iter().map(|(name, shape)| (name.to_string(), place(shape))).collect();
        Self { described: "in memory".into(), parts: vec![Content::Embedded(bytes)], metadata, tensors }
    }

    /// The file, for messages.
    pub fn described(&self) -> &str {
        &self.described
    }

    pub fn metadata(&self, key: &str) -> Option<&GgufValue> {
        self.metadata.get(key)
    }

    /// An error about a key.
    pub fn fail(&self, key: &str, message: impl Into<String>) -> LoadError {
        LoadError::config(&self.described, key, message)
    }

    /// What config.json would say.
    pub fn config_json(&self) -> Result<Map<String, Value>, LoadError> {
        config::config_json(self)
    }

    pub(crate) fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn tensor_shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|(_, info)| &info.shape[..])
    }

    /// As `general.architecture` says it.
    pub(crate) fn architecture(&self) -> &str {
        match self.metadata("general.architecture") {
            Some(GgufValue::Text(architecture)) => architecture,
            _ => "",
        }
    }

    /// A whole number under the architecture's prefix; of a list, the number that all layers have.
    fn int(&self, key: &str) -> Option<i128> {
        match self.metadata(&format!("{}.{key}", self.architecture()))? {
            GgufValue::Int(n) => Some(*n),
            GgufValue::Ints(list) if list.iter().all(|n| *n == list[0]) => list.first().map(|&n| n.into()),
            _ => None,
        }
    }

    /// Values of a query or key head, where the metadata says it.
    pub(crate) fn head_dim(&self) -> Option<usize> {
        let size = |key: &str| self.int(key).and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
        let share = || size("embedding_length").zip(size("attention.head_count")).map(|(w, heads)| w / heads);
        let rotated =
            || size("rope.dimension_count").filter(|_| !config::may_rotate_part(self.architecture()));
        size("attention.key_length").or_else(rotated).or_else(share)
    }

    pub(crate) fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|(_, info)| info.range.len() as u64).sum()
    }

    pub(crate) fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(crate) fn block_types(&self) -> impl Iterator<Item = (&str, BlockType)> {
        self.tensors.iter().map(|(name, (_, info))| (name.as_str(), info.block_type))
    }

    /// Whether a tensor is of a layer after the last one.
    pub(crate) fn is_speculating(&self, name: &str) -> bool {
        let int = |key: &str| self.int(key).unwrap_or(0);
        let layer = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok());
        layer.is_some_and(|layer: i128| layer >= int("block_count") - int("nextn_predict_layers"))
    }

    /// Of a tensor with three dimensions.
    pub(crate) fn shape3(&self, name: &str) -> Option<[usize; 3]> {
        self.tensor_shape(name)?.try_into().ok()
    }

    /// The blocks of a tensor.
    pub(crate) fn blocks(&self, name: &str) -> Option<Blocks<'_>> {
        let (part, info) = self.tensors.get(name)?;
        let content = &self.parts[*part];
        Some(Blocks { info, bytes: &content[info.range.clone()], map: content.map() })
    }

    /// Where tensors are in each part, in their order there.
    pub(crate) fn ranges(&self) -> Vec<(&Content, Vec<Range<usize>>)> {
        let mut parts: Vec<_> = self.parts.iter().map(|content| (content, Vec::new())).collect();
        for (part, info) in self.tensors.values() {
            parts[*part].1.push(info.range.clone());
        }
        parts.iter_mut().for_each(|(_, ranges)| ranges.sort_by_key(|range| range.start));
        parts
    }

    /// The parts that are mapped.
    pub(crate) fn maps(&self) -> impl Iterator<Item = &FileMap> {
        self.parts.iter().filter_map(Content::map)
    }

    /// All values of a small tensor; none where it is not there.
    pub(crate) fn vector(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        let missing = || LoadError::MissingTensor { file: self.described.clone(), tensor: name.into() };
        let Blocks { info, bytes, .. } = self.blocks(name).ok_or_else(missing)?;
        let mut values = vec![0.0; info.shape.iter().product()];
        info.block_type.dequantize(bytes, &mut values);
        Ok(values)
    }

    /// The type that most weights have.
    pub fn main_type(&self) -> BlockType {
        let mut bytes: Vec<(BlockType, usize)> = Vec::new();
        for (_, info) in self.tensors.values() {
            match bytes.iter_mut().find(|(block_type, _)| *block_type == info.block_type) {
                Some((_, sum)) => *sum += info.range.len(),
                None => bytes.push((info.block_type, info.range.len())),
            }
        }
        bytes.into_iter().max_by_key(|(_, sum)| *sum).map_or(BlockType::F32, |(block_type, _)| block_type)
    }

    /// As config.json names the type of floats: what is not quantised is kept so, the KV cache among it.
    fn main_float(&self) -> &'static str {
        match self.main_type() {
            BlockType::F32 => "float32",
            BlockType::F16 => "float16",
            _ => "bfloat16",
        }
    }
}

/// `name-00001-of-00003.gguf` stands for its three parts; any other name for itself.
fn part_paths(path: &Path) -> Vec<PathBuf> {
    let parts = (|| {
        let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let name = rest.strip_suffix("-00001")?;
        let number: u32 = count.parse().ok().filter(|n| (1..100_000).contains(n) && count.len() == 5)?;
        Some((1..=number).map(|i| path.with_file_name(format!("{name}-{i:05}-of-{count}.gguf"))).collect())
    })();
    parts.unwrap_or_else(|| vec![path.to_path_buf()])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some files have a number for each layer where others have one.
    #[test]
    fn numbers_of_all_layers_are_one_number() {
        let with = |heads: GgufValue| {
            let text = |text: &str| GgufValue::Text(text.into());
            let metadata = [
                ("general.architecture", text("llama")),
                ("llama.embedding_length", GgufValue::Int(48)),
                ("llama.attention.head_count", heads),
            ];
            let metadata = metadata.map(|(key, value)| (key.to_string(), value)).into();
            Gguf { described: String::new(), parts: Vec::new(), metadata, tensors: BTreeMap::new() }
        };
        assert_eq!(with(GgufValue::Int(6)).head_dim(), Some(8));
        assert_eq!(with(GgufValue::Ints(vec![6, 6])).head_dim(), Some(8));
        for unknown in [vec![6, 4], vec![], vec![0]] {
            assert_eq!(with(GgufValue::Ints(unknown)).head_dim(), None);
        }
    }

    #[test]
    fn the_first_part_stands_for_all() {
        let names = |name: &str| -> Vec<String> {
            part_paths(Path::new(name)).iter().map(|path| path.display().to_string()).collect()
        };
        assert_eq!(names("a/m-00001-of-00002.gguf"), ["a/m-00001-of-00002.gguf", "a/m-00002-of-00002.gguf"]);
        for single in ["a/m.gguf", "m-00002-of-00002.gguf", "m-00001-of-2.gguf", "m-00001-of-00000.gguf"] {
            assert_eq!(names(single), [single]);
        }
    }
}
