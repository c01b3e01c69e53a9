//! Why a model could not be loaded: one variant for each thing that a user can mend, with the file and the name concerned.

use crate::bytes::Bytes;
use std::fmt;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{file} is missing")]
    MissingFile { file: String },
    #[error("{file} is not valid JSON: {message}")]
    Json { file: String, message: String },
    /// A value that is absent, of the wrong type, out of range or not supported.
    #[error("{file}: {key}: {message}")]
    Config { file: String, key: String, message: String },
    #[error("{file} is not a valid {} file: {message}", form_of(file))]
    Corrupt { file: String, message: String },
    #[error("{file}: tensor {tensor} is missing")]
    MissingTensor { file: String, tensor: String },
    #[error("{file}: tensor {tensor}: expected shape {expected:?}, found {found:?}")]
    Shape { file: String, tensor: String, expected: Vec<usize>, found: Vec<usize> },
    #[error("{file}: tensor {tensor}: type {found} is not supported, only F32, BF16 and F16 are")]
    DType { file: String, tensor: String, found: String },
    /// A tensor of a quantised matrix that is not what its form promises.
    #[error("{file}: tensor {tensor}: {message}")]
    Quantised { file: String, tensor: String, message: String },
    #[error("{file}: tensor {tensor} is also in {other}")]
    Duplicate { file: String, tensor: String, other: String },
    #[error("{count} tensors belong to no part of the model: {names}")]
    Leftover { count: usize, names: String },
    /// What was to be written. The reason is no `source`: it is in the text, and who prints a chain of causes would say it twice.
    #[error("failed to write {path}: {reason}")]
    Write { path: String, reason: std::io::Error },
    /// An option of the command line, by its name in [`crate::LoadOptions`].
    #[error("{option}: {message}")]
    Option { option: &'static str, message: String },
    /// The first tensor of what cannot be kept in compact bf16.
    #[error(
        "weight_layout: {tensor} has too many exponents that differ from those of its row to be kept in compact form: use auto or plain"
    )]
    NotCompact { tensor: String },
    #[error(transparent)]
    DoesNotFit(Box<DoesNotFit>),
    /// There is that much memory, but not for this process.
    #[error(
        "the system refuses the {} that are planned for: a limit of this process (ulimit -v) or of what is promised (vm.overcommit_memory) is in the way",
        Bytes(*bytes)
    )]
    Refused { bytes: u64 },
    /// The processor's threads cannot be started.
    #[error("{0} (--threads)")]
    Threads(kernels::Error),
    /// The device cannot be used, or failed while the model was loaded.
    #[error("{0} (--device cpu computes on the processor)")]
    Device(#[from] kernels::Error),
}

/// What a file of weights that cannot be read was taken for.
fn form_of(file: &str) -> &'static str {
    if file.to_ascii_lowercase().ends_with(".gguf") { "GGUF" } else { "safetensors" }
}

impl LoadError {
    pub(crate) fn config(file: &str, key: impl Into<String>, message: impl Into<String>) -> Self {
        LoadError::Config { file: file.into(), key: key.into(), message: message.into() }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("failed to read {path}: {reason}")]
pub struct FileError {
    pub path: String,
    pub reason: std::io::Error,
}

/// The limit is below what one sequence needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DoesNotFit {
    pub limit: u64,
    /// For one sequence of `max_model_len` tokens.
    pub needed: u64,
    pub weights: u64,
    /// Tables, buffers, pictures.
    pub workspace: u64,
    pub kv_cache: u64,
    pub max_model_len: usize,
}

impl fmt::Display for DoesNotFit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the model does not fit: one sequence of {} tokens needs {} ({} of weights, {} of workspaces, {} of KV cache), and \
             the limit is {}",
            self.max_model_len,
            Bytes(self.needed),
            Bytes(self.weights),
            Bytes(self.workspace),
            Bytes(self.kv_cache),
            Bytes(self.limit)
        )
    }
}

impl std::error::Error for DoesNotFit {}
