//! Whether streams that a grammar holds and free ones slow each other: the time between the tokens of a stream as its client sees it,
//! beside others of its kind and of the other kind. The model is made up: a vocabulary of Kimi's size, and steps in which the host's
//! processors are free, as while a GPU computes. The clients are another process. How many tokens came a step late because their masks were not
//! there tells apart what waits for masks and what waits for a processor; the processor time of the engine's thread, which others on the machine
//! change least, tells what is ours: between two steps, where everybody waits for it, and beside one, while the device computes.
//!
//! `cargo bench -p perilune --bench company`; without `--bench`, as in a test run, a small vocabulary and a moment of each.

#[path = "../tests/harness/mod.rs"]
mod harness;
mod made_up;
#[path = "../tests/random/mod.rs"]
mod random;

use harness::TestServer;
use harness::client::Connection;
use harness::fake::{self, byte_char};
use made_up::{NUM_CONTROLS, sources, words};
use models::{ModelFiles, ModelInfo};
use perilune::constrain::GrammarSource;
use perilune::serve::LoadedModel;
use random::Random;
use rustix::time::{ClockId, clock_gettime};
use scheduler::{Batch, ModelRunner, Sample, Sampled, SampledToken, SchedulerConfig, StepOutput, TokenId};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Free,
    Held,
}

/// Streams that are measured, beside others.
struct Company {
    measured: (Kind, usize),
    beside: (Kind, usize),
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).map(String::as_str) == Some("--client") {
        return client(&args[2..]);
    }
    let is_bench = args.iter().any(|arg| arg == "--bench");
    let (num_tokens, num_streams) = if is_bench { (163_840, 16) } else { (3000, 2) };
    let words = Arc::new(words(num_tokens));
    let watch = Arc::new(Watch::default());
    let server = {
        let (words, watch) = (words.clone(), watch.clone());
        let files = files(&words);
        TestServer::custom(files, move || Ok::<_, String>(model(words, watch)))
    };
    let held = held_requests();
    // The vocabulary and each grammar are made once.
    held.iter().for_each(|request| drop(server.ask(PATH, request)));
    println!(
        "| step | measured | beside | p50 | p99 | max | gaps | deferred | between steps p50 | p99 | max | CPU between | beside |"
    );
    println!("|--:|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    let (steps, observed): (&[u64], _) = match is_bench {
        true => (&[20_000, 5000], Duration::from_secs(12)),
        false => (&[1000], Duration::from_millis(50)),
    };
    for &step in steps {
        watch.step_us.store(step, Relaxed);
        for (measured, other) in [(Kind::Free, Kind::Held), (Kind::Held, Kind::Free)] {
            let several = [(other, 0), (measured, num_streams), (other, num_streams)];
            for beside in several {
                let company = Company { measured: (measured, num_streams), beside };
                company.report(&server, &watch, observed);
            }
        }
    }
}

const PATH: &str = "/v1/completions";

impl Company {
    fn report(&self, server: &TestServer, watch: &Watch, observed: Duration) {
        watch.take();
        let deferred = || server.metric("perilune:deferred_tokens_total", "");
        let (deferred_before, held_before) = (deferred(), watch.num_held.load(Relaxed));
        let count = |(kind, num): (Kind, usize)| [kind.name().to_owned(), num.to_string()];
        let output = Command::new(std::env::current_exe().expect("a path"))
            .args(["--client", &server.address.to_string(), &observed.as_millis().to_string()])
            .args(count(self.measured))
            .args(count(self.beside))
            .stderr(Stdio::inherit())
            .output()
            .expect("clients");
        assert!(output.status.success(), "the clients failed");
        let micros = |gap: &str| Duration::from_micros(gap.parse().expect("a number"));
        let mut gaps: Vec<_> =
            std::str::from_utf8(&output.stdout).expect("UTF-8").lines().map(micros).collect();
        let name = |(kind, num): (Kind, usize)| match num {
            0 => "nothing".to_owned(),
            num => format!("{num} {}", kind.name()),
        };
        let num_held = watch.num_held.load(Relaxed) - held_before;
        let Times { mut between, cpu_between, cpu_beside } = watch.take();
        println!(
            "| {} ms | {} | {} | {} | {} | {:.2} % | {} | {} | {} |",
            watch.step_us.load(Relaxed) as f64 / 1e3,
            name(self.measured),
            name(self.beside),
            quantiles(&mut gaps),
            gaps.len(),
            100.0 * (deferred() - deferred_before) / (num_held as f64).max(1.0),
            quantiles(&mut between),
            median_micros(cpu_between),
            median_micros(cpu_beside),
        );
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Free => "free",
            Kind::Held => "structured",
        }
    }

    fn of(name: &str) -> Self {
        if name == Kind::Free.name() { Kind::Free } else { Kind::Held }
    }
}

/// Prints the times between the tokens of the measured streams, in microseconds.
fn client(args: &[String]) {
    let [address, observed, measured, num_measured, beside, num_beside] = args else {
        panic!("what the bench gives")
    };
    let address: SocketAddr = address.parse().expect("an address");
    let observed = Duration::from_millis(observed.parse().expect("a number"));
    let (held, is_over) = (held_requests(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let start = |kind: &str, num: &str| {
            let (kind, held, is_over) = (Kind::of(kind), &held, &is_over);
            let stream = move |i: usize| scope.spawn(move || stream(address, kind, held, i, is_over));
            (0..num.parse().expect("a number")).map(stream).collect::<Vec<_>>()
        };
        let (measured, beside) = (start(measured, num_measured), start(beside, num_beside));
        std::thread::sleep(observed);
        is_over.store(true, Relaxed);
        beside.into_iter().for_each(|stream| drop(stream.join().expect("no panic")));
        let gaps = measured.into_iter().flat_map(|stream| stream.join().expect("no panic"));
        gaps.for_each(|gap| println!("{}", gap.as_micros()));
    });
}

/// p50, p99 and the longest.
fn quantiles(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |share: f64| times.get((times.len().saturating_sub(1) as f64 * share) as usize);
    let show = |share| format!("{:.2} ms", at(share).map_or(0.0, |time| time.as_secs_f64() * 1e3));
    [0.5, 0.99, 1.0].map(show).join(" | ")
}

fn median_micros(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    format!("{} µs", times.get(times.len() / 2).map_or(0, Duration::as_micros))
}

/// What the model sees of the steps.
#[derive(Default)]
struct Watch {
    step_us: AtomicU64,
    /// Tokens drawn under a mask.
    num_held: AtomicU64,
    times: Mutex<Times>,
}

/// Of each step.
#[derive(Default)]
struct Times {
    /// How long the device did nothing before it.
    between: Vec<Duration>,
    /// What the engine's thread computed meanwhile.
    cpu_between: Vec<Duration>,
    /// And what it computed while the device was at work, until it had nothing else to do than to wait for it.
    cpu_beside: Vec<Duration>,
}

impl Watch {
    fn times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().expect("no panic under the lock")
    }

    fn take(&self) -> Times {
        std::mem::take(&mut *self.times())
    }
}

/// The clock on the wall, and that of the processor for this thread.
#[derive(Clone, Copy)]
struct Moment {
    wall: Instant,
    cpu: Duration,
}

impl Moment {
    fn now() -> Self {
        let cpu = clock_gettime(ClockId::ThreadCPUTime);
        Self { wall: Instant::now(), cpu: Duration::new(cpu.tv_sec as u64, cpu.tv_nsec as u32) }
    }
}

/// Requests one after the other until it is over; the times between two pieces of text.
fn stream(address: SocketAddr, kind: Kind, held: &[Value], i: usize, is_over: &AtomicBool) -> Vec<Duration> {
    let mut gaps = Vec::new();
    for round in 0.. {
        let mut request = match kind {
            Kind::Free => json!({"prompt": format!("stream {i}"), "max_tokens": 600, "ignore_eos": true}),
            Kind::Held => held[(i + round) % held.len()].clone(),
        };
        request["stream"] = true.into();
        request["seed"] = (1000 * round + i).into();
        let mut connection = Connection::open(address);
        connection.send_json(PATH, &request);
        assert_eq!(connection.head().status, 200);
        let mut last = None;
        loop {
            let chunk = connection.chunk();
            if is_over.load(Relaxed) {
                return gaps;
            }
            if chunk.is_empty() {
                break;
            }
            let now = Instant::now();
            gaps.extend(last.map(|last| now - last));
            last = Some(now);
        }
        // The last piece is the end and not a token.
        gaps.pop();
    }
    gaps
}

fn held_requests() -> Vec<Value> {
    let request = |(_, source): (_, GrammarSource)| {
        let held = match source {
            GrammarSource::Schema { schema, .. } => json!({"json": schema}),
            GrammarSource::Regex(regex) => json!({"regex": regex}),
            other => panic!("not asked for: {other:?}"),
        };
        json!({"prompt": "held", "max_tokens": 200, "structured_outputs": held})
    };
    sources().into_iter().map(request).collect()
}

fn files(words: &[Vec<u8>]) -> ModelFiles {
    let num_plain = words.len() - NUM_CONTROLS;
    let text = |word: &[u8]| word.iter().map(|&byte| byte_char(byte)).collect::<String>();
    let vocab: serde_json::Map<String, Value> =
        words[..num_plain].iter().enumerate().map(|(id, word)| (text(word), id.into())).collect();
    let control = |(i, word): (usize, &Vec<u8>)| {
        json!({"id": num_plain + i, "content": String::from_utf8_lossy(word), "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": true})
    };
    let tokenizer = json!({
        "version": "1.0", "added_tokens": words[num_plain..].iter().enumerate().map(control).collect::<Vec<_>>(),
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocab, "merges": []},
    });
    let leak = |text: String| -> &'static [u8] { text.leak().as_bytes() };
    let files =
        vec![("tokenizer.json", leak(tokenizer.to_string())), ("tokenizer_config.json", leak("{}".into()))];
    ModelFiles::Embedded(files.leak())
}

fn model(words: Arc<Vec<Vec<u8>>>, watch: Arc<Watch>) -> LoadedModel<Paced> {
    let config = SchedulerConfig { max_model_len: 2000, ..fake::config(20_000) };
    let info = ModelInfo {
        vocab_size: words.len(),
        max_model_len: config.max_model_len,
        eos_token_ids: vec![words.len() as TokenId - 1],
        image_token_id: None,
        ..fake::info()
    };
    LoadedModel {
        adapters: None,
        kv_block_bytes: 64,
        device_bytes: 0,
        device: "paced".into(),
        runner: Paced { words, watch, random: Random::new(1), begun: None, ended: None },
        info,
        image_processor: None,
        scheduler_config: config,
        generation: Default::default(),
    }
}

/// A device that takes its time for every step, and then draws.
struct Paced {
    words: Arc<Vec<Vec<u8>>>,
    watch: Arc<Watch>,
    random: Random,
    /// When the step that runs was.
    begun: Option<Moment>,
    /// When the last step was over.
    ended: Option<Moment>,
}

impl ModelRunner for Paced {
    type Error = Infallible;

    fn works_alone(&self) -> bool {
        true
    }

    fn begin(&mut self, batch: &Batch) {
        let begun = Moment::now();
        // Where all sequences are new the engine was idle before.
        let goes_on = batch.items.iter().any(|item| item.context_len > 16);
        if let Some(ended) = self.ended.filter(|_| goes_on) {
            let mut times = self.watch.times();
            times.between.push(begun.wall - ended.wall);
            times.cpu_between.push(begun.cpu - ended.cpu);
        }
        self.begun = Some(begun);
    }

    fn execute(&mut self, batch: &Batch) -> Result<StepOutput, Infallible> {
        let begun = self.begun.take().expect("begun before");
        self.watch.times().cpu_beside.push(Moment::now().cpu - begun.cpu);
        let step = Duration::from_micros(self.watch.step_us.load(Relaxed));
        std::thread::sleep(step.saturating_sub(begun.wall.elapsed()));
        let deferred = batch.choose_deferred();
        let is_held = |(sample, deferred): &(&Sample, &bool)| sample.mask.is_some() && !**deferred;
        let num_held = batch.samples().zip(&deferred).filter(is_held).count();
        self.watch.num_held.fetch_add(num_held as u64, Relaxed);
        let token = |(sample, deferred)| match deferred {
            true => Sampled::Deferred,
            false => {
                Sampled::Token(SampledToken { token: self.draw(sample), logprob: None, top: Vec::new() })
            }
        };
        let sampled = batch.samples().zip(deferred).map(token).collect();
        self.ended = Some(Moment::now());
        Ok(StepOutput { sampled, ..StepOutput::default() })
    }
}

impl Paced {
    /// One of the longer of some that are allowed, as a model would say, and text by itself, so that each token shows in its stream.
    fn draw(&mut self, sample: &Sample) -> TokenId {
        let allowed = sample.mask.as_ref().map(|mask| mask.allowed().expect("a mask"));
        let num_words = self.words.len().div_ceil(32);
        let first = self.random.below(num_words);
        let bits = |word: usize| allowed.map_or(u32::MAX, |words| words.get(word).copied().unwrap_or(0));
        let in_word = |word: usize| {
            let bits = bits(word);
            (0..32).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| (word * 32 + bit) as TokenId)
        };
        // Most words of a mask are empty: to pass over them quickly is not to take a processor that a GPU would not need.
        let some: Vec<TokenId> = (first..num_words)
            .chain(0..first)
            .filter(|&word| bits(word) != 0)
            .flat_map(in_word)
            .take(8)
            .collect();
        let len = |token: TokenId| match self.words.get(token as usize) {
            Some(word) if !word.starts_with(b"<|control") && std::str::from_utf8(word).is_ok() => {
                word.len().min(6)
            }
            _ => 0,
        };
        *some.iter().max_by_key(|&&token| len(token)).expect("a token is allowed")
    }
}
