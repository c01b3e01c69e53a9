//! Runs the lines of a file that have no result yet, a bounded number at a time, and keeps each result before it counts.

use super::lines::{Line, LineReader, Rules};
use super::request::{LineRunner, Outcome};
use super::results::{Counts, LineResult, Results};
use crate::body::{BodyMemory, Held};
use crate::lifecycle::{InFlight, Lifecycle};
use std::fs::File;
use std::io::{self, BufReader};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

/// What runs lines, shared by all jobs.
#[derive(Clone)]
pub struct Runner {
    pub lines: Arc<LineRunner>,
    /// As many lines as may run at once, of all jobs together; taken in turn.
    pub permits: Arc<Semaphore>,
    pub lifecycle: Lifecycle,
    /// For bodies of clients and lines together.
    pub memory: Arc<BodyMemory>,
}

impl Runner {
    /// Waits for a place among the lines that run, and for room for one of this weight.
    async fn place(&self, weight: usize) -> Place {
        let permit = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        loop {
            if let Some(held) = self.memory.hold_patiently(weight) {
                return Place { _permit: permit, _held: held };
            }
            tokio::time::sleep(MEMORY_POLL).await;
        }
    }
}

/// Bodies come and go within milliseconds, and a line can wait.
const MEMORY_POLL: Duration = Duration::from_millis(50);

/// What a line has while it runs.
struct Place {
    _permit: OwnedSemaphorePermit,
    _held: Held,
}

pub struct Job {
    pub input: PathBuf,
    pub rules: Rules,
    pub results: Arc<Mutex<Results>>,
    /// A result that an engine's failure left is kept where the batch broke the engine this often before.
    pub keep_engine_failures: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobEnd {
    /// Every line has a result.
    Done,
    /// `stop` resolved; the lines that ran then have none.
    Stopped,
    /// The server goes down; the lines that ran have results.
    Draining,
    /// The engine failed; what else it did is lost with it.
    EngineFailed,
}

type Finished = (Outcome, Place, InFlight);

impl Job {
    /// Runs until the end or until `stop` resolves. `report` is told the counts after each change.
    pub async fn run(
        &self,
        runner: &Runner,
        stop: impl Future<Output = ()>,
        report: impl Fn(Counts),
    ) -> io::Result<JobEnd> {
        let mut stop = std::pin::pin!(stop);
        let reader = self.open().await?;
        let mut running: JoinSet<Finished> = JoinSet::new();
        let mut next = self.next(&reader).await?;
        let mut end = JobEnd::Done;
        while next.is_some() || !running.is_empty() {
            tokio::select! {
                biased;
                () = stop.as_mut() => return Ok(JobEnd::Stopped),
                Some(finished) = running.join_next() => {
                    let ended = self.keep(finished, &mut running, &report).await?;
                    if ended != JobEnd::Done {
                        (end, next) = (ended, None);
                    }
                }
                place = runner.place(next.as_ref().map_or(0, |line| line.weight)), if next.is_some() => {
                    let Ok(in_flight) = runner.lifecycle.admit_work() else {
                        (end, next) = (JobEnd::Draining, None);
                        continue;
                    };
                    if let Some(line) = next.take() {
                        let lines = runner.lines.clone();
                        running.spawn(async move { (lines.run(line).await, place, in_flight) });
                    }
                    next = self.next(&reader).await?;
                }
            }
        }
        Ok(end)
    }

    async fn open(&self) -> io::Result<Arc<Mutex<Input>>> {
        let (path, line_len_max) = (self.input.clone(), self.rules.line_len_max);
        let file = blocking(move || File::open(path)).await?;
        Ok(Arc::new(Mutex::new(LineReader::new(BufReader::new(file), line_len_max))))
    }

    /// The next line without a result.
    async fn next(&self, reader: &Arc<Mutex<Input>>) -> io::Result<Option<Line>> {
        let (reader, results, rules) = (reader.clone(), self.results.clone(), self.rules.clone());
        blocking(move || next_undone(&mut lock(&reader), &lock(&results), &rules)).await
    }

    /// Writes a result, and all others that are there by now.
    async fn keep(
        &self,
        first: Result<Finished, tokio::task::JoinError>,
        running: &mut JoinSet<Finished>,
        report: &impl Fn(Counts),
    ) -> io::Result<JobEnd> {
        let mut end = JobEnd::Done;
        let (mut done, mut held) = (Vec::new(), Vec::new());
        let mut finished = Some(first);
        while let Some(task) = finished {
            // A handler's panic is caught by the router; one that is not is ours.
            let (outcome, place, in_flight) = task.map_err(io::Error::other)?;
            match outcome {
                Outcome::Done(result) => done.push(result),
                Outcome::EngineFailed(result) if self.keep_engine_failures => done.push(result),
                Outcome::EngineFailed(_) => end = JobEnd::EngineFailed,
                Outcome::Abandoned if end == JobEnd::Done => end = JobEnd::Draining,
                Outcome::Abandoned => {}
            }
            // Until it is written it runs: the next line waits, and so does the server's end.
            held.push((place, in_flight));
            finished = running.try_join_next();
        }
        let results = self.results.clone();
        let counts = blocking(move || {
            let mut results = lock(&results);
            results.add(&done)?;
            Ok(results.counts())
        })
        .await?;
        report(counts);
        Ok(end)
    }

    /// Gives every line that has no result this one.
    pub async fn give_up(&self, code: &'static str, message: &'static str) -> io::Result<Counts> {
        let reader = self.open().await?;
        let (results, rules) = (self.results.clone(), self.rules.clone());
        blocking(move || {
            let (mut reader, mut results) = (lock(&reader), lock(&results));
            while let Some(line) = next_undone(&mut reader, &results, &rules)? {
                results.add(&[LineResult::not_run(line.custom_id, code, message)])?;
            }
            Ok(results.counts())
        })
        .await
    }
}

type Input = LineReader<BufReader<File>>;

fn next_undone(reader: &mut Input, results: &Results, rules: &Rules) -> io::Result<Option<Line>> {
    while let Some(line) = reader.next_line(rules)? {
        let changed = |_| io::Error::new(io::ErrorKind::InvalidData, "the input changed while it was read");
        let line = line.map_err(changed)?;
        if !results.is_done(&line.custom_id) {
            return Ok(Some(line));
        }
    }
    Ok(None)
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Disks are slow, and async threads must not wait for them.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
