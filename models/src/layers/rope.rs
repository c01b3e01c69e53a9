//! Cosines and sines of every position. Frequencies are computed in f32 and in the published order, since at position 100,000 an
//! error in the last digit of a frequency is an error in the third digit of an angle.

use crate::config::{RopeConfig, RopeScaling, Yarn};
use kernels::Device;
use kernels::ops::RopeTable;
use std::f64::consts::PI;

/// `[num_positions, dim / 2]` cosines and sines.
pub fn table(device: &Device, config: &RopeConfig, num_positions: usize) -> RopeTable {
    let (frequencies, factor) = frequencies(config);
    RopeTable::new(device, num_positions, frequencies.len(), &|position, i| {
        let angle = f64::from(position as f32 * frequencies[i]);
        (angle.cos() as f32 * factor, angle.sin() as f32 * factor)
    })
}

/// Radians for each position, pair by pair, and the factor on cosines and sines.
fn frequencies(config: &RopeConfig) -> (Vec<f32>, f32) {
    let dim = config.dim;
    let plain: Vec<f32> =
        (0..dim / 2).map(|i| 1.0 / (config.theta as f32).powf((2 * i) as f32 / dim as f32)).collect();
    match &config.scaling {
        RopeScaling::None => (plain, 1.0),
        RopeScaling::Linear { factor } => (plain.iter().map(|f| f / *factor as f32).collect(), 1.0),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
            let scaled = plain.iter().map(|&f| {
                let turns = original_max_position * f64::from(f) / (2.0 * PI);
                let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                let f = f64::from(f);
                // Long waves are stretched by the factor, short ones kept, those between mixed.
                let kept = smooth.clamp(0.0, 1.0);
                ((1.0 - kept) * f / factor + kept * f) as f32
            });
            (scaled.collect(), 1.0)
        }
        RopeScaling::Yarn(yarn) => (yarn_frequencies(&plain, config, yarn), yarn.attention_factor as f32),
    }
}

fn yarn_frequencies(plain: &[f32], config: &RopeConfig, yarn: &Yarn) -> Vec<f32> {
    let dim = config.dim as f64;
    // The dimension that turns this often within the original length.
    let border =
        |turns: f64| dim * (yarn.original_max_position / (turns * 2.0 * PI)).ln() / (2.0 * config.theta.ln());
    let (mut low, mut high) = (border(yarn.beta_fast), border(yarn.beta_slow));
    if yarn.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dim - 1.0));
    if low == high {
        high += 0.001;
    }
    let ramp = |i: usize| (((i as f64 - low) / (high - low)) as f32).clamp(0.0, 1.0);
    let mix = |(i, &f): (usize, &f32)| {
        let stretched = ramp(i);
        f / yarn.factor as f32 * stretched + f * (1.0 - stretched)
    };
    plain.iter().enumerate().map(mix).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::ops::RopeLayout;

    fn config(scaling: RopeScaling) -> RopeConfig {
        RopeConfig { theta: 10_000.0, dim: 8, layout: RopeLayout::Half, sections: None, scaling }
    }

    fn close(found: &[f32], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) / expected - 1.0).abs() < 1e-6, "{found} is not {expected}");
        }
    }

    #[test]
    fn plain_and_linear() {
        close(&frequencies(&config(RopeScaling::None)).0, &[1.0, 0.1, 0.01, 0.001]);
        let linear = RopeScaling::Linear { factor: 4.0 };
        close(&frequencies(&config(linear)).0, &[0.25, 0.025, 0.0025, 0.00025]);
    }

    #[test]
    fn llama3_keeps_short_waves_and_stretches_long_ones() {
        // Turns within 128 positions: 20.4, 2.04, 0.204, 0.0204. Between 1 and 4 the mix is (2.04 - 1) / 3.
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position: 128.0,
        };
        let kept = (128.0 * 0.1 / (2.0 * PI) - 1.0) / 3.0;
        let mixed = (1.0 - kept) * 0.1 / 8.0 + kept * 0.1;
        close(&frequencies(&config(scaling)).0, &[1.0, mixed, 0.01 / 8.0, 0.001 / 8.0]);
    }

    #[test]
    fn yarn_ramps_between_its_borders() {
        // Borders: 8 ln(4096 / 64π) / (2 ln 10000) = 1.31 → 1 and 8 ln(4096 / 2π) / (2 ln 10000) = 2.81 → 3.
        let yarn = Yarn {
            factor: 40.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_max_position: 4096.0,
            truncate: true,
            attention_factor: 1.25,
        };
        let (found, factor) = frequencies(&config(RopeScaling::Yarn(yarn)));
        close(&found, &[1.0, 0.1, 0.01 * (0.5 / 40.0 + 0.5), 0.001 / 40.0]);
        assert_eq!(factor, 1.25);
    }
}
