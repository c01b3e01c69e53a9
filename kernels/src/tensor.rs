//! A contiguous array with a shape and a type, on a device.

use crate::Device;
use half::{bf16, f16};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    F32,
    BF16,
    F16,
    I32,
    U8,
}

impl DType {
    pub fn size(self) -> usize {
        match self {
            DType::F32 | DType::I32 => 4,
            DType::BF16 | DType::F16 => 2,
            DType::U8 => 1,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            DType::F32 => "float32",
            DType::BF16 => "bfloat16",
            DType::F16 => "float16",
            DType::I32 => "int32",
            DType::U8 => "uint8",
        }
    }
}

/// Values as a file holds them: little endian, row-major, of any alignment.
#[derive(Debug, Clone, Copy)]
pub struct HostTensor<'a> {
    pub dtype: DType,
    pub shape: &'a [usize],
    pub data: &'a [u8],
}

impl HostTensor<'_> {
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Value `index` in row-major order.
    pub fn get(&self, index: usize) -> f32 {
        let at = index * self.dtype.size();
        let bytes = &self.data[at..at + self.dtype.size()];
        match self.dtype {
            DType::F32 => f32::from_le_bytes(bytes.try_into().expect("4 bytes")),
            DType::BF16 => bf16::from_le_bytes(bytes.try_into().expect("2 bytes")).to_f32(),
            DType::F16 => f16::from_le_bytes(bytes.try_into().expect("2 bytes")).to_f32(),
            DType::I32 | DType::U8 => panic!("{} is not a floating-point type", self.dtype.name()),
        }
    }
}

/// Most dimensions that a tensor has.
const MAX_RANK: usize = 4;

/// Contiguous, zeroed when made, counted by its device. The first dimension may shrink and grow again within its capacity, so that
/// buffers made for the largest step serve smaller ones.
#[derive(Debug)]
pub struct Tensor {
    device: Device,
    dtype: DType,
    shape: [usize; MAX_RANK],
    rank: usize,
    data: Buffer,
}

#[derive(Debug)]
enum Buffer {
    F32(Vec<f32>),
    BF16(Vec<bf16>),
    F16(Vec<f16>),
    I32(Vec<i32>),
    U8(Vec<u8>),
}

impl Tensor {
    pub fn zeros(device: &Device, dtype: DType, shape: &[usize]) -> Self {
        let len = shape.iter().product();
        let data = match dtype {
            DType::F32 => Buffer::F32(vec![0.0; len]),
            DType::BF16 => Buffer::BF16(vec![bf16::ZERO; len]),
            DType::F16 => Buffer::F16(vec![f16::ZERO; len]),
            DType::I32 => Buffer::I32(vec![0; len]),
            DType::U8 => Buffer::U8(vec![0; len]),
        };
        device.count((len * dtype.size()) as u64);
        let mut tensor = Self { device: device.clone(), dtype, shape: [1; MAX_RANK], rank: 0, data };
        tensor.set_shape(shape);
        tensor
    }

    pub fn from_f32(device: &Device, shape: &[usize], values: &[f32]) -> Self {
        let mut tensor = Self::zeros(device, DType::F32, shape);
        tensor.as_f32_mut().copy_from_slice(values);
        tensor
    }

    /// A copy with the same type.
    pub fn from_host(device: &Device, source: HostTensor) -> Self {
        Self::from_host_as(device, source, source.dtype)
    }

    /// A copy, rounded to `dtype` (to nearest, ties to even).
    pub fn from_host_as(device: &Device, source: HostTensor, dtype: DType) -> Self {
        let mut tensor = Self::zeros(device, dtype, source.shape);
        for index in 0..source.len() {
            tensor.set(index, source.get(index));
        }
        tensor
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape[..self.rank]
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Of the whole capacity.
    pub fn bytes(&self) -> u64 {
        (self.capacity() * self.dtype.size()) as u64
    }

    pub fn len(&self) -> usize {
        self.shape().iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn capacity(&self) -> usize {
        match &self.data {
            Buffer::F32(data) => data.len(),
            Buffer::BF16(data) => data.len(),
            Buffer::F16(data) => data.len(),
            Buffer::I32(data) => data.len(),
            Buffer::U8(data) => data.len(),
        }
    }

    fn set_shape(&mut self, shape: &[usize]) {
        assert!(shape.len() <= MAX_RANK, "more than {MAX_RANK} dimensions");
        assert!(shape.iter().product::<usize>() <= self.capacity(), "shape {shape:?} is beyond the capacity");
        self.shape[..shape.len()].copy_from_slice(shape);
        self.rank = shape.len();
    }

    /// Sets the first dimension, within the capacity. Rows that come into sight hold what they held before.
    pub fn set_rows(&mut self, rows: usize) {
        self.shape[0] = rows;
        assert!(self.len() <= self.capacity(), "{rows} rows are beyond the capacity");
    }

    /// The same values under another shape, within the capacity.
    pub fn reshape(&mut self, shape: &[usize]) {
        self.set_shape(shape);
    }

    pub fn as_f32(&self) -> &[f32] {
        let Buffer::F32(data) = &self.data else { panic!("{} is not float32", self.dtype.name()) };
        &data[..self.shape[..self.rank].iter().product()]
    }

    pub fn as_f32_mut(&mut self) -> &mut [f32] {
        let len = self.len();
        let Buffer::F32(data) = &mut self.data else { panic!("not float32") };
        &mut data[..len]
    }

    pub fn as_i32(&self) -> &[i32] {
        let Buffer::I32(data) = &self.data else { panic!("{} is not int32", self.dtype.name()) };
        &data[..self.shape[..self.rank].iter().product()]
    }

    pub fn as_i32_mut(&mut self) -> &mut [i32] {
        let len = self.len();
        let Buffer::I32(data) = &mut self.data else { panic!("not int32") };
        &mut data[..len]
    }

    /// Value `index` of a floating-point tensor.
    pub fn get(&self, index: usize) -> f32 {
        match &self.data {
            Buffer::F32(data) => data[index],
            Buffer::BF16(data) => data[index].to_f32(),
            Buffer::F16(data) => data[index].to_f32(),
            Buffer::I32(_) | Buffer::U8(_) => panic!("{} is not a floating-point type", self.dtype.name()),
        }
    }

    pub(crate) fn set(&mut self, index: usize, value: f32) {
        match &mut self.data {
            Buffer::F32(data) => data[index] = value,
            Buffer::BF16(data) => data[index] = bf16::from_f32(value),
            Buffer::F16(data) => data[index] = f16::from_f32(value),
            Buffer::I32(_) | Buffer::U8(_) => panic!("not a floating-point type"),
        }
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        self.device.discount(self.bytes());
    }
}
