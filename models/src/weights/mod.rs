//! A model's tensors by name: each is taken once with the shape that the model expects, and what is left over is an error.
//! Files are mapped, not read: a tensor's bytes are touched when it is packed for the device, and let go then. Where packed weights are
//! kept on disk they come from there: see `packed`.

mod dummy;
mod experts;
pub(crate) mod export;
pub(crate) mod files;
mod fp8;
mod gguf;
mod grouped;
pub(crate) mod header;
mod host;
mod mxfp4;
mod packed;
mod quantised;
mod tensor;
mod together;
pub(crate) mod write;

pub use export::{Exported, quantize};
pub use host::HostWeights;
pub use packed::{CacheUse, PendingWrite, Written};
pub use tensor::WeightTensor;

use crate::parts::Part;
use crate::storage::Storage;
use crate::{LoadError, ModelFiles, WeightsCache};
use files::{Found, WeightFiles};
use gguf::{GgufRows, GgufWeights};
use kernels::{DType, Device, FileMap, Matrix, Packed, Tensor};
use packed::{SourceFile, Store};
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ops::Range;

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

    /// Of a tensor, if the files have it.
    fn shape_of(&self, name: &str) -> Option<&[usize]> {
        match &self.source {
            Source::Files(files) => files.tensors.get(name).map(|(_, info)| &info.shape[..]),
            Source::Gguf(_) | Source::Dummy { .. } => None,
        }
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

    /// Takes weights from the cache if they are there, or has what is packed collected for it.
    pub fn use_cache(
        &mut self,
        cache: &WeightsCache,
        files: &ModelFiles,
        storage: &Storage,
        device: &Device,
    ) -> Result<(), LoadError> {
        let (Device::Cpu(_), Some(sources)) = (device, self.cache_sources()) else { return Ok(()) };
        self.store = Store::open(cache, files, &sources, storage, device)?;
        Ok(())
    }

    /// What the cache was good for, once all is loaded.
    pub fn into_cache_use(self) -> CacheUse {
        self.store.into_use()
    }

    /// The files that weights come from; `None` where there are none on disk.
    fn cache_sources(&self) -> Option<Vec<SourceFile<'_>>> {
        match &self.source {
            Source::Files(files) => {
                let ranges = |number: usize| {
                    let own = files.tensors.values().filter(move |(file, _)| *file == number);
                    let mut ranges: Vec<_> = own.map(|(_, info)| info.range.clone()).collect();
                    ranges.sort_by_key(|range| range.start);
                    ranges
                };
                let sources = files
                    .files
                    .iter()
                    .enumerate()
                    .map(|(number, (name, content))| SourceFile::new(name, content, ranges(number)));
                sources.collect()
            }
            Source::Gguf(weights) => {
                let parts = weights.parts().into_iter();
                parts.map(|(part, ranges)| SourceFile::new(weights.described(), part, ranges)).collect()
            }
            Source::Dummy { .. } => None,
        }
    }

    /// Whether a tensor is there and has no dimensions.
    pub(crate) fn is_number(&self, name: &str) -> bool {
        matches!(&self.source, Source::Files(files) if files.tensors.get(name).is_some_and(|(_, info)| info.shape.is_empty()))
    }

    /// Whether a tensor is there and holds nothing but zeros.
    pub fn is_zero(&self, name: &str) -> bool {
        match &self.source {
            Source::Files(files) => files.is_zero(name),
            Source::Gguf(_) | Source::Dummy { .. } => false,
        }
    }

    /// How many stored tensors are of layers that only predict more tokens; `is_mtp` knows them by their published names.
    pub fn num_mtp_tensors(&self, is_mtp: impl Fn(&str) -> bool) -> usize {
        match &self.source {
            Source::Files(files) => files.tensors.keys().filter(|name| is_mtp(name)).count(),
            Source::Gguf(weights) => weights.num_mtp_tensors(),
            Source::Dummy { .. } => 0,
        }
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

#[cfg(test)]
mod tests;
