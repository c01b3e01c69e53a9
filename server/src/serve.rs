//! A server from its first port to its last connection: bind, load, serve, drain.

use crate::adapters::{AdapterModule, AdapterOptions, AdapterSupport, Adapters, Load};
use crate::app::{App, AppLimits, Place};
use crate::auth::ApiKeys;
use crate::batch::job::Runner;
use crate::batch::request::LineRunner;
use crate::batch::store::Store;
use crate::chat::parse::Parsers;
use crate::chat::{ChatTemplate, PromptBuilder, TemplateError, Tokenizer, TokenizerError};
use crate::config::{DefaultsFrom, Scheduling};
use crate::constrain::Host;
use crate::defaults::GenerationDefaults;
use crate::engine_thread::{self, Ended, EngineHandle, EngineThread};
use crate::http::{Address, Front, HttpLimits, Listener, Phase, accept_loop};
use crate::metrics::{CacheInfo, Metrics};
use crate::openapi::takes_field;
use crate::pictures::PictureOptions;
use crate::router::router;
use crate::service::{Service, ServiceParts};
use crate::tls::Tls;
use crate::web::WebPolicy;
use models::{ImageProcessor, ModelFiles, ModelInfo};
use scheduler::{ModelRunner, SchedulerConfig};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;

/// How to serve, whatever the model.
pub struct ServeOptions {
    pub names: Vec<String>,
    pub root: String,
    pub scheduling: Scheduling,
    pub keys: ApiKeys,
    pub limits: AppLimits,
    pub web: WebPolicy,
    pub place: Place,
    pub http: HttpLimits,
    /// `None`: HTTP in the clear.
    pub tls: Option<Arc<Tls>>,
    pub pictures: PictureOptions,
    pub seed: Option<u64>,
    pub chat_template: Option<PathBuf>,
    pub parsers: Parsers,
    pub defaults: DefaultsFrom,
    pub adapters: AdapterOptions,
    /// Files and batches; `None`: their routes say that there is no folder for them.
    pub store: Option<Arc<Store>>,
}

/// A model as its loader hands it over.
pub struct LoadedModel<R> {
    pub runner: R,
    /// `None`: there is no room for any.
    pub adapters: Option<AdapterSupport<R>>,
    pub info: ModelInfo,
    pub image_processor: Option<Arc<dyn ImageProcessor>>,
    pub scheduler_config: SchedulerConfig,
    /// Sampling parameters that the model's authors recommend.
    pub generation: models::GenerationDefaults,
    /// What it runs on, for people.
    pub device: String,
    /// Allocated on the device, for good: nothing is allocated while serving.
    pub device_bytes: u64,
    /// Of one block of the KV cache.
    pub kv_block_bytes: u64,
}

/// Requests that can wait for the current step to end.
const MAX_PENDING: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum StartError<E> {
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error("{0}")]
    Load(E),
    #[error("failed to load the adapter `{name}`: {message}")]
    Adapter { name: String, message: String },
    #[error("invalid scheduler configuration: {0}")]
    Scheduler(scheduler::InvalidConfig),
    #[error("failed to load the model: {0}")]
    Panicked(String),
    #[error("failed to start the engine's thread: {0}")]
    Thread(std::io::Error),
}

/// Listening, but not serving a model yet: everything that needs one is answered with 503.
pub struct Listening {
    pub app: Arc<App>,
    pub address: Address,
    options: ServeOptions,
    accepting: JoinHandle<()>,
    started: Instant,
}

impl Listening {
    pub fn new(listener: impl Into<Listener>, options: ServeOptions) -> std::io::Result<Self> {
        let started = Instant::now();
        let listener = listener.into();
        let address = listener.address()?;
        let app = Arc::new(App::new(
            options.keys.clone(),
            limits(&options),
            options.web.clone(),
            options.place.clone(),
        ));
        if let Some(store) = &options.store {
            let _ = app.store.set(store.clone());
        }
        let front = Front {
            router: router(app.clone()),
            limits: options.http,
            root_path: options.place.root_path.as_str().into(),
            tls: options.tls.clone(),
            metrics: app.http_metrics.clone(),
            phase: app.lifecycle.phase(),
        };
        let accepting = tokio::spawn(accept_loop(listener, front));
        Ok(Self { app, address, options, accepting, started })
    }

    /// Loads the model and begins to serve it. `load` runs on the engine's thread.
    pub async fn serve<R, E>(
        self,
        files: ModelFiles,
        load: impl FnOnce() -> Result<LoadedModel<R>, E> + Send + 'static,
    ) -> Result<Serving, StartError<E>>
    where
        R: ModelRunner,
        R::Error: std::fmt::Display,
        E: Send + 'static,
    {
        let Self { app, address, options, accepting, started } = self;
        let flush_timeout = options.http.flush_timeout;
        let loading = app.clone();
        let (service, handle, ended) =
            tokio::task::spawn_blocking(move || build(&loading, options, &files, load))
                .await
                .map_err(|error| StartError::Panicked(error.to_string()))??;
        let _ = app.service.set(Arc::new(service));
        if let Some(store) = app.store.get() {
            store.start(batch_runner(&app, store.concurrency()));
        }
        app.http_metrics.startup("total", started.elapsed());
        Ok(Serving { app, address, engine: handle, ended, accepting, flush_timeout })
    }
}

/// What one request may send to the engine at once has to fit its queue, or waiting would never help.
pub(crate) fn limits(options: &ServeOptions) -> AppLimits {
    let mut limits = options.limits;
    limits.request.num_inputs_max = limits.request.num_inputs_max.min(options.scheduling.max_waiting);
    limits
}

/// What runs the lines of batches: the router itself.
pub fn batch_runner(app: &Arc<App>, concurrency: usize) -> Runner {
    Runner {
        lines: Arc::new(LineRunner::new(router(app.clone()), app.lifecycle.phase(), takes_field)),
        permits: Arc::new(Semaphore::new(concurrency)),
        lifecycle: app.lifecycle.clone(),
        memory: app.body_memory.clone(),
    }
}

pub(crate) type Built = (Service, EngineHandle, oneshot::Receiver<Ended>);

/// On a blocking thread of the runtime.
pub(crate) fn build<R, E>(
    app: &App,
    options: ServeOptions,
    files: &ModelFiles,
    load: impl FnOnce() -> Result<LoadedModel<R>, E> + Send + 'static,
) -> Result<Built, StartError<E>>
where
    R: ModelRunner,
    R::Error: std::fmt::Display,
    E: Send + 'static,
{
    let ServeOptions {
        names,
        root,
        scheduling,
        pictures,
        seed,
        chat_template,
        parsers,
        defaults,
        adapters,
        ..
    } = options;
    let start = Instant::now();
    let tokenizer = Arc::new(Tokenizer::load(files)?);
    let template = match chat_template {
        None => ChatTemplate::load(files)?,
        // A file, or the name of a built-in template.
        Some(name) => Some(ChatTemplate::named(&name.to_string_lossy())?),
    };
    app.http_metrics.startup("tokenizer", start.elapsed());
    let start = Instant::now();
    let metrics_name = names[0].clone();
    let (max_loras, room) = (adapters.max_loras, adapters.room());
    let engine = engine_thread::spawn(MAX_PENDING, move || {
        let model = load().map_err(StartError::Load)?;
        let scheduler_config = SchedulerConfig {
            max_waiting: scheduling.max_waiting,
            async_scheduling: scheduling.async_scheduling,
            enable_prefix_caching: scheduling.enable_prefix_caching,
            ..model.scheduler_config
        };
        scheduler_config.check().map_err(StartError::Scheduler)?;
        let cache = CacheInfo {
            block_size: scheduler_config.block_size,
            num_blocks: scheduler_config.num_blocks,
            prefix_caching: scheduler_config.enable_prefix_caching,
        };
        let metrics = Arc::new(Metrics::new(&metrics_name, model.info.max_model_len, cache));
        if scheduler_config.num_host_blocks > 0 {
            metrics.offload(model.kv_block_bytes);
        }
        metrics.device(&model.device, model.device_bytes);
        let (hooks, prepare) = match model.adapters {
            Some(AdapterSupport { prepare, hooks }) => (Some(hooks), Some(prepare)),
            None => (None, None),
        };
        if hooks.is_some() {
            metrics.take_adapters(max_loras);
        }
        let host = if model.runner.works_alone() { Host::WaitsForDevice } else { Host::ComputesSteps };
        Ok::<_, StartError<E>>(engine_thread::Parts {
            runner: model.runner,
            adapters: hooks,
            adapter_room: room,
            config: scheduler_config,
            metrics: metrics.clone(),
            loaded: (model.info, host, model.image_processor, model.generation, metrics, prepare),
        })
    });
    let EngineThread { handle, loaded, ended } = engine.map_err(StartError::Thread)??;
    app.http_metrics.startup("model", start.elapsed());
    let (info, host, image_processor, generation, metrics, prepare) = loaded;
    let defaults = match defaults {
        DefaultsFrom::Model => GenerationDefaults::of_model(&info, &generation),
        DefaultsFrom::Api => GenerationDefaults::of_api(&info),
    };
    let defaults = GenerationDefaults { speculation: scheduling.speculation, ..defaults };
    let prompts = PromptBuilder::new(tokenizer.clone(), template, info.image_token_id);
    let output = prompts.output().overridden(&parsers);
    let prompts = prompts.with_output(output);
    let service = Service::new(ServiceParts {
        engine: handle.clone(),
        tokenizer,
        prompts,
        image_processor,
        pictures,
        info,
        host,
        grammars: app.limits.grammars,
        metrics,
        adapters: Adapters::new(handle.clone(), prepare, names.clone(), &adapters),
        defaults,
        names,
        root,
        seed,
    });
    for AdapterModule { name, path, base_model_name } in adapters.modules {
        let load = Load { name: name.clone(), folder: path, parent: base_model_name, in_place: false };
        let loading = service.adapters().load(load);
        let loaded = tokio::runtime::Handle::current().block_on(loading);
        loaded.map_err(|error| StartError::Adapter { name, message: error.to_string() })?;
    }
    Ok((service, handle, ended))
}

/// A server with a model.
pub struct Serving {
    pub app: Arc<App>,
    pub address: Address,
    engine: EngineHandle,
    ended: oneshot::Receiver<Ended>,
    accepting: JoinHandle<()>,
    flush_timeout: Duration,
}

impl Serving {
    pub fn engine(&self) -> &EngineHandle {
        &self.engine
    }

    /// Resolves when the engine fails; it ends in no other way before [`Serving::drain`].
    pub async fn failed(&mut self) -> String {
        match (&mut self.ended).await {
            Ok(Err(message)) => message,
            Ok(Ok(())) | Err(_) => "the engine thread ended".into(),
        }
    }

    /// Refuses new requests, lets those in flight finish for as long as `timeout` or until `hurry` resolves, ends the rest with an error,
    /// and closes. Within the same time clients take what is complete: an answer may lie here long after it was made, where its reader is slow.
    pub async fn drain(self, timeout: Duration, hurry: impl Future<Output = ()>) {
        let Self { app, engine, ended, accepting, flush_timeout, .. } = self;
        app.lifecycle.enter(Phase::Draining);
        let mut cut_short = std::pin::pin!(async {
            tokio::select! {
                () = tokio::time::sleep(timeout) => "out of time",
                () = hurry => "told again to stop",
            }
        });
        let has_time = tokio::select! {
            () = app.lifecycle.drained() => true,
            why = cut_short.as_mut() => {
                tracing::warn!(why, "requests did not finish");
                false
            }
        };
        engine.stop();
        let _ = ended.await;
        let _ = tokio::time::timeout(flush_timeout, app.lifecycle.drained()).await;
        app.lifecycle.enter(Phase::Closed);
        let _ = accepting.await;
        if let Some(store) = app.store.get() {
            store.stop();
        }
        let mut closed = std::pin::pin!(async {
            while app.http_metrics.connections.get() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        if has_time {
            tokio::select! {
                () = closed.as_mut() => return,
                why = cut_short => tracing::warn!(why, "answers were not read to their end"),
            }
        }
        let _ = tokio::time::timeout(flush_timeout, closed).await;
    }
}
