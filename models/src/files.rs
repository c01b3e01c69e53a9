//! The files of a model, wherever they are: a directory in the Hugging Face format, the ones built into the binary, or what a GGUF file
//! says in their place.

use crate::gguf::Gguf;
use crate::{FileError, LoadError};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

pub(crate) const CONFIG_FILE: &str = "config.json";

/// A model's files by name. Never written to.
#[derive(Debug, Clone)]
pub enum ModelFiles {
    Directory(PathBuf),
    /// Name and content of each file.
    Embedded(&'static [(&'static str, &'static [u8])]),
    Gguf(Arc<GgufFiles>),
}

/// A GGUF file and the files of the Hugging Face format that were made from its metadata.
pub struct GgufFiles {
    pub gguf: Gguf,
    made: Vec<(String, Vec<u8>)>,
}

impl fmt::Debug for GgufFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.gguf.described())
    }
}

impl ModelFiles {
    /// `made`: name and content of files that are not this crate's to read, such as tokenizer.json.
    pub fn gguf(gguf: Gguf, mut made: Vec<(String, Vec<u8>)>) -> Result<Self, LoadError> {
        let config = serde_json::Value::Object(gguf.config_json()?);
        made.push((CONFIG_FILE.to_string(), config.to_string().into_bytes()));
        Ok(ModelFiles::Gguf(Arc::new(GgufFiles { gguf, made })))
    }

    /// Of a file whose metadata are not looked at.
    #[cfg(test)]
    pub(crate) fn of_gguf(gguf: Gguf) -> Self {
        ModelFiles::Gguf(Arc::new(GgufFiles { gguf, made: Vec::new() }))
    }

    /// The content of a file, or `None` where the model has no such file.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, FileError> {
        match self {
            ModelFiles::Directory(directory) => {
                let path = directory.join(name);
                match std::fs::read(&path) {
                    Ok(content) => Ok(Some(content)),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    Err(reason) => Err(FileError { path: path.display().to_string(), reason }),
                }
            }
            ModelFiles::Embedded(files) => {
                Ok(files.iter().find(|(n, _)| *n == name).map(|(_, content)| content.to_vec()))
            }
            ModelFiles::Gguf(files) => {
                Ok(files.made.iter().find(|(n, _)| n == name).map(|(_, content)| content.clone()))
            }
        }
    }

    /// Where a file is, for messages.
    pub fn describe(&self, name: &str) -> String {
        match self {
            ModelFiles::Directory(directory) => directory.join(name).display().to_string(),
            ModelFiles::Embedded(_) => format!("embedded {name}"),
            ModelFiles::Gguf(files) => format!("{} (as {name})", files.gguf.described()),
        }
    }
}
