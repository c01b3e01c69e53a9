//! Which keywords there are, and what becomes of those that are not lowered.

use super::super::error::GrammarError;
use super::fault::{invalid, unsupported};
use serde_json::Value;

/// Without effect on what is valid, whatever their value.
pub(super) const ANNOTATIONS: &[&str] = &[
    "title",
    "description",
    "default",
    "example",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$comment",
    "$anchor",
    "contentMediaType",
    "contentEncoding",
    // Of OpenAPI: it tells which alternative of a `oneOf` to look at, which the alternatives themselves enforce.
    "discriminator",
    "externalDocs",
    "xml",
];

/// Only names for what references lead to.
pub(super) const DEFINITIONS: &[&str] = &["$defs", "definitions"];

const TYPES: &[&str] = &["null", "boolean", "integer", "number", "string", "array", "object"];

/// Dialects whose keywords are read here; references decide the rest.
const DIALECTS: &[&str] = &[
    "json-schema.org/draft/2020-12/schema",
    "json-schema.org/draft/2019-09/schema",
    "json-schema.org/draft-07/schema",
    "json-schema.org/draft-06/schema",
    "json-schema.org/draft-04/schema",
    "json-schema.org/schema",
];

/// Keywords of JSON Schema that are known and not enforced, with what to do instead where there is something.
const UNENFORCED: &[(&str, &str)] = &[
    ("not", ""),
    ("if", ""),
    ("then", ""),
    ("else", ""),
    ("contains", ""),
    ("minContains", ""),
    ("maxContains", ""),
    ("uniqueItems", ""),
    ("propertyNames", "; `patternProperties` with `additionalProperties: false` says the same"),
    ("dependencies", ""),
    ("dependentRequired", ""),
    ("dependentSchemas", ""),
    ("unevaluatedItems", "; `items: false` is"),
    ("unevaluatedProperties", "; `additionalProperties: false` is"),
    ("$dynamicRef", "; `$ref` is"),
    ("$recursiveRef", "; `$ref` is"),
    ("nullable", "; `\"type\": [\"null\", ...]` is"),
];

pub(super) fn unknown(keyword: &str, pointer: &str) -> GrammarError {
    match UNENFORCED.iter().find(|(name, _)| *name == keyword) {
        Some((_, instead)) => unsupported(pointer, keyword, &format!("is not enforced{instead}")),
        None if keyword == "$id" || keyword == "id" => {
            unsupported(pointer, keyword, "inside of a schema changes what references mean")
        }
        None => unsupported(pointer, keyword, "is not a keyword that is known here"),
    }
}

pub(super) fn check_dialect(value: &Value, pointer: &str) -> Result<(), GrammarError> {
    let dialect = value.as_str().ok_or_else(|| invalid(pointer, "$schema", "is not a string"))?;
    let name = dialect.trim_end_matches('#');
    let name = name.strip_prefix("https://").or_else(|| name.strip_prefix("http://")).unwrap_or(name);
    match DIALECTS.contains(&name) {
        true => Ok(()),
        false => Err(unsupported(pointer, "$schema", "names a dialect that is not known here")),
    }
}

pub(super) fn check_type(value: &Value, pointer: &str) -> Result<Value, GrammarError> {
    let is_known = |name: &Value| name.as_str().is_some_and(|name| TYPES.contains(&name));
    match value {
        Value::Array(names) if !names.is_empty() && names.iter().all(is_known) => Ok(value.clone()),
        name if is_known(name) => Ok(value.clone()),
        _ => Err(invalid(pointer, "type", &format!("is not one or some of {}", TYPES.join(", ")))),
    }
}
