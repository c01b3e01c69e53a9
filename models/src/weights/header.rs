//! The header of a safetensors file: eight bytes of length, JSON, then the data that every tensor's range points into.
//! Read here and not by a library, because a header is untrusted: every sum is checked, and every complaint names the tensor.

use kernels::DType;
use serde_json::{Map, Value};
use std::ops::Range;

/// The format's own limit.
const MAX_HEADER: usize = 100_000_000;
const LEN: usize = 8;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TensorInfo {
    pub name: String,
    /// `None`: not a type of floats that this crate reads; see `type_name`.
    pub dtype: Option<DType>,
    pub type_name: String,
    pub shape: Vec<usize>,
    /// In the file.
    pub range: Range<usize>,
}

/// All tensors of a file, in the order of their data, or what is wrong with it.
pub(crate) fn parse(file: &[u8]) -> Result<Vec<TensorInfo>, String> {
    let data_start = data_start(file)?;
    let header: Map<String, Value> =
        serde_json::from_slice(&file[LEN..data_start]).map_err(|error| format!("header: {error}"))?;
    let mut tensors = Vec::with_capacity(header.len());
    for (name, value) in &header {
        if name != "__metadata__" {
            let info = tensor(name, value, data_start, file.len());
            tensors.push(info.map_err(|message| format!("tensor {name}: {message}"))?);
        }
    }
    tensors.sort_by_key(|t: &TensorInfo| (t.range.start, t.range.end));
    check_cover(&tensors, data_start, file.len())?;
    Ok(tensors)
}

fn data_start(file: &[u8]) -> Result<usize, String> {
    let Some(length) = file.first_chunk::<LEN>() else {
        return Err(format!("it has {} bytes, too few for a header", file.len()));
    };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > MAX_HEADER {
        return Err(format!("a header of {length} bytes is too long"));
    }
    if LEN + length > file.len() {
        return Err(format!(
            "its header ends at byte {}, after the file's {} bytes",
            LEN + length,
            file.len()
        ));
    }
    Ok(LEN + length)
}

fn tensor(name: &str, value: &Value, data_start: usize, file_len: usize) -> Result<TensorInfo, String> {
    let type_name = value.get("dtype").and_then(Value::as_str).ok_or("it has no dtype")?;
    let numbers = |key: &str| -> Result<Vec<usize>, String> {
        let list = value.get(key).and_then(Value::as_array).ok_or_else(|| format!("it has no {key}"))?;
        let number = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        list.iter().map(|v| number(v).ok_or_else(|| format!("{key} holds {v}"))).collect()
    };
    let shape = numbers("shape")?;
    let [start, end] = numbers("data_offsets")?[..] else {
        return Err("data_offsets are not two numbers".into());
    };
    let data_len = file_len - data_start;
    if start > end || end > data_len {
        return Err(format!("its bytes {start}..{end} are not inside the {data_len} bytes of data"));
    }
    let dtype = match type_name {
        "F32" => Some(DType::F32),
        "BF16" => Some(DType::BF16),
        "F16" => Some(DType::F16),
        _ => None,
    };
    if let Some(size) = size_of(type_name) {
        let count = shape.iter().try_fold(size, |count, &n| count.checked_mul(n));
        if count != Some(end - start) {
            return Err(format!(
                "shape {shape:?} of {type_name} does not take the {} bytes it has",
                end - start
            ));
        }
    }
    let range = data_start + start..data_start + end;
    Ok(TensorInfo { name: name.into(), dtype, type_name: type_name.into(), shape, range })
}

/// Bytes of an element, of the types that are read.
fn size_of(type_name: &str) -> Option<usize> {
    match type_name {
        "F32" | "I32" => Some(4),
        "BF16" | "F16" => Some(2),
        "I8" | "U8" | "F8_E4M3" => Some(1),
        "I64" => Some(8),
        _ => None,
    }
}

/// Tensors lie one after another, without overlap, hole or rest.
fn check_cover(tensors: &[TensorInfo], data_start: usize, file_len: usize) -> Result<(), String> {
    let mut end = data_start;
    for tensor in tensors {
        if tensor.range.start != end {
            return Err(format!("tensor {}: its data does not follow the tensor before it", tensor.name));
        }
        end = tensor.range.end;
    }
    match end == file_len {
        true => Ok(()),
        false => Err(format!("its tensors end at byte {end}, the file at byte {file_len}")),
    }
}
