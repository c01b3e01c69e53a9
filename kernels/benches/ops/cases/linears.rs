//! Linear layers.

use super::{known, on_gpu, random, with_wgmma, zeros};
use crate::{Bench, Work};
use kernels::ops::*;
use kernels::*;

pub fn linears(bench: &Bench) {
    if !bench.wants("linear") {
        return;
    }
    // The one that is read from memory, not from a cache, is larger than the caches of the machine.
    for (t, n, k) in [(1, 65536, 2048), (1, 16384, 8192), (4, 65536, 2048), (8, 65536, 2048)] {
        for dtype in known(bench, &WeightType::ALL) {
            let w = Matrix::random(&bench.device, dtype, n, k, 0.02, 2);
            let (x, mut out) = (random(bench, &[t, k]), zeros(bench, &[t, n]));
            let sizes = format!("{} T {t} N {n} K {k}", dtype.name());
            bench.line("linear", &sizes, Work::Bytes(w.bytes() as f64), || {
                linear(&x, &w, None, Activation::None, &mut out);
            });
        }
    }
    for (t, n, k) in
        [(64, 2816, 2048), (256, 2048, 2048), (512, 2816, 2048), (512, 2048, 1408), (1024, 3456, 1152)]
    {
        for dtype in known(
            bench,
            &[
                WeightType::BF16,
                WeightType::CompactBf16,
                WeightType::F32,
                WeightType::Int8,
                WeightType::Int4,
                WeightType::Int4Zero,
            ],
        ) {
            let w = Matrix::random(&bench.device, dtype, n, k, 0.02, 2);
            let (x, mut out) = (random(bench, &[t, k]), zeros(bench, &[t, n]));
            let sizes = format!("{} T {t} N {n} K {k}", dtype.name());
            let work = || Work::Flop(2.0 * (t * n * k) as f64);
            bench.line("linear", &sizes, work(), || linear(&x, &w, None, Activation::None, &mut out));
            if on_gpu(bench) {
                // As layers run: rounded once, by a pass that the first line has and the second has not.
                let mut room = TokenRoom::new(&bench.device, &[[t, k]]);
                bench.line("linear", &format!("{sizes} rounded before"), work(), || {
                    room.hold(&x).linear(&w, None, Activation::None, &mut out);
                });
                let mut tokens = room.hold(&x);
                bench.line("linear", &format!("{sizes} rounded"), work(), || {
                    tokens.linear(&w, None, Activation::None, &mut out);
                });
            }
        }
    }
    if on_gpu(bench) {
        prompts(bench);
    }
    let w = Matrix::random(&bench.device, DType::BF16, 4304, 1152, 0.02, 2);
    let (x, mut out) = (random(bench, &[1024, 1152]), zeros(bench, &[1024, 4304]));
    for act in [Activation::GeluTanh, Activation::GeluErf] {
        let sizes = format!("bfloat16 T 1024 N 4304 K 1152 {act:?}");
        bench.line("linear", &sizes, Work::Flop(2.0 * 1024.0 * 4304.0 * 1152.0), || {
            linear(&x, &w, None, act, &mut out);
        });
    }
}

/// Layers of prompts that fill a GPU, by mma.sync and by wgmma, of tokens that were rounded before.
fn prompts(bench: &Bench) {
    for (t, n, k) in [(512, 2816, 2048), (4096, 3072, 2048), (4096, 2048, 2048), (4096, 2048, 11_264)] {
        let w = Matrix::random(&bench.device, DType::BF16, n, k, 0.02, 2);
        let (x, mut out) = (random(bench, &[t, k]), zeros(bench, &[t, n]));
        let mut room = TokenRoom::new(&bench.device, &[[t, k]]);
        let mut tokens = room.hold(&x);
        let sizes = format!("bfloat16 T {t} N {n} K {k} rounded");
        let work = || Work::Flop(2.0 * (t * n * k) as f64);
        // The first call rounds.
        tokens.linear(&w, None, Activation::None, &mut out);
        bench.line("linear", &sizes, work(), || tokens.linear(&w, None, Activation::None, &mut out));
        with_wgmma(bench, || {
            bench.line("linear", &format!("{sizes} wgmma"), work(), || {
                tokens.linear(&w, None, Activation::None, &mut out);
            });
        });
    }
}

pub fn heads(bench: &Bench) {
    if !bench.wants("heads_linear") {
        return;
    }
    let w = MatrixBatch::random(&bench.device, DType::BF16, [16, 512, 128], 0.02, 2);
    for t in [1, 256] {
        let (x, mut out) = (random(bench, &[t, 16, 128]), zeros(bench, &[t, 16, 512]));
        let work = if t == 1 {
            Work::Bytes(w.bytes() as f64)
        } else {
            Work::Flop(2.0 * (t * 16 * 512 * 128) as f64)
        };
        bench.line("heads_linear", &format!("bfloat16 T {t} H 16 N 512 K 128"), work, || {
            heads_linear(&x, &w, &mut out);
        });
    }
}
