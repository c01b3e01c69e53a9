//! What the tests ask of a tiny model, and the engine that answers.

use crate::common::{Picture, load, picture, put_picture};
use models::{DeviceRunner, LoadOptions, Loaded};
use scheduler::{Engine, Event, SamplingParams, SchedulerConfig, Sequence, SequenceId};
use std::collections::BTreeMap;
use std::sync::Arc;

pub const MAX_TOKENS: usize = 4;

#[derive(Clone)]
pub struct Request {
    pub len: usize,
    /// Where the fixture's picture goes.
    pub picture_at: Option<usize>,
    pub params: SamplingParams,
}

/// Tokens, their log-probabilities, and those of the tokens that could have been.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Answer {
    pub tokens: Vec<u32>,
    pub logprobs: Vec<f32>,
    pub top: Vec<Vec<(u32, f32)>>,
}

impl Answer {
    /// All of it, with numbers as bits.
    pub fn bits(&self) -> Vec<u32> {
        let top = self.top.iter().flatten().flat_map(|&(token, x)| [token, x.to_bits()]);
        self.tokens.iter().copied().chain(self.logprobs.iter().map(|x| x.to_bits())).chain(top).collect()
    }
}

pub struct World {
    pub engine: Engine<DeviceRunner>,
    vocab_size: usize,
    pub picture: Option<Picture>,
    pub cached_tokens: usize,
    pub num_deferred: usize,
    /// Copies to the second tier and back, and places that were lost.
    pub stored_blocks: usize,
    pub loaded_blocks: usize,
    pub preempted: usize,
}

impl World {
    pub fn new(family: &str, options: &LoadOptions, change: impl FnOnce(&mut SchedulerConfig)) -> Self {
        let Loaded { runner, info, image_processor, mut scheduler_config, .. } = load(family, options);
        change(&mut scheduler_config);
        scheduler_config.check().unwrap();
        let picture = picture(family, &info, image_processor);
        Self {
            engine: Engine::new(scheduler_config, runner),
            vocab_size: info.vocab_size,
            picture,
            cached_tokens: 0,
            num_deferred: 0,
            stored_blocks: 0,
            loaded_blocks: 0,
            preempted: 0,
        }
    }

    pub fn add(&mut self, id: u64, request: &Request) {
        let sequence = self.sequence(id, request);
        self.engine.add(sequence).unwrap();
    }

    pub fn sequence(&self, id: u64, request: &Request) -> Sequence {
        let mut prompt: Vec<u32> = (0..request.len)
            .map(|i| ((i * 37 + 11 * request.len) % 90.min(self.vocab_size)) as u32)
            .collect();
        let spans = put_picture(&mut prompt, request.picture_at, &self.picture);
        let params = Arc::new(request.params.clone());
        Sequence::new(SequenceId(id), prompt, spans, params, self.vocab_size).unwrap()
    }

    pub fn finish(&mut self) -> BTreeMap<u64, Answer> {
        let mut answers: BTreeMap<u64, Answer> = BTreeMap::new();
        while !self.engine.is_idle() {
            let step = self.engine.step().unwrap();
            self.num_deferred += step.stats.deferred_tokens;
            self.stored_blocks += step.stats.stored_blocks;
            self.loaded_blocks += step.stats.loaded_blocks;
            self.preempted += step.stats.preempted.len();
            for event in step.events {
                if let Event::Started { cached_tokens, .. } = event {
                    self.cached_tokens += cached_tokens;
                } else if let Event::Token { id, token } = event {
                    let answer = answers.entry(id.0).or_default();
                    answer.tokens.push(token.token);
                    answer.logprobs.extend(token.logprob);
                    answer.top.push(token.top);
                }
            }
        }
        answers
    }
}

pub fn requests() -> Vec<Request> {
    let base = SamplingParams { max_tokens: MAX_TOKENS, logprobs: Some(3), ..Default::default() };
    let greedy = SamplingParams { temperature: 0.0, ..base.clone() };
    let drawn = SamplingParams { temperature: 0.9, seed: 77, top_p: 0.9, ..base };
    vec![
        Request { len: 11, picture_at: Some(5), params: greedy },
        Request { len: 6, picture_at: None, params: drawn },
    ]
}

pub fn together(world: &mut World) -> Vec<Answer> {
    for (id, request) in requests().iter().enumerate() {
        world.add(id as u64, request);
    }
    world.finish().into_values().collect()
}
