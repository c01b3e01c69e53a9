//! Philox 4x32-10: random numbers as a function of a key and a counter, so that what is drawn for a position does not depend
//! on what was drawn before, on the batch or on a restart.

const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
const KEY_STEPS: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
const ROUNDS: usize = 10;

pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let [a, b] = [(0, 0), (1, 2)].map(|(i, word)| u64::from(MULTIPLIERS[i]) * u64::from(counter[word]));
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
    }
    counter
}

/// In [0, 1), 53 bits, for the token at `position` of a sequence with this seed.
pub fn uniform(seed: u64, position: u64) -> f64 {
    let words = philox([position as u32, (position >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let bits = (u64::from(words[0]) << 32 | u64::from(words[1])) >> 11;
    bits as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors published with the algorithm: zeros, ones, and digits of pi.
    #[test]
    fn known_answers() {
        let check = |counter, key, expected| assert_eq!(philox(counter, key), expected);
        check([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        check([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        check(
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        );
    }

    #[test]
    fn uniform_uses_seed_and_position() {
        let x = uniform(1, 2);
        assert!((0.0..1.0).contains(&x));
        assert_eq!(x, uniform(1, 2));
        assert_ne!(x, uniform(2, 2));
        assert_ne!(x, uniform(1, 3));
        assert_ne!(x, uniform(1 << 32, 2));
        assert_ne!(x, uniform(1, 2 | 1 << 32));
    }
}
