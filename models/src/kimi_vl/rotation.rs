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
    /// Rows of the picture at hand, cosines and sines, on their way to the device.
    rows: [Vec<f32>; 2],
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
        Self { turns, num_frequencies, rows: Default::default() }
    }

    /// Writes a row for each patch of a picture, in raster order. The table is `[patches or more, head_dim / 2]`.
    pub fn fill(&mut self, [rows, columns]: [usize; 2], table: &mut RopeTable) {
        let [mut cos, mut sin] = std::mem::take(&mut self.rows);
        cos.clear();
        sin.clear();
        for patch in 0..rows * columns {
            let pairs = self.of(patch % columns).iter().zip(self.of(patch / columns));
            for (&(column_cos, column_sin), &(row_cos, row_sin)) in pairs {
                cos.extend([column_cos, row_cos]);
                sin.extend([column_sin, row_sin]);
            }
        }
        table.cos.write_f32(0, &cos);
        table.sin.write_f32(0, &sin);
        self.rows = [cos, sin];
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
        let (cos, sin) = (table.cos.to_f32_vec(), table.sin.to_f32_vec());
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
