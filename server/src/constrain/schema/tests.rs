//! What is refused, where, and what reaches the engine.

use super::*;
use serde_json::json;

fn refusal(schema: Value) -> (GrammarFault, String) {
    match lower(&schema, &SchemaLimits::default()) {
        Ok(lowered) => panic!("{schema} became {lowered}"),
        Err(error) => (error.fault, error.pointer.unwrap_or_default()),
    }
}

fn lowered(schema: Value) -> Value {
    lower(&schema, &SchemaLimits::default()).unwrap_or_else(|error| panic!("{schema}: {error}"))
}

#[test]
fn keywords_without_effect_are_refused_where_they_stand() {
    use GrammarFault::Unsupported;
    let inside = |schema: Value| json!({"type": "object", "properties": {"a/b": {"items": schema}}});
    #[rustfmt::skip]
    let cases = [
        (json!({"not": {}}), "#/not"),
        (json!({"if": {}, "then": {}}), "#/if"),
        (json!({"uniqueItems": true}), "#/uniqueItems"),
        (json!({"contains": {"type": "integer"}}), "#/contains"),
        (json!({"propertyNames": {"maxLength": 3}}), "#/propertyNames"),
        (json!({"dependentRequired": {"a": ["b"]}}), "#/dependentRequired"),
        (json!({"unevaluatedProperties": false}), "#/unevaluatedProperties"),
        (json!({"nullable": true}), "#/nullable"),
        (json!({"minimun": 3}), "#/minimun"),
        (json!({"x-guidance": {}}), "#/x-guidance"),
        (json!({"format": "iri"}), "#/format"),
        (json!({"format": "int32"}), "#/format"),
        (json!({"$schema": "https://example.com/dialect"}), "#/$schema"),
        (json!({"$ref": "https://example.com/schema"}), "#/$ref"),
        (json!({"$ref": "file:///etc/passwd"}), "#/$ref"),
        (json!({"$ref": "other.json#/a"}), "#/$ref"),
        (json!({"$ref": "#anchor"}), "#/$ref"),
        (json!({"properties": {"a": {"$id": "x"}}}), "#/properties/a/$id"),
        (json!({"anyOf": [{}, {"allOf": [{"not": {}}]}]}), "#/anyOf/1/allOf/0/not"),
        (json!({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"not": {}}}}), "#/$defs/a~1b/not"),
        (json!({"additionalProperties": {"not": {}}}), "#/additionalProperties/not"),
        (json!({"patternProperties": {"^a": {"not": {}}}}), "#/patternProperties/^a/not"),
        (json!({"prefixItems": [{}, {"not": {}}]}), "#/prefixItems/1/not"),
        (json!({"items": [{"not": {}}]}), "#/items/0/not"),
        (json!({"pattern": "a(?=b)"}), "#/pattern"),
        (json!({"pattern": "\\bword\\b"}), "#/pattern"),
        (json!({"pattern": "(a)\\1"}), "#/pattern"),
        (json!({"pattern": "[[a]"}), "#/pattern"),
        (json!({"patternProperties": {"(?i)a": {}}}), "#/patternProperties"),
        (json!({"const": 9_007_199_254_740_993_u64}), "#/const"),
        (json!({"enum": ["a", {"b": [1e300]}]}), "#/enum/1/b/0"),
        (json!({"const": "\u{1}"}), "#/const"),
        (json!({"minimum": 1e17}), "#/minimum"),
        (json!({"multipleOf": 0.000_000_000_000_1}), "#/multipleOf"),
        (json!({"minProperties": 2}), "#/minProperties"),
        (json!({"properties": {"a": {}}, "minProperties": 1}), "#/minProperties"),
        (json!({"properties": {"a": {}, "b": {}, "c": {}}, "maxProperties": 2, "additionalProperties": false}), "#/maxProperties"),
    ];
    for (schema, pointer) in cases {
        assert_eq!(refusal(schema.clone()), (Unsupported, pointer.to_owned()), "{schema}");
        if schema.get("$ref").is_none() && schema.get("$schema").is_none() {
            let deeper = pointer.replacen('#', "#/properties/a~1b/items", 1);
            assert_eq!(refusal(inside(schema.clone())), (Unsupported, deeper), "inside: {schema}");
        }
    }
}

#[test]
fn malformed_keywords_are_told_where_they_stand() {
    #[rustfmt::skip]
    let cases = [
        (json!(false), "#"),
        (json!({"type": "strin"}), "#/type"),
        (json!({"type": []}), "#/type"),
        (json!({"type": 3}), "#/type"),
        (json!({"properties": []}), "#/properties"),
        (json!({"properties": {"a": 3}}), "#/properties/a"),
        (json!({"required": "a"}), "#/required"),
        (json!({"required": [1]}), "#/required"),
        (json!({"enum": []}), "#/enum"),
        (json!({"enum": "a"}), "#/enum"),
        (json!({"anyOf": []}), "#/anyOf"),
        (json!({"allOf": {}}), "#/allOf"),
        (json!({"minLength": -1}), "#/minLength"),
        (json!({"maxItems": 1.5}), "#/maxItems"),
        (json!({"minimum": "1"}), "#/minimum"),
        (json!({"multipleOf": 0}), "#/multipleOf"),
        (json!({"pattern": 1}), "#/pattern"),
        (json!({"format": 1}), "#/format"),
        (json!({"$ref": 1}), "#/$ref"),
        (json!({"$ref": "#/$defs/a"}), "#/$ref"),
        (json!({"items": [{}], "prefixItems": [{}]}), "#/items"),
    ];
    for (schema, pointer) in cases {
        assert_eq!(refusal(schema.clone()), (GrammarFault::Invalid, pointer.to_owned()), "{schema}");
    }
}

#[test]
fn what_is_too_large_is_refused_before_it_is_compiled() {
    let deep = (0..100).fold(json!({}), |schema, _| json!({"items": schema}));
    let wide = json!({"anyOf": vec![json!({}); 10_001]});
    let values = json!({"enum": (0..20_001).collect::<Vec<_>>()});
    let long = json!({"description": "a".repeat(600_000)});
    let count = json!({"maxLength": 1_000_000});
    let pattern = json!({"pattern": "a".repeat(5000)});
    for schema in [deep, wide, values, long, count, pattern] {
        assert_eq!(refusal(schema).0, GrammarFault::TooComplex);
    }
}

#[test]
fn annotations_and_what_holds_anyway_are_dropped() {
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://example.com/a", "title": "A", "description": "b",
        "type": "object", "default": {}, "examples": [1], "deprecated": true, "x-order": 3, "$comment": "c",
        "properties": {"a": {"type": "array", "uniqueItems": false, "nullable": false}},
        "required": ["a"], "minProperties": 1, "maxProperties": 1, "additionalProperties": false,
        "$defs": {"unused": {"not": {}}},
    });
    let expected = json!({
        "type": "object", "properties": {"a": {"type": "array"}}, "required": ["a"], "additionalProperties": false,
    });
    assert_eq!(lowered(schema), expected);
}

#[test]
fn applicators_come_after_plain_keywords_and_references_get_names() {
    let schema = json!({
        "$ref": "#/definitions/a%2Fb", "items": [{"type": "null"}], "anyOf": [{}, {"$ref": "#"}], "additionalItems": false,
        "definitions": {"a/b": {"type": "array"}},
    });
    let schema = {
        let mut schema = schema;
        schema["$ref"] = "#/definitions/a~1b".into();
        schema
    };
    let lowered = lowered(schema);
    let keys: Vec<&String> = lowered.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["prefixItems", "items", "$ref", "anyOf", "$defs"]);
    assert_eq!(lowered["$ref"], "#/$defs/d0");
    assert_eq!(lowered["$defs"]["d0"], json!({"type": "array"}));
    assert_eq!(lowered["$defs"]["d1"]["$ref"], "#/$defs/d0");
    assert_eq!(lowered["items"], json!(false));
}

#[test]
fn alternatives_that_exclude_each_other_are_any_of_them() {
    let kind =
        |name: &str| json!({"type": "object", "properties": {"kind": {"const": name}}, "required": ["kind"]});
    let defs = json!({"cat": kind("cat"), "dog": kind("dog")});
    let by_reference = json!({"oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}], "$defs": defs});
    let becomes_any = [
        by_reference,
        json!({"oneOf": [kind("a"), kind("b"), {"type": "string"}, {"type": ["null", "integer"]}]}),
        json!({"oneOf": [{"const": 1}, {"enum": [2, "1"]}]}),
        json!({"oneOf": [
            {"type": "object", "required": ["a"]},
            {"type": "object", "properties": {"b": {}}, "additionalProperties": false},
        ]}),
    ];
    for schema in becomes_any {
        let lowered = lowered(schema.clone());
        assert!(lowered["allOf"][0]["anyOf"].is_array(), "{schema} became {lowered}");
    }
    let stays = [
        json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}),
        json!({"oneOf": [{"type": "object"}, kind("a")]}),
        json!({"oneOf": [{}, {"type": "string"}]}),
        json!({"oneOf": [{"const": 1}, {"enum": [2, 1.0]}]}),
    ];
    for schema in stays {
        assert!(lowered(schema.clone())["oneOf"].is_array(), "{schema}");
    }
}

#[test]
fn bounds_of_numbers_become_exact() {
    let cases = [
        (
            json!({"type": "integer", "minimum": 1, "exclusiveMinimum": true}),
            json!({"type": "integer", "exclusiveMinimum": 1}),
        ),
        (json!({"maximum": 2.5, "exclusiveMaximum": false}), json!({"maximum": 2.5})),
        (json!({"maximum": i64::MAX}), json!({"maximum": 9_007_199_254_740_992_i64})),
        (
            json!({"type": "integer", "format": "int64"}),
            json!({"type": "integer",
            "allOf": [{"type": "integer", "minimum": -9_007_199_254_740_992_i64, "maximum": 9_007_199_254_740_992_i64}]}),
        ),
        (
            json!({"exclusiveMinimum": 0, "exclusiveMaximum": 0.5}),
            json!({"exclusiveMinimum": 1e-9, "exclusiveMaximum": 0.5}),
        ),
        (json!({"exclusiveMaximum": -3}), json!({"exclusiveMaximum": -3.000_000_001})),
        (json!({"minLength": 2.0}), json!({"minLength": 2})),
    ];
    for (schema, expected) in cases {
        assert_eq!(lowered(schema), expected);
    }
}
