//! What only moves data, norms among it, and what is drawn of rows of logits.

use super::{on_gpu, random, zeros};
use crate::{Bench, Work};
use kernels::ops::*;
use kernels::*;

/// What only moves data: bytes read and written once.
pub fn rows(bench: &Bench) {
    let (t, d) = (2048, 2048);
    let bytes = |per_element: usize| Work::Bytes((per_element * t * d) as f64);
    let x = random(bench, &[t, d]);
    let (w, mut a, mut b) = (random(bench, &[d]), zeros(bench, &[t, d]), zeros(bench, &[t, d]));
    let sizes = format!("T {t} D {d}");
    if bench.wants("norm") {
        bench.line("rms_norm", &sizes, bytes(8), || rms_norm(&x, &w, 1e-5, &mut a));
        bench.line("add_rms_norm", &sizes, bytes(16), || add_rms_norm(&mut b, &x, &w, 1e-5, &mut a));
        bench.line("layer_norm", &sizes, bytes(8), || layer_norm(&x, &w, &w, 1e-5, &mut a));
        if on_gpu(bench) {
            packed_norms(bench, [t, d]);
        }
    }
    if bench.wants("add") {
        bench.line("add", &sizes, bytes(12), || add(&mut a, &x));
    }
    if bench.wants("silu_mul") {
        let mut half = zeros(bench, &[t, d / 2]);
        bench.line("silu_mul", &sizes, bytes(6), || silu_mul(&x, &mut half));
    }
    let mut ids = Indices::new(&bench.device, t);
    ids.set(&(0..t as u32).map(|i| i * 7 % t as u32).collect::<Vec<_>>());
    if bench.wants("rope") {
        let table = RopeTable::new(&bench.device, t, 32, &|p, i| ((p as f32).cos(), (i as f32).sin()));
        for layout in [RopeLayout::Half, RopeLayout::Interleaved] {
            a.reshape(&[t, 16, 128]);
            let sizes = format!("T {t} H 16 D 128 R 64 {layout:?}");
            bench.line("rope", &sizes, Work::Bytes((8 * t * 16 * 64) as f64), || {
                rope(&mut a, 64, &table, &ids, layout);
            });
            a.reshape(&[t, d]);
        }
    }
    if bench.wants("rows") {
        let table = Tensor::zeros(&bench.device, DType::BF16, &[t, d]);
        bench.line("embedding", &format!("bfloat16 {sizes}"), bytes(6), || embedding(&table, &ids, &mut a));
        bench.line("gather_rows", &sizes, bytes(8), || gather_rows(&x, &ids, &mut a));
        bench.line("scatter_rows", &sizes, bytes(8), || scatter_rows(&x, &ids, &mut a, &ids));
        let mut cache = Tensor::zeros(&bench.device, DType::BF16, &[t, d]);
        bench.line("store_rows", &format!("bfloat16 {sizes}"), bytes(6), || store_rows(&x, &mut cache, &ids));
        let x = random(bench, &[t, 16, 128]);
        a.reshape(&[t, 16, 128]);
        bench.line("copy_slice", &format!("T {t} H 16 64 of 128"), bytes(4), || {
            copy_slice(&x, 0, &mut a, 64, 64)
        });
    }
    if bench.wants("interpolate") {
        let (table, mut out) = (random(bench, &[64, 64, 1152]), zeros(bench, &[48 * 40, 1152]));
        bench.line(
            "interpolate",
            "64 x 64 to 48 x 40, D 1152",
            Work::Flop(40.0 * (48 * 40 * 1152) as f64),
            || {
                interpolate_positions(&table, 48, 40, &mut out);
            },
        );
    }
}

/// With what layers of bf16 take: beside f32, and the layer norm alone.
pub fn packed_norms(bench: &Bench, [t, d]: [usize; 2]) {
    let bytes = |per_element: usize| Work::Bytes((per_element * t * d) as f64);
    let (x, w) = (random(bench, &[t, d]), random(bench, &[d]));
    let [mut stream, mut out] = [0; 2].map(|_| zeros(bench, &[t, d]));
    let next = Matrix::random(&bench.device, DType::BF16, 32, d, 0.02, 2);
    let mut room = TokenRoom::new(&bench.device, &[[t, d]]);
    let norm = NormFor { weight: &w, eps: 1e-5, next: next.stored_as() };
    let sizes = format!("bfloat16 T {t} D {d} packed");
    bench.line("rms_norm", &sizes, bytes(10), || room.rms_norm(&x, norm, &mut out));
    bench.line("add_rms_norm", &sizes, bytes(18), || room.add_rms_norm(&mut stream, &x, norm, &mut out));
    bench.line("layer_norm", &sizes, bytes(6), || {
        room.hold_layer_norm(&x, [&w, &w], 1e-5, &mut out, &next);
    });
}

/// Rows of logits: greedy, drawn, and drawn from the most probable with log-probabilities. The processor samples elsewhere.
pub fn samples(bench: &Bench, vocab: usize, rows: &[usize]) {
    if !bench.wants("sample") || !on_gpu(bench) {
        return;
    }
    let drawn = Draw { temperature: 0.8, seed: 7, position: 3, ..Draw::GREEDY };
    let kinds = [
        ("greedy", Draw::GREEDY, None),
        ("drawn", drawn, None),
        ("top_p 0.9 and 20 logprobs", Draw { top_p: 0.9, ..drawn }, Some(20)),
    ];
    for &t in rows {
        let logits = Tensor::random(&bench.device, &[t, vocab], 3.0, 1);
        let sizes = SampleSizes { max_rows: t, vocab };
        let mut scratch = SampleScratch::new(&bench.device, sizes).expect("pinned memory");
        for (kind, draw, top) in kinds {
            let requests = vec![RowRequest { top, want: Want::Draw(draw) }; t];
            let work = Work::Bytes((4 * t * vocab) as f64);
            bench.line("sample", &format!("T {t} V {vocab} {kind}"), work, || {
                sample(&logits, &requests, &mut scratch);
            });
        }
    }
}
