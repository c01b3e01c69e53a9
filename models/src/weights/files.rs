//! The safetensors files of a model: one, or those of an index. They are mapped and their headers are checked; no tensor is read.

use super::header::{self, TensorInfo};
use super::host::HostWeights;
use crate::content::{Content, map_file};
use crate::{LoadError, ModelFiles};
use kernels::FileMap;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const SINGLE_FILE: &str = "model.safetensors";
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";

pub(crate) struct WeightFiles {
    /// Where a tensor was looked for, for messages.
    pub described: String,
    pub files: Vec<(String, Content)>,
    /// Name to the file's number and the place in it.
    pub tensors: BTreeMap<String, (usize, TensorInfo)>,
}

/// A tensor where it is.
pub(crate) struct Found<'a> {
    pub file: &'a str,
    pub info: &'a TensorInfo,
    pub data: &'a [u8],
    pub map: Option<&'a FileMap>,
}

impl WeightFiles {
    pub fn open(files: &ModelFiles) -> Result<Self, LoadError> {
        if let Some(content) = map(files, SINGLE_FILE)? {
            let mut weights = Self::empty(files.describe(SINGLE_FILE));
            weights.add(files.describe(SINGLE_FILE), content)?;
            return Ok(weights);
        }
        let described = files.describe(INDEX_FILE);
        let Some(index) = crate::config::json::read_object(files, INDEX_FILE)? else {
            return Err(LoadError::MissingFile { file: files.describe(SINGLE_FILE) });
        };
        let mut weights = Self::empty(described.clone());
        let placed = weight_map(&described, &index)?;
        for shard in placed.values().copied().collect::<BTreeSet<_>>() {
            let file = files.describe(shard);
            let content = map(files, shard)?.ok_or_else(|| LoadError::MissingFile { file: file.clone() })?;
            weights.add(file, content)?;
        }
        weights.check_placed(files, &placed)?;
        Ok(weights)
    }

    fn empty(described: String) -> Self {
        Self { described, files: Vec::new(), tensors: BTreeMap::new() }
    }

    fn add(&mut self, file: String, content: Content) -> Result<(), LoadError> {
        let tensors =
            header::parse(&content).map_err(|message| LoadError::Corrupt { file: file.clone(), message })?;
        let number = self.files.len();
        self.files.push((file, content));
        for info in tensors {
            let name = info.name.clone();
            if let Some((other, _)) = self.tensors.insert(name.clone(), (number, info)) {
                let (file, other) = (self.files[number].0.clone(), self.files[other].0.clone());
                return Err(LoadError::Duplicate { file, tensor: name, other });
            }
        }
        Ok(())
    }

    /// Every tensor of the index is in the file that the index names.
    fn check_placed(&self, files: &ModelFiles, placed: &BTreeMap<&str, &str>) -> Result<(), LoadError> {
        for (tensor, shard) in placed {
            let file = files.describe(shard);
            match self.tensors.get(*tensor) {
                Some((number, _)) if self.files[*number].0 == file => {}
                _ => return Err(LoadError::MissingTensor { file, tensor: tensor.to_string() }),
            }
        }
        Ok(())
    }

    /// A tensor of this shape.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Found<'_>, LoadError> {
        let Some((number, info)) = self.tensors.get(name) else {
            return Err(LoadError::MissingTensor { file: self.described.clone(), tensor: name.into() });
        };
        let (file, content) = &self.files[*number];
        if info.shape != shape {
            return Err(LoadError::Shape {
                file: file.clone(),
                tensor: name.into(),
                expected: shape.to_vec(),
                found: info.shape.clone(),
            });
        }
        Ok(Found { file, info, data: &content[info.range.clone()], map: content.map() })
    }

    /// Whether a tensor is there and all its bytes are zero.
    pub fn is_zero(&self, name: &str) -> bool {
        self.tensors.get(name).is_some_and(|(number, info)| {
            let (_, content) = &self.files[*number];
            content[info.range.clone()].iter().all(|byte| *byte == 0)
        })
    }

    pub fn find(&self, name: &str, shape: &[usize]) -> Result<HostWeights<'_>, LoadError> {
        let Found { file, info, data, map } = self.get(name, shape)?;
        let Some(dtype) = info.dtype else {
            let found = info.type_name.clone();
            return Err(LoadError::DType { file: file.into(), tensor: name.into(), found });
        };
        Ok(HostWeights { dtype, shape: info.shape.clone(), data: Cow::Borrowed(data), map })
    }
}

/// Tensor to file, as the index says it.
fn weight_map<'a>(
    file: &str,
    index: &'a Map<String, Value>,
) -> Result<BTreeMap<&'a str, &'a str>, LoadError> {
    let fail = |key: &str, message: &str| LoadError::config(file, key, message);
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| fail("weight_map", "expected an object of tensor names and files"))?;
    let mut placed = BTreeMap::new();
    for (tensor, shard) in map {
        let key = format!("weight_map.{tensor}");
        let shard = shard.as_str().ok_or_else(|| fail(&key, "expected a file name"))?;
        // A name, not a path: an index must not reach outside its own directory.
        if shard.is_empty() || shard.starts_with('.') || shard.contains(['/', '\\', '\0']) {
            return Err(fail(&key, "expected the plain name of a file in the same directory"));
        }
        placed.insert(tensor.as_str(), shard);
    }
    match placed.is_empty() {
        true => Err(fail("weight_map", "is empty")),
        false => Ok(placed),
    }
}

/// The content of a weight file, or `None` where the model has no such file.
fn map(files: &ModelFiles, name: &str) -> Result<Option<Content>, LoadError> {
    let directory = match files {
        ModelFiles::Directory(directory) => directory,
        ModelFiles::Embedded(files) => {
            return Ok(files.iter().find(|(n, _)| *n == name).map(|(_, bytes)| Content::Embedded(bytes)));
        }
        ModelFiles::Gguf(_) => return Ok(None),
    };
    map_file(&directory.join(name))
}
