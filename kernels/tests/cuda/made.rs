//! What attention makes for the layer that reads it: rounded and packed at once, in f32, or both, with the bits of attention and a pass that rounds.

use crate::attention::SCALE;
use crate::common::*;
use crate::device::{SEEDS, emulated, sized};
use crate::mutants::{Run, assert_noticed};
use crate::pages::Pages;
use crate::tokens::poison;
use kernels::ops::*;
use kernels::*;

const BLOCK: usize = 5;
/// Outputs of the layer.
const OUT: usize = 33;

/// How a result goes to the layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// By a pass.
    Apart,
    /// Rounded where it is made, and in f32 as well.
    Both,
    Packed,
}

/// What the layer makes, what attention made in f32 where it is told to, and launches.
type Made = Result<(Vec<Vec<u8>>, u64), Error>;

fn weights(device: &Device, stored_as: WeightType, k: usize) -> Matrix {
    let w = Host::random(stored_as.float().unwrap_or(DType::F32), &[OUT, k], 9);
    Matrix::pack(device, stored_as, &[w.view()])
}

fn poisoned(device: &Device, [t, k]: [usize; 2]) -> TokenRoom {
    let mut room = TokenRoom::new(device, &[[t, k]]);
    if t > 32 {
        poison(device, &mut room, [t.next_multiple_of(128), k.next_multiple_of(32)]);
    }
    room
}

fn launches(device: &Device) -> u64 {
    let Device::Cuda(cuda) = device else { panic!("not a GPU") };
    cuda.num_launches()
}

/// Heads over pages, and the layer after them.
struct Heads {
    cache: DType,
    /// Heads, heads of keys, their width.
    sizes: [usize; 3],
    /// How many positions of each sequence are cached, how many tokens are new.
    items: Vec<[usize; 2]>,
    next: WeightType,
}

impl Heads {
    fn run(&self, device: &Device, form: Form) -> Made {
        let [heads, kv_heads, d] = self.sizes;
        let pages = Pages::new(&self.items, BLOCK);
        let t: usize = self.items.iter().map(|[_, new]| new).sum();
        let max_context = self.items.iter().map(|[old, new]| old + new).max().expect("items");
        let sizes = AttentionSizes { heads, kv_heads, key_dim: d, value_dim: d, max_context, max_tokens: t };
        let mut scratch = AttentionScratch::new(device, sizes);
        let q = Host::random(DType::F32, &[t, heads, d], 1).tensor(device);
        let cache = |seed| Host::random(self.cache, &[pages.num_slots, kv_heads, d], seed).tensor(device);
        let (keys, values, w) = (cache(2), cache(3), weights(device, self.next, heads * d));
        let mut room = poisoned(device, [t, heads * d]);
        let mut attended = Tensor::unwritten(device, DType::F32, &[t, heads, d]);
        let mut out = Tensor::unwritten(device, DType::F32, &[t, OUT]);
        let (ragged, before) = (pages.ragged(BLOCK), launches(device));
        if form == Form::Apart {
            gqa_attention(&q, &keys, &values, &ragged, SCALE, &mut scratch, &mut attended);
            room.hold(&attended).linear(&w, None, Activation::None, &mut out);
        } else {
            let readers = Readers { layer: &w, floats: form == Form::Both };
            let mut made = room.make(&mut attended, readers, &[scratch.packs_as(self.cache)]);
            made.gqa_attention(&q, [&keys, &values], (&ragged, SCALE), &mut scratch);
            made.done().linear(&w, None, Activation::None, &mut out);
        }
        let launches = launches(device) - before;
        let floats = (form != Form::Packed).then(|| attended.read()).transpose()?;
        Ok(([Some(out.read()?), floats].into_iter().flatten().collect(), launches))
    }
}

/// Everything that Form::Apart makes, with as many launches fewer.
fn check(what: &str, run: &dyn Fn(&Device, Form) -> Made, [one, other]: [&Device; 2], saved: u64) {
    let (expected, apart) = run(one, Form::Apart).expect("a result");
    for form in [Form::Both, Form::Packed] {
        let (found, fewer) = run(other, form).expect("a result");
        assert!(found == expected[..found.len()], "{what} {form:?}");
        assert_eq!(apart - fewer, saved, "{what} {form:?}");
    }
}

#[test]
fn heads_are_packed_for_the_layer_after_them() {
    let (device, other) = (emulated(SEEDS[0]), sized(SEEDS[1], 64));
    use DType::{BF16, F16, F32};
    let mixed = vec![[0, 37], [3, 1], [700, 2], [600, 1]];
    for (cache, sizes, items, next, saved) in [
        // Prompts and single tokens; ranges that are put together afterwards, by a device that has room for them.
        (BF16, [4, 2, 64], mixed.clone(), WeightType::BF16, 1),
        (F16, [3, 1, 64], mixed.clone(), WeightType::F16, 1),
        (BF16, [2, 2, 128], vec![[5, 130]], WeightType::Int4, 1),
        // Another type; few tokens; weights in f32; a cache in f32; other widths.
        (F16, [2, 1, 64], vec![[0, 37]], WeightType::BF16, 0),
        (BF16, [2, 1, 64], vec![[0, 32]], WeightType::BF16, 0),
        (BF16, [2, 1, 64], vec![[0, 37]], WeightType::F32, 0),
        (F32, [2, 1, 64], vec![[0, 37]], WeightType::BF16, 0),
        (BF16, [2, 1, 32], vec![[0, 37]], WeightType::BF16, 0),
    ] {
        let what = format!("{cache} {sizes:?} {items:?} {next}");
        let case = Heads { cache, sizes, items, next };
        check(&what, &|device, form| case.run(device, form), [&device, &other], saved);
    }
}

/// Single tokens of so many sequences that their layer takes them packed, in a graph whose batch changes.
#[test]
fn packed_heads_are_replayed() {
    let device = emulated(SEEDS[0]);
    let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
    let (num_items, [heads, kv_heads, d]) = (40, [2, 1, 64]);
    let context = |step: usize, item: usize| (item * 7 + step * 500) % 900;
    let steps: Vec<Pages> = (0..3)
        .map(|step| {
            Pages::new(&(0..num_items).map(|item| [context(step, item), 1]).collect::<Vec<_>>(), BLOCK)
        })
        .collect();
    let slots = steps.iter().map(|pages| pages.num_slots).max().expect("steps");
    let sizes = AttentionSizes {
        heads,
        kv_heads,
        key_dim: d,
        value_dim: d,
        max_context: 1000,
        max_tokens: num_items,
    };
    let mut scratch = AttentionScratch::new(&device, sizes);
    let q = Host::random(DType::F32, &[num_items, heads, d], 1).tensor(&device);
    let [keys, values] =
        [2, 3].map(|seed| Host::random(DType::BF16, &[slots, kv_heads, d], seed).tensor(&device));
    let w = weights(&device, WeightType::BF16, heads * d);
    let mut room = poisoned(&device, [num_items, heads * d]);
    let mut attended = Tensor::unwritten(&device, DType::F32, &[num_items, heads, d]);
    let [mut out, mut expected] = [(); 2].map(|()| Tensor::zeros(&device, DType::F32, &[num_items, OUT]));
    let len = |of: fn(&Pages) -> usize| steps.iter().map(of).max().expect("steps");
    let mut cu_seqlens = Indices::new(&device, num_items + 1);
    let mut context_lens = Indices::new(&device, num_items);
    let mut block_tables = Indices::new(&device, len(|pages| pages.block_tables.len()));
    let mut cu_blocks = Indices::new(&device, num_items + 1);
    let mut graph = None;
    for (step, pages) in steps.iter().enumerate() {
        cu_seqlens.set(&pages.cu_seqlens);
        context_lens.set(&pages.context_lens);
        block_tables.set(&pages.block_tables);
        cu_blocks.set(&pages.cu_blocks);
        let ragged = Ragged {
            cu_seqlens: (&cu_seqlens).into(),
            context_lens: (&context_lens).into(),
            block_tables: (&block_tables).into(),
            cu_blocks: (&cu_blocks).into(),
            block_size: BLOCK,
            selected: None,
        };
        let mut run = |scratch: &mut AttentionScratch| {
            let readers = Readers { layer: &w, floats: false };
            let mut made = room.make(&mut attended, readers, &[scratch.packs_as(DType::BF16)]);
            made.gqa_attention(&q, [&keys, &values], (&ragged, SCALE), scratch);
            made.done().linear(&w, None, Activation::None, &mut out);
        };
        let graph = *graph.get_or_insert_with(|| {
            run(&mut scratch);
            cuda.capture(|| run(&mut scratch)).expect("a graph")
        });
        scratch.plan(&ragged);
        cuda.replay(graph);
        let found = out.read().expect("a result");
        let mut other = AttentionScratch::new(&device, sizes);
        gqa_attention(&q, &keys, &values, &pages.ragged(BLOCK), SCALE, &mut other, &mut attended);
        linear(&attended, &w, None, Activation::None, &mut expected);
        assert!(found == expected.read().expect("a result"), "step {step}");
    }
}

/// Rows of latents that heads make values of, in parts, and those in between, of prompts, that the expanded form makes.
struct Values {
    cache: DType,
    /// What heads keep their weights as.
    up: WeightType,
    next: WeightType,
    /// Values of a head.
    value_dim: usize,
    /// How many positions of each sequence are cached, how many tokens are new, whether it is expanded.
    items: Vec<([usize; 2], bool)>,
}

impl Values {
    fn run(&self, device: &Device, form: Form) -> Made {
        let (v, [heads, rank, nope, rotated]) = (self.value_dim, [2, 48, 128, 64]);
        let places: Vec<[usize; 2]> = self.items.iter().map(|item| item.0).collect();
        let expanded: Vec<bool> = self.items.iter().map(|item| item.1).collect();
        let pages = Pages::new(&places, BLOCK);
        let t: usize = places.iter().map(|[_, new]| new).sum();
        let (max_tokens, max_context) = (t, places.iter().map(|[old, new]| old + new).max().expect("items"));
        let cache = self.cache;
        let sizes =
            ExpandedSizes { heads, rank, nope, rotated, value_dim: v, max_tokens, max_context, cache };
        let mut scratch = ExpandedScratch::with_ranges(device, sizes, 128);
        let q = Host::random(DType::F32, &[t, heads, nope + rotated], 1).tensor(device);
        let attended = Host::random(DType::F32, &[t, heads, rank], 2).tensor(device);
        let rows = Host::random(cache, &[pages.num_slots, rank + rotated], 3).tensor(device);
        let up = |n: usize, seed: u64| {
            let float = self.up.float().unwrap_or(DType::F32);
            let hosts: Vec<Host> =
                (0..heads as u64).map(|h| Host::random(float, &[n, rank], seed + h)).collect();
            let views: Vec<HostTensor> = hosts.iter().map(Host::view).collect();
            MatrixBatch::pack(device, self.up, &views)
        };
        let (key_up, value_up, w) = (up(nope, 10), up(v, 20), weights(device, self.next, heads * v));
        let mut room = poisoned(device, [t, heads * v]);
        let mut values = Tensor::unwritten(device, DType::F32, &[t, heads, v]);
        let mut out = Tensor::unwritten(device, DType::F32, &[t, OUT]);
        let latents = Latents { cache: (&rows).into(), key_up: &key_up, value_up: &value_up };
        let ragged = Ragged { selected: Some(&expanded), ..pages.ragged(BLOCK) };
        let others: Vec<std::ops::Range<usize>> = (0..self.items.len())
            .filter(|&item| !expanded[item])
            .map(|item| pages.cu_seqlens[item] as usize..pages.cu_seqlens[item + 1] as usize)
            .collect();
        let expands = expanded.contains(&true);
        let before = launches(device);
        if form == Form::Apart {
            for rows in others {
                let from = HeadSlice { tensor: &attended, rows: rows.clone(), offset: 0, len: rank };
                let to = HeadSliceMut { tensor: &mut values, rows, offset: 0, len: v };
                heads_linear(from, &value_up, to);
            }
            if expands {
                expanded_attention(&q, latents, &ragged, SCALE, &mut scratch, &mut values);
            }
            room.hold(&values).linear(&w, None, Activation::None, &mut out);
        } else {
            let readers = Readers { layer: &w, floats: form == Form::Both };
            let of_heads = heads_pack_as(&value_up);
            let makers = [of_heads, if expands { scratch.packs_as() } else { of_heads }];
            let mut made = room.make(&mut values, readers, &makers);
            others.into_iter().for_each(|rows| made.heads_linear(&attended, &value_up, rows));
            if expands {
                made.expanded_attention(&q, latents, (&ragged, SCALE), &mut scratch);
            }
            made.done().linear(&w, None, Activation::None, &mut out);
        }
        let launches = launches(device) - before;
        let floats = (form != Form::Packed).then(|| values.read()).transpose()?;
        Ok(([Some(out.read()?), floats].into_iter().flatten().collect(), launches))
    }
}

#[test]
fn values_of_latents_are_packed_for_the_layer_after_them() {
    let [device, other] = SEEDS.map(emulated);
    use WeightType::{BF16, F16, F32, Int8};
    let prompts = |lens: &[usize]| lens.iter().map(|&len| ([0, len], false)).collect::<Vec<_>>();
    // The expanded form of two ranges of keys, of few and of many rows, beside rows of others, few and many.
    let mixed = vec![([100, 45], true), ([3, 2], false), ([0, 17], true), ([4, 35], false), ([150, 1], true)];
    for (cache, up, next, value_dim, items, saved) in [
        (DType::BF16, BF16, BF16, 128, mixed.clone(), 1),
        (DType::F16, F16, F16, 128, mixed, 1),
        (DType::BF16, Int8, BF16, 16, prompts(&[8, 3, 16, 70, 32]), 1),
        (DType::BF16, BF16, Int8, 48, prompts(&[130]), 1),
        // Other types; few tokens; weights of heads in f32; tokens that zeros must fill up; keys and values in f32.
        (DType::BF16, Int8, F16, 16, prompts(&[40]), 0),
        (DType::BF16, BF16, BF16, 16, prompts(&[32]), 0),
        (DType::BF16, F32, BF16, 16, prompts(&[40]), 0),
        (DType::BF16, BF16, BF16, 20, prompts(&[40]), 0),
        (DType::BF16, BF16, BF16, 32, vec![([0, 36], true), ([3, 2], false)], 0),
    ] {
        let what = format!("{cache} {up} {next} {value_dim} {items:?}");
        let case = Values { cache, up, next, value_dim, items };
        check(&what, &|device, form| case.run(device, form), [&device, &other], saved);
    }
}

#[test]
fn bugs_in_what_attention_packs_are_noticed() {
    let heads = Heads {
        cache: DType::BF16,
        sizes: [4, 2, 64],
        items: vec![[0, 37], [700, 1]],
        next: WeightType::BF16,
    };
    let values = Values {
        cache: DType::BF16,
        up: WeightType::BF16,
        next: WeightType::BF16,
        value_dim: 128,
        items: vec![([0, 34], true), ([3, 2], false), ([0, 40], false)],
    };
    let packed = |device: &Device| Ok(heads.run(device, Form::Packed)?.0.concat());
    let both = |device: &Device| Ok(heads.run(device, Form::Both)?.0.concat());
    let of_values = |device: &Device| Ok(values.run(device, Form::Both)?.0.concat());
    let cases: [(&'static str, &'static str, Run); 10] = [
        ("floats = packed == nullptr || s.floats;", "floats = packed == nullptr;", &both),
        ("head * (s.dv / 8) + column / 8, packed_columns", "head * (s.dv / 8), packed_columns", &packed),
        ("packed_columns(s.heads * s.dv)) + column % 8", "packed_columns(s.heads * s.dv))", &packed),
        ("eights * PACKED_TOKENS * 8", "eights * PACKED_TOKENS * 4", &packed),
        ("unit.first_token + token, first_head + head, warp", "token, first_head + head, warp", &packed),
        ("at(out, packed, split.x, head, c, s)", "at(out, packed, split.x, head, 0, s)", &packed),
        ("warp * 16 + pair, s);", "warp * 8 + pair, s);", &of_values),
        ("s.first_packed + token, column / 8", "token, column / 8", &of_values),
        ("s.columns_packed) + column % 8]", "s.columns_packed) + column % 4]", &of_values),
        ("packed == nullptr || s.floats) out[", "packed == nullptr) out[", &of_values),
    ];
    assert_noticed(&cases);
}
