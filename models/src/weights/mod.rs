//! A model's tensors by name: each is taken once with the shape that the model expects, and what is left over is an error.
//! Files are mapped, not read: a tensor's bytes are touched when it is packed for the device.

mod dummy;
mod export;
mod fp8;
mod gguf;
mod grouped;
mod header;
mod quantised;
mod tensor;
mod write;

pub use export::{Exported, quantize};
pub use tensor::WeightTensor;

use crate::storage::{Part, Storage};
use crate::{LoadError, ModelFiles};
use gguf::{GgufRows, GgufWeights};
use header::TensorInfo;
use kernels::{DType, Device, HostTensor, Matrix, Tensor};
use memmap2::Mmap;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::path::Path;

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";
/// Names listed in a message about leftovers.
const MAX_LISTED: usize = 8;

/// All weights of a model: those of its files, or random ones of the right shapes.
pub struct Checkpoint {
    source: Source,
    taken: RefCell<BTreeSet<String>>,
    bytes_taken: Cell<u64>,
}

enum Source {
    Files(WeightFiles),
    Gguf(GgufWeights),
    /// Seeded random numbers; no file is opened.
    Dummy {
        seed: u64,
    },
}

struct WeightFiles {
    /// Where a tensor was looked for, for messages.
    described: String,
    files: Vec<(String, Content)>,
    /// Name to the file's number and the place in it.
    tensors: BTreeMap<String, (usize, TensorInfo)>,
}

/// The bytes of a file.
pub(crate) enum Content {
    Mapped(Mmap),
    Embedded(&'static [u8]),
}

impl Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Content::Mapped(map) => map,
            Content::Embedded(bytes) => bytes,
        }
    }
}

/// One tensor as it is stored, little endian: borrowed from the mapped file, or made up.
#[derive(Debug)]
pub struct HostWeights<'a> {
    dtype: DType,
    shape: Vec<usize>,
    data: Cow<'a, [u8]>,
}

impl HostWeights<'_> {
    pub fn view(&self) -> HostTensor<'_> {
        HostTensor { dtype: self.dtype, shape: &self.shape, data: &self.data }
    }

    /// All values, widened.
    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype {
            DType::F32 => {
                self.data.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
            }
            DType::BF16 => {
                self.data.as_chunks::<2>().0.iter().map(|&b| half::bf16::from_le_bytes(b).to_f32()).collect()
            }
            DType::F16 => {
                self.data.as_chunks::<2>().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f32()).collect()
            }
            other => unreachable!("weights are floats, not {other:?}"),
        }
    }
}

impl Checkpoint {
    /// Maps the files and checks their headers. No tensor is read.
    pub fn open(files: &ModelFiles) -> Result<Self, LoadError> {
        Ok(Self::new(match files {
            ModelFiles::Gguf(files) => Source::Gguf(GgufWeights::new(files.clone())),
            files => Source::Files(WeightFiles::open(files)?),
        }))
    }

    /// Random weights: every tensor exists, in the shape that is asked for.
    pub fn dummy(seed: u64) -> Self {
        Self::new(Source::Dummy { seed })
    }

    fn new(source: Source) -> Self {
        Self { source, taken: RefCell::default(), bytes_taken: Cell::new(0) }
    }

    /// Where weights are random, the seed for a part that makes its own; `bytes` are counted as taken.
    pub fn dummy_seed(&self, name: &str, bytes: u64) -> Option<u64> {
        match &self.source {
            Source::Dummy { seed } => {
                self.bytes_taken.set(self.bytes_taken.get() + bytes);
                Some(dummy::seed(name, *seed))
            }
            Source::Files(_) | Source::Gguf(_) => None,
        }
    }

    /// Bytes of all tensors in the files; unknown for random ones.
    pub fn total_bytes(&self) -> Option<u64> {
        match &self.source {
            Source::Files(files) => Some(files.tensors.values().map(|(_, t)| t.range.len() as u64).sum()),
            Source::Gguf(weights) => Some(weights.total_bytes()),
            Source::Dummy { .. } => None,
        }
    }

    pub fn bytes_taken(&self) -> u64 {
        self.bytes_taken.get()
    }

    /// A tensor that must exist in this shape. Each is taken once.
    pub fn take(&self, name: &str, shape: &[usize]) -> Result<HostWeights<'_>, LoadError> {
        assert!(self.taken.borrow_mut().insert(name.to_string()), "tensor {name} is taken twice");
        let weights = match &self.source {
            Source::Files(files) => files.find(name, shape)?,
            Source::Gguf(weights) => weights.floats(name, shape)?,
            Source::Dummy { seed } => dummy::weights(name, shape, *seed),
        };
        self.bytes_taken.set(self.bytes_taken.get() + weights.data.len() as u64);
        Ok(weights)
    }

    /// A vector that is used in f32: a norm, a bias.
    pub fn vector(&self, device: &Device, name: &str, len: usize) -> Result<Tensor, LoadError> {
        Ok(Tensor::from_f32(device, &[len], &self.take(name, &[len])?.to_f32()))
    }

    /// A tensor of a type that is not floats, as safetensors names it, in this shape. Taken once like any other.
    pub(crate) fn take_as(
        &self,
        name: &str,
        type_name: &str,
        shape: &[usize],
    ) -> Result<Cow<'_, [u8]>, LoadError> {
        assert!(self.taken.borrow_mut().insert(name.to_string()), "tensor {name} is taken twice");
        let Source::Files(files) = &self.source else {
            unreachable!("neither random weights nor GGUF files have parts of such a type")
        };
        let (_, info, data) = files.get(name, shape)?;
        if info.type_name != type_name {
            return Err(self.fail(name, format!("expected type {type_name}, found {}", info.type_name)));
        }
        self.bytes_taken.set(self.bytes_taken.get() + data.len() as u64);
        Ok(Cow::Borrowed(data))
    }

    /// A matrix in the blocks of a GGUF file.
    fn take_blocks(&self, name: &str, shape: [usize; 2]) -> Result<GgufRows<'_>, LoadError> {
        assert!(self.taken.borrow_mut().insert(name.to_string()), "tensor {name} is taken twice");
        let Source::Gguf(weights) = &self.source else { unreachable!("only GGUF files have blocks") };
        let rows = weights.rows(name, shape)?;
        self.bytes_taken.set(self.bytes_taken.get() + rows.bytes());
        Ok(rows)
    }

    /// Whether the files have a tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        matches!(&self.source, Source::Files(files) if files.tensors.contains_key(name))
    }

    /// An error about a tensor's content.
    pub(crate) fn fail(&self, tensor: &str, message: String) -> LoadError {
        let file = match &self.source {
            Source::Files(files) => {
                files.tensors.get(tensor).map_or(&files.described, |(number, _)| &files.files[*number].0)
            }
            Source::Gguf(_) | Source::Dummy { .. } => "",
        };
        LoadError::Quantised { file: file.into(), tensor: tensor.into(), message }
    }

    /// A linear layer from the matrices `[n, k]` of modules, stacked along their rows.
    pub fn matrix(
        &self,
        device: &Device,
        storage: &Storage,
        part: Part,
        modules: &[(&str, usize)],
        k: usize,
    ) -> Result<Matrix, LoadError> {
        let stored_as = storage.of_all(part, modules.iter().map(|(name, _)| *name))?;
        let n = modules.iter().map(|(_, n)| n).sum();
        if let Some(seed) = self.dummy_seed(modules[0].0, Matrix::packed_bytes(stored_as, n, k)) {
            return Ok(Matrix::random(device, stored_as, n, k, dummy::std(k), seed));
        }
        let weight = |(module, n): &(&str, usize)| self.weight(module, storage.scheme(part, module), [*n, k]);
        let weights: Vec<WeightTensor> = modules.iter().map(weight).collect::<Result<_, _>>()?;
        Ok(Matrix::pack(device, stored_as, &weights))
    }

    /// An error when a tensor was never taken and is not one that may be ignored.
    pub fn finish(&self, may_be_ignored: impl Fn(&str) -> bool) -> Result<(), LoadError> {
        let taken = self.taken.borrow();
        let left: Vec<&str> = match &self.source {
            Source::Files(files) => {
                let names = files.tensors.keys().map(String::as_str);
                names.filter(|name| !taken.contains(*name) && !may_be_ignored(name)).collect()
            }
            Source::Gguf(weights) => weights.left(),
            Source::Dummy { .. } => Vec::new(),
        };
        if left.is_empty() {
            return Ok(());
        }
        let mut names = left[..left.len().min(MAX_LISTED)].join(", ");
        if left.len() > MAX_LISTED {
            names.push_str(", …");
        }
        Err(LoadError::Leftover { count: left.len(), names })
    }
}

impl WeightFiles {
    fn open(files: &ModelFiles) -> Result<Self, LoadError> {
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

    /// A tensor of this shape: its file, what the header says, and its bytes.
    fn get(&self, name: &str, shape: &[usize]) -> Result<(&str, &TensorInfo, &[u8]), LoadError> {
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
        Ok((file, info, &content[info.range.clone()]))
    }

    fn find(&self, name: &str, shape: &[usize]) -> Result<HostWeights<'_>, LoadError> {
        let (file, info, data) = self.get(name, shape)?;
        let Some(dtype) = info.dtype else {
            let found = info.type_name.clone();
            return Err(LoadError::DType { file: file.into(), tensor: name.into(), found });
        };
        Ok(HostWeights { dtype, shape: info.shape.clone(), data: Cow::Borrowed(data) })
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

/// The content of a file, or `None` where there is none.
pub(crate) fn map_file(path: &Path) -> Result<Option<Content>, LoadError> {
    let failed = |source| crate::FileError { path: path.display().to_string(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error).into()),
    };
    let metadata = file.metadata().map_err(failed)?;
    // An empty map is an error of its own; the header check says it better.
    if metadata.len() == 0 {
        return Ok(Some(Content::Embedded(&[])));
    }
    // SAFETY: the map is only read, and as bytes, so any content is valid. A model's files are not written while they are
    // loaded: a file that another process shortens meanwhile would stop this one with SIGBUS, as with every mapped file.
    let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
    Ok(Some(Content::Mapped(map)))
}

#[cfg(test)]
mod tests;
