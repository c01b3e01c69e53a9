//! A vocabulary of any size and what answers are held to, made up for benches.

use super::random::Random;
use perilune::constrain::{GrammarSource, Whitespace};
use serde_json::{Value, json};
use std::collections::HashSet;

/// The last tokens of the vocabulary.
pub const NUM_CONTROLS: usize = 256;

pub fn sources() -> Vec<(&'static str, GrammarSource)> {
    let schema = |schema: Value| GrammarSource::Schema { schema, whitespace: Whitespace::Some };
    let extraction = json!({"type": "object", "properties": {
        "name": {"type": "string"}, "email": {"type": "string", "format": "email"}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 8},
    }, "required": ["name", "email", "age", "tags"], "additionalProperties": false});
    let kind = |kind: &str| {
        json!({"type": "object", "properties": {"kind": {"const": kind}, "x": {"type": "number"}, "y": {"type": "number"}},
                                   "required": ["kind", "x", "y"], "additionalProperties": false})
    };
    let union = json!({"type": "array", "items": {"oneOf": [kind("line"), kind("circle"), kind("square")]}, "minItems": 2, "maxItems": 5});
    let large: serde_json::Map<String, Value> = (0..200)
        .map(|i| (format!("field_{i}"), json!({"type": ["string", "null"], "maxLength": 20})))
        .collect();
    vec![
        ("any object", GrammarSource::json_object()),
        ("extraction", schema(extraction)),
        ("union of objects", schema(union)),
        (
            "200 optional fields",
            schema(json!({"type": "object", "properties": large, "additionalProperties": false})),
        ),
        ("bounded string", schema(json!({"type": "string", "minLength": 10, "maxLength": 200}))),
        (
            "enum of 1,000",
            schema(json!({"enum": (0..1000).map(|i| format!("value {i}")).collect::<Vec<_>>()})),
        ),
        ("regular expression", GrammarSource::Regex(r"(\w+ ){5,20}\w+\.".into())),
    ]
}

/// All bytes, then words made of syllables, with and without a space before them, as byte-pair encoders learn; control tokens last.
pub fn words(num_tokens: usize) -> Vec<Vec<u8>> {
    const SYLLABLES: [&str; 28] = [
        "a", "e", "i", "o", "u", "n", "r", "s", "t", "l", "ing", "er", "st", "re", "con", "tion", "ment",
        "pro", "é", "ü", "日", "月", "の", "ка", "ние", "_", "0", "1",
    ];
    const MARKS: [&str; 16] = [
        "{\"", "\":", "\",", "\"}", "}}", "[]", "();", "  ", "    ", "\n\n", "\n    ", " =", "->", "/*",
        "...", "\": \"",
    ];
    let mut words: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    words.extend(MARKS.map(|mark| mark.as_bytes().to_vec()));
    let mut seen: HashSet<Vec<u8>> = words.iter().cloned().collect();
    let mut random = Random::new(7);
    while words.len() < num_tokens - NUM_CONTROLS {
        let mut word = String::from(if random.chance(50) { " " } else { "" });
        for _ in 0..1 + random.below(4) {
            word.push_str(SYLLABLES[random.below(SYLLABLES.len())]);
        }
        if seen.insert(word.as_bytes().to_vec()) {
            words.push(word.into_bytes());
        }
    }
    words.extend((0..NUM_CONTROLS).map(|i| format!("<|control_{i}|>").into_bytes()));
    words
}
