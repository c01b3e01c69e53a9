//! Metadata of one architecture, under its prefix, with errors that name the key.

use super::Gguf;
use super::metadata::Value as Meta;
use crate::LoadError;
use serde_json::{Value, json};

/// Metadata under the architecture's own prefix.
pub struct Keys<'a> {
    pub gguf: &'a Gguf,
    pub architecture: String,
}

impl<'a> Keys<'a> {
    pub fn new(gguf: &'a Gguf) -> Result<Self, LoadError> {
        match gguf.metadata("general.architecture") {
            Some(Meta::Text(architecture)) => Ok(Self { gguf, architecture: architecture.clone() }),
            _ => Err(gguf.fail("general.architecture", "is missing")),
        }
    }

    pub fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    pub fn fail(&self, key: &str, message: impl Into<String>) -> LoadError {
        self.gguf.fail(&self.name(key), message)
    }

    pub fn get(&self, key: &str) -> Option<&'a Meta> {
        self.gguf.metadata(&self.name(key))
    }

    /// A number that is one for all layers; some keys may have one for each.
    pub fn opt_int(&self, key: &str) -> Result<Option<u64>, LoadError> {
        let number = match self.get(key) {
            None => return Ok(None),
            Some(Meta::Int(n)) => *n,
            Some(Meta::Ints(list)) if !list.is_empty() && list.iter().all(|n| *n == list[0]) => {
                list[0].into()
            }
            Some(Meta::Ints(_)) => {
                return Err(self.fail(key, "differs from layer to layer, which is not supported"));
            }
            Some(_) => return Err(self.fail(key, "is not a whole number")),
        };
        u64::try_from(number).map(Some).map_err(|_| self.fail(key, format!("{number} is not in range")))
    }

    pub fn need_int(&self, key: &str) -> Result<u64, LoadError> {
        self.opt_int(key)?.ok_or_else(|| self.fail(key, "is missing"))
    }

    pub fn int(&self, key: &str) -> Result<Value, LoadError> {
        Ok(json!(self.need_int(key)?))
    }

    pub fn int_or(&self, key: &str, other: &str) -> Result<Value, LoadError> {
        match self.opt_int(key)? {
            Some(n) => Ok(json!(n)),
            None => self.int(other),
        }
    }

    /// Layers without those that only speculate.
    pub fn layers(&self) -> Result<Value, LoadError> {
        let (all, speculating) =
            (self.need_int("block_count")?, self.opt_int("nextn_predict_layers")?.unwrap_or(0));
        Ok(json!(all.saturating_sub(speculating)))
    }

    pub fn opt_float(&self, key: &str) -> Result<Option<f64>, LoadError> {
        match self.get(key) {
            None => Ok(None),
            // What the file holds is an f32: the shortest decimal that gives it is what was meant.
            Some(Meta::Float(x)) => Ok(Some((*x as f32).to_string().parse().unwrap_or(*x))),
            Some(Meta::Int(n)) => Ok(Some(*n as f64)),
            Some(_) => Err(self.fail(key, "is not a number")),
        }
    }

    pub fn need_float(&self, key: &str) -> Result<f64, LoadError> {
        self.opt_float(key)?.ok_or_else(|| self.fail(key, "is missing"))
    }

    pub fn float(&self, key: &str) -> Result<Value, LoadError> {
        Ok(json!(self.need_float(key)?))
    }

    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>, LoadError> {
        match self.get(key) {
            None => Ok(None),
            Some(Meta::Bool(b)) => Ok(Some(*b)),
            Some(_) => Err(self.fail(key, "is not true or false")),
        }
    }

    pub fn opt_text(&self, key: &str) -> Result<Option<&'a str>, LoadError> {
        match self.get(key) {
            None => Ok(None),
            Some(Meta::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.fail(key, "is not a text")),
        }
    }
}
