//! A model of random weights: logits that are noise, drawn from by the real sampler under the real masks.

#![allow(dead_code, reason = "every test binary uses its part")]

pub mod schemas;

use models::sampler::{Workspace, sample};
use perilune::chat::parse::ToolFormat;
use perilune::constrain::{CompilerLimits, Vocabulary, Words};
use scheduler::{Accepted, Constraint, Sample, Sampled, SamplingParams, TokenId};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// Tokens of several bytes, those that JSON is full of among them, and one that ends a string and goes on.
const WORDS: [&str; 24] = [
    "the",
    " moon",
    "é",
    "日本",
    "🌒",
    "{\"",
    "\":",
    "\",\"",
    "\"}",
    "}]",
    "true",
    "false",
    "null",
    "  ",
    "\n",
    "\n  ",
    ": ",
    ", ",
    "00",
    "12",
    "-1",
    "[[",
    "\\\"",
    "a\": 1, \"b",
];
pub const END: TokenId = 256 + WORDS.len() as TokenId;
/// Rows of the embedding: more than there are tokens.
pub const NUM_ROWS: usize = END as usize + 9;

/// The defaults, but for times that a busy machine may need.
pub fn limits() -> CompilerLimits {
    let patience = Duration::from_secs(300);
    CompilerLimits { compile_time: patience, locate_time: patience, ..CompilerLimits::default() }
}

/// Every format of calls.
pub const FORMATS: [ToolFormat; 14] = [
    ToolFormat::KimiK2,
    ToolFormat::Hermes,
    ToolFormat::Qwen3Coder,
    ToolFormat::SeedOss,
    ToolFormat::MiniMaxM2,
    ToolFormat::Glm,
    ToolFormat::Llama3Json,
    ToolFormat::Pythonic,
    ToolFormat::DeepSeekV3,
    ToolFormat::DeepSeekV31,
    ToolFormat::MistralList,
    ToolFormat::Mistral,
    ToolFormat::Harmony,
    ToolFormat::SolarOpen,
];

pub fn vocabulary() -> Vocabulary {
    let mut words: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    words.extend(WORDS.map(|word| word.as_bytes().to_vec()));
    words.extend(["<|end|>", "<|other|>"].map(|name| name.as_bytes().to_vec()));
    let mut is_control = vec![false; words.len()];
    is_control[END as usize..].fill(true);
    Vocabulary::new(Words { words, is_control, ends: vec![END] }, None)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Stop,
    Length,
    Failed,
}

pub struct Answer {
    pub text: String,
    pub ended: Ended,
}

/// Random numbers of a linear congruential generator.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = self.0 ^ (self.0 >> 33);
        x.wrapping_mul(0xFF51_AFD7_ED55_8CCD) >> 20
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One answer under a constraint. The end, quotes and brackets are likelier than the rest, or few answers would end.
    pub fn answer(&mut self, constraint: Box<dyn Constraint>, max_tokens: usize) -> Answer {
        self.answer_liking(&[], constraint, max_tokens)
    }

    /// The same from weights that say any of `liked` wherever they may.
    pub fn answer_liking(
        &mut self,
        liked: &[TokenId],
        mut constraint: Box<dyn Constraint>,
        max_tokens: usize,
    ) -> Answer {
        let vocabulary = vocabulary();
        let params = Arc::new(SamplingParams { seed: self.next(), ..SamplingParams::default() });
        let mut work = Workspace::default();
        let mut bytes = Vec::new();
        let answer =
            |bytes: &[u8], ended| Answer { text: String::from_utf8_lossy(bytes).into_owned(), ended };
        for position in 0..max_tokens {
            let mut logits: Vec<f32> = (0..NUM_ROWS).map(|_| self.below(1000) as f32 / 500.0).collect();
            for (token, more) in
                [(END, 4.0), (u32::from(b'"'), 4.0), (u32::from(b'}'), 2.0), (u32::from(b']'), 2.0)]
            {
                logits[token as usize] += more;
            }
            for &token in liked {
                logits[token as usize] += 50.0;
            }
            let mask = constraint.next_mask();
            let request = Sample { mask, ..Sample::new(params.clone(), position, position) };
            let Sampled::Token(sampled) = sample(&mut logits, request.row(0), &mut work) else {
                return answer(&bytes, Ended::Failed);
            };
            if sampled.token != END {
                bytes.extend_from_slice(vocabulary.bytes(sampled.token));
            }
            match constraint.accept(sampled.token) {
                _ if sampled.token == END => return answer(&bytes, Ended::Stop),
                Accepted::Open => {}
                Accepted::Complete => return answer(&bytes, Ended::Stop),
                Accepted::Failed => return answer(&bytes, Ended::Failed),
            }
        }
        answer(&bytes, Ended::Length)
    }
}

/// JSON allows numbers that no float holds, and the parser does not: their exponents are cut.
pub fn parse_json(text: &str) -> serde_json::Result<Value> {
    serde_json::from_str(text).or_else(|error| {
        let exponent = regex::Regex::new(r"([0-9][eE][+-]?)[0-9]{3,}").expect("an expression");
        match error.to_string().contains("number out of range") {
            true => serde_json::from_str(&exponent.replace_all(text, "${1}1")),
            false => Err(error),
        }
    })
}
