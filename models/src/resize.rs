//! Bicubic resizing of 8-bit RGB pictures, byte for byte what Pillow (before 13) does with `BICUBIC`: a = -0.5, a filter that
//! widens when the picture shrinks, weights in 22-bit fixed point, and rounding to bytes between the passes.
//!
//! ```text
//! [H, W, 3] u8 ──columns──▶ [H, w, 3] u8 ──rows──▶ [h, w, 3] u8        a pass whose size does not change is left out
//! ```
//! The rounding between the passes makes their order visible. Pillow takes rows first where a very tall picture becomes shorter.

const CHANNELS: usize = 3;
/// Eight bits for a byte, two for the overshoot of the filter, the rest for the fraction.
const FRACTION_BITS: u32 = 32 - 8 - 2;
const HALF: i32 = 1 << (FRACTION_BITS - 1);
/// The filter reaches this many (output or input, whichever are larger) pixels to each side.
const SUPPORT: f64 = 2.0;
/// A picture of more than this many times its width in height is very tall.
const VERY_TALL: usize = 100;

/// `[height, width, 3]` bytes of `from` pixels to `to` pixels, both as (width, height). No size may be zero.
pub fn resize(rgb: &[u8], from: (usize, usize), to: (usize, usize)) -> Vec<u8> {
    assert_eq!(rgb.len(), from.0 * from.1 * CHANNELS, "resize: pixels and size");
    assert!(from.0 > 0 && from.1 > 0 && to.0 > 0 && to.1 > 0, "resize: zero size");
    match (from.0 == to.0, from.1 == to.1) {
        (true, true) => rgb.to_vec(),
        (false, true) => resize_columns(rgb, from.0, &Weights::new(from.0, to.0)),
        (true, false) => resize_rows(rgb, from.0, &Weights::new(from.1, to.1)),
        (false, false) if from.1 > VERY_TALL * from.0 && to.1 < from.1 => {
            let shortened = resize_rows(rgb, from.0, &Weights::new(from.1, to.1));
            resize_columns(&shortened, from.0, &Weights::new(from.0, to.0))
        }
        (false, false) => {
            let narrowed = resize_columns(rgb, from.0, &Weights::new(from.0, to.0));
            resize_rows(&narrowed, to.0, &Weights::new(from.1, to.1))
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
    fn new(num_inputs: usize, num_outputs: usize) -> Self {
        let scale = num_inputs as f64 / num_outputs as f64;
        let filter_scale = scale.max(1.0);
        let reach = SUPPORT * filter_scale;
        let mut windows = Vec::with_capacity(num_outputs);
        let mut shares = Vec::new();
        let mut exact = Vec::new();
        for output in 0..num_outputs {
            let center = (output as f64 + 0.5) * scale;
            // Both casts round towards zero, and a negative start becomes zero.
            let first_input = (center - reach + 0.5) as usize;
            let end = ((center + reach + 0.5) as usize).min(num_inputs);
            exact.clear();
            exact.extend(
                (first_input..end).map(|input| bicubic((input as f64 - center + 0.5) * (1.0 / filter_scale))),
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
            let weights = Weights::new(inputs, outputs);
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

    #[test]
    fn a_flat_picture_stays_flat() {
        let rgb = [7, 130, 255].repeat(19 * 11);
        for to in [(19, 11), (5, 3), (40, 11), (19, 23), (1, 1), (64, 2)] {
            assert_eq!(resize(&rgb, (19, 11), to), [7, 130, 255].repeat(to.0 * to.1), "{to:?}");
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
