//! One file from the hub into the cache. A break in the middle is resumed, in this process or the next; a file is only ever named when it
//! is whole.

use super::cache::{RepositoryCache, create_parent};
use super::error::{SourceError, io_error};
use super::hub::{FileMeta, Hub, HubError};
use super::name::HubName;
use super::progress::Progress;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Breaks in a row without a byte between them before we give up.
const MAX_FRUITLESS: usize = 5;
const CHUNK: usize = 1 << 20;

/// Fetches `file` unless its blob is there, and links it into the snapshot.
pub(super) fn fetch_file(
    hub: &Hub,
    name: &HubName,
    commit: &str,
    file: &str,
    cache: &RepositoryCache,
) -> Result<(), SourceError> {
    if cache.snapshot(commit).join(file).is_file() {
        return Ok(());
    }
    let meta = hub.meta(name, commit, file)?;
    let blob = cache.blob(&meta.etag);
    let _lock = cache.lock(&meta.etag)?;
    // Somebody else may have written it while we waited.
    if !blob.is_file() {
        let mut partial = Partial::open(&blob, file, &meta)?;
        read_all(hub, name, commit, &mut partial)?;
        partial.finish(&blob)?;
    }
    cache.link(commit, file, &meta.etag)
}

fn read_all(hub: &Hub, name: &HubName, commit: &str, partial: &mut Partial) -> Result<(), SourceError> {
    let mut fruitless = 0;
    let mut progress = Progress::new(&partial.file_name, partial.len, partial.meta.size);
    while !partial.is_whole() {
        let before = partial.len;
        let result = read_some(hub, name, commit, partial, &mut progress);
        let error = match result {
            Ok(()) if partial.is_whole() || partial.meta.size.is_none() => break,
            // The connection ended early without an error of its own.
            Ok(()) => HubError::WrongSize {
                file: partial.file_name.clone(),
                got: partial.len,
                expected: partial.meta.size.unwrap_or_default(),
            },
            Err(SourceError::Hub(error @ HubError::Unreachable { .. })) => error,
            Err(SourceError::Hub(error @ HubError::Status { status: 500.., .. })) => error,
            Err(other) => return Err(other),
        };
        if partial.len > partial.meta.size.unwrap_or(u64::MAX) {
            break;
        }
        fruitless = if partial.len > before { 0 } else { fruitless + 1 };
        if fruitless >= MAX_FRUITLESS {
            return Err(error.into());
        }
        tracing::warn!(file = partial.file_name, at = partial.len, %error, "download broke, resuming");
        std::thread::sleep(hub.retry_pause);
    }
    progress.finish();
    Ok(())
}

/// One connection's worth.
fn read_some(
    hub: &Hub,
    name: &HubName,
    commit: &str,
    partial: &mut Partial,
    progress: &mut Progress,
) -> Result<(), SourceError> {
    let mut reading = hub.read(name, commit, &partial.file_name, partial.len)?;
    if reading.start != partial.len {
        partial.restart()?;
        progress.restart();
    }
    let mut chunk = vec![0; CHUNK];
    loop {
        let len = match reading.body.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => {
                let url = partial.file_name.clone();
                return Err(HubError::Unreachable { url, message: error.to_string() }.into());
            }
        };
        partial.append(&chunk[..len])?;
        progress.advance(len as u64);
        // More than was announced: no need to see the end of it.
        if partial.meta.size.is_some_and(|size| partial.len > size) {
            return Ok(());
        }
    }
}

/// A blob on its way: `ETAG.incomplete`.
struct Partial {
    path: PathBuf,
    file: File,
    file_name: String,
    meta: FileMeta,
    len: u64,
    hash: Sha256,
}

impl Partial {
    /// Goes on where an earlier attempt stopped.
    fn open(blob: &Path, file_name: &str, meta: &FileMeta) -> Result<Self, SourceError> {
        let path = blob.with_file_name(format!("{}.incomplete", meta.etag));
        create_parent(&path)?;
        let options = File::options().create(true).read(true).write(true).truncate(false).open(&path);
        let mut file = options.map_err(io_error("open", &path))?;
        let mut hash = Sha256::new();
        let mut chunk = vec![0; CHUNK];
        let mut len = 0;
        loop {
            match file.read(&mut chunk).map_err(io_error("read", &path))? {
                0 => break,
                n => {
                    hash.update(&chunk[..n]);
                    len += n as u64;
                }
            }
        }
        let mut partial =
            Self { path, file, file_name: file_name.to_string(), meta: meta.clone(), len, hash };
        if partial.meta.size.is_some_and(|size| len > size) {
            partial.restart()?;
        }
        Ok(partial)
    }

    fn is_whole(&self) -> bool {
        self.meta.size == Some(self.len)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), SourceError> {
        self.file.write_all(bytes).map_err(io_error("write", &self.path))?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> Result<(), SourceError> {
        self.file.set_len(0).map_err(io_error("truncate", &self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(io_error("truncate", &self.path))?;
        (self.len, self.hash) = (0, Sha256::new());
        Ok(())
    }

    /// Checks size and hash. What is wrong is thrown away, so that the next attempt begins anew.
    fn finish(self, blob: &Path) -> Result<(), SourceError> {
        let (path, file) = (self.path, self.file_name);
        let hash: String = self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let error = match (self.meta.size, self.meta.sha256()) {
            (Some(expected), _) if expected != self.len => {
                Some(HubError::WrongSize { file, got: self.len, expected })
            }
            (_, Some(expected)) if !expected.eq_ignore_ascii_case(&hash) => {
                Some(HubError::WrongHash { file, expected: expected.to_string() })
            }
            _ => None,
        };
        if let Some(error) = error {
            std::fs::remove_file(&path).map_err(io_error("remove", &path))?;
            return Err(error.into());
        }
        self.file.sync_all().map_err(io_error("write", &path))?;
        std::fs::rename(&path, blob).map_err(io_error("rename", &path))
    }
}
