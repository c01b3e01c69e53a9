//! Jobs of `bench-engine`: batches made by hand for the runner, timed by the clock and by the processor time of the whole process.

use models::{DeviceRunner, ImageProcessor, Loaded, Peaks, ProcessedImage};
use rustix::time::{ClockId, clock_gettime};
use scheduler::{
    Batch, BatchItem, BlockId, ImageEncode, ModelRunner, PromptResult, PromptTask, PromptWork, Sample,
    Sampled, SamplingParams, SchedulerConfig, SequenceId, StepOutput, TokenId,
};
use serde_json::{Value, json};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Steps of a timed run of decode.
const DECODE_STEPS: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    Prefill {
        len: usize,
    },
    Decode {
        num_sequences: usize,
        context_len: usize,
    },
    Logprobs {
        len: usize,
    },
    /// A picture of this many pixels in each direction.
    Encode {
        side: usize,
    },
}

/// The job that measures the processor itself.
pub const PEAKS: &str = "peaks";

/// Largest side of a picture that is encoded.
const MAX_SIDE: usize = 4096;

impl FromStr for Job {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().ok().filter(|&n: &usize| n > 0);
        let job = text.split_once(':').and_then(|(kind, size)| match kind {
            "prefill" => Some(Job::Prefill { len: number(size)? }),
            "logprobs" => Some(Job::Logprobs { len: number(size)? }),
            "encode" => number(size).filter(|&side| side <= MAX_SIDE).map(|side| Job::Encode { side }),
            "decode" => {
                let (num_sequences, context_len) = size.split_once('@')?;
                Some(Job::Decode { num_sequences: number(num_sequences)?, context_len: number(context_len)? })
            }
            _ => None,
        });
        job.ok_or_else(|| {
            format!("`{text}` is not a job such as prefill:512, decode:8@1024, logprobs:256 or encode:896")
        })
    }
}

/// Of one run.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    pub seconds: f64,
    pub cpu_seconds: f64,
}

#[derive(Debug)]
pub struct Measurement {
    pub tokens_per_run: usize,
    pub runs: Vec<Run>,
    /// What the model said: sampled tokens, or the log-probabilities asked for.
    pub tokens: Vec<TokenId>,
    pub logprobs: Vec<f32>,
    pub ranks: Vec<usize>,
    /// Steps of a run that were begun while the one before ran.
    pub steps_ahead: usize,
}

impl Measurement {
    /// Of the run in the middle.
    pub fn tokens_per_s(&self) -> f64 {
        self.tokens_per_run as f64 / median(self.runs.iter().map(|run| run.seconds).collect())
    }

    pub fn cpu_ms_per_token(&self) -> f64 {
        1e3 * median(self.runs.iter().map(|run| run.cpu_seconds).collect()) / self.tokens_per_run as f64
    }

    pub fn to_json(&self, job: &str) -> Value {
        json!({
            "job": job,
            "tokens_per_run": self.tokens_per_run,
            "tokens_per_s": self.tokens_per_s(),
            "cpu_ms_per_token": self.cpu_ms_per_token(),
            "seconds": self.runs.iter().map(|run| run.seconds).collect::<Vec<_>>(),
            "cpu_seconds": self.runs.iter().map(|run| run.cpu_seconds).collect::<Vec<_>>(),
            "peak_bytes": peak_bytes(),
            "tokens": self.tokens,
            "logprobs": self.logprobs,
            "ranks": self.ranks,
            "steps_ahead": self.steps_ahead,
        })
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Most memory that the process ever held, where the system tells.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}

pub struct Engine {
    runner: DeviceRunner,
    config: SchedulerConfig,
    vocab_size: usize,
    image_processor: Option<Arc<dyn ImageProcessor>>,
    /// Prompts whose keys and values are in memory, each with the token after it.
    read: Option<Growing>,
}

/// Sequences that grow together, each with blocks of its own.
struct Growing {
    tokens: Vec<Vec<TokenId>>,
    context_len: usize,
    blocks_each: usize,
}

impl Engine {
    pub fn new(loaded: Loaded) -> Self {
        let Loaded { runner, info, image_processor, scheduler_config: config, .. } = loaded;
        Self { runner, config, vocab_size: info.vocab_size, image_processor, read: None }
    }

    /// Once untimed, then for at least `at_least`. A function of its own wherever it is called: `tests/cost/run` counts what is within.
    #[inline(never)]
    pub fn measure(&mut self, job: Job, at_least: Duration) -> Result<Measurement, String> {
        self.check(job)?;
        let mut runs = Vec::new();
        let mut measured = self.run(job, &mut Vec::new())?;
        let start = Instant::now();
        while runs.is_empty() || start.elapsed() < at_least {
            measured = self.run(job, &mut runs)?;
        }
        measured.runs = runs;
        Ok(measured)
    }

    /// What the processor could do at best with these threads, by the clock.
    pub fn peaks(&self) -> Result<Value, String> {
        let start = Instant::now();
        let peaks = Peaks::measure(self.runner.device(), &|| start.elapsed().as_secs_f64());
        let Peaks { read_gb_s, f32_gflop_s, bf16_gflop_s, int8_gop_s } =
            peaks.ok_or("peaks are those of a processor, and the device is a GPU")?;
        Ok(json!({
            "job": PEAKS,
            "read_gb_s": read_gb_s,
            "f32_gflop_s": f32_gflop_s,
            "bf16_gflop_s": bf16_gflop_s,
            "int8_gop_s": int8_gop_s,
        }))
    }

    /// What the memory and the limits of a step allow.
    fn check(&self, job: Job) -> Result<(), String> {
        let (num_sequences, len) = match job {
            Job::Prefill { len } | Job::Logprobs { len } => (1, len),
            Job::Decode { num_sequences, context_len } => (num_sequences, context_len + DECODE_STEPS),
            Job::Encode { .. } if self.image_processor.is_none() => {
                return Err("the model sees no pictures".to_string());
            }
            Job::Encode { .. } => return Ok(()),
        };
        let blocks = num_sequences * len.div_ceil(self.config.block_size);
        if len > self.config.max_model_len {
            return Err(format!("{len} tokens are more than --max-model-len {}", self.config.max_model_len));
        }
        if num_sequences > self.config.max_running {
            let most = self.config.max_running;
            return Err(format!("{num_sequences} sequences are more than --max-num-seqs {most}"));
        }
        if blocks > self.config.num_blocks {
            let have = self.config.num_blocks;
            return Err(format!("{blocks} blocks of KV memory are needed and {have} are there"));
        }
        Ok(())
    }

    fn run(&mut self, job: Job, runs: &mut Vec<Run>) -> Result<Measurement, String> {
        match job {
            Job::Prefill { len } => {
                let mut growing = self.growing(1, len, len);
                let output = timed(runs, || self.read_prompt(&mut growing, None))?;
                Ok(measurement(len, sampled(&output)?))
            }
            Job::Decode { num_sequences, context_len } => {
                let mut growing = self.read_prompts(num_sequences, context_len)?;
                let Decoded { tokens, steps_ahead } = timed(runs, || self.decode(&mut growing))?;
                growing.tokens.iter_mut().for_each(|tokens| tokens.truncate(context_len + 1));
                self.read = Some(growing);
                Ok(Measurement { steps_ahead, ..measurement(num_sequences * DECODE_STEPS, tokens) })
            }
            Job::Logprobs { len } => {
                let mut growing = self.growing(1, len, len);
                let mut results = Vec::new();
                timed(runs, || self.read_prompt(&mut growing, Some(&mut results)))?;
                let (logprobs, ranks) = results.into_iter().unzip();
                Ok(Measurement { logprobs, ranks, ..measurement(len, Vec::new()) })
            }
            Job::Encode { side } => {
                let encode = self.picture(side)?;
                let num_tokens = encode.image.num_tokens;
                let batch = Batch { encodes: vec![encode], ..Batch::default() };
                timed(runs, || {
                    let output = self.runner.execute(&batch);
                    output.map_err(|error| format!("the device failed: {error}"))
                })?;
                Ok(measurement(num_tokens, Vec::new()))
            }
        }
    }

    /// A picture without a pattern, at the beginning of the image cache.
    fn picture(&self, side: usize) -> Result<ImageEncode, String> {
        let processor = self.image_processor.as_ref().ok_or("the model sees no pictures")?;
        let pixels: Vec<u8> = (0..3 * side * side).map(|i| ((i * 2_654_435_761) >> 13) as u8).collect();
        let image = processor.process(&pixels, side, side).map_err(|error| error.to_string())?;
        let ProcessedImage::Rows(image) = image else {
            return Err("pictures of this model are tokens before they come to the engine".to_string());
        };
        let num_blocks = image.num_tokens.div_ceil(self.config.image_rows_per_block);
        let rows = (0..num_blocks as u32).map(BlockId).collect();
        Ok(ImageEncode { image: Arc::new(image), rows, ahead: false })
    }

    fn growing(&self, num_sequences: usize, context_len: usize, longest: usize) -> Growing {
        let vocab = self.vocab_size;
        let prompt = |first: usize| (0..context_len).map(move |i| ((first + i) * 7919 + 13) % vocab);
        let tokens = (0..num_sequences).map(|s| prompt(s).map(|token| token as TokenId).collect()).collect();
        Growing { tokens, context_len, blocks_each: longest.div_ceil(self.config.block_size) }
    }

    /// Prompts to decode after. Those of the last run are still there if nothing else came between, and long ones take their time.
    fn read_prompts(&mut self, num_sequences: usize, context_len: usize) -> Result<Growing, String> {
        match self.read.take() {
            Some(read) if (read.tokens.len(), read.context_len) == (num_sequences, context_len) => Ok(read),
            _ => {
                let mut growing = self.growing(num_sequences, context_len, context_len + DECODE_STEPS);
                self.read_prompt(&mut growing, None)?;
                Ok(growing)
            }
        }
    }

    /// The prompts in chunks, one sequence after the other; returns what the last step said.
    fn read_prompt(
        &mut self,
        growing: &mut Growing,
        mut logprobs: Option<&mut Vec<(f32, usize)>>,
    ) -> Result<StepOutput, String> {
        self.read = None;
        let mut output = StepOutput::default();
        for sequence in 0..growing.tokens.len() {
            let len = growing.context_len;
            for from in (0..len).step_by(self.config.max_batched_tokens) {
                let to = len.min(from + self.config.max_batched_tokens);
                let mut item = growing.item(sequence, from, to, self.config.block_size);
                if let Some(results) = &mut logprobs {
                    // A row predicts the token after it; the last has none.
                    let targets = growing.tokens[sequence][from + 1..len.min(to + 1)].to_vec();
                    let rows = 0..targets.len();
                    item.sample = None;
                    item.prompt = (!rows.is_empty())
                        .then_some(PromptWork { rows, task: PromptTask::Logprobs { targets, top: 0 } });
                    output = self.step(vec![item])?;
                    results.extend(prompt_logprobs(&output)?);
                } else {
                    output = self.step(vec![item])?;
                }
            }
            if let Ok(said) = sampled(&output) {
                growing.tokens[sequence].extend(said);
            }
        }
        Ok(output)
    }

    /// One token for every sequence in each step. On a device that works by itself a step is begun before the tokens of the one that runs are
    /// known, as the server does it.
    fn decode(&mut self, growing: &mut Growing) -> Result<Decoded, String> {
        let mut decoded = Decoded::default();
        let mut begun = None;
        for step in 0..DECODE_STEPS {
            let batch = begun.take().unwrap_or_else(|| {
                let batch = growing.next(step, self.config.block_size);
                self.begin(&batch);
                batch
            });
            if step + 1 < DECODE_STEPS && self.config.async_scheduling && self.runner.takes_ahead() {
                let next = growing.next(step + 1, self.config.block_size);
                self.begin(&next);
                decoded.steps_ahead += 1;
                begun = Some(next);
            }
            let tokens = sampled(&self.execute(&batch)?)?;
            for (sequence, &token) in growing.tokens.iter_mut().zip(&tokens) {
                sequence.push(token);
            }
            decoded.tokens.extend(tokens);
        }
        Ok(decoded)
    }

    fn begin(&mut self, batch: &Batch) {
        self.runner.begin(batch);
        self.runner.draw(batch);
    }

    fn step(&mut self, items: Vec<BatchItem>) -> Result<StepOutput, String> {
        self.execute(&Batch { items, ..Batch::default() })
    }

    fn execute(&mut self, batch: &Batch) -> Result<StepOutput, String> {
        self.runner.execute(batch).map_err(|error| format!("the device failed: {error}"))
    }
}

/// What a run of decode said.
#[derive(Default)]
struct Decoded {
    tokens: Vec<TokenId>,
    steps_ahead: usize,
}

impl Growing {
    /// The next token of every sequence, after so many steps.
    fn next(&self, step: usize, block_size: usize) -> Batch {
        let from = self.context_len + step;
        let sequences = 0..self.tokens.len();
        let items = sequences.map(|sequence| self.item(sequence, from, from + 1, block_size)).collect();
        Batch { items, ..Batch::default() }
    }

    /// A token that is not known yet is a placeholder for what the step that runs samples in the same row.
    fn item(&self, sequence: usize, from: usize, to: usize, block_size: usize) -> BatchItem {
        let first = sequence * self.blocks_each;
        let blocks = first..first + to.div_ceil(block_size);
        // A chunk that does not end the prompt says nothing.
        let sample = to.checked_sub(self.context_len).map(|num_generated| {
            let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
            Sample::new(Arc::new(params), to, num_generated)
        });
        let known = self.tokens[sequence].get(from..to);
        BatchItem {
            prompt_len: self.context_len,
            placeholder_for: known.is_none().then_some(sequence),
            sample,
            ..BatchItem::new(
                SequenceId(sequence as u64 + 1),
                known.map_or(vec![0], <[TokenId]>::to_vec),
                from,
                blocks.map(|block| BlockId(block as u32)).collect(),
            )
        }
    }
}

fn measurement(tokens_per_run: usize, tokens: Vec<TokenId>) -> Measurement {
    let (runs, logprobs, ranks) = (Vec::new(), Vec::new(), Vec::new());
    Measurement { tokens_per_run, runs, tokens, logprobs, ranks, steps_ahead: 0 }
}

fn timed<T>(runs: &mut Vec<Run>, work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let result = work()?;
    runs.push(Run { seconds: start.elapsed().as_secs_f64(), cpu_seconds: cpu_seconds() - cpu });
    Ok(result)
}

/// Processor time of all threads of the process.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn sampled(output: &StepOutput) -> Result<Vec<TokenId>, String> {
    let token = |sampled: &Sampled| match sampled {
        Sampled::Token(token) => Ok(token.token),
        Sampled::Deferred => Err("a token without a mask was deferred".to_owned()),
        Sampled::Failed(failure) => Err(format!("nothing could be sampled: {failure:?}")),
    };
    output.sampled.iter().map(token).collect()
}

fn prompt_logprobs(output: &StepOutput) -> Result<Vec<(f32, usize)>, String> {
    let mut all = Vec::new();
    for result in &output.prompts {
        match result {
            PromptResult::Logprobs(rows) => all.extend(rows.iter().map(|row| (row.logprob, row.rank))),
            other => return Err(format!("no log-probabilities: {other:?}")),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_read_or_refused() {
        assert_eq!("prefill:512".parse(), Ok(Job::Prefill { len: 512 }));
        assert_eq!("decode:8@1024".parse(), Ok(Job::Decode { num_sequences: 8, context_len: 1024 }));
        assert_eq!("logprobs:3".parse(), Ok(Job::Logprobs { len: 3 }));
        assert_eq!("encode:896".parse(), Ok(Job::Encode { side: 896 }));
        for wrong in [
            "",
            "encode:5000",
            "prefill",
            "prefill:0",
            "decode:8",
            "decode:0@3",
            "decode:@3",
            "speed:3",
            "prefill:-1",
        ] {
            assert!(wrong.parse::<Job>().is_err(), "{wrong}");
        }
    }
}
