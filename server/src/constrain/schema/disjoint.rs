//! Whether two schemas can be seen to have no instance in common: then exactly one of them holds where any does, and `oneOf` is
//! `anyOf`. Says no where it is not sure.

use serde_json::{Map, Value};
use std::collections::HashSet;

/// References followed, and objects looked into.
const DEPTH_MAX: usize = 8;

pub(super) fn all_disjoint(root: &Value, options: &[Value]) -> bool {
    let pairs = |i: usize| options[i + 1..].iter().map(move |other| (&options[i], other));
    (0..options.len()).flat_map(pairs).all(|(a, b)| disjoint(root, a, b, DEPTH_MAX))
}

fn disjoint(root: &Value, a: &Value, b: &Value, depth: usize) -> bool {
    if depth == 0 {
        return false;
    }
    match (follow(root, a), follow(root, b)) {
        (Value::Bool(false), _) | (_, Value::Bool(false)) => true,
        (Value::Object(a), Value::Object(b)) => {
            other_types(a, b) || other_values(a, b) || other_objects(root, a, b, depth)
        }
        _ => false,
    }
}

/// Where a schema that is a reference leads. What stands beside the reference only narrows it.
fn follow<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let mut schema = schema;
    for _ in 0..DEPTH_MAX {
        let target =
            schema.get("$ref").and_then(Value::as_str).and_then(|reference| reference.strip_prefix('#'));
        match target.and_then(|target| root.pointer(target)) {
            Some(target) => schema = target,
            None => break,
        }
    }
    schema
}

fn constants(schema: &Map<String, Value>) -> Option<Vec<&Value>> {
    match (schema.get("const"), schema.get("enum")) {
        (Some(value), _) => Some(vec![value]),
        (None, Some(values)) => Some(values.as_array()?.iter().collect()),
        (None, None) => None,
    }
}

fn types(schema: &Map<String, Value>) -> Option<HashSet<&str>> {
    let widen = |name: &str| if name == "integer" { "number" } else { name }.to_owned();
    let known = |name: &str| -> Option<&'static str> {
        let name = widen(name);
        ["null", "boolean", "number", "string", "array", "object"].into_iter().find(|known| *known == name)
    };
    match schema.get("type") {
        Some(Value::String(name)) => known(name).map(|name| HashSet::from([name])),
        Some(Value::Array(names)) => names.iter().map(|name| known(name.as_str()?)).collect(),
        _ => Some(constants(schema)?.into_iter().map(type_of).collect()),
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn other_types(a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    types(a).zip(types(b)).is_some_and(|(a, b)| a.is_disjoint(&b))
}

fn other_values(a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    let equal = |a: &Value, b: &Value| match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    };
    let (a, b) = (constants(a), constants(b));
    // Lists and objects compare in ways that need not be looked into for constants that tell alternatives apart.
    let is_scalar = |values: &[&Value]| values.iter().all(|value| !value.is_array() && !value.is_object());
    a.zip(b).is_some_and(|(a, b)| {
        is_scalar(&a) && is_scalar(&b) && !a.iter().any(|a| b.iter().any(|b| equal(a, b)))
    })
}

/// Two kinds of objects: a property that one of them must have is another in the other, or cannot be there.
fn other_objects(root: &Value, a: &Map<String, Value>, b: &Map<String, Value>, depth: usize) -> bool {
    let is_object = |schema| types(schema).is_some_and(|types| types == HashSet::from(["object"]));
    if !is_object(a) || !is_object(b) {
        return false;
    }
    let differs = |name: &str| disjoint(root, property(a, name), property(b, name), depth - 1);
    required(a).chain(required(b)).any(differs)
}

fn required(schema: &Map<String, Value>) -> impl Iterator<Item = &str> {
    schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// What a property has to be; anything, where that is not said.
fn property<'a>(schema: &'a Map<String, Value>, name: &str) -> &'a Value {
    let named = schema.get("properties").and_then(|properties| properties.get(name));
    let rest = || match schema.contains_key("patternProperties") {
        false => schema.get("additionalProperties"),
        true => None,
    };
    named.or_else(rest).unwrap_or(&Value::Bool(true))
}
