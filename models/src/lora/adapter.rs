//! An adapter as its folder has it: `adapter_config.json` and `adapter_model.safetensors`, in the format of PEFT.
//!
//! ```text
//! base_model.model.<path of a module>.lora_A.weight [r, k]        y += scale · B (A x)
//! base_model.model.<path of a module>.lora_B.weight [n, r]
//! ```

use super::config::{CONFIG_FILE, LoraConfig, Low};
use super::error::AdapterError;
use super::spec::{AdapterSpec, ExpertPart, Module, Target};
use crate::FileError;
use crate::weights::header::{self, TensorInfo};
use kernels::{DType, HostTensor, WeightRows};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

pub(super) const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// Before the path of every module.
const PREFIX: &str = "base_model.model.";
/// Of a file, beside the numbers of its tensors.
const MAX_HEADER: u64 = 100 << 20;

/// An adapter in the memory of the host, checked against a model. Reading it needs no device: any thread may.
pub struct Adapter {
    /// By layer and target.
    pub(crate) pairs: BTreeMap<(usize, Target), Pair>,
    file: Vec<u8>,
}

/// The matrices of one module.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pair {
    pub rank: usize,
    pub scale: f32,
    /// `[r, k]`
    a: Stored,
    /// `[n, r]`
    b: Stored,
}

/// A matrix in the file.
#[derive(Debug, Clone, PartialEq)]
struct Stored {
    dtype: DType,
    shape: [usize; 2],
    range: Range<usize>,
}

impl Adapter {
    /// Reads and checks everything: afterwards it fits the model that `spec` is of. It waits for the disk, and for nothing else.
    pub fn read(folder: &Path, spec: &AdapterSpec) -> Result<Self, AdapterError> {
        let config = LoraConfig::read(folder)?;
        let path = folder.join(WEIGHTS_FILE);
        let described = path.display().to_string();
        let file = read_file(&path, &described, spec)?;
        let tensors = header::parse(&file)
            .map_err(|message| AdapterError::Corrupt { file: described.clone(), message })?;
        let is_newer = |prefix: &&String| {
            let mut paths = tensors.iter().filter_map(|info| info.name.strip_prefix(PREFIX));
            paths.any(|path| path.starts_with(prefix.as_str()))
        };
        let prefix = spec.newer_prefix.as_ref().filter(is_newer).unwrap_or(&spec.prefix);
        let reader = Reader { file: &described, spec, prefix, config: &config };
        let mut halves: BTreeMap<(usize, Target), [Option<TensorInfo>; 2]> = BTreeMap::new();
        for info in tensors {
            let (layer, module, half) = reader.place(&info)?;
            halves.entry((layer, module.target)).or_default()[half] = Some(info);
        }
        let mut pairs = BTreeMap::new();
        for ((layer, target), halves) in halves {
            pairs.insert((layer, target), reader.pair(layer, target, halves, &file)?);
        }
        reader.check_experts(&pairs)?;
        match pairs.is_empty() {
            true => Err(AdapterError::Empty { file: described }),
            false => Ok(Self { pairs, file }),
        }
    }

    /// The largest rank of its pairs of matrices.
    pub fn rank(&self) -> usize {
        self.pairs.values().map(|pair| pair.rank).max().unwrap_or(0)
    }

    /// Of its tensors, as they are in the file.
    pub fn bytes(&self) -> u64 {
        let bytes = |pair: &Pair| (pair.a.range.len() + pair.b.range.len()) as u64;
        self.pairs.values().map(bytes).sum()
    }

    /// A `[r, k]`, and B `[n, r]`.
    pub(crate) fn matrices<'a>(&'a self, pair: &'a Pair) -> [HostTensor<'a>; 2] {
        [&pair.a, &pair.b].map(|stored| HostTensor {
            dtype: stored.dtype,
            shape: &stored.shape,
            data: &self.file[stored.range.clone()],
        })
    }

    /// Whether every pair is of a module that the model has, and of a rank that it takes.
    pub(crate) fn fits(&self, spec: &AdapterSpec) -> bool {
        self.pairs.iter().all(|(&(layer, target), pair)| {
            spec.module(layer, target).is_some_and(|module| {
                pair.rank <= spec.max_rank
                    && (pair.a.shape, pair.b.shape) == ([pair.rank, module.k], [module.n, pair.rank])
            })
        })
    }
}

impl std::fmt::Debug for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "adapter of {} modules, rank {}", self.pairs.len(), self.rank())
    }
}

/// The whole file, unless it is larger than any adapter of the model.
fn read_file(path: &Path, described: &str, spec: &AdapterSpec) -> Result<Vec<u8>, AdapterError> {
    let failed = |reason: std::io::Error| match reason.kind() {
        std::io::ErrorKind::NotFound => AdapterError::MissingFile { file: described.into() },
        _ => FileError { path: described.into(), reason }.into(),
    };
    let len = std::fs::metadata(path).map_err(failed)?.len();
    let most = 4 * spec.max_parameters() + MAX_HEADER;
    if len > most {
        let message = format!(
            "it has {len} bytes, and an adapter of this model with max_lora_rank = {} has at most {most}",
            spec.max_rank
        );
        return Err(AdapterError::Corrupt { file: described.into(), message });
    }
    std::fs::read(path).map_err(failed)
}

struct Reader<'a> {
    /// For messages.
    file: &'a str,
    spec: &'a AdapterSpec,
    /// Before the number of a layer.
    prefix: &'a str,
    config: &'a LoraConfig,
}

impl Reader<'_> {
    fn fail<T>(&self, tensor: &str, message: impl Into<String>) -> Result<T, AdapterError> {
        let (file, tensor) = (self.file.to_string(), tensor.to_string());
        Err(AdapterError::Tensor { file, tensor, message: message.into() })
    }

    /// Which layer and module a tensor is of, and whether it is A or B.
    fn place(&self, info: &TensorInfo) -> Result<(usize, Module, usize), AdapterError> {
        let name = info.name.as_str();
        if let Some(refused) = self.spec.refused.iter().find(|refused| name.contains(refused.part)) {
            return self.fail(name, refused.reason);
        }
        let halves = [".lora_A.weight", ".lora_B.weight"];
        let found = halves.iter().enumerate().find_map(|(half, end)| Some((name.strip_suffix(end)?, half)));
        let head = &self.spec.head;
        if let Some((path, half)) = found
            && path.strip_prefix(PREFIX) == Some(head.name.as_str())
        {
            return Ok((0, head.clone(), half));
        }
        let place = found.and_then(|(path, half)| {
            let (layer, module) = path.strip_prefix(PREFIX)?.strip_prefix(self.prefix)?.split_once('.')?;
            Some((layer.parse::<usize>().ok()?, module, half))
        });
        let Some((layer, module, half)) = place else { return self.unknown(name) };
        if layer >= self.spec.layers.len() {
            let message = format!("the model has {} layers, counted from 0", self.spec.layers.len());
            return self.fail(name, message);
        }
        match self.spec.named(layer, module) {
            Some(module) => Ok((layer, module, half)),
            None => self.unknown(name),
        }
    }

    /// A module's path, as this adapter has it.
    fn path(&self, layer: usize, module: &Module) -> String {
        let path = self.spec.path(layer, module);
        match path.strip_prefix(self.spec.prefix.as_str()) {
            Some(rest) => format!("{}{rest}", self.prefix),
            None => path,
        }
    }

    fn unknown<T>(&self, name: &str) -> Result<T, AdapterError> {
        let message = format!(
            "it belongs to no module that may have an adapter: names are {PREFIX}{}N.MODULE.lora_A.weight and …lora_B.weight, \
             and a MODULE of a layer is one of {}; and that of the output head is {}",
            self.prefix,
            self.spec.module_names().join(", "),
            self.spec.head.name
        );
        self.fail(name, message)
    }

    fn pair(
        &self,
        layer: usize,
        target: Target,
        halves: [Option<TensorInfo>; 2],
        file: &[u8],
    ) -> Result<Pair, AdapterError> {
        let module = self.spec.module(layer, target).expect("a target of this layer");
        let path = self.path(layer, &module);
        let [a, b] = match halves {
            [Some(a), Some(b)] => [a, b],
            [None, _] => return self.fail(&format!("{PREFIX}{path}.lora_A.weight"), "is missing"),
            [_, None] => return self.fail(&format!("{PREFIX}{path}.lora_B.weight"), "is missing"),
        };
        let Low { rank, scale } = self.config.of(&path);
        if rank > self.spec.max_rank {
            let message = format!("its rank {rank} is above max_lora_rank = {}", self.spec.max_rank);
            return self.fail(&a.name, message);
        }
        let a = self.stored(&a, [rank, module.k], file)?;
        let b = self.stored(&b, [module.n, rank], file)?;
        Ok(Pair { rank, scale, a, b })
    }

    /// One op has all experts of a layer: their ranks and scales are the same.
    fn check_experts(&self, pairs: &BTreeMap<(usize, Target), Pair>) -> Result<(), AdapterError> {
        let mut first: BTreeMap<(usize, ExpertPart), (u32, &Pair)> = BTreeMap::new();
        for (&(layer, target), pair) in pairs {
            let Target::Expert(part, index) = target else { continue };
            let (other, found) = *first.entry((layer, part)).or_insert((index, pair));
            if (found.rank, found.scale) != (pair.rank, pair.scale) {
                let module = self.spec.module(layer, target).expect("it was read");
                let message = format!(
                    "its rank {} and scale {} are not those of expert {other}, {} and {}: experts of a layer share them",
                    pair.rank, pair.scale, found.rank, found.scale
                );
                let name = format!("{PREFIX}{}.lora_A.weight", self.path(layer, &module));
                return self.fail(&name, message);
            }
        }
        Ok(())
    }

    fn stored(&self, info: &TensorInfo, shape: [usize; 2], file: &[u8]) -> Result<Stored, AdapterError> {
        let Some(dtype) = info.dtype else {
            let message = format!("type {} is not supported, only F32, BF16 and F16 are", info.type_name);
            return self.fail(&info.name, message);
        };
        if info.shape != shape {
            let message = format!("expected shape {shape:?} by r of {CONFIG_FILE}, found {:?}", info.shape);
            return self.fail(&info.name, message);
        }
        let host = HostTensor { dtype, shape: &shape, data: &file[info.range.clone()] };
        let mut row = vec![0.0; shape[1]];
        for index in 0..shape[0] {
            WeightRows::read_f32(&host, index, &mut row);
            if !row.iter().all(|value| value.is_finite()) {
                return self.fail(&info.name, format!("row {index} holds a number that is not finite"));
            }
        }
        Ok(Stored { dtype, shape, range: info.range.clone() })
    }
}

/// In row-major order.
pub(super) fn values(host: &HostTensor) -> Vec<f32> {
    let [rows, width] = WeightRows::shape(host);
    let mut values = vec![0.0; rows * width];
    for (row, out) in values.chunks_exact_mut(width).enumerate() {
        WeightRows::read_f32(host, row, out);
    }
    values
}
