//! A screened head in whole models: the tokens of the whole head, and the promises that plans and options make of it.

mod common;

use common::{FAMILIES, adapters, emulated, fixture, options};
use models::lora::Adapter;
use models::{
    ActivationsChoice, DTypeChoice, HeadScreeningChoice, LoadFormat, LoadOptions, Loaded, ModelFiles,
    QuantizationChoice, ScreenCounts,
};
use scheduler::{AdapterId, Engine, Event, NgramConfig, SamplingParams, Sequence, SequenceId};
use std::collections::BTreeMap;
use std::sync::Arc;

const VOCAB: usize = 4001;

/// A family's configuration with a vocabulary that is worth screening.
fn wide(family: &str) -> ModelFiles {
    let files = std::fs::read_dir(fixture(family)).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|ending| ending == "json"));
    let wide = files.map(|path| {
        let text = std::fs::read_to_string(&path).unwrap();
        let text = [128, 97, 130].iter().fold(text, |text, vocab| {
            let written = ["", " "].map(|space| format!("\"vocab_size\":{space}{vocab}"));
            written.iter().fold(text, |text, size| text.replace(size, &format!("\"vocab_size\": {VOCAB}")))
        });
        let name: &'static str = path.file_name().unwrap().to_str().unwrap().to_string().leak();
        (name, &*text.into_bytes().leak())
    });
    ModelFiles::Embedded(wide.collect::<Vec<(&'static str, &'static [u8])>>().leak())
}

/// Families whose heads can be screened: all that may draw every token.
fn screened() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().copied().filter(|&family| family != "chameleon")
}

fn dummy(head_screening: HeadScreeningChoice) -> LoadOptions {
    LoadOptions { load_format: LoadFormat::Dummy, seed: 3, head_screening, ..options() }
}

fn load(files: &ModelFiles, options: &LoadOptions) -> Loaded {
    models::load(files, options, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"))
}

/// Tokens of some requests that run together, and what became of the head's products.
fn answers(
    loaded: Loaded,
    params: &[SamplingParams],
    speculation: Option<NgramConfig>,
) -> (BTreeMap<u64, Vec<u32>>, ScreenCounts) {
    answers_with(loaded, params, speculation, &[])
}

/// The first requests with these adapters.
fn answers_with(
    loaded: Loaded,
    params: &[SamplingParams],
    speculation: Option<NgramConfig>,
    adapters: &[Option<AdapterId>],
) -> (BTreeMap<u64, Vec<u32>>, ScreenCounts) {
    let vocab_size = loaded.info.vocab_size;
    let mut engine = Engine::new(loaded.scheduler_config, loaded.runner);
    for (id, params) in params.iter().enumerate() {
        // With repetitions, for guesses.
        let prompt = (0..23 + 2 * id).map(|i| ((i % 7) * 31 + id) as u32 % 90).collect();
        let params = Arc::new(params.clone());
        let mut sequence =
            Sequence::new(SequenceId(id as u64), prompt, Vec::new(), params, vocab_size).unwrap();
        sequence.adapter = adapters.get(id).copied().flatten();
        let sequence = match speculation {
            Some(config) => sequence.speculating(config).unwrap(),
            None => sequence,
        };
        engine.add(sequence).unwrap();
    }
    let mut answers: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    while !engine.is_idle() {
        for event in engine.step().unwrap().events {
            let answer = answers.entry(event.id().0).or_default();
            match event {
                Event::Token { token, .. } => answer.push(token.token),
                Event::Started { .. } | Event::Finished { .. } => {}
                Event::PromptLogprobs { .. } | Event::Pooled { .. } => panic!("nobody asked for it"),
            }
        }
    }
    (answers, engine.runner().screen_counts())
}

/// What an adapter adds to logits is in no coarse copy: beside such rows the head is not screened, and nobody's tokens change.
#[test]
fn heads_that_an_adapter_changes() {
    let files = wide("llama");
    let folder = adapters::folder("screened-head");
    let head = BTreeMap::from([("lm_head".to_string(), [VOCAB, 40])]);
    let random = adapters::Random { seed: 1, rank: 4, b: 2.0 };
    adapters::write_adapter(&folder, 4, &adapters::tensors(&head, random));
    let params = [greedy(), greedy(), drawn(5, 3)];
    let with = |head_screening, who: &[Option<AdapterId>]| {
        let options = LoadOptions { max_loras: 1, max_lora_rank: 4, ..dummy(head_screening) };
        let mut loaded = load(&files, &options);
        let adapter = Adapter::read(&folder, loaded.adapters.as_ref().unwrap()).unwrap();
        loaded.runner.add_adapter(adapters::id(1), adapter).unwrap();
        answers_with(loaded, &params, None, who)
    };
    let own = [Some(adapters::id(1)), None, Some(adapters::id(1))];
    let (plain, counts) = with(HeadScreeningChoice::On, &[]);
    assert!(counts.screened > 0, "{counts:?}");
    let (expected, _) = with(HeadScreeningChoice::Off, &own);
    let (found, counts) = with(HeadScreeningChoice::On, &own);
    assert_eq!(found, expected);
    assert_eq!(counts.screened, 0, "{counts:?}");
    assert!(found[&0] != plain[&0] && found[&1] == plain[&1], "{found:?}");
}

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, max_tokens: 12, ..Default::default() }
}

fn drawn(top_k: usize, seed: u64) -> SamplingParams {
    SamplingParams { temperature: 1.3, top_k, top_p: 0.9, min_p: 0.01, seed, ..greedy() }
}

/// Both ways, with the counts of the screened one.
fn compare(
    files: &ModelFiles,
    options: &LoadOptions,
    params: &[SamplingParams],
    speculation: Option<NgramConfig>,
) -> ScreenCounts {
    let with = |head_screening| {
        let loaded = load(files, &LoadOptions { head_screening, ..options.clone() });
        answers(loaded, params, speculation)
    };
    let (expected, none) = with(HeadScreeningChoice::Off);
    assert_eq!(none, ScreenCounts::default());
    let (found, counts) = with(HeadScreeningChoice::On);
    assert_eq!(found, expected);
    assert!(found.values().all(|tokens| tokens.len() == 12), "{found:?}");
    counts
}

#[test]
fn tokens_are_those_of_the_whole_head_in_every_family() {
    let speculation = NgramConfig { num_speculative_tokens: 3, prompt_lookup_max: 3, prompt_lookup_min: 1 };
    for (i, family) in screened().enumerate() {
        let files = wide(family);
        let (dtype, activations) = [
            (DTypeChoice::F32, ActivationsChoice::F32),
            (DTypeChoice::BF16, ActivationsChoice::Auto),
            (DTypeChoice::F16, ActivationsChoice::Int8),
        ][i % 3];
        let options = LoadOptions { dtype, activations, ..dummy(HeadScreeningChoice::On) };
        let params = [greedy(), drawn(2, 5), greedy()];
        let counts = compare(&files, &options, &params, (i % 2 == 0).then_some(speculation));
        assert!(counts.screened > 4, "{family}: {counts:?}");
        assert!(counts.panels < 30 * counts.screened, "{family}: {counts:?}");
    }
}

#[test]
fn what_looks_at_more_takes_the_whole_head() {
    let files = wide("llama");
    let more = [
        SamplingParams { temperature: 1.0, ..greedy() },
        SamplingParams { logprobs: Some(1), ..greedy() },
        SamplingParams { repetition_penalty: 1.1, ..greedy() },
        SamplingParams { presence_penalty: 0.5, ..greedy() },
        SamplingParams { logit_bias: vec![(7, 2.0)], ..greedy() },
        SamplingParams { min_tokens: 12, stop_token_ids: vec![9], ..greedy() },
        drawn(65, 1),
    ];
    for params in more {
        let counts = compare(&files, &dummy(HeadScreeningChoice::On), std::slice::from_ref(&params), None);
        assert_eq!(counts, ScreenCounts::default(), "{params:?}");
        // Nor does who runs beside it.
        let counts = compare(&files, &dummy(HeadScreeningChoice::On), &[params, greedy()], None);
        assert_eq!(counts, ScreenCounts::default());
    }
}

#[test]
fn planned_bytes_are_allocated_bytes() {
    for family in screened() {
        let files = wide(family);
        for (dtype, quantization) in
            [(DTypeChoice::F32, QuantizationChoice::Auto), (DTypeChoice::BF16, QuantizationChoice::Int8)]
        {
            let options = LoadOptions { dtype, quantization, ..dummy(HeadScreeningChoice::On) };
            let planned = models::plan(&files, &options).unwrap();
            let loaded = load(&files, &options);
            assert_eq!(loaded.plan, planned, "{family}");
            assert!(planned.head_screening && planned.to_string().contains(", screened head\n"));
            assert_eq!(loaded.runner.device().allocated_bytes(), planned.memory.total, "{family}");
            let off =
                models::plan(&files, &LoadOptions { head_screening: HeadScreeningChoice::Off, ..options });
            let more = planned.memory.weights - off.unwrap().memory.weights;
            // The narrowest of these is 32 wide.
            assert!(more > (VOCAB * 32) as u64, "{family}: {more}");
        }
    }
}

#[test]
fn auto_is_for_large_heads_that_are_floats() {
    let plan = |options: &LoadOptions, hidden: usize, vocab: usize| {
        let text = std::fs::read_to_string(fixture("llama").join("config.json")).unwrap();
        let text = text
            .replace("\"vocab_size\": 128", &format!("\"vocab_size\": {vocab}"))
            .replace("\"hidden_size\": 40", &format!("\"hidden_size\": {hidden}"));
        let files = vec![("config.json", &*text.into_bytes().leak())];
        models::plan(&ModelFiles::Embedded(files.leak()), options)
    };
    let auto = LoadOptions {
        activations: ActivationsChoice::Int8,
        memory: models::MemoryLimit::Bytes(4 << 30),
        ..dummy(HeadScreeningChoice::Auto)
    };
    let is_screened =
        |options: &LoadOptions, hidden, vocab| plan(options, hidden, vocab).unwrap().head_screening;
    assert!(is_screened(&auto, 320, 52_429));
    assert!(!is_screened(&auto, 320, 52_428));
    assert!(!is_screened(&LoadOptions { activations: ActivationsChoice::F32, ..auto.clone() }, 320, 52_429));
    let int4 = LoadOptions { quantization: QuantizationChoice::Int4, ..auto.clone() };
    assert!(!is_screened(&int4, 320, 52_429));
    assert!(!is_screened(&LoadOptions { head_screening: HeadScreeningChoice::Off, ..auto }, 320, 52_429));
    let on = LoadOptions { head_screening: HeadScreeningChoice::On, ..int4 };
    let message = plan(&on, 320, 400).unwrap_err().to_string();
    assert_eq!(
        message,
        "head_screening: the head is kept in int8, and a coarse copy would save nothing: use auto or off"
    );
    let on_gpu = LoadOptions { head_screening: HeadScreeningChoice::On, ..emulated() };
    let message = models::plan(&common::files("llama"), &on_gpu).unwrap_err().to_string();
    assert_eq!(message, "head_screening: a GPU computes the whole head: use auto or off");
    let chameleon = models::plan(&wide("chameleon"), &dummy(HeadScreeningChoice::On)).unwrap_err();
    assert_eq!(
        chameleon.to_string(),
        "head_screening: a coarse copy would find tokens that this model never draws: use auto or off"
    );
}
