//! linear:       out[t, n] = act(Σ_k x[t, k] · w[n, k] + bias[n])
//! heads_linear: out[t, h, n] = Σ_k x[t, h, k] · w[h, n, k]
//! x [T, K] or heads that make up K, f32, rounded as `Device::activation_type` says · w of any `WeightType`, packed · bias [N] f32 · out f32
//! sums in f32, in the order of k: one term after the other, or what one instruction sums (two of bf16), or group after group
//! 2·T·N·K FLOP; moves size·N·K bytes of weights

use crate::cpu::gemm::{self, Gemm, Input};
use crate::cpu::shared::SharedMut;
use crate::cuda::linear::{self as cuda_linear, PackedHeads, Strides};
use crate::cuda::tokens::taken_by;
use crate::operands::linear::Activation;
use crate::tensor::as_heads;
use crate::{DType, Device, Matrix, MatrixBatch, Tensor, WeightType};
use std::ops::Range;

pub fn linear(x: &Tensor, w: &Matrix, bias: Option<&Tensor>, act: Activation, out: &mut Tensor) {
    check(x, w, bias, out);
    match &out.device().clone() {
        Device::Cpu(cpu) => gemm::run(cpu, &cpu_job(x, w, bias, act, out)),
        Device::Cuda(cuda) => cuda_linear::run(cuda, &cuda_job(x, w, bias, act, &*out)),
    }
}

/// Writes `out`.
pub(super) fn cpu_job<'a>(
    x: &'a Tensor,
    w: &'a Matrix,
    bias: Option<&'a Tensor>,
    act: Activation,
    out: &mut Tensor,
) -> Gemm<'a> {
    let (k, n) = (w.k(), w.n());
    Gemm {
        x: Input::Floats { x: x.as_f32().into(), row: k, member: 0 },
        rows: x.len() / k,
        weights: w.as_batch(),
        bias: bias.map(Tensor::as_f32),
        act,
        out: SharedMut::new(out.as_f32_mut()),
        out_stride: n,
        out_member: 0,
    }
}

/// One of two layers that read the same x.
#[derive(Debug)]
pub struct LinearPart<'a> {
    pub weight: &'a Matrix,
    pub bias: Option<&'a Tensor>,
    /// `[T, N]`
    pub out: &'a mut Tensor,
}

/// Two layers without an activation: the bits of `linear` for each. On a GPU few tokens take one launch for both, and on a processor x
/// is rounded once where both have the same type.
pub fn linear_pair(x: &Tensor, parts: [LinearPart; 2]) {
    let [first, second] = parts;
    assert_eq!(first.weight.k(), second.weight.k(), "linear_pair: widths of x");
    match x.device() {
        Device::Cpu(cpu) => {
            let share = first.weight.stored_as() == second.weight.stored_as();
            let jobs = [first, second].map(|LinearPart { weight, bias, out }| {
                check(x, weight, bias, out);
                cpu_job(x, weight, bias, Activation::None, out)
            });
            if share {
                gemm::run_together(cpu, &jobs);
            } else {
                jobs.iter().for_each(|job| gemm::run(cpu, job));
            }
        }
        Device::Cuda(cuda) => {
            let jobs = [first, second].map(|LinearPart { weight, bias, out }| {
                check(x, weight, bias, out);
                cuda_job(x, weight, bias, Activation::None, out)
            });
            cuda_linear::run_pair(cuda, jobs.each_ref());
        }
    }
}

/// The number of tokens.
pub(super) fn check(x: &Tensor, w: &Matrix, bias: Option<&Tensor>, out: &Tensor) -> usize {
    let (k, n) = (w.k(), w.n());
    let t = x.len() / k;
    assert_eq!(x.len(), t * k, "linear: x {:?} for K = {k}", x.shape());
    assert_eq!(out.len(), t * n, "linear: out {:?} for {t} rows of N = {n}", out.shape());
    if let Some(bias) = bias {
        assert_eq!(bias.shape(), [n], "linear: bias");
    }
    t
}

/// Writes `out` when it is launched.
pub(super) fn cuda_job<'a>(
    x: &Tensor,
    w: &'a Matrix,
    bias: Option<&'a Tensor>,
    act: Activation,
    out: &Tensor,
) -> cuda_linear::Job<'a> {
    let (k, n) = (w.k(), w.n());
    cuda_linear::Job {
        x: x.device_slice(0),
        packed: None,
        packed_out: None,
        heads_out: None,
        weights: w.as_batch(),
        bias,
        act,
        adds: false,
        out: out.device_slice(0),
        rows: x.len() / k,
        strides: Strides { x: k, out: n, x_head: 0, out_head: 0 },
    }
}

/// Dimensions `offset .. offset + len` of every head of some rows of `[T, H, D]`.
#[derive(Clone, Debug)]
pub struct HeadSlice<'a> {
    pub tensor: &'a Tensor,
    pub rows: Range<usize>,
    pub offset: usize,
    pub len: usize,
}

/// As `HeadSlice`, to write to.
#[derive(Debug)]
pub struct HeadSliceMut<'a> {
    pub tensor: &'a mut Tensor,
    pub rows: Range<usize>,
    pub offset: usize,
    pub len: usize,
}

impl<'a> From<&'a Tensor> for HeadSlice<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        let [t, _, len] = as_heads(tensor);
        Self { tensor, rows: 0..t, offset: 0, len }
    }
}

impl<'a> From<&'a mut Tensor> for HeadSliceMut<'a> {
    fn from(tensor: &'a mut Tensor) -> Self {
        let [t, _, len] = as_heads(tensor);
        Self { tensor, rows: 0..t, offset: 0, len }
    }
}

pub fn heads_linear<'a>(x: impl Into<HeadSlice<'a>>, w: &MatrixBatch, out: impl Into<HeadSliceMut<'a>>) {
    run_heads(x.into(), w, out.into(), None);
}

/// What heads of these weights can be left rounded to on a GPU, where a linear layer takes it so.
pub fn heads_pack_as(w: &MatrixBatch) -> Option<DType> {
    let is_on_gpu = matches!(w.device(), Device::Cuda(_));
    (is_on_gpu && w.stored_as() != WeightType::F32).then(|| taken_by(w.stored_as()))
}

/// `packed`: where rows of `out` go on a GPU in the type of [`heads_pack_as`], and whether `out` gets them as well.
pub(super) fn run_heads(x: HeadSlice, w: &MatrixBatch, out: HeadSliceMut, packed: Option<(&Tensor, bool)>) {
    let ([x_rows, h, x_len], [out_rows, out_h, out_len]) = (as_heads(x.tensor), as_heads(out.tensor));
    let t = x.rows.len();
    assert!(x.rows.end <= x_rows && out.rows.end <= out_rows, "heads_linear: rows");
    assert_eq!((t, h), (out.rows.len(), out_h), "heads_linear: tokens and heads");
    assert_eq!(h, w.count(), "heads_linear: heads of the weights");
    assert_eq!(x.len, w.k(), "heads_linear: width of x");
    assert_eq!(out.len, w.n(), "heads_linear: width of out");
    assert!(x.offset + x.len <= x_len, "heads_linear: slice of x");
    assert!(out.offset + out.len <= out_len, "heads_linear: slice of out");
    if t == 0 {
        return;
    }
    let x_start = x.rows.start * h * x_len + x.offset;
    let out_start = out.rows.start * h * out_len + out.offset;
    match &out.tensor.device().clone() {
        Device::Cpu(cpu) => {
            let job = Gemm {
                x: Input::Floats { x: x.tensor.as_f32()[x_start..].into(), row: h * x_len, member: x_len },
                rows: t,
                weights: w,
                bias: None,
                act: Activation::None,
                out: SharedMut::new(&mut out.tensor.as_f32_mut()[out_start..]),
                out_stride: h * out_len,
                out_member: out_len,
            };
            gemm::run(cpu, &job);
        }
        Device::Cuda(cuda) => {
            let job = cuda_linear::Job {
                x: x.tensor.device_slice(x_start),
                packed: None,
                packed_out: None,
                heads_out: packed.map(|(room, floats)| PackedHeads {
                    room,
                    first: out.rows.start,
                    width: h * out_len,
                    floats,
                }),
                weights: w,
                bias: None,
                act: Activation::None,
                adds: false,
                out: out.tensor.device_slice(out_start),
                rows: t,
                strides: Strides { x: h * x_len, out: h * out_len, x_head: x_len, out_head: out_len },
            };
            cuda_linear::run(cuda, &job);
        }
    }
}
