//! Vectors of f32 behind one trait, and the run-time choice of the instruction set.
//!
//! A kernel is written once, generic over [`Simd`], as an `#[inline(always)]` function; [`simd_entry!`] compiles it for each of them,
//! inside a function that has the features, and picks one by [`Isa`]. The vector types are tokens: holding an `Avx512`
//! proves that the processor has it, so arithmetic is safe to call and only raw loads and stores are not.

#[cfg(target_arch = "x86_64")]
pub(crate) mod compact;
pub(crate) mod dot;
pub(crate) mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod turn;
#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_dot;

#[cfg(target_arch = "aarch64")]
pub(crate) use neon::{Bytes, Neon};
pub(crate) use portable::Portable;
pub(crate) use turn::Turn;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_dot::{Bf16Dot, PairWords, Vnni};

use std::fmt;

/// Instruction sets that there are kernels for. `Avx512` is F, BW, DQ and VL, which every server processor with AVX-512 has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    Portable,
    Neon,
    Avx2,
    Avx512,
}

impl Isa {
    pub const ALL: [Self; 4] = [Self::Portable, Self::Neon, Self::Avx2, Self::Avx512];

    pub fn best() -> Self {
        Self::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Self::Portable)
    }

    /// Whether there is a kernel for it that multiplies bf16 by bf16.
    pub fn has_bf16_dots(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self == Self::Avx512 && Bf16Dot::is_available();
        #[cfg(not(target_arch = "x86_64"))]
        return false;
    }

    /// Whether there is a kernel for it that multiplies bytes by bytes.
    pub fn has_int8_dots(self) -> bool {
        match self {
            Self::Portable | Self::Neon | Self::Avx2 => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Vnni::is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512 => false,
        }
    }

    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            // Part of what every such processor has.
            Self::Neon => cfg!(target_arch = "aarch64"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && Self::Avx2.is_available()
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        })
    }
}

// Bodies of kernels loop over indices: adapters of iterators, and functions passed as values, are not always inlined into a
// function with more features than they have, and then every vector goes through memory.

/// One width of f32 vectors. `V` is a vector of `LANES`.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    type V: Copy;
    const LANES: usize;
    const ISA: Isa;
    /// Rows of the largest tile whose sums, two vectors a row, stay in registers.
    const TILE_ROWS: usize;

    fn splat(self, x: f32) -> Self::V;
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the processor can.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `b` where either is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `b` where either is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `2^n` for whole numbers -126 ..= 127.
    fn pow2(self, n: Self::V) -> Self::V;
    /// `a < b ? x : y`, lane by lane.
    fn select_lt(self, a: Self::V, b: Self::V, x: Self::V, y: Self::V) -> Self::V;
    /// Lanes summed in a fixed tree: halves onto each other.
    fn sum(self, a: Self::V) -> f32;

    /// # Safety
    /// `LANES` elements can be read.
    unsafe fn load(self, from: *const f32) -> Self::V;
    /// # Safety
    /// `LANES` elements can be written.
    unsafe fn store(self, to: *mut f32, v: Self::V);
    /// # Safety
    /// `LANES` elements can be read.
    unsafe fn load_bf16(self, from: *const u16) -> Self::V;
    /// # Safety
    /// `LANES` elements can be read.
    unsafe fn load_f16(self, from: *const u16) -> Self::V;
    /// The elements with even and with odd index.
    /// # Safety
    /// `2 * LANES` elements can be read.
    unsafe fn load_bf16_pairs(self, from: *const u16) -> (Self::V, Self::V);
    /// Byte `BYTE` of each 32-bit word, signed.
    /// # Safety
    /// `LANES` words can be read.
    unsafe fn load_byte<const BYTE: usize>(self, from: *const u8) -> Self::V;
    /// Byte `BYTE` of each 32-bit word: its low and its high half, each less 8.
    /// # Safety
    /// `LANES` words can be read.
    unsafe fn load_nibbles<const BYTE: usize>(self, from: *const u8) -> (Self::V, Self::V);
    /// Asks for a cache line. Any address will do.
    fn prefetch(self, address: *const u8);

    #[inline(always)]
    fn zero(self) -> Self::V {
        self.splat(0.0)
    }

    /// The first `LANES` elements; a shorter slice is filled up with zeros.
    #[inline(always)]
    fn load_slice(self, from: &[f32]) -> Self::V {
        if from.len() >= Self::LANES {
            // SAFETY: long enough.
            return unsafe { self.load(from.as_ptr()) };
        }
        let mut padded = [0.0; MAX_LANES];
        padded[..from.len()].copy_from_slice(from);
        // SAFETY: MAX_LANES elements.
        unsafe { self.load(padded.as_ptr()) }
    }

    /// As many lanes as the slice has room for.
    #[inline(always)]
    fn store_slice(self, to: &mut [f32], v: Self::V) {
        if to.len() >= Self::LANES {
            // SAFETY: long enough.
            return unsafe { self.store(to.as_mut_ptr(), v) };
        }
        let mut padded = [0.0; MAX_LANES];
        // SAFETY: MAX_LANES elements.
        unsafe { self.store(padded.as_mut_ptr(), v) };
        to.copy_from_slice(&padded[..to.len()]);
    }
}

/// Asks for a line to be brought as near as the second cache. Any address will do.
#[inline(always)]
pub(crate) fn ask_for(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every such processor has the instruction, and it reads nothing.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

pub(crate) const MAX_LANES: usize = 16;

/// Defines `fn name(isa: Isa, args…)` that calls `body(token, args…)`, compiled for each instruction set. With `<Q: Bound>` the body is
/// generic over Q behind its token.
macro_rules! simd_entry {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$q:ident: $bound:path>)? ($($arg:ident: $ty:ty),* $(,)?) = $body:ident) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "as many as the body has")]
        $vis fn $name $(<$q: $bound>)? (isa: $crate::cpu::simd::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments, reason = "as many as the body has")]
            fn avx512 $(<$q: $bound>)? ($($arg: $ty),*) {
                // SAFETY: this function has the features.
                $body::<$crate::cpu::simd::Avx512 $(, $q)?>(unsafe { $crate::cpu::simd::Avx512::new() }, $($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments, reason = "as many as the body has")]
            fn avx2 $(<$q: $bound>)? ($($arg: $ty),*) {
                // SAFETY: this function has the features.
                $body::<$crate::cpu::simd::Avx2 $(, $q)?>(unsafe { $crate::cpu::simd::Avx2::new() }, $($arg),*)
            }
            match isa {
                // SAFETY: a device has only an Isa that was found on this processor.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::Isa::Avx512 => unsafe { avx512 $(::<$q>)? ($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::Isa::Avx2 => unsafe { avx2 $(::<$q>)? ($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                $crate::cpu::simd::Isa::Neon => $body::<$crate::cpu::simd::Neon $(, $q)?>($crate::cpu::simd::Neon, $($arg),*),
                _ => $body::<$crate::cpu::simd::Portable $(, $q)?>($crate::cpu::simd::Portable, $($arg),*),
            }
        }
    };
}
pub(crate) use simd_entry;

/// As `simd_entry!`, for bodies that are generic over [`dot::Dot`].
macro_rules! dot_entry {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$q:ident: $bound:path>)? ($($arg:ident: $ty:ty),* $(,)?) = $body:ident) => {
        $(#[$meta])*
        $vis fn $name $(<$q: $bound>)? (isa: $crate::cpu::simd::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
            fn vnni $(<$q: $bound>)? ($($arg: $ty),*) {
                // SAFETY: this function has the features.
                $body::<$crate::cpu::simd::Vnni $(, $q)?>(unsafe { $crate::cpu::simd::Vnni::new() }, $($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2 $(<$q: $bound>)? ($($arg: $ty),*) {
                // SAFETY: this function has the features.
                $body::<$crate::cpu::simd::Avx2 $(, $q)?>(unsafe { $crate::cpu::simd::Avx2::new() }, $($arg),*)
            }
            match isa {
                // SAFETY: a device rounds to int8 only where `Isa::has_int8_dots`.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::Isa::Avx512 => unsafe { vnni $(::<$q>)? ($($arg),*) },
                // SAFETY: a device has only an Isa that was found on this processor.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::Isa::Avx2 => unsafe { avx2 $(::<$q>)? ($($arg),*) },
                #[cfg(target_arch = "aarch64")]
                $crate::cpu::simd::Isa::Neon if $crate::cpu::simd::Bytes::<true>::is_available() => {
                    // SAFETY: just asked for.
                    let token = unsafe { $crate::cpu::simd::Bytes::<true>::new() };
                    $body::<$crate::cpu::simd::Bytes<true> $(, $q)?>(token, $($arg),*)
                }
                #[cfg(target_arch = "aarch64")]
                $crate::cpu::simd::Isa::Neon => {
                    $body::<$crate::cpu::simd::Bytes<false> $(, $q)?>($crate::cpu::simd::Bytes::WIDENING, $($arg),*)
                }
                _ => $body::<$crate::cpu::simd::Portable $(, $q)?>($crate::cpu::simd::Portable, $($arg),*),
            }
        }
    };
}
pub(crate) use dot_entry;
