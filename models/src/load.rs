//! From a model's files to a runner: read the configuration, plan, take the weights, allocate the rest.

use crate::chameleon::encoder::{self, Encoder};
use crate::chameleon::image_processor::{ChameleonImageProcessor, PixelRule};
use crate::config::{AttentionConfig, GenerationDefaults, ModelConfig, PictureCodes, TowerKind};
use crate::decoder::{Decoder, Placement};
use crate::device;
use crate::input::StepInput;
use crate::kv_cache::KvCache;
use crate::lora::{AdapterSpec, LoraBuffers, Loras};
use crate::memory::Request;
use crate::memory_limit;
use crate::memory_plan::Plan;
use crate::runner::{DeviceRunner, Eyes, Parts};
use crate::scratch::Scratch;
use crate::storage::Storage;
use crate::vision::{Vision, VisionShape};
use crate::weights::{CacheUse, Checkpoint};
use crate::{
    HeadScreeningChoice, ImageProcessor, LoadError, LoadFormat, LoadOptions, ModelFiles, ModelInfo,
    WeightLayoutChoice,
};
use kernels::{DType, Device, HostBlocks, Indices, Tensor};
use scheduler::SchedulerConfig;
use std::sync::Arc;

/// A model that is ready to run.
pub struct Loaded {
    pub runner: DeviceRunner,
    pub info: ModelInfo,
    /// What adapters of it may be; present when there is room for some (`LoadOptions::max_loras`).
    pub adapters: Option<Arc<AdapterSpec>>,
    /// Present when the model sees pictures.
    pub image_processor: Option<Arc<dyn ImageProcessor>>,
    pub scheduler_config: SchedulerConfig,
    pub plan: Plan,
    pub generation_defaults: GenerationDefaults,
    /// What became of the packed weights on disk: the caller says when they are written.
    pub cache_use: CacheUse,
    /// Stored tensors of layers that predict more than one token (MTP), which are not read.
    pub num_mtp_tensors: usize,
    /// Why weights are not compact although the device would gain by it.
    pub not_compact: Option<LoadError>,
}

/// How far loading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Of weights.
    pub bytes_done: u64,
    pub bytes_total: u64,
}

/// What the files say of a model, apart from its weights.
struct Description {
    config: ModelConfig,
    storage: Storage,
    vision: Option<(VisionShape, Arc<dyn ImageProcessor>)>,
    /// Where pictures are tokens: how they are cut, and the processor that encodes them.
    codes: Option<(PixelRule, Device)>,
    is_embedded: bool,
}

impl Description {
    fn read(files: &ModelFiles, options: &LoadOptions) -> Result<Self, LoadError> {
        let mut config = ModelConfig::read(files)?;
        if options.mla_expand_from.is_some() {
            let AttentionConfig::Mla(attention) = &mut config.decoder.attention else {
                let message = "the model has no latent attention".to_string();
                return Err(LoadError::Option { option: "mla_expand_from", message });
            };
            attention.expand_from = options.mla_expand_from;
        }
        let storage = Storage::of_model(&config, options);
        let vision = match &config.vision {
            None => None,
            Some(part) => Some(VisionShape::read(files, part, &config.decoder, options)?),
        };
        if options.image_resize_pixels.is_some()
            && config.vision.as_ref().is_none_or(|part| part.tower == TowerKind::MoonVit)
        {
            let message = "the model has no image processor that resizes to a number of pixels".to_string();
            return Err(LoadError::Option { option: "image_resize_pixels", message });
        }
        let codes = match &config.codes {
            None => None,
            Some(codes) => {
                let rule = PixelRule::from_files(files)?;
                rule.check(files, &codes.vq)?;
                Some((rule, device::for_pictures(options)?))
            }
        };
        Ok(Self { config, storage, vision, codes, is_embedded: matches!(files, ModelFiles::Embedded(_)) })
    }

    /// How weights are kept on this device.
    fn choose(&mut self, options: &LoadOptions, device: &Device) -> Result<(), LoadError> {
        let Self { config, storage, .. } = self;
        storage.choose_layout(options.weight_layout, device)?;
        let head = Decoder::head(&config.decoder, storage);
        let choice = match (options.head_screening, config.decoder.never_drawn.is_empty()) {
            (choice, true) => choice,
            (HeadScreeningChoice::On, false) => {
                let message = "a coarse copy would find tokens that this model never draws: use auto or off";
                return Err(LoadError::Option { option: "head_screening", message: message.into() });
            }
            (HeadScreeningChoice::Auto | HeadScreeningChoice::Off, false) => HeadScreeningChoice::Off,
        };
        storage.choose_screening(choice, head, device)
    }

    fn request<'a>(&'a self, options: &'a LoadOptions, device: &'a Device) -> Result<Request<'a>, LoadError> {
        let limit = memory_limit::resolve(options.memory, || memory_limit::of_device(device))?;
        let vision = self.vision.as_ref().map(|(shape, _)| shape);
        let host = self.codes.as_ref().map(|(_, host)| host);
        let Self { config, storage, is_embedded, .. } = self;
        Ok(Request { config, vision, host, options, device, limit, storage, is_embedded: *is_embedded })
    }
}

/// What fits, from the configuration alone: no weight file is opened, and a GPU need not be there. Where weights turn out not to be ones that
/// can be compact, `load` keeps them plain and has the plan of `WeightLayoutChoice::Plain`.
pub fn plan(files: &ModelFiles, options: &LoadOptions) -> Result<Plan, LoadError> {
    let device = device::on_paper(options)?;
    let mut description = Description::read(files, options)?;
    description.choose(options, &device)?;
    description.request(options, &device)?.plan()
}

/// Loads a model. `progress` is called now and then, and once at the end; from the beginning again where weights that were to be compact cannot be.
pub fn load(
    files: &ModelFiles,
    options: &LoadOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Loaded, LoadError> {
    // Compact or plain is a choice for all weights, so that every size is known from the shapes.
    match (load_once(files, options, progress), options.weight_layout) {
        (Err(not_compact @ LoadError::NotCompact { .. }), WeightLayoutChoice::Auto) => {
            let plain = LoadOptions { weight_layout: WeightLayoutChoice::Plain, ..options.clone() };
            Ok(Loaded { not_compact: Some(not_compact), ..load_once(files, &plain, progress)? })
        }
        (loaded, _) => loaded,
    }
}

fn load_once(
    files: &ModelFiles,
    options: &LoadOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Loaded, LoadError> {
    let mut description = Description::read(files, options)?;
    let device = device::open(options)?;
    description.choose(options, &device)?;
    let request = description.request(options, &device)?;
    let plan = request.plan()?;
    if matches!(device, Device::Cuda(_)) && plan.kv_offload_bytes > 0 {
        memory_limit::check_kv_offload(plan.kv_offload_bytes, memory_limit::available_on_host())?;
    }
    device.reserve(plan.memory.total)?;
    if matches!(device, Device::Cpu(_)) {
        memory_limit::check_addresses(plan.memory.total)?;
    }
    let (storage, kv_type) = (&description.storage, request.kv_type());
    let mut checkpoint = match options.load_format {
        LoadFormat::Auto => Checkpoint::open(files)?,
        LoadFormat::Dummy => Checkpoint::dummy(options.seed),
    };
    if plan.weights_cache_bytes > 0
        && let Some(cache) = &options.weights_cache
    {
        checkpoint.use_cache(cache, files, storage, &device)?;
    }
    let config = &description.config;
    let bytes_total = checkpoint.total_bytes().unwrap_or(plan.memory.weights + plan.memory.vision_weights);
    let mut report =
        || progress(Progress { bytes_done: checkpoint.bytes_taken().min(bytes_total), bytes_total });
    report();
    device.prepare_kernels(&storage.weight_types())?;
    let placement = Placement { device: &device, storage, max_model_len: plan.max_model_len };
    let decoder = Decoder::load(&checkpoint, &config.decoder, &placement, &mut report)?;
    let eyes = match &description.vision {
        Some((shape, _)) => {
            let hidden_size = config.decoder.hidden_size;
            Some(load_eyes(&checkpoint, &device, storage, shape, (&plan, hidden_size))?)
        }
        None => None,
    };
    let image_processor = load_image_processor(&checkpoint, &description)?;
    checkpoint.finish(|name| may_ignore(config, name) || is_idle(config, &checkpoint, name))?;
    let num_mtp_tensors = checkpoint.num_mtp_tensors(|name| Decoder::is_mtp(&config.decoder, name));
    let cache_use = checkpoint.into_cache_use();
    progress(Progress { bytes_done: bytes_total, bytes_total });
    let mut cache = KvCache::new(&device, &config.decoder, kv_type, plan.num_blocks, plan.block_size);
    let host_blocks = match plan.num_host_blocks {
        0 => None,
        n => Some(HostBlocks::new(&device, cache.tensors_mut(), plan.block_size, n)?),
    };
    let adapters = request.adapter_spec().map(Arc::new);
    let loras = adapters.as_ref().map(|spec| {
        let limits = request.lora_limits();
        let buffers = LoraBuffers::new(&device, spec, limits);
        (Loras::new(&device, Arc::clone(spec), storage.float, limits), buffers)
    });
    let (loras, lora_buffers) = loras.unzip();
    let scratch = Scratch::new(&device, &config.decoder, &request.limits(plan.max_model_len));
    let scratch = Scratch { lora: lora_buffers, ..scratch };
    let input = StepInput::new(&device, &request.input_limits(plan.max_model_len));
    // Weights were copied while the next were packed: wait for the last, and for what failed.
    device.synchronize()?;
    let info = info(config, &plan);
    let encode_ahead = matches!(device, Device::Cuda(_));
    let scheduler_config = SchedulerConfig { encode_ahead, ..plan.scheduler_config() };
    let generation_defaults = config.generation;
    let expand_from = config.decoder.expand_from();
    let max_graph_rows = if options.graphs { options.max_num_seqs } else { 0 };
    let parts = Parts {
        device,
        decoder,
        eyes,
        loras,
        cache,
        host_blocks,
        scratch,
        input,
        expand_from,
        num_axes: config.decoder.rope.num_axes(),
        max_graph_rows,
    };
    let runner = DeviceRunner::new(parts)?;
    let planned = plan.memory.total - plan.memory.padding - plan.memory.picture_encoder;
    debug_assert_eq!(runner.device().allocated_bytes(), planned, "planned bytes are allocated bytes");
    Ok(Loaded {
        runner,
        adapters,
        info,
        image_processor,
        scheduler_config,
        plan,
        generation_defaults,
        cache_use,
        num_mtp_tensors,
        not_compact: None,
    })
}

/// Whether a tensor has no part in the computation, though the form of the weights leaves it in the files.
fn is_idle(config: &ModelConfig, checkpoint: &Checkpoint, name: &str) -> bool {
    config.published.as_ref().is_some_and(|published| {
        published.may_ignore(name)
            || (published.may_have_zero_biases() && name.ends_with(".bias") && checkpoint.is_zero(name))
    })
}

/// Whether a stored tensor that nothing takes may be there all the same.
fn may_ignore(config: &ModelConfig, name: &str) -> bool {
    let is_chameleon = !config.decoder.never_drawn.is_empty();
    Decoder::may_ignore(&config.decoder, name)
        || (is_chameleon && encoder::may_ignore(name, config.codes.is_some()))
}

/// With the network that encodes pictures, where they are tokens.
fn load_image_processor(
    checkpoint: &Checkpoint,
    description: &Description,
) -> Result<Option<Arc<dyn ImageProcessor>>, LoadError> {
    let Description { config, vision, codes, .. } = description;
    if let (Some(PictureCodes { vq, tokens }), Some((rule, host))) = (&config.codes, codes) {
        let encoder = Encoder::load(checkpoint, host, vq)?;
        let processor = ChameleonImageProcessor::new(rule.clone(), tokens.clone(), encoder);
        return Ok(Some(Arc::new(processor)));
    }
    Ok(vision.as_ref().map(|(_, processor)| Arc::clone(processor)))
}

fn load_eyes(
    checkpoint: &Checkpoint,
    device: &Device,
    storage: &Storage,
    shape: &VisionShape,
    (plan, hidden_size): (&Plan, usize),
) -> Result<Eyes, LoadError> {
    let images = plan.images.expect("a model with pictures plans for them");
    let rows = |n| Tensor::zeros(device, DType::F32, &[n, hidden_size]);
    Ok(Eyes {
        vision: Vision::load(checkpoint, device, storage, shape)?,
        rows: (0..shape.num_levels).map(|_| rows(images.max_tokens)).collect(),
        cache: (0..shape.num_levels).map(|_| rows(images.cache_rows())).collect(),
        rows_per_block: images.rows_per_block,
        places: [(); 2].map(|()| Indices::new(device, images.max_tokens)),
    })
}

fn info(config: &ModelConfig, plan: &Plan) -> ModelInfo {
    ModelInfo {
        architecture: config.architecture.clone(),
        vocab_size: config.decoder.vocab_size,
        hidden_size: config.decoder.hidden_size,
        max_model_len: plan.max_model_len,
        eos_token_ids: config.eos_token_ids.clone(),
        bos_token_id: config.bos_token_id,
        image_token_id: match (&config.vision, &config.codes) {
            (Some(vision), _) => Some(vision.image_token_id),
            (None, Some(codes)) => Some(codes.tokens.placeholder()),
            (None, None) => None,
        },
        video_token_id: config.vision.as_ref().and_then(|vision| vision.video_token_id),
        num_parameters: plan.num_parameters,
        dtype: plan.dtype,
        quantization: plan.quantization,
        activations: plan.activations,
        weight_layout: plan.weight_layout,
        kv_cache_dtype: plan.kv_cache_dtype,
    }
}
