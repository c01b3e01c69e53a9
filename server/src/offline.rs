//! A server without a socket: the same routes, reached from inside only.

use crate::app::App;
use crate::auth::ApiKeys;
use crate::batch::job::Runner;
use crate::engine_thread::{Ended, EngineHandle};
use crate::serve::{LoadedModel, ServeOptions, StartError, batch_runner, build, limits};
use crate::web::WebPolicy;
use models::ModelFiles;
use scheduler::ModelRunner;
use std::sync::Arc;
use tokio::sync::oneshot;

pub struct Offline {
    app: Arc<App>,
    engine: EngineHandle,
    ended: oneshot::Receiver<Ended>,
}

impl Offline {
    /// Loads the model. `load` runs on the engine's thread.
    pub async fn start<R, E>(
        options: ServeOptions,
        files: ModelFiles,
        load: impl FnOnce() -> Result<LoadedModel<R>, E> + Send + 'static,
    ) -> Result<Self, StartError<E>>
    where
        R: ModelRunner,
        R::Error: std::fmt::Display,
        E: Send + 'static,
    {
        let app = Arc::new(App::new(
            ApiKeys::default(),
            limits(&options),
            WebPolicy::default(),
            options.place.clone(),
        ));
        let loading = app.clone();
        let (service, engine, ended) =
            tokio::task::spawn_blocking(move || build(&loading, options, &files, load))
                .await
                .map_err(|error| StartError::Panicked(error.to_string()))??;
        let _ = app.service.set(Arc::new(service));
        Ok(Self { app, engine, ended })
    }

    pub fn runner(&self, concurrency: usize) -> Runner {
        batch_runner(&self.app, concurrency)
    }

    pub async fn stop(self) {
        self.engine.stop();
        let _ = self.ended.await;
    }
}
