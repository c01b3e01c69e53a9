//! Screened products against whole ones: the largest of every row to the bit, whatever the weights and the other rows are.

use crate::common::*;
use kernels::ops::*;
use kernels::*;

/// What weights and activations are like.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Like {
    /// In ±1.
    Usual,
    /// Rows that differ from one of a few by less than the coarse copy sees; many are equal.
    NearlyEqual,
    /// Every seventh row 10,000 times as large.
    RowsApart,
    /// Some of x a thousand times as large.
    Outliers,
    Zeros,
    /// Smaller than any product keeps.
    Tiny,
    /// So large that numbers are near the end of f32.
    Huge,
    NanInX,
    InfInX,
    NanInW,
}

const ALL: [Like; 10] = [
    Like::Usual,
    Like::NearlyEqual,
    Like::RowsApart,
    Like::Outliers,
    Like::Zeros,
    Like::Tiny,
    Like::Huge,
    Like::NanInX,
    Like::InfInX,
    Like::NanInW,
];

impl Like {
    fn weights(self, [n, k]: [usize; 2], seed: u64) -> Vec<f32> {
        let usual = values(seed, n * k);
        let nudge = values(seed + 1, n * k);
        let of = |i: usize| {
            let (row, column) = (i / k, i % k);
            match self {
                Self::NearlyEqual => {
                    usual[row % 3 * k + column] * (1.0 + 1e-3 * nudge[row / 9 % 4 * k + column])
                }
                Self::RowsApart if row % 7 == 3 => 1e4 * usual[i],
                Self::Zeros if row % 3 > 0 => 0.0,
                Self::Tiny => 1e-30 * usual[i],
                Self::Huge => 3e4 * usual[i],
                Self::NanInW if row == n / 2 && column == 5 => f32::NAN,
                _ => usual[i],
            }
        };
        (0..n * k).map(of).collect()
    }

    fn x(self, [r, k]: [usize; 2], seed: u64) -> Vec<f32> {
        let usual = values(seed, r * k);
        let of = |i: usize| match self {
            Self::Outliers if i % 29 == 3 => 1e3 * usual[i],
            Self::Zeros if (i / k).is_multiple_of(2) => 0.0,
            Self::Tiny => 1e-12 * usual[i],
            Self::Huge => 1e30 * usual[i],
            Self::NanInX if i == 7 => f32::NAN,
            Self::InfInX if i == 7 => f32::INFINITY,
            _ => usual[i],
        };
        (0..r * k).map(of).collect()
    }
}

/// The `top`-th largest.
fn threshold(row: &[f32], top: usize) -> f32 {
    let mut sorted = row.to_vec();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    sorted[top - 1]
}

/// Every number from the `top`-th largest up is in its place, and all others are below it.
fn check_row(found: &[f32], expected: &[f32], top: usize, what: &str) {
    if expected.iter().any(|v| !v.is_finite()) {
        return assert_eq!(bits(found), bits(expected), "{what}: all of a row that is not finite");
    }
    let least = threshold(expected, top);
    for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
        match *expected >= least {
            true => assert_eq!(found.to_bits(), expected.to_bits(), "{what}: place {place}"),
            false => assert!(*found < least, "{what}: place {place} is {found}, and {least} is the top"),
        }
    }
}

#[test]
fn the_largest_are_those_of_the_whole_product() {
    let [mut panels, mut whole, mut untried] = [0; 3];
    for (d, device) in devices().into_iter().chain(rounding_devices()).enumerate() {
        for stored_as in [WeightType::F32, WeightType::BF16, WeightType::CompactBf16, WeightType::F16] {
            for (i, like) in ALL.into_iter().enumerate().filter(|(i, _)| (i + d).is_multiple_of(2)) {
                let (n, k) = [(1000, 64), (1111, 91), (640, 130)][(d + i) % 3];
                let rows = 1 + (d * 5 + i) % Screen::MAX_ROWS;
                let host = Host::new(DType::F32, &[n, k], &like.weights([n, k], i as u64));
                let exact = Matrix::pack(&device, stored_as, &[host.view()]);
                let before = device.allocated_bytes();
                let screen = Screen::of(&exact);
                assert_eq!(
                    device.allocated_bytes() - before,
                    Screen::packed_bytes(n, k) + Screen::room_bytes(n)
                );
                let x = Tensor::from_f32(&device, &[rows, k], &like.x([rows, k], 50 + i as u64));
                let tops: Vec<usize> = (0..rows).map(|row| [1, 1, 3, 8, 1][(row + i) % 5]).collect();
                let [mut expected, mut found] =
                    [0, 1].map(|_| Tensor::zeros(&device, DType::F32, &[rows, n]));
                linear(&x, &exact, None, Activation::None, &mut expected);
                let what = format!("{device:?} {stored_as} {like:?}");
                let screened = screened_linear(&x, &exact, &screen, &tops, &mut found);
                for (row, &top) in tops.iter().enumerate() {
                    let of = |out: &Tensor| out.as_f32()[row * n..(row + 1) * n].to_vec();
                    check_row(&of(&found), &of(&expected), top, &format!("{what} row {row} {screened:?}"));
                }
                match screened {
                    Screened::Panels { computed, of } => {
                        assert!(computed > 0 && 4 * computed <= of && of == n.div_ceil(32), "{what}");
                        panels += 1;
                    }
                    Screened::Whole => whole += 1,
                    Screened::Untried => {
                        let has_bounds = [Like::Usual, Like::NearlyEqual, Like::RowsApart].contains(&like);
                        // Eight are too many of 20 panels.
                        assert!(!has_bounds || n == 640, "{what}");
                        untried += 1;
                    }
                }
            }
        }
    }
    // How many cases there are is the number of the processor's instruction sets.
    let cases = panels + whole + untried;
    assert!(10 * panels > cases && whole > 0 && untried > 0, "{panels} {whole} {untried}");
}

#[test]
fn a_row_does_not_hang_on_the_others() {
    for device in [device(Isa::best(), 3)].into_iter().chain(rounding_devices()) {
        let (n, k, rows) = (2000, 96, Screen::MAX_ROWS);
        let host = Host::random(DType::F32, &[n, k], 5);
        let exact = Matrix::pack(&device, DType::BF16, &[host.view()]);
        let screen = Screen::of(&exact);
        let values = values(6, rows * k);
        let run = |rows: std::ops::Range<usize>, top: usize| {
            let x = Tensor::from_f32(&device, &[rows.len(), k], &values[rows.start * k..rows.end * k]);
            let mut out = Tensor::zeros(&device, DType::F32, &[rows.len(), n]);
            screened_linear(&x, &exact, &screen, &vec![top; rows.len()], &mut out);
            out.as_f32().to_vec()
        };
        for top in [1, 5] {
            let together = run(0..rows, top);
            for row in 0..rows {
                let (alone, together) = (run(row..row + 1, top), &together[row * n..(row + 1) * n]);
                let least = threshold(together, top);
                assert_eq!(least.to_bits(), threshold(&alone, top).to_bits());
                for (a, b) in alone.iter().zip(together) {
                    assert_eq!(*a >= least, *b >= least);
                    assert!(*a < least || a.to_bits() == b.to_bits());
                }
            }
        }
    }
}

#[test]
fn what_is_not_screened_is_whole() {
    let device = device(Isa::best(), 2);
    let (n, k) = (320, 40);
    let exact = Matrix::pack(&device, DType::F16, &[Host::random(DType::F32, &[n, k], 1).view()]);
    let screen = Screen::of(&exact);
    for (rows, top) in [(0, 1), (Screen::MAX_ROWS + 1, 1), (1, 0), (1, 3), (2, 400)] {
        let x = Tensor::from_f32(&device, &[rows, k], &values(2, rows * k));
        let [mut expected, mut found] = [0, 1].map(|_| Tensor::zeros(&device, DType::F32, &[rows, n]));
        linear(&x, &exact, None, Activation::None, &mut expected);
        let screened = screened_linear(&x, &exact, &screen, &vec![top; rows], &mut found);
        assert_eq!(screened, Screened::Untried);
        assert_eq!(bits(found.as_f32()), bits(expected.as_f32()), "{rows} rows, the {top} largest");
    }
}
