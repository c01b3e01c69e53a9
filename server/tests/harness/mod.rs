//! A real server on a real socket, with a fake model.

#![allow(dead_code, reason = "every test binary uses its part")]

pub mod adapters;
pub mod batches;
pub mod certificates;
pub mod client;
pub mod fake;
pub mod framed;
pub mod responses;
pub mod scripted;

use client::{Connection, Response};
use fake::{Control, Fault};
use models::{LoadOptions, MemoryLimit, ModelFiles};
use perilune::app::AppLimits;
use perilune::auth::ApiKeys;
use perilune::config::{DefaultsFrom, Scheduling};
use perilune::constrain::CompilerLimits;
use perilune::http::HttpLimits;
use perilune::serve::{Listening, LoadedModel, ServeOptions, Serving};
use scheduler::{ModelRunner, SchedulerConfig};
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

pub const MODEL: &str = "fake/model";

/// When a test that hangs ends. Nothing that a test says may depend on it: the machine may be busy with something else for long.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Waits for what other threads are about to do.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "it did not come to that: {what}");
        // They need the processor more than this thread does.
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Deadlines that a test of something else does not run into.
pub fn patient_http() -> HttpLimits {
    HttpLimits {
        header_timeout: PATIENCE,
        idle_timeout: PATIENCE,
        stall_timeout: PATIENCE,
        ..HttpLimits::default()
    }
}

/// As [`patient_http`].
pub fn patient_limits() -> AppLimits {
    let grammars =
        CompilerLimits { compile_time: PATIENCE, locate_time: PATIENCE, ..CompilerLimits::default() };
    AppLimits { body_timeout: PATIENCE, keep_alive: Some(PATIENCE), grammars, ..AppLimits::default() }
}

pub struct Setup {
    pub options: ServeOptions,
    pub config: SchedulerConfig,
    pub generation: models::GenerationDefaults,
}

impl Default for Setup {
    fn default() -> Self {
        let options = ServeOptions {
            names: vec![MODEL.into(), "alias".into()],
            root: "somewhere".into(),
            scheduling: Scheduling {
                max_waiting: 1024,
                async_scheduling: true,
                enable_prefix_caching: true,
                speculation: Default::default(),
            },
            keys: ApiKeys::default(),
            limits: patient_limits(),
            place: Default::default(),
            web: Default::default(),
            http: patient_http(),
            tls: None,
            pictures: Default::default(),
            seed: Some(7),
            chat_template: None,
            parsers: Default::default(),
            defaults: DefaultsFrom::Model,
            adapters: Default::default(),
            store: None,
        };
        Self { options, config: fake::config(2000), generation: Default::default() }
    }
}

/// Enough for the embedded model and a few short requests.
pub fn small_load() -> LoadOptions {
    LoadOptions {
        max_model_len: Some(512),
        max_num_seqs: 16,
        max_num_batched_tokens: 512,
        memory: MemoryLimit::Bytes(200 << 20),
        threads: Some(2),
        ..LoadOptions::default()
    }
}

pub struct TestServer {
    pub address: SocketAddr,
    pub control: Arc<Control>,
    pub serving: Option<Serving>,
    pub runtime: Runtime,
}

impl TestServer {
    pub fn start() -> Self {
        Self::with(Setup::default())
    }

    /// As a GPU, which works while its host tells what the last step said.
    pub fn working_alone() -> Self {
        let server = Self::start();
        server.control.works_alone.store(true, std::sync::atomic::Ordering::Relaxed);
        server
    }

    /// And which takes the next step while it runs one.
    pub fn working_ahead() -> Self {
        let server = Self::working_alone();
        server.control.takes_ahead.store(true, std::sync::atomic::Ordering::Relaxed);
        server
    }

    pub fn with(setup: Setup) -> Self {
        let Setup { options, config, generation } = setup;
        let control = Arc::new(Control::default());
        let model_control = control.clone();
        let takes_adapters = options.adapters.max_loras > 0;
        let load = move || {
            let adapters = takes_adapters.then(|| fake::adapters(model_control.clone()));
            Ok::<_, String>(LoadedModel { adapters, ..fake::model(model_control, config, generation) })
        };
        Self::serve(options, fake::files(), control, load)
    }

    /// A model that says what the test tells it to.
    pub fn scripted(scripted: &scripted::Scripted, options: ServeOptions) -> (Self, scripted::Script) {
        let script = scripted::Script::default();
        let model = scripted.model(script.clone());
        let load = move || Ok::<_, String>(model);
        (Self::serve(options, scripted.files(), Arc::default(), load), script)
    }

    /// The model built into the binary.
    pub fn embedded(load: LoadOptions) -> Self {
        let files = ModelFiles::Embedded(perilune::source::embedded::FILES);
        let model_files = files.clone();
        let load = move || perilune::load::load(&model_files, &load, perilune::load::WriteCache::Now);
        Self::serve(Setup::default().options, files, Arc::default(), load)
    }

    /// Any model.
    pub fn custom<R, E>(
        files: ModelFiles,
        load: impl FnOnce() -> Result<LoadedModel<R>, E> + Send + 'static,
    ) -> Self
    where
        R: ModelRunner,
        R::Error: std::fmt::Display,
        E: std::fmt::Display + Send + 'static,
    {
        Self::serve(Setup::default().options, files, Arc::default(), load)
    }

    fn serve<R, E>(
        options: ServeOptions,
        files: ModelFiles,
        control: Arc<Control>,
        load: impl FnOnce() -> Result<LoadedModel<R>, E> + Send + 'static,
    ) -> Self
    where
        R: ModelRunner,
        R::Error: std::fmt::Display,
        E: std::fmt::Display + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let serving = runtime.block_on(async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let listening = Listening::new(listener, options).expect("listens");
            match listening.serve(files, load).await {
                Ok(serving) => serving,
                Err(error) => panic!("{error}"),
            }
        });
        let address = serving.address.tcp().expect("an address");
        Self { address, control, serving: Some(serving), runtime }
    }

    pub fn connect(&self) -> Connection {
        Connection::open(self.address)
    }

    pub fn get(&self, path: &str) -> Response {
        let mut connection = self.connect();
        connection.send("GET", path, &[], b"");
        connection.receive()
    }

    pub fn post(&self, path: &str, body: &Value) -> Response {
        let mut connection = self.connect();
        connection.send_json(path, body);
        connection.receive()
    }

    pub fn delete(&self, path: &str) -> Response {
        let mut connection = self.connect();
        connection.send("DELETE", path, &[], b"");
        connection.receive()
    }

    /// Posts and expects an answer.
    pub fn ask(&self, path: &str, body: &Value) -> Value {
        let response = self.post(path, body);
        assert_eq!(response.status, 200, "{body} {}", response.text());
        response.json()
    }

    /// The prompt that a chat request makes, with its control tokens.
    pub fn chat_prompt(&self, request: &Value) -> String {
        let mut request = request.clone();
        request["max_tokens"] = 1.into();
        request["return_token_ids"] = true.into();
        let tokens = self.ask("/v1/chat/completions", &request)["prompt_token_ids"].clone();
        let text = self.ask("/detokenize", &serde_json::json!({"tokens": tokens}));
        text["prompt"].as_str().expect("a string").to_owned()
    }

    /// Posts with `stream` set and expects a stream; returns its events without the last, which is `[DONE]`.
    pub fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = true.into();
        let response = self.post(path, &body);
        assert_eq!(response.status, 200, "{body} {}", response.text());
        let mut events = response.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"));
        events.iter().map(|event| serde_json::from_str(event).expect("JSON")).collect()
    }

    /// The value of a series, by its name and a part of its labels.
    pub fn metric(&self, name: &str, label: &str) -> f64 {
        let text = self.get("/metrics").text().to_owned();
        find_metric(&text, name, label).unwrap_or_else(|| panic!("no series {name} with {label}"))
    }

    /// Waits until a series has a value.
    pub fn wait_for_metric(&self, name: &str, value: f64) {
        wait_until(&format!("{name} is {value}"), || self.metric(name, "") == value);
    }

    /// Waits until so many sequences have ended for this reason. Gauges of what runs are 0 before the first step has ended, too.
    pub fn wait_for_ended(&self, reason: &str, count: f64) {
        let label = format!("finished_reason=\"{reason}\"");
        wait_until(&format!("{count} ended by {reason}"), || {
            self.metric("vllm:request_success_total", &label) == count
        });
    }

    /// Waits until so many requests were handed to the engine, which is held in a step and takes them in after it. Without this a model that
    /// makes steps meanwhile may have come to its end before they are there.
    pub fn wait_for_pending(&self, count: usize) {
        let engine = self.serving.as_ref().expect("it serves").engine();
        wait_until(&format!("{count} requests wait for the engine"), || engine.num_pending() == count);
    }

    pub fn fail_next(&self, fault: Fault) {
        self.control.fail_next(fault);
    }

    /// A model of these files, on two threads in little memory: a step has at most so many tokens, a sequence at most so many.
    pub fn of_files(files: ModelFiles, max_num_batched_tokens: usize, max_model_len: usize) -> Self {
        let options = LoadOptions {
            max_model_len: Some(max_model_len),
            max_num_seqs: 8,
            max_num_batched_tokens,
            memory: MemoryLimit::Bytes(200 << 20),
            threads: Some(2),
            ..LoadOptions::default()
        };
        let of_model = files.clone();
        Self::custom(files, move || {
            perilune::load::load(&of_model, &options, perilune::load::WriteCache::Now)
        })
    }

    /// Begins to go down without waiting for what runs. The engine has been told when this returns: however late its thread comes to it, it
    /// takes no step after the one under way.
    pub fn stop_at_once(&mut self) -> JoinHandle<()> {
        let serving = self.serving.take().expect("it serves");
        let engine = serving.engine().clone();
        let drained = self.runtime.spawn(serving.drain(Duration::ZERO, std::future::pending()));
        wait_until("the engine is told to stop", || engine.is_stopping());
        drained
    }
}

pub fn find_metric(text: &str, name: &str, label: &str) -> Option<f64> {
    let line = text.lines().find(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])) && line.contains(label)
    })?;
    line.rsplit(' ').next()?.parse().ok()
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.control.open();
        self.control.hold_images(false);
        if let Some(serving) = self.serving.take() {
            self.runtime.block_on(serving.drain(Duration::from_secs(5), std::future::pending()));
        }
    }
}
