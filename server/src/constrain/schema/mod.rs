//! JSON schemas: what of them is enforced, and their form for the grammar engine.
//!
//! Every keyword is one of three: enforced, an annotation without effect on what is valid, or refused with its JSON pointer. The engine
//! itself passes over some that it does not know, and some combinations in which it loses one; here nothing is passed over.

mod disjoint;
mod fault;
mod formats;
mod keywords;
mod limits;
mod lower;
mod numbers;
mod objects;

use super::error::{GrammarError, GrammarFault};
pub use limits::SchemaLimits;
use lower::Lowering;
use serde_json::{Map, Value};

/// The schema in the engine's terms. Everything that it keeps is enforced.
pub fn lower(schema: &Value, limits: &SchemaLimits) -> Result<Value, GrammarError> {
    let len = text_len(schema);
    if len > limits.len {
        return Err(GrammarError::new(
            GrammarFault::TooComplex,
            format!("the schema has {len} bytes, more than {}", limits.len),
        ));
    }
    let mut lowering = Lowering::new(schema, *limits);
    let root = lowering.schema(schema, &mut String::new())?;
    let definitions = lowering.into_definitions()?;
    let mut root = match root {
        Value::Object(map) => map,
        Value::Bool(true) => Map::new(),
        _ => return Err(GrammarError::invalid("nothing satisfies it: the schema is false").at("")),
    };
    if !definitions.is_empty() {
        root.insert("$defs".into(), Value::Object(definitions));
    }
    Ok(Value::Object(root))
}

/// Bytes of the JSON text, counted without writing it.
fn text_len(value: &Value) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // A counter does not fail, and a value has no keys but strings.
    let _ = serde_json::to_writer(&mut count, value);
    count.0
}

#[cfg(test)]
mod tests;
