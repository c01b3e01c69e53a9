//! The one decoder. What differs between families is in its configuration.
//!
//! ```text
//! tokens ─▶ embedding (rows of pictures laid over) ─▶ residual
//! each layer:  residual ─norm─▶ attention ─▶ + residual ─norm─▶ MLP or experts ─▶ + residual
//! residual ─norm─▶ rows to sample or to score ─▶ head ─▶ logits, some rows at a time
//! ```
//!
//! Where pictures have rows for several layers, those of layer i are added to the residual of their tokens after it.
//! In families that normalise after a layer's parts: `residual ─▶ attention ─norm─▶ + residual ─▶ MLP ─norm─▶ + residual`; in those that do
//! both, there is a second norm before each `+ residual` above.

use crate::LoadError;
use crate::config::{AttentionConfig, DecoderConfig, NormPlace};
use crate::input::StepInput;
use crate::kv_cache::{KvCache, LayerCache};
use crate::layers::gqa::Gqa;
use crate::layers::mla::Mla;
use crate::layers::mlp::{Mlp, MlpShape};
use crate::layers::moe::Moe;
use crate::layers::{Loader, Names, Step, WeightSize, rope};
use crate::lora::Loras;
use crate::parts::Part;
use crate::scratch::Scratch;
use crate::screening::{HeadScreen, ScreenCounts, StepReads};
use crate::storage::Storage;
use crate::weights::Checkpoint;
use kernels::ops::{self, Activation, NormFor, Ragged, ReadPlan, RopeLayout, RopeSections, RopeTable};
use kernels::{Device, Indices, Matrix, Screen, Tensor, WeightType};

pub struct Decoder {
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    head: Matrix,
    /// Added to logits: the smallest number for tokens that are never drawn, 0 for all others.
    never_drawn: Option<Tensor>,
    screen: Option<HeadScreen>,
    reads: StepReads,
    norms: NormPlace,
    rope: RopeTable,
    rope_layout: RopeLayout,
    /// Where a token has three positions.
    sections: Option<RopeSections>,
    eps: f32,
}

struct Layer {
    input_norm: Tensor,
    attention: Attention,
    mlp_norm: Tensor,
    mlp: LayerMlp,
    /// Of what attention and MLP made, before it is added.
    made_norms: Option<[Tensor; 2]>,
}

enum Attention {
    Gqa(Box<Gqa>),
    Mla(Box<Mla>),
}

enum LayerMlp {
    Dense(Box<Mlp>),
    Moe(Box<Moe>),
}

/// How the weights are kept on the device.
#[derive(Clone, Copy)]
pub struct Placement<'a> {
    pub device: &'a Device,
    pub storage: &'a Storage,
    /// Positions that the tables of cosines and sines cover.
    pub max_model_len: usize,
}

/// What a step reads beside its input and the model's own weights.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// The rows that `input.image_rows` names: what replaces the embedding of pictures' tokens, and what is added to their residual after each of
    /// the first layers. Empty where the model sees no pictures.
    pub images: &'a [Tensor],
    /// Where some rows have adapters.
    pub loras: Option<&'a Loras>,
}

impl Decoder {
    /// Takes its tensors from the checkpoint; `loaded` is called after each layer.
    pub fn load(
        checkpoint: &Checkpoint,
        config: &DecoderConfig,
        placement: &Placement,
        loaded: &mut dyn FnMut(),
    ) -> Result<Self, LoadError> {
        let Placement { device, storage, max_model_len } = *placement;
        let loader = |prefix: String| Loader { checkpoint, device, names: names(storage, prefix) };
        let (vocab_size, hidden_size) = (config.vocab_size, config.hidden_size);
        let mut layers = Vec::with_capacity(config.num_layers);
        for index in 0..config.num_layers {
            layers.push(Layer::load(&loader(layer_prefix(config, index)), config, index)?);
            loaded();
        }
        let base = loader(config.prefix.to_string());
        let head = Loader { names: base.names.of_part(Part::Head), ..base };
        let table = Table {
            name: format!("{}{}embed_tokens.weight", config.prefix, config.body),
            shape: [vocab_size, hidden_size],
        };
        let (embedding, head) = match config.tied_head {
            true => table.load_tied(checkpoint, *placement, head.names.stored_as(HEAD))?,
            false => (table.load(checkpoint, *placement)?, head.matrix(HEAD, vocab_size, hidden_size)?),
        };
        let screen = match storage.screens_head {
            true => {
                let (key, form) = (base.name("lm_head.screen"), [vocab_size, hidden_size]);
                Some(checkpoint.kept(device, &key, form, || Ok(Screen::of(&head)))?)
            }
            false => None,
        };
        let norm = base.vector(&format!("{}norm.weight", config.body), hidden_size)?;
        let never_drawn = never_drawn(device, config);
        let rope = rope::table(device, &config.rope, max_model_len);
        loaded();
        let (rope_layout, sections, eps) = (config.rope.layout, config.rope.sections, config.rms_norm_eps);
        let plan = |last: &Matrix| {
            let mut plan = ReadPlan::new(device);
            layers.iter().for_each(|layer| layer.plan_reads(&mut plan));
            plan.linear(last);
            plan.ready()
        };
        let reads = StepReads::new(plan(&head), screen.as_ref().map(|screen| plan(screen.coarse())));
        let screen = screen.map(HeadScreen::new);
        let norms = config.norms;
        Ok(Self {
            embedding,
            layers,
            norm,
            head,
            never_drawn,
            screen,
            reads,
            norms,
            rope,
            rope_layout,
            sections,
            eps,
        })
    }

    /// Of all weights; a tied head is a second copy of the table, in the layout of a linear layer.
    pub fn size(config: &DecoderConfig, storage: &Storage) -> WeightSize {
        let (vocab_size, hidden_size) = (config.vocab_size, config.hidden_size);
        let table = (vocab_size * hidden_size) as u64;
        let bytes = table * storage.float.size() as u64;
        let embedding = WeightSize { parameters: table, bytes, tensors: 1 };
        let base = names(storage, config.prefix.into());
        let mut head = base.of_part(Part::Head).matrix(HEAD, vocab_size, hidden_size);
        if config.tied_head {
            head.parameters = 0;
        }
        let screen = match storage.screens_head {
            true => {
                let bytes = Screen::packed_bytes(vocab_size, hidden_size);
                WeightSize { parameters: 0, bytes, tensors: 2 }
            }
            false => WeightSize::default(),
        };
        let layers: WeightSize = (0..config.num_layers).map(|i| Layer::size(config, i, storage)).sum();
        let never_drawn = match config.never_drawn.is_empty() {
            true => WeightSize::default(),
            false => WeightSize { parameters: 0, ..WeightSize::vector(vocab_size) },
        };
        embedding + head + never_drawn + screen + layers + WeightSize::vector(hidden_size)
    }

    /// What the head is kept as, and how many weights it has.
    pub fn head(config: &DecoderConfig, storage: &Storage) -> (WeightType, usize) {
        let names = names(storage, config.prefix.into()).of_part(Part::Head);
        (names.stored_as(HEAD), config.vocab_size * config.hidden_size)
    }

    /// What a screened head has beside its weights.
    pub fn screen_bytes(config: &DecoderConfig, storage: &Storage) -> u64 {
        if storage.screens_head { Screen::room_bytes(config.vocab_size) } else { 0 }
    }

    pub fn screens_head(&self) -> bool {
        self.screen.is_some()
    }

    /// What became of the products of a head that is screened.
    pub fn screen_counts(&self) -> ScreenCounts {
        self.screen.as_ref().map(HeadScreen::counts).unwrap_or_default()
    }

    pub fn rope_bytes(config: &DecoderConfig, max_model_len: usize) -> u64 {
        RopeTable::bytes(max_model_len, config.rope.dim / 2)
    }

    /// Whether a stored tensor that the decoder never takes may be there all the same.
    pub fn may_ignore(config: &DecoderConfig, name: &str) -> bool {
        let Some(rest) = name.strip_prefix(config.prefix) else { return false };
        Self::is_mtp(config, name)
            || rest.ends_with("rotary_emb.inv_freq")
            || (config.tied_head && rest == "lm_head.weight")
    }

    /// Whether a stored tensor is of the layers that predict more than one token, which are left out.
    pub fn is_mtp(config: &DecoderConfig, name: &str) -> bool {
        let Some(rest) = name.strip_prefix(config.prefix) else { return false };
        let layers = rest.strip_prefix(config.body).and_then(|rest| rest.strip_prefix("layers."));
        let layer = layers.and_then(|rest| rest.split_once('.'));
        let is_behind = layer.and_then(|(index, _)| index.parse::<usize>().ok()).is_some_and(|index| {
            (config.num_layers..config.num_layers + config.num_mtp_layers).contains(&index)
        });
        is_behind || (config.num_mtp_layers > 0 && rest.starts_with("model.mtp_"))
    }

    /// Runs all tokens of a step. Afterwards `scratch.normed` has a row
    /// for every token, ready for the head.
    pub fn forward(
        &self,
        input: &StepInput,
        Sources { images, loras }: Sources,
        cache: &mut KvCache,
        scratch: &mut Scratch,
    ) {
        scratch.set_tokens(input.num_tokens());
        ops::embedding(&self.embedding, &input.tokens, &mut scratch.residual);
        if !input.image_rows.as_slice().is_empty() {
            let embedding = images.first().expect("only models with pictures get their rows");
            ops::scatter_rows(embedding, &input.image_rows, &mut scratch.residual, &input.image_tokens);
        }
        let ragged = ragged(input, cache.block_size);
        let (layout, sections) = (self.rope_layout, self.sections);
        let mut step = Step { input, ragged, rope: &self.rope, layout, sections, loras, layer: 0 };
        match self.norms {
            NormPlace::Before | NormPlace::Both => self.run_normed_before(&mut step, images, cache, scratch),
            NormPlace::After => self.run_normed_after(&mut step, cache, scratch),
        }
    }

    fn run_normed_before(
        &self,
        step: &mut Step,
        images: &[Tensor],
        cache: &mut KvCache,
        scratch: &mut Scratch,
    ) {
        let has_pictures = !step.input.image_rows.as_slice().is_empty();
        let Scratch { residual, normed, tokens, .. } = &mut *scratch;
        tokens.rms_norm(residual, self.norm_before(0), normed);
        for (index, (layer, cache)) in self.layers.iter().zip(&mut cache.layers).enumerate() {
            step.layer = index;
            let norm = self.norm_before(index + 1);
            layer.run_normed_before(step, cache, norm, scratch);
            // Rows without pictures keep the bits that they have: the norm of what did not change is the same.
            if let Some(rows) = images.get(index + 1).filter(|_| has_pictures) {
                add_pictures(rows, step.input, scratch);
                let Scratch { residual, normed, tokens, .. } = &mut *scratch;
                tokens.rms_norm(residual, norm, normed);
            }
        }
    }

    /// The norm before a layer, or before the head, which reads rows of it that are gathered.
    fn norm_before(&self, index: usize) -> NormFor<'_> {
        let (weight, next) = match self.layers.get(index) {
            Some(layer) => (&layer.input_norm, layer.attention.takes()),
            None => (&self.norm, WeightType::F32),
        };
        NormFor { weight, eps: self.eps, next }
    }

    /// Layers read the stream itself, so the stream is where they read. It is brought back: the next step, and a graph's replay, find each buffer in
    /// its place.
    fn run_normed_after(&self, step: &mut Step, cache: &mut KvCache, scratch: &mut Scratch) {
        std::mem::swap(&mut scratch.residual, &mut scratch.normed);
        for (index, (layer, cache)) in self.layers.iter().zip(&mut cache.layers).enumerate() {
            step.layer = index;
            layer.run_normed_after(step, cache, self.eps, scratch);
        }
        std::mem::swap(&mut scratch.residual, &mut scratch.normed);
        ops::rms_norm(&scratch.residual, &self.norm, self.eps, &mut scratch.normed);
    }

    /// A step begins after which so many rows go through the head. It changes no number.
    pub fn begin(&self, num_rows: usize) {
        self.reads.begin(num_rows);
    }

    /// Tells a graph of `forward` what its next replay attends to.
    pub fn plan(&self, input: &StepInput, cache: &KvCache, scratch: &mut Scratch) {
        scratch.attention.plan(&ragged(input, cache.block_size));
    }

    /// Logits of some rows of `scratch.normed`, one row each, in `scratch.logits`. `tops`: of each row only so many of the largest are looked
    /// at, and what is smaller need only be smaller.
    pub fn logits(&self, rows: &Indices, tops: Option<&[usize]>, scratch: &mut Scratch) {
        let Scratch { normed, sampled, logits, tokens, .. } = scratch;
        let num_rows = rows.as_slice().len();
        sampled.set_rows(num_rows);
        logits.set_rows(num_rows);
        ops::gather_rows(normed, rows, sampled);
        match (&self.screen, tops) {
            (Some(screen), Some(tops)) => screen.linear(sampled, &self.head, tops, logits),
            _ => tokens.hold(sampled).linear(&self.head, self.never_drawn.as_ref(), Activation::None, logits),
        }
    }
}

fn ragged(input: &StepInput, block_size: usize) -> Ragged<'_> {
    Ragged {
        cu_seqlens: (&input.cu_seqlens).into(),
        context_lens: (&input.context_lens).into(),
        block_tables: (&input.block_tables).into(),
        cu_blocks: (&input.cu_blocks).into(),
        block_size,
        selected: None,
    }
}

/// The token embedding.
struct Table {
    name: String,
    /// Vocabulary, hidden size.
    shape: [usize; 2],
}

impl Table {
    fn load(&self, checkpoint: &Checkpoint, at: Placement) -> Result<Tensor, LoadError> {
        let (device, dtype) = (at.device, at.storage.float);
        if let Some((seed, std)) = self.dummy(checkpoint, dtype.size()) {
            return Ok(Tensor::random_as(device, dtype, &self.shape, std, seed));
        }
        checkpoint.kept(device, &self.name, (dtype, self.shape.to_vec()), || {
            Ok(Tensor::from_rows(device, dtype, &checkpoint.take(&self.name, &self.shape)?))
        })
    }

    /// With the head that is the same matrix.
    fn load_tied(
        &self,
        checkpoint: &Checkpoint,
        at: Placement,
        head: WeightType,
    ) -> Result<(Tensor, Matrix), LoadError> {
        let (device, dtype, [n, k]) = (at.device, at.storage.float, self.shape);
        if let Some((seed, std)) = self.dummy(checkpoint, dtype.size()) {
            let embedding = Tensor::random_as(device, dtype, &self.shape, std, seed);
            return Ok((embedding, Matrix::random(device, head, n, k, std, seed)));
        }
        let form = ((dtype, self.shape.to_vec()), (head, self.shape));
        checkpoint.kept(device, &self.name, form, || {
            let weights = checkpoint.take(&self.name, &self.shape)?;
            Ok((Tensor::from_rows(device, dtype, &weights), Matrix::pack(device, head, &[&weights])))
        })
    }

    /// Seed and deviation of random numbers, if the checkpoint is of such.
    fn dummy(&self, checkpoint: &Checkpoint, size: usize) -> Option<(u64, f32)> {
        let bytes = self.shape.iter().product::<usize>() * size;
        let seed = checkpoint.dummy_seed(&self.name, bytes as u64)?;
        Some((seed, 1.0 / (self.shape[1] as f32).sqrt()))
    }
}

impl Attention {
    /// What the first layer keeps its weights as.
    fn takes(&self) -> WeightType {
        match self {
            Self::Gqa(attention) => attention.takes(),
            Self::Mla(attention) => attention.takes(),
        }
    }
}

impl LayerMlp {
    fn takes(&self) -> WeightType {
        match self {
            Self::Dense(mlp) => mlp.takes(),
            Self::Moe(moe) => moe.takes(),
        }
    }
}

impl Layer {
    fn load(loader: &Loader, config: &DecoderConfig, index: usize) -> Result<Self, LoadError> {
        let hidden_size = config.hidden_size;
        Ok(Self {
            input_norm: loader.vector("input_layernorm.weight", hidden_size)?,
            attention: match &config.attention {
                AttentionConfig::Gqa(a) => {
                    let attention = Gqa::load(loader, a, hidden_size, config.rms_norm_eps)?;
                    Attention::Gqa(Box::new(attention.within(config.window(index))))
                }
                AttentionConfig::Mla(a) => Attention::Mla(Box::new(Mla::load(loader, a, hidden_size)?)),
            },
            mlp_norm: loader.vector("post_attention_layernorm.weight", hidden_size)?,
            mlp: match moe_of(config, index) {
                Some(moe) => LayerMlp::Moe(Box::new(Moe::load(loader, moe, hidden_size)?)),
                None => LayerMlp::Dense(Box::new(Mlp::load(loader, "mlp", mlp_shape(config))?)),
            },
            made_norms: match config.norms {
                NormPlace::Before | NormPlace::After => None,
                NormPlace::Both => Some([
                    loader.vector("post_self_attn_layernorm.weight", hidden_size)?,
                    loader.vector("post_mlp_layernorm.weight", hidden_size)?,
                ]),
            },
        })
    }

    fn size(config: &DecoderConfig, index: usize, storage: &Storage) -> WeightSize {
        let hidden_size = config.hidden_size;
        let names = names(storage, layer_prefix(config, index));
        let attention = match &config.attention {
            AttentionConfig::Gqa(a) => Gqa::size(&names, a, hidden_size),
            AttentionConfig::Mla(a) => Mla::size(&names, a, hidden_size),
        };
        let mlp = match moe_of(config, index) {
            Some(moe) => Moe::size(&names, moe, hidden_size),
            None => Mlp::size(&names, "mlp", mlp_shape(config)),
        };
        let norms = if config.norms == NormPlace::Both { 4 } else { 2 };
        attention + mlp + WeightSize::vector(hidden_size).times(norms)
    }

    fn plan_reads(&self, plan: &mut ReadPlan) {
        let router = match &self.mlp {
            LayerMlp::Moe(moe) => Some(moe.router()),
            LayerMlp::Dense(_) => None,
        };
        match &self.attention {
            Attention::Gqa(attention) => attention.plan_reads(router, plan),
            Attention::Mla(attention) => attention.plan_reads(router, plan),
        }
        match &self.mlp {
            LayerMlp::Dense(mlp) => mlp.plan_reads(plan),
            LayerMlp::Moe(moe) => moe.plan_reads(plan),
        }
    }

    /// Reads `normed`, adds to the residual, and leaves the norm of that in `normed`, as the next layer reads it.
    fn run_normed_before(
        &self,
        step: &Step,
        cache: &mut LayerCache,
        next_norm: NormFor,
        scratch: &mut Scratch,
    ) {
        self.attend(step, cache, scratch);
        let norm = NormFor { weight: &self.mlp_norm, next: self.mlp.takes(), ..next_norm };
        match (&self.mlp, &self.made_norms) {
            (LayerMlp::Dense(mlp), None) => {
                add_and_norm(norm, scratch);
                mlp.run(step, scratch);
                add_and_norm(next_norm, scratch);
            }
            (LayerMlp::Dense(mlp), Some([attended, made])) => {
                norm_made(attended, next_norm.eps, scratch);
                add_and_norm(norm, scratch);
                mlp.run(step, scratch);
                norm_made(made, next_norm.eps, scratch);
                add_and_norm(next_norm, scratch);
            }
            (LayerMlp::Moe(moe), None) => moe.run(step, [norm, next_norm], scratch),
            (LayerMlp::Moe(_), Some(_)) => unreachable!("no family normalises what experts made"),
        }
    }

    /// Reads `normed`, which is the stream, and adds to it; `residual` is room for norms.
    fn run_normed_after(&self, step: &Step, cache: &mut LayerCache, eps: f32, scratch: &mut Scratch) {
        self.attend(step, cache, scratch);
        add_norm(&self.input_norm, eps, scratch);
        match &self.mlp {
            LayerMlp::Dense(mlp) => mlp.run(step, scratch),
            LayerMlp::Moe(_) => unreachable!("no family normalises after experts"),
        }
        add_norm(&self.mlp_norm, eps, scratch);
    }

    fn attend(&self, step: &Step, cache: &mut LayerCache, scratch: &mut Scratch) {
        match &self.attention {
            Attention::Gqa(attention) => attention.run(step, cache, scratch),
            Attention::Mla(attention) => attention.run(step, cache, scratch),
        }
    }
}

/// Adds rows of pictures to the stream of their tokens, which ascend.
fn add_pictures(rows: &Tensor, input: &StepInput, scratch: &mut Scratch) {
    let Scratch { residual, out: added, .. } = scratch;
    let num_tokens = added.rows();
    added.set_rows(input.image_rows.as_slice().len());
    ops::gather_rows(rows, &input.image_rows, added);
    ops::add_rows(added, 1.0, residual, &input.image_tokens, 0);
    added.set_rows(num_tokens);
}

/// Adds the norm of what a layer made to the stream, where the stream is what layers read.
fn add_norm(norm: &Tensor, eps: f32, scratch: &mut Scratch) {
    let Scratch { residual: room, normed: stream, out, .. } = scratch;
    ops::rms_norm(out, norm, eps, room);
    ops::add(stream, room);
}

/// Normalises what a part of a layer made. The room for it is what that part read: the two buffers change places, twice in a layer, so that
/// each is in its own at the end of it, where the next step and a graph's replay look for it.
fn norm_made(norm: &Tensor, eps: f32, scratch: &mut Scratch) {
    let Scratch { normed, out, .. } = scratch;
    ops::rms_norm(out, norm, eps, normed);
    std::mem::swap(out, normed);
}

/// What is added to logits, where a model has tokens that are never drawn. A finite logit is too small to change the smallest number.
fn never_drawn(device: &Device, config: &DecoderConfig) -> Option<Tensor> {
    if config.never_drawn.is_empty() {
        return None;
    }
    let mut values = vec![0.0; config.vocab_size];
    config.never_drawn.iter().for_each(|&token| values[token as usize] = f32::MIN);
    Some(Tensor::from_f32(device, &[values.len()], &values))
}

/// Adds what a layer made to the stream, and normalises the stream for the next one.
fn add_and_norm(norm: NormFor, scratch: &mut Scratch) {
    let Scratch { residual, normed, out, tokens, .. } = scratch;
    tokens.add_rms_norm(residual, out, norm, normed);
}

const HEAD: &str = "lm_head";

fn names(storage: &Storage, prefix: String) -> Names<'_> {
    Names { storage, part: Part::Linear, prefix }
}

fn layer_prefix(config: &DecoderConfig, index: usize) -> String {
    format!("{}{}layers.{index}.", config.prefix, config.body)
}

fn moe_of(config: &DecoderConfig, index: usize) -> Option<&crate::config::MoeConfig> {
    config.moe.as_ref().filter(|moe| moe.layers[index])
}

fn mlp_shape(config: &DecoderConfig) -> MlpShape {
    MlpShape {
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        bias: config.mlp_bias,
        fused: config.fused_gate_up,
    }
}
