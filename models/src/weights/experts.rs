//! Experts of a layer that lie together: one tensor for gates and ups, one for downs.
//!
//! ```text
//!                 as published            as newer versions keep it in memory
//! gate_up_proj    [E, H, 2 I]             [E, 2 I, H]              gates before ups
//! down_proj       [E, I, H]               [E, H, I]
//! ```
//! Which of the two it is follows from both shapes together, whatever the sizes.

use super::host::HostWeights;
use kernels::{DType, HostTensor, WeightRows};
use std::ops::Range;
use std::sync::Arc;

/// A matrix `[n, k]` within a tensor of floats.
pub struct Slice<'a> {
    tensor: Arc<HostWeights<'a>>,
    shape: [usize; 2],
    /// The number of its first value, and how far the next row is from a row, the next column from a column.
    start: usize,
    steps: [usize; 2],
}

impl<'a> Slice<'a> {
    /// Of a tensor `[E, k, n]`, whose columns are outputs, every `step`th of these columns of one expert.
    pub(super) fn of_columns(
        tensor: &Arc<HostWeights<'a>>,
        [n, k]: [usize; 2],
        expert: usize,
        columns: Range<usize>,
        step: usize,
    ) -> Self {
        let shape = [columns.len().div_ceil(step), k];
        Self { tensor: Arc::clone(tensor), shape, start: expert * k * n + columns.start, steps: [step, n] }
    }

    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    pub fn read_f32(&self, row: usize, out: &mut [f32]) {
        let ([row_step, step], view) = (self.steps, self.tensor.view());
        let first = self.start + row * row_step;
        if step == 1 {
            let size = view.dtype.size();
            let data = &view.data[first * size..(first + out.len()) * size];
            let row = HostTensor { shape: &[1, out.len()], data, ..view };
            return WeightRows::read_f32(&row, 0, out);
        }
        // Rows that are packed after each other lie beside each other here, so that what one fetches is there for the next.
        let bytes = |column: usize| &view.data[(first + column * step) * view.dtype.size()..];
        let halves = |column: usize| *bytes(column).first_chunk::<2>().expect("within the tensor");
        let columns = out.iter_mut().enumerate();
        match view.dtype {
            DType::F32 => columns.for_each(|(column, value)| {
                let bytes = bytes(column).first_chunk::<4>().expect("within the tensor");
                *value = f32::from_le_bytes(*bytes);
            }),
            DType::BF16 => columns
                .for_each(|(column, value)| *value = half::bf16::from_le_bytes(halves(column)).to_f32()),
            DType::F16 => {
                columns.for_each(|(column, value)| *value = half::f16::from_le_bytes(halves(column)).to_f32())
            }
            other => unreachable!("weights are floats, not {other:?}"),
        }
    }
}

/// How experts lie in their two tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Together {
    is_plain: bool,
    experts: usize,
    /// Width inside an expert, and outside.
    inner: usize,
    hidden: usize,
}

/// A matrix of an expert.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum ExpertPart {
    Gate,
    Up,
    Down,
}

impl Together {
    /// Of tensors of these shapes; `None`: of other sizes.
    pub fn of([gate_up, down]: [&[usize]; 2], [experts, inner, hidden]: [usize; 3]) -> Option<Self> {
        let layouts = [true, false].map(|is_plain| Self { is_plain, experts, inner, hidden });
        layouts.into_iter().find(|layout| layout.shapes() == [gate_up, down])
    }

    /// As published models have them.
    pub fn published([experts, inner, hidden]: [usize; 3]) -> Self {
        Self { is_plain: false, experts, inner, hidden }
    }

    /// Of both tensors.
    pub fn shapes(&self) -> [[usize; 3]; 2] {
        let Self { is_plain, experts, inner, hidden } = *self;
        match is_plain {
            true => [[experts, 2 * inner, hidden], [experts, hidden, inner]],
            false => [[experts, hidden, 2 * inner], [experts, inner, hidden]],
        }
    }

    /// Of the tensor that has it.
    pub fn slice<'a>(&self, tensor: &Arc<HostWeights<'a>>, expert: usize, part: ExpertPart) -> Slice<'a> {
        let (inner, hidden) = (self.inner, self.hidden);
        // Its first row and number of rows, of so many of the expert, and columns.
        let [first, n, rows, k] = match part {
            ExpertPart::Gate => [0, inner, 2 * inner, hidden],
            ExpertPart::Up => [inner, inner, 2 * inner, hidden],
            ExpertPart::Down => [0, hidden, hidden, inner],
        };
        let steps = if self.is_plain { [k, 1] } else { [1, rows] };
        let start = expert * rows * k + first * steps[0];
        Slice { tensor: Arc::clone(tensor), shape: [n, k], start, steps }
    }
}

/// The names of both tensors.
pub(super) fn together(module: &str) -> [String; 2] {
    ["gate_up_proj", "down_proj"].map(|part| format!("{module}.{part}"))
}
