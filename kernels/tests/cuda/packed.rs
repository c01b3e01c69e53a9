//! Attention inside packed segments: rows of any width in f32, and on tensor cores, with queries and keys that turn on the way, and results that are
//! packed for the layer that reads them.

use crate::attention::{SCALE, floats};
use crate::common::*;
use crate::device::{SEEDS, emulated, sized};
use crate::mutants::{Run, assert_noticed};
use crate::naive;
use crate::tokens::poison;
use kernels::ops::*;
use kernels::*;
use std::ops::Range;

/// Rows and segments of `[T, 3, H, D]`.
pub struct Packed {
    pub heads: usize,
    pub d: usize,
    pub cu_seqlens: Vec<u32>,
    pub multiply_as: DType,
}

impl Packed {
    pub fn qkv(&self) -> Host {
        let t = *self.cu_seqlens.last().expect("offsets") as usize;
        Host::random(DType::F32, &[t, 3, self.heads, self.d], 1)
    }

    fn sizes(&self, max_tokens: usize) -> AttentionSizes {
        let Self { heads, d, .. } = *self;
        AttentionSizes { heads, kv_heads: heads, key_dim: d, value_dim: d, max_context: 0, max_tokens }
    }

    pub fn run(&self, device: &Device, qkv: &Host, segments: Range<usize>) -> Result<Vec<u8>, Error> {
        let cu_seqlens = &self.cu_seqlens[segments.start..=segments.end];
        let (start, end) = (cu_seqlens[0], cu_seqlens[cu_seqlens.len() - 1]);
        let t = (end - start) as usize;
        let row = 3 * self.heads * self.d;
        let values: Vec<f32> =
            qkv.values[start as usize * row..end as usize * row].iter().map(|&v| v as f32).collect();
        let qkv = Tensor::from_f32(device, &[t, 3, self.heads, self.d], &values);
        let mut scratch = AttentionScratch::new(device, self.sizes(t)).multiplying_as(self.multiply_as);
        let mut out = Tensor::unwritten(device, DType::F32, &[t, self.heads, self.d]);
        let from_zero: Vec<u32> = cu_seqlens.iter().map(|at| at - start).collect();
        packed_attention(&qkv, &from_zero, SCALE, &mut scratch, &mut out);
        out.read()
    }

    fn twin(&self, qkv: &Host) -> Vec<f64> {
        let Self { heads, d, .. } = *self;
        let values: Vec<f32> = qkv.values.iter().map(|&v| v as f32).collect();
        let qkv = Host::new(self.multiply_as, &qkv.shape, &values);
        let at = |token: usize, part: usize, head: usize| {
            &qkv.values[((token * 3 + part) * heads + head) * d..][..d]
        };
        let mut out = Vec::new();
        for segment in self.cu_seqlens.windows(2) {
            let tokens = segment[0] as usize..segment[1] as usize;
            for (token, head) in tokens.clone().flat_map(|t| (0..heads).map(move |h| (t, h))) {
                let part = |part| -> Vec<&[f64]> { tokens.clone().map(|p| at(p, part, head)).collect() };
                out.extend(naive::attend(at(token, 0, head), &part(1), &part(2), f64::from(SCALE)));
            }
        }
        out
    }

    fn check(&self, device: &Device, tolerance: f64) {
        let qkv = self.qkv();
        let found = self.run(device, &qkv, 0..self.cu_seqlens.len() - 1).expect("a result");
        assert_close(&floats(&found), &self.twin(&qkv), tolerance, "packed segments");
        let (row, other) = (self.heads * self.d * 4, emulated(SEEDS[1]));
        for (i, segment) in self.cu_seqlens.windows(2).enumerate().filter(|(_, s)| s[0] < s[1]) {
            let alone = self.run(&other, &qkv, i..i + 1).expect("a result");
            assert!(alone == found[segment[0] as usize * row..segment[1] as usize * row], "segment {i}");
        }
    }
}

#[test]
fn packed_segments_in_f32() {
    let device = emulated(SEEDS[0]);
    Packed { heads: 3, d: 9, cu_seqlens: vec![0, 1, 1, 66, 99], multiply_as: DType::F32 }
        .check(&device, 3e-6);
    Packed { heads: 2, d: 72, cu_seqlens: vec![0, 37], multiply_as: DType::F32 }.check(&device, 3e-6);
}

/// Heads of the two forms, at their widest and narrower; segments of no token, of one, and of more than a block has.
#[test]
fn packed_segments_on_tensor_cores() {
    let device = emulated(SEEDS[0]);
    let case = |heads, d, cu_seqlens: &[u32], multiply_as, tolerance| {
        Packed { heads, d, cu_seqlens: cu_seqlens.to_vec(), multiply_as }.check(&device, tolerance);
    };
    case(2, 72, &[0, 1, 1, 66, 206], DType::BF16, 4e-3);
    case(1, 10, &[0, 70], DType::F16, 1e-3);
    case(2, 74, &[0, 65, 130], DType::BF16, 4e-3);
    case(1, 80, &[0, 3, 131], DType::F16, 1e-3);
}

/// Blocks that take one unit after the other have the bits of blocks that take one.
#[test]
fn units_of_segments_are_shared_out() {
    let segments = Packed { heads: 3, d: 12, cu_seqlens: vec![0, 140, 300], multiply_as: DType::BF16 };
    let qkv = segments.qkv();
    let of = |num_sms| segments.run(&sized(1, num_sms), &qkv, 0..2).expect("a result");
    assert!(of(1) == of(64));
}

/// The scratch has the bytes that it says.
#[test]
fn scratches_of_segments_are_as_large_as_they_say() {
    let device = emulated(SEEDS[0]);
    for d in [9, 72, 80, 90] {
        let sizes = Packed { heads: 3, d, cu_seqlens: vec![0], multiply_as: DType::BF16 }.sizes(77);
        let before = device.allocated_bytes();
        let _scratch = AttentionScratch::new(&device, sizes);
        assert_eq!(device.allocated_bytes() - before, AttentionScratch::bytes(&device, sizes), "{d}");
    }
}

const LAYER: usize = 33;

/// How queries and keys turn, and a layer after attention.
struct Turned {
    segments: Packed,
    /// Pairs of a head that turn.
    half: usize,
    layout: RopeLayout,
    next: WeightType,
}

/// In what parts it is computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    Ops,
    Turned,
    ForLayer,
}

impl Turned {
    /// Attention and what the layer makes of it, and launches.
    fn run(&self, device: &Device, form: Form) -> Result<(Vec<u8>, u64), Error> {
        let Device::Cuda(cuda) = device else { panic!("not a GPU") };
        let Packed { heads, d, ref cu_seqlens, multiply_as } = self.segments;
        let t = *cu_seqlens.last().expect("offsets") as usize;
        let mut qkv = self.segments.qkv().tensor(device);
        let table = RopeTable::new(device, t + 3, self.half, &|p, i| {
            let angle = (p as f32 * 0.3 + i as f32).sin();
            (angle.cos(), angle.sin())
        });
        let positions: Vec<u32> = (0..t).map(|i| ((i * 7 + 2) % (t + 3)) as u32).collect();
        let rotation = Rotation { table: &table, positions: (&positions[..]).into(), layout: self.layout };
        let sizes = self.segments.sizes(t);
        let mut scratch = AttentionScratch::new(device, sizes).multiplying_as(multiply_as);
        let dtype = self.next.float().unwrap_or(DType::F32);
        let w = Host::random(dtype, &[LAYER, heads * d], 5);
        let w = Matrix::pack(device, self.next, &[w.view()]);
        let room_size = [t.next_multiple_of(128), (heads * d).next_multiple_of(32)];
        let mut room = TokenRoom::new(device, &[room_size]);
        if room_size[0] > 32 {
            poison(device, &mut room, room_size);
        }
        let mut attended = Tensor::unwritten(device, DType::F32, &[t, heads, d]);
        let mut out = Tensor::unwritten(device, DType::F32, &[t, LAYER]);
        let before = cuda.num_launches();
        if form == Form::Ops {
            qkv.reshape(&[t, 3 * heads, d]);
            rope_heads(&mut qkv, 0..2 * heads, &table, &positions, self.layout);
            qkv.reshape(&[t, 3, heads, d]);
            packed_attention(&qkv, cu_seqlens, SCALE, &mut scratch, &mut attended);
            room.hold(&attended).linear(&w, None, Activation::None, &mut out);
        } else {
            let offsets = (&cu_seqlens[..]).into();
            let turned = TurnedHeads { qkv: &mut qkv, rotation, cu_seqlens: offsets, scale: SCALE };
            if form == Form::Turned {
                turned_attention(turned, &mut scratch, &mut attended);
                room.hold(&attended).linear(&w, None, Activation::None, &mut out);
            } else {
                let mut tokens = room.hold_attention(turned, &mut scratch, &mut attended, &w);
                tokens.linear(&w, None, Activation::None, &mut out);
            }
        }
        let launches = cuda.num_launches() - before;
        Ok((out.read()?, launches))
    }
}

/// Bit for bit what rotation, attention and rounding make one after the other, in fewer launches where tensor cores take it.
#[test]
fn heads_turn_on_the_way_to_attention() {
    let device = emulated(SEEDS[1]);
    use RopeLayout::{Half, Interleaved};
    let case = |heads, d, cu_seqlens: &[u32], half, layout, [multiply_as, next]: [WeightType; 2]| {
        let multiply_as = multiply_as.float().expect("floats");
        let segments = Packed { heads, d, cu_seqlens: cu_seqlens.to_vec(), multiply_as };
        Turned { segments, half, layout, next }
    };
    use WeightType::{BF16, F16, F32, Int8};
    for (case, launches) in [
        // Rotation, rounding, attention, packing, layer; without the rotation; without the packing.
        (case(2, 72, &[0, 77], 36, Interleaved, [BF16, BF16]), [5, 4, 3]),
        (case(3, 10, &[0, 1, 1, 40], 4, Interleaved, [F16, F16]), [5, 4, 3]),
        (case(2, 76, &[0, 130], 38, Interleaved, [BF16, Int8]), [5, 4, 3]),
        (case(2, 16, &[0, 60, 140], 8, Interleaved, [BF16, BF16]), [5, 4, 3]),
        // Packed in another type; few tokens; weights in f32.
        (case(2, 12, &[0, 45], 6, Interleaved, [F16, BF16]), [5, 4, 4]),
        (case(2, 12, &[0, 31], 6, Interleaved, [BF16, BF16]), [4, 3, 3]),
        (case(2, 12, &[0, 45], 6, Interleaved, [BF16, F32]), [4, 3, 3]),
        // Pairs that lie apart, sums in f32, heads that are too wide: as ops one after the other.
        (case(2, 12, &[0, 45], 6, Half, [BF16, BF16]), [5, 5, 5]),
        (case(2, 12, &[0, 45], 6, Interleaved, [F32, BF16]), [4, 4, 4]),
        (case(1, 82, &[0, 45], 41, Interleaved, [BF16, BF16]), [4, 4, 4]),
    ] {
        let what = format!("{} of {} {:?}", case.segments.heads, case.segments.d, case.layout);
        let found =
            [Form::Ops, Form::Turned, Form::ForLayer].map(|form| case.run(&device, form).expect("runs"));
        assert!(found.iter().all(|(bytes, _)| *bytes == found[0].0), "{what}");
        assert_eq!(found.map(|(_, launches)| launches), launches, "{what}");
    }
}

#[test]
fn bugs_in_segments_are_noticed() {
    let several = Packed { heads: 2, d: 10, cu_seqlens: vec![0, 1, 67, 210], multiply_as: DType::BF16 };
    let qkv = several.qkv();
    let plain = |device: &Device| several.run(device, &qkv, 0..3);
    // An odd number of tiles of keys, and few blocks of threads for the units.
    let long = Packed { heads: 9, d: 10, cu_seqlens: vec![0, 300], multiply_as: DType::BF16 };
    let long_qkv = long.qkv();
    let many = |device: &Device| long.run(device, &long_qkv, 0..1);
    // All columns of values, and a tile without its last key.
    let wide = Packed { heads: 1, d: 70, cu_seqlens: vec![0, 63], multiply_as: DType::BF16 };
    let wide_qkv = wide.qkv();
    let full = |device: &Device| wide.run(device, &wide_qkv, 0..1);
    let segments = Packed { heads: 3, d: 14, cu_seqlens: vec![0, 45], multiply_as: DType::BF16 };
    let turned = Turned { segments, half: 5, layout: RopeLayout::Interleaved, next: WeightType::BF16 };
    let for_layer = |device: &Device| turned.run(device, Form::ForLayer).map(|(bytes, _)| bytes);
    let cases: [(&'static str, &'static str, Run); 26] = [
        // Barriers and waits.
        ("        __syncthreads();\n        load(0);", "        load(0);", &many),
        (
            "__syncthreads();\n            if (tile + 1 < num_tiles) load",
            "if (tile + 1 < num_tiles) load",
            &many,
        ),
        (
            "cp_async_wait<0>();\n            __syncthreads();\n            if (tile + 1",
            "__syncthreads();\n            if (tile + 1",
            &many,
        ),
        ("tile + 1 < num_tiles) load(tile + 1);", "tile + 2 < num_tiles) load(tile + 1);", &many),
        ("tiles + tile % 2 * 2 * PART;\n            load_rows", "tiles;\n            load_rows", &many),
        // Who is there.
        ("bool there = first + row < end;", "bool there = first + row <= end;", &plain),
        ("if (seen < KEYS) {", "if (seen < KEYS - 1) {", &full),
        ("if (n * 8 + pair + j % 2 >= seen)", "if (n * 8 + pair + j % 2 > seen)", &plain),
        ("if (row >= unit.num_tokens) continue;", "if (row > unit.num_tokens) continue;", &plain),
        ("if (i * 8 + pair >= s.d) break;", "if (i * 8 + pair > s.d) break;", &plain),
        ("first_row < unit.num_tokens;", "first_row + 32 < unit.num_tokens;", &plain),
        // Softmax.
        ("acc[g][i][half * 2] *= shrink, acc", "acc", &many),
        ("sums[g][half * 2] *= shrink;", "", &many),
        ("row_max[g][half] = after;", "", &many),
        ("weights[n / 2][n % 2 * 2 + half]", "weights[n / 2][half * 2 + n % 2]", &plain),
        // Places.
        ("values = part(2, unit.table)", "values = part(1, unit.table)", &plain),
        ("keys = part(1, unit.table)", "keys = part(1, unit.first_token)", &many),
        ("TILES - 1) + k * 16", "TILES - 2) + k * 16", &full),
        (
            "own + (k * 16 * Tile<WIDTH>::STRIDE + i * 8)",
            "own + (k * 16 * Tile<WIDTH>::STRIDE + i * 4)",
            &full,
        ),
        // What is rounded, and turns.
        ("at / 2 < s.half) v = rotated", "at / 2 <= s.half) v = rotated", &for_layer),
        ("head < 2 * s.heads && at", "head < 3 * s.heads && at", &for_layer),
        ("cos_table[angles + at / 2]", "cos_table[angles + at / 4]", &for_layer),
        (
            "((long long)head * s.tokens + token) * WIDTH + first",
            "((long long)head * s.tokens + token) * WIDTH",
            &plain,
        ),
        // What is packed: places, and zeros where it is filled up.
        ("packed_to + i * PACKED_TOKENS * 8,", "packed_to + i * PACKED_TOKENS * 4,", &for_layer),
        (
            "packed_place(token, first / 8, columns) + first % 8",
            "packed_place(token, first / 8, columns)",
            &for_layer,
        ),
        ("i = (there ? width : 0) + (int)threadIdx.x", "i = width + 2 + (int)threadIdx.x", &for_layer),
    ];
    assert_noticed(&cases);
}
