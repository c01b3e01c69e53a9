//! Operands of a layer of experts.

use super::tokens::{NormFor, TokenRoom};
use crate::cpu::rounded::Rounding;
use crate::{DType, Device, Matrix, Tensor};

/// Buffers of one `moe` call, for the largest step. Pairs (token, choice) are sorted by expert; a pair has one row in each.
#[derive(Debug)]
pub struct MoeScratch {
    /// `[T·k, H]`, or as long as rounded rows are: the input of each pair, later its output.
    pub(crate) rows: Tensor,
    /// `[T·k, I]`, or as long as rounded rows are: silu(gate) * up.
    pub(crate) inner: Tensor,
    /// `[T·k]`: where the sorted row of each pair is.
    pub(crate) places: Tensor,
    /// `[2 E + 1]`: where the rows of each expert begin; on the CPU then the experts that have rows.
    pub(crate) starts: Tensor,
    pub(crate) max_tokens: usize,
    pub(crate) sizes: [usize; 3],
    pub(crate) top_k: usize,
}

impl MoeScratch {
    /// For up to `max_tokens` tokens, each with up to `top_k` of E experts `[E, H, I]`.
    pub fn new(device: &Device, max_tokens: usize, sizes: [usize; 3], top_k: usize) -> Self {
        let [rows, inner, places, starts] = shapes(max_tokens, sizes, top_k);
        Self {
            rows: Tensor::zeros(device, DType::F32, &rows),
            inner: Tensor::zeros(device, DType::F32, &inner),
            places: Tensor::zeros(device, DType::I32, &places),
            starts: Tensor::zeros(device, DType::I32, &starts),
            max_tokens,
            sizes,
            top_k,
        }
    }

    /// What `new` will allocate.
    pub fn bytes(max_tokens: usize, sizes: [usize; 3], top_k: usize) -> u64 {
        // All four are of types of four bytes.
        shapes(max_tokens, sizes, top_k).iter().map(|shape| Tensor::bytes_of(DType::F32, shape)).sum()
    }
}

fn shapes(max_tokens: usize, [experts, hidden, inner]: [usize; 3], top_k: usize) -> [[usize; 2]; 4] {
    let pairs = max_tokens * top_k;
    let width = |k: usize| k.max(Rounding::most_words(k));
    [[pairs, width(hidden)], [pairs, width(inner)], [pairs, 1], [2 * experts + 1, 1]]
}

/// The expert that every token takes, in one matrix for gate and up `[2 I, H]` and one for down `[H, I]`, and its buffers.
#[derive(Debug)]
pub struct SharedExpert<'a> {
    pub gate_up: &'a Matrix,
    pub down: &'a Matrix,
    /// `[T]` f32: what it makes of a token is multiplied with the sigmoid of this. None: it is added as it is.
    pub gate: Option<&'a Tensor>,
    /// `[T, 2 I]`
    pub both: &'a mut Tensor,
    /// `[T, I]`
    pub inner: &'a mut Tensor,
    /// `[T, H]`
    pub out: &'a mut Tensor,
}

/// What a layer of experts goes on to: its result is added to the stream, and the norm of that takes the place of x.
#[derive(Debug)]
pub struct AddNorm<'a> {
    /// `[T, H]`
    pub residual: &'a mut Tensor,
    pub norm: NormFor<'a>,
    /// Where a norm may have left x, and this one leaves what it makes: see [`TokenRoom::hold_made`]. For T tokens of the widest layer, the expert's
    /// that every token takes among them.
    pub tokens: &'a mut TokenRoom,
}
