//! What is kept under `--data-dir`. A file appears by renaming, whole and synced, or not at all; a log of results may end in a torn line,
//! which is cut off. Names on disk are made of ids that this process made up: nothing that a client sends becomes part of a path.
//!
//! ```text
//!   DIR/lock               held while a server uses the folder
//!   DIR/files/ID.json      a file's record
//!   DIR/files/ID.data      its content, put there last and removed last: one without the other is rubbish of a crash
//!   DIR/batches/ID.json    a batch's record
//!   DIR/batches/ID.output.jsonl, ID.errors.jsonl    results so far; at the end of the batch they become files
//! ```

pub mod files;
pub mod log;
pub mod registry;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Why something cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A limit of the configuration is reached; the message names it.
    #[error("{0}")]
    Full(String),
    #[error("{context}: {source}")]
    Io { context: &'static str, source: io::Error },
}

pub fn io_error(context: &'static str) -> impl Fn(io::Error) -> StoreError {
    move |source| StoreError::Io { context, source }
}

/// A data folder that no other process uses.
#[derive(Debug)]
pub struct DataDir {
    pub files: PathBuf,
    pub batches: PathBuf,
    /// Unlocked by being closed, also when the process is killed.
    _lock: File,
}

impl DataDir {
    pub fn open(root: &Path) -> io::Result<Self> {
        let (files, batches) = (root.join("files"), root.join("batches"));
        std::fs::create_dir_all(&files)?;
        std::fs::create_dir_all(&batches)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(root.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => io::Error::other("another server uses this folder"),
            std::fs::TryLockError::Error(error) => error,
        })?;
        Ok(Self { files, batches, _lock: lock })
    }
}

/// An id that cannot be guessed.
pub fn new_id(prefix: &str) -> String {
    format!("{prefix}{}", uuid::Uuid::new_v4().simple())
}

/// Replaces `path` as a whole; after this returns the new content survives a power cut.
pub fn write_atomic(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.to_owned().into_os_string();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_folder(path)
}

/// Makes the names in the folder of `path` durable.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// Removing what is not there is no failure.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes what a crash left half written: files with this extension.
pub fn sweep(folder: &Path, extension: &str) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// The ids of the records in a folder, from names such as `ID.json`. What does not look like one of our ids is left alone.
pub fn ids_in(folder: &Path, prefix: &str, extension: &str) -> io::Result<Vec<String>> {
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.strip_suffix(extension)) else { continue };
        if id.strip_prefix(prefix).is_some_and(|rest| {
            rest.len() == 32
                && rest.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        }) {
            ids.push(id.to_owned());
        }
    }
    ids.sort();
    Ok(ids)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A folder of one test, gone when it is dropped.
    pub struct Folder(pub PathBuf);

    impl Folder {
        pub fn new(name: &str) -> Self {
            let target = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tmp"));
            let path = target.join(format!("perilune-disk-{}-{name}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir_all(&path).expect("a folder");
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_folder_is_used_by_one() {
        let folder = Folder::new("lock");
        let first = DataDir::open(&folder.0).expect("opens");
        assert!(DataDir::open(&folder.0).unwrap_err().to_string().contains("another server"));
        drop(first);
        DataDir::open(&folder.0).expect("opens again");
    }

    #[test]
    fn only_our_own_names_are_records() {
        let folder = Folder::new("ids");
        let id = new_id("file-");
        let long = format!("{id}0");
        for name in [&id, "file-1", &long, "other", "file-ABCDEFABCDEFABCDEFABCDEFABCDEFAB"] {
            write_atomic(&folder.0.join(format!("{name}.json")), b"{}").expect("writes");
        }
        assert_eq!(ids_in(&folder.0, "file-", ".json").expect("reads"), [id]);
    }
}
