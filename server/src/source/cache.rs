//! The layout of the Hugging Face cache, shared with its own tools:
//!
//! ```text
//! models--org--name/blobs/ETAG                      content, written as ETAG.incomplete and renamed
//!                   snapshots/COMMIT/FILE           → ../../blobs/ETAG
//!                   refs/REVISION                   the commit
//! .locks/models--org--name/ETAG.lock                held while a blob is written
//! ```

use super::error::{SourceError, io_error};
use super::name::{HubName, is_commit, is_safe_file_name};
use std::fs::File;
use std::path::{Path, PathBuf};

pub(super) struct RepositoryCache {
    folder: PathBuf,
    locks: PathBuf,
}

impl RepositoryCache {
    pub fn new(cache: &Path, name: &HubName) -> Self {
        let folder = name.folder();
        Self { locks: cache.join(".locks").join(&folder), folder: cache.join(folder) }
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The commit that a revision stood for when it was fetched; a commit stands for itself.
    pub fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return self.snapshot(revision).is_dir().then(|| revision.to_string());
        }
        read_commit(&self.folder, revision)
    }

    pub fn set_commit(&self, revision: &str, commit: &str) -> Result<(), SourceError> {
        if revision == commit {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        create_parent(&path)?;
        let new = path.with_extension(format!("new{}", std::process::id()));
        std::fs::write(&new, commit).map_err(io_error("write", &new))?;
        std::fs::rename(&new, &path).map_err(io_error("write", &path))
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Makes the snapshot's `file` be the blob.
    pub fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), SourceError> {
        let link = self.snapshot(commit).join(file);
        create_parent(&link)?;
        let new = self.snapshot(commit).join(format!(".{file}.{}", std::process::id()));
        let target = Path::new("../../blobs").join(etag);
        // What an interrupted process of the same number left.
        let _ = std::fs::remove_file(&new);
        std::os::unix::fs::symlink(&target, &new).map_err(io_error("link", &new))?;
        std::fs::rename(&new, &link).map_err(io_error("link", &link))
    }

    /// Waits until no other process writes this blob. Released when dropped, also by a crash.
    pub fn lock(&self, etag: &str) -> Result<File, SourceError> {
        let path = self.locks.join(format!("{etag}.lock"));
        create_parent(&path)?;
        let file = File::options().create(true).append(true).open(&path).map_err(io_error("open", &path))?;
        file.lock().map_err(io_error("lock", &path))?;
        Ok(file)
    }
}

/// The main snapshot of a `models--org--name` folder.
pub(super) fn snapshot_of_folder(folder: &Path) -> Option<PathBuf> {
    folder.file_name()?.to_str()?.strip_prefix("models--")?;
    let commit = read_commit(folder, "main")?;
    Some(folder.join("snapshots").join(commit))
}

fn read_commit(folder: &Path, revision: &str) -> Option<String> {
    let commit = std::fs::read_to_string(folder.join("refs").join(revision)).ok()?;
    let commit = commit.trim();
    // The file is not ours alone, and its content becomes part of a path.
    is_safe_file_name(commit).then(|| commit.to_string())
}

pub(super) fn create_parent(path: &Path) -> Result<(), SourceError> {
    let parent = path.parent().unwrap_or(path);
    std::fs::create_dir_all(parent).map_err(io_error("create", parent))
}
