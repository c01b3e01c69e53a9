//! Where the folders lie that requests may name. A request is not to learn what else is on the disk, or to have it read: everything that is not
//! a folder inside gets one answer, whether it is there or not, and links are followed before that is decided.

use crate::error::ApiError;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// The folder is there, and its path is resolved once.
    pub fn open(folder: &Path) -> Result<Self, String> {
        let path = folder.canonicalize().map_err(|error| format!("{}: {error}", folder.display()))?;
        if !path.is_dir() {
            return Err(format!("{} is not a folder", folder.display()));
        }
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The folder that a request names: by its whole path, or from the root on. It may be the root itself.
    pub fn folder(&self, path: &str) -> Result<PathBuf, ApiError> {
        let found = self.0.join(path).canonicalize().ok();
        found.filter(|found| found.starts_with(&self.0) && found.is_dir()).ok_or_else(|| {
            // Controllers look for the first words.
            let message = format!("No adapter found for '{path}': it is not a folder inside --lora-root");
            ApiError::AdapterNotFound { param: "lora_path", message }
        })
    }
}
