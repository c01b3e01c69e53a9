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
pub(in crate::weights) use fingerprint::SourceFile;

use crate::storage::Storage;
use crate::{LoadError, ModelFiles, WeightsCache};
use file::{Entry, PackedFile, Target};
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
        let failed = |reason| LoadError::Write { path: target.path.display().to_string(), reason };
        file::write(&target, &entries).map_err(failed)
    }
}

impl Store {
    /// Of what is packed from these sources: in the cache if it is there, or to be collected for it.
    pub fn open(
        cache: &WeightsCache,
        files: &ModelFiles,
        sources: &[SourceFile],
        storage: &Storage,
        device: &Device,
    ) -> Result<Self, LoadError> {
        let fingerprint = fingerprint::of(files, sources, storage)?;
        let path = cache.folder.join(format!("{fingerprint}.{}", folder::ENDING));
        let opened = PackedFile::open(&path, &fingerprint, device);
        Ok(match opened {
            Ok(Some(file)) => Store::Read(file),
            not_there => {
                let source = files.describe("").trim_end_matches('/').to_string();
                let target = Target { path, max_bytes: cache.max_bytes, fingerprint, source };
                Store::Collect(Collected { entries: RefCell::default(), target, rejected: not_there.err() })
            }
        })
    }

    /// What it was good for, once all is loaded.
    pub fn into_use(self) -> CacheUse {
        match self {
            Store::Off => CacheUse::None,
            Store::Read(file) => CacheUse::Mapped { bytes: file.total_bytes(), path: file.into_path() },
            Store::Collect(Collected { entries, target, rejected }) => {
                let write = PendingWrite { entries: entries.into_inner(), target };
                CacheUse::Packed { write, rejected }
            }
        }
    }

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
