//! The weights of a layer's experts.

use crate::matrix::MatrixBatch;
use crate::panel::PANEL;
use crate::quantize::GroupedRow;
use crate::source::{MemberRows, WeightRows};
use crate::{DType, Device, HostTensor, Packed, SharedBytes, Tensor, WeightType};
use std::ops::Range;

/// `E` experts with SwiGLU: gate and up `[I, H]`, down `[H, I]`.
#[derive(Debug)]
pub struct Experts {
    /// Panels of gate and up take turns: `[E][I / 32][gate, up]`, as one batch of `[2 I', H]`, I' being whole panels.
    pub(crate) gate_up: MatrixBatch,
    pub(crate) down: MatrixBatch,
    inner: usize,
    /// `None`: silu(gate) · up, and no biases.
    pub(crate) glu: Option<BiasedGlu>,
}

/// Biases of experts, and what is between their products: with g = min(gate + bias, limit) and u = up + bias within ±limit, it is
/// (u + 1) · g · sigmoid(alpha · g), as gpt-oss has it.
#[derive(Debug)]
pub struct BiasedGlu {
    pub(crate) alpha: f32,
    pub(crate) limit: f32,
    /// `[E, 2 I']` f32, in the turns of `Experts::gate_up`.
    pub(crate) gate_up_bias: Tensor,
    /// `[E, H]` f32
    pub(crate) down_bias: Tensor,
}

impl BiasedGlu {
    /// Biases of gate and up `[E, 2 I']` as [`BiasedGlu::in_turns`] puts them, of down `[E, H]`.
    pub fn new([alpha, limit]: [f32; 2], [gate_up_bias, down_bias]: [Tensor; 2]) -> Self {
        Self { alpha, limit, gate_up_bias, down_bias }
    }

    /// 2 I'
    pub fn width(inner: usize) -> usize {
        gate_up_rows(inner)
    }

    /// Biases `[E, I]` of gate and of up, as they are added: 32 of gate and the same 32 of up take turns, zeros fill up.
    pub fn in_turns([experts, inner]: [usize; 2], [gate, up]: [&[f32]; 2]) -> Vec<f32> {
        assert_eq!([gate.len(), up.len()], [experts * inner; 2], "biases of gate and up");
        let width = gate_up_rows(inner);
        let mut all = vec![0.0; experts * width];
        for (expert, turns) in all.chunks_exact_mut(width).enumerate() {
            for (side, bias) in [gate, up].into_iter().enumerate() {
                for (i, &value) in bias[expert * inner..(expert + 1) * inner].iter().enumerate() {
                    turns[i / PANEL * 2 * PANEL + side * PANEL + i % PANEL] = value;
                }
            }
        }
        all
    }

    /// Of both biases of experts `[E, H, I]`.
    pub fn bytes([experts, hidden, inner]: [usize; 3]) -> u64 {
        [gate_up_rows(inner), hidden].map(|n| Tensor::bytes_of(DType::F32, &[experts, n])).iter().sum()
    }
}

#[derive(Clone, Copy, Debug)]
pub struct ExpertSource<'a> {
    pub gate: HostTensor<'a>,
    pub up: HostTensor<'a>,
    pub down: HostTensor<'a>,
}

impl Experts {
    pub fn pack(device: &Device, stored_as: impl Into<WeightType>, experts: &[ExpertSource]) -> Self {
        let rows: Vec<[HostTensor; 3]> = experts.iter().map(|e| [e.gate, e.up, e.down]).collect();
        Self::pack_rows(device, stored_as, &rows)
    }

    /// Gate, up and down of each expert.
    pub fn pack_rows<R: WeightRows>(
        device: &Device,
        stored_as: impl Into<WeightType>,
        experts: &[[R; 3]],
    ) -> Self {
        let stored_as = stored_as.into();
        let [inner, hidden] = experts.first().expect("there are experts")[0].shape();
        for [gate, up, down] in experts {
            for (part, shape) in [(gate, [inner, hidden]), (up, [inner, hidden]), (down, [hidden, inner])] {
                assert_eq!(part.shape(), shape, "experts have one shape");
            }
        }
        let down: Vec<&R> = experts.iter().map(|[_, _, down]| down).collect();
        let mut gate_up =
            MatrixBatch::unwritten(device, stored_as, [experts.len(), gate_up_rows(inner), hidden]);
        gate_up.fill(&GateUp { experts, inner });
        Self { gate_up, down: MatrixBatch::pack(device, stored_as, &down), inner, glu: None }
    }

    pub fn random(
        device: &Device,
        stored_as: impl Into<WeightType>,
        [experts, hidden, inner]: [usize; 3],
        std: f32,
        seed: u64,
    ) -> Self {
        let stored_as = stored_as.into();
        let gate_up = [experts, gate_up_rows(inner), hidden];
        Self {
            gate_up: MatrixBatch::random(device, stored_as, gate_up, std, seed),
            down: MatrixBatch::random(device, stored_as, [experts, hidden, inner], std, seed ^ 0x5bd1_e995),
            inner,
            glu: None,
        }
    }

    /// With biases and another function between the products.
    pub fn with_glu(self, glu: BiasedGlu) -> Self {
        let width = gate_up_rows(self.inner);
        assert_eq!(glu.gate_up_bias.shape(), [self.len(), width], "biases of gate and up");
        assert_eq!(glu.down_bias.shape(), [self.len(), self.hidden()], "biases of down");
        Self { glu: Some(glu), ..self }
    }

    pub fn packed_bytes(stored_as: impl Into<WeightType>, [experts, hidden, inner]: [usize; 3]) -> u64 {
        let stored_as = stored_as.into();
        MatrixBatch::packed_bytes(stored_as, [experts, gate_up_rows(inner), hidden])
            + MatrixBatch::packed_bytes(stored_as, [experts, hidden, inner])
    }

    pub fn len(&self) -> usize {
        self.down.count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn hidden(&self) -> usize {
        self.down.n()
    }

    pub fn inner(&self) -> usize {
        self.inner
    }

    pub fn stored_as(&self) -> WeightType {
        self.down.stored_as()
    }

    /// As [`MatrixBatch::dtype`].
    pub fn dtype(&self) -> DType {
        self.down.dtype()
    }

    /// Gate and up as one batch `[E, 2 I', H]`, I' being I filled up to whole groups of 32: 32 rows of gate and the same 32 of up take turns.
    pub fn gate_up(&self) -> &MatrixBatch {
        &self.gate_up
    }

    /// `[E, H, I]`
    pub fn down(&self) -> &MatrixBatch {
        &self.down
    }

    pub fn device(&self) -> &Device {
        self.down.device()
    }

    pub fn bytes(&self) -> u64 {
        self.gate_up.bytes() + self.down.bytes()
    }
}

impl Packed for Experts {
    /// What they are stored as, and `[E, H, I]`.
    type Form = (WeightType, [usize; 3]);

    fn part_bytes(form: &Self::Form) -> Vec<u64> {
        batches(form).iter().flat_map(MatrixBatch::part_bytes).collect()
    }

    fn from_parts(device: &Device, form: &Self::Form, parts: Vec<SharedBytes>) -> Self {
        let [gate_up, down] = parts.try_into().unwrap_or_else(|_| panic!("experts have two parts"));
        let forms = batches(form);
        let [gate_up, down] =
            [(0, gate_up), (1, down)].map(|(i, part)| MatrixBatch::from_parts(device, &forms[i], vec![part]));
        Self { gate_up, down, inner: form.1[2], glu: None }
    }

    fn is(&self, form: &Self::Form) -> bool {
        let [gate_up, down] = batches(form);
        self.gate_up.is(&gate_up) && self.down.is(&down) && self.inner == form.1[2]
    }

    fn share(&mut self) -> Vec<SharedBytes> {
        [&mut self.gate_up, &mut self.down].into_iter().flat_map(MatrixBatch::share).collect()
    }
}

/// Gate and up, and down.
fn batches(
    &(stored_as, [experts, hidden, inner]): &(WeightType, [usize; 3]),
) -> [(WeightType, [usize; 3]); 2] {
    [(stored_as, [experts, gate_up_rows(inner), hidden]), (stored_as, [experts, hidden, inner])]
}

fn gate_up_rows(inner: usize) -> usize {
    2 * inner.next_multiple_of(PANEL)
}

/// Panels of gate and up that take turns.
struct GateUp<'a, R> {
    experts: &'a [[R; 3]],
    inner: usize,
}

impl<R: WeightRows> GateUp<'_, R> {
    /// The source of a row and its place in it; `None` where a panel is filled up.
    fn part(&self, expert: usize, row: usize) -> Option<(&R, usize)> {
        let (is_up, row) = (row / PANEL % 2, row / (2 * PANEL) * PANEL + row % PANEL);
        (row < self.inner).then_some((&self.experts[expert][is_up], row))
    }
}

impl<R: WeightRows> MemberRows for GateUp<'_, R> {
    fn read_f32(&self, expert: usize, row: usize, out: &mut [f32]) {
        match self.part(expert, row) {
            Some((part, row)) => part.read_f32(row, out),
            None => out.fill(0.0),
        }
    }

    fn read_groups(&self, expert: usize, row: usize, stored_as: WeightType, out: &mut GroupedRow) -> bool {
        self.part(expert, row).is_some_and(|(part, row)| part.read_groups(row, stored_as, out))
    }

    fn done(&self, expert: usize, rows: Range<usize>) {
        if let Some((part, first)) = self.part(expert, rows.start) {
            part.done(first..self.inner.min(first + rows.len()));
        }
    }
}
