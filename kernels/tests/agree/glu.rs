//! Experts with biases: against the f64 twin, and the bits of a token alone, on any number of threads.

use crate::biased_experts::BiasedCase;
use crate::common::*;
use kernels::*;

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn experts_with_biases() {
    for (stored_as, sizes) in [
        (WeightType::F32, [1, 5, 3, 2, 1]),
        (WeightType::F32, [9, 67, 33, 5, 2]),
        (WeightType::BF16, [61, 96, 70, 4, 3]),
        (WeightType::Int8, [7, 67, 33, 5, 2]),
    ] {
        let case = BiasedCase { stored_as, sizes };
        for device in devices() {
            let found = case.run(&device, 0..sizes[0]).expect("a result");
            let what = format!("{device:?} {stored_as} {sizes:?}");
            assert_close(&floats(&found), &case.twin(&|rows| rows.clone()), 5e-6, &what);
        }
        for device in devices().iter().chain(&rounding_devices()) {
            let together = case.run(device, 0..sizes[0]).expect("a result");
            let row = sizes[1] * 4;
            for token in [0, sizes[0] - 1] {
                let alone = case.run(device, token..token + 1).expect("a result");
                assert!(alone == together[token * row..(token + 1) * row], "{device:?} {stored_as} {token}");
            }
        }
    }
}
