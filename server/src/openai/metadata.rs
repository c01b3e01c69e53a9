//! `metadata`: what clients hang on to objects of the API, within OpenAI's limits.

use crate::error::ApiError;
use serde_json::{Map, Value};

pub fn check_metadata(metadata: Option<&Map<String, Value>>) -> Result<(), ApiError> {
    let Some(metadata) = metadata else { return Ok(()) };
    if metadata.len() > 16 {
        return Err(ApiError::invalid("metadata", format!("{} pairs are above 16", metadata.len())));
    }
    for (key, value) in metadata {
        if key.chars().count() > 64 {
            return Err(ApiError::invalid("metadata", "a key is longer than 64 characters"));
        }
        if value.as_str().is_none_or(|value| value.chars().count() > 512) {
            return Err(ApiError::invalid("metadata", "a value is not a string of up to 512 characters"));
        }
    }
    Ok(())
}
