//! Resizing of 8-bit RGB pictures, byte for byte what Pillow (before 13) does with `BICUBIC` (a = -0.5) and `LANCZOS` (3 lobes): a filter that
//! widens when the picture shrinks, weights in 22-bit fixed point, and rounding to bytes between the passes.
//!
//! ```text
//! [H, W, 3] u8 ──columns──▶ [H, w, 3] u8 ──rows──▶ [h, w, 3] u8        a pass whose size does not change is left out
//! ```
//! The rounding between the passes makes their order visible. Pillow takes rows first where a very tall picture becomes shorter.

use std::f64::consts::PI;
use std::ops::Range;

const CHANNELS: usize = 3;
/// Eight bits for a byte, two for the overshoot of the filter, the rest for the fraction.
const FRACTION_BITS: u32 = 32 - 8 - 2;
const HALF: i32 = 1 << (FRACTION_BITS - 1);
/// A picture of more than this many times its width in height is very tall.
const VERY_TALL: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    Bicubic,
    Lanczos,
}

impl Filter {
    /// How many (output or input, whichever are larger) pixels it reaches to each side.
    fn support(self) -> f64 {
        match self {
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        match self {
            Self::Bicubic => bicubic(x),
            Self::Lanczos => lanczos(x),
        }
    }
}

/// `[height, width, 3]` bytes of `from` pixels to `to` pixels, both as (width, height). No size may be zero.
pub fn resize(rgb: &[u8], from: (usize, usize), to: (usize, usize)) -> Vec<u8> {
    let (columns, rows) = (0..to.0, 0..to.1);
    Resize { filter: Filter::Bicubic, from, to, columns, rows }.run(rgb)
}

/// What is to become of a picture. Sizes are (width, height), and none is zero.
#[derive(Debug, Clone)]
pub struct Resize {
    pub filter: Filter,
    pub from: (usize, usize),
    pub to: (usize, usize),
    /// Of the resized picture, what is wanted: nothing else is computed.
    pub columns: Range<usize>,
    pub rows: Range<usize>,
}

impl Resize {
    /// `[height, width, 3]` bytes to those of the wanted part.
    pub fn run(&self, rgb: &[u8]) -> Vec<u8> {
        let Self { filter, from, to, ref columns, ref rows } = *self;
        assert_eq!(rgb.len(), from.0 * from.1 * CHANNELS, "resize: pixels and size");
        assert!(from.0 > 0 && from.1 > 0 && to.0 > 0 && to.1 > 0, "resize: zero size");
        assert!(columns.end <= to.0 && rows.end <= to.1, "resize: {columns:?} and {rows:?} of {to:?}");
        // Where a size does not change a filter has the weight 1 at a pixel itself, and 0 at all others.
        let across = (from.0 != to.0 || columns.len() != to.0)
            .then(|| Weights::new(filter, [from.0, to.0], columns.clone()));
        let down = (from.1 != to.1 || rows.len() != to.1)
            .then(|| Weights::new(filter, [from.1, to.1], rows.clone()));
        match (across, down) {
            (None, None) => rgb.to_vec(),
            (Some(across), None) => resize_columns(rgb, from.0, &across),
            (None, Some(down)) => resize_rows(rgb, from.0, &down),
            (Some(across), Some(down)) if from.1 > VERY_TALL * from.0 && to.1 < from.1 => {
                resize_columns(&resize_rows(rgb, from.0, &down), from.0, &across)
            }
            (Some(across), Some(down)) => {
                resize_rows(&resize_columns(rgb, from.0, &across), columns.len(), &down)
            }
        }
    }
}

/// Which inputs make up each output along one axis, and their shares in fixed point.
struct Weights {
    /// One for each output.
    windows: Vec<Window>,
    /// The shares of all windows, one after the other.
    shares: Vec<i32>,
}

struct Window {
    first_input: usize,
    first_share: usize,
    len: usize,
}

impl Weights {
    /// Of some outputs.
    fn new(filter: Filter, [num_inputs, num_outputs]: [usize; 2], outputs: Range<usize>) -> Self {
        let scale = num_inputs as f64 / num_outputs as f64;
        let filter_scale = scale.max(1.0);
        let reach = filter.support() * filter_scale;
        let mut windows = Vec::with_capacity(outputs.len());
        let mut shares = Vec::new();
        let mut exact = Vec::new();
        for output in outputs {
            let center = (output as f64 + 0.5) * scale;
            // Both casts round towards zero, and a negative start becomes zero.
            let first_input = (center - reach + 0.5) as usize;
            let end = ((center + reach + 0.5) as usize).min(num_inputs);
            exact.clear();
            exact.extend(
                (first_input..end)
                    .map(|input| filter.at((input as f64 - center + 0.5) * (1.0 / filter_scale))),
            );
            let sum: f64 = exact.iter().sum();
            windows.push(Window { first_input, first_share: shares.len(), len: exact.len() });
            shares.extend(exact.iter().map(|share| to_fixed(if sum != 0.0 { share / sum } else { *share })));
        }
        Self { windows, shares }
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.windows.iter().map(|w| (w.first_input, &self.shares[w.first_share..w.first_share + w.len]))
    }
}

/// The convolution kernel of Keys with a = -0.5.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// A sinc under the middle lobe of one that is three times as wide.
fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
    if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
}

/// Rounds half away from zero.
fn to_fixed(share: f64) -> i32 {
    let scaled = share * f64::from(1 << FRACTION_BITS);
    (if share < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

fn to_byte(sum: i32) -> u8 {
    (sum >> FRACTION_BITS).clamp(0, 255) as u8
}

/// Each row by itself: `[H, W, 3]` to `[H, w, 3]`.
fn resize_columns(rgb: &[u8], width: usize, weights: &Weights) -> Vec<u8> {
    let new_width = weights.windows.len();
    let height = rgb.len() / (width * CHANNELS);
    let mut out = vec![0; height * new_width * CHANNELS];
    let rows = rgb.chunks_exact(width * CHANNELS).zip(out.chunks_exact_mut(new_width * CHANNELS));
    for (row, out_row) in rows {
        for (pixel, (first, shares)) in out_row.chunks_exact_mut(CHANNELS).zip(weights.iter()) {
            let inputs = row[first * CHANNELS..(first + shares.len()) * CHANNELS].chunks_exact(CHANNELS);
            let mut sums = [HALF; CHANNELS];
            for (input, &share) in inputs.zip(shares) {
                for c in 0..CHANNELS {
                    sums[c] += i32::from(input[c]) * share;
                }
            }
            for c in 0..CHANNELS {
                pixel[c] = to_byte(sums[c]);
            }
        }
    }
    out
}

/// Whole rows are added up, so that the inner loop runs along memory: `[H, w, 3]` to `[h, w, 3]`.
fn resize_rows(rgb: &[u8], width: usize, weights: &Weights) -> Vec<u8> {
    let row_len = width * CHANNELS;
    let mut out = vec![0; weights.windows.len() * row_len];
    let mut sums = vec![0; row_len];
    for (out_row, (first, shares)) in out.chunks_exact_mut(row_len).zip(weights.iter()) {
        sums.fill(HALF);
        let rows = rgb[first * row_len..(first + shares.len()) * row_len].chunks_exact(row_len);
        for (row, &share) in rows.zip(shares) {
            for (sum, &byte) in sums.iter_mut().zip(row) {
                *sum += i32::from(byte) * share;
            }
        }
        for (byte, &sum) in out_row.iter_mut().zip(&sums) {
            *byte = to_byte(sum);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_every_output_add_up_to_one() {
        for (inputs, outputs) in [(1, 1), (1, 7), (7, 1), (17, 5), (5, 17), (1000, 3), (300, 299), (64, 65)] {
            for filter in [Filter::Bicubic, Filter::Lanczos] {
                let weights = Weights::new(filter, [inputs, outputs], 0..outputs);
                assert_eq!(weights.windows.len(), outputs);
                for (first, shares) in weights.iter() {
                    assert!(first + shares.len() <= inputs, "{inputs} to {outputs}");
                    let sum: i32 = shares.iter().sum();
                    assert!(
                        (sum - (1 << FRACTION_BITS)).abs() <= shares.len() as i32,
                        "{inputs} to {outputs}: {sum}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_flat_picture_stays_flat() {
        let rgb = [7, 130, 255].repeat(19 * 11);
        for to in [(19, 11), (5, 3), (40, 11), (19, 23), (1, 1), (64, 2)] {
            assert_eq!(resize(&rgb, (19, 11), to), [7, 130, 255].repeat(to.0 * to.1), "{to:?}");
        }
    }

    #[test]
    fn a_part_is_cut_from_the_whole() {
        let from = (23, 17);
        let rgb: Vec<u8> = (0..from.0 * from.1 * 3).map(|i| (i * 71 % 253) as u8).collect();
        for (filter, to) in [
            (Filter::Lanczos, (9, 40)),
            (Filter::Bicubic, (46, 5)),
            (Filter::Lanczos, from),
            (Filter::Bicubic, (23, 30)),
            (Filter::Lanczos, (30, 17)),
        ] {
            let whole = Resize { filter, from, to, columns: 0..to.0, rows: 0..to.1 };
            let part = Resize { columns: 2..7, rows: 1..4, ..whole.clone() };
            let whole = whole.run(&rgb);
            let rows = (1..4).map(|y| &whole[(y * to.0 + 2) * 3..(y * to.0 + 7) * 3]);
            assert_eq!(part.run(&rgb), rows.collect::<Vec<_>>().concat(), "{filter:?} {to:?}");
            if to == from {
                assert_eq!(whole, rgb);
            }
        }
    }

    #[test]
    fn overshoot_is_clipped_between_the_passes() {
        // A hard edge overshoots on both sides of it; bytes cannot.
        let row: Vec<u8> = (0..8).flat_map(|x| [if x < 4 { 0 } else { 255 }; 3]).collect();
        let wide = resize(&row, (8, 1), (32, 1));
        assert_eq!(wide[0], 0);
        assert_eq!(wide[wide.len() - 1], 255);
        assert!(wide.chunks_exact(3).map(|p| p[0]).is_sorted());
    }
}
