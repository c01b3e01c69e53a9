//! Tensors that lie in host memory as files hold them: what weights are read from, before a device has them.

use crate::dtype::DType;
use crate::error::Error;
use half::{bf16, f16};

/// A tensor in host memory as files hold it: little endian, row-major, at any address.
#[derive(Clone, Copy, Debug)]
pub struct HostTensor<'a> {
    pub dtype: DType,
    pub shape: &'a [usize],
    pub data: &'a [u8],
}

impl<'a> HostTensor<'a> {
    /// Checks that the bytes are as many as the shape says.
    pub fn new(dtype: DType, shape: &'a [usize], data: &'a [u8]) -> Result<Self, Error> {
        let expected = dtype.bytes_of(shape);
        if expected != data.len() as u64 {
            let found = data.len() as u64;
            return Err(Error::WrongLength { dtype, shape: shape.to_vec(), expected, found });
        }
        Ok(Self { dtype, shape, data })
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element `index` in row-major order, widened.
    pub fn get(&self, index: usize) -> f32 {
        let mut value = [0.0];
        self.read_f32(index, &mut value);
        value[0]
    }

    pub(crate) fn check(&self) {
        let expected = self.dtype.bytes_of(self.shape);
        assert_eq!(expected, self.data.len() as u64, "host tensor: bytes of {} {:?}", self.dtype, self.shape);
    }

    /// Elements `start ..`, widened to f32.
    pub(crate) fn read_f32(&self, start: usize, out: &mut [f32]) {
        let size = self.dtype.size();
        let bytes = &self.data[start * size..(start + out.len()) * size];
        match self.dtype {
            DType::F32 => widen(bytes, out, f32::from_le_bytes),
            DType::BF16 => widen(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            DType::F16 => widen(bytes, out, |b| f16::from_le_bytes(b).to_f32_const()),
            DType::I32 | DType::U8 => panic!("host tensor of {} is not of floats", self.dtype),
        }
    }
}

fn widen<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (element, out) in bytes.as_chunks().0.iter().zip(out) {
        *out = value(*element);
    }
}
