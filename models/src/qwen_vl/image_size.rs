//! What size a picture of Qwen-VL is resized to, without its pixels, and the bound that buffers are made for.
//!
//! ```text
//! w x h ──each side to the nearest multiple of a token's──▶ too many pixels: shrunk, down to whole tokens
//!                                                           too few: enlarged, up to whole tokens
//! ```

use crate::ImageError;
use crate::vision_parts::MERGE;

/// How many times as long as the other a side may be.
const MAX_RATIO: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeRule {
    pub patch_size: usize,
    /// Of the resized picture, but for what whole tokens add. At least 1.
    pub min_pixels: usize,
    pub max_pixels: usize,
}

impl SizeRule {
    /// Pixels of a token in each direction.
    pub fn factor(&self) -> usize {
        self.patch_size * MERGE
    }

    /// Width and height after resizing, both in whole tokens.
    pub fn resized(&self, width: usize, height: usize) -> Result<(usize, usize), ImageError> {
        if width == 0 || height == 0 {
            return Err(ImageError::Empty { width, height });
        }
        if width.max(height) as f64 / width.min(height) as f64 > MAX_RATIO as f64 {
            return Err(ImageError::TooUneven { width, height, limit: MAX_RATIO });
        }
        let (w, h, factor) = (width as f64, height as f64, self.factor() as f64);
        let sides = [w, h].map(|side| (side / factor).round_ties_even() * factor);
        let pixels = sides[0] * sides[1];
        let [width, height] = if pixels > self.max_pixels as f64 {
            let beta = (h * w / self.max_pixels as f64).sqrt();
            [w, h].map(|side| ((side / beta / factor).floor() * factor).max(factor))
        } else if pixels < self.min_pixels as f64 {
            let beta = (self.min_pixels as f64 / (h * w)).sqrt();
            [w, h].map(|side| (side * beta / factor).ceil() * factor)
        } else {
            sides
        };
        Ok((width as usize, height as usize))
    }

    /// No picture has more patches than this.
    ///
    /// Let f be a token's side and R the largest ratio. A picture that is kept has at most `max_pixels` M, and so has one that is shrunk, unless a side
    /// is that of a token: then the other is at most √(R·M). An enlarged one has sides a, b with ab = m = `min_pixels` before they go up by less than f
    /// each: (a + f)(b + f) = m + f(a + b) + f², and a + b is at most √(R·m) + √(m/R).
    pub fn max_patches(&self) -> usize {
        let (ratio, factor) = (MAX_RATIO as f64, self.factor() as f64);
        let [min, max] = [self.min_pixels, self.max_pixels].map(|pixels| pixels as f64);
        let enlarged = min + factor * ((ratio * min).sqrt() + (min / ratio).sqrt()) + factor * factor;
        let pixels = max.max(factor * (ratio * max).sqrt()).max(enlarged).max(factor * factor);
        // What rounding may add is less than a token.
        (pixels / (factor * factor) + 1e-6) as usize * MERGE * MERGE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLISHED: SizeRule = SizeRule { patch_size: 14, min_pixels: 3136, max_pixels: 12_845_056 };

    #[test]
    fn sizes_are_those_of_the_published_code() {
        let resized = |(width, height)| PUBLISHED.resized(width, height).unwrap();
        let cases = [
            ((1, 1), (56, 56)),
            ((28, 28), (56, 56)),
            ((42, 42), (56, 56)),
            ((70, 70), (56, 56)),
            ((71, 98), (84, 112)),
            ((640, 480), (644, 476)),
            ((1920, 1080), (1932, 1092)),
            ((5000, 4000), (4004, 3192)),
            ((2, 400), (28, 812)),
            ((8000, 40), (8008, 28)),
        ];
        for (from, to) in cases {
            assert_eq!(resized(from), to, "{from:?}");
        }
        let small = SizeRule { max_pixels: 1003520, ..PUBLISHED };
        assert_eq!(small.resized(1920, 1080), Ok((1316, 728)));
    }

    #[test]
    fn uneven_and_empty_pictures_are_errors() {
        assert!(PUBLISHED.resized(200, 1).is_ok());
        let error = PUBLISHED.resized(201, 1).unwrap_err();
        assert_eq!(error, ImageError::TooUneven { width: 201, height: 1, limit: 200 });
        assert_eq!(PUBLISHED.resized(0, 3), Err(ImageError::Empty { width: 0, height: 3 }));
    }

    #[test]
    fn no_picture_is_above_the_bound() {
        assert_eq!(PUBLISHED.max_patches(), 65_536);
        let mut state = 7u64;
        let mut side = |bits: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            1 + ((state >> 20) as usize & ((1 << (1 + (state >> 58) % bits)) - 1))
        };
        for (min_pixels, max_pixels) in
            [(1, 1), (1, 784), (784, 784), (3136, 10_000), (40_000, 50_000), (3136, 1 << 20)]
        {
            for patch_size in [1, 2, 14, 16] {
                let rule = SizeRule { patch_size, min_pixels, max_pixels };
                let mut num_fitting = 0;
                for _ in 0..2000 {
                    let (width, height) = (side(15), side(15));
                    let Ok((w, h)) = rule.resized(width, height) else { continue };
                    num_fitting += 1;
                    assert!(w > 0 && h > 0 && w % rule.factor() == 0 && h % rule.factor() == 0);
                    let patches = w * h / (patch_size * patch_size);
                    assert!(patches <= rule.max_patches(), "{width}x{height} under {rule:?}: {w}x{h}");
                }
                assert!(num_fitting > 500, "{rule:?} refuses nearly everything");
            }
        }
    }
}
