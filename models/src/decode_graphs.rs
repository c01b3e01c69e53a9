//! Decode steps as graphs of a GPU: many small launches become one. A graph is of a fixed number of rows; a step with fewer is filled
//! up with rows that write nowhere. A row's bits do not depend on how many there are, so a replay equals the calls that it replaces.

use crate::input::ModelInput;
use kernels::cuda::Cuda;
use kernels::cuda::driver::Graph;
use std::collections::BTreeMap;

pub(crate) struct DecodeGraphs {
    max_rows: usize,
    /// By the number of rows.
    captured: BTreeMap<usize, State>,
    num_replays: u64,
}

#[derive(Clone, Copy)]
enum State {
    /// Run once as it is: a size that comes only once is not worth a graph, and kernels are loaded by now.
    Seen,
    Captured(Graph),
}

impl DecodeGraphs {
    pub fn new(max_rows: usize) -> Self {
        Self { max_rows, captured: BTreeMap::new(), num_replays: 0 }
    }

    /// How many rows a graph for this step has; `None` for a step that is more than the next token of some sequences.
    pub fn rows_for(&self, input: &ModelInput) -> Option<usize> {
        let rows = input.tokens.len();
        let is_decode = rows > 0 && rows == input.context_lens.len() && input.image_rows.is_empty();
        // Passes of the expanded form are launches of their own, as many as a context is long.
        let is_decode = is_decode && !input.expanded.contains(&true);
        // So are those of adapters, as many as there are in the step.
        let is_decode = is_decode && input.adapters.is_empty();
        let size = size_for(rows).min(self.max_rows);
        (is_decode && rows <= size).then_some(size)
    }

    /// Runs a step of so many rows: by itself, captured, or replayed.
    pub fn run(&mut self, cuda: &Cuda, rows: usize, step: &mut dyn FnMut()) {
        let graph = match self.captured.get(&rows) {
            None => {
                self.captured.insert(rows, State::Seen);
                return step();
            }
            Some(State::Captured(graph)) => *graph,
            Some(State::Seen) => match cuda.capture(step) {
                Ok(graph) => {
                    self.captured.insert(rows, State::Captured(graph));
                    graph
                }
                // Kept by the device, and told to whoever reads the step's results.
                Err(error) => return cuda.fail(error),
            },
        };
        self.num_replays += 1;
        cuda.replay(graph);
    }

    pub fn num_replays(&self) -> u64 {
        self.num_replays
    }
}

/// One graph for each of the small sizes, where a row more is felt, and for every few of the large ones.
fn size_for(rows: usize) -> usize {
    let step = match rows {
        0..=8 => 1,
        9..=32 => 4,
        33..=64 => 8,
        65..=128 => 16,
        _ => 32,
    };
    rows.next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_few_and_near() {
        let sizes: std::collections::BTreeSet<usize> = (1..=256).map(size_for).collect();
        assert!(sizes.len() < 30, "{sizes:?}");
        for rows in 1..=256 {
            let size = size_for(rows);
            assert!(size >= rows && size - rows <= rows / 3, "{rows} in {size}");
            assert_eq!(size_for(size), size);
        }
    }

    #[test]
    fn only_decode_steps_have_graphs() {
        let graphs = DecodeGraphs::new(10);
        let decode = |rows: usize| ModelInput {
            tokens: vec![0; rows],
            context_lens: vec![5; rows],
            ..ModelInput::default()
        };
        for (rows, expected) in
            [(0, None), (1, Some(1)), (8, Some(8)), (9, Some(10)), (10, Some(10)), (11, None)]
        {
            assert_eq!(graphs.rows_for(&decode(rows)), expected, "{rows}");
        }
        assert_eq!(graphs.rows_for(&ModelInput { context_lens: vec![5], ..decode(2) }), None);
        assert_eq!(graphs.rows_for(&ModelInput { image_rows: vec![3], ..decode(2) }), None);
        assert_eq!(graphs.rows_for(&ModelInput { expanded: vec![false, true], ..decode(2) }), None);
    }
}
