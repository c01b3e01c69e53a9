//! Vectors of f32 behind one trait, and the run-time choice of the instruction set.
//!
//! A kernel is written once, generic over [`Simd`], as an `#[inline(always)]` function; [`simd_entry!`] compiles it for each of them,
//! inside a function that has the features, and picks one by [`Isa`]. The vector types are tokens: holding an `Avx512`
//! proves that the processor has it, so arithmetic is safe to call and only raw loads and stores are not.

#[cfg(target_arch = "x86_64")]
pub(crate) mod compact;
pub(crate) mod dot;
mod entry;
#[cfg(target_arch = "x86_64")]
pub(crate) mod integers;
mod isa;
pub(crate) mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod turn;
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_dot;

pub(crate) use entry::{dot_entry, simd_entry};
pub use isa::Isa;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::{Bytes, Neon};
pub(crate) use portable::Portable;
pub(crate) use turn::Turn;
pub(crate) use vector::{MAX_LANES, Simd, ask_for};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_dot::{Bf16Dot, PairWords, Vnni};
