//! A model's tensors by name: each is taken once with the shape that the model expects, and what is left over is an error.
//! Files are mapped, not read: a tensor's bytes are touched when it is packed for the device, and let go then. Where packed weights are
//! kept on disk they come from there: see `packed`.

mod dummy;
mod export;
mod fp8;
mod gguf;
mod grouped;
mod header;
mod packed;
mod quantised;
mod tensor;
mod write;

pub use export::{Exported, quantize};
pub use packed::{CacheUse, PendingWrite, Written};
pub use tensor::WeightTensor;

use crate::storage::{Part, Storage};
use crate::{LoadError, ModelFiles};
use gguf::{GgufRows, GgufWeights};
use header::TensorInfo;
use kernels::{DType, Device, FileMap, HostTensor, Matrix, Packed, Tensor, WeightRows};
use packed::Store;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, Range};
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
    /// What was taken since the last matrix was packed: bytes of the file of this number.
    touched: RefCell<Vec<(usize, Range<usize>)>>,
    store: Store,
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
    Mapped(FileMap),
    Embedded(&'static [u8]),
}

impl Content {
    /// The map that these bytes are in, if the content is mapped.
    pub(crate) fn map(&self) -> Option<&FileMap> {
        match self {
            Content::Mapped(map) => Some(map),
            Content::Embedded(_) => None,
        }
    }
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
    /// Where the data is, if that is a map.
    map: Option<&'a FileMap>,
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

/// A matrix, or a vector as a matrix of one row.
impl WeightRows for HostWeights<'_> {
    fn shape(&self) -> [usize; 2] {
        self.view().shape()
    }

    fn read_f32(&self, row: usize, out: &mut [f32]) {
        WeightRows::read_f32(&self.view(), row, out);
    }

    fn done(&self, rows: Range<usize>) {
        release_rows(self.map, &self.data, self.shape[0], rows);
    }
}

/// Bytes of a file that are let go by one call.
const RELEASED: usize = 1 << 20;

/// Lets rows of a matrix of `num_rows` go that are not read again, some at a time.
fn release_rows(map: Option<&FileMap>, data: &[u8], num_rows: usize, rows: Range<usize>) {
    let (Some(map), row) = (map, data.len() / num_rows) else { return };
    let (start, end) = (rows.start * row, rows.end * row);
    if end == data.len() || start / RELEASED != end / RELEASED {
        map.release(&data[start / RELEASED * RELEASED..end]);
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
        let (taken, bytes_taken, touched) = Default::default();
        Self { source, taken, bytes_taken, touched, store: Store::Off }
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

    pub(crate) fn is_dummy(&self) -> bool {
        matches!(self.source, Source::Dummy { .. })
    }

    /// Bytes of all that is to be taken; unknown for random weights.
    pub fn total_bytes(&self) -> Option<u64> {
        if let Store::Read(file) = &self.store {
            return Some(file.total_bytes());
        }
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
        self.count(weights.map, &weights.data);
        Ok(weights)
    }

    /// Bytes that were taken: the system may fetch them while others are packed.
    fn count(&self, map: Option<&FileMap>, data: &[u8]) {
        self.bytes_taken.set(self.bytes_taken.get() + data.len() as u64);
        if let Some(map) = map {
            map.will_need(data);
            let start = data.as_ptr() as usize - map.as_ptr() as usize;
            let number =
                self.maps().position(|other| std::ptr::eq(other, map)).expect("a map of this source");
            self.touched.borrow_mut().push((number, start..start + data.len()));
        }
    }

    /// The files that are mapped.
    fn maps(&self) -> Box<dyn Iterator<Item = &FileMap> + '_> {
        match &self.source {
            Source::Files(files) => Box::new(files.files.iter().filter_map(|(_, content)| content.map())),
            Source::Gguf(weights) => Box::new(weights.maps()),
            Source::Dummy { .. } => Box::new(std::iter::empty()),
        }
    }

    /// Lets go what was taken: it is packed.
    fn release(&self) {
        let touched = self.touched.take();
        if touched.is_empty() {
            return;
        }
        let maps: Vec<&FileMap> = self.maps().collect();
        for (number, range) in touched {
            maps[number].release(&maps[number][range]);
        }
    }

    /// Something packed: from the cache, or of what `make` takes. `key` is the name of the first tensor that it is made of; `form` is
    /// what it will be.
    pub fn kept<P: Packed>(
        &self,
        device: &Device,
        key: &str,
        form: P::Form,
        make: impl FnOnce() -> Result<P, LoadError>,
    ) -> Result<P, LoadError> {
        if let Some(parts) = self.store.find::<P>(key, &form) {
            let bytes: usize = parts.iter().map(|part| part.len()).sum();
            self.bytes_taken.set(self.bytes_taken.get() + bytes as u64);
            return Ok(P::from_parts(device, &form, parts));
        }
        let mut made = make()?;
        self.release();
        if !made.is(&form) {
            return Err(LoadError::NotCompact { tensor: key.into() });
        }
        self.store.collect(key, &form, &mut made);
        Ok(made)
    }

    /// A vector that is used in f32: a norm, a bias.
    pub fn vector(&self, device: &Device, name: &str, len: usize) -> Result<Tensor, LoadError> {
        self.kept(device, name, (DType::F32, vec![len]), || {
            Ok(Tensor::from_f32(device, &[len], &self.take(name, &[len])?.to_f32()))
        })
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
        let Found { info, data, map, .. } = files.get(name, shape)?;
        if info.type_name != type_name {
            return Err(self.fail(name, format!("expected type {type_name}, found {}", info.type_name)));
        }
        self.count(map, data);
        Ok(Cow::Borrowed(data))
    }

    /// A matrix in the blocks of a GGUF file.
    fn take_blocks(&self, name: &str, shape: [usize; 2]) -> Result<GgufRows<'_>, LoadError> {
        assert!(self.taken.borrow_mut().insert(name.to_string()), "tensor {name} is taken twice");
        let Source::Gguf(weights) = &self.source else { unreachable!("only GGUF files have blocks") };
        let rows = weights.rows(name, shape)?;
        self.count(rows.map(), rows.blocks());
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
        self.kept(device, modules[0].0, (stored_as, [n, k]), || {
            let weights: Vec<WeightTensor> = modules.iter().map(weight).collect::<Result<_, _>>()?;
            Ok(Matrix::pack(device, stored_as, &weights))
        })
    }

    /// An error when a tensor was never taken and is not one that may be ignored.
    pub fn finish(&self, may_be_ignored: impl Fn(&str) -> bool) -> Result<(), LoadError> {
        // What is in the cache was written after all of the same files had been taken.
        if let Store::Read(_) = &self.store {
            return Ok(());
        }
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

/// A tensor where it is.
struct Found<'a> {
    file: &'a str,
    info: &'a TensorInfo,
    data: &'a [u8],
    map: Option<&'a FileMap>,
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

    /// A tensor of this shape.
    fn get(&self, name: &str, shape: &[usize]) -> Result<Found<'_>, LoadError> {
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

    fn find(&self, name: &str, shape: &[usize]) -> Result<HostWeights<'_>, LoadError> {
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

/// The content of a file, or `None` where there is none.
pub(crate) fn map_file(path: &Path) -> Result<Option<Content>, LoadError> {
    let failed = |source| crate::FileError { path: path.display().to_string(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error).into()),
    };
    Ok(Some(Content::Mapped(FileMap::new(file).map_err(failed)?)))
}

#[cfg(test)]
mod tests;
