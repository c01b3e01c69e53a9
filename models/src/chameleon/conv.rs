//! Convolutions, norms and sums of a picture on the processor: `[height, width, channels]` f32, so that a window is a row of a matrix product.
//!
//! ```text
//! picture ─▶ columns [pixels, 3·3·C], some rows of the picture at a time ─linear─▶ [pixels, N]
//! ```
//! Every sum has an order that sizes alone decide: the number of threads changes no bit.

use super::config::GROUPS;
use crate::LoadError;
use crate::weights::Checkpoint;
use kernels::ops::{self, Activation};
use kernels::{DType, Device, HostTensor, Matrix, Tensor};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Pixels of the output that are computed at a time, at most (and at least one row of them).
const STRIP: usize = 512;
/// Pixels that are summed for a norm before their sums are added up.
const NORM_BLOCK: usize = 512;
const NORM_EPS: f64 = 1e-6;

/// A picture, or what a layer made of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Picture {
    /// `[height, width, channels]`
    pub values: Vec<f32>,
    pub height: usize,
    pub width: usize,
    pub channels: usize,
}

impl Picture {
    /// Empty, for so many values.
    pub fn with_room(values: usize) -> Self {
        Self { values: Vec::with_capacity(values), ..Self::default() }
    }

    pub fn pixels(&self) -> usize {
        self.height * self.width
    }

    /// In a buffer that has room, or grows. The values are those that were there.
    pub fn reshape(&mut self, [height, width, channels]: [usize; 3]) {
        self.values.resize(height * width * channels, 0.0);
        (self.height, self.width, self.channels) = (height, width, channels);
    }

    /// `self += other`
    pub fn add(&mut self, device: &Device, other: &Self) {
        assert_eq!(self.values.len(), other.values.len(), "add: sizes");
        let part = STRIP * self.channels;
        for_parts(device, &mut self.values, part, |index, values| {
            let other = &other.values[index * part..];
            values.iter_mut().zip(other).for_each(|(x, y)| *x += y);
        });
    }
}

/// Calls `work` with each part of `len` values and its number, on all threads of the device.
pub(super) fn for_parts(
    device: &Device,
    values: &mut [f32],
    len: usize,
    work: impl Fn(usize, &mut [f32]) + Sync,
) {
    let parts: Vec<Mutex<&mut [f32]>> = values.chunks_mut(len).map(Mutex::new).collect();
    device.for_each(parts.len(), &|index, _| {
        // Each part is taken once.
        work(index, &mut parts[index].lock().unwrap_or_else(PoisonError::into_inner));
    });
}

/// Room for a strip: its windows, and what becomes of them.
pub(super) struct Strip {
    columns: Tensor,
    products: Tensor,
}

/// What some layers need of a strip, in values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct StripSize {
    columns: usize,
    products: usize,
}

impl StripSize {
    /// Room for a layer from windows of `k` values to `n` channels too; its output has `width` columns and `pixels` in all.
    pub fn with(self, [k, n]: [usize; 2], [width, pixels]: [usize; 2]) -> Self {
        let pixels = pixels.min(STRIP.max(width));
        Self { columns: self.columns.max(pixels * k), products: self.products.max(pixels * n) }
    }

    pub fn bytes(self) -> u64 {
        4 * (self.columns + self.products) as u64
    }
}

impl Strip {
    pub fn new(device: &Device, size: StripSize) -> Self {
        let [columns, products] =
            [size.columns, size.products].map(|len| Tensor::zeros(device, DType::F32, &[len]));
        Self { columns, products }
    }

    /// Rows `[pixels, K]` by a matrix, some at a time: `take(first pixel, products [some, N])`.
    pub fn rows(
        &mut self,
        rows: &[f32],
        (weight, bias): (&Matrix, Option<&Tensor>),
        mut take: impl FnMut(usize, &[f32]),
    ) {
        let (k, n) = (weight.k(), weight.n());
        for (index, part) in rows.chunks(STRIP * k).enumerate() {
            let pixels = part.len() / k;
            self.columns.reshape(&[pixels, k]);
            self.products.reshape(&[pixels, n]);
            self.columns.write_f32(0, part);
            ops::linear(&self.columns, weight, bias, Activation::None, &mut self.products);
            take(index * STRIP, self.products.as_f32());
        }
    }
}

/// How windows lie on the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Window {
    /// One pixel.
    Pixel,
    /// 3 × 3 around each pixel; zeros outside of the picture.
    Around,
    /// 3 × 3 from each second pixel of each second row on; zeros below and to the right of the picture.
    EachSecond,
}

impl Window {
    /// Of rows, and of columns.
    pub fn side(self) -> usize {
        match self {
            Self::Pixel => 1,
            Self::Around | Self::EachSecond => 3,
        }
    }

    fn stride(self) -> usize {
        match self {
            Self::Pixel | Self::Around => 1,
            Self::EachSecond => 2,
        }
    }

    /// Of the window before its output's own pixel.
    fn before(self) -> usize {
        match self {
            Self::Pixel | Self::EachSecond => 0,
            Self::Around => 1,
        }
    }
}

/// `name.weight` `[N, C, side, side]` and `name.bias` `[N]`.
pub(super) struct Convolution {
    /// `[N, side · side · C]`
    weight: Matrix,
    bias: Tensor,
    window: Window,
}

impl Convolution {
    pub fn load(
        (checkpoint, device): (&Checkpoint, &Device),
        name: &str,
        [channels, outputs]: [usize; 2],
        window: Window,
    ) -> Result<Self, LoadError> {
        let side = window.side();
        let weight = checkpoint.take(&format!("{name}.weight"), &[outputs, channels, side, side])?.to_f32();
        let weight = matrix(device, &channels_last(&weight, channels, side * side), outputs);
        let bias = checkpoint.take(&format!("{name}.bias"), &[outputs])?.to_f32();
        Ok(Self { weight, bias: Tensor::from_f32(device, &[outputs], &bias), window })
    }

    /// Numbers of weights.
    pub fn parameters([channels, outputs]: [usize; 2], window: Window) -> u64 {
        (outputs * (channels * window.side() * window.side() + 1)) as u64
    }

    pub fn bytes([channels, outputs]: [usize; 2], window: Window) -> u64 {
        let k = channels * window.side() * window.side();
        Matrix::packed_bytes(DType::F32, outputs, k) + 4 * outputs as u64
    }

    pub fn run(&self, x: &Picture, strip: &mut Strip, out: &mut Picture) {
        let n = self.weight.n();
        let stride = self.window.stride();
        out.reshape([x.height / stride, x.width / stride, n]);
        let width = out.width;
        if self.window == Window::Pixel {
            let out = &mut out.values;
            strip.rows(&x.values, (&self.weight, Some(&self.bias)), |first, products| {
                out[first * n..first * n + products.len()].copy_from_slice(products);
            });
            return;
        }
        let rows_at_once = (STRIP / width).max(1);
        for first in (0..out.height).step_by(rows_at_once) {
            let rows = first..out.height.min(first + rows_at_once);
            let pixels = rows.len() * width;
            strip.columns.reshape(&[pixels, self.weight.k()]);
            strip.products.reshape(&[pixels, n]);
            self.fill(x, rows.clone(), width, &mut strip.columns);
            let Strip { columns, products } = &mut *strip;
            ops::linear(columns, &self.weight, Some(&self.bias), Activation::None, products);
            out.values[rows.start * width * n..rows.end * width * n].copy_from_slice(products.as_f32());
        }
    }

    /// The windows of some rows of the output, pixel by pixel; in one: rows, columns, channels.
    fn fill(&self, x: &Picture, rows: Range<usize>, width: usize, columns: &mut Tensor) {
        let device = columns.device().clone();
        let (k, c, side) = (self.weight.k(), x.channels, self.window.side());
        let (stride, before) = (self.window.stride(), self.window.before());
        for_parts(&device, columns.as_f32_mut(), width * k, |row, columns| {
            for (column, window) in columns.chunks_mut(k).enumerate() {
                for (tap, values) in window.chunks_mut(c).enumerate() {
                    let y = ((rows.start + row) * stride + tap / side).checked_sub(before);
                    let x_at = (column * stride + tap % side).checked_sub(before);
                    match (y, x_at) {
                        (Some(y), Some(x_at)) if y < x.height && x_at < x.width => {
                            let start = (y * x.width + x_at) * c;
                            values.copy_from_slice(&x.values[start..start + c]);
                        }
                        _ => values.fill(0.0),
                    }
                }
            }
        });
    }
}

/// A matrix `[n, k]` that keeps its values: which entry is nearest must not hang on a rounding.
pub(super) fn matrix(device: &Device, values: &[f32], n: usize) -> Matrix {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let shape = [n, values.len() / n];
    Matrix::pack(device, DType::F32, &[HostTensor { dtype: DType::F32, shape: &shape, data: &data }])
}

/// `[N, C, taps]` as `[N, taps, C]`.
fn channels_last(weights: &[f32], channels: usize, taps: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(weights.len());
    for weights in weights.chunks(channels * taps) {
        out.extend((0..taps).flat_map(|tap| (0..channels).map(move |c| weights[c * taps + tap])));
    }
    out
}

/// `name.weight` and `name.bias`, both `[C]`: the channels of each group have one mean and one variance over the whole picture.
pub(super) struct GroupNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// What follows a norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    Nothing,
    /// `x · sigmoid(x)`
    Swish,
}

impl GroupNorm {
    pub fn load(checkpoint: &Checkpoint, name: &str, channels: usize) -> Result<Self, LoadError> {
        let vector = |what: &str| checkpoint.take(&format!("{name}.{what}"), &[channels]);
        Ok(Self { weight: vector("weight")?.to_f32(), bias: vector("bias")?.to_f32() })
    }

    pub fn parameters(channels: usize) -> u64 {
        2 * channels as u64
    }

    pub fn run(&self, device: &Device, x: &Picture, after: After, out: &mut Picture) {
        let c = x.channels;
        let count = (x.pixels() * c / GROUPS) as f64;
        let means = sums(device, x, |value, _| f64::from(value)).map(|sum| sum / count);
        // Centred first: the difference of large squares would lose a small variance.
        let squares = sums(device, x, |value, group| (f64::from(value) - means[group]).powi(2));
        let factors = squares.map(|sum| 1.0 / (sum / count + NORM_EPS).sqrt());
        let per_group = c / GROUPS;
        let channel = |i: usize| {
            let scale = self.weight[i] * factors[i / per_group] as f32;
            (scale, self.bias[i] - means[i / per_group] as f32 * scale)
        };
        let channels: Vec<(f32, f32)> = (0..c).map(channel).collect();
        out.reshape([x.height, x.width, c]);
        let part = NORM_BLOCK * c;
        for_parts(device, &mut out.values, part, |index, out| {
            let x = &x.values[index * part..index * part + out.len()];
            for (x, out) in x.chunks(c).zip(out.chunks_mut(c)) {
                for ((x, out), (scale, shift)) in x.iter().zip(out).zip(&channels) {
                    *out = x * scale + shift;
                }
            }
            if after == After::Swish {
                out.iter_mut().for_each(|x| *x /= 1.0 + (-*x).exp());
            }
        });
    }
}

/// Of each group the sum of `term(value, group)` over all pixels: of blocks of pixels, then of the blocks in their order.
fn sums(device: &Device, x: &Picture, term: impl Fn(f32, usize) -> f64 + Sync) -> [f64; GROUPS] {
    let block = NORM_BLOCK * x.channels;
    let per_group = x.channels / GROUPS;
    let blocks: Vec<Mutex<[f64; GROUPS]>> =
        x.values.chunks(block).map(|_| Mutex::new([0.0; GROUPS])).collect();
    device.for_each(blocks.len(), &|index, _| {
        let mut sums = [0.0; GROUPS];
        for pixel in x.values[index * block..].chunks(x.channels).take(NORM_BLOCK) {
            for (group, (sum, values)) in sums.iter_mut().zip(pixel.chunks(per_group)).enumerate() {
                *sum += values.iter().map(|&value| term(value, group)).sum::<f64>();
            }
        }
        *blocks[index].lock().unwrap_or_else(PoisonError::into_inner) = sums;
    });
    let mut total = [0.0; GROUPS];
    for block in blocks {
        let block = block.into_inner().unwrap_or_else(PoisonError::into_inner);
        total.iter_mut().zip(block).for_each(|(total, sum)| *total += sum);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture([height, width, channels]: [usize; 3]) -> Picture {
        let values =
            (0..height * width * channels).map(|i| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0).collect();
        Picture { values, height, width, channels }
    }

    /// Each sum term by term, in f64.
    fn naive(x: &Picture, weights: &[f32], bias: &[f32], window: Window) -> Vec<f64> {
        let (side, stride, c) = (window.side(), window.stride(), x.channels);
        let (height, width) = (x.height / stride, x.width / stride);
        let mut out = Vec::new();
        for (y, column) in (0..height).flat_map(|y| (0..width).map(move |column| (y, column))) {
            for (n, &bias) in bias.iter().enumerate() {
                let mut sum = f64::from(bias);
                for (dy, dx, channel) in (0..side * side * c).map(|i| (i / (side * c), i / c % side, i % c)) {
                    let at =
                        |place: usize, d: usize| (place * stride + d) as isize - window.before() as isize;
                    let (y, column) = (at(y, dy), at(column, dx));
                    let inside = |at: isize, len: usize| (0..len as isize).contains(&at);
                    if inside(y, x.height) && inside(column, x.width) {
                        let value = x.values[(y as usize * x.width + column as usize) * c + channel];
                        sum += f64::from(value * weights[((n * c + channel) * side + dy) * side + dx]);
                    }
                }
                out.push(sum);
            }
        }
        out
    }

    #[test]
    fn convolutions_are_their_sums_with_any_number_of_threads() {
        for (shape, window) in [
            ([5, 7, 3], Window::Around),
            ([6, 4, 32], Window::EachSecond),
            ([3, 5, 8], Window::Pixel),
            ([66, 70, 4], Window::Around),
        ] {
            let (x, outputs) = (picture(shape), 5);
            let k = shape[2] * window.side() * window.side();
            let weights: Vec<f32> =
                (0..outputs * k).map(|i| ((i * 29 + 3) % 83) as f32 / 80.0 - 0.5).collect();
            let bias: Vec<f32> = (0..outputs).map(|i| i as f32 / 4.0).collect();
            let expected = naive(&x, &weights, &bias, window);
            let mut first: Option<Vec<f32>> = None;
            for threads in [1, 3] {
                let device = Device::cpu(Some(threads));
                let weight =
                    matrix(&device, &channels_last(&weights, shape[2], window.side().pow(2)), outputs);
                let bias = Tensor::from_f32(&device, &[outputs], &bias);
                let layer = Convolution { weight, bias, window };
                let [height, width] = [shape[0], shape[1]].map(|side| side / window.stride());
                let size = StripSize::default().with([k, outputs], [width, height * width]);
                let mut strip = Strip::new(&device, size);
                let mut out = Picture::default();
                layer.run(&x, &mut strip, &mut out);
                for (found, expected) in out.values.iter().zip(&expected) {
                    assert!((f64::from(*found) - expected).abs() < 1e-4, "{found} is not {expected}");
                }
                assert_eq!(out.values.len(), expected.len());
                let first = first.get_or_insert_with(|| out.values.clone());
                assert_eq!(*first, out.values, "{threads} threads");
            }
        }
    }

    #[test]
    fn a_group_has_one_mean_and_one_variance() {
        let x = picture([31, 37, 64]);
        let norm = GroupNorm {
            weight: (0..64).map(|i| 0.5 + i as f32 / 64.0).collect(),
            bias: (0..64).map(|i| i as f32 / 32.0 - 1.0).collect(),
        };
        let of_group = |group: usize| {
            let values = x.values.iter().enumerate().filter(move |(i, _)| i % 64 / 2 == group);
            values.map(|(_, &value)| f64::from(value)).collect::<Vec<f64>>()
        };
        let mut outs = Vec::new();
        for (threads, after) in [(1, After::Nothing), (2, After::Nothing), (2, After::Swish)] {
            let mut out = Picture::default();
            norm.run(&Device::cpu(Some(threads)), &x, after, &mut out);
            outs.push(out.values);
        }
        assert_eq!(outs[0], outs[1]);
        for group in [0, 13, 31] {
            let values = of_group(group);
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
            for pixel in [0, 1, 700, 31 * 37 - 1] {
                let i = pixel * 64 + 2 * group + 1;
                let channel = 2 * group + 1;
                let normed = (f64::from(x.values[i]) - mean) / (variance + 1e-6).sqrt();
                let expected = normed * f64::from(norm.weight[channel]) + f64::from(norm.bias[channel]);
                assert!((f64::from(outs[0][i]) - expected).abs() < 1e-5);
                let swish = expected / (1.0 + (-expected).exp());
                assert!((f64::from(outs[2][i]) - swish).abs() < 1e-5);
            }
        }
    }
}
