//! The network that turns a picture into entries of a codebook: the encoder of a VQGAN, on the processor whatever device the decoder runs on.
//!
//! ```text
//! [512, 512, 3] ─conv─▶ each resolution: residual blocks ─conv, every second pixel─▶ … ─▶ block, attention, block
//!               ─norm, swish, conv─▶ [32, 32, 256] ─conv 1×1─▶ nearest entry of the codebook: 1,024 numbers, row by row
//! residual block: x + conv(swish(norm(conv(swish(norm(x))))))          a 1×1 convolution on x where channels change
//! ```
//! Weights are kept in f32, and so are all products: a rounding could make another entry the nearest.

use super::config::{CHANNELS, VqConfig};
use super::conv::{After, Convolution, GroupNorm, Picture, Strip, StripSize, Window, matrix};
use crate::LoadError;
use crate::weights::Checkpoint;
use kernels::ops::{self, AttentionScratch, AttentionSizes};
use kernels::{DType, Device, Matrix, Tensor};
use std::mem::swap;

/// Before every name of a tensor.
pub(crate) const PREFIX: &str = "model.vqmodel.";

/// Whether a tensor that nothing takes may be there all the same: of the way back, from tokens to a picture, which this crate does not go; or all
/// of the network, where pictures are not read.
pub(crate) fn may_ignore(name: &str, reads_pictures: bool) -> bool {
    let rest = name.strip_prefix(PREFIX);
    rest.is_some_and(|rest| {
        !reads_pictures || rest.starts_with("post_quant_conv.") || rest.starts_with("decoder.")
    })
}

/// The network with its buffers.
pub struct Encoder {
    device: Device,
    config: VqConfig,
    conv_in: Convolution,
    levels: Vec<Level>,
    middle: Middle,
    norm_out: GroupNorm,
    conv_out: Convolution,
    quant_conv: Convolution,
    /// `[entries, embed_dim]`, and the sum of squares of each entry.
    codebook: Matrix,
    squares: Vec<f32>,
    room: Room,
}

struct Level {
    blocks: Vec<Block>,
    /// To the next resolution; the last has none.
    down: Option<Convolution>,
}

struct Middle {
    block_1: Block,
    attention: Attention,
    block_2: Block,
}

/// What layers write to.
struct Room {
    strip: Strip,
    /// The stream, and two more of its size.
    x: Picture,
    a: Picture,
    b: Picture,
    /// Of the pixels in the middle.
    qkv: Tensor,
    attended: Tensor,
    attention: AttentionScratch,
}

/// A layer as far as sizes are concerned.
struct Shape {
    channels: [usize; 2],
    window: Window,
    /// Of its output.
    side: usize,
}

impl VqConfig {
    /// Every convolution of the network, in order.
    fn convolutions(&self) -> Vec<Shape> {
        let mut shapes = Vec::new();
        let mut side = self.resolution;
        let mut add = |channels, window, side| shapes.push(Shape { channels, window, side });
        add([CHANNELS, self.base_channels], Window::Around, side);
        let mut from = self.base_channels;
        for (level, &to) in self.channels.iter().enumerate() {
            for _ in 0..self.num_res_blocks {
                add([from, to], Window::Around, side);
                add([to, to], Window::Around, side);
                if from != to {
                    add([from, to], Window::Pixel, side);
                }
                from = to;
            }
            if level + 1 < self.channels.len() {
                side /= 2;
                add([to, to], Window::EachSecond, side);
            }
        }
        let middle = self.middle();
        (0..4).for_each(|_| add([middle, middle], Window::Around, side));
        // Queries, keys, values, and what comes out of attention.
        (0..4).for_each(|_| add([middle, middle], Window::Pixel, side));
        add([middle, self.latent_channels], Window::Around, side);
        add([self.latent_channels, self.embed_dim], Window::Pixel, side);
        shapes
    }

    /// Channels of every group norm.
    fn norms(&self) -> Vec<usize> {
        let mut norms = Vec::new();
        let mut from = self.base_channels;
        for &to in &self.channels {
            for _ in 0..self.num_res_blocks {
                norms.extend([from, to]);
                from = to;
            }
        }
        norms.extend([self.middle(); 6]);
        norms
    }

    fn strip(&self) -> StripSize {
        let of = |size: StripSize, shape: &Shape| {
            let [channels, outputs] = shape.channels;
            let k = channels * shape.window.side().pow(2);
            size.with([k, outputs], [shape.side, shape.side * shape.side])
        };
        let size = self.convolutions().iter().fold(StripSize::default(), of);
        size.with([self.embed_dim, self.num_embeddings], [self.side(), self.num_tokens()])
    }

    /// Values of the largest stream.
    fn stream(&self) -> usize {
        let levels = self.channels.iter().enumerate();
        let wide = levels.map(|(level, &channels)| (self.resolution >> level).pow(2) * channels);
        let thin = self.resolution.pow(2) * self.base_channels;
        let last = self.num_tokens() * self.latent_channels.max(self.embed_dim);
        wide.chain([thin, last]).max().expect("there are levels")
    }

    fn attention(&self) -> AttentionSizes {
        let (dim, max_tokens) = (self.middle(), self.num_tokens());
        AttentionSizes { heads: 1, kv_heads: 1, key_dim: dim, value_dim: dim, max_context: 0, max_tokens }
    }

    pub fn parameters(&self) -> u64 {
        let convolutions = self.convolutions();
        let of = |shape: &Shape| Convolution::parameters(shape.channels, shape.window);
        convolutions.iter().map(of).sum::<u64>()
            + self.norms().into_iter().map(GroupNorm::parameters).sum::<u64>()
            + (self.num_embeddings * self.embed_dim) as u64
    }

    /// Weights and buffers of [`Encoder::load`], in the memory of the host, which is `device`.
    pub fn bytes(&self, device: &Device) -> u64 {
        let norms = self.norms().into_iter().map(GroupNorm::parameters).sum::<u64>();
        let others = self.num_embeddings + 3 * self.stream();
        self.tensor_bytes(device) + 4 * (norms + others as u64)
    }

    /// What of it is tensors and matrices.
    fn tensor_bytes(&self, device: &Device) -> u64 {
        let of = |shape: &Shape| Convolution::bytes(shape.channels, shape.window);
        // Queries, keys, values, and what is attended to.
        let middle = Tensor::bytes_of(DType::F32, &[4 * self.num_tokens(), self.middle()]);
        self.convolutions().iter().map(of).sum::<u64>()
            + Matrix::packed_bytes(DType::F32, self.num_embeddings, self.embed_dim)
            + self.strip().bytes()
            + middle
            + AttentionScratch::bytes(device, self.attention())
    }
}

impl Encoder {
    /// `device` is a processor.
    pub fn load(checkpoint: &Checkpoint, device: &Device, config: &VqConfig) -> Result<Self, LoadError> {
        let from = Source { checkpoint, device };
        let before = device.allocated_bytes();
        let convolution = |name: &str, channels, window| from.convolution(name, channels, window);
        let mut levels = Vec::with_capacity(config.channels.len());
        let mut channels = config.base_channels;
        for (index, &to) in config.channels.iter().enumerate() {
            let name = |part: &str| format!("encoder.down.{index}.{part}");
            let mut blocks = Vec::with_capacity(config.num_res_blocks);
            for block in 0..config.num_res_blocks {
                blocks.push(Block::load(&from, &name(&format!("block.{block}")), [channels, to])?);
                channels = to;
            }
            let down = match index + 1 < config.channels.len() {
                true => Some(convolution(&name("downsample.conv"), [to, to], Window::EachSecond)?),
                false => None,
            };
            levels.push(Level { blocks, down });
        }
        let middle = config.middle();
        let codebook = [config.num_embeddings, config.embed_dim];
        let entries = checkpoint.take(&from.name("quantize.embedding.weight"), &codebook)?.to_f32();
        let square = |entry: &[f32]| entry.iter().map(|x| x * x).sum();
        let floats = |shape: &[usize]| Tensor::zeros(device, DType::F32, shape);
        let encoder = Self {
            conv_in: convolution("encoder.conv_in", [CHANNELS, config.base_channels], Window::Around)?,
            levels,
            middle: Middle {
                block_1: Block::load(&from, "encoder.mid.block_1", [middle, middle])?,
                attention: Attention::load(&from, "encoder.mid.attn_1", middle)?,
                block_2: Block::load(&from, "encoder.mid.block_2", [middle, middle])?,
            },
            norm_out: from.norm("encoder.norm_out", middle)?,
            conv_out: convolution("encoder.conv_out", [middle, config.latent_channels], Window::Around)?,
            quant_conv: convolution("quant_conv", [config.latent_channels, config.embed_dim], Window::Pixel)?,
            squares: entries.chunks(config.embed_dim).map(square).collect(),
            codebook: matrix(device, &entries, config.num_embeddings),
            room: Room {
                strip: Strip::new(device, config.strip()),
                x: Picture::with_room(config.stream()),
                a: Picture::with_room(config.stream()),
                b: Picture::with_room(config.stream()),
                qkv: floats(&[config.num_tokens(), 3, 1, middle]),
                attended: floats(&[config.num_tokens(), 1, middle]),
                attention: AttentionScratch::new(device, config.attention()),
            },
            device: device.clone(),
            config: config.clone(),
        };
        let planned = config.tensor_bytes(device);
        debug_assert_eq!(device.allocated_bytes() - before, planned, "planned bytes are allocated bytes");
        Ok(encoder)
    }

    pub fn config(&self) -> &VqConfig {
        &self.config
    }

    /// The entry of the codebook that each place of the picture is nearest to, row by row; the first of several. `pixels` is
    /// `[resolution, resolution, 3]`, normalised. `None`: a value was not finite, so that nothing is near.
    pub fn encode(&mut self, pixels: &[f32]) -> Option<Vec<usize>> {
        let (side, device) = (self.config.resolution, &self.device);
        let room = &mut self.room;
        assert_eq!(pixels.len(), side * side * CHANNELS, "encode: pixels");
        room.a.reshape([side, side, CHANNELS]);
        room.a.values.copy_from_slice(pixels);
        self.conv_in.run(&room.a, &mut room.strip, &mut room.x);
        for Level { blocks, down } in &self.levels {
            blocks.iter().for_each(|block| block.run(device, room));
            if let Some(down) = down {
                down.run(&room.x, &mut room.strip, &mut room.a);
                swap(&mut room.x, &mut room.a);
            }
        }
        let Middle { block_1, attention, block_2 } = &self.middle;
        block_1.run(device, room);
        attention.run(device, room);
        block_2.run(device, room);
        self.norm_out.run(device, &room.x, After::Swish, &mut room.a);
        self.conv_out.run(&room.a, &mut room.strip, &mut room.x);
        self.quant_conv.run(&room.x, &mut room.strip, &mut room.a);
        self.nearest()
    }

    /// Of the rows in `room.a`: the least |z|² + |e|² - 2 z·e, in f32 as in the published code.
    fn nearest(&mut self) -> Option<Vec<usize>> {
        let Room { strip, a, .. } = &mut self.room;
        if !a.values.iter().all(|value| value.is_finite()) {
            return None;
        }
        let lengths: Vec<f32> = a.values.chunks(a.channels).map(|z| z.iter().map(|x| x * x).sum()).collect();
        let mut codes = Vec::with_capacity(lengths.len());
        strip.rows(&a.values, (&self.codebook, None), |first, products| {
            for (products, length) in products.chunks(self.squares.len()).zip(&lengths[first..]) {
                let mut best = (0, f32::INFINITY);
                for (code, (product, square)) in products.iter().zip(&self.squares).enumerate() {
                    let distance = length + square - 2.0 * product;
                    if distance < best.1 {
                        best = (code, distance);
                    }
                }
                codes.push(best.0);
            }
        });
        Some(codes)
    }
}

/// Where weights come from, by names after [`PREFIX`].
struct Source<'a> {
    checkpoint: &'a Checkpoint,
    device: &'a Device,
}

impl Source<'_> {
    fn name(&self, name: &str) -> String {
        format!("{PREFIX}{name}")
    }

    fn convolution(
        &self,
        name: &str,
        channels: [usize; 2],
        window: Window,
    ) -> Result<Convolution, LoadError> {
        Convolution::load((self.checkpoint, self.device), &self.name(name), channels, window)
    }

    fn norm(&self, name: &str, channels: usize) -> Result<GroupNorm, LoadError> {
        GroupNorm::load(self.checkpoint, &self.name(name), channels)
    }
}

struct Block {
    norm1: GroupNorm,
    conv1: Convolution,
    norm2: GroupNorm,
    conv2: Convolution,
    /// Of the stream, where channels change.
    shortcut: Option<Convolution>,
}

impl Block {
    fn load(from: &Source, name: &str, [channels, to]: [usize; 2]) -> Result<Self, LoadError> {
        let name = |part: &str| format!("{name}.{part}");
        Ok(Self {
            norm1: from.norm(&name("norm1"), channels)?,
            conv1: from.convolution(&name("conv1"), [channels, to], Window::Around)?,
            norm2: from.norm(&name("norm2"), to)?,
            conv2: from.convolution(&name("conv2"), [to, to], Window::Around)?,
            shortcut: match channels == to {
                true => None,
                false => Some(from.convolution(&name("nin_shortcut"), [channels, to], Window::Pixel)?),
            },
        })
    }

    /// `room.x` in place.
    fn run(&self, device: &Device, room: &mut Room) {
        let Room { strip, x, a, b, .. } = room;
        self.norm1.run(device, x, After::Swish, a);
        self.conv1.run(a, strip, b);
        self.norm2.run(device, b, After::Swish, a);
        self.conv2.run(a, strip, b);
        if let Some(shortcut) = &self.shortcut {
            shortcut.run(x, strip, a);
            swap(x, a);
        }
        x.add(device, b);
    }
}

/// Of every pixel over all pixels, with one head.
struct Attention {
    norm: GroupNorm,
    /// Queries, keys and values.
    qkv: [Convolution; 3],
    out: Convolution,
}

impl Attention {
    fn load(from: &Source, name: &str, channels: usize) -> Result<Self, LoadError> {
        let pixel =
            |part: &str| from.convolution(&format!("{name}.{part}"), [channels, channels], Window::Pixel);
        Ok(Self {
            norm: from.norm(&format!("{name}.norm"), channels)?,
            qkv: [pixel("q")?, pixel("k")?, pixel("v")?],
            out: pixel("proj_out")?,
        })
    }

    /// `room.x` in place.
    fn run(&self, device: &Device, room: &mut Room) {
        let Room { strip, x, a, b, qkv, attended, attention } = room;
        let (pixels, c) = (x.pixels(), x.channels);
        self.norm.run(device, x, After::Nothing, a);
        for (part, layer) in self.qkv.iter().enumerate() {
            layer.run(a, strip, b);
            let rows = qkv.as_f32_mut().chunks_mut(3 * c).zip(b.values.chunks(c));
            rows.for_each(|(row, values)| row[part * c..(part + 1) * c].copy_from_slice(values));
        }
        let scale = (c as f32).powf(-0.5);
        ops::packed_attention(qkv, &[0, pixels as u32], scale, attention, attended);
        a.values.copy_from_slice(attended.as_f32());
        self.out.run(a, strip, b);
        x.add(device, b);
    }
}
