//! The tower's rotary embedding in two dimensions, in halves of a head: of the pairs the first half turns with the patch's row, the second with its
//! column.
//!
//! ```text
//! pair         0         1      …   q - 1       q          q + 1    …      q = head_dim / 4, f_i = theta^(-i / q)
//! angle     row·f_0   row·f_1   …            column·f_0  column·f_1 …
//! ```

use kernels::ops::RopeTable;

pub(crate) struct Rotation {
    /// Radians for each row or column.
    frequencies: Vec<f32>,
    /// Of the picture at hand: cosine and sine of each coordinate and frequency.
    turns: Vec<(f32, f32)>,
    /// Rows of the table, cosines and sines, on their way to the device.
    rows: [Vec<f32>; 2],
}

impl Rotation {
    pub fn new(head_dim: usize, theta: f64) -> Self {
        assert_eq!(head_dim % 4, 0, "rotation: two halves of pairs");
        let quarter = head_dim / 4;
        let frequency = |i: usize| 1.0 / (theta as f32).powf(i as f32 / quarter as f32);
        let frequencies = (0..quarter).map(frequency).collect();
        Self { frequencies, turns: Vec::new(), rows: Default::default() }
    }

    /// Writes a row for each patch, of which `places` are row and column. The table is `[patches or more, head_dim / 2]`.
    pub fn fill(&mut self, places: &[[u32; 2]], table: &mut RopeTable) {
        let Self { frequencies, turns, rows: [cos, sin] } = self;
        let side = places.iter().flatten().max().map_or(0, |last| last + 1);
        turns.clear();
        turns.extend((0..side).flat_map(|at| {
            frequencies.iter().map(move |f| {
                let angle = f64::from(at as f32 * f);
                (angle.cos() as f32, angle.sin() as f32)
            })
        }));
        cos.clear();
        sin.clear();
        let quarter = frequencies.len();
        for coordinate in places.iter().flatten() {
            let of_coordinate = &turns[*coordinate as usize * quarter..][..quarter];
            cos.extend(of_coordinate.iter().map(|turn| turn.0));
            sin.extend(of_coordinate.iter().map(|turn| turn.1));
        }
        table.cos.write_f32(0, cos);
        table.sin.write_f32(0, sin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::Device;

    #[test]
    fn the_first_half_turns_with_the_row_and_the_second_with_the_column() {
        let mut table = RopeTable::zeros(&Device::cpu(Some(1)), 4, 6);
        let places = [[0, 5], [3, 1], [7, 7]];
        Rotation::new(12, 10000.0).fill(&places, &mut table);
        let (cos, sin) = (table.cos.to_f32_vec(), table.sin.to_f32_vec());
        for (patch, place) in places.iter().enumerate() {
            for pair in 0..6 {
                let angle = f64::from(place[pair / 3]) * 10000f64.powf(-((pair % 3) as f64) / 3.0);
                assert!((f64::from(cos[patch * 6 + pair]) - angle.cos()).abs() < 1e-6, "{patch} {pair}");
                assert!((f64::from(sin[patch * 6 + pair]) - angle.sin()).abs() < 1e-6, "{patch} {pair}");
            }
        }
    }
}
