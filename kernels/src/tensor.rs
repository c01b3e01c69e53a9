//! Tensors: contiguous, at most four dimensions, owning their memory. A scratch tensor is made for the largest step and then
//! shows fewer rows: its capacity is fixed, its shape moves within it.

use crate::cuda::driver::DevicePtr;
use crate::memory::{Buffer, bytes_of_slice, bytes_of_slice_mut};
use crate::packed::one_part;
use crate::{DType, Device, Error, HostTensor, Packed, SharedBytes, WeightRows};
use half::{bf16, f16};
use std::fmt;
use std::ops::Range;

const MAX_RANK: usize = 4;
/// Elements that are written at a time.
const FILL_BLOCK: usize = 64 << 10;

pub struct Tensor {
    buffer: Buffer,
    dtype: DType,
    dims: [usize; MAX_RANK],
    rank: usize,
}

impl Tensor {
    pub fn zeros(device: &Device, dtype: DType, shape: &[usize]) -> Self {
        Self::with(dtype, shape, |bytes, name| Buffer::zeroed(device, bytes, name))
    }

    /// For what is always written before it is read. On a GPU its contents are undefined; elsewhere they are zeros.
    pub fn unwritten(device: &Device, dtype: DType, shape: &[usize]) -> Self {
        Self::with(dtype, shape, |bytes, name| Buffer::unwritten(device, bytes, name))
    }

    fn with(dtype: DType, shape: &[usize], buffer: impl FnOnce(usize, &str) -> Buffer) -> Self {
        let bytes = usize::try_from(Self::bytes_of(dtype, shape)).expect("a tensor fits the address space");
        let buffer = buffer(bytes, &format!("{dtype} {shape:?}"));
        let mut tensor = Self { buffer, dtype, dims: [1; MAX_RANK], rank: 0 };
        tensor.set_shape(shape);
        tensor
    }

    pub fn from_f32(device: &Device, shape: &[usize], values: &[f32]) -> Self {
        let mut tensor = Self::unwritten(device, DType::F32, shape);
        assert_eq!(values.len(), tensor.len(), "from_f32: {shape:?}");
        tensor.buffer.write(0, bytes_of_slice(values));
        tensor
    }

    pub fn from_host(device: &Device, host: HostTensor) -> Self {
        host.check();
        let mut tensor = Self::unwritten(device, host.dtype, host.shape);
        if cfg!(target_endian = "little") {
            tensor.buffer.write(0, host.data);
            return tensor;
        }
        match host.dtype {
            DType::F32 | DType::I32 => {
                copy_le(host.data, tensor.buffer.as_mut_slice(), u32::from_le_bytes, i32_of)
            }
            DType::BF16 | DType::F16 => {
                copy_le(host.data, tensor.buffer.as_mut_slice(), u16::from_le_bytes, |v| v)
            }
            DType::U8 => tensor.buffer.as_mut_slice().copy_from_slice(host.data),
        }
        tensor
    }

    /// From one float type to another, rounding to nearest even.
    pub fn from_host_as(device: &Device, host: HostTensor, dtype: DType) -> Self {
        host.check();
        let mut tensor = Self::unwritten(device, dtype, host.shape);
        tensor.fill(FILL_BLOCK, &|start, values| host.read_f32(start, values));
        tensor
    }

    /// A matrix as a plain tensor `[N, K]` of floats.
    pub fn from_rows(device: &Device, dtype: DType, source: &impl WeightRows) -> Self {
        let [n, k] = source.shape();
        let mut tensor = Self::unwritten(device, dtype, &[n, k]);
        let at_once = FILL_BLOCK.div_ceil(k.max(1));
        tensor.fill(at_once * k, &|start, values| {
            let first = start / k;
            for (i, out) in values.chunks_exact_mut(k).enumerate() {
                source.read_f32(first + i, out);
            }
            source.done(first..first + values.len() / k);
        });
        tensor
    }

    /// Writes every element of a tensor of floats, a block at a time: `values(start, out)` gives those from place `start` on. Blocks are
    /// shared out to all threads.
    pub(crate) fn fill(&mut self, block_len: usize, values: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        let (device, total) = (self.device().clone(), self.len());
        let Device::Cpu(cpu) = &device else {
            let mut block = vec![0.0; total.min(block_len)];
            for start in (0..total).step_by(block_len) {
                let block = &mut block[..block_len.min(total - start)];
                values(start, block);
                self.write_f32(start, block);
            }
            return;
        };
        if self.dtype == DType::F32 {
            let out = self.as_f32_mut();
            return cpu.for_blocks(out, block_len, |index, out| values(index * block_len, out));
        }
        let dtype = self.dtype;
        cpu.for_blocks(self.as_u16_mut(), block_len, |index, out| {
            let mut block = vec![0.0; out.len()];
            values(index * block_len, &mut block);
            round_into(dtype, out, &block);
        });
    }

    /// The bytes of the elements in sight, after all work that was enqueued on the device.
    pub fn read(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; self.len() * self.dtype.size()];
        self.buffer.read(0, &mut bytes)?;
        Ok(bytes)
    }

    /// The address on a GPU.
    pub(crate) fn pointer(&self) -> DevicePtr {
        self.buffer.pointer()
    }

    /// What a tensor of this shape takes, as `Device::allocated_bytes` counts it.
    pub fn bytes_of(dtype: DType, shape: &[usize]) -> u64 {
        dtype.bytes_of(shape)
    }

    pub fn shape(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// Elements in sight: the product of the shape.
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first dimension.
    pub fn rows(&self) -> usize {
        self.dims[0]
    }

    /// Elements of one row: the product of all dimensions but the first.
    pub fn row_len(&self) -> usize {
        self.dims[1..].iter().product()
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn device(&self) -> &Device {
        self.buffer.device()
    }

    /// Bytes of the whole capacity.
    pub fn bytes(&self) -> u64 {
        self.buffer.len() as u64
    }

    /// Changes the first dimension, within the capacity. Contents stay where they are.
    pub fn set_rows(&mut self, n: usize) {
        assert!(
            n * self.row_len() <= self.capacity(),
            "set_rows: {n} rows of {:?} exceed the capacity",
            self.shape()
        );
        self.dims[0] = n;
    }

    /// Another shape over the same memory, within the capacity.
    pub fn reshape(&mut self, shape: &[usize]) {
        let elements: usize = shape.iter().product();
        assert!(
            elements <= self.capacity(),
            "reshape: {shape:?} exceeds the capacity of {}",
            self.capacity()
        );
        self.set_shape(shape);
    }

    pub fn as_f32(&self) -> &[f32] {
        assert_eq!(self.dtype, DType::F32, "as_f32");
        &self.buffer.as_slice()[..self.len()]
    }

    pub fn as_f32_mut(&mut self) -> &mut [f32] {
        assert_eq!(self.dtype, DType::F32, "as_f32_mut");
        let n = self.len();
        &mut self.buffer.as_mut_slice()[..n]
    }

    /// The whole capacity of a tensor of elements of four bytes, as words.
    pub(crate) fn as_words_mut(&mut self) -> &mut [u32] {
        assert_eq!(self.dtype.size(), 4, "as_words_mut");
        self.buffer.as_mut_slice()
    }

    pub fn as_i32(&self) -> &[i32] {
        assert_eq!(self.dtype, DType::I32, "as_i32");
        &self.buffer.as_slice()[..self.len()]
    }

    pub fn as_i32_mut(&mut self) -> &mut [i32] {
        assert_eq!(self.dtype, DType::I32, "as_i32_mut");
        let n = self.len();
        &mut self.buffer.as_mut_slice()[..n]
    }

    /// The bits of a tensor of half-width floats.
    pub(crate) fn as_u16(&self) -> &[u16] {
        assert!(matches!(self.dtype, DType::BF16 | DType::F16), "as_u16 of {}", self.dtype);
        &self.buffer.as_slice()[..self.len()]
    }

    pub(crate) fn as_u16_mut(&mut self) -> &mut [u16] {
        assert!(matches!(self.dtype, DType::BF16 | DType::F16), "as_u16_mut of {}", self.dtype);
        let n = self.len();
        &mut self.buffer.as_mut_slice()[..n]
    }

    /// The whole capacity of a tensor in the host's memory, whatever it holds.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.buffer.as_mut_slice()
    }

    pub(crate) fn as_u8(&self) -> &[u8] {
        assert_eq!(self.dtype, DType::U8, "as_u8");
        &self.buffer.as_slice()[..self.len()]
    }

    pub(crate) fn as_u8_mut(&mut self) -> &mut [u8] {
        assert_eq!(self.dtype, DType::U8, "as_u8_mut");
        let n = self.len();
        &mut self.buffer.as_mut_slice()[..n]
    }

    /// The address of an element in the host's memory, to ask for it ahead of its use.
    pub(crate) fn address(&self, index: usize) -> *const u8 {
        let bytes: &[u8] = self.buffer.as_slice();
        bytes.as_ptr().wrapping_add(index * self.dtype.size())
    }

    /// Element `index` of a tensor of floats, widened.
    pub fn get(&self, index: usize) -> f32 {
        match self.dtype {
            DType::F32 => self.as_f32()[index],
            DType::BF16 => bf16::from_bits(self.as_u16()[index]).to_f32(),
            DType::F16 => f16::from_bits(self.as_u16()[index]).to_f32_const(),
            DType::I32 | DType::U8 => panic!("{} is not a floating-point type", self.dtype),
        }
    }

    /// All elements of a tensor of floats, widened. For tests and tools: it allocates, waits for the device and panics when that
    /// has failed.
    pub fn to_f32_vec(&self) -> Vec<f32> {
        let bytes = self.read().unwrap_or_else(|error| panic!("to_f32_vec: {error}"));
        let mut values = vec![0.0; self.len()];
        HostTensor { dtype: self.dtype, shape: self.shape(), data: &bytes }.read_f32(0, &mut values);
        values
    }

    /// All elements of a tensor of f32, on the host: where the processor is the device its own memory, else a copy in `copy`, after
    /// all work that was enqueued. What is written there stays there.
    pub fn on_host_mut<'a>(&'a mut self, copy: &'a mut Vec<f32>) -> Result<&'a mut [f32], Error> {
        match self.device() {
            Device::Cpu(_) => Ok(self.as_f32_mut()),
            Device::Cuda(_) => {
                self.copy_elements(0..self.len(), copy)?;
                Ok(copy)
            }
        }
    }

    /// Some rows of a tensor of f32, as [`Tensor::on_host_mut`].
    pub fn rows_on_host<'a>(
        &'a self,
        rows: Range<usize>,
        copy: &'a mut Vec<f32>,
    ) -> Result<&'a [f32], Error> {
        let elements = rows.start * self.row_len()..rows.end * self.row_len();
        match self.device() {
            Device::Cpu(_) => Ok(&self.as_f32()[elements]),
            Device::Cuda(_) => {
                self.copy_elements(elements, copy)?;
                Ok(copy)
            }
        }
    }

    fn copy_elements(&self, elements: Range<usize>, copy: &mut Vec<f32>) -> Result<(), Error> {
        assert_eq!(self.dtype, DType::F32, "a copy for the host");
        assert!(elements.end <= self.len(), "elements {elements:?} of {}", self.len());
        copy.resize(elements.len(), 0.0);
        Ok(self.buffer.read(elements.start * 4, bytes_of_slice_mut(copy))?)
    }

    /// Rounds values into a tensor of floats, from element `start` on.
    pub fn write_f32(&mut self, start: usize, values: &[f32]) {
        if self.dtype == DType::F32 {
            return self.buffer.write(start * 4, bytes_of_slice(values));
        }
        let dtype = self.dtype;
        match self.device() {
            Device::Cpu(_) => {
                round_into(dtype, &mut self.as_u16_mut()[start..start + values.len()], values);
            }
            Device::Cuda(_) => {
                let mut bits = vec![0; values.len()];
                round_into(dtype, &mut bits, values);
                self.buffer.write(start * 2, bytes_of_slice(&bits));
            }
        }
    }

    /// Writes elements of a tensor of i32, from element `start` on.
    pub fn write_i32(&mut self, start: usize, values: &[i32]) {
        assert_eq!(self.dtype, DType::I32, "write_i32");
        self.buffer.write(start * 4, bytes_of_slice(values));
    }

    /// Indices into a tensor of i32.
    pub(crate) fn write_u32(&mut self, start: usize, values: &[u32]) {
        assert_eq!(self.dtype, DType::I32, "write_u32");
        self.buffer.write(start * 4, bytes_of_slice(values));
    }

    fn capacity(&self) -> usize {
        self.buffer.len() / self.dtype.size()
    }

    fn set_shape(&mut self, shape: &[usize]) {
        assert!((1..=MAX_RANK).contains(&shape.len()), "a tensor has one to four dimensions, not {shape:?}");
        self.dims = [1; MAX_RANK];
        self.dims[..shape.len()].copy_from_slice(shape);
        self.rank = shape.len();
    }
}

impl Packed for Tensor {
    /// Type and shape.
    type Form = (DType, Vec<usize>);

    fn part_bytes((dtype, shape): &Self::Form) -> Vec<u64> {
        vec![Self::bytes_of(*dtype, shape)]
    }

    fn from_parts(device: &Device, form: &Self::Form, parts: Vec<SharedBytes>) -> Self {
        let bytes = one_part::<Self>(form, parts);
        Self::with(form.0, &form.1, |_, _| Buffer::shared(device, bytes))
    }

    fn is(&self, (dtype, shape): &Self::Form) -> bool {
        self.dtype == *dtype && self.shape() == shape
    }

    fn share(&mut self) -> Vec<SharedBytes> {
        vec![self.buffer.share()]
    }
}

/// `[T, H, D]`; a matrix is one head.
pub(crate) fn as_heads(x: &Tensor) -> [usize; 3] {
    match *x.shape() {
        [t, d] => [t, 1, d],
        [t, h, d] => [t, h, d],
        ref other => panic!("rows of heads have two or three dimensions, not {other:?}"),
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.dtype, self.shape())
    }
}

/// To nearest even, as `half` does it, without its branch: NaN becomes a quiet NaN.
fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    (if value.is_nan() { quiet } else { rounded }) as u16
}

/// To the bits of a type of 16 bits. A loop for each type: a function that is called for each value would keep it from vectors.
fn round_into(dtype: DType, out: &mut [u16], values: &[f32]) {
    match dtype {
        DType::BF16 => {
            for (out, &value) in out.iter_mut().zip(values) {
                *out = bf16_bits(value);
            }
        }
        DType::F16 => {
            for (out, &value) in out.iter_mut().zip(values) {
                *out = f16::from_f32_const(value).to_bits();
            }
        }
        _ => panic!("floats into a tensor of {dtype}"),
    }
}

fn copy_le<const N: usize, V, T>(
    bytes: &[u8],
    out: &mut [T],
    read: impl Fn([u8; N]) -> V,
    as_t: impl Fn(V) -> T,
) {
    for (element, out) in bytes.as_chunks().0.iter().zip(out) {
        *out = as_t(read(*element));
    }
}

fn i32_of(bits: u32) -> i32 {
    bits.cast_signed()
}
