//! Constraints without a server: a vocabulary of single bytes and a few words, sampled at random.

use super::*;
use crate::chat::parse::ReasoningMarkers;
use scheduler::{Accepted, Constraint, TokenId};
use serde_json::{Value, json};
use std::sync::Arc;

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

fn compiler() -> GrammarCompiler {
    GrammarCompiler::new(vocabulary, CompilerLimits::default())
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

#[test]
fn a_schema_ends_where_it_may_end() {
    let world = World::new();
    let grammar = world.schema(json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false}));
    let mut constraint = world.begin(None, BodyPart::Grammar(grammar));
    assert_eq!(world.allowed(&mut *constraint), Some(vec![u32::from(b'{'), 260]));
    let accepted = world.say(&mut *constraint, &bytes("{\"a\": 15}"));
    println!("{accepted:?} {:?}", world.allowed(&mut *constraint));
}
