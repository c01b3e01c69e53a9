//! A convolution in three dimensions whose windows touch, as linear layers. A picture is its own second frame, so that the patch of one goes through
//! the weights of both.

use crate::LoadError;
use crate::config::json::Fields;
use crate::layers::{Loader, Names, WeightSize};
use crate::vision_parts::{CHANNELS, MERGE};
use kernels::ops::{Activation, Tokens};
use kernels::{HostTensor, Matrix, Tensor};

/// Frames of a patch; a picture is its own second frame.
pub(super) const FRAMES: usize = 2;
const NAME: &str = "patch_embed.proj";

#[derive(Debug, Clone, Copy)]
pub(crate) struct PatchShape {
    pub hidden_size: usize,
    pub patch_size: usize,
    pub has_bias: bool,
}

impl PatchShape {
    /// Values of one frame of one patch.
    pub fn values(&self) -> usize {
        CHANNELS * self.patch_size * self.patch_size
    }

    /// That channels, frames and the patches of a token are as many as here.
    pub fn check(fields: &Fields) -> Result<(), LoadError> {
        for (key, expected) in
            [("in_channels", CHANNELS), ("spatial_merge_size", MERGE), ("temporal_patch_size", FRAMES)]
        {
            let found = fields.usize_or(key, expected, 0..=usize::MAX)?;
            if found != expected {
                return Err(fields.fail(key, format!("{found} is not supported, only {expected} is")));
            }
        }
        Ok(())
    }
}

pub(crate) struct PatchEmbed {
    /// Of each frame, `[D, 3pp]`.
    frames: (Matrix, Matrix),
    bias: Option<Tensor>,
}

impl PatchEmbed {
    pub fn load(loader: &Loader, patch: PatchShape) -> Result<Self, LoadError> {
        let (name, dtype) = (loader.name(&format!("{NAME}.weight")), loader.names.storage.float);
        let PatchShape { hidden_size: d, patch_size: p, has_bias } = patch;
        let shape = [d, patch.values()];
        let form = (dtype.into(), shape);
        let frames = loader.checkpoint.kept(loader.device, &name, (form, form), || {
            let weights = loader.checkpoint.take(&name, &[d, CHANNELS, FRAMES, p, p])?;
            let view = weights.view();
            let frame = |frame: usize| {
                let len = p * p * view.dtype.size();
                let planes = view.data.chunks_exact(len).skip(frame).step_by(FRAMES);
                let data: Vec<u8> = planes.flatten().copied().collect();
                let part = HostTensor { dtype: view.dtype, shape: &shape, data: &data };
                Matrix::pack(loader.device, dtype, &[part])
            };
            Ok((frame(0), frame(1)))
        })?;
        let bias = match has_bias {
            true => Some(loader.vector(&format!("{NAME}.bias"), d)?),
            false => None,
        };
        Ok(Self { frames, bias })
    }

    /// A convolution is never quantised.
    pub fn size(names: &Names, patch: PatchShape) -> WeightSize {
        let PatchShape { hidden_size: d, has_bias, .. } = patch;
        let bias = if has_bias { WeightSize::vector(d) } else { WeightSize::default() };
        WeightSize::matrix(names.storage.float.into(), d, patch.values()).times(FRAMES) + bias
    }

    /// `[N, 3pp]` to `out` `[N, D]`; `room` is of the same shape.
    pub fn run(&self, patches: &mut Tokens, out: &mut Tensor, room: &mut Tensor) {
        let (first, second) = &self.frames;
        patches.linear(first, self.bias.as_ref(), Activation::None, out);
        patches.add_linear(second, None, out, room);
    }
}
