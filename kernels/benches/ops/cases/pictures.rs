//! What a block of MoonViT does beside its first layers: attention inside a picture, and layers that add to the stream.

use super::{on_gpu, random, with_wgmma, zeros};
use crate::{Bench, Work};
use kernels::ops::*;
use kernels::*;

pub fn pictures(bench: &Bench) {
    let (h, d) = (16, 72);
    if bench.wants("packed_attention") {
        for t in [256, 1024, 4096] {
            let (qkv, mut out) = (random(bench, &[t, 3, h, d]), zeros(bench, &[t, h, d]));
            for multiply_as in [DType::F32, DType::BF16] {
                let mut scratch = AttentionScratch::new(&bench.device, sizes([t, h, d]));
                scratch = scratch.multiplying_as(multiply_as);
                let line = format!("{multiply_as} T {t} H {h} D {d}");
                bench.line("packed_attention", &line, flop([t, h, d]), || {
                    packed_attention(&qkv, &[0, t as u32], 0.12, &mut scratch, &mut out);
                });
            }
        }
    }
    if bench.wants("turned_attention") {
        for t in [256, 1024].into_iter().chain(on_gpu(bench).then_some(4096)) {
            turned_line(bench, [t, h, d]);
        }
    }
    if bench.wants("add_linear") && on_gpu(bench) {
        for (n, k) in [(1152, 1152), (1152, 4304)] {
            add_line(bench, [4096, n, k]);
        }
    }
}

/// Tokens, heads and their width.
fn sizes([t, h, d]: [usize; 3]) -> AttentionSizes {
    AttentionSizes { heads: h, kv_heads: h, key_dim: d, value_dim: d, max_context: 0, max_tokens: t }
}

fn flop([t, h, d]: [usize; 3]) -> Work {
    Work::Flop(4.0 * (t * t * h * d) as f64)
}

/// With queries and keys that turn before, as it is, and on a GPU packed for the layer after it.
pub fn turned_line(bench: &Bench, [t, h, d]: [usize; 3]) {
    let device = &bench.device;
    let (mut qkv, mut out) = (random(bench, &[t, 3, h, d]), zeros(bench, &[t, h, d]));
    let mut scratch = AttentionScratch::new(device, sizes([t, h, d])).multiplying_as(DType::BF16);
    let angle = |p: usize, i: usize| ((p as f32 + i as f32).cos(), (p as f32 + i as f32).sin());
    let table = &RopeTable::new(device, t, d / 2, &angle);
    let mut places = Indices::new(device, t);
    places.set(&(0..t as u32).collect::<Vec<_>>());
    let cu_seqlens = [0, t as u32];
    let line = format!("bfloat16 T {t} H {h} D {d}");
    let rotation = Rotation { table, positions: (&places).into(), layout: RopeLayout::Interleaved };
    bench.line("turned_attention", &line, flop([t, h, d]), || {
        let heads = TurnedHeads { qkv: &mut qkv, rotation, cu_seqlens: (&cu_seqlens).into(), scale: 0.12 };
        turned_attention(heads, &mut scratch, &mut out);
    });
    if on_gpu(bench) {
        let next = Matrix::random(device, DType::BF16, 32, h * d, 0.02, 2);
        let mut room = TokenRoom::new(device, &[[t, h * d]]);
        bench.line("turned_attention", &format!("{line} packed"), flop([t, h, d]), || {
            let heads =
                TurnedHeads { qkv: &mut qkv, rotation, cu_seqlens: (&cu_seqlens).into(), scale: 0.12 };
            room.hold_attention(heads, &mut scratch, &mut out, &next);
        });
    }
}

/// A layer that adds to a stream, of tokens that were rounded before, and the two ops that it stands for.
pub fn add_line(bench: &Bench, [t, n, k]: [usize; 3]) {
    let w = Matrix::random(&bench.device, DType::BF16, n, k, 0.02, 2);
    let (x, bias) = (random(bench, &[t, k]), random(bench, &[n]));
    let [mut stream, mut made] = [0; 2].map(|_| zeros(bench, &[t, n]));
    let mut room = TokenRoom::new(&bench.device, &[[t, k]]);
    let mut tokens = room.hold(&x);
    // The first call rounds.
    tokens.linear(&w, Some(&bias), Activation::None, &mut made);
    let line = format!("bfloat16 T {t} N {n} K {k} rounded");
    let mut lines = |which: &str| {
        let work = || Work::Flop(2.0 * (t * n * k) as f64);
        bench.line("add_linear", &format!("{line}{which}"), work(), || {
            tokens.add_linear(&w, Some(&bias), &mut stream, &mut made);
        });
        bench.line("add_linear", &format!("{line}{which} as two"), work(), || {
            tokens.linear(&w, Some(&bias), Activation::None, &mut made);
            add(&mut stream, &made);
        });
    };
    lines("");
    with_wgmma(bench, || lines(" wgmma"));
}
