//! Whatever a model says under a constraint, the constraint holds: the model is random weights, which find every hole, and what it says
//! is checked by others: a JSON schema validator, a regular expression engine, a parser of its own.

use crate::random;

use perilune::constrain::{
    BodyPart, CompilerLimits, ConstraintParts, ConstraintSpec, Ends, GrammarCompiler, GrammarFault,
    GrammarSource, MaskPool, Setting, Whitespace,
};
use random::schemas::generated;
use random::{Answer, END, Ended, NUM_ROWS, Random, limits, parse_json, vocabulary};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

struct World {
    compiler: GrammarCompiler,
    setting: Setting,
}

impl World {
    fn new() -> Self {
        Self::with(limits())
    }

    fn with(limits: CompilerLimits) -> Self {
        let compiler = GrammarCompiler::new(vocabulary, limits);
        let ends = Ends { stops: Arc::new([END]), model: Arc::new([END]) };
        let vocabulary = compiler.vocabulary().expect("a vocabulary");
        Self { setting: Setting { vocabulary, pool: Arc::new(MaskPool::new(1)), ends }, compiler }
    }

    fn spec(&self, source: &GrammarSource) -> ConstraintSpec {
        let grammar = self.compiler.compile(source).unwrap_or_else(|error| panic!("{source:?}: {error}"));
        let parts = ConstraintParts { thinking: None, body: BodyPart::Grammar(grammar) };
        ConstraintSpec::new(parts, self.setting.clone(), NUM_ROWS).expect("a grammar is something")
    }
}

/// Answers to one schema, each of which is JSON that the schema validates where it ended by itself; counts those, and adds what is wrong
/// to `wrong`.
fn check_schema(
    world: &World,
    (name, schema): (&str, &Value),
    seeds: std::ops::Range<u64>,
    wrong: &mut Vec<String>,
) -> usize {
    let source = GrammarSource::Schema { schema: schema.clone(), whitespace: Whitespace::Some };
    let spec = world.spec(&source);
    let validator = jsonschema::options()
        .should_validate_formats(true)
        .build(schema)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut num_complete = 0;
    for seed in seeds {
        let Answer { text, ended } = Random::new(seed).answer(spec.begin(), 600);
        match ended {
            Ended::Stop => match parse_json(&text)
                .map_err(|error| error.to_string())
                .and_then(|value| validator.validate(&value).map_err(|error| error.to_string()))
            {
                Ok(()) => num_complete += 1,
                Err(error) => wrong.push(format!("{name}, seed {seed}: {error}\n{text}\n{schema}")),
            },
            Ended::Length => {}
            Ended::Failed => wrong.push(format!("{name}, seed {seed}: dead end after {text:?}\n{schema}")),
        }
    }
    num_complete
}

#[test]
fn answers_to_realistic_schemas_validate() {
    let world = World::new();
    let schemas: Vec<Value> =
        serde_json::from_str(include_str!("fixtures/schemas.json")).expect("the list is JSON");
    assert!(schemas.len() >= 90);
    let (mut complete, mut wrong) = (0, Vec::new());
    for entry in &schemas {
        let name = entry["name"].as_str().expect("a name");
        complete += check_schema(&world, (name, &entry["schema"]), 0..5, &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(complete >= schemas.len() * 3, "only {complete} answers ended by themselves");
}

#[test]
fn answers_to_generated_schemas_validate() {
    let world = World::new();
    const NUM_SCHEMAS: u64 = 200;
    let (mut complete, mut wrong) = (0, Vec::new());
    for seed in 0..NUM_SCHEMAS {
        complete += check_schema(&world, (&format!("generated {seed}"), &generated(seed)), 0..3, &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(complete as u64 >= NUM_SCHEMAS, "only {complete} answers ended by themselves");
}

/// Bounds of all kinds, close to each other and not, on both sides of zero.
#[test]
fn answers_to_ranges_of_numbers_validate() {
    const BOUNDS: [f64; 14] =
        [-1000.0, -12.5, -3.0, -1.0, -0.25, -0.001, 0.0, 0.001, 0.25, 1.0, 1.5, 3.0, 99.99, 1000.0];
    let world = World::new();
    let mut wrong = Vec::new();
    for (i, &low) in BOUNDS.iter().enumerate() {
        for &high in &BOUNDS[i + 1..] {
            for (min, max) in [
                ("minimum", "exclusiveMaximum"),
                ("exclusiveMinimum", "maximum"),
                ("exclusiveMinimum", "exclusiveMaximum"),
            ] {
                let schema = json!({"type": "number", min: low, max: high});
                check_schema(&world, ("range", &schema), 0..6, &mut wrong);
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

fn complete(spec: &ConstraintSpec, seed: u64) -> Option<String> {
    let Answer { text, ended } = Random::new(seed).answer(spec.begin(), 300);
    assert_ne!(ended, Ended::Failed, "seed {seed}: {text}");
    (ended == Ended::Stop).then_some(text)
}

#[test]
fn answers_to_expressions_match() {
    let world = World::new();
    for regex in [
        "[a-z]{3}",
        "^(yes|no|maybe)$",
        r"\d{4}-\d{2}-\d{2}",
        r"(\w+ ){1,3}\w+",
        "é+|日本?",
        r"\$?[0-9]{1,3}(,[0-9]{3})*(\.[0-9]{2})?",
        "(a|b)*c",
        r"[^x\n]{2,5}",
        r"<[a-z]+>[^<]{0,8}</[a-z]+>",
    ] {
        let spec = world.spec(&GrammarSource::Regex(regex.into()));
        let check = regex::Regex::new(&format!("^(?:{regex})$")).expect("an expression");
        let texts: Vec<String> = (0..8).filter_map(|seed| complete(&spec, seed)).collect();
        assert!(texts.len() >= 4, "{regex}: {texts:?}");
        texts.iter().for_each(|text| assert!(check.is_match(text), "{regex}: {text:?}"));
    }
}

#[test]
fn answers_are_one_of_the_choices() {
    let world = World::new();
    let long: Vec<String> = (0..500).map(|i| format!("choice {i}")).collect();
    let odd = ["\"quoted\"", "a\\b", "line\nbreak", "\u{7f}", "🌒", "a", "ab", "abc", " "]
        .map(str::to_owned)
        .to_vec();
    for choices in [odd, long] {
        let spec = world.spec(&GrammarSource::Choice(choices.clone()));
        for seed in 0..20 {
            let text = complete(&spec, seed).expect("choices end");
            assert!(choices.contains(&text), "{text:?}");
        }
    }
}

/// `sum`, `product` and numbers in brackets; where it stops reading.
fn read_sum(text: &[u8]) -> Option<&[u8]> {
    let mut rest = read_term(text)?;
    while let [b'+' | b'-' | b'*', after @ ..] = rest {
        rest = read_term(after)?;
    }
    Some(rest)
}

fn read_term(text: &[u8]) -> Option<&[u8]> {
    match text {
        [b'(', after @ ..] => read_sum(after)?.strip_prefix(b")"),
        _ => {
            let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
            (digits > 0).then(|| &text[digits..])
        }
    }
}

#[test]
fn answers_to_a_grammar_are_in_its_language() {
    let world = World::new();
    let lark = "start: sum\nsum: term (OP term)*\nterm: NUMBER | \"(\" sum \")\"\nOP: /[-+*]/\nNUMBER: /[0-9]{1,3}/\n";
    let spec = world.spec(&GrammarSource::Lark(lark.into()));
    let texts: Vec<String> = (0..30).filter_map(|seed| complete(&spec, seed)).collect();
    assert!(texts.len() >= 10, "{texts:?}");
    for text in texts {
        assert_eq!(read_sum(text.as_bytes()), Some(&b""[..]), "{text}");
    }
}

/// Each is refused, or compiled, within the limit of time; never more than that, and never a crash.
#[test]
fn hostile_grammars_take_no_more_than_their_time() {
    let world = World::with(CompilerLimits::default());
    let schema = |schema: Value| GrammarSource::Schema { schema, whitespace: Whitespace::Some };
    let chain = |n: usize| {
        let defs: serde_json::Map<String, Value> =
            (0..n).map(|i| (format!("d{i}"), json!({"$ref": format!("#/$defs/d{}", i + 1)}))).collect();
        let mut defs = defs;
        defs.insert(format!("d{n}"), json!({"type": "null"}));
        json!({"$ref": "#/$defs/d0", "$defs": defs})
    };
    let doubling = |keyword: &str| {
        let mut defs = serde_json::Map::new();
        for i in 0..24 {
            let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
            defs.insert(format!("d{i}"), json!({keyword: [next, next], "properties": {"a": next}}));
        }
        defs.insert("d24".into(), json!({"type": "object"}));
        json!({"$ref": "#/$defs/d0", "$defs": defs})
    };
    let product = json!({"allOf": vec![json!({"anyOf": (0..12).map(|i| json!({"minimum": i})).collect::<Vec<_>>()}); 12]});
    let wide = json!({"type": "object", "properties": (0..2000).map(|i| (format!("p{i}"), json!({"type": "integer"}))).collect::<serde_json::Map<_, _>>()});
    let patterns = json!({"patternProperties": (0..40).map(|i| (format!("(a|b)*a(a|b){{{i}}}$"), json!({}))).collect::<serde_json::Map<_, _>>()});
    let deep_text = |open: &str, close: &str| format!("{}a{}", open.repeat(99), close.repeat(99));
    let sources = [
        ("chain of references", schema(chain(5000))),
        (
            "circle",
            schema(
                json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
            ),
        ),
        (
            "circle with siblings",
            schema(json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a", "type": "object"}}})),
        ),
        (
            "never ending object",
            schema(json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]})),
        ),
        ("doubling all of", schema(doubling("allOf"))),
        ("doubling any of", schema(doubling("anyOf"))),
        ("product", schema(product)),
        ("wide", schema(wide)),
        ("overlapping patterns", schema(patterns)),
        (
            "large enum",
            schema(json!({"enum": (0..19_999).map(|i| format!("value {i}")).collect::<Vec<_>>()})),
        ),
        ("long string", schema(json!({"type": "string", "minLength": 99_999, "maxLength": 100_000}))),
        (
            "long list",
            schema(
                json!({"items": {"items": {"items": {}, "minItems": 99_999}, "minItems": 99_999}, "minItems": 99_999}),
            ),
        ),
        ("nested repetition", GrammarSource::Regex("((((a{100}){100}){100}){100}){100}".into())),
        ("bounded ambiguity", GrammarSource::Regex("(.*a.{300}){5}".into())),
        ("ambiguous", GrammarSource::Regex("(a*)*(a*)*(a|a?)+$".into())),
        ("deep expression", GrammarSource::Regex(deep_text("(", ")"))),
        ("negations", GrammarSource::Regex("[^a]{1000}[^b]{1000}[^c]{1000}".into())),
        ("ambiguous grammar", GrammarSource::Lark("start: s\ns: s s s | s s | \"a\" | \"\"\n".into())),
        (
            "deep grammar",
            GrammarSource::Lark(format!("start: {}", deep_text("(", ")").replace('a', "\"a\""))),
        ),
        ("ten megabytes", schema(json!({"description": "a".repeat(10 << 20)}))),
    ];
    // The compiler is not waited for any longer than its time. What is done before and after that is for this thread to do; its own processor
    // time does not grow with what else the machine does.
    let limit = Duration::from_secs(5);
    for (name, source) in sources {
        let start = thread_cpu();
        match world.compiler.compile(&source) {
            Ok(grammar) => {
                let parts = ConstraintParts { thinking: None, body: BodyPart::Grammar(grammar) };
                let spec = ConstraintSpec::new(parts, world.setting.clone(), NUM_ROWS)
                    .expect("a grammar is something");
                // It may fail, as one request; it may not take the server with it.
                Random::new(1).answer(spec.begin(), 20);
            }
            Err(error) => assert!(
                matches!(
                    error.fault,
                    GrammarFault::Invalid | GrammarFault::Unsupported | GrammarFault::TooComplex
                ),
                "{name}: {error:?}"
            ),
        }
        let taken = thread_cpu() - start;
        println!("{name}: {taken:?}");
        assert!(taken < limit, "{name} took {taken:?}");
    }
}

fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
