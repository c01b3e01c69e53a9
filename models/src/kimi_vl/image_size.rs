//! How many patches and tokens a picture of Kimi-VL takes: the size rule alone, without pixels, and the bound that buffers are made for.
//!
//! ```text
//! w x h pixels ──shrink when ⌊w/p⌋·⌊h/p⌋ > limit──▶ resized ──pad right and bottom to multiples of 2p──▶ grid of patches of p x p
//! ```

use crate::ImageError;
use crate::vision_parts::MERGE;

/// A picture may have fewer patches than this in one direction: so many columns the tower's rotation table has.
const MAX_SIDE: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeRule {
    pub patch_size: usize,
    /// Whole patches above which a picture is shrunk. Padding comes after it, so a picture can have more.
    pub in_token_limit: usize,
}

/// Where a picture's pixels end up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Width and height in pixels before padding.
    pub resized: (usize, usize),
    /// Rows and columns of patches after padding, both even.
    pub grid: [usize; 2],
}

impl Layout {
    pub fn num_patches(&self) -> usize {
        self.grid[0] * self.grid[1]
    }

    /// Rows of the picture's embedding.
    pub fn num_tokens(&self) -> usize {
        self.num_patches() / (MERGE * MERGE)
    }
}

impl SizeRule {
    pub fn layout(&self, width: usize, height: usize) -> Result<Layout, ImageError> {
        if width == 0 || height == 0 {
            return Err(ImageError::Empty { width, height });
        }
        let resized = self.shrink(width, height);
        let [rows, columns] = [resized.1, resized.0].map(|pixels| pixels.div_ceil(self.unit()) * MERGE);
        if rows >= MAX_SIDE || columns >= MAX_SIDE {
            return Err(ImageError::TooElongated { width, height, rows, columns, limit: MAX_SIDE });
        }
        Ok(Layout { resized, grid: [rows, columns] })
    }

    /// Sizes are truncated to whole pixels. A side that would vanish keeps one pixel.
    fn shrink(&self, width: usize, height: usize) -> (usize, usize) {
        let whole = (width / self.patch_size) as u128 * (height / self.patch_size) as u128;
        if whole <= self.in_token_limit as u128 {
            return (width, height);
        }
        let scale = (self.in_token_limit as f64 / whole as f64).sqrt();
        let [width, height] = [width, height].map(|pixels| ((pixels as f64 * scale) as usize).max(1));
        (width, height)
    }

    /// Pixels that a side is padded to multiples of.
    fn unit(&self) -> usize {
        self.patch_size * MERGE
    }

    /// No picture has more patches than this.
    ///
    /// Let a x b be the whole patches of p pixels, L the limit, C and R the padded columns and rows. A side of C columns has at
    /// least p(C - 2) + 1 pixels before padding, else it were padded to fewer. Within the limit its pixels are at most
    /// pa + p - 1, with ab <= L. Shrunk by s < 1 they are at most (pa + p - 1)s < px + p - 1 for x = as, and the rows likewise for
    /// y = bs, with xy = L. So in both cases there are x and y with xy <= L and px >= pC - 3p + 2, py >= pR - 3p + 2, hence
    /// (pC - 3p + 2)(pR - 3p + 2) <= p²L, unless one factor is negative, which C = 2 or R = 2 makes it.
    pub fn max_patches(&self) -> usize {
        (MERGE..MAX_SIDE).step_by(MERGE).map(|columns| columns * self.max_rows(columns)).max().unwrap_or(0)
    }

    /// The most rows that `columns` columns leave room for, by the inequality above.
    fn max_rows(&self, columns: usize) -> usize {
        let room = self.in_token_limit as u128 * (self.patch_size as u128).pow(2);
        let needed = |side: usize| (self.patch_size * (side + 1) + 2).saturating_sub(2 * self.unit()) as u128;
        let fits = |rows: &usize| needed(columns) * needed(*rows) <= room;
        (MERGE..MAX_SIDE).step_by(MERGE).take_while(fits).last().unwrap_or(MERGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSTRUCT: SizeRule = SizeRule { patch_size: 14, in_token_limit: 4096 };
    const THINKING_2506: SizeRule = SizeRule { patch_size: 14, in_token_limit: 16384 };

    #[test]
    fn published_token_counts() {
        let table = [
            ((1, 1), 1, 1),
            ((28, 28), 1, 1),
            ((29, 28), 2, 2),
            ((224, 224), 64, 64),
            ((640, 480), 414, 414),
            ((896, 896), 1024, 1024),
            ((897, 897), 1089, 1089),
            ((1024, 768), 1036, 1036),
            ((1280, 720), 1075, 1196),
            ((1792, 1792), 1024, 4096),
            ((1920, 1080), 1032, 2691),
            ((3840, 2160), 1032, 4214),
            ((6674, 152), 1332, 1434),
        ];
        for ((width, height), instruct, thinking) in table {
            let tokens = |rule: SizeRule| rule.layout(width, height).map(|layout| layout.num_tokens());
            assert_eq!(tokens(INSTRUCT), Ok(instruct), "{width}x{height}");
            assert_eq!(tokens(THINKING_2506), Ok(thinking), "{width}x{height}");
        }
    }

    #[test]
    fn elongated_and_empty_pictures_are_errors() {
        for (width, height) in [(14, 8000), (13, 100_000), (8000, 14), (1, usize::MAX), (14, 7141)] {
            let error = INSTRUCT.layout(width, height).unwrap_err();
            assert!(
                matches!(error, ImageError::TooElongated { limit: 512, .. }),
                "{width}x{height}: {error}"
            );
        }
        assert_eq!(INSTRUCT.layout(14, 7140).unwrap().grid, [510, 2]);
        for (width, height) in [(0, 0), (0, 9), (9, 0)] {
            assert_eq!(INSTRUCT.layout(width, height), Err(ImageError::Empty { width, height }));
        }
        assert_eq!(INSTRUCT.layout(usize::MAX, usize::MAX).unwrap().num_tokens(), 1024);
    }

    #[test]
    fn the_bound_is_close_to_what_pictures_reach() {
        // 1332 and 4464 tokens are the most that a random search found under the two published limits.
        assert_eq!(INSTRUCT.max_patches() / 4, 1350);
        assert!((4464..4600).contains(&(THINKING_2506.max_patches() / 4)), "{}", THINKING_2506.max_patches());
    }

    /// Deterministic, and small and large numbers are equally frequent.
    fn random_side(state: &mut u64, bits: u64) -> usize {
        *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let num_bits = 1 + (*state >> 58) % bits;
        1 + ((*state >> 20) as usize & ((1 << num_bits) - 1))
    }

    #[test]
    fn no_picture_is_above_the_bound() {
        let mut state = 7;
        for in_token_limit in [1, 2, 3, 5, 16, 63, 64, 100, 256, 1000, 4096, 16384, 1 << 20] {
            for patch_size in [1, 2, 7, 14, 16] {
                let rule = SizeRule { patch_size, in_token_limit };
                let bound = rule.max_patches();
                let mut num_fitting = 0;
                for _ in 0..2000 {
                    let [width, height] = [17, 17].map(|bits| random_side(&mut state, bits));
                    let Ok(layout) = rule.layout(width, height) else { continue };
                    num_fitting += 1;
                    assert!(layout.num_patches() <= bound, "{width}x{height} under {rule:?}: {layout:?}");
                    assert_eq!(layout.num_tokens() * 4, layout.num_patches());
                    assert!(layout.resized.0 <= layout.grid[1] * patch_size);
                    assert!(layout.resized.1 <= layout.grid[0] * patch_size);
                }
                assert!(num_fitting > 500, "{rule:?} refuses nearly everything");
            }
        }
    }

    #[test]
    fn pictures_at_the_edges_of_patches_stay_below_the_bound() {
        // One pixel more or less than whole patches is where padding adds most.
        let bound = INSTRUCT.max_patches();
        let mut most = 0;
        for columns in 1..700 {
            for rows in [4096 / columns, 4096 / columns + 1, 1, 7, 10, 64, 65] {
                for (width, height) in
                    [(columns * 14 + 13, rows * 14 + 13), (columns * 14 + 1, rows * 14 + 1)]
                {
                    if let Ok(layout) = INSTRUCT.layout(width, height) {
                        most = most.max(layout.num_patches());
                    }
                }
            }
        }
        assert!(most <= bound, "{most}");
        assert!(most >= 1275 * 4, "{most}");
    }
}
