//! Writes a safetensors file: the header first, from names, types and shapes alone; then the tensors, one after the other, so that
//! none need be in memory with another.

use crate::LoadError;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// A tensor to be written.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub name: String,
    /// As safetensors names it.
    pub type_name: String,
    pub shape: Vec<usize>,
    /// Of its data.
    pub len: usize,
}

pub(crate) struct TensorFile {
    file: BufWriter<File>,
    path: PathBuf,
    left: std::vec::IntoIter<Entry>,
}

impl TensorFile {
    /// `entries` in the order in which their data will come.
    pub fn create(path: &Path, entries: Vec<Entry>) -> Result<Self, LoadError> {
        let mut header = Map::new();
        header.insert("__metadata__".into(), json!({"format": "pt"}));
        let mut start = 0;
        for Entry { name, type_name, shape, len } in &entries {
            let entry = json!({"dtype": type_name, "shape": shape, "data_offsets": [start, start + len]});
            header.insert(name.clone(), entry);
            start += len;
        }
        let mut header = Value::Object(header).to_string();
        // Data begins at a multiple of eight.
        header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
        let failed = |reason| LoadError::Write { path: path.display().to_string(), reason };
        let mut file = BufWriter::new(File::create(path).map_err(failed)?);
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
        file.write_all(header.as_bytes()).map_err(failed)?;
        Ok(Self { file, path: path.into(), left: entries.into_iter() })
    }

    /// The data of the next entry.
    pub fn write(&mut self, name: &str, data: &[u8]) -> Result<(), LoadError> {
        let entry = self.left.next().expect("an entry for each tensor");
        assert_eq!(
            (entry.name.as_str(), entry.len),
            (name, data.len()),
            "tensors come as they were announced"
        );
        self.file.write_all(data).map_err(|reason| self.failed(reason))
    }

    /// After the last entry: on disk, whatever happens next.
    pub fn finish(mut self) -> Result<(), LoadError> {
        assert_eq!(self.left.len(), 0, "tensors are left");
        self.file.flush().map_err(|reason| self.failed(reason))?;
        self.file.get_ref().sync_all().map_err(|reason| self.failed(reason))
    }

    fn failed(&self, reason: std::io::Error) -> LoadError {
        LoadError::Write { path: self.path.display().to_string(), reason }
    }
}
