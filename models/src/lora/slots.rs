//! Adapters on the device. Memory is taken once, for as many adapters as the options say, each as large as they may be; loading one fills
//! a slot, and a step looks up its rows' slots by number.

use super::adapter::{Adapter, Pair, values};
use super::buffers::{LoraBuffers, LoraLimits};
use super::error::AdapterError;
use super::experts::{self, ExpertRooms};
use super::spec::{AdapterSpec, LatentHeads, Module, Target};
use kernels::ops::{self, Activation, HeadSlice, MoeScratch};
use kernels::{DType, Device, Experts, HostTensor, Indices, Matrix, MatrixBatch, Tensor, WeightRows};
use scheduler::AdapterId;
use std::ops::Range;
use std::sync::Arc;

pub(crate) struct Loras {
    spec: Arc<AdapterSpec>,
    device: Device,
    /// Of the model's weights. Adapters of this type stay in it, others are kept in f32, which loses nothing.
    float: DType,
    slots: Vec<Slot>,
    /// Rows of the step, by adapter; of these as many as `num_chunks` are in use.
    chunks: Vec<Chunk>,
    num_chunks: usize,
    /// Rows without an adapter, where experts may be changed; of these as many as `num_others` are in use.
    others: Vec<Indices>,
    num_others: usize,
    /// Of rows that go through the head, those of one adapter.
    head_rows: Indices,
    chunk_rows: usize,
    rows: Vec<u32>,
}

struct Slot {
    id: Option<AdapterId>,
    /// As in the layers of the spec.
    layers: Vec<Vec<Room>>,
    head: Room,
    /// Of the experts of each layer that has some, where they may be changed.
    experts: Vec<Option<ExpertRooms>>,
}

/// Of one module.
struct Room {
    target: Target,
    weights: Weights,
    /// `None`: the adapter leaves the module as it is.
    scale: Option<f32>,
}

enum Weights {
    Pair(LowRank),
    Latent(Box<LatentLowRank>),
}

struct LowRank {
    /// `[r, k]`
    a: Matrix,
    /// `[n, r]`
    b: Matrix,
}

/// Of `kv_b_proj` in its absorbed form, which is on the side of queries for keys and on that of results for values.
struct LatentLowRank {
    /// Per head `[r, nope]`, and `[R, r]`.
    keys: (MatrixBatch, Matrix),
    /// `[r, R]`, and per head `[V, r]`.
    values: (Matrix, MatrixBatch),
}

/// Rows of one adapter.
struct Chunk {
    slot: usize,
    rows: Indices,
}

/// Memory by number and size, as the plan counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LoraSize {
    pub bytes: u64,
    pub tensors: u64,
}

impl Loras {
    pub fn new(device: &Device, spec: Arc<AdapterSpec>, float: DType, limits: LoraLimits) -> Self {
        let slot = || Slot {
            id: None,
            layers: spec.layers.iter().map(|modules| rooms(device, &spec, modules)).collect(),
            head: room(device, &spec, &spec.head),
            experts: expert_rooms(device, &spec),
        };
        let slots = (0..limits.max_loras).map(|_| slot()).collect();
        let chunk = || Chunk { slot: 0, rows: Indices::new(device, limits.chunk_rows()) };
        let chunks = (0..limits.num_chunks()).map(|_| chunk()).collect();
        let other = || Indices::new(device, limits.chunk_rows());
        let others = (0..num_others(&spec, limits)).map(|_| other()).collect();
        Self {
            spec,
            device: device.clone(),
            float,
            slots,
            chunks,
            num_chunks: 0,
            others,
            num_others: 0,
            head_rows: Indices::new(device, limits.head_rows()),
            chunk_rows: limits.chunk_rows(),
            rows: Vec::with_capacity(limits.num_tokens),
        }
    }

    /// What `new` allocates.
    pub fn size(device: &Device, spec: &AdapterSpec, limits: LoraLimits) -> LoraSize {
        let (mut slot, mut tensors) = (0, 0);
        for module in spec.layers.iter().flatten().chain([&spec.head]) {
            let sizes = room_sizes(spec, module);
            tensors += sizes.len() as u64;
            slot += sizes.iter().map(|&size| MatrixBatch::packed_bytes(DType::F32, size)).sum::<u64>();
        }
        if let Some(modules) = &spec.experts {
            let layers = modules.layers.iter().filter(|&&has_experts| has_experts).count() as u64;
            let sizes = experts::room_sizes(modules, spec.max_rank);
            tensors += layers * sizes.as_flattened().len() as u64;
            let bytes = |&size: &[usize; 3]| MatrixBatch::packed_bytes(DType::F32, size);
            slot += layers * sizes.as_flattened().iter().map(bytes).sum::<u64>();
        }
        let chunks = (limits.num_chunks() + num_others(spec, limits)) as u64;
        let runs = chunks * Indices::bytes(device, limits.chunk_rows());
        LoraSize {
            bytes: limits.max_loras as u64 * slot + runs + Indices::bytes(device, limits.head_rows()),
            tensors: limits.max_loras as u64 * tensors + chunks + 1,
        }
    }

    pub fn add(&mut self, id: AdapterId, adapter: &Adapter) -> Result<(), AdapterError> {
        if !adapter.fits(&self.spec) {
            return Err(AdapterError::OtherModel);
        }
        assert!(self.slots.iter().all(|slot| slot.id != Some(id)), "{id:?} is loaded already");
        let max_loras = self.slots.len();
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.id.is_none()) else {
            return Err(AdapterError::NoRoom { max_loras });
        };
        let layers = slot.layers.iter_mut().map(Vec::as_mut_slice).enumerate();
        let layers = layers.chain([(0, std::slice::from_mut(&mut slot.head))]);
        for (layer, rooms) in layers {
            for room in rooms {
                room.scale = None;
                if let Some(pair) = adapter.pairs.get(&(layer, room.target)) {
                    room.fill(adapter, pair, self.float, self.spec.latent);
                }
            }
        }
        for (layer, rooms) in slot.experts.iter_mut().enumerate() {
            if let Some(rooms) = rooms {
                rooms.fill(adapter, layer, &self.spec, self.float);
            }
        }
        // What failed in copying is told to who loads it.
        self.device.synchronize()?;
        slot.id = Some(id);
        Ok(())
    }

    pub fn remove(&mut self, id: AdapterId) {
        for slot in self.slots.iter_mut().filter(|slot| slot.id == Some(id)) {
            slot.id = None;
        }
    }

    /// Which of a step's rows have which adapter, in ascending order of rows.
    pub fn set(&mut self, adapters: &[(AdapterId, Range<u32>)], num_tokens: usize) {
        (self.num_chunks, self.num_others) = (0, 0);
        if adapters.is_empty() {
            return;
        }
        let mut num_rows = 0;
        for (index, slot) in self.slots.iter().enumerate() {
            self.rows.clear();
            let own = adapters.iter().filter(|(id, _)| Some(*id) == slot.id);
            own.for_each(|(_, rows)| self.rows.extend(rows.clone()));
            num_rows += self.rows.len();
            for rows in self.rows.chunks(self.chunk_rows) {
                let chunk = &mut self.chunks[self.num_chunks];
                chunk.slot = index;
                chunk.rows.set(rows);
                self.num_chunks += 1;
            }
        }
        let expected: usize = adapters.iter().map(|(_, rows)| rows.len()).sum();
        assert_eq!(num_rows, expected, "rows of adapters that are not loaded");
        if self.spec.experts.is_some() {
            self.set_others(adapters, num_tokens as u32);
        }
    }

    fn set_others(&mut self, adapters: &[(AdapterId, Range<u32>)], num_tokens: u32) {
        self.rows.clear();
        let mut next = 0;
        for (_, rows) in adapters {
            self.rows.extend(next..rows.start);
            next = rows.end;
        }
        self.rows.extend(next..num_tokens);
        for rows in self.rows.chunks(self.chunk_rows) {
            self.others[self.num_others].set(rows);
            self.num_others += 1;
        }
    }

    pub fn is_in_step(&self) -> bool {
        self.num_chunks > 0
    }

    /// The runs of rows that have something for a module, with that.
    fn parts(&self, layer: usize, target: Target) -> impl Iterator<Item = (&Indices, &Weights, f32)> {
        self.chunks[..self.num_chunks].iter().filter_map(move |chunk| {
            let room = self.slots[chunk.slot].layers[layer].iter().find(|room| room.target == target)?;
            Some((&chunk.rows, &room.weights, room.scale?))
        })
    }

    /// Whether a row of the step has something for one of these modules.
    pub fn changes(&self, layer: usize, targets: &[Target]) -> bool {
        targets.iter().any(|&target| self.parts(layer, target).next().is_some())
    }

    /// The experts of an adapter in a layer, where it changes some.
    fn expert_rooms(&self, slot: usize, layer: usize) -> Option<&ExpertRooms> {
        self.slots[slot].experts.get(layer)?.as_ref().filter(|rooms| rooms.changes_something())
    }

    /// Whether a row of the step has an adapter that changes experts of the layer.
    pub fn changes_experts(&self, layer: usize) -> bool {
        self.chunks[..self.num_chunks].iter().any(|chunk| self.expert_rooms(chunk.slot, layer).is_some())
    }

    /// What the experts of a layer make of `x` `[T, H]`, run after run: of rows whose adapter changes experts in steps, of the others by the op that is
    /// all of these.
    pub fn run_experts(&self, layer: usize, job: ExpertJob, out: &mut Tensor, b: &mut LoraBuffers) {
        let ExpertJob { x, experts, ids, weights, scratch } = job;
        let LoraBuffers { wide, delta, experts: buffers, .. } = b;
        let b = buffers.as_mut().expect("room for adapters of experts");
        let adapted = self.chunks[..self.num_chunks].iter();
        let adapted = adapted.map(|chunk| (&chunk.rows, self.expert_rooms(chunk.slot, layer)));
        let others = self.others[..self.num_others].iter().map(|rows| (rows, None));
        for (rows, rooms) in adapted.chain(others) {
            let num_rows = rows.as_slice().len();
            wide.reshape(&[num_rows, x.row_len()]);
            delta.reshape(&[num_rows, x.row_len()]);
            b.ids.set_rows(num_rows);
            b.weights.set_rows(num_rows);
            ops::gather_rows(x, rows, wide);
            ops::gather_rows(ids, rows, &mut b.ids);
            ops::gather_rows(weights, rows, &mut b.weights);
            match rooms {
                Some(rooms) => rooms.run(wide, experts, b, delta),
                None => ops::moe(wide, experts, &b.ids, &b.weights, scratch, delta),
            }
            ops::store_rows(delta, out, rows);
        }
    }

    /// Whether a row of the step has an adapter that changes the output head.
    pub fn changes_head(&self) -> bool {
        self.chunks[..self.num_chunks].iter().any(|chunk| self.slots[chunk.slot].head.scale.is_some())
    }

    /// Adds to `logits` `[N, V]` what adapters make of `x` `[N, H]`; which rows of the step these are, `rows` says.
    pub fn add_logits(&mut self, rows: &[u32], x: &Tensor, logits: &mut Tensor, b: &mut LoraBuffers) {
        for index in 0..self.num_chunks {
            let chunk = &self.chunks[index];
            let Room { weights: Weights::Pair(pair), scale: Some(scale), .. } = &self.slots[chunk.slot].head
            else {
                continue;
            };
            let own = chunk.rows.as_slice();
            self.rows.clear();
            let found = (0..).zip(rows).filter(|(_, row)| own.binary_search(row).is_ok());
            self.rows.extend(found.map(|(place, _): (u32, _)| place));
            if self.rows.is_empty() {
                continue;
            }
            self.head_rows.set(&self.rows);
            b.wide.reshape(&[self.rows.len(), x.row_len()]);
            ops::gather_rows(x, &self.head_rows, &mut b.wide);
            pair.run(&b.wide, &mut b.low, &mut b.logits);
            ops::add_rows(&b.logits, *scale, logits, &self.head_rows, 0);
        }
    }

    /// Adds to columns `offset ..` of `out` `[T, N]` what adapters make of `x` `[T, K]`.
    pub fn add_to(
        &self,
        (layer, target): (usize, Target),
        x: &Tensor,
        (out, offset): (&mut Tensor, usize),
        b: &mut LoraBuffers,
    ) {
        for (rows, weights, scale) in self.parts(layer, target) {
            let Weights::Pair(pair) = weights else { unreachable!("a module with one form") };
            b.wide.reshape(&[rows.as_slice().len(), x.row_len()]);
            ops::gather_rows(x, rows, &mut b.wide);
            pair.run(&b.wide, &mut b.low, &mut b.delta);
            ops::add_rows(&b.delta, scale, out, rows, offset);
        }
    }

    /// As `add_to` for the last matrix of an MLP, from gate and up `[T, 2 I]`.
    pub fn add_down(&self, layer: usize, gate_up: &Tensor, out: &mut Tensor, b: &mut LoraBuffers) {
        for (rows, weights, scale) in self.parts(layer, Target::Down) {
            let Weights::Pair(pair) = weights else { unreachable!("a module with one form") };
            let (num_rows, width) = (rows.as_slice().len(), gate_up.row_len());
            b.wide.reshape(&[num_rows, width]);
            b.inner.reshape(&[num_rows, width / 2]);
            ops::gather_rows(gate_up, rows, &mut b.wide);
            ops::silu_mul(&b.wide, &mut b.inner);
            pair.run(&b.inner, &mut b.low, &mut b.delta);
            ops::add_rows(&b.delta, scale, out, rows, 0);
        }
    }

    /// The part of `kv_b_proj` that makes keys, on the side of queries: `absorbed` `[T, H, R + P]` from `q` `[T, H, nope + P]`.
    pub fn add_keys(&self, layer: usize, q: &Tensor, absorbed: &mut Tensor, b: &mut LoraBuffers) {
        for (rows, weights, scale) in self.parts(layer, Target::KvUp) {
            let (Weights::Latent(low), Some(heads)) = (weights, self.spec.latent) else {
                unreachable!("latent attention")
            };
            let LatentHeads { num_heads, rank, nope_dim, query_dim, .. } = heads;
            let (n, (up, down)) = (rows.as_slice().len(), &low.keys);
            b.wide.reshape(&[n, num_heads, query_dim]);
            b.low.reshape(&[n, num_heads, up.n()]);
            b.delta.reshape(&[n, num_heads, rank]);
            ops::gather_rows(q, rows, &mut b.wide);
            let nope = HeadSlice { tensor: &b.wide, rows: 0..n, offset: 0, len: nope_dim };
            ops::heads_linear(nope, up, &mut b.low);
            ops::linear(&b.low, down, None, Activation::None, &mut b.delta);
            ops::add_rows(&b.delta, scale, absorbed, rows, 0);
        }
    }

    /// The part of `kv_b_proj` that makes values, of results: `values` `[T, H, V]` from `attended` `[T, H, R]`.
    pub fn add_values(&self, layer: usize, attended: &Tensor, values: &mut Tensor, b: &mut LoraBuffers) {
        for (rows, weights, scale) in self.parts(layer, Target::KvUp) {
            let (Weights::Latent(low), Some(heads)) = (weights, self.spec.latent) else {
                unreachable!("latent attention")
            };
            let LatentHeads { num_heads, rank, value_dim, .. } = heads;
            let (n, (down, up)) = (rows.as_slice().len(), &low.values);
            b.wide.reshape(&[n, num_heads, rank]);
            b.low.reshape(&[n, num_heads, down.n()]);
            b.delta.reshape(&[n, num_heads, value_dim]);
            ops::gather_rows(attended, rows, &mut b.wide);
            ops::linear(&b.wide, down, None, Activation::None, &mut b.low);
            ops::heads_linear(&b.low, up, &mut b.delta);
            ops::add_rows(&b.delta, scale, values, rows, 0);
        }
    }
}

/// A layer of experts, and who goes to which.
pub(crate) struct ExpertJob<'a> {
    /// `[T, H]`
    pub x: &'a Tensor,
    pub experts: &'a Experts,
    /// `[T, k]`
    pub ids: &'a Tensor,
    pub weights: &'a Tensor,
    pub scratch: &'a mut MoeScratch,
}

impl LowRank {
    /// `delta` `[T, N]` from `x` `[T, K]`.
    fn run(&self, x: &Tensor, low: &mut Tensor, delta: &mut Tensor) {
        low.reshape(&[x.rows(), self.a.n()]);
        delta.reshape(&[x.rows(), self.b.n()]);
        ops::linear(x, &self.a, None, Activation::None, low);
        ops::linear(low, &self.b, None, Activation::None, delta);
    }
}

/// `[count, n, k]` of the matrices of a module, at the largest rank; of a pair A and B, else in the order of [`LatentLowRank`].
fn room_sizes(spec: &AdapterSpec, module: &Module) -> Vec<[usize; 3]> {
    let r = spec.max_rank;
    match (module.target, spec.latent) {
        (Target::KvUp, Some(LatentHeads { num_heads, rank, nope_dim, value_dim, .. })) => {
            vec![[num_heads, r, nope_dim], [1, rank, r], [1, r, rank], [num_heads, value_dim, r]]
        }
        _ => vec![[1, r, module.k], [1, module.n, r]],
    }
}

/// Runs of rows without an adapter, at most.
fn num_others(spec: &AdapterSpec, limits: LoraLimits) -> usize {
    spec.experts.as_ref().map_or(0, |_| limits.num_tokens.div_ceil(limits.chunk_rows()))
}

fn expert_rooms(device: &Device, spec: &AdapterSpec) -> Vec<Option<ExpertRooms>> {
    let Some(modules) = &spec.experts else { return Vec::new() };
    let rooms = |&has_experts: &bool| has_experts.then(|| ExpertRooms::new(device, modules, spec.max_rank));
    modules.layers.iter().map(rooms).collect()
}

fn rooms(device: &Device, spec: &AdapterSpec, modules: &[Module]) -> Vec<Room> {
    modules.iter().map(|module| room(device, spec, module)).collect()
}

fn room(device: &Device, spec: &AdapterSpec, module: &Module) -> Room {
    let matrix = |[_, n, k]: [usize; 3]| Matrix::with_room(device, DType::F32, n, k);
    let heads = |size| MatrixBatch::with_room(device, DType::F32, size);
    let weights = match room_sizes(spec, module)[..] {
        [a, b] => Weights::Pair(LowRank { a: matrix(a), b: matrix(b) }),
        [key_up, key_down, value_down, value_up] => Weights::Latent(Box::new(LatentLowRank {
            keys: (heads(key_up), matrix(key_down)),
            values: (matrix(value_down), heads(value_up)),
        })),
        _ => unreachable!("two matrices or four"),
    };
    Room { target: module.target, weights, scale: None }
}

impl Room {
    fn fill(&mut self, adapter: &Adapter, pair: &Pair, float: DType, latent: Option<LatentHeads>) {
        let [a, b] = adapter.matrices(pair);
        let [kept_a, kept_b] = [&a, &b].map(|host| if host.dtype == float { float } else { DType::F32 });
        self.scale = Some(pair.scale);
        match (&mut self.weights, latent) {
            (Weights::Pair(low), _) => {
                low.a.refill(kept_a, &a);
                low.b.refill(kept_b, &b);
            }
            (Weights::Latent(low), Some(heads)) => low.fill([(a, kept_a), (b, kept_b)], heads),
            (Weights::Latent(_), None) => unreachable!("latent attention"),
        }
    }
}

impl LatentLowRank {
    fn fill(&mut self, [(a, kept_a), (b, kept_b)]: [(HostTensor, DType); 2], heads: LatentHeads) {
        let LatentHeads { num_heads, rank, nope_dim, value_dim, .. } = heads;
        let low = a.shape[0];
        let (a_values, b_values) = (values(&a), values(&b));
        // B has for each head the rows that make keys, then the rows that make values.
        let at = |head, row, k| b_values[(head * (nope_dim + value_dim) + row) * low + k];
        self.keys.0.refill_f32(kept_b, [num_heads, low, nope_dim], &|head, n, k| at(head, k, n));
        self.keys.1.refill(kept_a, &Transposed { values: &a_values, shape: [rank, low] });
        self.values.0.refill(kept_a, &a);
        self.values
            .1
            .refill_f32(kept_b, [num_heads, value_dim, low], &|head, n, k| at(head, nope_dim + n, k));
    }
}

/// `[n, k]` of values that lie as `[k, n]`.
struct Transposed<'a> {
    values: &'a [f32],
    shape: [usize; 2],
}

impl WeightRows for Transposed<'_> {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn read_f32(&self, row: usize, out: &mut [f32]) {
        for (k, out) in out.iter_mut().enumerate() {
            *out = self.values[k * self.shape[0] + row];
        }
    }
}
