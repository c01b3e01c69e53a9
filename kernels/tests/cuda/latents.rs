//! What latent attention reads, made ready by one kernel: the bits of the ops that it replaces, in any company.

use crate::common::*;
use crate::device::{SEEDS, emulated};
use crate::latent_rows::{SIZES, Sizes};
use crate::mutants::{Run, assert_noticed};
use kernels::ops::*;
use kernels::*;

fn launches(device: &Device) -> u64 {
    let Device::Cuda(cuda) = device else { panic!("not a GPU") };
    cuda.num_launches()
}

#[test]
fn one_launch_has_the_bits_of_its_parts() {
    for dtype in FLOATS {
        let stored_as = KvType::Float(dtype);
        for sizes in SIZES {
            let device = emulated(SEEDS[0]);
            let expected = sizes.in_parts(&device, stored_as).expect("rows");
            let before = launches(&device);
            let found = sizes.together(&device, stored_as, 0..7).expect("rows");
            assert!(found == expected, "{dtype} {sizes:?}");
            assert_eq!(launches(&device) - before, 1);
        }
    }
}

#[test]
fn rows_have_the_same_bits_alone() {
    let Sizes { heads, nope, rank, rotated, .. } = SIZES[0];
    let together = SIZES[0].together(&emulated(SEEDS[0]), KvType::Float(DType::BF16), 0..7).expect("rows");
    let (q_bytes, absorbed_bytes) = (heads * (nope + rotated) * 4, heads * (rank + rotated) * 4);
    for token in [0, 2, 6] {
        let device = emulated(SEEDS[1]);
        let alone = SIZES[0].together(&device, KvType::Float(DType::BF16), token..token + 1).expect("rows");
        assert_eq!(alone[..q_bytes], together[token * q_bytes..][..q_bytes], "token {token}");
        let of_all = &together[7 * q_bytes + token * absorbed_bytes..][..absorbed_bytes];
        assert_eq!(alone[q_bytes..][..absorbed_bytes], *of_all, "token {token}");
    }
}

#[test]
fn bugs_are_noticed() {
    let half = |device: &Device| SIZES[0].together(device, KvType::Float(DType::BF16), 0..7);
    let wide = |device: &Device| SIZES[1].together(device, KvType::Float(DType::F16), 0..7);
    let cases: [(&'static str, &'static str, Run); 9] = [
        ("if (slot < 0) return;", "if (slot < -1) return;", &half),
        ("cache + (long long)slot * row_len;", "cache + (long long)slot * s.rank;", &half),
        ("q + (head * query_len + s.nope)", "q + (head * query_len + s.nope - 1)", &half),
        ("absorbed + (head * row_len + s.rank)", "absorbed + (head * row_len)", &half),
        ("token * s.heads + i / s.half;", "token * s.heads + i % s.heads;", &half),
        ("i < s.heads * s.half; i += THREADS", "i + 1 < s.heads * s.half; i += THREADS", &half),
        ("pair < s.half; pair += THREADS", "pair <= s.half; pair += THREADS", &wide),
        (
            "out[s.rank + p.second] = Float<C>::from(v.y);",
            "out[s.rank + p.second] = Float<C>::from(v.x);",
            &wide,
        ),
        ("/ (float)s.rank;", "/ (float)row_len;", &wide),
    ];
    assert_noticed(&cases);
}
