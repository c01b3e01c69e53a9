//! Blocks of tensors go to the host and come back, in the order that is promised, on both devices.

use crate::device::{SEEDS, emulated};
use kernels::{BlockMove, Device, HostBlocks, Tensor};

const ROWS: usize = 3;
const BLOCKS: usize = 5;

/// Four tensors of two widths, each element with a value of its own.
fn tensors(device: &Device) -> Vec<Tensor> {
    let make = |(index, width): (usize, usize)| {
        let values: Vec<f32> = (0..BLOCKS * ROWS * width).map(|i| (1000 * index + i) as f32).collect();
        Tensor::from_f32(device, &[BLOCKS * ROWS, width], &values)
    };
    [4, 4, 4, 7].into_iter().enumerate().map(make).collect()
}

fn devices() -> Vec<Device> {
    let mut devices = vec![Device::cpu(Some(1))];
    devices.extend(SEEDS.map(emulated));
    devices
}

fn block(tensors: &[Tensor], block: usize) -> Vec<Vec<f32>> {
    let of = |tensor: &Tensor| {
        let len = ROWS * tensor.row_len();
        tensor.to_f32_vec()[block * len..][..len].to_vec()
    };
    tensors.iter().map(of).collect()
}

fn fill(tensors: &mut [Tensor], block: usize, value: f32) {
    for tensor in tensors {
        let len = ROWS * tensor.row_len();
        tensor.write_f32(block * len, &vec![value; len]);
    }
}

fn to(block: usize, place: usize) -> BlockMove {
    BlockMove { block, place }
}

#[test]
fn what_was_stored_comes_back_elsewhere() {
    for device in devices() {
        let mut tensors = tensors(&device);
        let mut host = HostBlocks::new(&device, tensors.iter_mut(), ROWS, 4).expect("memory");
        assert_eq!(host.block_bytes(), ROWS * (3 * 4 + 7) * 4);
        let expected = [1, 3].map(|index| block(&tensors, index));
        host.mark();
        host.store(tensors.iter_mut(), &[to(1, 2), to(3, 0)]);
        // Behind the copies, as nothing else says.
        fill(&mut tensors, 1, -1.0);
        fill(&mut tensors, 3, -3.0);
        host.load(tensors.iter_mut(), &[to(4, 2)]);
        host.load(tensors.iter_mut(), &[to(0, 0), to(2, 2)]);
        assert!(host.is_loading());
        let first = host.landed(true);
        assert!(first >= 1, "{device:?}: one is waited for");
        assert_eq!(first + if host.is_loading() { host.landed(true) } else { 0 }, 2, "{device:?}");
        assert!(!host.is_loading() && host.landed(true) == 0);
        assert_eq!(block(&tensors, 4), expected[0], "{device:?}");
        assert_eq!(block(&tensors, 2), expected[0], "{device:?}");
        assert_eq!(block(&tensors, 0), expected[1], "{device:?}");
        assert!(block(&tensors, 1).concat().iter().all(|&x| x == -1.0), "{device:?}");
        assert!(block(&tensors, 3).concat().iter().all(|&x| x == -3.0), "{device:?}");
        device.synchronize().expect("nothing failed");
    }
}

#[test]
fn a_load_comes_after_the_mark_and_before_who_joins() {
    for device in devices() {
        let mut tensors = tensors(&device);
        let mut host = HostBlocks::new(&device, tensors.iter_mut(), ROWS, 1).expect("memory");
        let expected = block(&tensors, 1);
        host.store(tensors.iter_mut(), &[to(1, 0)]);
        // Work that was there before the load was asked for.
        fill(&mut tensors, 2, 5.0);
        host.mark();
        host.load(tensors.iter_mut(), &[to(2, 0), to(3, 0)]);
        host.join();
        // Work that must not be overwritten by a copy that comes late.
        fill(&mut tensors, 3, 6.0);
        device.synchronize().expect("nothing failed");
        assert_eq!(host.landed(false) + host.landed(false), 1, "{device:?}: all is done by now");
        assert_eq!(block(&tensors, 2), expected, "{device:?}");
        assert!(block(&tensors, 3).concat().iter().all(|&x| x == 6.0), "{device:?}");
    }
}

#[test]
fn a_load_is_not_told_before_it_is_done() {
    let device = emulated(SEEDS[0]);
    let mut tensors = tensors(&device);
    let mut host = HostBlocks::new(&device, tensors.iter_mut(), ROWS, 1).expect("memory");
    host.store(tensors.iter_mut(), &[to(1, 0)]);
    host.mark();
    host.load(tensors.iter_mut(), &[to(2, 0)]);
    let Device::Cuda(cuda) = &device else { panic!("not a GPU") };
    if cuda.info().name == "emulated" {
        // Its answer to the first question: a device may take its time.
        assert_eq!(host.landed(false), 0);
    }
    assert!(host.is_loading());
    assert_eq!(host.landed(true), 1);
}

#[test]
#[should_panic(expected = "place 4 of 4")]
fn places_are_those_that_there_are() {
    let device = Device::cpu(Some(1));
    let mut tensors = tensors(&device);
    let mut host = HostBlocks::new(&device, tensors.iter_mut(), ROWS, 4).expect("memory");
    host.store(tensors.iter_mut(), &[to(0, 4)]);
}
