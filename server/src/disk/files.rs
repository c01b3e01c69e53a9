//! Files that clients brought or batches made.

use super::registry::{Order, Page, Registry};
use super::{StoreError, ids_in, io_error, new_id, remove, sweep, sync_folder, write_atomic};
use crate::service::unix_time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

/// OpenAI's file object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "File")]
pub struct FileObject {
    pub id: String,
    /// `file`.
    pub object: String,
    pub bytes: u64,
    /// Unix time in seconds.
    pub created_at: u64,
    /// Unix time after which the file is gone.
    pub expires_at: Option<u64>,
    pub filename: String,
    pub purpose: String,
    /// `processed`: nothing is done to a file after it was taken in.
    pub status: String,
    pub status_details: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Record {
    order: u64,
    file: FileObject,
}

#[derive(Debug, Clone, Copy)]
pub struct FileLimits {
    pub file_len_max: u64,
    /// Of all files together.
    pub total_len_max: u64,
    pub num_files_max: usize,
}

impl Default for FileLimits {
    fn default() -> Self {
        Self { file_len_max: 200 << 20, total_len_max: 10 << 30, num_files_max: 10_000 }
    }
}

/// What a file is called and for; all of it is the client's text.
#[derive(Debug, Clone)]
pub struct About {
    pub filename: String,
    pub purpose: String,
    /// Seconds until the file is gone.
    pub expires_after: Option<u64>,
}

#[derive(Debug)]
pub struct Files {
    folder: PathBuf,
    pub limits: FileLimits,
    registry: Mutex<Registry<FileObject>>,
}

const PREFIX: &str = "file-";
/// What a file is called while it comes.
const UPLOAD: &str = "upload";

impl Files {
    pub fn open(folder: PathBuf, limits: FileLimits) -> io::Result<Self> {
        let mut registry = Registry::default();
        for id in ids_in(&folder, PREFIX, ".json")? {
            let record = std::fs::read(folder.join(format!("{id}.json")))?;
            match serde_json::from_slice::<Record>(&record) {
                Ok(record) if record.file.id == id => {
                    if folder.join(format!("{id}.data")).exists() {
                        registry.insert(record.order, id, record.file);
                    } else {
                        remove(&folder.join(format!("{id}.json")))?;
                    }
                }
                _ => tracing::warn!(id, "the record of a file is damaged, the file is left alone"),
            }
        }
        let files = Self { folder, limits, registry: Mutex::new(registry) };
        files.sweep()?;
        Ok(files)
    }

    /// Removes what a crash left: uploads that did not end, and content whose record was removed first.
    fn sweep(&self) -> io::Result<()> {
        sweep(&self.folder, "tmp")?;
        sweep(&self.folder, UPLOAD)?;
        for id in ids_in(&self.folder, PREFIX, ".data")? {
            if !self.record_path(&id).exists() {
                remove(&self.content_path(&id))?;
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Registry<FileObject>> {
        self.registry.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn record_path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }

    fn content_path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.data"))
    }

    pub fn new_id() -> String {
        new_id(PREFIX)
    }

    /// Begins to take a file in.
    pub fn begin(&self) -> Result<Upload, StoreError> {
        self.drop_expired();
        self.check_room(0)?;
        let id = Self::new_id();
        let path = self.folder.join(format!("{id}.{UPLOAD}"));
        let file = File::create(&path).map_err(io_error("failed to create a file"))?;
        Ok(Upload { id, file: Some(file), path, len: 0 })
    }

    /// Whether there is room for `len` more bytes.
    pub fn check_room(&self, len: u64) -> Result<(), StoreError> {
        let registry = self.lock();
        if registry.len() >= self.limits.num_files_max {
            let message = format!("{} files are kept, which is the limit; delete some", registry.len());
            return Err(StoreError::Full(message));
        }
        let total: u64 = registry.iter().map(|(_, file)| file.bytes).sum();
        if total.saturating_add(len) > self.limits.total_len_max {
            let limit = self.limits.total_len_max;
            let message = format!(
                "{total} bytes of files are kept and the limit is {limit} (--max-data-size); delete some"
            );
            return Err(StoreError::Full(message));
        }
        Ok(())
    }

    /// Keeps a file whose content is complete.
    pub fn finish(&self, mut upload: Upload, about: About) -> Result<FileObject, StoreError> {
        self.check_room(upload.len)?;
        let context = "failed to keep a file";
        let file = upload.file.take().expect("an upload is finished once");
        file.sync_all().map_err(io_error(context))?;
        drop(file);
        self.keep(&upload.id, &upload.path, about).map_err(io_error(context))
    }

    /// Makes a file of something that is on disk already, under an id chosen before. Doing it again changes nothing, so that it can be
    /// done again after a crash.
    pub fn adopt(&self, id: &str, path: &Path, about: About) -> io::Result<FileObject> {
        if let Some(file) = self.lock().get(id) {
            return Ok(file.clone());
        }
        self.keep(id, path, about)
    }

    fn keep(&self, id: &str, path: &Path, about: About) -> io::Result<FileObject> {
        let About { filename, purpose, expires_after } = about;
        let created_at = unix_time();
        let file = FileObject {
            id: id.to_owned(),
            object: "file".into(),
            bytes: std::fs::metadata(path)?.len(),
            created_at,
            expires_at: expires_after.map(|seconds| created_at.saturating_add(seconds)),
            filename,
            purpose,
            status: "processed".into(),
            status_details: None,
        };
        let order = self.lock().next_order();
        let record = serde_json::to_vec(&Record { order, file: file.clone() })?;
        write_atomic(&self.record_path(id), &record)?;
        let content = self.content_path(id);
        std::fs::rename(path, &content)?;
        sync_folder(&content)?;
        self.lock().insert(order, id.to_owned(), file.clone());
        Ok(file)
    }

    pub fn get(&self, id: &str) -> Option<FileObject> {
        let file = self.lock().get(id)?.clone();
        (!has_expired(&file)).then_some(file)
    }

    /// Where the content of a file is. Only ids that are in the registry lead to a path.
    pub fn content_of(&self, id: &str) -> Option<PathBuf> {
        self.lock().get(id).map(|_| self.content_path(id))
    }

    /// The content of a file that is there.
    pub fn open_content(&self, id: &str) -> io::Result<Option<(File, FileObject)>> {
        let Some(file) = self.get(id) else { return Ok(None) };
        Ok(Some((File::open(self.content_path(id))?, file)))
    }

    pub fn page(
        &self,
        order: Order,
        after: Option<&str>,
        limit: usize,
        purpose: Option<&str>,
    ) -> Option<Page<FileObject>> {
        let wanted = |file: &FileObject| purpose.is_none_or(|purpose| file.purpose == purpose);
        self.lock()
            .page(order, after, limit, |file| (wanted(file) && !has_expired(file)).then(|| file.clone()))
    }

    /// Says whether the file was there. The record goes first: content without one is swept at the next start.
    pub fn delete(&self, id: &str) -> Result<bool, StoreError> {
        if self.lock().remove(id).is_none() {
            return Ok(false);
        }
        let context = "failed to delete a file";
        remove(&self.record_path(id)).map_err(io_error(context))?;
        remove(&self.content_path(id)).map_err(io_error(context))?;
        Ok(true)
    }

    fn drop_expired(&self) {
        let registry = self.lock();
        let expired: Vec<String> =
            registry.iter().filter(|(_, file)| has_expired(file)).map(|(id, _)| id.to_owned()).collect();
        drop(registry);
        for id in expired {
            if let Err(error) = self.delete(&id) {
                tracing::warn!(id, %error, "failed to delete an expired file");
            }
        }
    }
}

fn has_expired(file: &FileObject) -> bool {
    file.expires_at.is_some_and(|at| at <= unix_time())
}

/// A file that is still coming. Dropping it unfinished removes it.
#[derive(Debug)]
pub struct Upload {
    id: String,
    /// `None` once it is finished.
    file: Option<File>,
    path: PathBuf,
    len: u64,
}

impl Upload {
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let file = self.file.as_mut().expect("an upload is written before it is finished");
        file.write_all(bytes).map_err(io_error("failed to write a file"))?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let _ = remove(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Folder;
    use super::*;
    use std::io::Read;

    fn about(name: &str) -> About {
        About { filename: name.into(), purpose: "batch".into(), expires_after: None }
    }

    fn upload(files: &Files, content: &[u8]) -> Result<FileObject, StoreError> {
        let mut upload = files.begin()?;
        upload.write(content)?;
        files.finish(upload, about("../../name"))
    }

    fn content(files: &Files, id: &str) -> Option<String> {
        let (mut file, _) = files.open_content(id).expect("opens")?;
        let mut text = String::new();
        file.read_to_string(&mut text).expect("reads");
        Some(text)
    }

    #[test]
    fn files_outlive_the_process_and_rubbish_does_not() {
        let folder = Folder::new("files");
        let limits = FileLimits::default();
        let files = Files::open(folder.0.clone(), limits).expect("opens");
        let kept = upload(&files, b"abc").expect("is kept");
        let gone = upload(&files, b"x").expect("is kept");
        assert!(files.delete(&gone.id).expect("deletes"));
        assert!(!files.delete(&gone.id).expect("is gone"));
        drop(files.begin().expect("begins"));
        // As after a crash: an upload that did not end, and content without a record.
        std::fs::write(folder.0.join(format!("{}.{UPLOAD}", Files::new_id())), "torn").expect("writes");
        std::fs::write(folder.0.join(format!("{}.data", Files::new_id())), "lost").expect("writes");
        let files = Files::open(folder.0.clone(), limits).expect("opens again");
        assert_eq!(files.get(&kept.id), Some(kept.clone()));
        assert_eq!(content(&files, &kept.id).as_deref(), Some("abc"));
        assert_eq!(content(&files, &gone.id), None);
        assert_eq!(std::fs::read_dir(&folder.0).expect("reads").count(), 2);
        for id in ["", "..", "../files", "file-", "/etc/passwd", "lock"] {
            assert_eq!(files.get(id), None, "{id}");
        }
    }

    #[test]
    fn limits_and_times() {
        let folder = Folder::new("limits");
        let limits = FileLimits { file_len_max: 10, total_len_max: 10, num_files_max: 2 };
        let files = Files::open(folder.0.clone(), limits).expect("opens");
        let first = upload(&files, b"123456").expect("is kept");
        assert!(matches!(upload(&files, b"12345"), Err(StoreError::Full(_))));
        upload(&files, b"1234").expect("is kept");
        assert!(matches!(upload(&files, b""), Err(StoreError::Full(_))));
        files.delete(&first.id).expect("deletes");
        let upload = files.begin().expect("there is room");
        let about = About { expires_after: Some(0), ..about("short-lived") };
        let expired = files.finish(upload, about).expect("is kept");
        assert_eq!(files.get(&expired.id), None);
        files.begin().expect("what has expired takes no room");
    }

    #[test]
    fn adopting_twice_is_adopting_once() {
        let folder = Folder::new("adopt");
        let files = Files::open(folder.0.clone(), FileLimits::default()).expect("opens");
        let (id, path) = (Files::new_id(), folder.0.join("results"));
        std::fs::write(&path, "r").expect("writes");
        files.adopt(&id, &path, about("r")).expect("adopts");
        // As after a crash between record and content.
        std::fs::rename(folder.0.join(format!("{id}.data")), &path).expect("renames");
        let files = Files::open(folder.0.clone(), FileLimits::default()).expect("opens");
        assert_eq!(files.get(&id), None);
        let first = files.adopt(&id, &path, about("r")).expect("adopts");
        assert_eq!(files.adopt(&id, &path, about("r")).expect("adopts"), first);
        assert_eq!((first.bytes, content(&files, &id).as_deref()), (1, Some("r")));
    }
}
