//! What holding an answer to a schema costs: compiling it, beginning it for a sequence, and a mask for each token, over a vocabulary of
//! Kimi's size. Masks are computed while the model runs; they delay a step only where they take longer than it.
//!
//! `cargo bench -p perilune --bench masks`; without `--bench`, as in a test run, a small vocabulary.

mod made_up;
#[path = "../tests/random/mod.rs"]
mod random;

use made_up::{NUM_CONTROLS, sources, words};
use perilune::constrain::{
    BodyPart, CompilerLimits, ConstraintParts, ConstraintSpec, Ends, GrammarCompiler, GrammarSource,
    MaskPool, Setting, Vocabulary, Words,
};
use random::Random;
use scheduler::{Accepted, Constraint, TokenId};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn main() {
    let is_bench = std::env::args().any(|arg| arg == "--bench");
    let num_tokens = if is_bench { 163_840 } else { 3000 };
    let start = Instant::now();
    let words = words(num_tokens);
    println!("{num_tokens} tokens made up in {:.2?}", start.elapsed());
    let end = num_tokens as TokenId - 1;
    let before = resident();
    let compiler = GrammarCompiler::new(
        move || {
            let mut is_control = vec![false; words.len()];
            is_control[words.len() - NUM_CONTROLS..].fill(true);
            Vocabulary::new(Words { words: words.clone(), is_control, ends: vec![end] }, None)
        },
        CompilerLimits::default(),
    );
    let start = Instant::now();
    let vocabulary = compiler.vocabulary().expect("a vocabulary");
    println!("vocabulary: {:.2?}, {} MiB", start.elapsed(), (resident() - before) >> 20);
    let ends = Ends { stops: Arc::new([end]), model: Arc::new([end]) };
    let setting = Setting { vocabulary, pool: Arc::new(MaskPool::new(1)), ends };
    println!("| schema | compile | begin | masks | mean | p50 | p90 | p99 | max | accept |");
    println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    let num_answers = if is_bench { 30 } else { 1 };
    for (name, source) in sources() {
        measure(name, &source, &compiler, &setting, num_answers);
    }
}

fn measure(
    name: &str,
    source: &GrammarSource,
    compiler: &GrammarCompiler,
    setting: &Setting,
    num_answers: u64,
) {
    let start = Instant::now();
    let grammar = compiler.compile(source).unwrap_or_else(|error| panic!("{name}: {error}"));
    let compile = start.elapsed();
    let parts = ConstraintParts { thinking: None, body: BodyPart::Grammar(grammar) };
    let num_rows = setting.vocabulary.len();
    let spec = ConstraintSpec::new(parts, setting.clone(), num_rows).expect("a grammar is something");
    let (mut masks, mut accepts, mut begin) = (Vec::new(), Duration::ZERO, Duration::ZERO);
    for seed in 0..num_answers {
        let mut random = Random::new(seed);
        let start = Instant::now();
        let mut constraint = spec.begin();
        begin += start.elapsed();
        for _ in 0..60 {
            let start = Instant::now();
            let token = choose(&mut random, &mut *constraint, &setting.vocabulary);
            masks.push(start.elapsed());
            let start = Instant::now();
            let accepted = constraint.accept(token);
            accepts += start.elapsed();
            if accepted != Accepted::Open {
                break;
            }
        }
    }
    masks.sort_unstable();
    let at = |share: f64| micros(masks[((masks.len() - 1) as f64 * share) as usize]);
    let mean = masks.iter().sum::<Duration>() / masks.len() as u32;
    println!(
        "| {name} | {:.1} ms | {:.0} µs | {} | {} | {} | {} | {} | {} | {} |",
        compile.as_secs_f64() * 1e3,
        begin.as_secs_f64() * 1e6 / num_answers as f64,
        masks.len(),
        micros(mean),
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0),
        micros(accepts / masks.len() as u32),
    );
}

fn micros(duration: Duration) -> String {
    format!("{:.0} µs", duration.as_secs_f64() * 1e6)
}

/// A token of the mask: one of its longer ones, as a model would, more often than one of single bytes.
fn choose(random: &mut Random, constraint: &mut dyn Constraint, vocabulary: &Vocabulary) -> TokenId {
    let mask = constraint.next_mask().expect("grammars have masks");
    let words = mask.allowed().expect("a mask");
    let first = random.below(words.len());
    let allowed = |word: usize| {
        (0..32).filter(move |bit| words[word] >> bit & 1 == 1).map(move |bit| (word * 32 + bit) as TokenId)
    };
    let some: Vec<TokenId> =
        (0..words.len()).flat_map(|i| allowed((first + i) % words.len())).take(8).collect();
    *some.iter().max_by_key(|&&token| vocabulary.bytes(token).len().min(6)).expect("a token is allowed")
}

/// Bytes of memory in use.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}
