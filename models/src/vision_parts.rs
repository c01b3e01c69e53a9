//! What vision towers and their projectors are made of: linear layers and layer norms, loaded by name, with the size they take.

use crate::LoadError;
use crate::config::json::Fields;
use crate::layers::{Loader, Names, WeightSize};
use kernels::ops::{self, Activation, AttentionScratch, AttentionSizes, TokenRoom, Tokens, TurnedHeads};
use kernels::{DType, HostTensor, Matrix, Tensor};
use scheduler::ImageInput;

/// Of a picture.
pub(crate) const CHANNELS: usize = 3;
/// One token is made of this many patches in each direction.
pub(crate) const MERGE: usize = 2;

/// What a tower takes on the device: closed formulas, equal to what loading it allocates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VisionSize {
    pub parameters: u64,
    pub weight_bytes: u64,
    pub buffer_bytes: u64,
    /// Tensors and matrices.
    pub tensors: u64,
}

/// Every query of a picture sees keys of that picture: no cache, so no context.
pub(crate) fn attention_sizes(heads: usize, head_dim: usize, max_tokens: usize) -> AttentionSizes {
    let (key_dim, value_dim) = (head_dim, head_dim);
    AttentionSizes { heads, kv_heads: heads, key_dim, value_dim, max_context: 0, max_tokens }
}

/// Row and column of each patch in the order of the tokens that they become: tokens in raster order, and so the patches inside one.
pub(crate) fn places([rows, columns]: [usize; 2]) -> impl Iterator<Item = [usize; 2]> {
    let tokens = (0..rows).step_by(MERGE).flat_map(move |r| (0..columns).step_by(MERGE).map(move |c| (r, c)));
    tokens.flat_map(|(row, column)| {
        (0..MERGE * MERGE).map(move |inside| [row + inside / MERGE, column + inside % MERGE])
    })
}

/// That a picture fits a tower that was made for so many patches of so many values each.
pub(crate) fn check_picture(image: &ImageInput, patch_len: usize, max_patches: usize) {
    let num_patches = image.num_patches();
    assert!(num_patches <= max_patches, "encode: {num_patches} patches, made for {max_patches}");
    assert_eq!(num_patches / (MERGE * MERGE), image.num_tokens, "encode: tokens");
    assert_eq!(image.patches.len(), num_patches * patch_len, "encode: patches");
}

/// Half of the pairs of a head turn with the patch's row, half with its column. `key` is that of the number of heads.
pub(crate) fn check_heads(
    fields: &Fields,
    key: &str,
    hidden_size: usize,
    heads: usize,
) -> Result<(), LoadError> {
    if hidden_size.is_multiple_of(4 * heads) {
        return Ok(());
    }
    let message =
        format!("hidden_size = {hidden_size} is not a multiple of 4 values for each of {heads} heads");
    Err(fields.fail(key, message))
}

/// `name.weight` `[N, K]` and `name.bias` `[N]`.
pub(crate) struct Linear {
    weight: Matrix,
    bias: Tensor,
}

impl Linear {
    pub fn load(loader: &Loader, name: &str, n: usize, k: usize) -> Result<Self, LoadError> {
        let weight = loader.matrix(name, n, k)?;
        Ok(Self { weight, bias: loader.vector(&format!("{name}.bias"), n)? })
    }

    /// A convolution whose windows touch is a linear layer on each window; its weight is `[N, channels, size, size]`.
    pub fn load_convolution(
        loader: &Loader,
        name: &str,
        n: usize,
        [channels, size]: [usize; 2],
    ) -> Result<Self, LoadError> {
        let (tensor, dtype) = (loader.name(&format!("{name}.weight")), loader.names.storage.float);
        let shape = [n, channels * size * size];
        let weight = loader.checkpoint.kept(loader.device, &tensor, (dtype.into(), shape), || {
            let weights = loader.checkpoint.take(&tensor, &[n, channels, size, size])?;
            Ok(Matrix::pack(loader.device, dtype, &[HostTensor { shape: &shape, ..weights.view() }]))
        })?;
        Ok(Self { weight, bias: loader.vector(&format!("{name}.bias"), n)? })
    }

    /// Layers of one input as one, such as gate and up `[2 I, K]`: each part has its weight and its bias.
    pub fn load_stacked(loader: &Loader, parts: &[(&str, usize)], k: usize) -> Result<Self, LoadError> {
        let weight = loader.stacked(parts, k)?;
        let bias = |part: &str| loader.name(&format!("{part}.bias"));
        let form = (DType::F32, vec![parts.iter().map(|(_, n)| n).sum()]);
        let bias = loader.checkpoint.kept(loader.device, &bias(parts[0].0), form, || {
            let mut values = Vec::new();
            for (part, n) in parts {
                values.extend(loader.checkpoint.take(&bias(part), &[*n])?.to_f32());
            }
            Ok(Tensor::from_f32(loader.device, &[values.len()], &values))
        })?;
        Ok(Self { weight, bias })
    }

    pub fn size(names: &Names, name: &str, n: usize, k: usize) -> WeightSize {
        names.linear(name, n, k, true)
    }

    /// A convolution is never quantised.
    pub fn convolution_size(names: &Names, n: usize, k: usize) -> WeightSize {
        WeightSize::matrix(names.storage.float.into(), n, k) + WeightSize::vector(n)
    }

    /// `[T, K]` to `[T, N]`.
    pub fn run(&self, x: &mut Tokens, activation: Activation, out: &mut Tensor) {
        x.linear(&self.weight, Some(&self.bias), activation, out);
    }

    /// The same for the layer `next` alone: its tokens, in `room` or in `out`.
    pub fn run_for<'a>(
        &self,
        x: &mut Tokens,
        activation: Activation,
        out: &'a mut Tensor,
        (next, room): (&Self, &'a mut TokenRoom),
    ) -> Tokens<'a> {
        x.linear_for(&self.weight, Some(&self.bias), activation, out, (&next.weight, room))
    }

    /// Adds it to `stream` `[T, N]`; `made`, of the same shape, may hold anything then.
    pub fn add_to(&self, stream: &mut Tensor, x: &mut Tokens, made: &mut Tensor) {
        x.add_linear(&self.weight, Some(&self.bias), stream, made);
    }

    /// What SwiGLU makes of gate and up `[T, 2 K]`, as tokens of this layer alone: in `room` or in `out` `[T, K]`.
    pub fn hold_silu_mul<'a>(
        &self,
        gate_up: &Tensor,
        out: &'a mut Tensor,
        room: &'a mut TokenRoom,
    ) -> Tokens<'a> {
        room.hold_silu_mul(gate_up, out, &self.weight)
    }

    /// What attention makes, as tokens of this layer alone: in `room` or in `out` `[T, H, D]`.
    pub fn hold_attention<'a>(
        &self,
        heads: TurnedHeads,
        scratch: &mut AttentionScratch,
        out: &'a mut Tensor,
        room: &'a mut TokenRoom,
    ) -> Tokens<'a> {
        room.hold_attention(heads, scratch, out, &self.weight)
    }
}

/// `name.weight` and `name.bias`, both `[D]`.
pub(crate) struct Norm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl Norm {
    pub fn load(loader: &Loader, name: &str, len: usize, eps: f32) -> Result<Self, LoadError> {
        let vector = |what: &str| loader.vector(&format!("{name}.{what}"), len);
        Ok(Self { weight: vector("weight")?, bias: vector("bias")?, eps })
    }

    pub fn size(len: usize) -> WeightSize {
        WeightSize::vector(len).times(2)
    }

    /// `[T, D]` to tokens of the layer `next` alone, in `room` or in `out`.
    pub fn run_for<'a>(
        &self,
        x: &Tensor,
        out: &'a mut Tensor,
        (next, room): (&Linear, &'a mut TokenRoom),
    ) -> Tokens<'a> {
        room.hold_layer_norm(x, [&self.weight, &self.bias], self.eps, out, &next.weight)
    }

    /// `[T, D]` to `[T, D]`.
    pub fn run(&self, x: &Tensor, out: &mut Tensor) {
        ops::layer_norm(x, &self.weight, &self.bias, self.eps, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_follow_one_another() {
        let raster: Vec<usize> = places([4, 6]).map(|[row, column]| row * 6 + column).collect();
        let expected = [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11, 12, 13, 18, 19, 14, 15, 20, 21, 16, 17, 22, 23];
        assert_eq!(raster, expected);
    }
}
