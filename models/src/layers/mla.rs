//! Multi-head latent attention in its absorbed form: scores and sums are taken over the cached latent itself, and the
//! matrices that would expand it to keys and values are moved to the query and to the result.
//!
//! ```text
//! normed ─▶ q [T, H, nope | rotated rope] ─▶ nope · W_UK ─▶ absorbed [T, H, R | rope] ─▶ attention ─▶ · W_UV ─▶ out
//!        ─▶ kv [T, R | rope] ─▶ [norm(latent) | rotated rope] ─▶ cache ──────────────────┘
//! ```
//! Every row is computed this way, prompt or not, so that a cached row does not depend on how it came about; unless the options ask for
//! the expanded form, which rows of prompts then have from one position on: keys and values are made of the latents again.

use super::{Linear, Loader, Names, Step, WeightSize};
use crate::LoadError;
use crate::config::{LATENT_NORM_EPS, MlaConfig};
use crate::kv_cache::LayerCache;
use crate::lora::{LoraBuffers, Target};
use crate::parts::Part;
use crate::scratch::{HeadBuffers, MlaBuffers, Scratch};
use kernels::ops::{
    self, HeadSlice, HeadSliceMut, KvTensor, LatentRows, Latents, NormFor, Ragged, ReadPlan, Rotation,
    TokenRoom,
};
use kernels::{Matrix, MatrixBatch, Tensor, WeightType};
use std::cell::RefCell;
use std::rc::Rc;

pub struct Mla {
    query: Query,
    /// To the latent and the rotated part that all heads share.
    kv: Linear,
    latent_norm: Tensor,
    /// Per head [R, nope]: keys from latents, transposed to the query's side.
    key_up: MatrixBatch,
    /// Per head [V, R]: values from latents.
    value_up: MatrixBatch,
    /// Per head [nope, R]: keys from latents, where there is an expanded form.
    key_expand: Option<MatrixBatch>,
    out: Linear,
    config: MlaConfig,
}

enum Query {
    Direct(Linear),
    /// Through a latent of its own.
    TwoStep {
        down: Linear,
        norm: Tensor,
        up: Box<Linear>,
    },
}

impl Mla {
    pub fn load(loader: &Loader, config: &MlaConfig, hidden_size: usize) -> Result<Self, LoadError> {
        let MlaConfig { num_heads, q_lora_rank, kv_lora_rank, value_dim, bias, .. } = *config;
        let query_width = num_heads * config.query_dim();
        let query = match q_lora_rank {
            None => Query::Direct(loader.linear("self_attn.q_proj", query_width, hidden_size, false)?),
            Some(rank) => Query::TwoStep {
                down: loader.linear("self_attn.q_a_proj", rank, hidden_size, bias)?,
                norm: loader.vector("self_attn.q_a_layernorm.weight", rank)?,
                up: Box::new(loader.linear("self_attn.q_b_proj", query_width, rank, false)?),
            },
        };
        let kv = loader.linear("self_attn.kv_a_proj_with_mqa", config.row(), hidden_size, bias)?;
        let latent_norm = loader.vector("self_attn.kv_a_layernorm.weight", kv_lora_rank)?;
        let Ups { key_up, value_up, key_expand } = ups(loader, config)?;
        let out = loader.linear("self_attn.o_proj", hidden_size, num_heads * value_dim, bias)?;
        Ok(Self { query, kv, latent_norm, key_up, value_up, key_expand, out, config: config.clone() })
    }

    pub fn size(names: &Names, config: &MlaConfig, hidden_size: usize) -> WeightSize {
        let MlaConfig {
            num_heads, q_lora_rank, kv_lora_rank, nope_dim, value_dim, bias, expand_from, ..
        } = *config;
        let query_width = num_heads * config.query_dim();
        let query = match q_lora_rank {
            None => names.matrix("self_attn.q_proj", query_width, hidden_size),
            Some(rank) => {
                names.linear("self_attn.q_a_proj", rank, hidden_size, bias)
                    + WeightSize::vector(rank)
                    + names.matrix("self_attn.q_b_proj", query_width, rank)
            }
        };
        let absorbed = names.of_part(Part::Absorbed).stored_as(KV_UP);
        let expand = |n: usize, k: usize| WeightSize {
            parameters: (num_heads * n * k) as u64,
            bytes: MatrixBatch::packed_bytes(absorbed, [num_heads, n, k]),
            tensors: 1,
        };
        query
            + names.linear("self_attn.kv_a_proj_with_mqa", config.row(), hidden_size, bias)
            + WeightSize::vector(kv_lora_rank)
            + expand(kv_lora_rank, nope_dim)
            + expand(value_dim, kv_lora_rank)
            + if expand_from.is_some() {
                expand(nope_dim, kv_lora_rank).again()
            } else {
                WeightSize::default()
            }
            + names.linear("self_attn.o_proj", hidden_size, num_heads * value_dim, bias)
    }

    /// What the first layer keeps its weights as.
    pub fn takes(&self) -> WeightType {
        match &self.query {
            Query::TwoStep { down, .. } => down.stored_as(),
            Query::Direct(linear) => linear.stored_as(),
        }
    }

    /// `early` is a matrix that the layer reads after attention, in a product too short to ask for it.
    pub fn plan_reads(&self, early: Option<&Matrix>, plan: &mut ReadPlan) {
        match &self.query {
            Query::TwoStep { down, up, .. } => {
                Linear::plan_pair([down, &self.kv], plan);
                up.plan_reads(plan);
            }
            Query::Direct(linear) => Linear::plan_pair([linear, &self.kv], plan),
        }
        plan.heads(&self.key_up);
        early.into_iter().for_each(|early| plan.early(early));
        plan.heads(&self.value_up);
        self.out.plan_reads(plan);
    }

    /// Reads `normed`, writes `out`.
    pub fn run(&self, step: &Step, cache: &mut LayerCache, scratch: &mut Scratch) {
        let LayerCache::Mla { rows } = cache else { unreachable!("the cache is of another attention") };
        let Scratch { normed, out, heads, attention, tokens, lora, .. } = scratch;
        let HeadBuffers::Mla(b) = heads else { unreachable!("the buffers are of another attention") };
        let MlaConfig { num_heads, kv_lora_rank: rank, value_dim, scale, .. } = self.config;
        let t = step.num_tokens();
        self.project(step, normed, b, (tokens, lora));
        self.prepare(step, rows, b);
        self.absorb(step, b);
        if let Some((loras, room)) = step.adapters(lora) {
            loras.add_keys(step.layer, &b.q, &mut b.absorbed, room);
        }
        b.attended.reshape(&[t, num_heads, rank]);
        b.values.reshape(&[t, num_heads, value_dim]);
        let forms = &step.input.forms;
        let mixed = forms.are_mixed();
        let ragged = Ragged { selected: mixed.then_some(&forms.absorbed), ..step.ragged };
        ops::mla_attention(&b.absorbed, &*rows, rank, &ragged, scale, attention, &mut b.attended);
        // What adapters add to is not packed.
        let changes = step.changes(&[Target::KvUp]);
        let makers = [
            ops::heads_pack_as(&self.value_up).filter(|_| !changes),
            match &b.expanded {
                Some(scratch) if mixed => scratch.packs_as(),
                _ => ops::heads_pack_as(&self.value_up),
            },
        ];
        let mut made = tokens.make(&mut b.values, self.out.reader(step.changes(&[Target::Out])), &makers);
        for rows in &forms.absorbed_rows {
            made.heads_linear(&b.attended, &self.value_up, rows.clone());
        }
        if let (true, Some((loras, room))) = (changes, step.adapters(lora)) {
            loras.add_values(step.layer, &b.attended, made.floats(), room);
        }
        if let (true, Some(key_up), Some(scratch)) = (mixed, &self.key_expand, &mut b.expanded) {
            let latents = Latents { cache: rows.as_rows(), key_up, value_up: &self.value_up };
            let ragged = Ragged { selected: Some(&forms.expanded), ..step.ragged };
            made.expanded_attention(&b.q, latents, (&ragged, scale), scratch);
        }
        self.out.run(&mut made.done(), out);
        b.values.reshape(&[t, num_heads * value_dim]);
        if let Some((loras, room)) = step.adapters(lora) {
            loras.add_to((step.layer, Target::Out), &b.values, (out, 0), room);
        }
    }

    /// Leaves latents in `kv` [T, R + P] and queries in `q` [T, H · (nope + P)].
    fn project(
        &self,
        step: &Step,
        normed: &Tensor,
        b: &mut MlaBuffers,
        (tokens, lora): (&mut TokenRoom, &mut Option<LoraBuffers>),
    ) {
        let t = normed.shape()[0];
        b.kv.reshape(&[t, self.config.row()]);
        b.q.reshape(&[t, self.config.num_heads * self.config.query_dim()]);
        let mut x = tokens.hold_made(normed);
        let mut adapt = |target, x: &Tensor, out: &mut Tensor| {
            if let Some((loras, room)) = step.adapters(lora) {
                loras.add_to((step.layer, target), x, (out, 0), room);
            }
        };
        match (&self.query, &mut b.q_latents) {
            (Query::TwoStep { down, norm, up }, Some((latent, latent_normed))) => {
                let width = norm.shape()[0];
                latent.reshape(&[t, width]);
                latent_normed.reshape(&[t, width]);
                Linear::run_pair([down, &self.kv], &mut x, [latent, &mut b.kv]);
                adapt(Target::QDown, normed, latent);
                let norm = NormFor { weight: norm, eps: LATENT_NORM_EPS, next: up.stored_as() };
                tokens.rms_norm(latent, norm, latent_normed);
                up.run(&mut tokens.hold_made(latent_normed), &mut b.q);
                adapt(Target::QUp, latent_normed, &mut b.q);
            }
            (Query::Direct(linear), _) => {
                Linear::run_pair([linear, &self.kv], &mut x, [&mut b.q, &mut b.kv]);
                adapt(Target::Q, normed, &mut b.q);
            }
            (Query::TwoStep { .. }, None) => unreachable!("two-step queries come with their buffers"),
        }
        adapt(Target::KvDown, normed, &mut b.kv);
    }

    /// Stores `[normalised latent | rotated rope]` of every token, and rotates the last part of its queries, in `q` and in `absorbed`.
    fn prepare(&self, step: &Step, cache: &mut KvTensor, b: &mut MlaBuffers) {
        let MlaConfig { num_heads, kv_lora_rank: rank, .. } = self.config;
        let t = step.num_tokens();
        b.q.reshape(&[t, num_heads, self.config.query_dim()]);
        b.absorbed.reshape(&[t, num_heads, self.config.row()]);
        b.latent.reshape(&[t, rank]);
        let rows = LatentRows {
            kv: &mut b.kv,
            norm: &self.latent_norm,
            eps: LATENT_NORM_EPS,
            q: &mut b.q,
            absorbed: &mut b.absorbed,
            scratch: &mut b.latent,
        };
        let positions = (&step.input.positions).into();
        let rotation = Rotation { table: step.rope, positions, layout: step.layout };
        ops::prepare_latents(rows, &rotation, cache, &step.input.slots);
    }

    /// The other part of queries, of rows in the absorbed form, on the latent's side: `absorbed` [T, H, R + P] is whole.
    fn absorb(&self, step: &Step, b: &mut MlaBuffers) {
        let MlaConfig { kv_lora_rank: rank, nope_dim, .. } = self.config;
        for rows in &step.input.forms.absorbed_rows {
            let nope = HeadSlice { tensor: &b.q, rows: rows.clone(), offset: 0, len: nope_dim };
            let into = HeadSliceMut { tensor: &mut b.absorbed, rows: rows.clone(), offset: 0, len: rank };
            ops::heads_linear(nope, &self.key_up, into);
        }
    }
}

/// Keys and values from latents. It is taken apart and turned round, so that groups of the file would not be groups here: if it is
/// quantised in the file, it is read as floats.
const KV_UP: &str = "self_attn.kv_b_proj";

/// The up-projections, taken apart.
struct Ups {
    key_up: MatrixBatch,
    value_up: MatrixBatch,
    key_expand: Option<MatrixBatch>,
}

/// `kv_b_proj` holds for each head the rows that make keys, then the rows that make values.
fn ups(loader: &Loader, config: &MlaConfig) -> Result<Ups, LoadError> {
    let MlaConfig { num_heads, kv_lora_rank: rank, nope_dim, value_dim, expand_from, .. } = *config;
    let rows = nope_dim + value_dim;
    let (names, module) = (loader.names.of_part(Part::Absorbed), loader.name(KV_UP));
    let scheme = names.storage.scheme(names.part, &module);
    let (device, stored_as) = (loader.device, names.stored_as(KV_UP));
    let read: RefCell<Option<Rc<[f32]>>> = RefCell::default();
    let weights = || -> Result<Rc<[f32]>, LoadError> {
        if let Some(weights) = &*read.borrow() {
            return Ok(weights.clone());
        }
        let weights = loader.checkpoint.weight(&module, scheme, [num_heads * rows, rank])?.to_f32();
        Ok(read.borrow_mut().insert(weights.into()).clone())
    };
    let at = |weights: &[f32], head: usize, row: usize, k: usize| weights[(head * rows + row) * rank + k];
    let (keys, values) = ([num_heads, rank, nope_dim], [num_heads, value_dim, rank]);
    let form = ((stored_as, keys), (stored_as, values));
    let (key_up, value_up) = loader.checkpoint.kept(device, &module, form, || {
        let weights = &*weights()?;
        let key_up = MatrixBatch::pack_f32(device, stored_as, keys, &|head, n, k| at(weights, head, k, n));
        let value = |head, n, k| at(weights, head, nope_dim + n, k);
        Ok((key_up, MatrixBatch::pack_f32(device, stored_as, values, &value)))
    })?;
    let expand = [num_heads, nope_dim, rank];
    let key = format!("{module}.expanded");
    let pack_expand = || {
        let weights = &*weights()?;
        Ok(MatrixBatch::pack_f32(device, stored_as, expand, &|head, n, k| at(weights, head, n, k)))
    };
    let kept = |_| loader.checkpoint.kept(device, &key, (stored_as, expand), pack_expand);
    Ok(Ups { key_up, value_up, key_expand: expand_from.map(kept).transpose()? })
}
