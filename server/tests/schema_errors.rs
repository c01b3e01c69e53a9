//! Whatever is wrong with a schema, the error has a JSON pointer to where: also where only the grammar engine finds it.

use crate::random;

use perilune::chat::parse::ToolFormat;
use perilune::chat::parse::grammar::{CallRule, forced};
use perilune::constrain::{GrammarCompiler, GrammarError, GrammarSource, Whitespace};
use random::{Random, limits, vocabulary};
use serde_json::{Map, Value, json};

fn compiler() -> GrammarCompiler {
    GrammarCompiler::new(vocabulary, limits())
}

fn refusal(compiler: &GrammarCompiler, schema: &Value) -> Option<GrammarError> {
    let source = GrammarSource::Schema { schema: schema.clone(), whitespace: Whitespace::Some };
    compiler.compile(&source).err()
}

/// What our own checks let through and the engine refuses: alone, deep inside, and behind a reference.
#[test]
fn what_only_the_engine_refuses_has_its_place() {
    let compiler = compiler();
    #[rustfmt::skip]
    let cases = [
        (json!({"type": "integer", "minimum": 5, "maximum": 3}), "/maximum"),
        (json!({"type": "number", "exclusiveMinimum": 1, "maximum": 1}), "/maximum"),
        (json!({"type": "integer", "minimum": 1.25, "maximum": 1.75}), "/maximum"),
        (json!({"type": "integer", "multipleOf": 10, "minimum": 11, "maximum": 19}), "/maximum"),
        (json!({"type": "string", "minLength": 4, "maxLength": 3}), "/maxLength"),
        (json!({"type": "string", "pattern": "^a{5}$", "maxLength": 3}), "/maxLength"),
        (json!({"type": "string", "pattern": "(a"}), "/pattern"),
        (json!({"type": "string", "pattern": "[z-a]"}), "/pattern"),
        (json!({"type": "string", "pattern": "a{3,2}"}), "/pattern"),
        (json!({"type": "string", "pattern": "\\p{Nothing}"}), "/pattern"),
        (json!({"type": "array", "minItems": 3, "maxItems": 2}), "/maxItems"),
        (json!({"type": "array", "prefixItems": [{"type": "null"}], "items": false, "minItems": 2}), "/items"),
        (json!({"type": "string", "enum": [1, 2]}), "/enum"),
        (json!({"type": "integer", "const": "a"}), "/const"),
        (json!({"allOf": [{"type": "string"}, {"type": "null"}]}), "/allOf/1/type"),
        (json!({"anyOf": [{"const": 1}, {"const": 2}], "type": "string"}), "/anyOf/1/const"),
        (json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "/oneOf/1"),
        (json!({"type": "object", "properties": {"a": false}, "required": ["a"]}), "/properties/a"),
        (json!({"type": "object", "properties": {"a": {}}, "required": ["a", "b"], "additionalProperties": false}), "/additionalProperties"),
        (json!({"type": "object", "patternProperties": {"^a": {}, "a$": {}}}), "/patternProperties"),
        (json!({"type": "object", "properties": {"ab": {"type": "string", "maxLength": 1, "minLength": 2}}, "required": ["ab"]}), "/properties/ab/minLength"),
    ];
    let mut wrong = Vec::new();
    for (schema, pointer) in &cases {
        let inside = json!({
            "type": "object", "required": ["a/b", "ok"], "properties": {
                "before": {"type": "string", "pattern": "^x+$"}, "a/b": {"type": "array", "minItems": 1, "items": schema}, "ok": {"type": "null"},
            },
        });
        let behind = json!({"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/x"}, "$defs": {"y": {}, "x": schema}});
        for (schema, before) in
            [(schema.clone(), "#"), (inside, "#/properties/a~1b/items"), (behind, "#/$defs/x")]
        {
            let found = match refusal(&compiler, &schema) {
                Some(error) => error.pointer,
                None => Some("nowhere: it is taken".into()),
            };
            let expected = format!("{before}{pointer}");
            if found.as_deref() != Some(&expected) {
                wrong.push(format!("{schema}: {found:?} is not {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_schema_of_a_tool_is_named() {
    let compiler = compiler();
    let rule = |i: usize, schema: Value| CallRule {
        name: format!("f{i}"),
        schema,
        part: format!("tools[{i}].function.parameters"),
        is_strict: true,
    };
    let bad = json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "array", "minItems": 3, "maxItems": 2}}});
    for format in random::FORMATS {
        let rules = [rule(0, json!({"type": "object", "properties": {"n": {}}})), rule(1, bad.clone())];
        let pattern = forced(format, &rules, true).expect("a grammar");
        let Err(error) = compiler.compile(&GrammarSource::Pattern(pattern)) else {
            panic!("{format:?} is not refused")
        };
        // Where arguments are written one by one, each has a grammar of its own.
        let place = (error.part.as_deref(), error.pointer.as_deref());
        let expected = match format {
            ToolFormat::Qwen3Coder
            | ToolFormat::SeedOss
            | ToolFormat::MiniMaxM2
            | ToolFormat::Glm
            | ToolFormat::Pythonic => (Some("tools[1].function.parameters.properties.n"), Some("#/maxItems")),
            _ => (Some("tools[1].function.parameters"), Some("#/properties/n/maxItems")),
        };
        assert_eq!(place, expected, "{format:?}: {error}");
    }
}

/// Schemas of keywords that are taken, with values that contradict each other as often as not.
fn any_schema(random: &mut Random, depth: usize) -> Value {
    const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];
    const PATTERNS: [&str; 10] =
        ["^a+$", "b", "(", "[z-a]", "x{3,1}", "^$", "\\p{L}", "\\p{Foo}", "a**", "^(a|b){2}$"];
    const NAMES: [&str; 5] = ["a", "b/c", "d~e", "", "é"];
    if random.chance(5) {
        return Value::Bool(random.chance(50));
    }
    let mut map = Map::new();
    if random.chance(70) {
        let name = TYPES[random.below(7)];
        map.insert("type".into(), if random.chance(20) { json!([name, "null"]) } else { name.into() });
    }
    let number = |random: &mut Random| {
        [json!(-2), json!(0), json!(0.5), json!(3), json!(1e6)][random.below(5)].clone()
    };
    for _ in 0..random.below(4) {
        let inner = |random: &mut Random| match depth {
            0 => json!({"type": TYPES[random.below(7)]}),
            _ => any_schema(random, depth - 1),
        };
        let list = |random: &mut Random| (0..1 + random.below(3)).map(|_| inner(random)).collect::<Vec<_>>();
        let (keyword, value) = match random.below(22) {
            0 => ("minimum", number(random)),
            1 => ("maximum", number(random)),
            2 => ("exclusiveMinimum", number(random)),
            3 => ("exclusiveMaximum", number(random)),
            4 => ("multipleOf", [json!(1), json!(2), json!(0.5)][random.below(3)].clone()),
            5 => ("minLength", json!(random.below(5))),
            6 => ("maxLength", json!(random.below(5))),
            7 => ("pattern", json!(PATTERNS[random.below(10)])),
            8 => ("format", json!(["date", "uuid", "int32", "email"][random.below(4)])),
            9 => ("minItems", json!(random.below(4))),
            10 => ("maxItems", json!(random.below(4))),
            11 => ("items", inner(random)),
            12 => ("prefixItems", list(random).into()),
            13 | 14 => {
                let some = (0..random.below(3)).map(|_| (NAMES[random.below(5)].to_owned(), inner(random)));
                ("properties", some.collect::<Vec<_>>().into_iter().collect::<Map<_, _>>().into())
            }
            15 => ("required", json!([NAMES[random.below(5)]])),
            16 => ("additionalProperties", inner(random)),
            17 => (
                "enum",
                [json!(1), json!("a"), json!(null), json!([1]), json!({"a": 1})][..1 + random.below(5)]
                    .to_vec()
                    .into(),
            ),
            18 => ("const", [json!(1), json!("a"), json!(null)][random.below(3)].clone()),
            19 => ("allOf", list(random).into()),
            20 => ("anyOf", list(random).into()),
            _ => ("oneOf", list(random).into()),
        };
        map.insert(keyword.into(), value);
    }
    map.into()
}

#[test]
fn every_refusal_has_a_place_in_its_schema() {
    let compiler = compiler();
    let (mut num_refused, mut num_deep) = (0, 0);
    for seed in 0..1200 {
        let schema = any_schema(&mut Random::new(seed), 3);
        let Some(error) = refusal(&compiler, &schema) else { continue };
        let pointer = error.pointer.as_deref().unwrap_or_else(|| panic!("{error} in {schema}"));
        let place = pointer.strip_prefix('#').expect("a fragment");
        assert!(schema.pointer(place).is_some(), "{pointer} is not in {schema}");
        num_refused += 1;
        num_deep += usize::from(place.matches('/').count() > 1);
    }
    println!("{num_refused} refused, {num_deep} of them inside");
    assert!(num_refused > 200 && num_deep > 80, "{num_refused}, {num_deep}");
}
