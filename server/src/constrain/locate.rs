//! Where in a schema lies what the grammar engine refuses. Its errors say what and not where, so parts of the schema are taken out until
//! it is taken: what is put back last is the place.
//!
//! ```text
//! a schema's units:   plain keywords ─▶ keywords of schemas, each allowing anything ─▶ the schemas in them, one by one
//!                     └────────── the first so many are refused, and with one less they are not ──────────┘
//!                                 the last of them: a keyword, which is the place; or a schema, to look into
//! ```

use serde_json::{Map, Value};

/// Trials for one schema: deeper than this it is told less exactly.
const NUM_TRIALS_MAX: usize = 200;

/// The JSON pointer to the first keyword, or the schema, without which `is_refused` would not be. `root` is refused. `may_go_on` is
/// asked before each trial.
pub fn locate(
    root: &Value,
    is_refused: &mut dyn FnMut(&Value) -> bool,
    may_go_on: &dyn Fn() -> bool,
) -> String {
    let mut search = Search { document: root.clone(), num_trials: 0, is_refused, may_go_on };
    let mut pointer = String::new();
    while let Some(step) = search.narrow(&pointer) {
        pointer.push_str(&step.pointer);
        if !step.is_schema {
            break;
        }
    }
    pointer
}

struct Search<'a> {
    /// What comes after the place allows anything.
    document: Value,
    num_trials: usize,
    is_refused: &'a mut dyn FnMut(&Value) -> bool,
    may_go_on: &'a dyn Fn() -> bool,
}

struct Step {
    /// From the schema on.
    pointer: String,
    is_schema: bool,
}

impl Search<'_> {
    /// The first unit with which the schema at `pointer` is refused. `None`: it is refused whatever is in it, or it has nothing in it.
    fn narrow(&mut self, pointer: &str) -> Option<Step> {
        let schema = self.document.pointer(pointer)?.as_object()?.clone();
        let units = units(&schema);
        // `units[..taken]` are not refused, `units[..refused]` are.
        let (mut taken, mut refused) = (0, units.len());
        if self.is_refused(pointer, with_units(&schema, &[]))? {
            return None;
        }
        while refused - taken > 1 {
            let middle = taken.midpoint(refused);
            match self.is_refused(pointer, with_units(&schema, &units[..middle]))? {
                true => refused = middle,
                false => taken = middle,
            }
        }
        let last = units[..refused].last()?;
        *self.document.pointer_mut(pointer)? = with_units(&schema, &units[..refused]);
        Some(Step { pointer: last.pointer(), is_schema: matches!(last, Unit::Schema(..)) })
    }

    /// `None`: there may be no further trial.
    fn is_refused(&mut self, pointer: &str, schema: Value) -> Option<bool> {
        self.num_trials += 1;
        if self.num_trials > NUM_TRIALS_MAX || !(self.may_go_on)() {
            return None;
        }
        let place = self.document.pointer_mut(pointer)?;
        let before = std::mem::replace(place, schema);
        let is_refused = (self.is_refused)(&self.document);
        *self.document.pointer_mut(pointer)? = before;
        Some(is_refused)
    }
}

/// What can be taken out of a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Unit {
    Keyword(String),
    /// The schema that a keyword has, or one of those that it has.
    Schema(String, Option<String>),
}

impl Unit {
    fn pointer(&self) -> String {
        let step = |name: &str| format!("/{}", name.replace('~', "~0").replace('/', "~1"));
        match self {
            Unit::Keyword(keyword) | Unit::Schema(keyword, None) => step(keyword),
            Unit::Schema(keyword, Some(name)) => step(keyword) + &step(name),
        }
    }
}

fn units(schema: &Map<String, Value>) -> Vec<Unit> {
    let (mut plain, mut applicators, mut schemas) = (Vec::new(), Vec::new(), Vec::new());
    for (keyword, value) in schema {
        let names: Vec<Option<String>> = match (holds(keyword), value) {
            (Holds::Schemas, Value::Object(map)) => map.keys().cloned().map(Some).collect(),
            (Holds::Schemas | Holds::Schema, Value::Array(list)) => {
                (0..list.len()).map(|i| Some(i.to_string())).collect()
            }
            (Holds::Schema, _) => vec![None],
            _ => {
                plain.push(Unit::Keyword(keyword.clone()));
                continue;
            }
        };
        applicators.push(Unit::Keyword(keyword.clone()));
        schemas.extend(names.into_iter().map(|name| Unit::Schema(keyword.clone(), name)));
    }
    plain.into_iter().chain(applicators).chain(schemas).collect()
}

enum Holds {
    Schema,
    /// By name or in a list.
    Schemas,
    Nothing,
}

fn holds(keyword: &str) -> Holds {
    match keyword {
        "items" | "additionalItems" | "additionalProperties" => Holds::Schema,
        "properties" | "patternProperties" | "$defs" | "definitions" => Holds::Schemas,
        "allOf" | "anyOf" | "oneOf" | "prefixItems" => Holds::Schemas,
        _ => Holds::Nothing,
    }
}

/// The schema with some of its units, which are the first. Schemas that are not among them allow anything; alternatives of a `oneOf`
/// are left out, because two that allow anything are refused. Definitions are always there: references lead to them.
fn with_units(schema: &Map<String, Value>, kept: &[Unit]) -> Value {
    let has = |unit: Unit| kept.contains(&unit);
    let has_schema = |keyword: &str, name: &str| has(Unit::Schema(keyword.into(), Some(name.into())));
    let mut result = Map::new();
    for (keyword, value) in schema {
        if !has(Unit::Keyword(keyword.clone())) && !["$defs", "definitions"].contains(&keyword.as_str()) {
            continue;
        }
        let value = match (holds(keyword), value) {
            (Holds::Schemas, Value::Object(map)) => {
                let keep = |(name, schema): (&String, &Value)| match has_schema(keyword, name) {
                    true => (name.clone(), schema.clone()),
                    false => (name.clone(), Value::Bool(true)),
                };
                map.iter().map(keep).collect::<Map<_, _>>().into()
            }
            (Holds::Schemas | Holds::Schema, Value::Array(list)) => {
                let kept = list
                    .iter()
                    .enumerate()
                    .map(|(i, schema)| has_schema(keyword, &i.to_string()).then(|| schema.clone()));
                let list: Vec<Value> = match keyword.as_str() {
                    "oneOf" => kept.flatten().collect(),
                    _ => kept.map(|schema| schema.unwrap_or(Value::Bool(true))).collect(),
                };
                if list.is_empty() {
                    continue;
                }
                list.into()
            }
            (Holds::Schema, schema) if has(Unit::Schema(keyword.clone(), None)) => schema.clone(),
            (Holds::Schema, _) => Value::Bool(true),
            _ => value.clone(),
        };
        result.insert(keyword.clone(), value);
    }
    result.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Refuses documents in which every one of some texts is.
    fn place(schema: &Value, texts: &[&str]) -> String {
        let mut refuses = |schema: &Value| texts.iter().all(|text| schema.to_string().contains(text));
        assert!(refuses(schema));
        locate(schema, &mut refuses, &|| true)
    }

    #[test]
    fn the_place_is_what_has_to_be_there() {
        let schema = json!({
            "properties": {"a": {"minimum": 5, "title": "low"}, "b/c": {"items": {"anyOf": [{}, {"pattern": "odd", "maximum": 3}]}}},
            "required": ["b/c"], "$ref": "#/$defs/d", "$defs": {"d": {"prefixItems": [{"const": "deep"}], "items": false}},
            "additionalProperties": {"format": "date"}, "oneOf": [{"const": 1}, {"const": 2}],
        });
        for (texts, pointer) in [
            (&["odd"][..], "/properties/b~1c/items/anyOf/1/pattern"),
            (&["odd", "\"maximum\""], "/properties/b~1c/items/anyOf/1/maximum"),
            (&["low"], "/properties/a/title"),
            (&["low", "odd"], "/properties/b~1c/items/anyOf/1/pattern"),
            (&["deep"], "/$defs/d/prefixItems/0/const"),
            (&["date", "low"], "/additionalProperties/format"),
            (&["required"], "/required"),
            (&["prefixItems"], "/$defs/d/prefixItems"),
            (&["{\"const\":1}", "{\"const\":2}"], "/oneOf/1/const"),
            (&["{"], ""),
        ] {
            assert_eq!(place(&schema, texts), pointer, "{texts:?}");
        }
    }

    #[test]
    fn the_number_of_trials_is_bounded() {
        let deep = (0..60).fold(
            json!({"pattern": "odd"}),
            |schema, _| json!({"properties": {"a": {}, "b": schema, "c": {}}}),
        );
        let mut num_trials = 0;
        let mut refuses = |schema: &Value| {
            num_trials += 1;
            schema.to_string().contains("odd")
        };
        let pointer = locate(&deep, &mut refuses, &|| true);
        assert!(pointer.starts_with("/properties/b/properties/b"), "{pointer}");
        assert!(num_trials <= NUM_TRIALS_MAX);
        assert_eq!(locate(&deep, &mut |_| true, &|| false), "");
    }
}
