//! Small days in the life of a scheduler, each told step by step.

use scheduler::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Says 1, 2, 3, … for every sequence, and keeps what it was asked to do.
#[derive(Default)]
struct Counter {
    said: BTreeMap<SequenceId, TokenId>,
    fail: Option<(SequenceId, Failure)>,
    steps: Vec<Vec<(u64, usize, usize)>>,
    encodes: Vec<Vec<u8>>,
}

impl ModelRunner for Counter {
    type Error = std::convert::Infallible;

    fn execute(&mut self, batch: &Batch) -> Result<StepOutput, Self::Error> {
        self.steps.push(batch.items.iter().map(|item| (item.id.0, item.context_len, item.end())).collect());
        self.encodes.push(batch.encodes.iter().map(|encode| encode.image.digest.0[0]).collect());
        let sample = |item: &BatchItem| {
            if let Some((id, failure)) = self.fail
                && id == item.id
            {
                return Sampled::Failed(failure);
            }
            let said = self.said.entry(item.id).or_insert(0);
            *said += 1;
            Sampled::Token(SampledToken { token: *said, logprob: None, top: Vec::new() })
        };
        let sampling = batch.items.iter().filter(|item| item.sample.is_some());
        Ok(StepOutput { sampled: sampling.map(sample).collect() })
    }
}

fn config() -> SchedulerConfig {
    SchedulerConfig {
        block_size: 4,
        num_blocks: 20,
        max_model_len: 100,
        max_batched_tokens: 16,
        max_running: 4,
        max_waiting: 8,
        image_rows_per_block: 2,
        num_image_blocks: 4,
        max_encode_patches: 12,
        enable_prefix_caching: true,
        share_decoded_blocks: true,
    }
}

fn sequence(id: u64, prompt: Vec<TokenId>, max_tokens: usize) -> Sequence {
    let params = SamplingParams { max_tokens, ..SamplingParams::default() };
    Sequence::new(SequenceId(id), prompt, Vec::new(), Arc::new(params), 1000).unwrap()
}

fn run(engine: &mut Engine<Counter>) -> Vec<Event> {
    let mut events = Vec::new();
    while !engine.is_idle() {
        let Ok(step) = engine.step();
        engine.scheduler().check();
        events.extend(step.events);
    }
    events
}

#[test]
fn a_prompt_is_computed_in_chunks_and_then_token_by_token() {
    let mut engine = Engine::new(config(), Counter::default());
    engine.add(sequence(7, (100..137).collect(), 3)).unwrap();
    let events = run(&mut engine);
    let steps = &engine.runner().steps;
    assert_eq!(steps.concat(), [(7, 0, 16), (7, 16, 32), (7, 32, 37), (7, 37, 38), (7, 38, 39)]);
    assert_eq!(events[0], Event::Started { id: SequenceId(7), cached_tokens: 0 });
    assert_eq!(events.len(), 5);
    let last = Event::Finished { id: SequenceId(7), reason: FinishReason::Length, preemptions: 0 };
    assert_eq!(events[4], last);
}
