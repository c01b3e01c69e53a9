//! Which rows of a step go through the output head, what is wanted of each, and how the results find back to their items. Rows of
//! prompts and rows that sample take the same way, some at a time: the head's memory does not grow with a prompt.

use crate::sampler::{RowResult, RowTask};
use kernels::{Error, Tensor};
use scheduler::{
    Batch, BatchItem, PromptLogprob, PromptResult, PromptTask, PromptWork, RowSum, Sample, Sampled,
    StepOutput,
};

/// In the order of the items; of one item the rows of its prompt before those that sample.
#[derive(Default)]
pub struct HeadRows<'a> {
    /// Rows of `scratch.normed`.
    pub rows: Vec<u32>,
    pub tasks: Vec<RowTask<'a>>,
}

impl<'a> HeadRows<'a> {
    /// `first_rows`: where each item's rows begin.
    pub fn of(batch: &'a Batch, first_rows: &[u32]) -> Self {
        let mut head = Self::default();
        for (item, &first) in batch.items.iter().zip(first_rows) {
            if let Some(PromptWork { rows, task: PromptTask::Logprobs { targets, top } }) = &item.prompt {
                head.rows.extend(rows.clone().map(|row| first + row as u32));
                head.tasks.extend(targets.iter().map(|&target| RowTask::Score { target, top: *top }));
            }
            if let Some(sample) = &item.sample {
                let end = first + item.tokens.len() as u32;
                head.rows.extend(end - sample.num_rows() as u32..end);
                head.tasks.extend(sample.rows().map(RowTask::Sample));
            }
        }
        assert_eq!(head.rows.len(), head.tasks.len(), "a target for each row of a prompt");
        head
    }

    /// Leaves out what the step does not wait for: one flag for each row that samples.
    pub fn defer(&mut self, deferred: &[bool]) {
        let sampling = self.tasks.iter_mut().filter(|task| matches!(task, RowTask::Sample(_)));
        for (task, _) in sampling.zip(deferred).filter(|(_, deferred)| **deferred) {
            *task = RowTask::Defer;
        }
    }
}

/// Gives the head's results, and the states that are pooled, to the items.
pub fn output(
    batch: &Batch,
    first_rows: &[u32],
    results: Vec<RowResult>,
    states: &Tensor,
) -> Result<StepOutput, Error> {
    let mut results = results.into_iter();
    let mut output = StepOutput::default();
    let mut copy = Vec::new();
    for (item, &first) in batch.items.iter().zip(first_rows) {
        if let Some(work) = &item.prompt {
            output.prompts.push(match &work.task {
                PromptTask::Logprobs { targets, .. } => scores(results.by_ref().take(targets.len())),
                PromptTask::Sum(sum) => {
                    let rows = first as usize + work.rows.start..first as usize + work.rows.end;
                    add_rows(sum, states.rows_on_host(rows, &mut copy)?, states.row_len())
                }
            });
        }
        let num_rows = item.sample.as_ref().map_or(0, Sample::num_rows);
        output.sampled.extend((0..num_rows).map(|_| sampled(item, results.next())));
    }
    assert!(results.next().is_none(), "a result for each row");
    Ok(output)
}

/// All of them, or the first failure.
fn scores(results: impl Iterator<Item = RowResult>) -> PromptResult {
    let score = |result| match result {
        RowResult::Scored(score) => score,
        RowResult::Sampled(_) => unreachable!("a prompt's row is not sampled"),
    };
    match results.map(score).collect::<Result<Vec<PromptLogprob>, _>>() {
        Ok(logprobs) => PromptResult::Logprobs(logprobs),
        Err(failure) => PromptResult::Failed(failure),
    }
}

fn sampled(item: &BatchItem, result: Option<RowResult>) -> Sampled {
    match result {
        Some(RowResult::Sampled(sampled)) => sampled,
        _ => unreachable!("{:?} has a row that samples", item.id),
    }
}

/// Adds rows of `width` values to a sum, from the first to the last, in f64: the order is that of the tokens, however they came.
fn add_rows(sum: &RowSum, rows: &[f32], width: usize) -> PromptResult {
    let mut sum = sum.0.clone();
    sum.resize(width, 0.0);
    for row in rows.chunks(width) {
        for (sum, &x) in sum.iter_mut().zip(row) {
            *sum += f64::from(x);
        }
    }
    // What is not finite stays so, whatever is added.
    match sum.iter().all(|x| x.is_finite()) {
        true => PromptResult::Sum(RowSum(sum)),
        false => PromptResult::Failed(scheduler::Failure::NonFiniteLogits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scheduler::Failure;

    fn sum_of(values: &[f32], sum: &[f64]) -> PromptResult {
        add_rows(&RowSum(sum.to_vec()), values, 2)
    }

    #[test]
    fn rows_are_added_to_what_was_there() {
        let values = [1.0, -2.0, 0.5, 4.0];
        assert_eq!(sum_of(&values, &[]), PromptResult::Sum(RowSum(vec![1.5, 2.0])));
        assert_eq!(sum_of(&values, &[10.0, 20.0]), PromptResult::Sum(RowSum(vec![11.5, 22.0])));
        // Exact in f64 where f32 would lose the small one.
        assert_eq!(sum_of(&[1.0, 1.0], &[1e9, 0.0]), PromptResult::Sum(RowSum(vec![1e9 + 1.0, 1.0])));
        for bad in [f32::NAN, f32::INFINITY] {
            let failed = sum_of(&[1.0, bad], &[]);
            assert_eq!(failed, PromptResult::Failed(Failure::NonFiniteLogits));
        }
    }
}
