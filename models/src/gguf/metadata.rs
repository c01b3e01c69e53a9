//! The head of a GGUF file: metadata by key, and where each tensor lies. Read here and not by a library, because a head is untrusted:
//! every length is checked against what is left of the file, and nothing is allocated before it is known to be there.
//!
//! ```text
//! "GGUF" version:u32 tensors:u64 keys:u64 | key:string type:u32 value … | name:string dims:u32 [u64] type:u32 offset:u64 … | pad | data
//! ```
//! Little endian; a string is a u64 length and UTF-8. Source: the format's description in the ggml repository, docs/gguf.md.

use super::blocks::BlockType;
use std::collections::BTreeMap;
use std::ops::Range;

const MAGIC: [u8; 4] = *b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
/// ggml's own limit.
const MAX_DIMENSIONS: u32 = 4;

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Int(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Bools(Vec<bool>),
    Texts(Vec<String>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// Outermost dimension first, as everywhere else in this crate; the file has it the other way round.
    pub shape: Vec<usize>,
    pub block_type: BlockType,
    /// In the file.
    pub range: Range<usize>,
}

#[derive(Debug, Default)]
pub struct Head {
    pub metadata: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, TensorInfo>,
}

pub fn parse(file: &[u8]) -> Result<Head, String> {
    let mut reader = Reader { file, at: 0 };
    if reader.bytes(4)? != MAGIC {
        return Err("it does not begin with GGUF".into());
    }
    match reader.u32()? {
        2 | 3 => {}
        version => return Err(format!("version {version} is not supported, only 2 and 3 are")),
    }
    let (num_tensors, num_keys) = (reader.u64()?, reader.u64()?);
    let mut head = Head::default();
    for _ in 0..num_keys {
        let key = reader.text()?;
        let value = reader.value().map_err(|message| format!("{key}: {message}"))?;
        if head.metadata.insert(key.clone(), value).is_some() {
            return Err(format!("{key} is there twice"));
        }
    }
    let mut placed = Vec::new();
    for _ in 0..num_tensors {
        let name = reader.text()?;
        let info = reader.tensor().map_err(|message| format!("tensor {name}: {message}"))?;
        placed.push((name, info));
    }
    let data_start = data_start(&head, reader.at)?;
    for (name, tensor) in placed {
        let info =
            tensor.place(data_start, file.len()).map_err(|message| format!("tensor {name}: {message}"))?;
        if head.tensors.insert(name.clone(), info).is_some() {
            return Err(format!("tensor {name} is there twice"));
        }
    }
    Ok(head)
}

fn data_start(head: &Head, end: usize) -> Result<usize, String> {
    let alignment = match head.metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(Value::Int(n)) if (1..=1 << 20).contains(n) && n % 8 == 0 => *n as u64,
        Some(other) => {
            return Err(format!("general.alignment: {other:?} is not a multiple of 8 up to 1048576"));
        }
    };
    Ok(end.next_multiple_of(alignment as usize))
}

/// A tensor as the head lists it.
struct Listed {
    shape: Vec<usize>,
    block_type: BlockType,
    offset: u64,
}

impl Listed {
    fn place(self, data_start: usize, file_len: usize) -> Result<TensorInfo, String> {
        let Self { shape, block_type, offset } = self;
        let row = shape.last().copied().unwrap_or(1);
        let row_bytes = block_type.row_bytes(row).ok_or_else(|| {
            format!("rows of {row} values are not whole blocks of {} of {block_type}", block_type.weights())
        })?;
        let rows: Option<usize> = shape[..shape.len().saturating_sub(1)]
            .iter()
            .try_fold(1, |count: usize, &n| count.checked_mul(n));
        let range = (|| {
            let start = data_start.checked_add(usize::try_from(offset).ok()?)?;
            let end = start.checked_add(rows?.checked_mul(row_bytes)?)?;
            (end <= file_len).then_some(start..end)
        })();
        let range = range.ok_or_else(|| format!("its data is not inside the file's {file_len} bytes"))?;
        Ok(TensorInfo { shape, block_type, range })
    }
}

struct Reader<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.file.len());
        let end = end.ok_or_else(|| format!("it ends at byte {}, in its head", self.file.len()))?;
        Ok(&self.file[std::mem::replace(&mut self.at, end)..end])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.bytes(N)?.try_into().expect("as many as asked for"))
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<String, String> {
        let len = self.u64()?;
        let bytes = self.bytes(usize::try_from(len).unwrap_or(usize::MAX))?;
        // Tokens of old files are not always UTF-8; keys and names are ASCII.
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    fn value(&mut self) -> Result<Value, String> {
        let kind = self.u32()?;
        Ok(match kind {
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array()?))),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            7 => Value::Bool(self.bool()?),
            8 => Value::Text(self.text()?),
            9 => self.list()?,
            kind => Value::Int(self.int(kind)?),
        })
    }

    fn int(&mut self, kind: u32) -> Result<i128, String> {
        Ok(match kind {
            0 => u8::from_le_bytes(self.array()?).into(),
            1 => i8::from_le_bytes(self.array()?).into(),
            2 => u16::from_le_bytes(self.array()?).into(),
            3 => i16::from_le_bytes(self.array()?).into(),
            4 => u32::from_le_bytes(self.array()?).into(),
            5 => i32::from_le_bytes(self.array()?).into(),
            10 => u64::from_le_bytes(self.array()?).into(),
            11 => i64::from_le_bytes(self.array()?).into(),
            other => return Err(format!("values of type {other} are not known")),
        })
    }

    fn bool(&mut self) -> Result<bool, String> {
        match self.array::<1>()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(format!("{other} is not true or false")),
        }
    }

    /// Each element takes a byte at least, so that a length is never believed beyond the file.
    fn list(&mut self) -> Result<Value, String> {
        let (kind, len) = (self.u32()?, self.u64()?);
        if len > (self.file.len() - self.at) as u64 {
            return Err(format!("a list of {len} does not fit the file"));
        }
        Ok(match kind {
            6 => Value::Floats(
                (0..len).map(|_| self.array().map(f32::from_le_bytes)).collect::<Result<_, _>>()?,
            ),
            12 => Value::Floats(
                (0..len)
                    .map(|_| self.array().map(|bytes| f64::from_le_bytes(bytes) as f32))
                    .collect::<Result<_, _>>()?,
            ),
            7 => Value::Bools((0..len).map(|_| self.bool()).collect::<Result<_, _>>()?),
            8 => Value::Texts((0..len).map(|_| self.text()).collect::<Result<_, _>>()?),
            9 => return Err("lists of lists are not supported".into()),
            kind => {
                let int = |reader: &mut Self| {
                    let n = reader.int(kind)?;
                    i64::try_from(n).map_err(|_| format!("{n} is too large"))
                };
                Value::Ints((0..len).map(|_| int(self)).collect::<Result<_, _>>()?)
            }
        })
    }

    fn tensor(&mut self) -> Result<Listed, String> {
        let num_dimensions = self.u32()?;
        if num_dimensions > MAX_DIMENSIONS {
            return Err(format!("{num_dimensions} dimensions are more than {MAX_DIMENSIONS}"));
        }
        let mut shape = Vec::new();
        for _ in 0..num_dimensions {
            let n = self.u64()?;
            shape.push(usize::try_from(n).map_err(|_| format!("a dimension of {n} is too large"))?);
        }
        shape.reverse();
        let code = self.u32()?;
        let block_type = BlockType::from_code(code)
            .ok_or_else(|| format!("type {code} is not supported, these are: {}", BlockType::names()))?;
        Ok(Listed { shape, block_type, offset: self.u64()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with one key and one tensor of 32 values in Q8_0.
    fn small() -> Vec<u8> {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(1u64.to_le_bytes());
        file.extend(2u64.to_le_bytes());
        let text = |file: &mut Vec<u8>, text: &str| {
            file.extend((text.len() as u64).to_le_bytes());
            file.extend(text.as_bytes());
        };
        text(&mut file, "a");
        file.extend(4u32.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        text(&mut file, "tokens");
        file.extend([9u32.to_le_bytes(), 8u32.to_le_bytes()].concat());
        file.extend(2u64.to_le_bytes());
        text(&mut file, "x");
        text(&mut file, "yz");
        text(&mut file, "w");
        file.extend(2u32.to_le_bytes());
        file.extend([32u64.to_le_bytes(), 2u64.to_le_bytes()].concat());
        file.extend(8u32.to_le_bytes());
        file.extend(0u64.to_le_bytes());
        file.resize(file.len().next_multiple_of(32) + 2 * 34, 0);
        file
    }

    #[test]
    fn keys_and_tensors_are_read() {
        let file = small();
        let head = parse(&file).unwrap();
        assert_eq!(head.metadata["a"], Value::Int(7));
        assert_eq!(head.metadata["tokens"], Value::Texts(vec!["x".into(), "yz".into()]));
        let tensor = &head.tensors["w"];
        assert_eq!((&tensor.shape[..], tensor.block_type), (&[2, 32][..], BlockType::Q8_0));
        assert_eq!(tensor.range, file.len() - 68..file.len());
    }

    #[test]
    fn every_shorter_file_is_refused() {
        let file = small();
        for len in 0..file.len() {
            assert!(parse(&file[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn changed_bytes_never_panic() {
        let file = small();
        for at in 0..file.len() - 68 {
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                let mut file = file.clone();
                file[at] = byte;
                let _ = parse(&file);
            }
        }
    }
}
