//! What handlers share.

use crate::access_log::AccessLog;
use crate::auth::ApiKeys;
use crate::batch::store::Store;
use crate::body::BodyMemory;
use crate::constrain::CompilerLimits;
use crate::error::ApiError;
use crate::lifecycle::Lifecycle;
use crate::metrics::HttpMetrics;
use crate::openai::generation::RequestLimits;
use crate::openai::responses::store::{ResponseStore, StoreLimits};
use crate::service::Service;
use crate::web::WebPolicy;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

#[derive(Debug, Clone, Copy)]
pub struct AppLimits {
    pub body_len_max: usize,
    /// For the bodies of all requests together.
    pub body_memory: usize,
    /// For a whole body, and longer for a long one that comes steadily.
    pub body_timeout: Duration,
    pub request: RequestLimits,
    /// `None`: streams carry no comments.
    pub keep_alive: Option<Duration>,
    pub grammars: CompilerLimits,
    pub responses: StoreLimits,
    /// Whether `/` serves the page to try the model on.
    pub page: bool,
    /// Whether `/tokenizer_info` answers: it shows the chat template.
    pub tokenizer_info: bool,
}

impl Default for AppLimits {
    fn default() -> Self {
        Self {
            body_len_max: 32 << 20,
            body_memory: 512 << 20,
            body_timeout: Duration::from_secs(60),
            request: RequestLimits::default(),
            keep_alive: Some(Duration::from_secs(5)),
            grammars: CompilerLimits::default(),
            responses: StoreLimits::default(),
            page: true,
            tokenizer_info: false,
        }
    }
}

/// What a server is told of where it stands.
#[derive(Debug, Clone, Default)]
pub struct Place {
    pub access_log: AccessLog,
    pub root_path: String,
}

/// What handlers share.
pub struct App {
    pub keys: ApiKeys,
    pub limits: AppLimits,
    pub web: WebPolicy,
    pub access_log: AccessLog,
    /// What paths begin with behind a proxy, for the API's own document; empty: nothing.
    pub root_path: String,
    pub http_metrics: Arc<HttpMetrics>,
    pub body_memory: Arc<BodyMemory>,
    pub lifecycle: Lifecycle,
    /// Files and batches; empty without `--data-dir`.
    pub store: OnceLock<Arc<Store>>,
    pub responses: Arc<ResponseStore>,
    /// Empty while the model is being loaded.
    pub service: OnceLock<Arc<Service>>,
}

impl App {
    pub fn new(keys: ApiKeys, limits: AppLimits, web: WebPolicy, place: Place) -> Self {
        let Place { access_log, root_path } = place;
        let http_metrics = Arc::new(HttpMetrics::new());
        Self {
            keys,
            limits,
            web,
            access_log,
            root_path,
            body_memory: Arc::new(BodyMemory::new(limits.body_memory, http_metrics.body_bytes.clone())),
            http_metrics,
            lifecycle: Lifecycle::new(),
            store: OnceLock::new(),
            responses: Arc::new(ResponseStore::new(limits.responses)),
            service: OnceLock::new(),
        }
    }

    pub fn service(&self) -> Result<&Arc<Service>, ApiError> {
        self.service.get().ok_or(ApiError::Loading)
    }

    pub fn store(&self) -> Result<&Arc<Store>, ApiError> {
        self.store.get().ok_or(ApiError::NoDataDir)
    }
}
