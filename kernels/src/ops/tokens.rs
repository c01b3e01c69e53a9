//! The tokens of linear layers: on a GPU, where they are many, rounded once to what tensor cores take and packed for all layers that read them.
//! No bit of a result depends on it, as each layer would round them alike.
//! x [T, K] f32 · 16 bits on the device, T filled up to a multiple of 128 and K to one of 32 · moves 6·T·K bytes, once

use super::linear::{check, cuda_job};
use super::{Activation, LinearPart, linear, linear_pair};
use crate::cuda::{Cuda, linear as cuda_linear, tokens as cuda_tokens};
use crate::{DType, Device, Matrix, Tensor};

/// Where rounded tokens lie. A processor needs no room: its ops round in their own.
#[derive(Debug)]
pub struct TokenRoom {
    packed: Option<Tensor>,
}

impl TokenRoom {
    /// For each of these numbers of tokens and their widths.
    pub fn new(device: &Device, sizes: &[[usize; 2]]) -> Self {
        let bytes = Self::bytes(device, sizes) as usize;
        Self { packed: (bytes > 0).then(|| Tensor::zeros(device, DType::U8, &[bytes])) }
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
        Tokens { x, room: self, held: None }
    }
}

/// Tokens `[T, K]` that one or more linear layers read.
#[derive(Debug)]
pub struct Tokens<'a> {
    x: &'a Tensor,
    room: &'a mut TokenRoom,
    /// What the room has of x.
    held: Option<DType>,
}

impl Tokens<'_> {
    /// See [`linear`](super::linear).
    pub fn linear(&mut self, w: &Matrix, bias: Option<&Tensor>, act: Activation, out: &mut Tensor) {
        match &out.device().clone() {
            Device::Cuda(cuda) if self.are_packed(w) => {
                check(self.x, w, bias, out);
                let job = cuda_job(self.x, w, bias, act, &*out);
                let packed = self.pack(cuda, w.stored_as().float().unwrap_or(DType::BF16));
                cuda_linear::run(cuda, &cuda_linear::Job { packed: Some(packed), ..job });
            }
            _ => linear(self.x, w, bias, act, out),
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
            _ => linear_pair(self.x, parts),
        }
    }

    /// Whether these weights take packed tokens, as many as there are.
    fn are_packed(&self, w: &Matrix) -> bool {
        cuda_linear::takes_packed(self.x.rows(), w.stored_as())
    }

    /// The room, with all tokens in this type.
    fn pack(&mut self, cuda: &Cuda, dtype: DType) -> &Tensor {
        let room = self.room.packed.as_ref().expect("tokens: room for many");
        if self.held != Some(dtype) {
            cuda_tokens::pack(cuda, self.x, dtype, room);
            self.held = Some(dtype);
        }
        room
    }
}
