//! Packed weights on disk: what one start packed the next ones map.
//!
//! ```text
//! fingerprint ─▶ FOLDER/FINGERPRINT.weights ─ there, whole, intact ─▶ mapped: no tensor of the model is read
//!                                           └ else ─▶ packed from the model, collected, written by `PendingWrite`
//! ```
//! A file of this folder is only ever written under another name, synced and renamed, and removed, never changed: who has it mapped
//! keeps what was there. So it may be mapped while a model is served, which a model's own files may not.

mod file;
mod fingerprint;
mod folder;

pub use file::Written;

use super::{Checkpoint, Source};
use crate::storage::Storage;
use crate::{LoadError, ModelFiles, WeightsCache};
use file::{Entry, PackedFile};
use kernels::{Device, Packed, SharedBytes};
use std::cell::RefCell;
use std::path::PathBuf;

/// Where packed weights come from or go to.
pub(super) enum Store {
    /// Nothing is kept.
    Off,
    Read(PackedFile),
    Collect(Collected),
}

pub(super) struct Collected {
    entries: RefCell<Vec<Entry>>,
    target: Target,
    rejected: Option<String>,
}

/// A file that is to be written.
struct Target {
    path: PathBuf,
    /// Of all files in the folder.
    max_bytes: u64,
    fingerprint: String,
    /// The model's files, for people.
    source: String,
}

/// What the cache was good for.
pub enum CacheUse {
    /// No cache: none is configured, or it is not worth its space for this model, or a GPU has the weights.
    None,
    /// Weights came from a file.
    Mapped { path: PathBuf, bytes: u64 },
    /// Weights were packed.
    Packed {
        write: PendingWrite,
        /// What was wrong with the file that was there.
        rejected: Option<String>,
    },
}

/// Packed weights that are in memory and not yet in their file. Writing takes a while and needs nothing but time: it may be done while
/// the model is served.
pub struct PendingWrite {
    entries: Vec<Entry>,
    target: Target,
}

impl PendingWrite {
    /// Writes the file, after making room in its folder.
    pub fn run(self) -> Result<Written, LoadError> {
        let Self { entries, target } = self;
        let failed = |source| LoadError::Write { path: target.path.display().to_string(), source };
        file::write(&target, &entries).map_err(failed)
    }
}

impl Store {
    /// The parts of something packed, if they are there.
    pub fn find<P: Packed>(&self, key: &str, form: &P::Form) -> Option<Vec<SharedBytes>> {
        match self {
            Store::Read(file) => file.find(key, &described(form), &P::part_bytes(form)),
            Store::Off | Store::Collect(_) => None,
        }
    }

    pub fn collect<P: Packed>(&self, key: &str, form: &P::Form, packed: &mut P) {
        if let Store::Collect(collected) = self {
            let mut entries = collected.entries.borrow_mut();
            assert!(entries.iter().all(|entry| entry.key != key), "{key} is packed twice");
            let entry = Entry { key: key.into(), form: described(form), parts: packed.share() };
            entries.push(entry);
        }
    }
}

fn described(form: &impl std::fmt::Debug) -> String {
    format!("{form:?}")
}

impl Checkpoint {
    /// Takes weights from the cache if they are there, or has what is packed collected for it.
    pub fn use_cache(
        &mut self,
        cache: &WeightsCache,
        files: &ModelFiles,
        storage: &Storage,
        device: &Device,
    ) -> Result<(), LoadError> {
        let Device::Cpu(_) = device else { return Ok(()) };
        let Some(sources) = self.cache_sources() else { return Ok(()) };
        let fingerprint = fingerprint::of(files, &sources, storage)?;
        let path = cache.folder.join(format!("{fingerprint}.{}", folder::ENDING));
        let opened = PackedFile::open(&path, &fingerprint, device);
        self.store = match opened {
            Ok(Some(file)) => Store::Read(file),
            not_there => {
                let source = files.describe("").trim_end_matches('/').to_string();
                let target = Target { path, max_bytes: cache.max_bytes, fingerprint, source };
                Store::Collect(Collected { entries: RefCell::default(), target, rejected: not_there.err() })
            }
        };
        Ok(())
    }

    /// The files that weights come from; `None` where there are none on disk.
    fn cache_sources(&self) -> Option<Vec<fingerprint::SourceFile<'_>>> {
        match &self.source {
            Source::Files(files) => {
                let ranges = |number: usize| {
                    let own = files.tensors.values().filter(move |(file, _)| *file == number);
                    let mut ranges: Vec<_> = own.map(|(_, info)| info.range.clone()).collect();
                    ranges.sort_by_key(|range| range.start);
                    ranges
                };
                let sources = files.files.iter().enumerate().map(|(number, (name, content))| {
                    fingerprint::SourceFile::new(name, content, ranges(number))
                });
                sources.collect()
            }
            Source::Gguf(weights) => {
                let parts = weights.parts().into_iter();
                parts
                    .map(|(part, ranges)| fingerprint::SourceFile::new(weights.described(), part, ranges))
                    .collect()
            }
            Source::Dummy { .. } => None,
        }
    }

    /// What the cache was good for, once all is loaded.
    pub fn into_cache_use(self) -> CacheUse {
        match self.store {
            Store::Off => CacheUse::None,
            Store::Read(file) => CacheUse::Mapped { bytes: file.total_bytes(), path: file.into_path() },
            Store::Collect(Collected { entries, target, rejected }) => {
                let write = PendingWrite { entries: entries.into_inner(), target };
                CacheUse::Packed { write, rejected }
            }
        }
    }
}
