//! Schemas made up at random, of the keywords that are enforced, each of which something satisfies.

use super::Random;
use serde_json::{Map, Value, json};

/// The same for the same seed.
pub fn generated(seed: u64) -> Value {
    let mut random = Random::new(seed ^ 0x5EED);
    let definition = schema(&mut random, 1);
    let mut root = schema(&mut random, 3);
    // Some have something to refer to.
    if random.chance(30)
        && let Value::Object(map) = &mut root
    {
        map.insert("$defs".into(), json!({"other": definition}));
        if let Some(Value::Object(properties)) = map.get_mut("properties") {
            properties.insert("ref".into(), json!({"$ref": "#/$defs/other"}));
        }
    }
    root
}

fn schema(random: &mut Random, depth: usize) -> Value {
    match random.below(if depth == 0 { 6 } else { 10 }) {
        0 => integer(random),
        1 => number(random),
        2 | 3 => string(random),
        4 => constants(random),
        5 => json!({"type": ["boolean", "null"]}),
        6 | 7 => object(random, depth - 1),
        8 => array(random, depth - 1),
        _ => union(random, depth - 1),
    }
}

fn integer(random: &mut Random) -> Value {
    let min = random.below(2000) as i64 - 1000;
    let mut schema = json!({"type": "integer", "minimum": min, "maximum": min + random.below(3000) as i64});
    match random.below(4) {
        0 => {
            schema["exclusiveMinimum"] = json!(min);
            schema["maximum"] = json!(min + 1 + random.below(500) as i64);
        }
        1 => {
            let step = 1 + random.below(12) as i64;
            schema["multipleOf"] = json!(step);
            schema["maximum"] = json!(min + 2 * step);
        }
        _ => {}
    }
    schema
}

fn number(random: &mut Random) -> Value {
    let min = (random.below(2000) as f64 - 1000.0) / 8.0;
    match random.below(3) {
        0 => json!({"type": "number"}),
        1 => json!({"type": "number", "minimum": min}),
        _ => {
            json!({"type": "number", "exclusiveMinimum": min, "maximum": min + 0.125 * (1 + random.below(900)) as f64})
        }
    }
}

fn string(random: &mut Random) -> Value {
    const PATTERNS: [&str; 8] =
        ["^[a-z]+$", "^\\d{1,4}$", "[aeiou]", "^(x|yy|zzz)*$", "^[^a-z]{2}", "b$", "^\\w+( \\w+)?$", "é|日"];
    const FORMATS: [&str; 6] = ["date", "time", "uuid", "ipv4", "email", "hostname"];
    let min = random.below(4);
    match random.below(4) {
        0 => json!({"type": "string", "minLength": min, "maxLength": min + random.below(6)}),
        1 => {
            json!({"type": "string", "pattern": PATTERNS[random.below(PATTERNS.len())], "maxLength": 4 + random.below(8)})
        }
        2 => json!({"type": "string", "format": FORMATS[random.below(FORMATS.len())]}),
        _ => json!({"type": "string"}),
    }
}

fn constants(random: &mut Random) -> Value {
    const VALUES: [&str; 10] =
        ["1", "-2.5", "\"a\"", "\"b \\\" c\"", "null", "true", "[1,\"x\"]", "{\"k\":[]}", "\"é\"", "0.125"];
    let first = random.below(VALUES.len());
    let values: Vec<Value> = (0..1 + random.below(4))
        .map(|i| serde_json::from_str(VALUES[(first + i) % VALUES.len()]).expect("JSON"))
        .collect();
    if random.chance(30) { json!({"const": values[0]}) } else { json!({ "enum": values }) }
}

fn object(random: &mut Random, depth: usize) -> Value {
    const NAMES: [&str; 8] = ["a", "name", "käse", "with space", "q\"uote", "n_1", "x-y", "A"];
    let num_properties = random.below(4);
    let first = random.below(NAMES.len());
    let mut properties = Map::new();
    let mut required = Vec::new();
    for i in 0..num_properties {
        let name = NAMES[(first + i) % NAMES.len()];
        properties.insert(name.into(), schema(random, depth));
        if random.chance(60) {
            required.push(name);
        }
    }
    let mut object = json!({"type": "object", "properties": properties, "required": required});
    match random.below(4) {
        0 | 1 => object["additionalProperties"] = json!(false),
        2 => object["additionalProperties"] = schema(random, 0),
        _ => {}
    }
    if random.chance(15) {
        object["patternProperties"] = json!({"^z_[0-9]+$": {"type": "integer"}});
    }
    object
}

fn array(random: &mut Random, depth: usize) -> Value {
    let min = random.below(3);
    let mut array = json!({"type": "array", "items": schema(random, depth), "minItems": min, "maxItems": min + random.below(3)});
    if random.chance(25) {
        array["prefixItems"] = json!([schema(random, 0)]);
    }
    array
}

fn union(random: &mut Random, depth: usize) -> Value {
    match random.below(3) {
        0 => {
            json!({"oneOf": [integer(random), string(random), {"type": "array", "items": schema(random, depth), "maxItems": 2}]})
        }
        1 => {
            json!({"allOf": [{"type": "object", "properties": {"p": schema(random, depth)}, "required": ["p"]},
                              {"type": "object", "properties": {"q": schema(random, 0)}}]})
        }
        _ => json!({"anyOf": [schema(random, depth), schema(random, depth)]}),
    }
}
