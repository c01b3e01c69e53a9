//! `perilune serve` as a process: ports, signals, exit codes.

use crate::batch::store::Store;
use crate::config::{Config, DataConfig};
use crate::exit_code::{EXIT_ENGINE, EXIT_FAILURE, EXIT_LOAD};
use crate::open_files;
use crate::serve::{Listening, LoadedModel, ServeOptions, Serving, StartError};
use models::ModelFiles;
use scheduler::ModelRunner;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A model that was found and is not loaded yet.
pub struct ModelSource<L> {
    pub files: ModelFiles,
    /// Names in the API where the configuration gives none.
    pub name: String,
    /// Where it is, for `root` in the list of models.
    pub root: String,
    pub load: L,
}

/// Serves until a signal or a failure. `load` runs on the engine's thread; `exit_code` says what kind of failure its error is.
pub fn run<R, E, L>(config: Config, source: ModelSource<L>, exit_code: fn(&E) -> u8) -> ExitCode
where
    R: ModelRunner,
    R::Error: std::fmt::Display,
    E: std::fmt::Display + Send + 'static,
    L: FnOnce() -> Result<LoadedModel<R>, E> + Send + 'static,
{
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let mut config = config;
    if let Some(files) = open_files::raise() {
        config.http.max_connections = open_files::connections(files, config.http.max_connections);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("http").build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "failed to start threads");
            return ExitCode::from(EXIT_FAILURE);
        }
    };
    match runtime.block_on(serve(config, source, exit_code)) {
        Some(code) => ExitCode::from(code),
        None => {
            // Loading cannot be interrupted: its thread is left behind.
            runtime.shutdown_background();
            ExitCode::SUCCESS
        }
    }
}

/// The exit code; `None` where it was told to stop before the model was loaded.
async fn serve<R, E, L>(config: Config, source: ModelSource<L>, exit_code: fn(&E) -> u8) -> Option<u8>
where
    R: ModelRunner,
    R::Error: std::fmt::Display,
    E: std::fmt::Display + Send + 'static,
    L: FnOnce() -> Result<LoadedModel<R>, E> + Send + 'static,
{
    let start = Instant::now();
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!(%error, "failed to listen for signals");
            return Some(EXIT_FAILURE);
        }
    };
    let shutdown_timeout = config.shutdown_timeout;
    let (host, port) = (config.host.clone(), config.port);
    let ModelSource { files, name, root, load } = source;
    let store = match open_store(&config.data) {
        Ok(store) => store,
        Err(error) => {
            let dir = config.data.dir.unwrap_or_default();
            tracing::error!(dir = %dir.display(), %error, "failed to open the data folder");
            return Some(EXIT_FAILURE);
        }
    };
    let options = ServeOptions { store, ..serve_options(config, name, root) };
    let names = options.names.join(", ");
    let listening =
        match TcpListener::bind((host.as_str(), port)).await.and_then(|l| Listening::new(l, options)) {
            Ok(listening) => listening,
            Err(error) => {
                tracing::error!(host, port, %error, "failed to listen");
                return Some(EXIT_FAILURE);
            }
        };
    let address = listening.address;
    tracing::info!(%address, model = names, "listening, loading the model");
    let mut serving = tokio::select! {
        serving = listening.serve(files, load) => match serving {
            Ok(serving) => serving,
            Err(error) => {
                let code = match &error {
                    StartError::Load(error) => exit_code(error),
                    _ => EXIT_LOAD,
                };
                tracing::error!(%error, "failed to load the model");
                return Some(code);
            }
        },
        // Nobody is being served: there is nothing to wait for.
        signal = signals.next() => {
            tracing::info!(signal, "stopped while loading");
            return None;
        }
    };
    tracing::info!(seconds = start.elapsed().as_secs_f64(), "ready on http://{address}");
    tokio::select! {
        message = serving.failed() => {
            tracing::error!(error = message, "the engine failed, exiting");
            drain(serving, shutdown_timeout, &mut signals).await;
            Some(EXIT_ENGINE)
        }
        signal = signals.next() => {
            tracing::info!(signal, timeout_s = shutdown_timeout.as_secs_f64(), "finishing the requests in flight");
            drain(serving, shutdown_timeout, &mut signals).await;
            tracing::info!("stopped");
            Some(0)
        }
    }
}

async fn drain(serving: Serving, timeout: std::time::Duration, signals: &mut Signals) {
    let hurry = async {
        signals.next().await;
    };
    serving.drain(timeout, hurry).await;
}

fn open_store(data: &DataConfig) -> std::io::Result<Option<Arc<Store>>> {
    let DataConfig { dir, files, batches } = data;
    let Some(dir) = dir else { return Ok(None) };
    Store::open(dir, *files, batches.clone()).map(|store| Some(Arc::new(store)))
}

/// What a server is told of its configuration; opens nothing.
pub fn serve_options(config: Config, name: String, root: String) -> ServeOptions {
    let Config {
        model: _,
        host: _,
        port: _,
        served_names,
        load: _,
        scheduling,
        keys,
        limits,
        web,
        http,
        pictures,
        seed,
        log_format: _,
        chat_template,
        parsers,
        defaults,
        adapters,
        shutdown_timeout: _,
        data: _,
        warnings: _,
    } = config;
    let names = if served_names.is_empty() { vec![name] } else { served_names };
    ServeOptions {
        names,
        root,
        scheduling,
        keys,
        limits,
        web,
        http,
        pictures,
        seed,
        chat_template,
        parsers,
        defaults,
        adapters,
        store: None,
    }
}

/// Those that ask a server to stop.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// The terminal is gone. `None` where whoever started the process had it ignored, as `nohup` does.
    hang_up: Option<Signal>,
}

impl Signals {
    pub fn new() -> std::io::Result<Self> {
        let hang_up = if takes_hang_up() { Some(signal(SignalKind::hangup())?) } else { None };
        let [terminate, interrupt] = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
        Ok(Self { terminate: terminate?, interrupt: interrupt?, hang_up })
    }

    pub async fn next(&mut self) -> &'static str {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = hang_up => "SIGHUP",
        }
    }
}

/// Whether SIGHUP is not ignored, which to listen for it would end. Where that cannot be known it is left as it is.
fn takes_hang_up() -> bool {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return false };
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // SIGHUP is signal 1, the lowest bit.
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 0)
}
