//! Finding a model: the embedded one, a directory, a GGUF file, a snapshot in the Hugging Face cache, or a repository of the hub, which is fetched into
//! that cache.

mod cache;
mod download;
pub mod embedded;
mod error;
mod gguf;
mod hub;
mod name;
mod progress;
mod settings;

pub use error::SourceError;
pub(crate) use error::io_error;
pub use name::HubName;
pub use settings::HubSettings;

use cache::RepositoryCache;
use hub::{Hub, HubError};
use models::ModelFiles;
use models::gguf::Gguf;
use std::path::{Path, PathBuf};

/// Which files of a repository are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needed {
    All,
    /// For dummy weights and for plans.
    WithoutWeights,
}

#[derive(Debug, Clone)]
pub struct FoundModel {
    pub files: ModelFiles,
    /// What to call it where the user gives no name: the hub's name, the directory's as it was typed, or `perilune-demo`.
    pub name: String,
    /// The commit, where it comes from the hub.
    pub commit: Option<String>,
}

/// Finds `model`, fetching what is not there. Blocks.
pub fn find(model: Option<&str>, needed: Needed, settings: &HubSettings) -> Result<FoundModel, SourceError> {
    let Some(model) = model else { return find_embedded() };
    let path = Path::new(model);
    if path.is_dir() {
        return find_directory(path, model);
    }
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
        // Nobody calls a repository that: where there is no such file, no hub is asked for it.
        return match path.exists() {
            true => find_gguf(path, model),
            false => Err(SourceError::NoSuchFile { path: model.to_string() }),
        };
    }
    if path.exists() {
        return Err(SourceError::NotADirectory { path: model.to_string() });
    }
    let name = HubName::parse(model).ok_or_else(|| SourceError::NotAName { model: model.to_string() })?;
    let (directory, commit) = find_repository(&name, needed, settings)?;
    Ok(FoundModel { files: ModelFiles::Directory(directory), name: name.repository, commit: Some(commit) })
}

fn find_gguf(path: &Path, typed: &str) -> Result<FoundModel, SourceError> {
    let gguf = Gguf::open(path)?;
    let made = gguf::tokenizer_files(&gguf)
        .map_err(|message| SourceError::GgufTokenizer { path: typed.to_string(), message })?;
    Ok(FoundModel { files: ModelFiles::gguf(gguf, made)?, name: typed.to_string(), commit: None })
}

fn find_embedded() -> Result<FoundModel, SourceError> {
    if embedded::FILES.is_empty() {
        return Err(SourceError::NoEmbedded);
    }
    let files = ModelFiles::Embedded(embedded::FILES);
    Ok(FoundModel { files, name: embedded::NAME.to_string(), commit: None })
}

fn find_directory(path: &Path, typed: &str) -> Result<FoundModel, SourceError> {
    // A repository's folder in the cache stands for its main revision.
    let snapshot = cache::snapshot_of_folder(path);
    let directory = snapshot.unwrap_or_else(|| path.to_path_buf());
    if !directory.join("config.json").is_file() {
        return Err(SourceError::NoConfig { path: typed.to_string() });
    }
    Ok(FoundModel { files: ModelFiles::Directory(directory), name: typed.to_string(), commit: None })
}

/// The snapshot's directory and its commit.
fn find_repository(
    name: &HubName,
    needed: Needed,
    settings: &HubSettings,
) -> Result<(PathBuf, String), SourceError> {
    let cache = RepositoryCache::new(&settings.cache, name);
    let cached = cache.commit(&name.revision);
    if settings.offline {
        let commit = cached.ok_or_else(|| SourceError::OfflineAndAbsent {
            name: name.to_string(),
            cache: settings.cache.display().to_string(),
        })?;
        let missing = missing_file(&cache.snapshot(&commit), name, needed)?;
        return match missing {
            None => Ok((cache.snapshot(&commit), commit)),
            Some(file) => Err(SourceError::OfflineAndIncomplete { name: name.to_string(), file }),
        };
    }
    // A commit never changes, so a whole snapshot of it needs no question to the hub.
    if let Some(commit) = cached.as_ref().filter(|commit| **commit == name.revision)
        && missing_file(&cache.snapshot(commit), name, needed)?.is_none()
    {
        return Ok((cache.snapshot(commit), commit.clone()));
    }
    match fetch(name, needed, settings, &cache) {
        Err(SourceError::Hub(error @ HubError::Unreachable { .. })) => {
            let whole =
                |commit: &String| matches!(missing_file(&cache.snapshot(commit), name, needed), Ok(None));
            match cached.filter(whole) {
                Some(commit) => {
                    tracing::warn!(model = %name, %commit, %error, "hub is unreachable, using the cached snapshot");
                    Ok((cache.snapshot(&commit), commit))
                }
                None => Err(error.into()),
            }
        }
        result => result,
    }
}

fn fetch(
    name: &HubName,
    needed: Needed,
    settings: &HubSettings,
    cache: &RepositoryCache,
) -> Result<(PathBuf, String), SourceError> {
    let hub = Hub::new(settings)?;
    let listing = hub.list(name)?;
    let snapshot = cache.snapshot(&listing.commit);
    let has = |file: &str| listing.files.iter().any(|f| f == file);
    if !has("config.json") {
        return Err(SourceError::MissingFile { name: name.to_string(), file: "config.json".to_string() });
    }
    let fetch_one = |file: &str| download::fetch_file(&hub, name, &listing.commit, file, cache);
    for file in SMALL_FILES.into_iter().filter(|file| has(file)) {
        fetch_one(file)?;
    }
    if needed == Needed::All {
        for file in weight_files(&snapshot, name)?.unwrap_or_else(|| vec![SINGLE.to_string()]) {
            if !has(&file) {
                return Err(SourceError::MissingFile { name: name.to_string(), file });
            }
            fetch_one(&file)?;
        }
    }
    // Last, so that a revision is only ever named when its snapshot is whole.
    cache.set_commit(&name.revision, &listing.commit)?;
    Ok((snapshot, listing.commit))
}

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// Everything that is read of a model besides its weights.
const SMALL_FILES: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tiktoken.model",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    INDEX,
];

/// The shards that a snapshot's index names; `None` where it has no index.
fn weight_files(snapshot: &Path, name: &HubName) -> Result<Option<Vec<String>>, SourceError> {
    let path = snapshot.join(INDEX);
    let content = match std::fs::read(&path) {
        Ok(content) => content,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("read", &path)(error)),
    };
    let fail = |message: String| SourceError::Index { name: name.to_string(), message };
    let index: serde_json::Value =
        serde_json::from_slice(&content).map_err(|error| fail(error.to_string()))?;
    let map = index["weight_map"].as_object().ok_or_else(|| fail("it has no weight_map".to_string()))?;
    let mut files = Vec::new();
    for file in map.values() {
        let file = file
            .as_str()
            .ok_or_else(|| fail("weight_map names something that is not a string".to_string()))?;
        if !name::is_safe_file_name(file) || !file.ends_with(".safetensors") {
            return Err(SourceError::UnsafeName {
                name: name.to_string(),
                file: file.chars().take(100).collect(),
            });
        }
        files.push(file.to_string());
    }
    files.sort();
    files.dedup();
    Ok(Some(files))
}

fn missing_file(snapshot: &Path, name: &HubName, needed: Needed) -> Result<Option<String>, SourceError> {
    let mut files = vec!["config.json".to_string()];
    if needed == Needed::All {
        files.extend(weight_files(snapshot, name)?.unwrap_or_else(|| vec![SINGLE.to_string()]));
    }
    Ok(files.into_iter().find(|file| !snapshot.join(file).is_file()))
}
