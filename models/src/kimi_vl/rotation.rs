//! MoonViT's rotary embedding in two dimensions: of each head's adjacent pairs, even ones turn with the patch's column and odd
//! ones with its row. (The published docstring says the opposite of its code.)
//!
//! ```text
//! pair            0            1            2            3          …      f_i = 10000^(-4i / head_dim)
//! angle       column·f_0    row·f_0    column·f_1    row·f_1        …
//! ```

use kernels::ops::RopeTable;

const THETA: f64 = 10000.0;
/// As many columns or rows as a picture can have.
const MAX_SIDE: usize = 512;

/// Cosines and sines of every coordinate and frequency.
pub(super) struct Rotation {
    /// `[MAX_SIDE, num_frequencies]` of (cosine, sine)
    turns: Vec<(f32, f32)>,
    num_frequencies: usize,
}

impl Rotation {
    pub fn new(head_dim: usize) -> Self {
        assert_eq!(head_dim % 4, 0, "rotation: two kinds of pairs");
        let num_frequencies = head_dim / 4;
        let turn = |at: usize, i: usize| {
            let angle = at as f64 * THETA.powf(-4.0 * i as f64 / head_dim as f64);
            (angle.cos() as f32, angle.sin() as f32)
        };
        let turns = (0..MAX_SIDE).flat_map(|at| (0..num_frequencies).map(move |i| turn(at, i))).collect();
        Self { turns, num_frequencies }
    }

    /// Writes a row for each patch of a picture, in raster order. The table is `[patches or more, head_dim / 2]`.
    pub fn fill(&self, [rows, columns]: [usize; 2], table: &mut RopeTable) {
        let width = 2 * self.num_frequencies;
        let patches = ..rows * columns * width;
        let cos = table.cos.as_f32_mut()[patches].chunks_exact_mut(width);
        let sin = table.sin.as_f32_mut()[patches].chunks_exact_mut(width);
        for (patch, (cos, sin)) in cos.zip(sin).enumerate() {
            let pairs = self.of(patch % columns).iter().zip(self.of(patch / columns));
            for (i, (&(column_cos, column_sin), &(row_cos, row_sin))) in pairs.enumerate() {
                [cos[2 * i], cos[2 * i + 1]] = [column_cos, row_cos];
                [sin[2 * i], sin[2 * i + 1]] = [column_sin, row_sin];
            }
        }
    }

    fn of(&self, coordinate: usize) -> &[(f32, f32)] {
        &self.turns[coordinate * self.num_frequencies..][..self.num_frequencies]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::Device;

    #[test]
    fn even_pairs_turn_with_the_column_and_odd_ones_with_the_row() {
        let mut table = RopeTable::zeros(&Device::cpu(Some(1)), 8, 6);
        Rotation::new(12).fill([2, 3], &mut table);
        let (cos, sin) = (table.cos.as_f32(), table.sin.as_f32());
        for patch in 0..6 {
            for pair in 0..6 {
                let coordinate = if pair % 2 == 0 { patch % 3 } else { patch / 3 };
                let angle = coordinate as f64 * 10000f64.powf(-((pair / 2) as f64) / 3.0);
                assert_eq!(cos[patch * 6 + pair], angle.cos() as f32, "patch {patch} pair {pair}");
                assert_eq!(sin[patch * 6 + pair], angle.sin() as f32, "patch {patch} pair {pair}");
            }
        }
    }
}
