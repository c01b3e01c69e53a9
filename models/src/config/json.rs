//! Reading checked values out of a JSON configuration: every complaint names the file and the full path of the key.

use crate::{LoadError, ModelFiles};
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// An object of a configuration file, with the path that led to it.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a> {
    file: &'a str,
    path: &'a str,
    object: &'a Map<String, Value>,
}

/// Reads a file that must be one JSON object; `None` where the model has no such file.
pub fn read_object(files: &ModelFiles, name: &str) -> Result<Option<Map<String, Value>>, LoadError> {
    let Some(content) = files.read(name)? else { return Ok(None) };
    let file = files.describe(name);
    match serde_json::from_slice(&content) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(_) => Err(LoadError::Json { file, message: "not an object".into() }),
        Err(error) => Err(LoadError::Json { file, message: error.to_string() }),
    }
}

/// As [`read_object`], of a file that the model must have.
pub fn require_object(files: &ModelFiles, name: &str) -> Result<Map<String, Value>, LoadError> {
    read_object(files, name)?.ok_or_else(|| LoadError::MissingFile { file: files.describe(name) })
}

impl<'a> Fields<'a> {
    pub fn new(file: &'a str, path: &'a str, object: &'a Map<String, Value>) -> Self {
        Self { file, path, object }
    }

    /// Whether both are of the same object.
    pub fn is_same(&self, other: &Self) -> bool {
        std::ptr::eq(self.object, other.object)
    }

    /// The fields of an object inside this one; `path` is its [`Fields::nested_path`].
    pub fn nested<'b>(&'b self, path: &'b str, object: &'b Map<String, Value>) -> Fields<'b> {
        Fields { file: self.file, path, object }
    }

    pub fn nested_path(&self, key: &str) -> String {
        if self.path.is_empty() { key.into() } else { format!("{}.{key}", self.path) }
    }

    /// An error about one of the keys.
    pub fn fail(&self, key: &str, message: impl Into<String>) -> LoadError {
        LoadError::config(self.file, self.nested_path(key), message)
    }

    fn mistyped(&self, key: &str, expected: &str, found: &Value) -> LoadError {
        let mut text = found.to_string();
        if text.len() > 80 {
            text = text.chars().take(80).chain("…".chars()).collect();
        }
        self.fail(key, format!("expected {expected}, found {text}"))
    }

    /// Whether the key is there at all, null or not.
    pub fn has(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    /// A value that is present and not null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    pub fn opt_usize(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value
            .as_u64()
            .or_else(|| {
                value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..9e15).contains(x)).map(|x| x as u64)
            })
            .ok_or_else(|| self.mistyped(key, "a whole number that is not negative", value))?;
        match usize::try_from(number) {
            Ok(n) if range.contains(&n) => Ok(Some(n)),
            _ => Err(self.fail(key, format!("{number} is not in {}..={}", range.start(), range.end()))),
        }
    }

    pub fn usize_or(
        &self,
        key: &str,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> Result<usize, LoadError> {
        Ok(self.opt_usize(key, range)?.unwrap_or(default))
    }

    pub fn usize(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize, LoadError> {
        self.opt_usize(key, range)?.ok_or_else(|| self.fail(key, "is missing"))
    }

    pub fn opt_f64(&self, key: &str) -> Result<Option<f64>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x.is_finite() => Ok(Some(x)),
            _ => Err(self.mistyped(key, "a finite number", value)),
        }
    }

    /// A number in a closed range.
    pub fn f64_in(
        &self,
        key: &str,
        default: Option<f64>,
        range: RangeInclusive<f64>,
    ) -> Result<f64, LoadError> {
        let x = self.opt_f64(key)?.or(default).ok_or_else(|| self.fail(key, "is missing"))?;
        if !range.contains(&x) {
            return Err(self.fail(key, format!("{x} is not in [{}, {}]", range.start(), range.end())));
        }
        Ok(x)
    }

    pub fn bool_or(&self, key: &str, default: bool) -> Result<bool, LoadError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(value) => Err(self.mistyped(key, "true or false", value)),
        }
    }

    pub fn opt_str(&self, key: &str) -> Result<Option<&'a str>, LoadError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => Err(self.mistyped(key, "a string", value)),
        }
    }

    pub fn opt_object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>, LoadError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(object)),
            Some(value) => Err(self.mistyped(key, "an object", value)),
        }
    }

    /// `N` finite numbers; `missing` where there is no such key, an error where that is `None`.
    pub fn numbers<const N: usize>(
        &self,
        key: &str,
        missing: Option<[f32; N]>,
    ) -> Result<[f32; N], LoadError> {
        let Some(items) = self.opt_array(key)? else {
            return missing.ok_or_else(|| self.fail(key, "is missing"));
        };
        let numbers: Option<Vec<f32>> = items.iter().map(|n| n.as_f64().map(|n| n as f32)).collect();
        match numbers.map(<[f32; N]>::try_from) {
            Some(Ok(numbers)) if numbers.iter().all(|n| n.is_finite()) => Ok(numbers),
            _ => Err(self.fail(key, format!("expected {N} numbers"))),
        }
    }

    pub fn opt_array(&self, key: &str) -> Result<Option<&'a [Value]>, LoadError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(value) => Err(self.mistyped(key, "a list", value)),
        }
    }

    /// One token id or a list of them, each below `vocab_size`; empty where the key is absent or null.
    pub fn token_ids(&self, key: &str, vocab_size: usize) -> Result<Vec<u32>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let one = |value: &Value| match value.as_u64() {
            Some(id) if id < vocab_size as u64 => Ok(id as u32),
            Some(id) => Err(self.fail(key, format!("{id} is not below the vocabulary size {vocab_size}"))),
            None => Err(self.mistyped(key, "a token id or a list of them", value)),
        };
        match value {
            Value::Array(items) => items.iter().map(one).collect(),
            value => Ok(vec![one(value)?]),
        }
    }

    /// The first of the token ids under a key.
    pub fn opt_token_id(&self, key: &str, vocab_size: usize) -> Result<Option<u32>, LoadError> {
        Ok(self.token_ids(key, vocab_size)?.first().copied())
    }

    /// Refuses a key whose value would change the computation in a way that is not implemented.
    pub fn only(&self, key: &str, allowed: &str) -> Result<(), LoadError> {
        match self.opt_str(key)? {
            Some(found) if found != allowed => {
                Err(self.fail(key, format!("{found:?} is not supported, only {allowed:?} is")))
            }
            _ => Ok(()),
        }
    }
}
