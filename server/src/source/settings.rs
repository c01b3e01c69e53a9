//! What the environment says of the hub and of its cache, under the names that Hugging Face's own tools read.

use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Clone)]
pub struct HubSettings {
    /// Where repositories are kept: `models--org--name` each.
    pub cache: PathBuf,
    /// Without a slash at its end.
    pub endpoint: String,
    /// Shown to the endpoint's host only.
    pub token: Option<String>,
    /// Nothing is asked of the network.
    pub offline: bool,
    /// Before a broken download is tried again.
    pub retry_pause: Duration,
}

impl std::fmt::Debug for HubSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cache, endpoint, token, offline, retry_pause } = self;
        f.debug_struct("HubSettings")
            .field("cache", cache)
            .field("endpoint", endpoint)
            .field("token", &token.as_ref().map(|_| "[redacted]"))
            .field("offline", offline)
            .field("retry_pause", retry_pause)
            .finish()
    }
}

impl HubSettings {
    /// HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN (or the token file of `hf auth login`), HF_HUB_OFFLINE.
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let variable = |name: &str| variable(name).map(|v| v.trim().to_string()).filter(|v| !v.is_empty());
        let home = variable("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
            let user_cache = variable("XDG_CACHE_HOME").map(PathBuf::from);
            let fallback =
                || PathBuf::from(variable("HOME").unwrap_or_else(|| ".".to_string())).join(".cache");
            user_cache.unwrap_or_else(fallback).join("huggingface")
        });
        let token_file = variable("HF_TOKEN_PATH").map(PathBuf::from).unwrap_or_else(|| home.join("token"));
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_string());
        let offline = variable("HF_HUB_OFFLINE").is_some_and(|v| is_true(&v));
        Self {
            cache: variable("HF_HUB_CACHE").map(PathBuf::from).unwrap_or_else(|| home.join("hub")),
            endpoint: endpoint.trim_end_matches('/').to_string(),
            token: variable("HF_TOKEN").or_else(|| read_token(&token_file)),
            offline,
            retry_pause: Duration::from_secs(1),
        }
    }
}

fn is_true(value: &str) -> bool {
    matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on")
}

fn read_token(path: &Path) -> Option<String> {
    let token = std::fs::read_to_string(path).ok()?;
    Some(token.trim().to_string()).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> HubSettings {
        HubSettings::from_variables(|name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string())
        })
    }

    #[test]
    fn the_environment_decides() {
        let plain = settings(&[("HOME", "/home/u")]);
        assert_eq!(plain.cache, Path::new("/home/u/.cache/huggingface/hub"));
        assert_eq!(
            (plain.endpoint.as_str(), plain.token.as_deref(), plain.offline),
            ("https://huggingface.co", None, false)
        );
        let all = settings(&[
            ("HOME", "/home/u"),
            ("HF_HOME", "/hf"),
            ("HF_ENDPOINT", "http://mirror:8/"),
            ("HF_TOKEN", " t\n"),
            ("HF_HUB_OFFLINE", "ON"),
        ]);
        assert_eq!(all.cache, Path::new("/hf/hub"));
        assert_eq!(
            (all.endpoint.as_str(), all.token.as_deref(), all.offline),
            ("http://mirror:8", Some("t"), true)
        );
        assert_eq!(settings(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")]).cache, Path::new("/c"));
        assert_eq!(settings(&[("XDG_CACHE_HOME", "/x")]).cache, Path::new("/x/huggingface/hub"));
        assert!(!settings(&[("HF_HUB_OFFLINE", "0")]).offline);
        assert!(!format!("{all:?}").contains("\"t\""));
    }
}
