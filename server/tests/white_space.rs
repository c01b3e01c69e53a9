//! Weights that like white space above everything else get only so much of it: no constrained answer can go on with it for ever.

use crate::random;

use perilune::chat::parse::ToolFormat;
use perilune::chat::parse::grammar::{CallRule, forced, triggered};
use perilune::constrain::{
    AfterCall, BodyPart, CallsPart, ConstraintParts, ConstraintSpec, Ends, GrammarCompiler, GrammarSource,
    MaskPool, Setting, Whitespace,
};
use random::{Answer, END, Ended, FORMATS, NUM_ROWS, Random, limits, vocabulary};
use scheduler::TokenId;
use serde_json::{Value, json};
use std::sync::Arc;

/// Most characters of white space between two tokens of JSON, as docs/structured-output.md has it.
const BETWEEN_MAX: usize = 40;

struct World {
    compiler: GrammarCompiler,
    setting: Setting,
    /// Every token that is white space.
    liked: Vec<TokenId>,
}

impl World {
    fn new() -> Self {
        let compiler = GrammarCompiler::new(vocabulary, limits());
        let ends = Ends { stops: Arc::new([END]), model: Arc::new([END]) };
        let vocabulary = compiler.vocabulary().expect("a vocabulary");
        let is_white = |token: &TokenId| matches!(vocabulary.bytes(*token), [_, ..] if vocabulary.bytes(*token).trim_ascii().is_empty());
        let liked: Vec<TokenId> = (0..END).filter(is_white).collect();
        assert!(liked.len() > 4, "bytes and words of white space");
        Self { setting: Setting { vocabulary, pool: Arc::new(MaskPool::new(1)), ends }, compiler, liked }
    }

    fn spec(&self, body: BodyPart) -> ConstraintSpec {
        let parts = ConstraintParts { thinking: None, body };
        ConstraintSpec::new(parts, self.setting.clone(), NUM_ROWS).expect("a grammar is something")
    }

    fn compile(&self, source: &GrammarSource) -> BodyPart {
        let grammar = self.compiler.compile(source);
        BodyPart::Grammar(grammar.unwrap_or_else(|error| panic!("{source:?}: {error}")))
    }
}

/// The longest run of white space outside of JSON's strings.
fn longest_run(text: &str) -> usize {
    let (mut is_inside, mut is_escaped) = (false, false);
    let (mut run, mut longest) = (0, 0);
    for c in text.chars() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = is_inside,
            '"' => is_inside = !is_inside,
            _ => {}
        }
        run = if !is_inside && c.is_ascii_whitespace() { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    longest
}

/// Texts that end by themselves, for what leaves nothing open but white space.
fn texts(world: &World, what: &str, spec: &ConstraintSpec, begun: &str) -> Vec<String> {
    let mut texts = Vec::new();
    for seed in 0..6 {
        let mut constraint = spec.begin();
        for byte in begun.bytes() {
            constraint.next_mask();
            constraint.accept(byte.into());
        }
        let Answer { text, ended } = Random::new(seed).answer_liking(&world.liked, constraint, 4000);
        assert_eq!(ended, Ended::Stop, "{what}, seed {seed}: {text}");
        texts.push(text);
    }
    texts
}

/// Nothing in it can be long but white space.
fn small() -> Value {
    json!({"type": "object", "additionalProperties": false, "required": ["n", "list", "inner"], "properties": {
        "n": {"type": "integer", "minimum": 0, "maximum": 9},
        "list": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        "inner": {"type": "object", "properties": {"kind": {"enum": ["a", "b c"]}}, "required": ["kind"], "additionalProperties": false},
    }})
}

#[test]
fn a_schema_leaves_a_bounded_room() {
    let world = World::new();
    for whitespace in [Whitespace::Some, Whitespace::None] {
        let source = GrammarSource::Schema { schema: small(), whitespace };
        let spec = world.spec(world.compile(&source));
        let most = if whitespace == Whitespace::Some { BETWEEN_MAX } else { 0 };
        for text in texts(&world, "schema", &spec, "") {
            serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert_eq!(longest_run(&text), most, "{whitespace:?}: {text}");
        }
    }
}

/// What an object of any kind has in it, it may have for ever; white space it may not. Line ends cannot stand in strings, so that weights
/// that like those get them between tokens only.
#[test]
fn an_object_of_any_kind_leaves_a_bounded_room() {
    let world = World::new();
    let spec = world.spec(world.compile(&GrammarSource::json_object()));
    let line_ends: Vec<TokenId> = b"\n\r\t".map(TokenId::from).into();
    for seed in 0..20 {
        let Answer { text, ended } = Random::new(seed).answer_liking(&line_ends, spec.begin(), 600);
        assert_ne!(ended, Ended::Failed, "{text}");
        assert_eq!(longest_run(&text), BETWEEN_MAX, "{text}");
    }
}

#[test]
fn calls_of_every_format_leave_a_bounded_room() {
    let world = World::new();
    let part = "tools[0].function.parameters".to_owned();
    let rules = [CallRule { name: "set".into(), schema: small(), part, is_strict: true }];
    // A format's own line ends stand beside the arguments' white space.
    let most = BETWEEN_MAX + 4;
    for format in FORMATS {
        let pattern = forced(format, &rules, false).expect("a grammar");
        let spec = world.spec(world.compile(&GrammarSource::Pattern(pattern)));
        for text in texts(&world, &format!("{format:?}"), &spec, "") {
            assert!((BETWEEN_MAX..=most).contains(&longest_run(&text)), "{format:?}: {text}");
        }
        let Some(calls) = triggered(format, &rules).expect("a grammar") else { continue };
        let BodyPart::Grammar(grammar) = world.compile(&GrammarSource::Pattern(calls.call)) else {
            unreachable!("a grammar is compiled")
        };
        let triggers = vec![calls.trigger.to_owned()];
        let spec = world.spec(BodyPart::Triggered(CallsPart { triggers, grammar, after: AfterCall::End }));
        if format == ToolFormat::MistralList {
            // Whether another call follows is the weights' choice, and these like what stands between two.
            continue;
        }
        for text in texts(&world, &format!("{format:?}"), &spec, calls.trigger) {
            assert!((BETWEEN_MAX..=most).contains(&longest_run(&text)), "{format:?}: {text}");
        }
    }
}
