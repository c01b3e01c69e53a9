//! The batches of a server: made, listed, cancelled; each driven by a task of its own from where its record and its logs say it is, so
//! that a start after a crash is no other case.

use super::job::{Job, JobEnd, Runner, blocking, lock};
use super::lines::{self, Mistake, Rules};
use super::record::{BatchObject, End, NewBatch, Status};
use super::results::{Counts, Results};
use crate::disk::files::{About, FileLimits, Files};
use crate::disk::registry::{Order, Page, Registry};
use crate::disk::{DataDir, StoreError, ids_in, io_error, new_id, remove, sweep, write_atomic};
use crate::http::Phase;
use crate::service::unix_time;
use serde::{Deserialize, Serialize};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

#[derive(Debug, Clone)]
pub struct BatchLimits {
    /// Lines that run at once.
    pub concurrency: usize,
    pub num_lines_max: usize,
    pub line_len_max: usize,
    /// Batches that have not ended.
    pub num_active_max: usize,
    /// Batches that are remembered; the oldest that have ended are forgotten first.
    pub num_batches_max: usize,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self {
            concurrency: 16,
            num_lines_max: 50_000,
            line_len_max: 32 << 20,
            num_active_max: 100,
            num_batches_max: 1000,
        }
    }
}

/// What a server keeps on disk.
pub struct Store {
    pub files: Files,
    limits: BatchLimits,
    folder: PathBuf,
    batches: Mutex<Registry<Entry>>,
    /// Held while a record is written, so that an older one does not replace a newer.
    writing: Mutex<()>,
    /// Absent while the model is being loaded, and at the end, because it holds the router, which holds this.
    runner: Mutex<Option<Runner>>,
    _data: DataDir,
}

struct Entry {
    order: u64,
    batch: BatchObject,
    engine_failures: u32,
    ending: Option<Ending>,
    cancelled: watch::Sender<bool>,
}

/// Decided before the results become files, so that a crash in between is gone on from and not begun again.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Ending {
    end: End,
    output: Option<String>,
    errors: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Record {
    order: u64,
    batch: BatchObject,
    /// Times that the engine failed while lines of this batch ran.
    engine_failures: u32,
    ending: Option<Ending>,
}

/// A batch may break the engine this often before the lines that ran then count as failed: one of them may be the reason.
const ENGINE_FAILURES_MAX: u32 = 2;
/// After a disk refused to write.
const RETRY_AFTER: Duration = Duration::from_secs(10);
const PREFIX: &str = "batch_";

#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error("the model is being loaded")]
    Loading,
    #[error("there is no such file")]
    NoFile,
    #[error("{0} batches have not ended, which is the limit")]
    TooMany(usize),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    pub fn open(root: &Path, files: FileLimits, limits: BatchLimits) -> io::Result<Self> {
        let data = DataDir::open(root)?;
        let folder = data.batches.clone();
        sweep(&folder, "tmp")?;
        let mut batches = Registry::default();
        for id in ids_in(&folder, PREFIX, ".json")? {
            let record = std::fs::read(folder.join(format!("{id}.json")))?;
            match serde_json::from_slice::<Record>(&record) {
                Ok(Record { order, batch, engine_failures, ending }) if batch.id == id => {
                    let cancelled = watch::Sender::new(batch.status == Status::Cancelling);
                    batches.insert(order, id, Entry { order, batch, engine_failures, ending, cancelled });
                }
                _ => tracing::warn!(id, "the record of a batch is damaged, the batch is left alone"),
            }
        }
        Ok(Self {
            files: Files::open(data.files.clone(), files)?,
            limits,
            folder,
            batches: Mutex::new(batches),
            writing: Mutex::new(()),
            runner: Mutex::new(None),
            _data: data,
        })
    }

    pub fn concurrency(&self) -> usize {
        self.limits.concurrency
    }

    /// From now on lines run: first those that an earlier process left.
    pub fn start(self: &Arc<Self>, runner: Runner) {
        *lock(&self.runner) = Some(runner);
        let batches = lock(&self.batches);
        let open = batches.iter().filter(|(_, entry)| !entry.batch.status.is_terminal());
        for (id, entry) in open {
            tracing::info!(id, status = entry.batch.status.name(), "going on with a batch");
            tokio::spawn(self.clone().drive(id.to_owned()));
        }
    }

    /// Nothing more runs. What has not ended does in the next process.
    pub fn stop(&self) {
        *lock(&self.runner) = None;
    }

    /// Takes a batch in. Its file is checked later, as the API's states have it.
    pub fn create(self: &Arc<Self>, new: NewBatch) -> Result<BatchObject, CreateError> {
        if lock(&self.runner).is_none() {
            return Err(CreateError::Loading);
        }
        if self.files.get(&new.input_file_id).is_none() {
            return Err(CreateError::NoFile);
        }
        let batch = BatchObject::new(new_id(PREFIX), new);
        let id = batch.id.clone();
        {
            let mut batches = lock(&self.batches);
            let num_active = batches.iter().filter(|(_, entry)| !entry.batch.status.is_terminal()).count();
            if num_active >= self.limits.num_active_max {
                return Err(CreateError::TooMany(num_active));
            }
            let order = batches.next_order();
            let cancelled = watch::Sender::new(false);
            let entry = Entry { order, batch: batch.clone(), engine_failures: 0, ending: None, cancelled };
            batches.insert(order, id.clone(), entry);
        }
        if let Err(error) = self.write(&id) {
            lock(&self.batches).remove(&id);
            return Err(io_error("failed to keep a batch")(error).into());
        }
        self.forget_oldest();
        Ok(batch)
    }

    /// Begins to work on a batch that was just created.
    pub fn spawn(self: &Arc<Self>, id: &str) {
        tokio::spawn(self.clone().drive(id.to_owned()));
    }

    pub fn get(&self, id: &str) -> Option<BatchObject> {
        lock(&self.batches).get(id).map(|entry| entry.batch.clone())
    }

    pub fn page(&self, after: Option<&str>, limit: usize) -> Option<Page<BatchObject>> {
        lock(&self.batches).page(Order::NewestFirst, after, limit, |entry| Some(entry.batch.clone()))
    }

    /// The batch, and whether it is being cancelled; `None` where there is none.
    pub fn cancel(&self, id: &str) -> io::Result<Option<(BatchObject, bool)>> {
        let Some(done) = lock(&self.batches).get_mut(id).map(|entry| {
            let is_cancelled = entry.batch.cancel();
            if is_cancelled {
                entry.cancelled.send_replace(true);
            }
            (entry.batch.clone(), is_cancelled)
        }) else {
            return Ok(None);
        };
        if done.1 {
            self.write(id)?;
        }
        Ok(Some(done))
    }

    /// The batch that still reads this file.
    pub fn user_of(&self, file: &str) -> Option<String> {
        let batches = lock(&self.batches);
        let mut open = batches.iter().filter(|(_, entry)| !entry.batch.status.is_terminal());
        open.find(|(_, entry)| entry.batch.input_file_id == file).map(|(id, _)| id.to_owned())
    }

    fn path(&self, id: &str, extension: &str) -> PathBuf {
        self.folder.join(format!("{id}.{extension}"))
    }

    /// Writes the record as it is now.
    fn write(&self, id: &str) -> io::Result<()> {
        let _writing = lock(&self.writing);
        let record = {
            let batches = lock(&self.batches);
            let Some(entry) = batches.get(id) else { return Ok(()) };
            serde_json::to_vec(&Record {
                order: entry.order,
                batch: entry.batch.clone(),
                engine_failures: entry.engine_failures,
                ending: entry.ending.clone(),
            })?
        };
        write_atomic(&self.path(id, "json"), &record)
    }

    fn edit<T>(&self, id: &str, edit: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        lock(&self.batches).get_mut(id).map(edit)
    }

    /// Changes a batch in memory and on disk.
    async fn update(self: &Arc<Self>, id: &str, edit: impl FnOnce(&mut Entry)) -> io::Result<()> {
        self.edit(id, edit);
        let (store, id) = (self.clone(), id.to_owned());
        blocking(move || store.write(&id)).await
    }

    fn forget_oldest(&self) {
        let mut batches = lock(&self.batches);
        let excess = batches.len().saturating_sub(self.limits.num_batches_max);
        let ended = batches.iter().filter(|(_, entry)| entry.batch.status.is_terminal());
        let ids: Vec<String> = ended.take(excess).map(|(id, _)| id.to_owned()).collect();
        for id in ids {
            batches.remove(&id);
            if let Err(error) = remove(&self.path(&id, "json")) {
                tracing::warn!(id, %error, "failed to forget a batch");
            }
        }
    }

    /// Works on a batch until it has ended or the server goes down.
    async fn drive(self: Arc<Self>, id: String) {
        let Some(runner) = lock(&self.runner).clone() else { return };
        let mut phase = runner.lifecycle.phase();
        loop {
            match self.advance(&id, &runner).await {
                Ok(()) => return,
                // Most often a full disk. Nothing is lost: what is not in a log runs again.
                Err(error) => tracing::error!(id, %error, "failed to work on a batch, trying again"),
            }
            let down = phase.wait_for(|phase| *phase >= Phase::Draining);
            if tokio::time::timeout(RETRY_AFTER, down).await.is_ok() {
                return;
            }
        }
    }

    async fn advance(self: &Arc<Self>, id: &str, runner: &Runner) -> io::Result<()> {
        let Some((batch, engine_failures, ending, mut cancelled)) = self.edit(id, |entry| {
            (entry.batch.clone(), entry.engine_failures, entry.ending.clone(), entry.cancelled.subscribe())
        }) else {
            return Ok(());
        };
        if let Some(ending) = ending {
            return self.publish(id, ending).await;
        }
        let Some(job) = self.job(&batch, engine_failures).await? else {
            return self.fail(id, vec![no_input()]).await;
        };
        if batch.status == Status::Validating || batch.request_counts.total == 0 {
            match check(&job).await? {
                Ok(num_lines) => self.update(id, |entry| entry.batch.begin(num_lines)).await?,
                Err(mistakes) => return self.fail(id, mistakes).await,
            }
        }
        let mut expired = false;
        let stop = async {
            let window = batch.expires_at.unwrap_or(u64::MAX).saturating_sub(unix_time());
            tokio::select! {
                _ = cancelled.wait_for(|cancelled| *cancelled) => {}
                () = tokio::time::sleep(Duration::from_secs(window)) => expired = true,
            }
        };
        let report = |counts: Counts| {
            self.edit(id, |entry| entry.batch.count(counts));
        };
        report(lock(&job.results).counts());
        let end = match job.run(runner, stop, report).await? {
            JobEnd::Done => End::Completed,
            JobEnd::Stopped if expired => End::Expired,
            JobEnd::Stopped => End::Cancelled,
            JobEnd::Draining => return Ok(()),
            JobEnd::EngineFailed => return self.update(id, |entry| entry.engine_failures += 1).await,
        };
        self.finish(id, &job, end).await
    }

    /// `None`: the input is gone.
    async fn job(self: &Arc<Self>, batch: &BatchObject, engine_failures: u32) -> io::Result<Option<Job>> {
        let store = self.clone();
        let (id, input, endpoint) = (batch.id.clone(), batch.input_file_id.clone(), batch.endpoint.clone());
        blocking(move || {
            let Some(input) = store.files.content_of(&input) else { return Ok(None) };
            let results =
                Results::open(&store.path(&id, "output.jsonl"), Some(&store.path(&id, "errors.jsonl")))?;
            let BatchLimits { num_lines_max, line_len_max, .. } = store.limits;
            Ok(Some(Job {
                input,
                rules: Rules { endpoint: Some(endpoint), num_lines_max, line_len_max },
                results: Arc::new(Mutex::new(results)),
                keep_engine_failures: engine_failures >= ENGINE_FAILURES_MAX,
            }))
        })
        .await
    }

    async fn fail(self: &Arc<Self>, id: &str, mistakes: Vec<Mistake>) -> io::Result<()> {
        self.update(id, |entry| entry.batch.fail(mistakes)).await?;
        self.remove_logs(id).await
    }

    /// Every line has a result, at the latest after this.
    async fn finish(self: &Arc<Self>, id: &str, job: &Job, end: End) -> io::Result<()> {
        let counts = match end {
            End::Completed => lock(&job.results).counts(),
            End::Cancelled => {
                job.give_up("batch_cancelled", "the batch was cancelled before this line ran").await?
            }
            End::Expired => {
                job.give_up("batch_expired", "the completion window ended before this line ran").await?
            }
        };
        let results = job.results.clone();
        let (has_output, has_errors) = blocking(move || {
            let results = lock(&results);
            results.sync()?;
            Ok(results.has())
        })
        .await?;
        let ending =
            Ending { end, output: has_output.then(Files::new_id), errors: has_errors.then(Files::new_id) };
        let decided = ending.clone();
        self.update(id, |entry| {
            entry.batch.count(counts);
            entry.batch.finalize(end);
            entry.ending = Some(decided);
        })
        .await?;
        self.publish(id, ending).await?;
        tracing::info!(id, completed = counts.completed, failed = counts.failed, "a batch has ended");
        Ok(())
    }

    /// Makes files of the results. What was done of this before a crash is found done.
    async fn publish(self: &Arc<Self>, id: &str, ending: Ending) -> io::Result<()> {
        let Ending { end, output, errors } = ending;
        for (file, kind) in [(&output, "output"), (&errors, "errors")] {
            let Some(file) = file.clone() else { continue };
            let (store, id) = (self.clone(), id.to_owned());
            blocking(move || {
                let about = About {
                    filename: format!("{id}_{kind}.jsonl"),
                    purpose: "batch_output".into(),
                    expires_after: None,
                };
                store.files.adopt(&file, &store.path(&id, &format!("{kind}.jsonl")), about)
            })
            .await?;
        }
        self.update(id, |entry| entry.batch.end(end, output, errors)).await?;
        self.remove_logs(id).await
    }

    /// Those that became no file are empty.
    async fn remove_logs(self: &Arc<Self>, id: &str) -> io::Result<()> {
        let paths = ["output.jsonl", "errors.jsonl"].map(|name| self.path(id, name));
        blocking(move || paths.iter().try_for_each(|path| remove(path))).await
    }
}

async fn check(job: &Job) -> io::Result<Result<usize, Vec<Mistake>>> {
    let (input, rules) = (job.input.clone(), job.rules.clone());
    blocking(move || lines::check(BufReader::new(std::fs::File::open(input)?), &rules)).await
}

fn no_input() -> Mistake {
    let message = "the input file was deleted before the batch began".into();
    Mistake { line: None, code: "input_file_not_found", param: Some("input_file_id"), message }
}
