//! What can go wrong while a model is looked for.

use super::hub::HubError;
use models::LoadError;
use std::path::Path;

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("this build has no embedded model; name one")]
    NoEmbedded,
    #[error("{path} is a file and not a .gguf; give the model's directory")]
    NotADirectory { path: String },
    #[error("{path} has no config.json, so it is not a model directory")]
    NoConfig { path: String },
    #[error("there is no file {path}")]
    NoSuchFile { path: String },
    #[error("there is no directory {model}, and it is no hub name such as org/name or org/name@revision")]
    NotAName { model: String },
    #[error("{name} is not in the cache at {cache}, and HF_HUB_OFFLINE is set")]
    OfflineAndAbsent { name: String, cache: String },
    #[error("snapshot of {name} in the cache lacks {file}, and HF_HUB_OFFLINE is set")]
    OfflineAndIncomplete { name: String, file: String },
    #[error("{name} has no {file}")]
    MissingFile { name: String, file: String },
    #[error("{name}: {file} is not a file name that could be used")]
    UnsafeName { name: String, file: String },
    #[error("{name}: failed to parse model.safetensors.index.json: {message}")]
    Index { name: String, message: String },
    #[error("failed to read the tokenizer of {path}: {message}")]
    GgufTokenizer { path: String, message: String },
    #[error(transparent)]
    Gguf(#[from] LoadError),
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error("failed to {what} {path}: {reason}")]
    Io { what: &'static str, path: String, reason: std::io::Error },
}

pub(crate) fn io_error<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> SourceError + 'a {
    move |reason| SourceError::Io { what, path: path.display().to_string(), reason }
}
