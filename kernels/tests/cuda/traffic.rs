//! What few tokens ask of memory, counted by the emulator, against what must be read. And what it costs that no row's sums depend on who else is in
//! the batch: `cargo test -p kernels --test cuda traffic -- --nocapture` prints it.

use crate::common::*;
use crate::device::metered;
use crate::pages::Pages;
use kernels::cuda::emulated::{LaunchTraffic, Meter, TensorTraffic};
use kernels::ops::*;
use kernels::*;

const BLOCK: usize = 16;
const SCALE: f32 = 0.1;

/// What launches did since the last call.
fn launches(device: &Device, meter: &Meter) -> Vec<LaunchTraffic> {
    device.synchronize().expect("the emulator runs");
    meter.take()
}

/// The tensors whose names begin so, as if they were one.
fn of(launches: &[LaunchTraffic], name: &str) -> TensorTraffic {
    let mut sum = TensorTraffic { name: name.to_string(), bytes: 0, read: 0, written: 0 };
    for tensor in launches.iter().flat_map(|l| &l.tensors).filter(|tensor| tensor.name.starts_with(name)) {
        sum.bytes = sum.bytes.max(tensor.bytes);
        sum.read += tensor.read;
        sum.written += tensor.written;
    }
    sum
}

/// A scale is asked for by the four lanes that multiply its group; they do so at once, which is one access.
fn with_repeated_scales(stored_as: WeightType, weights: usize) -> u64 {
    let bits = match stored_as {
        WeightType::F32 => 32,
        WeightType::BF16 | WeightType::F16 => 16,
        WeightType::Int8 => 8,
        WeightType::Int4 | WeightType::Int4Zero => 4,
        WeightType::CompactBf16 => unreachable!("not on a GPU"),
    };
    let scales = match stored_as {
        WeightType::F32 | WeightType::BF16 | WeightType::CompactBf16 | WeightType::F16 => 0,
        WeightType::Int8 | WeightType::Int4 => 2,
        WeightType::Int4Zero => 4,
    };
    (weights * bits / 8 + weights / 32 * scales * 4) as u64
}

#[test]
fn weights_are_read_once() {
    for stored_as in [WeightType::BF16, WeightType::Int8, WeightType::Int4, WeightType::Int4Zero] {
        for t in [1, 8, 32] {
            let [n, k] = [96, 512];
            let (device, meter) = metered();
            let x = Host::random(DType::F32, &[t, k], 1).tensor(&device);
            let w = Host::random(stored_as.float().unwrap_or(DType::F32), &[n, k], 2);
            let packed = Matrix::pack(&device, stored_as, &[w.view()]);
            let mut out = Tensor::unwritten(&device, DType::F32, &[t, n]);
            launches(&device, &meter);
            linear(&x, &packed, None, Activation::None, &mut out);
            let counted = launches(&device, &meter);
            let what = format!("{stored_as} T {t}: {counted:?}");
            assert_eq!(counted.len(), 1, "{what}");
            assert_eq!(of(&counted, "weights").read, with_repeated_scales(stored_as, n * k), "{what}");
            let written: u64 = counted[0].tensors.iter().map(|tensor| tensor.written).sum();
            assert_eq!(written, (t * n * 4) as u64, "{what}");
        }
    }
}

/// Of many tokens: a pass reads each once and writes half of its bytes; each block of 128 rows then reads those, not f32.
#[test]
fn many_tokens_are_rounded_once() {
    let [t, n, k] = [256, 500, 288];
    for stored_as in [WeightType::BF16, WeightType::Int4] {
        let (device, meter) = metered();
        let x = Host::random(DType::F32, &[t, k], 1).tensor(&device);
        let w = Host::random(stored_as.float().unwrap_or(DType::F32), &[n, k], 2);
        let packed = Matrix::pack(&device, stored_as, &[w.view()]);
        let mut room = TokenRoom::new(&device, &[[t, k]]);
        let mut tokens = room.hold(&x);
        let [mut first, mut second] = [(); 2].map(|()| Tensor::unwritten(&device, DType::F32, &[t, n]));
        launches(&device, &meter);
        tokens.linear(&packed, None, Activation::None, &mut first);
        tokens.linear(&packed, None, Activation::None, &mut second);
        let counted = launches(&device, &meter);
        let (floats, rounded) = (format!("float32 [{t}, {k}]"), of(&counted, "uint8"));
        let blocks = n.div_ceil(128);
        assert_eq!(of(&counted, &floats).read, (4 * t * k) as u64, "{stored_as}: {counted:?}");
        assert_eq!(rounded.written, (2 * t * k) as u64, "{stored_as}: {counted:?}");
        assert_eq!(rounded.read, (2 * blocks * 2 * t * k) as u64, "{stored_as}: {counted:?}");
    }
}

#[test]
fn only_chosen_experts_are_read_and_once() {
    let [e, h, i, top_k] = [6, 128, 64, 2];
    for (stored_as, ids) in [
        (WeightType::BF16, vec![4, 1]),
        (WeightType::BF16, vec![4, 1, 1, 4, 4, 0]),
        (WeightType::Int4, vec![2, 3, 3, 5]),
    ] {
        let t = ids.len() / top_k;
        let (device, meter) = metered();
        let dtype = stored_as.float().unwrap_or(DType::F32);
        let experts = pack_experts(&device, stored_as, &random_experts(dtype, [e, h, i]));
        let x = Host::random(DType::F32, &[t, h], 90).tensor(&device);
        let weights = Host::random(DType::F32, &[t, top_k], 91).tensor(&device);
        let mut chosen = Tensor::unwritten(&device, DType::I32, &[t, top_k]);
        chosen.write_i32(0, &ids);
        let mut scratch = MoeScratch::new(&device, t, [e, h, i], top_k);
        let mut out = Tensor::unwritten(&device, DType::F32, &[t, h]);
        launches(&device, &meter);
        moe(&x, &experts, &chosen, &weights, &mut scratch, &mut out);
        let counted = launches(&device, &meter);
        let num_chosen = std::collections::BTreeSet::from_iter(&ids).len();
        let expected = with_repeated_scales(stored_as, num_chosen * 3 * h * i);
        assert_eq!(of(&counted, "weights").read, expected, "{stored_as} {ids:?}: {counted:?}");
    }
}

/// Beside the others too: a block has all tokens.
#[test]
fn the_expert_of_all_tokens_is_read_once() {
    let ([e, h, i, top_k], inner) = ([6, 128, 64, 2], 96);
    for t in [1, 9, 32] {
        let (device, meter) = metered();
        let experts = Experts::random(&device, DType::BF16, [e, h, i], 0.1, 1);
        let gate_up = Matrix::random(&device, DType::BF16, 2 * inner, h, 0.1, 2);
        let down = Matrix::random(&device, DType::BF16, h, inner, 0.1, 3);
        let [x, weights] = [h, top_k].map(|width| Host::random(DType::F32, &[t, width], 4).tensor(&device));
        let mut chosen = Tensor::unwritten(&device, DType::I32, &[t, top_k]);
        chosen.write_i32(0, &[4, 1].repeat(t));
        let mut scratch = MoeScratch::new(&device, t, [e, h, i], top_k);
        let [mut both, mut activated, mut of_shared, mut out] =
            [2 * inner, inner, h, h].map(|width| Tensor::unwritten(&device, DType::F32, &[t, width]));
        let (gate_up, down) = (&gate_up, &down);
        let shared = SharedExpert {
            gate_up,
            down,
            gate: None,
            both: &mut both,
            inner: &mut activated,
            out: &mut of_shared,
        };
        let tokens = &mut TokenRoom::new(&device, &[]);
        launches(&device, &meter);
        moe_and_shared(&x, &experts, [&chosen, &weights], &mut scratch, Some((shared, tokens)), &mut out);
        let counted = launches(&device, &meter);
        let expected = 2 * 3 * h * (2 * i + inner);
        assert_eq!(of(&counted, "weights").read, expected as u64, "T {t}: {counted:?}");
    }
}

/// One token of each sequence, which attends to `contexts`, as the rule cuts them or as another does.
fn latents_attended(contexts: &[usize], rule: RangeRule) -> (Vec<LaunchTraffic>, u64) {
    let [heads, d, dv] = [16, 576, 512];
    let (device, meter) = metered();
    let items: Vec<[usize; 2]> = contexts.iter().map(|context| [context - 1, 1]).collect();
    let pages = Pages::new(&items, BLOCK);
    let sizes = AttentionSizes {
        heads,
        kv_heads: 1,
        key_dim: d,
        value_dim: dv,
        max_context: *contexts.iter().max().expect("contexts"),
        max_tokens: items.len(),
    };
    let mut scratch = AttentionScratch::with_ranges(&device, sizes, rule);
    let q = Host::random(DType::F32, &[items.len(), heads, d], 1).tensor(&device);
    let latents = Host::random(DType::BF16, &[pages.num_slots, d], 2).tensor(&device);
    let mut out = Tensor::unwritten(&device, DType::F32, &[items.len(), heads, dv]);
    launches(&device, &meter);
    mla_attention(&q, &latents, dv, &pages.ragged(BLOCK), SCALE, &mut scratch, &mut out);
    let seen = contexts.iter().sum::<usize>() * d * 2;
    (launches(&device, &meter), seen as u64)
}

/// Partial sums of ranges: what one launch writes for another to read, where a row has several.
fn partial_sums(counted: &[LaunchTraffic]) -> u64 {
    let is_scratch =
        |tensor: &&TensorTraffic| tensor.name.starts_with("float32 [") && !tensor.name.contains(',');
    counted.iter().flat_map(|l| &l.tensors).filter(is_scratch).map(|tensor| tensor.written).sum()
}

#[test]
fn cached_latents_are_read_once_by_all_heads() {
    for contexts in [&[2048][..], &[700, 33, 1, 512]] {
        let (counted, seen) = latents_attended(contexts, RangeRule::default());
        assert_eq!(of(&counted, "bfloat16 ").read, seen, "{contexts:?}: {counted:?}");
    }
}

/// Rows are cut into ranges by their own length. A choice that knew the batch would leave them whole as soon as there are sequences for every
/// multiprocessor, and write no partial sums.
#[test]
fn what_independence_costs_in_attention() {
    let whole = RangeRule { shortest: 1 << 20, most: 64 };
    for context in [512, 1024, 2048, 4096] {
        let (counted, seen) = latents_attended(&[context], RangeRule::default());
        let written = partial_sums(&counted);
        // They are read once by whoever merges them.
        let cost = 2.0 * written as f64 / seen as f64;
        let num_ranges = context / 512;
        println!(
            "one token after {}: {seen} bytes of latents, {num_ranges} ranges, partial sums of {written} bytes, {:.1} % more to move",
            context - 1,
            100.0 * cost
        );
        let expected = if num_ranges == 1 { 0 } else { num_ranges * 16 * (512 + 2) * 4 };
        assert_eq!(written, expected as u64, "{counted:?}");
        assert!(cost < 0.112, "{cost}");
        let (free, _) = latents_attended(&[context], whole);
        assert_eq!((partial_sums(&free), of(&free, "bfloat16 ").read), (0, seen), "{free:?}");
    }
}

/// Of a layer that one cluster computes, four blocks fetch each weight and each token once, as do eight; by themselves they would fetch each weight twice, and each
/// token as often as there are blocks of rows.
#[test]
fn blocks_of_a_cluster_fetch_what_they_share_once() {
    one_cluster(256, 4, "linear_wgmma<bf16, 2>");
    one_cluster(512, 8, "linear_wgmma<bf16, 4>");
}

fn one_cluster(n: usize, blocks: u64, kernel: &str) {
    let (device, meter) = metered();
    let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
    assert!(cuda.choose_matmul(cuda::Matmul::Wgmma), "compute capability 9.0");
    let [t, k] = [384, 512];
    let x = Host::random(DType::F32, &[t, k], 1).tensor(&device);
    let w = Host::random(DType::BF16, &[n, k], 2);
    let w = Matrix::pack(&device, DType::BF16, &[w.view()]);
    let mut out = Tensor::unwritten(&device, DType::F32, &[t, n]);
    let mut room = TokenRoom::new(&device, &[[t, k]]);
    launches(&device, &meter);
    room.hold(&x).linear(&w, None, Activation::None, &mut out);
    let counted = launches(&device, &meter);
    let [_, product] = &counted[..] else { panic!("{counted:?}") };
    assert_eq!((product.kernel.as_str(), product.blocks), (kernel, blocks));
    let [tokens, weights, out] = &product.tensors[..] else { panic!("{product:?}") };
    assert_eq!([tokens.read, weights.read], [t, n].map(|rows| 2 * (rows * k) as u64));
    assert_eq!([out.read, out.written], [0, 4 * (t * n) as u64]);
}

/// Keys and values of a picture are rounded once, and read once for each 128 rows of a head; what comes out is written once, in 16 bits.
#[test]
fn keys_of_a_picture_are_read_once_for_128_rows() {
    let (device, meter) = metered();
    let [t, heads, d, n] = [256, 2, 72, 40];
    let mut qkv = Host::random(DType::F32, &[t, 3, heads, d], 1).tensor(&device);
    let table = RopeTable::new(&device, t, d / 2, &|p, i| ((p + i) as f32, p as f32));
    let positions: Vec<u32> = (0..t as u32).collect();
    let w = Host::random(DType::BF16, &[n, heads * d], 2);
    let w = Matrix::pack(&device, DType::BF16, &[w.view()]);
    let sizes =
        AttentionSizes { heads, kv_heads: heads, key_dim: d, value_dim: d, max_context: 0, max_tokens: t };
    let mut scratch = AttentionScratch::new(&device, sizes).multiplying_as(DType::BF16);
    let mut room = TokenRoom::new(&device, &[[t, heads * d]]);
    let mut attended = Tensor::unwritten(&device, DType::F32, &[t, heads, d]);
    launches(&device, &meter);
    let rotation =
        Rotation { table: &table, positions: (&positions[..]).into(), layout: RopeLayout::Interleaved };
    let cu_seqlens = [0, t as u32];
    let turned = TurnedHeads { qkv: &mut qkv, rotation, cu_seqlens: (&cu_seqlens[..]).into(), scale: 0.1 };
    room.hold_attention(turned, &mut scratch, &mut attended, &w);
    let counted = launches(&device, &meter);
    let [rounding, attention] = &counted[..] else { panic!("{counted:?}") };
    let of_heads = (t * heads * 80 * 2) as u64;
    let in_f32 = |launch: &LaunchTraffic| launch.tensors.iter().map(|tensor| tensor.read).max();
    assert_eq!(in_f32(rounding), Some((4 * 3 * t * heads * d) as u64));
    let read: u64 = attention.tensors.iter().map(|tensor| tensor.read).sum();
    // Queries without what fills them up, two units' keys and values, and lists of units: 40 bytes for each thread.
    assert_eq!(read, (t * heads * d * 2) as u64 + 4 * of_heads + 40 * 128 * attention.blocks);
    let written: u64 = attention.tensors.iter().map(|tensor| tensor.written).sum();
    assert_eq!(written, (2 * t * heads * d) as u64);
}
