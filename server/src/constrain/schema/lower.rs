//! The walk over a schema.

use super::super::error::{GrammarError, GrammarFault};
use super::disjoint::all_disjoint;
use super::fault::{fail, invalid, unsupported, within};
use super::formats::{self, Format};
use super::keywords::{ANNOTATIONS, DEFINITIONS, check_dialect, check_type, unknown};
use super::limits::SchemaLimits;
use super::{numbers, objects};
use serde_json::{Map, Value, json};
use std::collections::{HashMap, VecDeque};

type Lowered = Result<Value, GrammarError>;

pub(super) struct Lowering<'a> {
    root: &'a Value,
    limits: SchemaLimits,
    depth: usize,
    num_schemas: usize,
    num_values: usize,
    /// The name in the engine's `$defs` of each target of a reference, by its pointer.
    targets: HashMap<String, usize>,
    /// Targets that are not lowered yet.
    pending: VecDeque<(usize, String)>,
}

impl<'a> Lowering<'a> {
    pub fn new(root: &'a Value, limits: SchemaLimits) -> Self {
        Self {
            root,
            limits,
            depth: 0,
            num_schemas: 0,
            num_values: 0,
            targets: HashMap::new(),
            pending: VecDeque::new(),
        }
    }

    /// Lowers what references lead to, and what the references in those lead to.
    pub fn into_definitions(mut self) -> Result<Map<String, Value>, GrammarError> {
        let mut definitions = Map::new();
        while let Some((index, mut pointer)) = self.pending.pop_front() {
            let target = self.root.pointer(&pointer).unwrap_or(&Value::Null);
            self.depth = 0;
            let lowered = self.schema(target, &mut pointer)?;
            definitions.insert(definition_name(index), lowered);
        }
        Ok(definitions)
    }

    pub fn schema(&mut self, schema: &Value, pointer: &mut String) -> Lowered {
        self.num_schemas += 1;
        if self.num_schemas > self.limits.num_schemas {
            let message = format!("more than {} schemas in one", self.limits.num_schemas);
            return Err(GrammarError::new(GrammarFault::TooComplex, message).at(&**pointer));
        }
        if self.depth >= self.limits.depth {
            let message = format!("nested deeper than {}", self.limits.depth);
            return Err(GrammarError::new(GrammarFault::TooComplex, message).at(&**pointer));
        }
        self.depth += 1;
        let lowered = match schema {
            Value::Bool(any) => Ok(Value::Bool(*any)),
            Value::Object(map) => self.keywords(map, pointer),
            _ => Err(GrammarError::invalid("a schema is an object or a boolean").at(&**pointer)),
        };
        self.depth -= 1;
        lowered
    }

    /// Plain keywords come first and applicators last: where an applicator stands between two keywords that belong together, the
    /// engine applies one without the other.
    fn keywords(&mut self, map: &Map<String, Value>, pointer: &mut String) -> Lowered {
        let mut plain = Map::new();
        let mut all_of = Vec::new();
        let mut applicators = Map::new();
        for (keyword, value) in map {
            match keyword.as_str() {
                keyword if ANNOTATIONS.contains(&keyword) || DEFINITIONS.contains(&keyword) => {}
                keyword if keyword.starts_with("x-") && keyword != "x-guidance" => {}
                "$schema" => check_dialect(value, pointer)?,
                "$id" | "id" if pointer.is_empty() => {}
                "type" => {
                    plain.insert("type".into(), check_type(value, pointer)?);
                }
                "properties" | "patternProperties" => {
                    let lowered = self.map(keyword, value, pointer)?;
                    plain.insert(keyword.clone(), lowered);
                }
                "additionalProperties" => {
                    let lowered = within(pointer, keyword, |pointer| self.schema(value, pointer))?;
                    plain.insert(keyword.clone(), lowered);
                }
                "required" => {
                    plain.insert(keyword.clone(), objects::check_required(value, pointer)?);
                }
                "minProperties" | "maxProperties" | "minItems" | "maxItems" | "minLength" | "maxLength" => {
                    plain.insert(keyword.clone(), self.count(keyword, value, pointer)?.into());
                }
                // Together, below.
                "items" | "prefixItems" | "additionalItems" | "format" => {}
                "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" | "multipleOf" => {}
                "pattern" => {
                    plain.insert(keyword.clone(), self.pattern(value, pointer)?);
                }
                "const" => {
                    within(pointer, keyword, |pointer| self.check_value(value, pointer))?;
                    applicators.insert(keyword.clone(), value.clone());
                }
                "enum" => {
                    self.check_enum(value, pointer)?;
                    applicators.insert(keyword.clone(), value.clone());
                }
                "$ref" => {
                    let index = self.target(value, pointer)?;
                    applicators.insert(keyword.clone(), format!("#/$defs/{}", definition_name(index)).into());
                }
                "allOf" => all_of.extend(self.list(keyword, value, pointer)?),
                "anyOf" => {
                    let options = self.list(keyword, value, pointer)?;
                    applicators.insert(keyword.clone(), options.into());
                }
                "oneOf" => {
                    let options = self.list(keyword, value, pointer)?;
                    // The engine does not look behind references to see that alternatives exclude each other, and refuses then.
                    let originals = value.as_array().map(Vec::as_slice).unwrap_or_default();
                    match all_disjoint(self.root, originals) {
                        // Beside an `anyOf` both have to hold.
                        true => all_of.push(json!({"anyOf": options})),
                        false => drop(applicators.insert(keyword.clone(), options.into())),
                    }
                }
                "uniqueItems" | "nullable" if *value == Value::Bool(false) => {}
                _ => return Err(unknown(keyword, pointer)),
            }
        }
        self.items(map, &mut plain, pointer)?;
        numbers::lower(map, &mut plain, pointer)?;
        if let Some(format) = map.get("format") {
            lower_format(format, &mut plain, &mut all_of, pointer)?;
        }
        objects::check_counts(map, &mut plain, pointer)?;
        if !all_of.is_empty() {
            plain.insert("allOf".into(), all_of.into());
        }
        plain.extend(applicators);
        Ok(Value::Object(plain))
    }

    fn map(&mut self, keyword: &str, value: &Value, pointer: &mut String) -> Lowered {
        let map = value.as_object().ok_or_else(|| invalid(pointer, keyword, "is not an object"))?;
        let mut lowered = Map::new();
        for (name, schema) in map {
            if keyword == "patternProperties" {
                self.check_pattern(name, pointer, keyword)?;
            }
            let schema = within(pointer, keyword, |pointer| {
                within(pointer, name, |pointer| self.schema(schema, pointer))
            })?;
            lowered.insert(name.clone(), schema);
        }
        Ok(lowered.into())
    }

    fn list(
        &mut self,
        keyword: &str,
        value: &Value,
        pointer: &mut String,
    ) -> Result<Vec<Value>, GrammarError> {
        let list = value.as_array().filter(|list| !list.is_empty());
        let list = list.ok_or_else(|| invalid(pointer, keyword, "is not a list of schemas"))?;
        let one = |(i, schema): (usize, &Value)| {
            within(pointer, keyword, |pointer| {
                within(pointer, &i.to_string(), |pointer| self.schema(schema, pointer))
            })
        };
        list.iter().enumerate().map(one).collect()
    }

    /// All drafts' ways to speak of items, in that of 2020-12.
    fn items(
        &mut self,
        map: &Map<String, Value>,
        plain: &mut Map<String, Value>,
        pointer: &mut String,
    ) -> Result<(), GrammarError> {
        let is_tuple = map.get("items").is_some_and(Value::is_array);
        if is_tuple && map.contains_key("prefixItems") {
            return Err(invalid(pointer, "items", "is a list beside `prefixItems`"));
        }
        let (prefix, rest) = if is_tuple { ("items", "additionalItems") } else { ("prefixItems", "items") };
        if let Some(value) = map.get(prefix) {
            let list = self.list(prefix, value, pointer)?;
            plain.insert("prefixItems".into(), list.into());
        }
        if let Some(value) = map.get(rest) {
            let lowered = within(pointer, rest, |pointer| self.schema(value, pointer))?;
            plain.insert("items".into(), lowered);
        }
        Ok(())
    }

    fn count(&self, keyword: &str, value: &Value, pointer: &str) -> Result<u64, GrammarError> {
        let whole = value.as_f64().filter(|x| x.fract() == 0.0 && *x >= 0.0).map(|x| x as u64);
        match value.as_u64().or(whole) {
            None => Err(invalid(pointer, keyword, "is not a whole number that is not negative")),
            Some(count) if count > self.limits.count => {
                let message = format!("is above the limit of {}", self.limits.count);
                Err(fail(GrammarFault::TooComplex, pointer, keyword, &message))
            }
            Some(count) => Ok(count),
        }
    }

    fn pattern(&self, value: &Value, pointer: &str) -> Lowered {
        let text = value.as_str().ok_or_else(|| invalid(pointer, "pattern", "is not a string"))?;
        self.check_pattern(text, pointer, "pattern")?;
        Ok(value.clone())
    }

    fn check_pattern(&self, text: &str, pointer: &str, keyword: &str) -> Result<(), GrammarError> {
        if text.len() > self.limits.pattern_len {
            let message = format!("has an expression longer than {} bytes", self.limits.pattern_len);
            return Err(fail(GrammarFault::TooComplex, pointer, keyword, &message));
        }
        formats::check_pattern(text).map_err(|message| unsupported(pointer, keyword, &message))
    }

    fn check_enum(&mut self, value: &Value, pointer: &mut String) -> Result<(), GrammarError> {
        let values = value.as_array().filter(|values| !values.is_empty());
        let values = values.ok_or_else(|| invalid(pointer, "enum", "is not a list of values"))?;
        within(pointer, "enum", |pointer| {
            for (i, value) in values.iter().enumerate() {
                within(pointer, &i.to_string(), |pointer| self.check_value(value, pointer))?;
            }
            Ok(())
        })
    }

    /// Whether a value can be said as it is.
    fn check_value(&mut self, value: &Value, pointer: &mut String) -> Result<(), GrammarError> {
        self.num_values += 1;
        if self.num_values > self.limits.num_values {
            let message = format!("more than {} values in `enum` and `const`", self.limits.num_values);
            return Err(GrammarError::new(GrammarFault::TooComplex, message).at(&**pointer));
        }
        match value {
            Value::Null | Value::Bool(_) => Ok(()),
            Value::Number(number) => numbers::check_exact(number, pointer),
            Value::String(text) => check_string(text, pointer),
            Value::Array(values) => {
                for (i, value) in values.iter().enumerate() {
                    within(pointer, &i.to_string(), |pointer| self.check_value(value, pointer))?;
                }
                Ok(())
            }
            Value::Object(map) => {
                for (name, value) in map {
                    within(pointer, name, |pointer| self.check_value(value, pointer))?;
                }
                Ok(())
            }
        }
    }

    /// Where a reference leads: a schema of this document.
    fn target(&mut self, value: &Value, pointer: &str) -> Result<usize, GrammarError> {
        let reference = value.as_str().ok_or_else(|| invalid(pointer, "$ref", "is not a string"))?;
        let Some(fragment) = reference.strip_prefix('#') else {
            return Err(unsupported(pointer, "$ref", "leads out of the schema; nothing is fetched"));
        };
        let target = decode_fragment(fragment);
        if !target.is_empty() && !target.starts_with('/') {
            return Err(unsupported(pointer, "$ref", "names an anchor; only JSON pointers are followed"));
        }
        // `#/` is taken for the root by some and names the empty key by the letter.
        if self.root.pointer(&target).is_none() {
            return Err(invalid(pointer, "$ref", &format!("leads to `{reference}`, which is not there")));
        }
        let next = self.targets.len();
        let index = *self.targets.entry(target.clone()).or_insert(next);
        if index == next {
            self.pending.push_back((index, target));
        }
        Ok(index)
    }
}

fn definition_name(index: usize) -> String {
    format!("d{index}")
}

/// A JSON pointer in the fragment of a URI has its percent signs decoded first.
fn decode_fragment(fragment: &str) -> String {
    let bytes = fragment.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        let byte = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        decoded.push(byte.unwrap_or(bytes[at]));
        at += if byte.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// Control characters have no short escape and no other spelling is allowed.
fn check_string(text: &str, pointer: &str) -> Result<(), GrammarError> {
    let is_speakable = |c: char| !c.is_ascii_control() || matches!(c, '\u{8}' | '\t' | '\n' | '\u{c}' | '\r');
    match text.chars().all(is_speakable) {
        true => Ok(()),
        false => Err(GrammarError::new(
            GrammarFault::Unsupported,
            "control characters in a constant cannot be produced",
        )
        .at(pointer)),
    }
}

/// A format is enforced as a pattern, beside the schema's own.
fn lower_format(
    format: &Value,
    plain: &mut Map<String, Value>,
    all_of: &mut Vec<Value>,
    pointer: &str,
) -> Result<(), GrammarError> {
    let name = format.as_str().ok_or_else(|| invalid(pointer, "format", "is not a string"))?;
    match formats::find(name) {
        Some(Format::Pattern(pattern)) if plain.contains_key("pattern") => {
            all_of.push(json!({"type": "string", "pattern": pattern}));
            if !is_only(plain, "string") {
                return Err(unsupported(
                    pointer,
                    "format",
                    "beside `pattern` is enforced only with `\"type\": \"string\"`",
                ));
            }
        }
        Some(Format::Pattern(pattern)) => {
            plain.insert("pattern".into(), pattern.into());
        }
        Some(Format::Integer { min, max }) if is_only(plain, "integer") => {
            all_of.push(json!({"type": "integer", "minimum": min, "maximum": max}));
        }
        Some(Format::Integer { .. }) => {
            return Err(unsupported(
                pointer,
                "format",
                "of integers is enforced only with `\"type\": \"integer\"`",
            ));
        }
        Some(Format::Annotation) => {}
        None => {
            let message = format!("`{name}` is not enforced; known are {}", formats::names());
            return Err(unsupported(pointer, "format", &message));
        }
    }
    Ok(())
}

fn is_only(plain: &Map<String, Value>, name: &str) -> bool {
    plain.get("type").is_some_and(|value| value == name)
}
