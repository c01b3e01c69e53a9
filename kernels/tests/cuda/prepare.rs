//! Compiling ahead of serving, and kernels that a compiler refuses.

use crate::device::{edited, emulated};
use kernels::cuda::error::CudaError;
use kernels::cuda::{catalogue, launch};
use kernels::ops::{RopeLayout, RopeTable, rope};
use kernels::{DType, Device, Error, Tensor};

fn wanted(source: &str) -> Vec<(&'static launch::Kernel, &'static str)> {
    let kernels = catalogue::KERNELS.iter().filter(|kernel| kernel.source.name == source);
    kernels
        .flat_map(|kernel| kernel.instances.iter().map(|instance| (*kernel, instance.expression)))
        .collect()
}

#[test]
fn instances_are_compiled_at_once() {
    let device = emulated(1);
    let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
    let wanted = wanted("rope.cu");
    assert!(wanted.len() > 1);
    cuda.prepare(&wanted).expect("all compile");
    cuda.prepare(&[]).expect("nothing is not too little");
}

/// A kernel that does not compile is an error of `prepare`, and of whoever waits for an op that needed it; nothing is lost.
#[test]
fn what_does_not_compile_is_reported() {
    let device = edited(1, "float a = at[p.first]", "float a = undeclared");
    let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
    assert!(matches!(
        cuda.prepare(&wanted("rope.cu")),
        Err(CudaError::Compile { source_name: "rope.cu", .. })
    ));

    let mut x = Tensor::zeros(&device, DType::F32, &[1, 1, 4]);
    let table = RopeTable::new(&device, 1, 2, &|_, _| (1.0, 0.0));
    rope(&mut x, 0, &table, &[0], RopeLayout::Half);
    assert!(matches!(device.synchronize(), Err(Error::Cuda(CudaError::Compile { .. }))));
    assert_eq!(device.synchronize(), Ok(()));
    assert_eq!(x.to_f32_vec(), [0.0; 4]);
}

#[test]
fn memory_is_given_back() {
    let device = emulated(1);
    let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
    let free = cuda.free_bytes();
    let a = Tensor::zeros(&device, DType::F32, &[1000]);
    let b = Tensor::zeros(&device, DType::BF16, &[33, 3]);
    assert_eq!(device.allocated_bytes(), 4000 + 198);
    assert_eq!(
        free - cuda.free_bytes(),
        kernels::cuda::Cuda::footprint(4000) + kernels::cuda::Cuda::footprint(198)
    );
    drop((a, b));
    assert_eq!((device.allocated_bytes(), cuda.free_bytes()), (0, free));
}
