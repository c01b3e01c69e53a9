//! Bugs planted into the kernels that are in use, one at a time: what the other tests check must notice each of them.

use crate::common::*;
use crate::device::{edited, emulated};
use crate::tokens::{added, made_for, norm_for};
use kernels::ops::*;
use kernels::*;

/// Schedules that a bug may hide from; it must not hide from all.
const SEEDS: u64 = 4;

/// An op on a device, and the bytes that it gives.
pub type Run<'a> = &'a dyn Fn(&Device) -> Result<Vec<u8>, Error>;

/// Plants `from → to` and runs: an error, or another result under some schedule.
fn is_noticed(from: &'static str, to: &'static str, run: &dyn Fn(&Device) -> Result<Vec<u8>, Error>) -> bool {
    let right = run(&emulated(0)).expect("the kernel without a bug");
    (0..SEEDS).any(|seed| {
        run(&edited(seed, from, to)).map_or_else(
            |error| {
                assert!(
                    matches!(error, Error::Cuda(cuda::error::CudaError::Lost { .. })),
                    "{from:?}: {error}"
                );
                true
            },
            |found| found != right,
        )
    })
}

/// Each bug by itself: what it replaces, by what, and who must notice.
pub fn assert_noticed(cases: &[(&'static str, &'static str, Run)]) {
    let unnoticed: Vec<String> = cases
        .iter()
        .filter(|(from, to, run)| !is_noticed(from, to, run))
        .map(|(from, to, _)| format!("{from:?} became {to:?}, and nobody noticed"))
        .collect();
    assert!(unnoticed.is_empty(), "{}", unnoticed.join("\n"));
}

fn linear_of(t: usize, stored_as: WeightType) -> impl Fn(&Device) -> Result<Vec<u8>, Error> {
    linear_of_size([t, 40, 299], stored_as)
}

fn linear_of_size(
    [t, n, k]: [usize; 3],
    stored_as: WeightType,
) -> impl Fn(&Device) -> Result<Vec<u8>, Error> {
    move |device| {
        let dtype = stored_as.float().unwrap_or(DType::F32);
        let (x, w) = (Host::random(DType::F32, &[t, k], 1), Host::random(dtype, &[n, k], 2));
        let w = Matrix::pack(device, stored_as, &[w.view()]);
        let bias = Host::random(DType::F32, &[n], 3).tensor(device);
        let mut out = Tensor::unwritten(device, DType::F32, &[t, n]);
        linear(&x.tensor(device), &w, Some(&bias), Activation::None, &mut out);
        out.read()
    }
}

#[test]
fn in_linear_layers() {
    let few = linear_of(5, WeightType::BF16);
    let many = linear_of(45, WeightType::BF16);
    // Blocks of 128 tokens, which are read eight elements at a time.
    let wide = linear_of_size([140, 150, 72], WeightType::BF16);
    let f32 = linear_of(5, WeightType::F32);
    let pair = |device: &Device| {
        let x = Host::random(DType::F32, &[5, 99], 1).tensor(device);
        let [first, second] = [33, 70].map(|n| {
            let (w, bias) =
                (Host::random(DType::BF16, &[n, 99], n as u64), Host::random(DType::F32, &[n], 3));
            (Matrix::pack(device, DType::BF16, &[w.view()]), bias.tensor(device))
        });
        let [mut a, mut b] = [33, 70].map(|n| Tensor::unwritten(device, DType::F32, &[5, n]));
        let first = LinearPart { weight: &first.0, bias: Some(&first.1), out: &mut a };
        linear_pair(&x, [first, LinearPart { weight: &second.0, bias: Some(&second.1), out: &mut b }]);
        Ok([a.read()?, b.read()?].concat())
    };
    let cases: [(&'static str, &'static str, Run); 21] = [
        // Barriers and waits.
        ("cp_async_wait<1>();\n        __syncthreads();", "cp_async_wait<1>();", &many),
        ("cp_async_wait<1>();", "cp_async_wait<2>();", &many),
        ("    __syncthreads();\n    Ptr<const float> added", "    Ptr<const float> added", &few),
        // Guards and tails.
        (
            "if (row >= n || token >= s.rows) continue;\n        float total",
            "if (row >= n || token > s.rows) continue;\n        float total",
            &few,
        ),
        (
            "if (row >= n || token >= s.rows) continue;\n        float total",
            "if (row > n || token >= s.rows) continue;\n        float total",
            &few,
        ),
        ("} else if (k + 1 < end) {", "} else if (k < end) {", &few),
        ("token < s.rows, s.k", "token <= s.rows, s.k", &many),
        ("(TOKENS / 2) + 15) / 16", "(TOKENS / 2)) / 16", &many),
        ("at.first_token + i * 64 + (int)threadIdx.x / 4", "at.first_token + (int)threadIdx.x / 4", &wide),
        ("to + place(i * 64 + thread / 4,", "to + place(thread / 4,", &wide),
        ("row.pairs != 8 || k + 8 > row.k", "row.pairs != 8", &wide),
        ("p < panels && step * UNITS + at / Format::LEN < units", "p <= panels", &many),
        ("if (row >= s.n) return;", "if (row > s.n) return;", &f32),
        // Lanes and places.
        ("lane / 16 * 8 + lane % 8,", "lane % 16,", &many),
        (
            "int row = first_row + i % 16, token = first_token + i / 16;",
            "int row = first_row + i % 16, token = first_token + i / 16 + 1;",
            &few,
        ),
        // The layer beside it.
        ("if (is_beside) index -= 2 * s.panels;", "", &pair),
        ("n = is_beside ? beside.n : s.n,", "n = s.n,", &pair),
        ("out_stride = is_beside ? beside.n", "out_stride = is_beside ? s.n", &pair),
        ("(is_beside ? w_beside : w)", "w", &pair),
        ("added = is_beside ? bias_beside : bias;", "added = bias;", &pair),
        // The order of a sum.
        ("(unit + 1) % per == 0 || unit + 1 == units", "(unit + 1) % per == 0", &many),
    ];
    assert_noticed(&cases);
}

#[test]
fn in_packed_tokens() {
    let packed_of = |[t, n, k]: [usize; 3], stored_as: WeightType| {
        move |device: &Device| {
            let dtype = stored_as.float().unwrap_or(DType::F32);
            let (x, w) = (Host::random(DType::F32, &[t, k], 1), Host::random(dtype, &[n, k], 2));
            let (x, w) = (x.tensor(device), Matrix::pack(device, stored_as, &[w.view()]));
            let mut out = Tensor::unwritten(device, DType::F32, &[t, n]);
            let mut room = TokenRoom::new(device, &[[t, k]]);
            room.hold(&x).linear(&w, None, Activation::None, &mut out);
            out.read()
        }
    };
    let odd = packed_of([77, 40, 299], WeightType::BF16);
    let even = packed_of([45, 40, 68], WeightType::Int4);
    let wide = packed_of([140, 150, 72], WeightType::BF16);
    let made = |device: &Device| {
        let (outs, _) = made_for(device, [70, 37, 40], [WeightType::BF16; 2], true)?;
        Ok(outs.concat())
    };
    let adds = |device: &Device| added(device, [45, 40, 33], WeightType::BF16, true).map(|(bytes, _)| bytes);
    let normed = |device: &Device| {
        let of = |adds| norm_for(device, [45, 36, 40], [WeightType::BF16; 2], adds, true);
        Ok([of(false)?.0, of(true)?.0].concat())
    };
    let cases: [(&'static str, &'static str, Run); 23] = [
        // What is added to a stream.
        ("if (row < s.n && token < s.rows) v = out[", "if (row <= s.n && token < s.rows) v = out[", &adds),
        (
            "v = out[(long long)token * s.out_stride + row] + v;",
            "v = out[(long long)token * s.out_stride] + v;",
            &adds,
        ),
        ("if (s.adds) at.each", "if (s.adds && s.rows > 64) at.each", &adds),
        // What is rounded where it is made: places, and zeros where it is filled up.
        ("(2 * (long long)token + 1) * k", "(2 * (long long)token + 2) * k", &made),
        ("packed_place(token, i / 8, columns) + i % 8", "packed_place(token, i / 8, columns) + i % 4", &made),
        (
            "row.store(i, v); });\n    }\n    row.fill_up(there ? width : 0);",
            "row.store(i, v); });\n    }\n    row.fill_up(there ? width + 1 : 0);",
            &made,
        ),
        // The same beside f32, by norms of the stream.
        (
            "row);\n    }\n    row.fill_up(there ? width : 0);\n}\n\ntemplate",
            "row);\n    }\n    row.fill_up(there ? width + 1 : 0);\n}\n\ntemplate",
            &normed,
        ),
        ("packed.store(i, v);", "packed.store(i ^ 4, v);", &normed),
        ("Wide<N>::store(out + i, v);\n        packed", "packed", &normed),
        (
            "Ptr<const float>(residual + start), 1.0f / sqrtf(mean + eps), w, width",
            "x + start, 1.0f / sqrtf(mean + eps), w, width",
            &normed,
        ),
        ("columns_out) + row % 8]", "columns_out) + row % 4]", &made),
        ("(row < columns_out * 8)", "(row < s.n)", &made),
        ("Float<Taken>::from(there ? v : 0.0f)", "Float<Taken>::from(v + 1.0f)", &made),
        // The pass that rounds.
        ("token >= rows || column * 8 + i >= k", "token > rows || column * 8 + i >= k", &even),
        ("token >= rows || column * 8 + i >= k", "token >= rows || column * 8 + i > k", &odd),
        ("if (column >= columns) return;", "", &odd),
        ("((int)blockIdx.y * 8 + warp_id()) * 4", "((int)blockIdx.y * 9 + warp_id()) * 4", &odd),
        ("F::pack(v[2], v[3])", "F::pack(v[3], v[2])", &even),
        // Places of blocks, steps and tokens.
        ("packed_place(at.first_token, 0, columns)", "packed_place(0, 0, columns)", &odd),
        ("columns = packed_columns(s.k),", "columns = packed_columns(s.k) + 4,", &wide),
        ("((step * 4 + column) * PACKED_TOKENS + token)", "((step * 4 + column) * TOKENS + token)", &odd),
        ("(k / 8 * TOKENS + token) * 8", "(k / 8 * 64 + token) * 8", &wide),
        (
            "if constexpr (From::PACKED) from.copy(tokens_of(step), step, count);",
            "if constexpr (From::PACKED) from.copy(tokens_of(step), step, 64);",
            &wide,
        ),
    ];
    assert_noticed(&cases);
}

#[test]
fn in_quantised_layers() {
    let int8 = linear_of(5, WeightType::Int8);
    let int4 = linear_of(5, WeightType::Int4);
    let many = linear_of(45, WeightType::Int4);
    let zeros = linear_of(45, WeightType::Int4Zero);
    let cases: [(&'static str, &'static str, Run); 10] = [
        // Levels: bytes, signs, nibbles, tiles.
        ("i % 2 ? 0x4342 : 0x4140", "i % 2 ? 0x4342 : 0x4342", &int8),
        ("(bytes & 0x00800080u)", "(bytes & 0x00800000u)", &int8),
        ("v >> 4 * r & 0x000f000fu", "v >> 4 * (r ^ 1) & 0x000f000fu", &int4),
        ("rows.a[1][r] = unpack_nibbles(v.y, r)", "rows.a[1][r] = unpack_nibbles(v.x, r)", &many),
        // Groups, and whose scale it is.
        (
            "(long long)unit * Format::LEN), half, lane",
            "(long long)(unit ^ 1) * Format::LEN), half, lane",
            &int4,
        ),
        ("f16 scale = scales[8 * i];", "f16 scale = scales[0];", &many),
        ("fmaf(rows.scale[i / 2], part[i], d[i])", "fmaf(rows.scale[i % 2], part[i], d[i])", &int8),
        // Zeros, and the sums that they are multiplied with.
        ("f16 zero = scales[32 + 8 * i];", "f16 zero = scales[8 * i];", &zeros),
        ("part[i] = fmaf(-rows.zero[i / 2], tokens.sum[i % 2], part[i]);", "part[i] += 0.0f;", &zeros),
        ("mma_m16n8k16_bf16(d, ones, tokens.b[1][0], tokens.b[1][1]);", "", &zeros),
    ];
    assert_noticed(&cases);
}

#[test]
fn in_layers_with_wgmma() {
    let sized = |[t, n, k]: [usize; 3]| {
        move |device: &Device| {
            let Device::Cuda(cuda) = device else { panic!("not a GPU") };
            assert!(cuda.choose_matmul(cuda::Matmul::Wgmma), "compute capability 9.0");
            let (x, w) = (Host::random(DType::F32, &[t, k], 1), Host::random(DType::BF16, &[n, k], 2));
            let (x, w) = (x.tensor(device), Matrix::pack(device, DType::BF16, &[w.view()]));
            let mut out = Tensor::unwritten(device, DType::F32, &[t, n]);
            TokenRoom::new(device, &[[t, k]]).hold(&x).linear(&w, None, Activation::None, &mut out);
            out.read()
        }
    };
    // More stages than the ring has; blocks of a cluster that lack rows, and tokens.
    let long = sized([200, 160, 800]);
    let wide = sized([400, 140, 50]);
    let cases: [(&'static str, &'static str, Run); 19] = [
        // Barriers, and who arrives at them.
        ("mbarrier_wait_cluster(ring.empty + stage, (n / CLUSTER_RING & 1) ^ 1);", "", &long),
        ("mbarrier_wait(ring.full + stage, n / CLUSTER_RING & 1);\n        // A panel", "// A panel", &wide),
        ("mbarrier_init(full + i, 1);", "mbarrier_init(full + i, 2);", &wide),
        ("8 * Work::SENDERS", "8", &long),
        ("work.same_weights() | work.same_tokens(), lane", "1u << cluster_rank(), lane", &long),
        ("if (senders >> lane & 1) mbarrier", "if (lane < 4) mbarrier", &long),
        (
            "    mbarrier_init_fence();\n    }\n    cluster_arrive();\n    cluster_wait();",
            "}\n__syncthreads();",
            &wide,
        ),
        ("wgmma_wait<0>();\n        } else", "} else", &long),
        // Nobody leaves before others have told it that they read.
        (
            "out[(long long)token * s.out_stride + row] = total[j][e];\n            }\n    }\n    cluster_wait();",
            "out[(long long)token * s.out_stride + row] = total[j][e];\n            }\n    }",
            &wide,
        ),
        // Shares: what each block sends, and to whom.
        ("int p = work.col(); p", "int p = 0; p", &wide),
        ("int c = work.row(); c", "int c = 0; c", &wide),
        (
            "same_weights = (unsigned short)work.same_weights()",
            "same_weights = (unsigned short)work.same_tokens()",
            &wide,
        ),
        ("ring.full + stage, same_tokens);", "ring.full + stage, (unsigned short)(same_tokens & 1));", &wide),
        // Places.
        (
            "len = min(PACKED_TOKENS - token % PACKED_TOKENS, work.tokens - at);",
            "len = work.tokens - at;",
            &wide,
        ),
        ("2 * first + c, work.columns", "first + c, work.columns", &long),
        ("b + tile * (ClusterStage::COLUMN / 4)", "b + tile * (ClusterStage::COLUMN / 8)", &long),
        ("(s.rows - first_token + 63) / 64 * 64", "(s.rows - first_token) / 64 * 64", &wide),
        ("if (panel < work.panels) load", "if (panel <= work.panels) load", &wide),
        // The order of a sum.
        ("if (chunk.ends) {", "if (chunk.first + chunk.count == work.units) {", &long),
    ];
    assert_noticed(&cases);
}

#[test]
fn in_norms_and_reductions() {
    let norm = |device: &Device| {
        let (t, d) = (3, 301);
        let (x, w) = (Host::random(DType::F32, &[t, d], 1), Host::random(DType::F32, &[d], 2));
        let mut out = Tensor::unwritten(device, DType::F32, &[t, d]);
        rms_norm(&x.tensor(device), &w.tensor(device), 1e-5, &mut out);
        out.read()
    };
    let cases = [
        (
            "if (lane_id() == 0) scratch[warp_id()] = v;\n    __syncthreads();",
            "if (lane_id() == 0) scratch[warp_id()] = v;",
        ),
        ("for (int step = 16; step; step /= 2) v += ", "for (int step = 8; step; step /= 2) v += "),
        ("for (int w = 1; w < WARPS; w++) total += ", "for (int w = 2; w < WARPS; w++) total += "),
        (
            "i < width; i += THREADS * N) {\n        float v[N], scale[N];",
            "i <= width; i += THREADS * N) {\n        float v[N], scale[N];",
        ),
        (
            "i < width; i += THREADS * N) {\n        float v[N];",
            "i + 1 < width; i += THREADS * N) {\n        float v[N];",
        ),
    ];
    for (from, to) in cases {
        assert!(is_noticed(from, to, &norm), "{from:?} became {to:?}, and nobody noticed");
    }
}

#[test]
fn in_moves_and_rotations() {
    let store = |device: &Device| {
        let src = Host::random(DType::F32, &[3, 17], 2).tensor(device);
        let mut cache = Tensor::zeros(device, DType::BF16, &[8, 17]);
        store_rows(&src, &mut cache, &[7, 2, 5]);
        cache.read()
    };
    let turn = |device: &Device| {
        let mut x = Host::random(DType::F32, &[5, 3, 24], 1).tensor(device);
        let table = RopeTable::new(device, 5, 12, &|p, i| ((p * 13 + i) as f32, i as f32));
        rope(&mut x, 0, &table, &[4, 3, 2, 1, 0], RopeLayout::Half);
        x.read()
    };
    let cases: [(&'static str, &'static str, Run); 4] = [
        (
            "if (dst_rows != nullptr) to = dst_rows[i];",
            "if (dst_rows != nullptr) to = dst_rows[i] + 1;",
            &store,
        ),
        ("j < width; j += THREADS * N", "j <= width; j += THREADS * N", &store),
        ("halves ? Places{pair, pair + half}", "halves ? Places{pair, pair + half + 1}", &turn),
        ("i < s.num_heads * s.half;", "i <= s.num_heads * s.half;", &turn),
    ];
    assert_noticed(&cases);
}
