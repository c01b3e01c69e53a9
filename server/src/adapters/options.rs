//! Which adapters are served from the start, and whether requests may change that.

use super::folder::Root;
use crate::engine_thread::AdapterRoom;
use serde::Deserialize;
use std::path::PathBuf;
use std::str::FromStr;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdapterOptions {
    /// Most adapters that steps may have; 0: the model takes none.
    pub max_loras: usize,
    /// Most adapters that requests may name; those beyond `max_loras` stay on the host until they are asked for.
    pub max_cpu_loras: usize,
    /// Loaded before the first request.
    pub modules: Vec<AdapterModule>,
    /// Where the folders lie that requests may load; `None`: requests may neither load nor unload.
    pub root: Option<Root>,
}

impl AdapterOptions {
    pub fn room(&self) -> AdapterRoom {
        AdapterRoom { places: self.max_loras, all: self.max_cpu_loras }
    }
}

/// An adapter on the command line: `NAME=PATH`, or vLLM's JSON object.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterModule {
    pub name: String,
    pub path: PathBuf,
    /// Shown as its parent in the list of models.
    pub base_model_name: Option<String>,
}

impl FromStr for AdapterModule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let module = match text.trim_start().starts_with('{') {
            true => serde_json::from_str(text).map_err(|error| format!("`{text}`: {error}"))?,
            false => {
                let (name, path) = text
                    .split_once('=')
                    .ok_or_else(|| format!("`{text}` is neither NAME=PATH nor a JSON object"))?;
                Self { name: name.to_owned(), path: path.into(), base_model_name: None }
            }
        };
        if module.name.is_empty() || module.path.as_os_str().is_empty() {
            return Err(format!("`{text}` has no name or no path"));
        }
        Ok(module)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_pairs_or_objects() {
        let module = |name: &str, path: &str, base: Option<&str>| {
            let base_model_name = base.map(str::to_owned);
            Ok(AdapterModule { name: name.into(), path: path.into(), base_model_name })
        };
        assert_eq!("sql=/a/b=c".parse(), module("sql", "/a/b=c", None));
        assert_eq!(r#"{"name": "sql", "path": "a"}"#.parse(), module("sql", "a", None));
        let whole = r#" {"name":"sql","path":"a","base_model_name":"base"}"#;
        assert_eq!(whole.parse(), module("sql", "a", Some("base")));
        for wrong in
            ["sql", "=a", "sql=", "", r#"{"name":"sql"}"#, r#"{"name":"a","path":"b","rank":1}"#, "{"]
        {
            assert!(wrong.parse::<AdapterModule>().is_err(), "{wrong}");
        }
    }
}
