//! Numbers of rows, positions, slots: what a step reads beside its tensors. Ops take them from the host's memory or from a buffer of
//! the device. The first is copied for each call; the second has a fixed address, as a captured graph needs.

use crate::cuda::driver::DevicePtr;
use crate::{DType, Device, Tensor};

/// A buffer of indices on a device, with a copy on the host, where they are checked.
#[derive(Debug)]
pub struct Indices {
    host: Vec<u32>,
    /// Where the device is not the host.
    device: Option<Tensor>,
    capacity: usize,
}

impl Indices {
    /// Empty, for up to `capacity` numbers.
    pub fn new(device: &Device, capacity: usize) -> Self {
        let copy = match device {
            Device::Cpu(_) => None,
            Device::Cuda(_) => Some(Tensor::zeros(device, DType::I32, &[capacity])),
        };
        Self { host: Vec::with_capacity(capacity), device: copy, capacity }
    }

    /// Bytes of device memory that `new` will allocate.
    pub fn bytes(device: &Device, capacity: usize) -> u64 {
        match device {
            Device::Cpu(_) => 0,
            Device::Cuda(_) => Tensor::bytes_of(DType::I32, &[capacity]),
        }
    }

    /// Takes these instead of what was there, in the order of the device's work.
    pub fn set(&mut self, values: &[u32]) {
        assert!(values.len() <= self.capacity, "{} indices for a buffer of {}", values.len(), self.capacity);
        self.host.clear();
        self.host.extend_from_slice(values);
        if let Some(tensor) = &mut self.device {
            tensor.write_u32(0, values);
        }
    }

    pub fn as_slice(&self) -> &[u32] {
        &self.host
    }

    /// Their fixed address on a GPU.
    pub(crate) fn pointer(&self) -> DevicePtr {
        self.device.as_ref().expect("indices on a device that is not the host").pointer()
    }
}

/// Indices for one call.
#[derive(Clone, Copy, Debug)]
pub enum Index<'a> {
    Host(&'a [u32]),
    Device(&'a Indices),
}

impl<'a> Index<'a> {
    pub fn as_slice(self) -> &'a [u32] {
        match self {
            Self::Host(values) => values,
            Self::Device(indices) => &indices.host,
        }
    }

    pub fn len(self) -> usize {
        self.as_slice().len()
    }

    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Their address on a GPU; a copy, if they were on the host, which lives as long as the result.
    pub(crate) fn on_device(self, device: &Device) -> OnDevice {
        match self {
            Self::Device(Indices { device: Some(tensor), .. }) => {
                OnDevice { pointer: tensor.pointer(), _copy: None }
            }
            Self::Device(_) | Self::Host(_) => {
                let mut copy = Tensor::unwritten(device, DType::I32, &[self.len()]);
                copy.write_u32(0, self.as_slice());
                OnDevice { pointer: copy.pointer(), _copy: Some(copy) }
            }
        }
    }
}

/// See [`Index::on_device`]. Memory that is given back is used again only by later work on the same stream.
pub(crate) struct OnDevice {
    pub pointer: DevicePtr,
    _copy: Option<Tensor>,
}

impl<'a> From<&'a [u32]> for Index<'a> {
    fn from(values: &'a [u32]) -> Self {
        Self::Host(values)
    }
}

impl<'a, const N: usize> From<&'a [u32; N]> for Index<'a> {
    fn from(values: &'a [u32; N]) -> Self {
        Self::Host(values)
    }
}

impl<'a> From<&'a Vec<u32>> for Index<'a> {
    fn from(values: &'a Vec<u32>) -> Self {
        Self::Host(values)
    }
}

impl<'a> From<&'a Indices> for Index<'a> {
    fn from(indices: &'a Indices) -> Self {
        Self::Device(indices)
    }
}
