//! Experts at sizes that divide nothing, with every kernel that the number of tokens may choose.

use crate::biased_experts::BiasedCase;
use crate::common::*;
use crate::device::{SEEDS, emulated, with_wgmma};
use crate::expert_rows;
use crate::linear::as_taken;
use crate::mutants::{Run, assert_noticed};
use crate::naive;
use crate::tokens::poison;
use kernels::ops::*;
use kernels::*;

struct Case {
    stored_as: WeightType,
    /// T, H, I, E, k
    sizes: [usize; 5],
}

struct Data {
    x: Host,
    weights: Host,
    ids: Vec<i32>,
    hosts: Vec<[Host; 3]>,
}

impl Case {
    fn data(&self) -> Data {
        let Self { stored_as, sizes: [t, h, i, e, k] } = *self;
        let dtype = stored_as.float().unwrap_or(DType::F32);
        Data {
            x: Host::random(DType::F32, &[t, h], 90),
            weights: Host::random(DType::F32, &[t, k], 91),
            // The second expert is never chosen, if there are three; the last one if there are two.
            ids: (0..t * k)
                .map(|pair| (pair * 7 + pair / 5) % (e - 1).max(1))
                .map(|id| if id > 0 { id as i32 + 1 } else { 0 })
                // Of nine experts all take the fifth.
                .map(|id| if e == 9 { 4 } else { id })
                .collect(),
            hosts: random_experts(dtype, [e, h, i]),
        }
    }

    fn experts(&self, device: &Device, data: &Data) -> Experts {
        pack_experts(device, self.stored_as, &data.hosts)
    }

    /// Some of the tokens, in a scratch that is larger than needed.
    fn run(&self, device: &Device, tokens: std::ops::Range<usize>) -> Result<Vec<u8>, Error> {
        let Self { sizes: [t, h, i, e, k], .. } = *self;
        let data = self.data();
        let part = |host: &Host, len: usize| -> Tensor {
            let values: Vec<f32> =
                host.values[tokens.start * len..tokens.end * len].iter().map(|&v| v as f32).collect();
            Tensor::from_f32(device, &[tokens.len(), len], &values)
        };
        let mut ids = Tensor::unwritten(device, DType::I32, &[tokens.len(), k]);
        ids.write_i32(0, &data.ids[tokens.start * k..tokens.end * k]);
        let mut scratch = MoeScratch::new(device, t + 2, [e, h, i], k);
        let mut out = Tensor::unwritten(device, DType::F32, &[tokens.len(), h]);
        let experts = self.experts(device, &data);
        moe(&part(&data.x, h), &experts, &ids, &part(&data.weights, k), &mut scratch, &mut out);
        out.read()
    }
}

/// Tensor cores take activations in the type of the weights, or in bf16: x, and what is between the two layers.
fn rounded(stored_as: WeightType, rows: &naive::Rows) -> naive::Rows {
    let round = |row: &Vec<f64>| {
        let values: Vec<f32> = row.iter().map(|&v| v as f32).collect();
        as_taken(&Host::new(DType::F32, &[row.len()], &values), stored_as).values
    };
    rows.iter().map(round).collect()
}

fn twin(stored_as: WeightType, data: &Data) -> naive::Rows {
    let x = rounded(stored_as, &data.x.rows());
    let rows_of = |w: &Host| kept(stored_as, &w.values, w.shape[1]);
    let experts: Vec<[naive::Rows; 3]> = data.hosts.iter().map(|w| w.each_ref().map(rows_of)).collect();
    let k = data.ids.len() / x.len();
    let expert = |x: &Vec<f64>, [gate, up, down]: &[naive::Rows; 3]| {
        let both = [gate, up].map(|w| naive::linear(&vec![x.clone()], w, None, Activation::None).remove(0));
        let inner: Vec<f64> = both[0].iter().zip(&both[1]).map(|(g, u)| naive::silu(*g) * u).collect();
        naive::linear(&rounded(stored_as, &vec![inner]), down, None, Activation::None).remove(0)
    };
    let token = |(t, x): (usize, &Vec<f64>)| {
        let mut out = vec![0.0; x.len()];
        for pair in t * k..(t + 1) * k {
            let y = expert(x, &experts[data.ids[pair] as usize]);
            out.iter_mut().zip(y).for_each(|(out, y)| *out += data.weights.values[pair] * y);
        }
        out
    };
    x.iter().enumerate().map(token).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn experts_of_tokens() {
    let device = emulated(SEEDS[0]);
    for (stored_as, sizes) in [
        (WeightType::F32, [1, 5, 3, 2, 1]),
        (WeightType::F32, [21, 67, 33, 5, 2]),
        (WeightType::BF16, [1, 67, 33, 5, 3]),
        (WeightType::F16, [9, 270, 97, 4, 2]),
        (WeightType::F16, [33, 48, 64, 3, 1]),
        (WeightType::BF16, [67, 34, 65, 3, 2]),
        (WeightType::BF16, [20, 16, 8, 70, 3]),
        (WeightType::BF16, [10, 40, 33, 9, 3]),
        (WeightType::Int8, [2, 67, 33, 5, 3]),
        (WeightType::Int4, [9, 270, 97, 4, 2]),
        (WeightType::Int4Zero, [33, 48, 64, 3, 1]),
        (WeightType::Int8, [67, 34, 65, 3, 2]),
        (WeightType::Int4, [67, 50, 33, 3, 2]),
        (WeightType::Int4Zero, [67, 34, 40, 3, 2]),
        // Blocks of 128 rows.
        (WeightType::BF16, [140, 40, 48, 3, 2]),
        (WeightType::F16, [150, 34, 37, 2, 1]),
        (WeightType::Int4, [140, 40, 33, 3, 2]),
    ] {
        let case = Case { stored_as, sizes };
        let found = floats(&case.run(&device, 0..sizes[0]).expect("a result"));
        // One step of a 16-bit float between the layers is what the twin may round otherwise.
        let tolerance = if stored_as == WeightType::F32 { 5e-6 } else { 1e-3 };
        let expected = twin(stored_as, &case.data()).concat();
        assert_close(&found, &expected, tolerance, &format!("{stored_as} {sizes:?}"));
    }
}

/// 163 tokens take `moe_many` in blocks of 128 rows, 30 of them in blocks of 64, the others one of the rest, under another schedule.
#[test]
fn tokens_have_the_same_bits_alone() {
    let (t, h) = (163, 70);
    for stored_as in WeightType::ON_GPU.into_iter().filter(|&t| t != WeightType::F16) {
        let case = Case { stored_as, sizes: [t, h, 35, 5, 3] };
        let together = case.run(&emulated(SEEDS[0]), 0..t).expect("a result");
        let device = emulated(SEEDS[1]);
        for tokens in [0..1, 162..163, 9..19, 20..40, 100..130] {
            let found = case.run(&device, tokens.clone()).expect("a result");
            assert!(found == together[tokens.start * h * 4..tokens.end * h * 4], "{stored_as} {tokens:?}");
        }
    }
}

/// Every kernel, with biases and another function between the products, in company and alone.
#[test]
fn experts_with_biases() {
    let (device, other) = (emulated(SEEDS[0]), emulated(SEEDS[1]));
    for (stored_as, sizes, alone) in [
        (WeightType::F32, [21, 67, 33, 5, 2], 3..5),
        (WeightType::BF16, [9, 70, 97, 4, 2], 8..9),
        (WeightType::BF16, [67, 34, 65, 3, 2], 0..1),
        // The widest blocks of few rows.
        (WeightType::BF16, [33, 48, 64, 3, 1], 2..3),
        (WeightType::Int8, [140, 64, 33, 3, 2], 100..130),
    ] {
        let case = BiasedCase { stored_as, sizes };
        let found = case.run(&device, 0..sizes[0]).expect("a result");
        let tolerance = if stored_as == WeightType::F32 { 5e-6 } else { 1e-3 };
        let expected = case.twin(&|rows| match stored_as {
            WeightType::F32 => rows.clone(),
            _ => rounded(stored_as, rows),
        });
        assert_close(&floats(&found), &expected, tolerance, &format!("{stored_as} {sizes:?}"));
        let row = sizes[1] * 4;
        let part = case.run(&other, alone.clone()).expect("a result");
        assert!(part == found[alone.start * row..alone.end * row], "{stored_as} {alone:?}");
    }
}

/// A layer with an expert that every token takes.
struct WithShared {
    /// Of the others, and of that one.
    stored_as: [WeightType; 2],
    /// T, and its I: the others have 35.
    tokens: usize,
    inner: usize,
    is_gated: bool,
}

impl WithShared {
    const HIDDEN: usize = 50;

    /// Its results with the shared expert as part of the op, or as ops after it; and how many launches that took.
    fn run(&self, device: &Device, as_part: bool) -> Result<(Vec<u8>, u64), Error> {
        let gates = Host::random(DType::F32, &[self.tokens, 1], 9).tensor(device);
        let gate = self.is_gated.then_some(&gates);
        let Self { stored_as: [routed, stored_as], tokens: t, inner: i, .. } = *self;
        let (h, k) = (Self::HIDDEN, 3);
        let case = Case { stored_as: routed, sizes: [t, h, 35, 5, k] };
        let data = case.data();
        let experts = case.experts(device, &data);
        let gate_up = Matrix::random(device, stored_as, 2 * i, h, 0.2, 5);
        let down = Matrix::random(device, stored_as, h, i, 0.2, 6);
        let [x, weights] = [&data.x, &data.weights].map(|host| host.tensor(device));
        let mut ids = Tensor::unwritten(device, DType::I32, &[t, k]);
        ids.write_i32(0, &data.ids);
        let mut scratch = MoeScratch::new(device, t, [5, h, 35], k);
        let buffer = |width| Tensor::unwritten(device, DType::F32, &[t, width]);
        let [mut both, mut inner, mut of_shared, mut out] = [2 * i, i, h, h].map(buffer);
        let Device::Cuda(cuda) = device else { panic!("not a GPU") };
        let before = cuda.num_launches();
        if as_part {
            let (gate_up, down) = (&gate_up, &down);
            let mut tokens = TokenRoom::new(device, &[[t, h.max(i)]]);
            let (both, inner, tokens) = (&mut both, &mut inner, &mut tokens);
            let shared = SharedExpert { gate_up, down, gate, both, inner, out: &mut of_shared };
            moe_and_shared(&x, &experts, [&ids, &weights], &mut scratch, Some((shared, tokens)), &mut out);
        } else {
            moe(&x, &experts, &ids, &weights, &mut scratch, &mut out);
            linear(&x, &gate_up, None, Activation::None, &mut both);
            silu_mul(&both, &mut inner);
            linear(&inner, &down, None, Activation::None, &mut of_shared);
            match gate {
                None => add(&mut out, &of_shared),
                Some(gate) => add_gated(&mut out, &of_shared, gate),
            }
        }
        Ok((out.read()?, cuda.num_launches() - before))
    }
}

/// The expert of all tokens has blocks in the launches of the others, for up to 32 tokens; what it makes are the bits of its ops one after the
/// other, so that a row's do not depend on which of the two it was.
#[test]
fn a_shared_expert_is_computed_beside_the_others() {
    use WeightType::*;
    for (stored_as, tokens, inner, launches) in [
        // By themselves and in company; up to 32 pairs are not sorted.
        ([BF16; 2], 1, 64, [7, 3]),
        ([BF16; 2], 8, 96, [8, 3]),
        ([BF16; 2], 9, 32, [8, 4]),
        ([F16; 2], 32, 64, [9, 4]),
        ([Int8; 2], 3, 64, [7, 3]),
        ([Int4; 2], 17, 128, [8, 4]),
        ([Int4Zero; 2], 1, 32, [7, 3]),
        // Too many tokens (they are rounded before the first layer), gate that ends within a panel, other types.
        ([BF16; 2], 33, 64, [9, 9]),
        ([BF16; 2], 2, 48, [7, 7]),
        ([Int4, BF16], 2, 64, [7, 7]),
        ([F32; 2], 2, 64, [8, 8]),
    ] {
        for is_gated in [false, true] {
            let case = WithShared { stored_as, tokens, inner, is_gated };
            let what = format!("{stored_as:?} T {tokens} I {inner}, gated {is_gated}");
            let (expected, in_parts) = case.run(&emulated(SEEDS[0]), false).expect("a result");
            let (found, beside) = case.run(&emulated(SEEDS[1]), true).expect("a result");
            assert!(found == expected, "{what}");
            // Where it comes after the others its last layer adds to their sum; with a gate that is a launch of its own.
            let [apart, at_once] = launches;
            let of_gate = u64::from(is_gated && tokens > 32);
            assert_eq!([in_parts, beside], [apart, at_once + of_gate], "{what}");
        }
    }
}

/// The norm of the stream follows experts, in the launch that adds them up where nothing is left to add: its stream and its result, and what a layer
/// after it makes of that, which takes many tokens as the norm left them.
fn normed(device: &Device, [t, i, h]: [usize; 3], at_once: bool) -> Result<(Vec<u8>, u64), Error> {
    let case = Case { stored_as: WeightType::BF16, sizes: [t, h, 35, 5, 3] };
    let data = case.data();
    let experts = case.experts(device, &data);
    let gate_up = &Matrix::random(device, DType::BF16, 2 * i.max(1), h, 0.2, 5);
    let down = &Matrix::random(device, DType::BF16, h, i.max(1), 0.2, 6);
    let [mut x, weights] = [&data.x, &data.weights].map(|host| host.tensor(device));
    let mut residual = Host::random(DType::F32, &[t, h], 7).tensor(device);
    let weight = &Host::random(DType::F32, &[h], 8).tensor(device);
    let mut ids = Tensor::unwritten(device, DType::I32, &[t, 3]);
    ids.write_i32(0, &data.ids);
    let mut scratch = MoeScratch::new(device, t, [5, h, 35], 3);
    let buffer = |width| Tensor::unwritten(device, DType::F32, &[t, width]);
    let [mut both, mut inner, mut of_shared, mut out] = [2 * i, i, h, h].map(buffer);
    let mut room = TokenRoom::new(device, &[[t, h.max(i)]]);
    if t > 32 {
        poison(device, &mut room, [t.next_multiple_of(128), h.max(i).next_multiple_of(32)]);
    }
    let (both, inner, tokens) = (&mut both, &mut inner, &mut room);
    // None of inner size 0.
    let shared =
        (i > 0).then_some(SharedExpert { gate_up, down, gate: None, both, inner, out: &mut of_shared });
    let next = Matrix::random(device, DType::BF16, 33, h, 0.2, 9);
    let mut made = Tensor::unwritten(device, DType::F32, &[t, 33]);
    let Device::Cuda(cuda) = device else { panic!("not a GPU") };
    let before = cuda.num_launches();
    if at_once {
        let norm = NormFor { weight, eps: 1e-5, next: WeightType::BF16 };
        let then = AddNorm { residual: &mut residual, norm, tokens };
        moe_and_norm(&mut x, &experts, [&ids, &weights], &mut scratch, shared, &mut out, then);
        room.hold_made(&x).linear(&next, None, Activation::None, &mut made);
    } else {
        let shared = shared.map(|shared| (shared, tokens));
        moe_and_shared(&x, &experts, [&ids, &weights], &mut scratch, shared, &mut out);
        add_rms_norm(&mut residual, &out, weight, 1e-5, &mut x);
        linear(&x, &next, None, Activation::None, &mut made);
    }
    let launches = cuda.num_launches() - before;
    Ok(([residual.read()?, x.read()?, made.read()?].concat(), launches))
}

#[test]
fn norms_follow_experts() {
    for (sizes, saved) in [
        ([1, 64, 70], 1),
        ([7, 32, 300], 1),
        ([32, 64, 1100], 1),
        // Many, with the expert of all tokens left for ops after it, and without one.
        ([40, 64, 72], 0),
        ([40, 0, 72], 1),
        ([140, 0, 37], 1),
    ] {
        let (expected, by_themselves) = normed(&emulated(SEEDS[0]), sizes, false).expect("a result");
        let (found, at_once) = normed(&emulated(SEEDS[1]), sizes, true).expect("a result");
        assert!(found == expected, "{sizes:?}");
        assert_eq!(by_themselves - at_once, saved, "{sizes:?}");
    }
}

#[test]
fn bugs_in_norms_of_experts_are_noticed() {
    let run = |device: &Device| Ok(normed(device, [7, 32, 300], true)?.0);
    let many = |device: &Device| Ok(normed(device, [45, 0, 36], true)?.0);
    let cases: [(&'static str, &'static str, Run); 8] = [
        ("row.token < tokens;", "row.token <= tokens;", &many),
        ("row);\n    }\n    row.fill_up(there ? width : 0);", "row);\n    }", &many),
        ("residual + (long long)row.token * width;", "residual + (long long)row.columns * width;", &many),
        ("for (int i = 0; i < N; i++) r[i] += sum[i];", "", &run),
        ("Wide<N>::store(stream + c, r);", "", &run),
        ("squares = fmaf(r[i], r[i], squares);", "squares = fmaf(sum[i], r[i], squares);", &run),
        ("block_sum<WARPS>(squares, scratch)", "warp_sum(squares)", &run),
        ("residual + token * width", "residual", &run),
    ];
    assert_noticed(&cases);
}

/// As for linear layers: rows of an expert below and above what a block takes, which begin anywhere; blocks without rows of weights.
#[test]
fn wgmma_rounds_as_mma() {
    let Some(hopper) = with_wgmma(SEEDS[1]) else { return };
    let device = emulated(SEEDS[0]);
    for (stored_as, sizes) in [
        (WeightType::BF16, [330, 70, 45, 4, 2]),
        (WeightType::F16, [200, 300, 130, 2, 2]),
        (WeightType::BF16, [500, 70, 200, 2, 1]),
    ] {
        let case = Case { stored_as, sizes };
        let [found, expected] =
            [&hopper, &device].map(|device| case.run(device, 0..sizes[0]).expect("a result"));
        assert!(found == expected, "{stored_as} {sizes:?}");
    }
}

#[test]
fn bugs_with_wgmma_are_noticed() {
    let wgmma = |device: &Device| {
        let Device::Cuda(cuda) = device else { panic!("not a GPU") };
        assert!(cuda.choose_matmul(cuda::Matmul::Wgmma), "compute capability 9.0");
        Case { stored_as: WeightType::BF16, sizes: [180, 70, 45, 3, 3] }.run(device, 0..180)
    };
    let cases: [(&'static str, &'static str, Run); 7] = [
        // Rows, and those of another expert.
        ("column < s.n && row < work.end", "column < s.n", &wgmma),
        ("column >= columns * 8 || row >= work.end", "column >= columns * 8 || row >= work.end - 1", &wgmma),
        // Gate and up.
        (
            "barrier_sync(1, 256);\n#pragma unroll\n            for (int j = 0; j < HALF; j++)\n#pragma unroll\n                for (int e = 0; e < 4; e++) {",
            "#pragma unroll\n            for (int j = 0; j < HALF; j++)\n#pragma unroll\n                for (int e = 0; e < 4; e++) {",
            &wgmma,
        ),
        ("is_up ? total[j][e] : total[HALF + j][e]", "is_up ? total[HALF + j][e] : total[j][e]", &wgmma),
        ("exchange[((warp ^ 2) * HALF", "exchange[((warp ^ 1) * HALF", &wgmma),
        // What is packed.
        ("source_of<true>(order, row, top_k) * k", "source_of<false>(order, row, top_k) * k", &wgmma),
        ("if (first * 8 + i >= k) continue;", "if (first * 8 + i > k) continue;", &wgmma),
    ];
    assert_noticed(&cases);
}

/// Router and experts in a graph: nothing between them is known to the host.
#[test]
fn replays_follow_the_router() {
    let device = emulated(SEEDS[0]);
    let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
    let case = Case { stored_as: WeightType::BF16, sizes: [4, 32, 16, 6, 2] };
    let experts = case.experts(&device, &case.data());
    let config = RouterConfig {
        scoring: Scoring::Sigmoid,
        top_k: 2,
        num_groups: 1,
        top_groups: 1,
        group_score: GroupScore::Max,
        normalize: true,
        scale: 1.0,
    };
    let x = case.data().x.tensor(&device);
    let mut scratch = MoeScratch::new(&device, 4, [6, 32, 16], 2);
    let mut ids = Tensor::zeros(&device, DType::I32, &[4, 2]);
    let [mut weights, mut out] = [2, 32].map(|width| Tensor::zeros(&device, DType::F32, &[4, width]));
    let mut logits = Tensor::zeros(&device, DType::F32, &[4, 6]);
    let mut step = |logits: &Tensor, out: &mut Tensor| {
        route(logits, None, &config, &mut ids, &mut weights);
        moe(&x, &experts, &ids, &weights, &mut scratch, out);
    };
    let inputs = [1, 2, 3].map(|seed| values(seed, 24));
    let eager = inputs.each_ref().map(|input| {
        logits.write_f32(0, input);
        step(&logits, &mut out);
        bits(&out.to_f32_vec())
    });
    assert_ne!(eager[0], eager[1]);
    let graph = cuda.capture(|| step(&logits, &mut out)).expect("a graph");
    for (input, eager) in inputs.iter().zip(eager) {
        logits.write_f32(0, input);
        cuda.replay(graph);
        assert_eq!(bits(&out.to_f32_vec()), eager);
    }
}

#[test]
fn bugs_are_noticed() {
    let of =
        |stored_as, t| move |device: &Device| Case { stored_as, sizes: [t, 50, 35, 5, 3] }.run(device, 0..t);
    let (few, many, f32) = (of(WeightType::BF16, 12), of(WeightType::BF16, 120), of(WeightType::F32, 9));
    // Pairs that are not sorted.
    let unsorted = of(WeightType::BF16, 6);
    let crowded =
        |device: &Device| Case { stored_as: WeightType::BF16, sizes: [10, 16, 8, 9, 3] }.run(device, 0..10);
    let wide =
        |device: &Device| Case { stored_as: WeightType::BF16, sizes: [20, 16, 8, 70, 3] }.run(device, 0..20);
    let shared = |device: &Device| {
        let case = WithShared { stored_as: [WeightType::BF16; 2], tokens: 7, inner: 96, is_gated: true };
        case.run(device, true).map(|(out, _)| out)
    };
    let cases: [(&'static str, &'static str, Run); 28] = [
        // Places.
        ("int next = 0;\n    for (int w = 0;", "int next = 0;\n    for (int w = 1;", &many),
        (
            "counts[round * WARPS + warp] = __popc(mine);\n        __syncthreads();",
            "counts[round * WARPS + warp] = __popc(mine);",
            &many,
        ),
        ("before += w < warp ? count : 0;", "before += w <= warp ? count : 0;", &many),
        (
            "if (thread == 0 && expert + 1 == (int)gridDim.x) starts",
            "if (thread == 0 && expert == (int)gridDim.x) starts",
            &few,
        ),
        // Work.
        (
            "return Work{base + lane_of, first, min(end, first + TILE)};",
            "return Work{base + lane_of, first, first + TILE};",
            &few,
        ),
        ("index -= __shfl_sync(~0u, sum, 31);", "index -= __shfl_sync(~0u, sum, 30);", &wide),
        ("return pair / top_k;", "return pair;", &few),
        // Panels.
        ("int p = TURNS ? warp_m / 2 * 2 + i : warp_m,", "int p = TURNS ? warp_m / 2 + i : warp_m,", &many),
        ("column / 32 * SIDES) * 32", "column / 32) * 32", &f32),
        // Rows and columns of wide blocks, and what is between the layers.
        ("work.first + i * 64 + (int)threadIdx.x / 4", "work.first + (int)threadIdx.x / 4", &many),
        ("from, work.end - work.first);", "from, work.end - work.first - 16);", &many),
        (
            "warp_n * (TOKENS / 2) + i * 8 + lane % 4 * 2 + j % 2;\n                if (column",
            "warp_n * 32 + i * 8 + lane % 4 * 2 + j % 2;\n                if (column",
            &many,
        ),
        // Waits.
        ("cp_async_wait<1>();\n        __syncthreads();", "cp_async_wait<1>();", &many),
        // Pairs that are not sorted.
        ("int id = -1;\n    if (lane_id() < pairs)", "int id = 0;\n    if (lane_id() < pairs)", &unsorted),
        ("before % TILE == 0 ? expert", "before == 0 ? expert", &crowded),
        ("min(__popc(chosen), before + TILE)", "min(__popc(chosen), TILE)", &crowded),
        ("for (; n > 0; n--) bits", "for (; n > 1; n--) bits", &unsorted),
        ("UP ? place(row) / s.top_k : place(row)", "UP ? place(row) / s.top_k : row", &unsorted),
        ("to[(long long)place(row) * n", "to[(long long)row * n", &unsorted),
        // The expert of all tokens.
        ("blockIdx.y - shared.blocks;", "blockIdx.y - 1;", &shared),
        ("is_shared ? (int)(blockIdx.y * gridDim.x) : 0", "0", &shared),
        ("if (work.expert < 0 || unit * 32 >= n) return;", "if (work.expert < 0) return;", &shared),
        ("is_shared ? shared.side_panels * panel_len", "is_shared ? panel_len", &shared),
        ("if (is_shared) source[i] = row;", "if (is_shared) source[i] = 0;", &shared),
        ("Work work{0, 0, shared.tokens};", "Work work{0, 0, shared.tokens + 1};", &shared),
        ("for (int i = 0; i < N; i++) sum[i] = fmaf(factor, v[i], sum[i]);", "", &shared),
        ("sigmoid(gates[token])", "sigmoid(gates[0])", &shared),
        // The order of a sum.
        (
            "for (int j = 0; j < top_k; j++) {\n        int row",
            "for (int j = top_k - 1; j >= 0; j--) {\n        int row",
            &few,
        ),
    ];
    assert_noticed(&cases);
}

/// Few and many rows for each expert.
#[test]
fn in_steps_they_have_the_same_bits() {
    for (seed, stored_as) in WeightType::ON_GPU.into_iter().enumerate() {
        for sizes in expert_rows::SIZES {
            expert_rows::check(&emulated(SEEDS[seed % SEEDS.len()]), stored_as, sizes);
        }
    }
}
