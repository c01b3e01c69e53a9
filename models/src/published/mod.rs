//! Checkpoints whose weights are quantised already: what `quantization_config` says of them, and which modules it concerns.
//!
//! Whatever is written there is either understood or an error that names the key: weights that are read in the wrong way give
//! text that looks almost right. How the tensors of each form lie in a file is in `weights/`.

mod compressed;
mod others;
mod pattern;

use crate::LoadError;
use crate::config::json::Fields;
use crate::gguf::{Gguf, place};
use crate::parts::Part;
use kernels::{GROUP, WeightType};
use pattern::Pattern;
use std::collections::BTreeMap;

/// How a module's quantised weight lies in the files. Groups are of neighbours along K; `None`: one group is a whole row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// compressed-tensors: `weight_packed` in 32-bit words along K, `weight_scale`, `weight_shape`, where there are zeros
    /// `weight_zero_point`, and where groups are of scattered columns `weight_g_idx`.
    Packed { bits: u32, group: Option<usize>, zeros: bool, scattered: bool },
    /// compressed-tensors: `weight` in bytes, `weight_scale`.
    Bytes { group: Option<usize> },
    /// `qweight` with K as rows and columns in an order of its own, `qzeros`, `scales`.
    Awq { group: usize },
    /// `qweight` in words along K, `qzeros`, `scales`, `g_idx`. `zeros`: groups have zeros of their own; `less_one`: zeros are
    /// stored less one; `scattered`: `g_idx` may put any column into any group.
    Gptq { bits: u32, group: Option<usize>, zeros: bool, less_one: bool, scattered: bool },
    /// `weight` in e4m3, and scales in floats, in a tensor that different forms call differently; one scale for all may have either name.
    Fp8 { cut: Cut, scales: &'static str },
    /// The blocks of a GGUF file; `None`: as floats.
    Blocks { kept_as: Option<WeightType> },
    /// Experts in one tensor: `_blocks` of values in e2m1, `_scales` that are powers of two, one for each 32 along K.
    Mxfp4,
}

/// What of a matrix has one scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Blocks of so many rows and columns.
    Blocks([usize; 2]),
    Rows,
    Whole,
}

impl Scheme {
    /// The type that holds such weights without rounding them again, but for scales that f16 has no equal of. `None`: there is
    /// none, and they are read as floats: rounded once, to the type that other weights have.
    pub fn kept_as(&self) -> Option<WeightType> {
        match self {
            // Columns of a group are no neighbours, and groups here are.
            Scheme::Packed { scattered: true, .. } | Scheme::Gptq { scattered: true, .. } => None,
            Scheme::Packed { bits: 8, .. } | Scheme::Bytes { .. } | Scheme::Gptq { bits: 8, .. } => {
                Some(WeightType::Int8)
            }
            Scheme::Packed { zeros: false, .. } | Scheme::Gptq { zeros: false, .. } => Some(WeightType::Int4),
            Scheme::Packed { .. } | Scheme::Gptq { .. } | Scheme::Awq { .. } => Some(WeightType::Int4Zero),
            Scheme::Fp8 { .. } => None,
            // Values of four bits, but no whole numbers of four.
            Scheme::Mxfp4 => Some(WeightType::Int8),
            Scheme::Blocks { kept_as } => *kept_as,
        }
    }
}

/// What `quantization_config` says.
#[derive(Debug, Clone)]
pub struct Published {
    /// The file that it stands in, for messages.
    pub file: String,
    /// Such as `awq int4`.
    pub method: &'static str,
    rules: Rules,
}

#[derive(Debug, Clone)]
enum Rules {
    /// The first group of which a target is met, unless the module is to be ignored.
    Targets { groups: Vec<Target>, ignore: Vec<Pattern> },
    /// Linear layers within the decoder's layers.
    Layers { scheme: Scheme, which: Which },
    /// What each tensor of a GGUF file has.
    Tensors { architecture: String, schemes: BTreeMap<String, Scheme> },
}

/// Which linear layers are quantised.
#[derive(Debug, Clone, Default)]
struct Which {
    /// Names inside a decoder layer, or whole ones; `None`: all of them.
    only: Option<Vec<String>>,
    /// Not those whose name has such a part.
    not_converted: Vec<String>,
    /// Nor those that match.
    skipped: Vec<Pattern>,
}

impl Which {
    fn takes(&self, module: &str) -> bool {
        let listed = |name: &String| part_for(name, module).contains(name.as_str());
        let inside = |name: &String| {
            module.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        self.only.as_ref().is_none_or(|only| only.iter().any(inside))
            && !self.not_converted.iter().any(listed)
            && !self.skipped.iter().any(|pattern| pattern.is_match(module))
    }
}

/// What of a module's name is looked for a part of it. The experts of a layer are one to those who list parts: `gate` is the router, not
/// the `gate_proj` of each.
fn part_for<'a>(listed: &str, module: &'a str) -> &'a str {
    let experts = ".experts.";
    match module.find(experts) {
        Some(at) if !listed.contains("experts.") => &module[..at + experts.len() - 1],
        _ => module,
    }
}

#[derive(Debug, Clone)]
struct Target {
    patterns: Vec<Pattern>,
    scheme: Scheme,
}

impl Published {
    /// From the object that has `quantization_config`, if there is one.
    pub fn read(file: &str, fields: &Fields) -> Result<Option<Self>, LoadError> {
        if fields.get("compression_config").is_some() {
            return Err(
                fields.fail("compression_config", "an old name of quantization_config that is not read")
            );
        }
        let Some(object) = fields.opt_object("quantization_config")? else { return Ok(None) };
        let path = fields.nested_path("quantization_config");
        let q = fields.nested(&path, object);
        let (method, rules) = match q.opt_str("quant_method")? {
            Some("compressed-tensors") => compressed::read(&q)?,
            Some("awq") => others::awq(&q)?,
            Some("gptq") => others::gptq(&q)?,
            Some("fp8") => others::fp8(&q)?,
            Some("fbgemm_fp8") => others::fp8_rows(&q)?,
            Some("mxfp4") => others::mxfp4(&q)?,
            Some(other) => {
                let known = "compressed-tensors, awq, gptq, fp8, fbgemm_fp8 and mxfp4 are read";
                return Err(q.fail("quant_method", format!("{other:?} is not supported; {known}")));
            }
            None => return Err(q.fail("quant_method", "is missing")),
        };
        Ok(Some(Self { file: file.into(), method, rules }))
    }

    /// What the tensors of a GGUF file are kept as. Such a file has for each tensor the type that suited it; where several are one
    /// matrix here, they get the type that holds the most of them.
    pub fn gguf(gguf: &Gguf) -> Self {
        let mut widest: BTreeMap<String, Option<WeightType>> = BTreeMap::new();
        for (name, block_type) in gguf.block_types() {
            let kept_as = widest.entry(one_matrix(name)).or_insert(block_type.kept_as());
            if width(block_type.kept_as()) > width(*kept_as) {
                *kept_as = block_type.kept_as();
            }
        }
        let scheme = |name: &str| Scheme::Blocks { kept_as: widest[&one_matrix(name)] };
        Self {
            file: gguf.described().into(),
            method: "GGUF",
            rules: Rules::Tensors {
                architecture: gguf.architecture().into(),
                schemes: gguf.block_types().map(|(name, _)| (name.to_string(), scheme(name))).collect(),
            },
        }
    }

    /// Whether such weights are kept as they are, not read as floats.
    pub fn is_kept(&self) -> bool {
        match &self.rules {
            Rules::Targets { groups, .. } => groups.iter().any(|target| target.scheme.kept_as().is_some()),
            Rules::Layers { scheme, .. } => scheme.kept_as().is_some(),
            Rules::Tensors { schemes, .. } => schemes.values().any(|scheme| scheme.kept_as().is_some()),
        }
    }

    /// Whether a tensor that nothing takes is one that files of this form have all the same: scales of activations, which are not
    /// quantised here as there.
    pub fn may_ignore(&self, tensor: &str) -> bool {
        let of_activations = ["input_scale", "input_zero_point", "input_global_scale"];
        let part = tensor.rsplit('.').next().unwrap_or_default();
        match &self.rules {
            Rules::Targets { .. } | Rules::Layers { scheme: Scheme::Fp8 { .. }, .. } => {
                of_activations.contains(&part)
            }
            Rules::Layers { .. } | Rules::Tensors { .. } => false,
        }
    }

    /// Whether a bias that the architecture does not have may be there if it is zero: packers gave one to every layer.
    pub fn may_have_zero_biases(&self) -> bool {
        matches!(self.rules, Rules::Layers { scheme: Scheme::Gptq { .. } | Scheme::Awq { .. }, .. })
    }

    /// `None`: the module's weight is floats. A router is never quantised: the files that name all linear layers do not mean it.
    pub fn scheme(&self, part: Part, module: &str) -> Option<&Scheme> {
        if part == Part::Router {
            return None;
        }
        match &self.rules {
            Rules::Targets { groups, ignore } => {
                if ignore.iter().any(|pattern| pattern.is_match(module)) {
                    return None;
                }
                let met = |target: &&Target| target.patterns.iter().any(|pattern| pattern.is_match(module));
                groups.iter().find(met).map(|target| &target.scheme)
            }
            Rules::Layers { scheme, which } => {
                let in_layers = matches!(part, Part::Linear | Part::Absorbed);
                (in_layers && which.takes(module)).then_some(scheme)
            }
            Rules::Tensors { architecture, schemes } => {
                let place = place(architecture, &format!("{module}.weight"))?;
                schemes.get(&place.tensor).or_else(|| schemes.get(&place.of_one_expert()?))
            }
        }
    }
}

/// One name for the tensors that are one matrix here: gate and up of a layer, and all that its experts have.
fn one_matrix(name: &str) -> String {
    if let [block, layer, "ffn_gate" | "ffn_up" | "ffn_down", expert, "weight"] =
        name.split('.').collect::<Vec<_>>()[..]
        && expert.parse::<usize>().is_ok()
    {
        return format!("{block}.{layer}.ffn_gate_exps.weight");
    }
    let name = name.replace(".ffn_up", ".ffn_gate");
    if name.contains("_exps.") { name.replace(".ffn_down_exps", ".ffn_gate_exps") } else { name }
}

fn width(kept_as: Option<WeightType>) -> u8 {
    match kept_as {
        Some(WeightType::Int4) => 0,
        Some(WeightType::Int4Zero) => 1,
        Some(WeightType::Int8) => 2,
        Some(WeightType::F32 | WeightType::BF16 | WeightType::CompactBf16 | WeightType::F16) | None => 3,
    }
}

/// A group size that ours divide.
fn group_size(fields: &Fields, key: &str) -> Result<Option<usize>, LoadError> {
    match fields.get(key).and_then(serde_json::Value::as_i64) {
        Some(-1) => Ok(None),
        _ => {
            let group = fields.usize(key, 1..=1 << 20)?;
            match group.is_multiple_of(GROUP) {
                true => Ok(Some(group)),
                false => Err(fields.fail(key, format!("{group} is not a multiple of {GROUP}"))),
            }
        }
    }
}

/// The names in a list of strings, where there is one.
fn names(fields: &Fields, key: &str) -> Result<Vec<String>, LoadError> {
    let list = fields.opt_array(key)?.unwrap_or_default();
    let name = |value: &serde_json::Value| {
        value.as_str().map(str::to_string).ok_or_else(|| fields.fail(key, format!("{value} is not a string")))
    };
    list.iter().map(name).collect()
}

#[cfg(test)]
mod tests;
