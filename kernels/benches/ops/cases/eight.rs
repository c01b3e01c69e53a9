//! A decode step of eight sequences, op by op, over the layers of a small mixture of experts (that of tools/compare: hidden 1,024, 32 experts of
//! 512 of which 4 are chosen, latents of 512 + 64): what follows the other is another layer's, so that weights and keys come from memory.

use super::attention::Sequences;
use super::{random, zeros};
use crate::{Bench, Work};
use kernels::ops::*;
use kernels::*;

const LAYERS: usize = 7;
const SEQUENCES: usize = 8;
const HIDDEN: usize = 1024;
const HEADS: usize = 16;
const RANK: usize = 512;
const ROW: usize = RANK + 64;

pub fn all(bench: &Bench) {
    if !matches!(bench.device, Device::Cpu(_)) {
        return;
    }
    for stored_as in [WeightType::BF16, WeightType::CompactBf16, WeightType::Int8, WeightType::Int4] {
        if bench.wants(&format!("eight {}", stored_as.name())) {
            experts(bench, stored_as);
            queries(bench, stored_as);
        }
    }
    if bench.wants("eight latents") {
        attention(bench);
    }
}

fn experts(bench: &Bench, stored_as: WeightType) {
    let sizes @ [e, h, i] = [32, HIDDEN, 512];
    let (t, k) = (SEQUENCES, 4);
    struct Layer {
        experts: Experts,
        gate_up: Matrix,
        down: Matrix,
        ids: Tensor,
    }
    let mut bytes = 0.0;
    let layers: Vec<Layer> = (0..LAYERS)
        .map(|layer| {
            let seed = 3 * layer as u64;
            let experts = Experts::random(&bench.device, stored_as, sizes, 0.02, seed);
            let gate_up = Matrix::random(&bench.device, stored_as, 2 * i, h, 0.02, seed + 1);
            let down = Matrix::random(&bench.device, stored_as, h, i, 0.02, seed + 2);
            // Four of a token differ; 20 to 22 of the 32 are chosen.
            let mut state = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(layer as u64 + 1);
            let mut chosen = Vec::new();
            for token in 0..t {
                while chosen.len() < (token + 1) * k {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let expert = (state >> 33) as i32 % e as i32;
                    if !chosen[token * k..].contains(&expert) {
                        chosen.push(expert);
                    }
                }
            }
            let mut ids = Tensor::zeros(&bench.device, DType::I32, &[t, k]);
            ids.write_i32(0, &chosen);
            chosen.sort_unstable();
            chosen.dedup();
            bytes += experts.bytes() as f64 * chosen.len() as f64 / e as f64;
            bytes += (gate_up.bytes() + down.bytes()) as f64;
            Layer { experts, gate_up, down, ids }
        })
        .collect();
    let [x, weights] = [h, k].map(|width| random(bench, &[t, width]));
    let mut scratch = MoeScratch::new(&bench.device, t, sizes, k);
    let [mut both, mut inner, mut of_shared, mut out] =
        [2 * i, i, h, h].map(|width| zeros(bench, &[t, width]));
    let mut tokens = TokenRoom::new(&bench.device, &[[t, h]]);
    let line = format!("experts, {stored_as}, {LAYERS} layers");
    bench.line("eight", &line, Work::Bytes(bytes), || {
        for Layer { experts, gate_up, down, ids } in &layers {
            let (both, inner, tokens, of_shared) = (&mut both, &mut inner, &mut tokens, &mut of_shared);
            let shared =
                Some((SharedExpert { gate_up, down, both, inner, out: of_shared, gate: None }, tokens));
            moe_and_shared(&x, experts, [ids, &weights], &mut scratch, shared, &mut out);
        }
    });
}

fn queries(bench: &Bench, stored_as: WeightType) {
    let (t, query) = (SEQUENCES, HEADS * 192);
    let random_matrix = |n, k, seed| Matrix::random(&bench.device, stored_as, n, k, 0.02, seed as u64);
    let layers: Vec<[Matrix; 2]> =
        (0..LAYERS).map(|layer| [query, ROW].map(|n| random_matrix(n, HIDDEN, 2 * layer))).collect();
    let bytes = |matrices: &[Matrix]| matrices.iter().map(|matrix| matrix.bytes() as f64).sum::<f64>();
    let x = random(bench, &[t, HIDDEN]);
    let [mut q, mut kv] = [query, ROW].map(|width| zeros(bench, &[t, width]));
    let work = Work::Bytes(layers.iter().map(|layer| bytes(layer)).sum());
    bench.line("eight", &format!("queries and latents, {stored_as}, {LAYERS} layers"), work, || {
        for [first, second] in &layers {
            let first = LinearPart { weight: first, bias: None, out: &mut q };
            linear_pair(&x, [first, LinearPart { weight: second, bias: None, out: &mut kv }]);
        }
    });
    // What is done with heads.
    let heads: Vec<MatrixBatch> = (0..LAYERS)
        .map(|layer| MatrixBatch::random(&bench.device, stored_as, [HEADS, RANK, 128], 0.02, layer as u64))
        .collect();
    let (x, mut out) = (random(bench, &[t, HEADS, 192]), zeros(bench, &[t, HEADS, ROW]));
    let work = Work::Bytes(heads.iter().map(|heads| heads.bytes() as f64).sum());
    bench.line("eight", &format!("absorbed queries, {stored_as}, {LAYERS} layers"), work, || {
        for heads in &heads {
            let x = HeadSlice { tensor: &x, rows: 0..t, offset: 0, len: 128 };
            heads_linear(x, heads, HeadSliceMut { tensor: &mut out, rows: 0..t, offset: 0, len: RANK });
        }
    });
}

fn attention(bench: &Bench) {
    for context in [127, 191] {
        let sequences = Sequences::several(SEQUENCES, 1, context);
        let caches: Vec<Tensor> = (0..LAYERS)
            .map(|layer| {
                let shape = [sequences.slots(), ROW];
                Tensor::random_as(&bench.device, DType::BF16, &shape, 1.0, layer as u64)
            })
            .collect();
        let (q, mut out) = (random(bench, &[SEQUENCES, HEADS, ROW]), zeros(bench, &[SEQUENCES, HEADS, RANK]));
        let sizes = AttentionSizes {
            heads: HEADS,
            kv_heads: 1,
            key_dim: ROW,
            value_dim: RANK,
            max_context: 16384,
            max_tokens: SEQUENCES,
        };
        let mut scratch = AttentionScratch::new(&bench.device, sizes);
        let work = 2.0 * sequences.pairs() * (LAYERS * HEADS * (ROW + RANK)) as f64;
        bench.line("eight", &format!("latents after {context}, {LAYERS} layers"), Work::Flop(work), || {
            for cache in &caches {
                mla_attention(&q, cache, RANK, &sequences.ragged(), 0.07, &mut scratch, &mut out);
            }
        });
    }
}
