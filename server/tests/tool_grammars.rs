//! Under a grammar of calls whatever a model says is calls: the model is random weights, its answers are read by the parser that reads
//! every answer, and the arguments are checked by a JSON schema validator.

use crate::random;

use perilune::chat::parse::grammar::{CallRule, forced, triggered, unmarked_text};
use perilune::chat::parse::{End, Ending, Events, ParseOptions, Parser, ToolFormat, ToolSignature};
use perilune::constrain::{
    AfterCall, BodyPart, CallsPart, ConstraintParts, ConstraintSpec, Ends, GrammarCompiler, GrammarFault,
    GrammarSource, MaskPool, Pattern, Setting,
};
use random::{Answer, END, Ended, FORMATS, NUM_ROWS, Random, limits, vocabulary};
use serde_json::{Value, json};
use std::sync::Arc;

#[derive(Default)]
struct Said {
    text: String,
    calls: Vec<(String, String)>,
}

impl Events for Said {
    fn reasoning(&mut self, _: &str) {
        panic!("nothing marks thinking");
    }
    fn text(&mut self, text: &str) {
        self.text.push_str(text);
    }
    fn call_start(&mut self, _: usize, _: String, name: String) {
        self.calls.push((name, String::new()));
    }
    fn call_arguments(&mut self, index: usize, json: &str) {
        self.calls[index].1.push_str(json);
    }
    fn call_end(&mut self, _: usize) {}
}

struct World {
    compiler: GrammarCompiler,
    setting: Setting,
}

impl World {
    fn new() -> Self {
        let compiler = GrammarCompiler::new(vocabulary, limits());
        let ends = Ends { stops: Arc::new([END]), model: Arc::new([END]) };
        let vocabulary = compiler.vocabulary().expect("a vocabulary");
        Self { setting: Setting { vocabulary, pool: Arc::new(MaskPool::new(1)), ends }, compiler }
    }

    fn spec(&self, body: BodyPart) -> ConstraintSpec {
        let parts = ConstraintParts { thinking: None, body };
        ConstraintSpec::new(parts, self.setting.clone(), NUM_ROWS).expect("a grammar is something")
    }

    fn forced(&self, pattern: Pattern) -> ConstraintSpec {
        let source = GrammarSource::Pattern(pattern);
        let grammar = self.compiler.compile(&source).unwrap_or_else(|error| panic!("{source:?}: {error}"));
        self.spec(BodyPart::Grammar(grammar))
    }
}

fn rules() -> Vec<CallRule> {
    let rule = |name: &str, schema: Value| CallRule {
        name: name.into(),
        schema,
        part: format!("{name}.parameters"),
        is_strict: true,
    };
    vec![
        rule(
            "get_weather",
            json!({"type": "object", "additionalProperties": false, "required": ["city", "days"], "properties": {
                "city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 7},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}, "hourly": {"type": "boolean"},
                "place": {"$ref": "#/$defs/place"}, "note": {"type": ["string", "null"]},
            }, "$defs": {"place": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}}}),
        ),
        rule(
            "search",
            json!({"type": "object", "additionalProperties": false, "properties": {"query": {"type": "string"}, "deep": {"type": "boolean"}}}),
        ),
        rule("now", json!({})),
    ]
}

fn read(format: ToolFormat, rules: &[CallRule], text: &str) -> (Said, End) {
    let tools: Vec<_> = rules.iter().map(|rule| ToolSignature::new(&rule.name, &rule.schema)).collect();
    let options =
        ParseOptions { reasoning: None, tools: Some((format, tools.into())), id_stem: "test".into() };
    let (mut parser, mut said) = (Parser::new(options), Said::default());
    parser.push(text, &mut said);
    let end = parser.finish(Ending::Natural, &mut said);
    (said, end)
}

fn check_calls(rules: &[CallRule], said: &Said, context: &str) {
    for (name, arguments) in &said.calls {
        let rule = rules.iter().find(|rule| rule.name == *name);
        let rule = rule.unwrap_or_else(|| panic!("{name} is no tool: {context}"));
        let arguments: Value =
            serde_json::from_str(arguments).unwrap_or_else(|error| panic!("{error}: {arguments}: {context}"));
        assert!(arguments.is_object(), "{context}");
        if let Err(error) = jsonschema::validator_for(&rule.schema).expect("a schema").validate(&arguments) {
            panic!("{error}: {arguments}: {context}");
        }
    }
}

#[test]
fn every_forced_answer_is_calls_that_fit() {
    let (world, rules) = (World::new(), rules());
    for format in FORMATS {
        let mut complete = [0, 0];
        for parallel in [true, false] {
            let pattern = forced(format, &rules, parallel).expect("a grammar");
            let spec = world.forced(pattern);
            for seed in 0..25 {
                let Answer { text, ended } = Random::new(seed).answer(spec.begin(), 700);
                assert_ne!(ended, Ended::Failed, "{format:?}, seed {seed}: {text}");
                let (said, end) = read(format, &rules, &text);
                if ended == Ended::Stop {
                    assert_eq!(said.text, "", "{format:?}, seed {seed}: {text}");
                    assert_eq!(end, End::Whole, "{format:?}, seed {seed}: {text}");
                    assert!(
                        !said.calls.is_empty() && (parallel || said.calls.len() == 1),
                        "{format:?}: {text}"
                    );
                    check_calls(&rules, &said, &text);
                    complete[usize::from(parallel)] += 1;
                }
            }
        }
        assert!(complete.iter().all(|&complete| complete >= 5), "{format:?}: {complete:?}");
    }
}

/// A model that begins a call in the middle of what it says has to end it well.
#[test]
fn every_call_that_begins_fits() {
    let (world, rules) = (World::new(), rules());
    for format in FORMATS {
        let Some(calls) = triggered(format, &rules).expect("a grammar") else {
            assert!(unmarked_text(format).is_some());
            continue;
        };
        assert_eq!(unmarked_text(format), None);
        let grammar = world.compiler.compile(&GrammarSource::Pattern(calls.call)).expect("compiles");
        let triggers = vec![calls.trigger.to_owned()];
        let spec = world.spec(BodyPart::Triggered(CallsPart { triggers, grammar, after: AfterCall::End }));
        let mut complete = 0;
        for seed in 0..25 {
            let mut constraint = spec.begin();
            for byte in calls.trigger.bytes() {
                constraint.next_mask();
                constraint.accept(byte.into());
            }
            let Answer { text, ended } = Random::new(seed).answer(constraint, 700);
            assert_ne!(ended, Ended::Failed, "{format:?}, seed {seed}: {text}");
            if ended == Ended::Stop {
                let text = format!("{}{text}", calls.trigger);
                let (said, _) = read(format, &rules, &text);
                assert!(said.text.is_empty() && !said.calls.is_empty(), "{format:?}: {text}");
                check_calls(&rules, &said, &text);
                complete += 1;
            }
        }
        assert!(complete >= 5, "{format:?}: {complete}");
    }
}

/// Where nothing marks a call, an answer that begins as one has to end as one, and any other is text.
#[test]
fn an_answer_without_marks_is_calls_or_text() {
    let (world, rules) = (World::new(), rules());
    for (format, begins, text_begins) in [
        (ToolFormat::Llama3Json, "{", ["Yes, {", " \n[", "<b>", "a <"]),
        (ToolFormat::Pythonic, "[", ["Yes, [", " \n{", "<b>", "a <"]),
    ] {
        let text = unmarked_text(format).expect("it has no marks");
        let spec = world.forced(Pattern::Any(vec![text, forced(format, &rules, true).expect("a grammar")]));
        let answer = |begun: &str, seed: u64| {
            let mut constraint = spec.begin();
            for byte in begun.bytes() {
                let mask = constraint.next_mask().expect("a mask");
                let words = mask.allowed().expect("a mask").to_vec();
                assert!(words[byte as usize / 32] >> (byte % 32) & 1 == 1, "{format:?}: {byte} of {begun:?}");
                constraint.accept(byte.into());
            }
            let Answer { text, ended } = Random::new(seed).answer(constraint, 700);
            assert_ne!(ended, Ended::Failed, "{format:?}, seed {seed}: {text}");
            (ended == Ended::Stop).then(|| format!("{begun}{text}"))
        };
        let calls: Vec<String> = (0..25).filter_map(|seed| answer(begins, seed)).collect();
        assert!(calls.len() >= 5, "{format:?}: {calls:?}");
        for text in calls {
            let (said, end) = read(format, &rules, &text);
            assert!(
                said.text.is_empty() && !said.calls.is_empty() && end == End::Whole,
                "{format:?}: {text}"
            );
            check_calls(&rules, &said, &text);
        }
        for begun in text_begins {
            for text in (0..6).filter_map(|seed| answer(begun, seed)) {
                let (said, _) = read(format, &rules, &text);
                assert!(said.calls.is_empty() && said.text == text, "{format:?}: {text:?}");
            }
        }
        // It may also say nothing.
        assert!((0..60).filter_map(|seed| answer("", seed)).any(|text| text.is_empty()), "{format:?}");
    }
}

#[test]
fn what_cannot_be_enforced_is_refused_where_it_must_be() {
    let rule = |schema: Value, is_strict| CallRule {
        name: "f".into(),
        schema,
        part: "tools[0].function.parameters".into(),
        is_strict,
    };
    for (format, schema) in [
        (
            ToolFormat::Hermes,
            json!({"type": "object", "properties": {"a": {"type": "string", "contentEncoding": "base64", "not": {"const": "x"}}}}),
        ),
        (
            ToolFormat::SeedOss,
            json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "^x+$"}}}),
        ),
        (
            ToolFormat::SeedOss,
            json!({"type": "object", "minProperties": 1, "properties": {"a": {"type": "integer"}}}),
        ),
        (ToolFormat::Pythonic, json!({"type": "object", "properties": {}, "required": ["a"]})),
    ] {
        let error = forced(format, &[rule(schema.clone(), true)], true).expect_err("refused");
        assert!(
            matches!(error.fault, GrammarFault::Unsupported | GrammarFault::Invalid),
            "{schema}: {error}"
        );
        assert!(error.part.is_some_and(|part| part.starts_with("tools[0].function.parameters")), "{schema}");
        assert!(forced(format, &[rule(schema.clone(), false)], true).is_ok(), "{schema}");
    }
}
