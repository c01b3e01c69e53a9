//! The files of a model, wherever they are: a directory in the Hugging Face format, or the ones built into the binary.

use std::path::PathBuf;

/// A model's files by name. Never written to.
#[derive(Debug, Clone)]
pub enum ModelFiles {
    Directory(PathBuf),
    /// Name and content of each file.
    Embedded(&'static [(&'static str, &'static [u8])]),
}

#[derive(Debug, thiserror::Error)]
#[error("failed to read {path}: {source}")]
pub struct FileError {
    pub path: String,
    pub source: std::io::Error,
}

impl ModelFiles {
    /// The content of a file, or `None` where the model has no such file.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, FileError> {
        match self {
            ModelFiles::Directory(directory) => {
                let path = directory.join(name);
                match std::fs::read(&path) {
                    Ok(content) => Ok(Some(content)),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    Err(source) => Err(FileError { path: path.display().to_string(), source }),
                }
            }
            ModelFiles::Embedded(files) => {
                Ok(files.iter().find(|(n, _)| *n == name).map(|(_, content)| content.to_vec()))
            }
        }
    }

    /// Where a file is, for messages.
    pub fn describe(&self, name: &str) -> String {
        match self {
            ModelFiles::Directory(directory) => directory.join(name).display().to_string(),
            ModelFiles::Embedded(_) => format!("embedded {name}"),
        }
    }
}
