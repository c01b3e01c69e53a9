//! A row has the same bits alone, in company, with any number of threads, in any chunk; and nobody writes beyond the rows in
//! sight.

use crate::common::*;
use crate::pages::Pages;
use kernels::ops::*;
use kernels::*;

/// Every instruction set with one, two and three threads.
fn families() -> Vec<Vec<Device>> {
    let isas = Isa::ALL.into_iter().filter(|isa| isa.is_available());
    isas.map(|isa| [1, 2, 3].map(|threads| device(isa, threads)).to_vec()).collect()
}

/// As `families`, with activations as they are, and rounded in every way that the machine can.
fn families_of_products() -> Vec<Vec<Device>> {
    let isas = || Isa::ALL.into_iter().filter(|isa| isa.is_available());
    let with = |isa, activations| {
        let options = |threads| CpuOptions {
            threads: Some(threads),
            isa: Some(isa),
            activations,
            ..CpuOptions::default()
        };
        let devices: Result<Vec<Device>, _> =
            [1, 2, 3].map(|n| Device::cpu_with(options(n))).into_iter().collect();
        devices.ok()
    };
    let rounding =
        isas().flat_map(|isa| [with(isa, ActivationChoice::BF16), with(isa, ActivationChoice::Int8)]);
    families().into_iter().chain(rounding.flatten()).collect()
}

/// `run(device, rows)` gives the output of some of the rows; all must equal what they are together, on the first device.
fn check(
    what: &str,
    num_rows: usize,
    subsets: &[std::ops::Range<usize>],
    run: impl Fn(&Device, std::ops::Range<usize>) -> Vec<f32>,
) {
    check_on(families(), what, num_rows, subsets, run);
}

fn check_on(
    families: Vec<Vec<Device>>,
    what: &str,
    num_rows: usize,
    subsets: &[std::ops::Range<usize>],
    run: impl Fn(&Device, std::ops::Range<usize>) -> Vec<f32>,
) {
    for family in families {
        let together = bits(&run(&family[0], 0..num_rows));
        let row_len = together.len() / num_rows;
        for device in &family {
            for rows in subsets.iter().cloned().chain(std::iter::once(0..num_rows)) {
                let expected = &together[rows.start * row_len..rows.end * row_len];
                assert!(bits(&run(device, rows.clone())) == expected, "{what}: rows {rows:?} on {device:?}");
            }
        }
    }
}

fn part(host: &Host, rows: std::ops::Range<usize>) -> (Vec<usize>, Vec<f32>) {
    let len: usize = host.shape[1..].iter().product();
    let mut shape = host.shape.clone();
    shape[0] = rows.len();
    (shape, host.values[rows.start * len..rows.end * len].iter().map(|&v| v as f32).collect())
}

fn tensor(device: &Device, (shape, values): (Vec<usize>, Vec<f32>)) -> Tensor {
    Tensor::from_f32(device, &shape, &values)
}

/// An output tensor with two rows too many, which must stay as they are.
fn guarded(device: &Device, num_rows: usize, row_len: usize, run: impl FnOnce(&mut Tensor)) -> Vec<f32> {
    let mut out = Tensor::from_f32(device, &[num_rows + 2, row_len], &vec![0.5; (num_rows + 2) * row_len]);
    out.set_rows(num_rows);
    run(&mut out);
    out.reshape(&[num_rows + 2, row_len]);
    let values = out.as_f32();
    assert!(values[num_rows * row_len..].iter().all(|&v| v == 0.5), "rows beyond the last");
    values[..num_rows * row_len].to_vec()
}

#[test]
fn rows_of_linear_layers() {
    let (t, n, k) = (211, 67, 523);
    let x = Host::random(DType::F32, &[t, k], 1);
    let bias = Host::random(DType::F32, &[n], 2);
    for dtype in WeightType::ALL {
        let w = Host::random(DType::F32, &[n, k], 3);
        check_on(
            families_of_products(),
            "linear",
            t,
            &[0..1, 7..8, 3..5, 150..162, 5..149, 210..211],
            |device, rows| {
                let w = Matrix::pack(device, dtype, &[w.view()]);
                let x = tensor(device, part(&x, rows.clone()));
                let bias = bias.tensor(device);
                guarded(device, rows.len(), n, |out| linear(&x, &w, Some(&bias), Activation::GeluTanh, out))
            },
        );
    }
}

/// Two layers of one x, which round it once where they are of one type, have the bits of each alone.
#[test]
fn pairs_of_linear_layers() {
    let (t, k, [n, m]) = (37, 133, [70, 35]);
    let x = Host::random(DType::F32, &[t, k], 1);
    let [first, second] = [(n, 2), (m, 3)].map(|(n, seed)| Host::random(DType::F32, &[n, k], seed));
    let bias = Host::random(DType::F32, &[m], 4);
    for types in [[WeightType::BF16; 2], [WeightType::Int8; 2], [WeightType::Int8, WeightType::Int4]] {
        for device in families_of_products().into_iter().flatten() {
            let [a, b] = [(types[0], &first), (types[1], &second)]
                .map(|(stored_as, w)| Matrix::pack(&device, stored_as, &[w.view()]));
            let bias = bias.tensor(&device);
            for rows in [0..0, 0..1, 3..11, 0..t] {
                let num_rows = rows.len();
                let x = tensor(&device, part(&x, rows));
                let alone = |w: &Matrix, bias| {
                    guarded(&device, num_rows, w.n(), |out| linear(&x, w, bias, Activation::None, out))
                };
                let expected = [alone(&a, None), alone(&b, Some(&bias))].map(|values| bits(&values));
                let mut of_second = Vec::new();
                let of_first = guarded(&device, num_rows, n, |out| {
                    of_second = guarded(&device, num_rows, m, |second| {
                        let first = LinearPart { weight: &a, bias: None, out };
                        linear_pair(&x, [first, LinearPart { weight: &b, bias: Some(&bias), out: second }]);
                    });
                });
                let found = [of_first, of_second].map(|values| bits(&values));
                assert!(found == expected, "{types:?}, {num_rows} rows on {device:?}");
            }
        }
    }
}

#[test]
fn rows_of_heads() {
    for (t, h, n, k, subsets) in
        [(37, 3, 35, 41, [0..1, 36..37, 4..17]), (301, 2, 300, 290, [300..301, 3..13, 150..300])]
    {
        rows_of_heads_of([t, h, n, k], &subsets);
    }
}

fn rows_of_heads_of([t, h, n, k]: [usize; 4], subsets: &[std::ops::Range<usize>]) {
    let x = Host::random(DType::F32, &[t, h, k], 1);
    let w = Host::random(DType::BF16, &[h * n, k], 2);
    for stored_as in [WeightType::BF16, WeightType::CompactBf16, WeightType::Int8, WeightType::Int4Zero] {
        check_on(families_of_products(), "heads_linear", t, subsets, |device, rows| {
            let value = |h: usize, i: usize, c: usize| w.view().get((h * n + i) * k + c);
            let w = MatrixBatch::pack_f32(device, stored_as, [h, n, k], &value);
            let x = tensor(device, part(&x, rows.clone()));
            guarded(device, rows.len(), h * n, |out| {
                out.reshape(&[rows.len(), h, n]);
                heads_linear(&x, &w, HeadSliceMut::from(&mut *out));
            })
        });
    }
}

#[test]
fn rows_of_experts() {
    let (t, h, i, e, k) = (163, 70, 35, 5, 3);
    let x = Host::random(DType::F32, &[t, h], 1);
    let weights = Host::random(DType::F32, &[t, k], 2);
    let ids: Vec<f32> = (0..t * k).map(|pair| ((pair * 7 + pair / 11) % e) as f32).collect();
    let ids = Host::new(DType::F32, &[t, k], &ids);
    for stored_as in
        [WeightType::BF16, WeightType::CompactBf16, WeightType::Int8, WeightType::Int4, WeightType::Int4Zero]
    {
        check_on(families_of_products(), "moe", t, &[0..1, 162..163, 9..12, 1..150], |device, rows| {
            let experts = Experts::random(device, stored_as, [e, h, i], 0.2, 4);
            let mut chosen = Tensor::zeros(device, DType::I32, &[rows.len(), k]);
            for (id, value) in chosen.as_i32_mut().iter_mut().zip(part(&ids, rows.clone()).1) {
                *id = value as i32;
            }
            let (x, weights) =
                (tensor(device, part(&x, rows.clone())), tensor(device, part(&weights, rows.clone())));
            let mut scratch = MoeScratch::new(device, t, [e, h, i], k);
            guarded(device, rows.len(), h, |out| moe(&x, &experts, &chosen, &weights, &mut scratch, out))
        });
    }
}

/// Rows are positions: a subset is a chunk of the same sequence over the same cache.
#[test]
fn chunks_of_a_sequence() {
    let (len, heads, kv_heads, d, dv, block) = (1301, 6, 2, 20, 18, 7);
    let pages = Pages::new(&[[0, len]], block);
    let q = Host::random(DType::F32, &[len, heads, d], 1);
    let keys = Host::random(DType::BF16, &[pages.num_slots, kv_heads, d], 2);
    let values = Host::random(DType::BF16, &[pages.num_slots, kv_heads, dv], 3);
    let chunks = [0..1, 63..65, 511..514, 1300..1301, 600..1201, 1023..1024];
    check_on(families_of_products(), "gqa_attention", len, &chunks, |device, rows| {
        let sizes =
            AttentionSizes { heads, kv_heads, key_dim: d, value_dim: dv, max_context: len, max_tokens: len };
        let mut scratch = AttentionScratch::new(device, sizes);
        let (keys, values) = (keys.tensor(device), values.tensor(device));
        let x = tensor(device, part(&q, rows.clone()));
        guarded(device, rows.len(), heads * dv, |out| {
            out.reshape(&[rows.len(), heads, dv]);
            let (cu_seqlens, context_lens) = ([0, rows.len() as u32], [rows.start as u32]);
            let ragged = Ragged {
                cu_seqlens: (&cu_seqlens).into(),
                context_lens: (&context_lens).into(),
                ..pages.ragged(block)
            };
            gqa_attention(&x, &keys, &values, &ragged, 0.3, &mut scratch, out);
        })
    });
    check_on(families_of_products(), "mla_attention", len, &chunks, |device, rows| {
        let sizes = AttentionSizes {
            heads,
            kv_heads: 1,
            key_dim: d,
            value_dim: dv,
            max_context: len,
            max_tokens: len,
        };
        let mut scratch = AttentionScratch::new(device, sizes);
        let mut cache = Tensor::from_host_as(device, keys.view(), DType::BF16);
        cache.reshape(&[pages.num_slots, d]);
        let x = tensor(device, part(&q, rows.clone()));
        guarded(device, rows.len(), heads * dv, |out| {
            out.reshape(&[rows.len(), heads, dv]);
            let (cu_seqlens, context_lens) = ([0, rows.len() as u32], [rows.start as u32]);
            let ragged = Ragged {
                cu_seqlens: (&cu_seqlens).into(),
                context_lens: (&context_lens).into(),
                ..pages.ragged(block)
            };
            mla_attention(&x, &cache, dv, &ragged, 0.3, &mut scratch, out);
        })
    });
}

/// Sixteen heads of one token go a way of their own, and so does a sequence that threads share; those of several tokens do not.
#[test]
fn a_token_of_sixteen_heads() {
    let (len, heads, d, dv, block) = (641, 16, 40, 32, 7);
    let pages = Pages::new(&[[0, len]], block);
    let q = Host::random(DType::F32, &[len, heads, d], 1);
    let latents = Host::random(DType::BF16, &[pages.num_slots, d], 2);
    let chunks = [0..1, 1..2, 62..63, 63..64, 64..65, 127..128, 511..512, 512..513, 638..641, 640..641];
    check_on(families_of_products(), "mla_attention", len, &chunks, |device, rows| {
        let sizes = AttentionSizes {
            heads,
            kv_heads: 1,
            key_dim: d,
            value_dim: dv,
            max_context: len,
            max_tokens: len,
        };
        let mut scratch = AttentionScratch::new(device, sizes);
        let cache = latents.tensor(device);
        let x = tensor(device, part(&q, rows.clone()));
        guarded(device, rows.len(), heads * dv, |out| {
            out.reshape(&[rows.len(), heads, dv]);
            let (cu_seqlens, context_lens) = ([0, rows.len() as u32], [rows.start as u32]);
            let ragged = Ragged {
                cu_seqlens: (&cu_seqlens).into(),
                context_lens: (&context_lens).into(),
                ..pages.ragged(block)
            };
            mla_attention(&x, &cache, dv, &ragged, 0.3, &mut scratch, out);
        })
    });
}

/// The same sequence alone, and as the third of four.
#[test]
fn sequences_in_a_batch() {
    let (heads, d, dv, block) = (16, 24, 16, 4);
    let items = [[40, 3], [0, 70], [700, 2], [0, 1]];
    let pages = Pages::new(&items, block);
    let t = *pages.cu_seqlens.last().unwrap() as usize;
    let q = Host::random(DType::F32, &[t, heads, d], 1);
    let caches = [DType::F16, DType::BF16].map(|dtype| Host::random(dtype, &[pages.num_slots, d], 2));
    for (family, cache) in
        families_of_products().into_iter().flat_map(|f| caches.iter().map(move |c| (f.clone(), c)))
    {
        let run = |device: &Device, ragged: Ragged, q: Tensor| {
            let sizes = AttentionSizes {
                heads,
                kv_heads: 1,
                key_dim: d,
                value_dim: dv,
                max_context: 1000,
                max_tokens: 76,
            };
            let mut scratch = AttentionScratch::new(device, sizes);
            let rows = q.shape()[0];
            guarded(device, rows, heads * dv, |out| {
                out.reshape(&[rows, heads, dv]);
                mla_attention(&q, &cache.tensor(device), dv, &ragged, 0.3, &mut scratch, out);
            })
        };
        let together = run(&family[0], pages.ragged(block), q.tensor(&family[0]));
        for device in &family {
            for (item, [old, _]) in items.into_iter().enumerate() {
                let tokens = pages.cu_seqlens[item] as usize..pages.cu_seqlens[item + 1] as usize;
                let blocks = pages.cu_blocks[item] as usize..pages.cu_blocks[item + 1] as usize;
                let (cu_seqlens, cu_blocks) = ([0, tokens.len() as u32], [0, blocks.len() as u32]);
                let context_lens = [old as u32];
                let alone = Ragged {
                    cu_seqlens: (&cu_seqlens).into(),
                    context_lens: (&context_lens).into(),
                    block_tables: (&pages.block_tables[blocks]).into(),
                    cu_blocks: (&cu_blocks).into(),
                    block_size: block,
                    selected: None,
                };
                let found = run(device, alone, tensor(device, part(&q, tokens.clone())));
                let expected = &together[tokens.start * heads * dv..tokens.end * heads * dv];
                assert!(bits(&found) == bits(expected), "item {item} on {device:?}");
            }
        }
    }
}

/// Threads that share one block, keys first and then columns, leave the bits that one thread does.
#[test]
fn one_sequence_by_several_threads() {
    let block = 4;
    let isa = Isa::best();
    for (heads, d, dv) in [(16, 72, 64), (3, 21, 17), (20, 112, 100), (16, 40, 40)] {
        for [old, new] in [[62, 1], [63, 1], [64, 1], [128, 1], [300, 1], [511, 1], [512, 1]] {
            let pages = Pages::new(&[[5, 1], [old, new]], block);
            let q = Host::random(DType::F32, &[new, heads, d], 1);
            let cache = Host::random(DType::BF16, &[pages.num_slots, d], 2);
            let (cu_seqlens, context_lens) = ([0, new as u32], [old as u32]);
            let cu_blocks = [0, pages.cu_blocks[2] - pages.cu_blocks[1]];
            let alone = Ragged {
                cu_seqlens: (&cu_seqlens).into(),
                context_lens: (&context_lens).into(),
                block_tables: (&pages.block_tables[pages.cu_blocks[1] as usize..]).into(),
                cu_blocks: (&cu_blocks).into(),
                ..pages.ragged(block)
            };
            let sizes = AttentionSizes {
                heads,
                kv_heads: 1,
                key_dim: d,
                value_dim: dv,
                max_context: 1000,
                max_tokens: 4,
            };
            let run = |threads| {
                let device = device(isa, threads);
                let mut scratch = AttentionScratch::new(&device, sizes);
                bits(&guarded(&device, new, heads * dv, |out| {
                    out.reshape(&[new, heads, dv]);
                    let (q, cache) = (q.tensor(&device), cache.tensor(&device));
                    mla_attention(&q, &cache, dv, &alone, 0.3, &mut scratch, out);
                }))
            };
            let expected = run(1);
            for threads in [2, 3, 7] {
                assert!(run(threads) == expected, "{heads} heads after {old} keys, {threads} threads");
            }
        }
    }
}

/// Segments do not see each other.
#[test]
fn pictures_in_a_batch() {
    let (heads, d, lens) = (3, 10, [5, 130, 64]);
    let qkv = Host::random(DType::F32, &[199, 3, heads, d], 1);
    for family in families_of_products() {
        let run = |device: &Device, rows: std::ops::Range<usize>, cu_seqlens: &[u32]| {
            let sizes = AttentionSizes {
                heads,
                kv_heads: heads,
                key_dim: d,
                value_dim: d,
                max_context: 0,
                max_tokens: 199,
            };
            let mut scratch = AttentionScratch::new(device, sizes).multiplying_as(DType::BF16);
            let x = tensor(device, part(&qkv, rows.clone()));
            guarded(device, rows.len(), heads * d, |out| {
                out.reshape(&[rows.len(), heads, d]);
                packed_attention(&x, cu_seqlens, 0.3, &mut scratch, out);
            })
        };
        let together = run(&family[0], 0..199, &[0, 5, 135, 199]);
        for device in &family {
            let mut start = 0;
            for len in lens {
                let found = run(device, start..start + len, &[0, len as u32]);
                let expected = &together[start * heads * d..(start + len) * heads * d];
                assert!(bits(&found) == bits(expected), "{len} rows from {start} on {device:?}");
                start += len;
            }
        }
    }
}

#[test]
fn rows_of_norms_and_sums() {
    let (t, d) = (307, 131);
    let x = Host::random(DType::F32, &[t, d], 1);
    let (w, b) = (Host::random(DType::F32, &[d], 2), Host::random(DType::F32, &[d], 3));
    let subsets = [0..1, 5..6, 306..307, 17..90];
    check("rms_norm", t, &subsets, |device, rows| {
        let (x, w) = (tensor(device, part(&x, rows.clone())), w.tensor(device));
        guarded(device, rows.len(), d, |out| rms_norm(&x, &w, 1e-6, out))
    });
    check("add_rms_norm", t, &subsets, |device, rows| {
        let (x, w) = (tensor(device, part(&x, rows.clone())), w.tensor(device));
        let mut residual = Tensor::random(device, &[1, d], 1.0, 9);
        let one_row = residual.as_f32().repeat(rows.len());
        residual = Tensor::from_f32(device, &[rows.len(), d], &one_row);
        guarded(device, rows.len(), d, |out| add_rms_norm(&mut residual, &x, &w, 1e-6, out))
    });
    check("layer_norm", t, &subsets, |device, rows| {
        let (x, w, b) = (tensor(device, part(&x, rows.clone())), w.tensor(device), b.tensor(device));
        guarded(device, rows.len(), d, |out| layer_norm(&x, &w, &b, 1e-6, out))
    });
    check("silu_mul", t, &subsets, |device, rows| {
        let both: Vec<f32> = part(&x, rows.clone()).1.chunks(d).flat_map(|row| [row, row].concat()).collect();
        let x = Tensor::from_f32(device, &[rows.len(), 2 * d], &both);
        guarded(device, rows.len(), d, |out| silu_mul(&x, out))
    });
}
