//! How a body that is written once becomes a function for each instruction set.

// Bodies of kernels loop over indices: adapters of iterators, and functions passed as values, are not always inlined into a
// function with more features than they have, and then every vector goes through memory.

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

/// As `simd_entry!`, for bodies that are generic over `Dot`.
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
