//! Rotary position settings: old keys (`rope_theta`, `rope_scaling`) and new ones (`rope_parameters`) give the same values here.

use super::json::Fields;
use crate::LoadError;
use kernels::ops::{RopeLayout, RopeSections};
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    pub theta: f64,
    /// Rotated values of a head, an even number.
    pub dim: usize,
    pub layout: RopeLayout,
    /// Where a token has three positions: which pairs turn by which.
    pub sections: Option<RopeSections>,
    pub scaling: RopeScaling,
}

impl RopeConfig {
    /// Positions of a token.
    pub fn num_axes(&self) -> usize {
        if self.sections.is_some() { RopeSections::AXES } else { 1 }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    Linear { factor: f64 },
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_max_position: f64 },
    Yarn(Yarn),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Yarn {
    pub factor: f64,
    pub beta_fast: f64,
    pub beta_slow: f64,
    pub original_max_position: f64,
    /// Whether the borders of the ramp are rounded to whole dimensions.
    pub truncate: bool,
    /// On cosines and sines.
    pub attention_factor: f64,
}

impl RopeScaling {
    /// Positions that the rotation was stretched to, where it is stretched: `max_position_embeddings` may say what there were before.
    pub(super) fn reach(&self) -> usize {
        match self {
            Self::Yarn(yarn) => (yarn.original_max_position * yarn.factor) as usize,
            Self::None | Self::Linear { .. } | Self::Llama3 { .. } => 0,
        }
    }
}

/// What a family fixes about its rotation.
pub(super) struct RopeRule {
    pub default_theta: f64,
    pub head_dim: usize,
    /// The share of `head_dim` that turns, where the file does not say it; `None`: all of it, and the file may say nothing else.
    pub rotated: Option<f64>,
    pub layout: RopeLayout,
    /// Of families with three positions a token: what a file without `mrope_section` means.
    pub sections: Option<RopeSections>,
    pub max_position_embeddings: usize,
}

pub(super) fn parse(fields: &Fields, rule: RopeRule) -> Result<RopeConfig, LoadError> {
    let RopeRule { default_theta, head_dim, rotated, layout, sections, max_position_embeddings } = rule;
    let path = path(fields);
    let dim = rotated_dim(fields, path, head_dim, rotated)?;
    let theta_range = 1.000001..=1e18;
    let outer_theta = fields.f64_in("rope_theta", Some(default_theta), theta_range.clone())?;
    let Some(object) = fields.opt_object(path)? else {
        check_sections(fields, sections, dim)?;
        return Ok(RopeConfig { theta: outer_theta, dim, layout, sections, scaling: RopeScaling::None });
    };
    // The path in messages must outlive the nested view.
    let nested_path = fields.nested_path(path);
    let inner = fields.nested(&nested_path, object);
    if path == "rope_scaling" {
        refuse_lost_theta(fields, &inner, default_theta)?;
    }
    let theta = inner.f64_in("rope_theta", Some(outer_theta), theta_range)?;
    let sections = match sections {
        None => None,
        Some(default) => Some(read_sections(&inner, default)?),
    };
    check_sections(&inner, sections, dim)?;
    let scaling = scaling(fields, &inner, object, max_position_embeddings)?;
    // The old name of sections alone. A family without any has no such rotation.
    let scaling = match scaling {
        None if sections.is_some() => RopeScaling::None,
        None => return Err(unknown_kind(&inner, SECTIONS_KIND)),
        Some(scaling) => scaling,
    };
    Ok(RopeConfig { theta, dim, layout, sections, scaling })
}

const SECTIONS: &str = "mrope_section";
const SECTIONS_KIND: &str = "mrope";

fn read_sections(inner: &Fields, default: RopeSections) -> Result<RopeSections, LoadError> {
    let interleaved = matches!(default, RopeSections::Interleaved(_));
    if inner.bool_or("mrope_interleaved", interleaved)? != interleaved {
        return Err(
            inner.fail("mrope_interleaved", format!("only {interleaved} is supported for this architecture"))
        );
    }
    let Some(items) = inner.opt_array(SECTIONS)? else { return Ok(default) };
    let sizes: Option<Vec<usize>> =
        items.iter().map(|n| n.as_u64().and_then(|n| usize::try_from(n).ok())).collect();
    match sizes.as_deref() {
        Some(&[time, row, column]) if [time, row, column].iter().all(|&n| n <= 1 << 20) => {
            Ok(match interleaved {
                false => RopeSections::Consecutive([time, row, column]),
                true => RopeSections::Interleaved([time, row, column]),
            })
        }
        _ => {
            Err(inner.fail(SECTIONS, "expected three whole numbers: pairs that turn by time, row and column"))
        }
    }
}

/// Every pair turns by one of the three positions.
fn check_sections(fields: &Fields, sections: Option<RopeSections>, dim: usize) -> Result<(), LoadError> {
    match sections {
        Some(sections) if sections.num_pairs() != dim / 2 => Err(fields.fail(
            SECTIONS,
            format!("has {} pairs of dimensions, and heads have {}", sections.num_pairs(), dim / 2),
        )),
        _ => Ok(()),
    }
}

fn unknown_kind(inner: &Fields, kind: &str) -> LoadError {
    inner.fail("rope_type", format!("{kind:?} is not supported, these are: default, linear, llama3, yarn"))
}

/// The key of the object with the rotation's settings, if there is one. Where both are there the older goes before the newer, unless it is
/// empty: so a file that was written anew can be given the scaling that a model card shows.
fn path(fields: &Fields) -> &'static str {
    let is_empty = |value: &Value| value.as_object().is_some_and(Map::is_empty);
    let has_scaling = fields.get("rope_scaling").is_some_and(|value| !is_empty(value));
    if has_scaling || fields.get("rope_parameters").is_none() { "rope_scaling" } else { "rope_parameters" }
}

/// The published class passes over the whole of `rope_parameters` where `rope_scaling` is used, and would take its default for a base that
/// only the former names: hardly what was meant.
fn refuse_lost_theta(fields: &Fields, inner: &Fields, default_theta: f64) -> Result<(), LoadError> {
    let Some(object) = fields.opt_object("rope_parameters")? else { return Ok(()) };
    let lost = object.get("rope_theta").and_then(Value::as_f64).filter(|theta| *theta != default_theta);
    match lost {
        Some(theta) if inner.get("rope_theta").or(fields.get("rope_theta")).is_none() => Err(inner.fail(
            "rope_theta",
            format!("is missing, and rope_parameters with its {theta} is passed over beside rope_scaling"),
        )),
        _ => Ok(()),
    }
}

/// DeepSeek only: the square of this multiplies the softmax scale, whatever kind the scaling is of.
pub(super) fn softmax_mscale(fields: &Fields, scaling: &RopeScaling) -> Result<f64, LoadError> {
    let factor = match scaling {
        RopeScaling::None => return Ok(1.0),
        RopeScaling::Yarn(Yarn { factor, .. })
        | RopeScaling::Linear { factor }
        | RopeScaling::Llama3 { factor, .. } => *factor,
    };
    let Some(object) = fields.opt_object(path(fields))? else { return Ok(1.0) };
    let nested_path = fields.nested_path(path(fields));
    let mscale_all_dim = fields.nested(&nested_path, object).f64_in("mscale_all_dim", Some(0.0), MSCALES)?;
    Ok(if mscale_all_dim != 0.0 { yarn_mscale(factor, mscale_all_dim) } else { 1.0 })
}

const MSCALES: RangeInclusive<f64> = 0.0..=100.0;

/// Values of a head that turn, of its first ones. What stands beside the scaling goes before what stands at the top.
fn rotated_dim(
    fields: &Fields,
    path: &str,
    head_dim: usize,
    rotated: Option<f64>,
) -> Result<usize, LoadError> {
    let outer = partial(fields, rotated)?;
    let inner = match fields.opt_object(path)? {
        None => None,
        Some(object) => partial(&fields.nested(&fields.nested_path(path), object), rotated)?,
    };
    let dim = match inner.or(outer).or(rotated) {
        None => head_dim,
        Some(share) => (head_dim as f64 * share) as usize,
    };
    if dim == 0 || !dim.is_multiple_of(2) {
        return Err(fields.fail("head_dim", format!("{dim} rotated values a head are not an even number")));
    }
    Ok(dim)
}

/// The share of a head that turns, if it is said here.
fn partial(fields: &Fields, rotated: Option<f64>) -> Result<Option<f64>, LoadError> {
    let key = "partial_rotary_factor";
    match (fields.opt_f64(key)?, rotated) {
        (Some(share), None) if share != 1.0 => {
            Err(fields.fail(key, format!("{share} is not supported for this architecture, only 1 is")))
        }
        (Some(share), _) if !(share > 0.0 && share <= 1.0) => {
            Err(fields.fail(key, format!("{share} is not above 0 and at most 1")))
        }
        (share, _) => Ok(share),
    }
}

/// `None` where the kind is that of sections without scaling.
fn scaling(
    outer: &Fields,
    inner: &Fields,
    object: &Map<String, Value>,
    max_position: usize,
) -> Result<Option<RopeScaling>, LoadError> {
    let kind = match inner.opt_str("rope_type")? {
        Some(kind) => kind,
        None => inner.opt_str("type")?.unwrap_or("default"),
    };
    if let Some((key, _)) = object.iter().find(|(_, value)| value.is_object()) {
        return Err(inner.fail(key, "different rotations for different layers are not supported"));
    }
    let factor = |least| inner.f64_in("factor", None, least..=1e6);
    Ok(Some(match kind {
        SECTIONS_KIND => return Ok(None),
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: factor(1e-6)? },
        "llama3" => llama3(outer, inner, max_position)?,
        "yarn" => RopeScaling::Yarn(yarn(outer, inner, max_position)?),
        other => return Err(unknown_kind(inner, other)),
    }))
}

/// A value at the top of the configuration goes before the one beside the factor.
fn original_max_position(outer: &Fields, inner: &Fields, max_position: usize) -> Result<f64, LoadError> {
    let key = "original_max_position_embeddings";
    let fields = if outer.get(key).is_some() { outer } else { inner };
    fields.f64_in(key, Some(max_position as f64), 1.0..=1e9)
}

fn llama3(outer: &Fields, inner: &Fields, max_position: usize) -> Result<RopeScaling, LoadError> {
    let low_freq_factor = inner.f64_in("low_freq_factor", None, 1e-6..=1e6)?;
    let high_freq_factor = inner.f64_in("high_freq_factor", None, 1e-6..=1e6)?;
    if high_freq_factor <= low_freq_factor {
        return Err(
            inner.fail("high_freq_factor", format!("{high_freq_factor} is not above low_freq_factor"))
        );
    }
    Ok(RopeScaling::Llama3 {
        factor: inner.f64_in("factor", None, 1e-6..=1e6)?,
        low_freq_factor,
        high_freq_factor,
        original_max_position: original_max_position(outer, inner, max_position)?,
    })
}

fn yarn(outer: &Fields, inner: &Fields, max_position: usize) -> Result<Yarn, LoadError> {
    let original_max_position = original_max_position(outer, inner, max_position)?;
    let factor = inner.f64_in("factor", Some(max_position as f64 / original_max_position), 1e-6..=1e6)?;
    let mscale = inner.f64_in("mscale", Some(0.0), MSCALES)?;
    let mscale_all_dim = inner.f64_in("mscale_all_dim", Some(0.0), MSCALES)?;
    let inferred = if mscale != 0.0 && mscale_all_dim != 0.0 {
        yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim)
    } else {
        yarn_mscale(factor, 1.0)
    };
    // The YaRN authors' own words for what multiplies the inferred factor. DeepSeek-R1-0528-Qwen3-8B has it.
    let inferred = inferred * inner.f64_in("attn_factor", Some(1.0), 1e-6..=1e6)?;
    if inner.opt_f64("extrapolation_factor")?.is_some_and(|x| x != 1.0) {
        return Err(inner.fail("extrapolation_factor", "is not supported, only 1 is"));
    }
    // Zero means absent here, as in the published code.
    let or_default = |key, default: f64| {
        let x = inner.f64_in(key, Some(0.0), 0.0..=1e6)?;
        Ok::<_, LoadError>(if x == 0.0 { default } else { x })
    };
    Ok(Yarn {
        factor,
        beta_fast: or_default("beta_fast", 32.0)?,
        beta_slow: or_default("beta_slow", 1.0)?,
        original_max_position,
        truncate: inner.bool_or("truncate", true)?,
        attention_factor: inner.f64_in("attention_factor", Some(inferred), 1e-6..=1e6)?,
    })
}

fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}
