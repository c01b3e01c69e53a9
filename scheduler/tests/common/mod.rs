//! A model that only counts, and short ways to make what it is fed.
#![allow(dead_code, reason = "every test file uses its part")]

use scheduler::*;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// Says 1, 2, 3, … for every sequence, and keeps what it was asked to do.
#[derive(Default)]
pub struct Counter {
    /// Who fails, and how, instead of saying so many tokens and one more.
    pub fail: Option<(u64, TokenId, Failure)>,
    /// Sequence, first and end position of each item, for each step.
    pub steps: Vec<Vec<(u64, usize, usize)>>,
    /// First byte of the digest of each picture encoded, for each step.
    pub encodes: Vec<Vec<u8>>,
    /// The pictures' rows of each item, for each step.
    pub images: Vec<Vec<ImageRows>>,
    /// The guesses of each item that samples.
    pub drafts: Vec<Vec<TokenId>>,
    pub histories: Vec<Option<Vec<TokenId>>>,
    /// Sequence and positions of the rows of prompts that were asked for.
    pub prompt_rows: Vec<(u64, Range<usize>)>,
    /// Whose prompt fails at this position.
    pub fail_prompt: Option<(u64, usize)>,
    /// As a device that takes the next step while it runs one.
    pub takes_ahead: bool,
    /// As a device whose host does something else meanwhile.
    pub works_alone: bool,
    /// What was asked of it, in its order.
    pub calls: Vec<Call>,
    /// Who is deferred in the steps that are drawn and not executed.
    drawn: VecDeque<Vec<bool>>,
    /// How many steps after its own a picture that is encoded ahead is there.
    pub encode_steps: usize,
    /// Pictures under way, and when each is there.
    under_way: VecDeque<(Digest, usize)>,
    /// Orders for the second tier, for each step.
    pub stores: Vec<Vec<BlockCopy>>,
    pub loads: Vec<Vec<BlockLoad>>,
    /// Of each step: whether its rows wait for the loads of earlier ones.
    pub waits_for_loads: Vec<bool>,
    /// How many steps after its own a load is there.
    pub load_steps: usize,
    loads_under_way: VecDeque<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Begin,
    Draw,
    Execute,
}

impl Counter {
    /// The steps that this sequence took part in.
    pub fn steps_of(&self, id: u64) -> Vec<usize> {
        let has = |step: &Vec<(u64, usize, usize)>| step.iter().any(|item| item.0 == id);
        (0..self.steps.len()).filter(|&index| has(&self.steps[index])).collect()
    }

    pub fn num_tokens(&self) -> usize {
        self.steps.iter().flatten().map(|(_, start, end)| end - start).sum()
    }
}

impl Counter {
    /// Pictures that this step brings: those whose time has come, and one in any case where there is nothing else to do.
    fn land(&mut self, batch: &Batch) -> Vec<Digest> {
        let now = self.steps.len();
        let begun = batch.encodes.iter().filter(|encode| encode.ahead);
        self.under_way.extend(begun.map(|encode| (encode.image.digest, now + self.encode_steps)));
        let mut landed = Vec::new();
        while let Some(&(digest, at)) = self.under_way.front()
            && (at <= now || (batch.items.is_empty() && landed.is_empty()))
        {
            self.under_way.pop_front();
            landed.push(digest);
        }
        landed
    }

    /// Loads that this step brings, as pictures.
    fn land_loads(&mut self, batch: &Batch) -> usize {
        let now = self.steps.len();
        self.stores.push(batch.stores.clone());
        self.loads.push(batch.loads.clone());
        self.waits_for_loads.push(batch.waits_for_loads);
        self.loads_under_way.extend(batch.loads.iter().map(|_| now + self.load_steps));
        let mut num_loaded = 0;
        while let Some(&at) = self.loads_under_way.front()
            && (at <= now || (batch.items.is_empty() && num_loaded == 0))
        {
            self.loads_under_way.pop_front();
            num_loaded += 1;
        }
        num_loaded
    }

    /// A token is as probable as its position is small, and of a sum not only the values but their order shows.
    fn prompt(&mut self, item: &BatchItem, work: &PromptWork) -> PromptResult {
        let positions = item.context_len + work.rows.start..item.context_len + work.rows.end;
        self.prompt_rows.push((item.id.0, positions.clone()));
        if self.fail_prompt.is_some_and(|(id, at)| id == item.id.0 && positions.contains(&at)) {
            return PromptResult::Failed(Failure::NonFiniteLogits);
        }
        match &work.task {
            PromptTask::Logprobs { targets, top } => {
                let logprob = |(position, &token)| PromptLogprob {
                    token,
                    logprob: -(position as f32),
                    rank: *top,
                    top: Vec::new(),
                };
                assert_eq!(targets.len(), work.rows.len());
                PromptResult::Logprobs(positions.zip(targets).map(logprob).collect())
            }
            PromptTask::Sum(sum) => {
                let before = sum.0.first().copied().unwrap_or(1.0);
                let sum = positions.fold(before, |sum, position| (3.0 * sum + position as f64) % 65_521.0);
                PromptResult::Sum(RowSum(vec![sum]))
            }
        }
    }
}

impl ModelRunner for Counter {
    type Error = std::convert::Infallible;

    fn begin(&mut self, _: &Batch) {
        self.calls.push(Call::Begin);
    }

    fn draw(&mut self, batch: &Batch) {
        self.calls.push(Call::Draw);
        assert!(batch.samples().all(|sample| !sample.is_incomplete));
        self.drawn.push_back(batch.choose_deferred());
    }

    fn takes_ahead(&self) -> bool {
        self.takes_ahead && !self.drawn.back().is_some_and(|deferred| deferred.contains(&true))
    }

    fn works_alone(&self) -> bool {
        self.works_alone
    }

    fn execute(&mut self, batch: &Batch) -> Result<StepOutput, Self::Error> {
        self.calls.push(Call::Execute);
        self.steps.push(batch.items.iter().map(|item| (item.id.0, item.context_len, item.end())).collect());
        self.encodes.push(batch.encodes.iter().map(|encode| encode.image.digest.0[0]).collect());
        self.images.push(batch.items.iter().flat_map(|item| item.images.clone()).collect());
        let mut sampled = Vec::new();
        let deferred = self.drawn.pop_front().unwrap_or_else(|| batch.choose_deferred());
        let mut deferred = deferred.into_iter();
        for item in &batch.items {
            let Some(sample) = &item.sample else { continue };
            let flags = deferred.by_ref().take(sample.num_rows());
            if flags.filter(|is_deferred| *is_deferred).count() > 0 {
                sampled.push(Sampled::Deferred);
                continue;
            }
            if let Some(mask) = &sample.mask {
                mask.allowed();
            }
            let histories = sample.rows().map(|row| row.history().map(|(tokens, _)| tokens.to_vec()));
            self.histories.extend(histories);
            self.drafts.push(item.tokens[item.tokens.len() - sample.num_drafts..].to_vec());
            sampled.extend(sample.rows().map(|row| match (self.fail, row.num_generated() as TokenId) {
                (Some((id, after, failure)), said) if id == item.id.0 && after == said => {
                    Sampled::Failed(failure)
                }
                (_, said) => Sampled::Token(SampledToken { token: said + 1, logprob: None, top: Vec::new() }),
            }));
        }
        let prompts = batch.items.iter().filter_map(|item| Some(self.prompt(item, item.prompt.as_ref()?)));
        let prompts = prompts.collect();
        let num_loaded = self.land_loads(batch);
        Ok(StepOutput { encoded: self.land(batch), num_loaded, prompts, sampled })
    }
}

pub fn config() -> SchedulerConfig {
    SchedulerConfig {
        block_size: 4,
        num_blocks: 20,
        num_host_blocks: 0,
        max_model_len: 75,
        max_batched_tokens: 16,
        max_running: 4,
        max_waiting: 8,
        image_rows_per_block: 2,
        num_image_blocks: 4,
        max_encode_patches: 12,
        encode_ahead: false,
        async_scheduling: false,
        enable_prefix_caching: true,
        share_decoded_below: usize::MAX,
    }
}

pub fn engine(config: SchedulerConfig) -> Engine<Counter> {
    Engine::new(config, Counter::default())
}

pub fn params(max_tokens: usize) -> SamplingParams {
    SamplingParams { max_tokens, ..SamplingParams::default() }
}

pub fn sequence(id: u64, prompt: Vec<TokenId>, max_tokens: usize) -> Sequence {
    sequence_with(id, prompt, Vec::new(), params(max_tokens))
}

pub fn sequence_with(
    id: u64,
    prompt: Vec<TokenId>,
    images: Vec<ImageSpan>,
    params: SamplingParams,
) -> Sequence {
    Sequence::new(SequenceId(id), prompt, images, Arc::new(params), 10_000).unwrap()
}

pub fn with_priority(mut sequence: Sequence, priority: i32) -> Sequence {
    sequence.priority = priority;
    sequence
}

pub fn image(name: u8, num_tokens: usize, num_patches: usize) -> Arc<ImageInput> {
    let digest = Digest([name; 32]);
    Arc::new(ImageInput {
        digest,
        grid: [1, num_patches],
        num_tokens,
        position_grid: None,
        patches: Vec::new(),
    })
}

pub fn step(engine: &mut Engine<Counter>) -> Step {
    let Ok(step) = engine.step();
    engine.scheduler().check();
    step
}

/// Steps until idle; all the events.
pub fn run(engine: &mut Engine<Counter>) -> Vec<Event> {
    let mut events = Vec::new();
    while !engine.is_idle() {
        events.extend(step(engine).events);
    }
    events
}

pub fn cached_tokens(events: &[Event], sequence: u64) -> usize {
    let cached = events.iter().find_map(|event| match event {
        Event::Started { id, cached_tokens } if id.0 == sequence => Some(*cached_tokens),
        _ => None,
    });
    cached.expect("it started")
}

/// Sequence, reason and preemptions, in the order in which they finished.
pub fn finished(events: &[Event]) -> Vec<(u64, FinishReason, usize)> {
    let finished = events.iter().filter_map(|event| match event {
        Event::Finished { id, reason, preemptions } => Some((id.0, *reason, *preemptions)),
        _ => None,
    });
    finished.collect()
}
