//! Constraints without a server: a vocabulary of single bytes and a few words, sampled at random.

use super::pool::Job;
use super::*;
use crate::chat::parse::ReasoningMarkers;
use scheduler::{Accepted, Constraint, TokenId};
use serde_json::{Value, json};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

const WORDS: [&str; 10] = ["the", " moon", "é", "日本", "{\"", "\":", "true", "  ", "\n", "k>{"];
const END: TokenId = 266;
const THINK: TokenId = 267;
const CALL: TokenId = 268;
const NUM_ROWS: usize = 280;

fn vocabulary() -> Vocabulary {
    let mut words: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    words.extend(WORDS.map(|word| word.as_bytes().to_vec()));
    words.extend(["<|end|>", "<think>", "<call>"].map(|name| name.as_bytes().to_vec()));
    let mut is_control = vec![false; words.len()];
    is_control[END as usize..].fill(true);
    Vocabulary::new(Words { words, is_control, ends: vec![END] }, None)
}

/// The defaults, but for times that a busy machine may need.
fn limits() -> CompilerLimits {
    let patience = Duration::from_secs(300);
    CompilerLimits { compile_time: patience, locate_time: patience, ..CompilerLimits::default() }
}

fn compiler() -> GrammarCompiler {
    GrammarCompiler::new(vocabulary, limits())
}

struct World {
    compiler: GrammarCompiler,
    setting: Setting,
}

impl World {
    fn new() -> Self {
        let compiler = compiler();
        let ends = Ends { stops: Arc::new([END]), model: Arc::new([END]) };
        let vocabulary = compiler.vocabulary().expect("a vocabulary");
        Self { setting: Setting { vocabulary, pool: Arc::new(MaskPool::new(1)), ends }, compiler }
    }

    fn grammar(&self, source: GrammarSource) -> Grammar {
        self.compiler.compile(&source).unwrap_or_else(|error| panic!("{source:?}: {error}"))
    }

    fn schema(&self, schema: Value) -> Grammar {
        self.grammar(GrammarSource::Schema { schema, whitespace: Whitespace::Some })
    }

    fn begin(&self, thinking: Option<ThinkingPart>, body: BodyPart) -> Box<dyn Constraint> {
        let parts = ConstraintParts { thinking, body };
        ConstraintSpec::new(parts, self.setting.clone(), NUM_ROWS).expect("asks for something").begin()
    }

    /// Says a text token by token; `<|…|>` tokens by their ids.
    fn say(&self, constraint: &mut dyn Constraint, tokens: &[TokenId]) -> Vec<Accepted> {
        tokens
            .iter()
            .map(|&token| {
                if let Some(mask) = constraint.next_mask() {
                    let allowed = mask.allowed().expect("a mask");
                    let word = allowed.get(token as usize / 32).copied().unwrap_or(0);
                    assert!(word >> (token % 32) & 1 == 1, "token {token} is not allowed");
                }
                constraint.accept(token)
            })
            .collect()
    }

    fn allowed(&self, constraint: &mut dyn Constraint) -> Option<Vec<TokenId>> {
        let mask = constraint.next_mask()?;
        let words = mask.allowed().expect("a mask").to_vec();
        let bit = |token: &TokenId| {
            words.get(*token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
        };
        Some((0..NUM_ROWS as TokenId).filter(bit).collect())
    }
}

fn bytes(text: &str) -> Vec<TokenId> {
    text.bytes().map(TokenId::from).collect()
}

/// An object with one whole number.
fn number_object(world: &World) -> Grammar {
    world.schema(json!({
        "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false,
    }))
}

fn thinking(is_open: bool, budget: Option<usize>) -> ThinkingPart {
    let markers =
        ReasoningMarkers { start: "<think>".to_owned(), end: "</think>".to_owned(), open_in_prompt: is_open };
    ThinkingPart { markers, budget, calls: None }
}

const BRACE: TokenId = b'{' as TokenId;
const BRACE_QUOTE: TokenId = 260;
/// `k>{`
const OVERHANG: TokenId = 265;

#[test]
fn a_grammar_allows_an_end_exactly_where_it_may_end() {
    let world = World::new();
    let mut constraint = world.begin(None, BodyPart::Grammar(number_object(&world)));
    assert_eq!(world.allowed(&mut *constraint), Some(vec![BRACE, BRACE_QUOTE]));
    let text = bytes("{\"a\": 15}");
    let (last, first) = text.split_last().expect("has tokens");
    assert!(world.say(&mut *constraint, first).iter().all(|&accepted| accepted == Accepted::Open));
    let inside = world.allowed(&mut *constraint).expect("a mask");
    assert!(inside.contains(last) && !inside.contains(&END), "{inside:?}");
    // Nothing may follow the last brace, so the sequence is complete without an end token.
    assert_eq!(world.say(&mut *constraint, &[*last]), [Accepted::Complete]);

    let mut constraint =
        world.begin(None, BodyPart::Grammar(world.grammar(GrammarSource::Regex("ab*".into()))));
    assert_eq!(world.allowed(&mut *constraint), Some(bytes("a")));
    world.say(&mut *constraint, &bytes("a"));
    assert_eq!(world.allowed(&mut *constraint), Some(vec![u32::from(b'b'), END]));
    assert_eq!(world.say(&mut *constraint, &[END]), [Accepted::Complete]);
}

#[test]
fn ends_of_the_request_are_ends_and_ignored_ends_are_not() {
    let mut world = World::new();
    let grammar = world.grammar(GrammarSource::Regex("ab*".into()));
    let b = u32::from(b'b');
    for (stops, expected) in [(vec![], vec![b]), (vec![CALL], vec![b, CALL]), (vec![b, END], vec![b, END])] {
        world.setting.ends = Ends { stops: stops.into(), model: Arc::new([END]) };
        let mut constraint = world.begin(None, BodyPart::Grammar(grammar.clone()));
        world.say(&mut *constraint, &bytes("a"));
        assert_eq!(world.allowed(&mut *constraint), Some(expected));
    }
}

#[test]
fn the_same_mask_is_there_when_it_is_asked_for_again() {
    let world = World::new();
    let mut constraint = world.begin(None, BodyPart::Grammar(number_object(&world)));
    let first = constraint.next_mask().expect("a mask");
    let again = constraint.next_mask().expect("a mask");
    assert_eq!(Arc::as_ptr(&first).cast::<()>(), Arc::as_ptr(&again).cast::<()>());
    // A copy goes its own way.
    world.say(&mut *constraint, &bytes("{\"a\":1"));
    let mut copy = constraint.boxed_clone();
    assert_eq!(world.say(&mut *constraint, &bytes("}")), [Accepted::Complete]);
    assert_eq!(world.say(&mut *copy, &bytes("23}")).last(), Some(&Accepted::Complete));
}

/// Holds the only thread of a pool, or says when it has come so far.
#[derive(Default)]
struct Stop(Mutex<bool>, Condvar);

impl Stop {
    fn open(&self) {
        *self.0.lock().expect("no panic under the lock") = true;
        self.1.notify_all();
    }

    fn wait(&self) {
        let is_open = self.0.lock().expect("no panic under the lock");
        drop(self.1.wait_while(is_open, |is_open| !*is_open).expect("no panic under the lock"));
    }
}

/// Says that it was reached, and waits to be let go.
struct Barrier {
    reached: Stop,
    go_on: Stop,
}

impl Job for Barrier {
    fn run(&self) {
        self.reached.open();
        self.go_on.wait();
    }
}

#[test]
fn a_mask_begins_with_the_token_before_it() {
    let world = World::new();
    let mut constraint = world.begin(None, BodyPart::Grammar(number_object(&world)));
    let barrier = || Arc::new(Barrier { reached: Stop::default(), go_on: Stop::default() });
    // The pool's thread does one thing after the other.
    let (before, after) = (barrier(), barrier());
    world.setting.pool.start(before.clone());
    before.reached.wait();
    assert_eq!(constraint.accept(u32::from(b'{')), Accepted::Open);
    world.setting.pool.start(after.clone());
    before.go_on.open();
    after.reached.wait();
    let mask = constraint.next_mask().expect("a mask");
    assert!(mask.is_ready(), "it was not begun by the token");
    after.go_on.open();
}

/// What the engine's thread does with a token: it waits neither for a grammar nor for a mask before it asks for them.
#[test]
fn a_token_is_taken_in_by_whoever_comes_first() {
    let world = World::new();
    let begin = || world.begin(None, BodyPart::Grammar(number_object(&world)));
    let barrier = || Arc::new(Barrier { reached: Stop::default(), go_on: Stop::default() });
    let (mut first, mut second, mut copied) = (begin(), begin(), begin());
    let (before, after) = (barrier(), barrier());
    world.setting.pool.start(before.clone());
    before.reached.wait();
    let token = u32::from(b'{');
    for constraint in [&mut first, &mut second, &mut copied] {
        assert_eq!(constraint.begin_accept(token), None);
        constraint.start_accept();
        assert!(!constraint.next_mask().expect("a mask").is_ready(), "nobody has time for it");
    }
    // By who asks.
    let mask = first.next_mask().expect("a mask");
    assert_eq!(first.finish_accept(), Accepted::Open);
    assert!(!mask.is_ready(), "the mask is not waited for");
    // A copy has taken it in too, and each is asked by itself.
    let mut copy = copied.boxed_clone();
    assert_eq!((copied.finish_accept(), copy.finish_accept()), (Accepted::Open, Accepted::Open));
    assert_eq!(copied.begin_accept(u32::from(b'x')), None);
    assert_eq!(copied.finish_accept(), Accepted::Failed);
    assert_eq!(world.allowed(&mut *copy), world.allowed(&mut *first));
    // By the pool.
    world.setting.pool.start(after.clone());
    before.go_on.open();
    after.reached.wait();
    assert!(second.next_mask().expect("a mask").is_ready());
    assert_eq!(second.finish_accept(), Accepted::Open);
    assert_eq!(world.allowed(&mut *second), world.allowed(&mut *first));
    after.go_on.open();
}

/// The step is made before it is known whether the call is complete.
#[test]
fn after_a_call_that_ends_meanwhile_comes_what_may_come_after_it() {
    let world = World::new();
    let grammar = world.grammar(GrammarSource::Regex("ab?".into()));
    let part = CallsPart { triggers: vec!["<call>".to_owned()], grammar, after: AfterCall::Watch };
    let mut constraint = world.begin(None, BodyPart::Triggered(part));
    world.say(&mut *constraint, &[CALL]);
    world.say(&mut *constraint, &bytes("a"));
    assert_eq!(constraint.begin_accept(u32::from(b'b')), None);
    let everything: Vec<TokenId> = (0..NUM_ROWS as TokenId).collect();
    assert_eq!(world.allowed(&mut *constraint), Some(everything));
    assert_eq!(constraint.finish_accept(), Accepted::Open);
    assert_eq!(world.allowed(&mut *constraint), None);
    world.say(&mut *constraint, &bytes("free"));
}

#[test]
fn threads_of_a_pool_call_each_other() {
    let pool = MaskPool::new(3);
    for _ in 0..50 {
        let barrier = |_| Arc::new(Barrier { reached: Stop::default(), go_on: Stop::default() });
        let barriers: Vec<_> = (0..3).map(barrier).collect();
        barriers.iter().for_each(|barrier| pool.start(barrier.clone()));
        // None ends before all have begun.
        barriers.iter().for_each(|barrier| barrier.reached.wait());
        barriers.iter().for_each(|barrier| barrier.go_on.open());
    }
}

#[test]
fn what_nobody_wants_is_not_done_and_threads_end_with_the_pool() {
    struct Once(Stop);
    impl Job for Once {
        fn run(&self) {
            assert!(!*self.0.0.lock().expect("no panic under the lock"), "nobody wants it");
            self.0.open();
        }
    }
    let pool = MaskPool::new(1);
    let barrier = Arc::new(Barrier { reached: Stop::default(), go_on: Stop::default() });
    pool.start(barrier.clone());
    barrier.reached.wait();
    let (wanted, unwanted) = (Arc::new(Once(Stop::default())), Arc::new(Once(Stop::default())));
    unwanted.0.open();
    let gone = Arc::downgrade(&unwanted);
    pool.start(unwanted);
    pool.start(wanted.clone());
    barrier.go_on.open();
    wanted.0.wait();
    assert!(gone.upgrade().is_none());
    let left = Arc::downgrade(&barrier);
    pool.start(barrier);
    drop(pool);
    // The thread drops what it was given, and ends.
    while left.upgrade().is_some() {
        std::thread::yield_now();
    }
}

#[test]
fn a_token_against_the_grammar_fails_the_sequence() {
    let world = World::new();
    let mut constraint = world.begin(None, BodyPart::Grammar(number_object(&world)));
    assert_eq!(constraint.accept(u32::from(b'x')), Accepted::Failed);
    let mask = constraint.next_mask().expect("a mask");
    assert_eq!(mask.allowed(), None);
}

#[test]
fn thinking_is_free_and_the_answer_after_it_is_not() {
    let world = World::new();
    let body = BodyPart::Grammar(number_object(&world));
    let mut constraint = world.begin(Some(thinking(true, None)), body);
    world.say(&mut *constraint, &bytes("let me { see </think"));
    // It cannot end here, nor take anything along that the answer does not begin with: `>` alone, or more thinking.
    let allowed = world.allowed(&mut *constraint).expect("a mask");
    assert!(!allowed.contains(&END) && allowed.contains(&u32::from(b'>')) && allowed.contains(&CALL));
    world.say(&mut *constraint, &bytes(">"));
    assert_eq!(world.allowed(&mut *constraint), Some(vec![BRACE, BRACE_QUOTE]));
    assert_eq!(world.say(&mut *constraint, &bytes("{\"a\":1}")).last(), Some(&Accepted::Complete));
}

#[test]
fn a_token_that_ends_thinking_and_begins_the_answer_is_taken_where_it_fits() {
    let world = World::new();
    for (source, fits) in [("\\{a", true), ("a", false)] {
        let body = BodyPart::Grammar(world.grammar(GrammarSource::Regex(source.into())));
        let mut constraint = world.begin(Some(thinking(true, None)), body);
        world.say(&mut *constraint, &bytes("</thin"));
        let allowed = world.allowed(&mut *constraint).expect("a mask");
        assert_eq!(allowed.contains(&OVERHANG), fits, "{source}");
        if fits {
            world.say(&mut *constraint, &[OVERHANG]);
            assert_eq!(world.allowed(&mut *constraint), Some(bytes("a")));
        }
    }
}

#[test]
fn a_budget_ends_thinking_with_the_marker_itself() {
    let world = World::new();
    let end = bytes("</think>");
    for body in [BodyPart::Free, BodyPart::Grammar(number_object(&world))] {
        let is_free = matches!(body, BodyPart::Free);
        for budget in [0, 1, 3] {
            let mut constraint = world.begin(Some(thinking(true, Some(budget))), body.clone());
            world.say(&mut *constraint, &bytes("abc")[..budget]);
            for &token in &end {
                assert_eq!(world.allowed(&mut *constraint), Some(vec![token]), "budget {budget}");
                assert_eq!(constraint.accept(token), Accepted::Open);
            }
            let expected = (!is_free).then(|| vec![BRACE, BRACE_QUOTE]);
            assert_eq!(world.allowed(&mut *constraint), expected);
        }
        // What of the marker was said already is not said again.
        let mut constraint = world.begin(Some(thinking(true, Some(4))), body.clone());
        world.say(&mut *constraint, &bytes("ab</"));
        assert_eq!(world.allowed(&mut *constraint), Some(bytes("t")));
        // Thinking that ends by itself is not ended again.
        let mut constraint = world.begin(Some(thinking(true, Some(100))), body.clone());
        world.say(&mut *constraint, &bytes("ab</think>"));
        assert_eq!(world.allowed(&mut *constraint).is_none(), is_free);
    }
}

#[test]
fn thinking_may_begin_in_the_answer_or_not_at_all() {
    let world = World::new();
    let body = BodyPart::Grammar(number_object(&world));
    let mut constraint = world.begin(Some(thinking(false, Some(2))), body.clone());
    assert_eq!(world.allowed(&mut *constraint), Some(vec![BRACE, BRACE_QUOTE, THINK]));
    let mut other = constraint.boxed_clone();
    assert_eq!(world.say(&mut *other, &bytes("{\"a\":1}")).last(), Some(&Accepted::Complete));
    world.say(&mut *constraint, &[THINK]);
    world.say(&mut *constraint, &bytes("xy</think>{\"a\":1"));

    // Without a grammar the marker is looked for in the text, after blanks too.
    let mut constraint = world.begin(Some(thinking(false, Some(2))), BodyPart::Free);
    world.say(&mut *constraint, &bytes("\n <think>xy"));
    assert_eq!(world.allowed(&mut *constraint), Some(bytes("<")));
    let mut constraint = world.begin(Some(thinking(false, Some(2))), BodyPart::Free);
    world.say(&mut *constraint, &bytes("no <think>xyz"));
    assert_eq!(world.allowed(&mut *constraint), None);
}

#[test]
fn a_trigger_begins_a_grammar_each_time() {
    let world = World::new();
    let calls = |after| CallsPart {
        triggers: vec!["<call>".to_owned(), "[[".to_owned()],
        grammar: number_object(&world),
        after,
    };
    let body = |after| BodyPart::Triggered(calls(after));
    let mut constraint = world.begin(None, body(AfterCall::Watch));
    world.say(&mut *constraint, &bytes("free <call text {x}"));
    assert_eq!(world.allowed(&mut *constraint), None);
    for trigger in [vec![CALL], bytes("[["), bytes("<call>")] {
        world.say(&mut *constraint, &trigger);
        assert_eq!(world.allowed(&mut *constraint), Some(vec![BRACE, BRACE_QUOTE]));
        assert_eq!(world.say(&mut *constraint, &bytes("{\"a\":1}")).last(), Some(&Accepted::Open));
        assert_eq!(world.allowed(&mut *constraint), None);
    }
    let mut constraint = world.begin(None, body(AfterCall::End));
    world.say(&mut *constraint, &[CALL]);
    assert_eq!(world.say(&mut *constraint, &bytes("{\"a\":1}")).last(), Some(&Accepted::Complete));
}

/// What reads the answer takes a call for one although the thinking has not ended, so it is held there too.
#[test]
fn a_call_ends_the_thinking_and_is_held() {
    let world = World::new();
    let calls =
        |after| CallsPart { triggers: vec!["<call>".to_owned()], grammar: number_object(&world), after };
    let in_thinking = |part: CallsPart| ThinkingPart { calls: Some(part), ..thinking(true, Some(40)) };
    let strings = || BodyPart::Grammar(world.grammar(GrammarSource::Regex("[a-c]+".into())));
    for (thinking, body, after) in [
        (thinking(true, Some(40)), BodyPart::Triggered(calls(AfterCall::Watch)), Accepted::Open),
        (thinking(true, Some(40)), BodyPart::Triggered(calls(AfterCall::End)), Accepted::Complete),
        (in_thinking(calls(AfterCall::End)), strings(), Accepted::Complete),
    ] {
        let mut constraint = world.begin(Some(thinking.clone()), body.clone());
        world.say(&mut *constraint, &bytes("hm <call"));
        let fork = constraint.boxed_clone();
        for (mut constraint, rest) in [(constraint, bytes(">")), (fork, vec![])] {
            if rest.is_empty() {
                // It may go on thinking.
                world.say(&mut *constraint, &bytes("? no</think>"));
                continue;
            }
            world.say(&mut *constraint, &rest);
            assert_eq!(world.allowed(&mut *constraint), Some(vec![BRACE, BRACE_QUOTE]));
            assert_eq!(world.say(&mut *constraint, &bytes("{\"a\":1}")).last(), Some(&after));
        }
        // The marker comes first: what follows it is no longer thinking.
        let mut constraint = world.begin(Some(thinking), body);
        world.say(&mut *constraint, &bytes("hm</think>a"));
    }
}

#[test]
fn patterns_are_text_with_grammars_in_it() {
    let world = World::new();
    let call = |name: &str, schema: Value| {
        Pattern::Sequence(vec![
            Pattern::Text(format!("<call>{name}\n")),
            Pattern::Json { schema, part: format!("tools.{name}") },
            Pattern::Text("</call>".to_owned()),
        ])
    };
    let tools = Pattern::Any(vec![
        call(
            "f",
            json!({"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": false}),
        ),
        call("g", json!({"enum": ["\"quoted\""]})),
    ]);
    let pattern = Pattern::Repeat { pattern: Box::new(tools), min: 1, max: Some(2) };
    let mut constraint = world.begin(None, BodyPart::Grammar(world.grammar(GrammarSource::Pattern(pattern))));
    assert_eq!(world.allowed(&mut *constraint), Some(vec![CALL]));
    world.say(&mut *constraint, &[CALL]);
    assert_eq!(world.allowed(&mut *constraint), Some(bytes("fg")));
    world.say(&mut *constraint, &bytes("f\n{\"x\": 3}</call>"));
    assert_eq!(world.allowed(&mut *constraint), Some(vec![END, CALL]));
    world.say(&mut *constraint, &[CALL]);
    let accepted = world.say(&mut *constraint, &bytes("g\n\"\\\"quoted\\\"\"</call>"));
    assert_eq!(accepted.last(), Some(&Accepted::Complete));

    let bad = Pattern::Json { schema: json!({"uniqueItems": true}), part: "tools[3]".to_owned() };
    let error = world.compiler.compile(&GrammarSource::Pattern(bad)).expect_err("is not enforced");
    assert_eq!((error.fault, error.part.as_deref()), (GrammarFault::Unsupported, Some("tools[3]")));
    assert_eq!(error.pointer.as_deref(), Some("#/uniqueItems"));
}

#[test]
fn grammars_are_kept_and_the_oldest_go() {
    let compiler = GrammarCompiler::new(vocabulary, CompilerLimits { num_cached: 2, ..limits() });
    let compile = |text: &str| compiler.compile(&GrammarSource::Regex(text.into())).expect("compiles");
    let first = compile("a");
    assert!(first.is_same(&compile("a")));
    compile("b");
    assert!(first.is_same(&compile("a")));
    compile("c");
    assert!(first.is_same(&compile("a")), "b was used longer ago");
    compile("d");
    compile("e");
    assert!(!first.is_same(&compile("a")));
}

/// Thousands of choices are one expression, by themselves and as a part; each is reached, letters that mean something there included.
#[test]
fn choices_may_be_many() {
    let world = World::new();
    let mut choices: Vec<String> = (0..3000).map(|i| format!("class {}", i * 7 % 3000)).collect();
    choices.extend(["a", "ab", "(.*)", "a/b\\", "x\n|y", "[\"é\"]", "#-&~ ", "a"].map(String::from));
    let alone = GrammarSource::Choice(choices.clone());
    let part = alone.clone().into_pattern("guided_choice").expect("is a part of a language");
    for source in [alone, GrammarSource::Pattern(part)] {
        for choice in choices.iter().step_by(97).chain(&choices[3000..]) {
            let tokens: Vec<TokenId> = choice.bytes().map(TokenId::from).chain([END]).collect();
            let mut constraint = world.begin(None, BodyPart::Grammar(world.grammar(source.clone())));
            let accepted = world.say(&mut *constraint, &tokens);
            assert!(matches!(accepted.last(), Some(Accepted::Complete)), "{choice:?} {accepted:?}");
        }
        let mut constraint = world.begin(None, BodyPart::Grammar(world.grammar(source)));
        assert!(constraint.next_mask().is_some());
    }
    let part = GrammarSource::Choice(vec![]).into_pattern("guided_choice").expect("is a part of a language");
    assert!(world.compiler.compile(&GrammarSource::Pattern(part)).is_err());
}

#[test]
fn what_is_no_grammar_is_told_so() {
    let world = World::new();
    let fault = |source| world.compiler.compile(&source).expect_err("is no grammar").fault;
    use GrammarFault::{Invalid, TooComplex, Unsupported};
    for (regex, expected) in [("", Invalid), ("(", Invalid), ("a{2,1}", Invalid), ("(?=a)b", Invalid)] {
        assert_eq!(fault(GrammarSource::Regex(regex.into())), expected, "{regex}");
    }
    assert_eq!(fault(GrammarSource::Regex("(".repeat(200))), TooComplex);
    assert_eq!(fault(GrammarSource::Regex("a".repeat(70_000))), TooComplex);
    assert_eq!(fault(GrammarSource::Choice(vec![])), Invalid);
    assert_eq!(fault(GrammarSource::Choice(vec!["a".into(), String::new()])), Invalid);
    assert_eq!(fault(GrammarSource::Choice(vec!["a".into(); 10_001])), Invalid);
    for (lark, expected) in [
        ("", Invalid),
        ("start: nowhere", Invalid),
        ("start: start", Invalid),
        ("root ::= \"a\"", Unsupported),
        ("start: %json {}", Unsupported),
        ("%llguidance {}\nstart: \"a\"", Unsupported),
    ] {
        assert_eq!(fault(GrammarSource::Lark(lark.into())), expected, "{lark}");
    }
    let unsatisfiable = [
        json!(false),
        json!({"type": "string", "enum": [1]}),
        json!({"$ref": "#"}),
        json!({"minimum": 2, "maximum": 1, "type": "integer"}),
    ];
    for schema in unsatisfiable {
        let source = GrammarSource::Schema { schema: schema.clone(), whitespace: Whitespace::Some };
        assert_eq!(fault(source), Invalid, "{schema}");
    }
}
