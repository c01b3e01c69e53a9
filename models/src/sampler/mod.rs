//! From logits to one token, or to how probable a given one was. A row's result depends on its own logits and parameters only.
//!
//! ```text
//! logits ─▶ mask of early stop tokens ─▶ bias ─▶ penalties ─▶ mask of the constraint ─▶ greedy: the largest, ties by lower id
//!    │                                                                 └───────▶ temperature ─▶ min-p ─▶ top-k ─▶ top-p ─▶ draw
//!    └─▶ log-probabilities: of the model's own distribution, untouched by all of the above
//! ```
//! The order is vLLM's. The draw inverts the cumulative distribution with one random number, a function of seed and position.

mod draw;
mod on_device;
mod philox;
mod score;
mod task;

pub use draw::{Workspace, log_softmax, sample};
pub(crate) use on_device::{DeviceSampler, Drawing};
pub use philox::uniform;
pub use score::score;
pub(crate) use task::tops;
pub use task::{RowResult, RowTask};

use draw::is_finite;
use kernels::{Device, Error, Indices, Tensor};
use scheduler::{Failure, Sampled};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The workspaces of all threads that sample.
pub struct Sampler {
    workspaces: Vec<Mutex<Workspace>>,
    /// Where the logits are on a GPU.
    on_device: Option<DeviceSampler>,
    /// Logits of a GPU, for what it does not sample itself.
    logits: Vec<f32>,
}

impl Sampler {
    /// For up to `max_rows` rows at a time.
    pub fn new(device: &Device, max_rows: usize, vocab_size: usize) -> Result<Self, Error> {
        let workspace = |_| Mutex::new(Workspace::new(vocab_size));
        Ok(Self {
            workspaces: (0..device.num_threads()).map(workspace).collect(),
            on_device: DeviceSampler::new(device, max_rows, vocab_size)?,
            logits: Vec::new(),
        })
    }

    /// Whether `begin` can do what `run` does.
    pub(crate) fn can_begin(&self, tasks: &[RowTask]) -> bool {
        self.on_device.is_some() && DeviceSampler::can_run(tasks)
    }

    /// Enqueues what `run` does, where that can be begun. Waits for masks, and not for the device. Two calls may be under way.
    pub(crate) fn begin(&mut self, logits: &Tensor, tasks: &[RowTask]) -> Drawing {
        self.on_device.as_mut().expect("it can be begun there").begin(logits, tasks)
    }

    /// Waits for what was begun, for the same tasks.
    pub(crate) fn finish(&mut self, drawing: Drawing, tasks: &[RowTask]) -> Result<Vec<RowResult>, Error> {
        self.on_device.as_mut().expect("it was begun there").finish(drawing, tasks)
    }

    /// Of the call that was begun last, what row `from[i]` draws becomes token `to[i]`, without a wait.
    pub(crate) fn place(&self, from: &Indices, to: &Indices, tokens: &mut Indices) {
        self.on_device.as_ref().expect("it was begun there").place(from, to, tokens);
    }

    /// One row of `logits` [R, V] for each task. Rows are shared out between threads, or blocks of a GPU; none knows of another.
    pub fn run(
        &mut self,
        device: &Device,
        logits: &mut Tensor,
        tasks: &[RowTask],
    ) -> Result<Vec<RowResult>, Error> {
        let &[num_rows, vocab_size] = logits.shape() else { panic!("logits {:?}", logits.shape()) };
        assert_eq!(num_rows, tasks.len(), "a row for each task");
        if let Some(on_device) = self.on_device.as_mut().filter(|_| DeviceSampler::can_run(tasks)) {
            let drawing = on_device.begin(logits, tasks);
            return on_device.finish(drawing, tasks);
        }
        let workspaces = &self.workspaces;
        let rows = logits.on_host_mut(&mut self.logits)?.chunks_mut(vocab_size).zip(tasks);
        let rows: Vec<_> = rows.map(|(logits, task)| Mutex::new((logits, *task, None))).collect();
        device.for_each(num_rows, &|row, worker| {
            let (logits, task, result) = &mut *lock(&rows[row]);
            *result = Some(task.run(logits, &mut lock(&workspaces[worker])));
        });
        let take = |row: Mutex<(_, _, Option<RowResult>)>| {
            row.into_inner().unwrap_or_else(PoisonError::into_inner).2.expect("every row was run")
        };
        Ok(rows.into_iter().map(take).collect())
    }
}

impl RowTask<'_> {
    /// `logits` may be used up.
    fn run(self, logits: &mut [f32], work: &mut Workspace) -> RowResult {
        match self {
            RowTask::Sample(row) => RowResult::Sampled(sample(logits, row, work)),
            RowTask::Defer if is_finite(logits) => RowResult::Sampled(Sampled::Deferred),
            RowTask::Defer => RowResult::Sampled(Sampled::Failed(Failure::NonFiniteLogits)),
            RowTask::Score { target, top } => RowResult::Scored(score(logits, target, top, work)),
        }
    }
}

/// Never waits: a row and a workspace belong to one thread at a time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
