//! Weights in the form that the processor's kernels read, as they are kept from one start to the next.

use crate::{Device, SharedBytes};
use std::fmt::Debug;

/// A tensor or matrix that can be taken apart into bytes and put together again. Processor only: see [`crate::Device::Cpu`].
pub trait Packed: Sized {
    /// Types and shape: all that the number of bytes depends on.
    type Form: Debug;

    /// Bytes of each part.
    fn part_bytes(form: &Self::Form) -> Vec<u64>;

    /// From its parts. Panics where their number or their bytes are not those of `part_bytes`.
    fn from_parts(device: &Device, form: &Self::Form, parts: Vec<SharedBytes>) -> Self;

    /// Whether it is of this form: compact weights with too many outliers become plain ones when they are packed.
    fn is(&self, form: &Self::Form) -> bool;

    /// Its parts, which are not written any more.
    fn share(&mut self) -> Vec<SharedBytes>;
}

/// Two that come of the same source.
impl<A: Packed, B: Packed> Packed for (A, B) {
    type Form = (A::Form, B::Form);

    fn part_bytes((a, b): &Self::Form) -> Vec<u64> {
        [A::part_bytes(a), B::part_bytes(b)].concat()
    }

    fn from_parts(device: &Device, (a, b): &Self::Form, mut parts: Vec<SharedBytes>) -> Self {
        let of_b = parts.split_off(A::part_bytes(a).len());
        (A::from_parts(device, a, parts), B::from_parts(device, b, of_b))
    }

    fn is(&self, (a, b): &Self::Form) -> bool {
        self.0.is(a) && self.1.is(b)
    }

    fn share(&mut self) -> Vec<SharedBytes> {
        [self.0.share(), self.1.share()].concat()
    }
}

/// The only one, with as many bytes as the form says.
pub(crate) fn one_part<P: Packed>(form: &P::Form, parts: Vec<SharedBytes>) -> SharedBytes {
    let found: Vec<u64> = parts.iter().map(|part| part.len() as u64).collect();
    assert_eq!(found, P::part_bytes(form), "bytes of the parts of {form:?}");
    parts.into_iter().next().expect("one part")
}
