//! The tokens of linear layers: on a GPU, where they are many, rounded once to what tensor cores take and packed for all layers that read them.
//! No bit of a result depends on it, as each layer would round them alike.
//! x [T, K] f32 · 16 bits on the device, T filled up to a multiple of 128 and K to one of 32 · moves 6·T·K bytes, once

use super::attention::turn_and_attend;
use super::linear::{check, cuda_job};
use super::{
    LinearPart, TurnedHeads, add, add_rms_norm, layer_norm, linear, linear_pair, rms_norm, silu_mul,
};
use crate::cuda::{Cuda, linear as cuda_linear, norm as cuda_norm, tokens as cuda_tokens};
use crate::operands::attention::AttentionScratch;
use crate::operands::linear::Activation;
use crate::operands::tokens::{Made, NormFor, TokenRoom};
use crate::{DType, Device, Matrix, Tensor, WeightType};
use std::sync::Arc;

impl TokenRoom {
    /// For each of these numbers of tokens and their widths.
    pub fn new(device: &Device, sizes: &[[usize; 2]]) -> Self {
        let bytes = Self::bytes(device, sizes) as usize;
        Self { packed: (bytes > 0).then(|| Tensor::zeros(device, DType::U8, &[bytes])), made: None }
    }

    /// What `new` will allocate.
    pub fn bytes(device: &Device, sizes: &[[usize; 2]]) -> u64 {
        match device {
            Device::Cpu(_) => 0,
            Device::Cuda(_) => {
                let many = sizes.iter().filter(|[tokens, _]| *tokens > cuda_linear::FEW);
                many.map(|&sizes| cuda_tokens::packed_bytes(sizes)).max().unwrap_or(0)
            }
        }
    }

    /// x `[T, K]`, for the layers that read it; it stays as it is meanwhile.
    pub fn hold<'a>(&'a mut self, x: &'a Tensor) -> Tokens<'a> {
        self.made = None;
        Tokens { x, room: self, held: None, has_floats: true }
    }

    /// [`rms_norm`] of x `[T, D]`, whose result lies in the room as well where the layers after it take it so: for [`TokenRoom::hold_made`].
    pub fn rms_norm(&mut self, x: &Tensor, norm: NormFor, out: &mut Tensor) {
        self.norm(None, x, norm, out);
    }

    /// [`add_rms_norm`], as [`TokenRoom::rms_norm`].
    pub fn add_rms_norm(&mut self, residual: &mut Tensor, x: &Tensor, norm: NormFor, out: &mut Tensor) {
        self.norm(Some(residual), x, norm, out);
    }

    fn norm(&mut self, residual: Option<&mut Tensor>, x: &Tensor, norm: NormFor, out: &mut Tensor) {
        let NormFor { weight, eps, next } = norm;
        self.made = None;
        if let (Device::Cuda(cuda), Some(packed)) = (&out.device().clone(), self.packs(next, out.rows())) {
            let sizes = [x.rows(), x.row_len()];
            assert_eq!([out.rows(), out.row_len()], sizes, "rms_norm: shape");
            assert_eq!(weight.shape(), [x.row_len()], "rms_norm: weight");
            if let Some(residual) = &residual {
                assert_eq!([residual.rows(), residual.row_len()], sizes, "add_rms_norm: residual");
            }
            cuda_norm::pack_rms_norm(cuda, (residual, x), (weight, eps), out, packed);
            let dtype = packed.0;
            self.was_made(out, Some(dtype));
            return;
        }
        match residual {
            Some(residual) => add_rms_norm(residual, x, weight, eps, out),
            None => rms_norm(x, weight, eps, out),
        }
    }

    /// A norm wrote x, and what it made in this type into the room, if it did.
    pub(super) fn was_made(&mut self, x: &Tensor, dtype: Option<DType>) {
        self.made = dtype.map(|dtype| Made { dtype, of: x.pointer(), rows: x.rows() });
    }

    /// What a norm made of x into the room, where it was the last that this room was used for.
    pub(super) fn made_of(&self, x: &Tensor) -> Option<(DType, &Tensor)> {
        let made = self.made.filter(|made| made.is_of(x))?;
        Some((made.dtype, self.packed.as_ref()?))
    }

    /// As [`TokenRoom::hold`], for what a norm wrote and nobody since. If it was the last that this room was used for, tokens lie rounded in it, and
    /// are not rounded again.
    pub fn hold_made<'a>(&'a mut self, x: &'a Tensor) -> Tokens<'a> {
        let held = self.made.take().filter(|made| made.is_of(x)).map(|made| made.dtype);
        Tokens { x, room: self, held, has_floats: true }
    }

    /// What [`silu_mul`] makes of gate and up `[T, 2 I]`, for a layer of weights `next`: rounded at once where it takes it so, and in `out`
    /// `[T, I]` where not.
    pub fn hold_silu_mul<'a>(
        &'a mut self,
        gate_up: &Tensor,
        out: &'a mut Tensor,
        next: &Matrix,
    ) -> Tokens<'a> {
        assert_eq!((gate_up.rows(), gate_up.row_len()), (out.rows(), 2 * out.row_len()), "silu_mul: sizes");
        match self.packs_for(next, out.rows()) {
            Some((cuda, dtype, room)) => cuda_tokens::pack_silu_mul(&cuda, gate_up, dtype, room),
            None => silu_mul(gate_up, out),
        }
        self.holding(out, next)
    }

    /// What [`layer_norm`] makes of x `[T, D]`, as [`TokenRoom::hold_silu_mul`].
    pub fn hold_layer_norm<'a>(
        &'a mut self,
        x: &Tensor,
        [w, b]: [&Tensor; 2],
        eps: f32,
        out: &'a mut Tensor,
        next: &Matrix,
    ) -> Tokens<'a> {
        assert_eq!(
            (x.shape(), w.shape(), b.shape()),
            (out.shape(), &[x.row_len()][..], w.shape()),
            "layer_norm: shapes"
        );
        match self.packs_for(next, out.rows()) {
            Some((cuda, dtype, room)) => cuda_norm::pack_layer_norm(&cuda, x, [w, b], eps, dtype, room),
            None => layer_norm(x, w, b, eps, out),
        }
        self.holding(out, next)
    }

    /// What [`turned_attention`](super::turned_attention) makes `[T, H, D]`, as [`TokenRoom::hold_silu_mul`].
    pub fn hold_attention<'a>(
        &'a mut self,
        heads: TurnedHeads,
        scratch: &mut AttentionScratch,
        out: &'a mut Tensor,
        next: &Matrix,
    ) -> Tokens<'a> {
        let packed = self.packs_for(next, out.rows()).map(|(_, dtype, room)| (dtype, room));
        match turn_and_attend(heads, scratch, out, packed) {
            true => self.holding(out, next),
            false => self.hold(out),
        }
    }

    /// The device, type and room of tokens that a layer takes packed.
    fn packs_for(&self, next: &Matrix, num_tokens: usize) -> Option<(Arc<Cuda>, DType, &Tensor)> {
        match next.device() {
            Device::Cpu(_) => None,
            Device::Cuda(cuda) => {
                let (dtype, room) = self.packs(next.stored_as(), num_tokens)?;
                Some((cuda.clone(), dtype, room))
            }
        }
    }

    /// The type and room of so many tokens beside weights that are stored so, if a GPU takes them packed.
    pub(super) fn packs(&self, next: WeightType, num_tokens: usize) -> Option<(DType, &Tensor)> {
        let room = self.packed.as_ref()?;
        cuda_linear::takes_packed(num_tokens, next).then(|| (cuda_tokens::taken_by(next), room))
    }

    /// What was made for a layer, in the room or in `out`.
    fn holding<'a>(&'a mut self, out: &'a Tensor, next: &Matrix) -> Tokens<'a> {
        self.made = None;
        let held = self.packs_for(next, out.rows()).map(|(_, dtype, _)| dtype);
        Tokens { x: out, room: self, held, has_floats: held.is_none() }
    }
}

/// Tokens `[T, K]` that one or more linear layers read.
#[derive(Debug)]
pub struct Tokens<'a> {
    x: &'a Tensor,
    room: &'a mut TokenRoom,
    /// What the room has of them.
    held: Option<DType>,
    /// Whether x has them: else they are in the room alone.
    has_floats: bool,
}

impl<'a> Tokens<'a> {
    /// `held`: what lies in the room; `has_floats`: whether x has them.
    pub(super) fn of(x: &'a Tensor, room: &'a mut TokenRoom, held: Option<DType>, has_floats: bool) -> Self {
        Self { x, room, held, has_floats }
    }
}

impl Tokens<'_> {
    /// See [`linear`](super::linear).
    pub fn linear(&mut self, w: &Matrix, bias: Option<&Tensor>, act: Activation, out: &mut Tensor) {
        self.run(w, bias, act, out, None);
    }

    /// For the layer of weights `next` alone, which reads its tokens from `room`, or where it takes no packed ones from `out`.
    pub fn linear_for<'b>(
        &mut self,
        w: &Matrix,
        bias: Option<&Tensor>,
        act: Activation,
        out: &'b mut Tensor,
        (next, room): (&Matrix, &'b mut TokenRoom),
    ) -> Tokens<'b> {
        let [own, taken] = [w, next].map(|w| cuda_tokens::taken_by(w.stored_as()));
        let into = match room.packs_for(next, out.rows()) {
            Some((cuda, _, into))
                if own == taken && cuda_linear::leaves_packed(&cuda, out.rows(), w.stored_as()) =>
            {
                Some(into)
            }
            _ => None,
        };
        let is_packed = into.is_some();
        self.run(w, bias, act, out, into);
        match is_packed {
            true => room.holding(out, next),
            false => room.hold(out),
        }
    }

    /// Adds what a layer makes to `stream` `[T, N]`: the bits of [`linear`](super::linear) into `made`, of the same shape, and
    /// [`add`](super::add). Where the layer adds it itself, `made` stays as it is.
    pub fn add_linear(&mut self, w: &Matrix, bias: Option<&Tensor>, stream: &mut Tensor, made: &mut Tensor) {
        match &stream.device().clone() {
            Device::Cuda(cuda) if self.are_packed(w) => {
                check(self.x, w, bias, stream);
                let job = cuda_job(self.x, w, bias, Activation::None, &*stream);
                let packed = self.pack(cuda, cuda_tokens::taken_by(w.stored_as()));
                cuda_linear::run(cuda, &cuda_linear::Job { packed: Some(packed), adds: true, ..job });
            }
            _ => {
                linear(self.floats(), w, bias, Activation::None, made);
                add(stream, made);
            }
        }
    }

    fn run(
        &mut self,
        w: &Matrix,
        bias: Option<&Tensor>,
        act: Activation,
        out: &mut Tensor,
        packed_out: Option<&Tensor>,
    ) {
        match &out.device().clone() {
            Device::Cuda(cuda) if self.are_packed(w) => {
                check(self.x, w, bias, out);
                let job = cuda_job(self.x, w, bias, act, &*out);
                let packed = self.pack(cuda, cuda_tokens::taken_by(w.stored_as()));
                cuda_linear::run(cuda, &cuda_linear::Job { packed: Some(packed), packed_out, ..job });
            }
            _ => linear(self.floats(), w, bias, act, out),
        }
    }

    /// See [`linear_pair`](super::linear_pair).
    pub fn linear_pair(&mut self, parts: [LinearPart; 2]) {
        match &self.x.device().clone() {
            Device::Cuda(cuda) if parts.iter().any(|part| self.are_packed(part.weight)) => {
                for LinearPart { weight, bias, out } in parts {
                    self.linear(weight, bias, Activation::None, out);
                }
            }
            _ => linear_pair(self.floats(), parts),
        }
    }

    fn floats(&self) -> &Tensor {
        assert!(self.has_floats, "tokens: made for another layer");
        self.x
    }

    /// Whether these weights take packed tokens, as many as there are.
    fn are_packed(&self, w: &Matrix) -> bool {
        cuda_linear::takes_packed(self.x.rows(), w.stored_as())
    }

    /// The room, with all tokens in this type.
    fn pack(&mut self, cuda: &Cuda, dtype: DType) -> &Tensor {
        let room = self.room.packed.as_ref().expect("tokens: room for many");
        if self.held != Some(dtype) {
            cuda_tokens::pack(cuda, self.floats(), dtype, room);
            self.held = Some(dtype);
        }
        room
    }
}
