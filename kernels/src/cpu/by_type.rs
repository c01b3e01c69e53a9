//! Which format a panel has in a product, by the types of its two sides.

/// Calls `$f::<format>($args)` for the type of weights and what activations beside them are.
macro_rules! by_weight_type {
    ($stored_as:expr, $rounded_to:expr, $f:ident($($arg:expr),*)) => {{
        use $crate::cpu::{compact, dot, floats, grouped, tile};
        match ($stored_as, $rounded_to) {
            ($crate::WeightType::BF16, $crate::ActivationType::BF16) => $f::<dot::Bf16Pairs>($($arg),*),
            ($crate::WeightType::CompactBf16, $crate::ActivationType::BF16) => $f::<compact::CompactPairs>($($arg),*),
            ($crate::WeightType::CompactBf16, $crate::ActivationType::Int16) => $f::<compact::CompactIntegers>($($arg),*),
            ($crate::WeightType::Int8, $crate::ActivationType::Int8) => $f::<dot::Levels<grouped::Int8>>($($arg),*),
            ($crate::WeightType::Int4, $crate::ActivationType::Int8) => $f::<dot::Levels<grouped::Int4>>($($arg),*),
            ($crate::WeightType::Int4Zero, $crate::ActivationType::Int8) => $f::<dot::Levels<grouped::Int4Zero>>($($arg),*),
            ($crate::WeightType::F32, $crate::ActivationType::F32) => $f::<floats::Floats<tile::F32>>($($arg),*),
            ($crate::WeightType::BF16, $crate::ActivationType::F32) => $f::<floats::Floats<tile::Bf16>>($($arg),*),
            ($crate::WeightType::CompactBf16, $crate::ActivationType::F32) => $f::<compact::CompactFloats>($($arg),*),
            ($crate::WeightType::F16, $crate::ActivationType::F32) => $f::<floats::Floats<tile::F16>>($($arg),*),
            ($crate::WeightType::Int8, $crate::ActivationType::F32) => $f::<grouped::Int8>($($arg),*),
            ($crate::WeightType::Int4, $crate::ActivationType::F32) => $f::<grouped::Int4>($($arg),*),
            ($crate::WeightType::Int4Zero, $crate::ActivationType::F32) => $f::<grouped::Int4Zero>($($arg),*),
            (weights, activations) => unreachable!("activations of {activations} beside weights of {weights}"),
        }
    }};
}
pub(crate) use by_weight_type;
