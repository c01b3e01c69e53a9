//! Why an adapter is not taken: one variant for each thing that a user can mend, with the file, the key or the tensor concerned.

use crate::{FileError, LoadError};

#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{file} is missing")]
    MissingFile { file: String },
    /// The configuration is not JSON, or a value of it is of the wrong type, out of range or not supported.
    #[error(transparent)]
    Config(LoadError),
    #[error("{file} is not a valid safetensors file: {message}")]
    Corrupt { file: String, message: String },
    #[error("{file}: tensor {tensor}: {message}")]
    Tensor { file: String, tensor: String, message: String },
    #[error("{file} holds no tensors of an adapter")]
    Empty { file: String },
    /// The model was loaded without room for adapters.
    #[error("max_loras: the model was loaded without room for adapters: its max_loras is 0")]
    Off,
    #[error(
        "max_loras: {max_loras} adapters are loaded, and there is no room for another: unload one, or start with a larger max_loras"
    )]
    NoRoom { max_loras: usize },
    /// It was read for a model of other shapes.
    #[error("the adapter was read for another model")]
    OtherModel,
    /// What was to be written.
    #[error("failed to write {path}: {reason}")]
    Write { path: String, reason: std::io::Error },
    /// The device failed while the adapter was copied to it.
    #[error(transparent)]
    Device(#[from] kernels::Error),
}

impl From<LoadError> for AdapterError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::File(error) => Self::File(error),
            LoadError::MissingFile { file } => Self::MissingFile { file },
            LoadError::Corrupt { file, message } => Self::Corrupt { file, message },
            LoadError::Write { path, reason } => Self::Write { path, reason },
            other => Self::Config(other),
        }
    }
}
