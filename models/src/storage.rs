//! Which type each weight is kept in: a function of the options, of what the checkpoint says of itself, and of the weight's name, so
//! that the plan and the loader cannot differ.
//!
//! | part | float | int8 | int4 | why |
//! |---|---|---|---|---|
//! | linear layers and experts of the decoder | dtype | int8 | int4 | nearly all weights: what a step reads |
//! | up-projections of latent attention | dtype | int8 | int8 | small, and they reach every score and value |
//! | head | dtype | dtype | int8 | its rounding goes straight into the logits; at int4 it would be half of what a step reads |
//! | router | float32 | float32 | float32 | a choice of experts must not hang on a rounding |
//! | embedding, norms, biases | as ever | as ever | as ever | a step reads a few rows of them |
//! | vision tower, projector | dtype | dtype | dtype | small beside the decoder, and limited by arithmetic |
//!
//! A dtype of bf16 is compact on the processor where that pays: the same bits in 12 bits a weight ([`Storage::choose_layout`]). The vision tower's is
//! not: its products are many rows' and wait for no memory.
//!
//! What a checkpoint holds quantised stays as it is, whatever the options ask for.

use crate::config::ModelConfig;
use crate::parts::{Part, Quantization, WeightLayout, published_name};
use crate::published::{Published, Scheme};
use crate::{
    DTypeChoice, HeadScreeningChoice, LoadError, LoadOptions, QuantizationChoice, WeightLayoutChoice,
};
use kernels::{ActivationType, DType, Device, WeightType};

#[derive(Debug, Clone)]
pub struct Storage {
    /// Of everything that is not quantised: matrices, embedding, and the KV cache unless another type is asked for.
    pub float: DType,
    pub quantization: Quantization,
    pub layout: WeightLayout,
    /// Whether the head has a coarse copy beside it (`kernels::Screen`).
    pub screens_head: bool,
    /// How the checkpoint's own quantised weights are to be read.
    pub(crate) published: Option<Published>,
}

impl Storage {
    /// All in one type of floats.
    pub fn floats(float: DType) -> Self {
        let (quantization, layout) = (Quantization::None, WeightLayout::Plain);
        Self { float, quantization, layout, screens_head: false, published: None }
    }

    /// What weights are kept as under these options.
    pub fn of_model(config: &ModelConfig, options: &LoadOptions) -> Self {
        let float = match options.dtype {
            DTypeChoice::Auto => config.dtype,
            DTypeChoice::F32 => DType::F32,
            DTypeChoice::BF16 => DType::BF16,
            DTypeChoice::F16 => DType::F16,
        };
        let quantization = match options.quantization {
            QuantizationChoice::Auto => config.written_for,
            QuantizationChoice::Int8 => Quantization::Int8,
            QuantizationChoice::Int4 => Quantization::Int4,
        };
        Self { quantization, published: config.published.clone(), ..Self::floats(float) }
    }

    /// Decides the form of matrices in bf16, for this device. Compact bf16 pays where few rows wait for memory.
    pub(crate) fn choose_layout(
        &mut self,
        choice: WeightLayoutChoice,
        device: &Device,
    ) -> Result<(), LoadError> {
        let fail = |message: String| Err(LoadError::Option { option: "weight_layout", message });
        self.layout = match (choice, device) {
            (WeightLayoutChoice::Compact, Device::Cuda(_)) => {
                return fail("a GPU has no compact weights: use auto or plain".into());
            }
            (WeightLayoutChoice::Compact, _) if self.float != DType::BF16 => {
                return fail(format!(
                    "compact is a form of bfloat16, and weights are kept in {}",
                    self.float
                ));
            }
            (WeightLayoutChoice::Compact, _) => WeightLayout::Compact,
            (WeightLayoutChoice::Auto, _) if self.float == DType::BF16 && device.prefers_compact() => {
                WeightLayout::Compact
            }
            (WeightLayoutChoice::Auto | WeightLayoutChoice::Plain, _) => WeightLayout::Plain,
        };
        Ok(())
    }

    /// Weights of a head from which on a coarse copy pays: below, a step reads little of it.
    pub const SCREENED_FROM: usize = 1 << 24;

    /// Decides whether the head of so many weights, kept in this type, gets a coarse copy. After `choose_layout`.
    pub(crate) fn choose_screening(
        &mut self,
        choice: HeadScreeningChoice,
        (head, num_weights): (WeightType, usize),
        device: &Device,
    ) -> Result<(), LoadError> {
        let fail = |message: String| Err(LoadError::Option { option: "head_screening", message });
        self.screens_head = match (choice, device) {
            (HeadScreeningChoice::On, Device::Cuda(_)) => {
                return fail("a GPU computes the whole head: use auto or off".into());
            }
            (HeadScreeningChoice::On, _) if head.is_quantised() => {
                return fail(format!(
                    "the head is kept in {head}, and a coarse copy would save nothing: use auto or off"
                ));
            }
            (HeadScreeningChoice::On, _) => true,
            (HeadScreeningChoice::Auto, Device::Cpu(_)) => {
                num_weights >= Self::SCREENED_FROM
                    && !head.is_quantised()
                    && device.activation_type(WeightType::Int8) == ActivationType::Int8
            }
            (HeadScreeningChoice::Auto | HeadScreeningChoice::Off, _) => false,
        };
        Ok(())
    }

    /// The form in which the checkpoint holds a module's weight, if it is not floats.
    pub fn scheme(&self, part: Part, module: &str) -> Option<&Scheme> {
        self.published.as_ref().and_then(|published| published.scheme(part, module))
    }

    pub fn of(&self, part: Part, module: &str) -> WeightType {
        let held = self.scheme(part, module).and_then(Scheme::kept_as);
        match (part, held, self.quantization) {
            (Part::Router, ..) => WeightType::F32,
            (Part::Linear | Part::Head | Part::Vision, Some(held), _) => held,
            (Part::Vision, None, _) | (_, _, Quantization::None) | (Part::Head, _, Quantization::Int8) => {
                match self.layout {
                    WeightLayout::Compact if part.may_be_compact() => WeightType::CompactBf16,
                    _ => self.float.into(),
                }
            }
            (Part::Linear, None, Quantization::Int4) => WeightType::Int4,
            (Part::Linear | Part::Absorbed | Part::Head, ..) => WeightType::Int8,
        }
    }

    /// The one type of matrices that are kept as one.
    pub fn of_all<'m>(
        &self,
        part: Part,
        modules: impl Iterator<Item = &'m str>,
    ) -> Result<WeightType, LoadError> {
        let mut first: Option<(&str, WeightType)> = None;
        for module in modules {
            let stored_as = self.of(part, module);
            match first {
                None => first = Some((module, stored_as)),
                Some((other, kept)) if kept != stored_as => {
                    let file = self.published.as_ref().map_or("", |published| &published.file);
                    let message = format!(
                        "{other} would be {kept} and {module} {stored_as}, but they are one matrix here"
                    );
                    return Err(LoadError::config(file, "quantization_config", message));
                }
                Some(_) => {}
            }
        }
        Ok(first.expect("there are matrices").1)
    }

    /// The types that weights may be kept in, beside those that are f32 whatever is asked for.
    pub fn weight_types(&self) -> Vec<WeightType> {
        let asked: &[WeightType] = match self.quantization {
            Quantization::None => &[],
            Quantization::Int8 => &[WeightType::Int8],
            Quantization::Int4 => &[WeightType::Int4, WeightType::Int8],
        };
        let is_kept = self.published.as_ref().is_some_and(Published::is_kept);
        let quantised = WeightType::ALL.into_iter().filter(|kept| kept.is_quantised());
        let quantised = quantised.filter(|kept| is_kept || asked.contains(kept));
        let compact = (self.layout == WeightLayout::Compact).then_some(WeightType::CompactBf16);
        std::iter::once(self.float.into()).chain(compact).chain(quantised).collect()
    }

    /// What activations are rounded to before products with most weights.
    pub fn activations(&self, device: &Device) -> &'static str {
        let quantises = self.weight_types().iter().any(|kept| kept.is_quantised());
        let is_compact = self.layout == WeightLayout::Compact;
        let to_int16 = is_compact && device.activation_type(WeightType::CompactBf16) == ActivationType::Int16;
        match device {
            // The head remains in bf16, and is multiplied in another way than a plain one.
            Device::Cpu(_) if quantises && to_int16 => "int8 and int16",
            Device::Cpu(_) if quantises => device.activation_type(WeightType::Int8).name(),
            Device::Cpu(_) if is_compact => device.activation_type(WeightType::CompactBf16).name(),
            Device::Cpu(_) => device.activation_type(self.float.into()).name(),
            // Its instructions take both sides in one type of floats, which for levels is bf16.
            Device::Cuda(_) if quantises => published_name(DType::BF16),
            Device::Cuda(_) => published_name(self.float),
        }
    }

    /// What weights are quantised to, for people; `None`: nothing is.
    pub fn describe(&self) -> Option<&'static str> {
        match &self.published {
            Some(published) => Some(published.method),
            None => self.quantization.name(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_keep_their_precision() {
        let of = |quantization, part| {
            Storage { quantization, ..Storage::floats(DType::BF16) }.of(part, "model.layers.0.x")
        };
        use WeightType::{BF16, F32, Int4, Int8};
        let parts = [Part::Linear, Part::Absorbed, Part::Head, Part::Router, Part::Vision];
        for (quantization, expected) in [
            (Quantization::None, [BF16, BF16, BF16, F32, BF16]),
            (Quantization::Int8, [Int8, Int8, BF16, F32, BF16]),
            (Quantization::Int4, [Int4, Int8, Int8, F32, BF16]),
        ] {
            assert_eq!(parts.map(|part| of(quantization, part)), expected, "{quantization:?}");
            let types = Storage { quantization, ..Storage::floats(DType::BF16) }.weight_types();
            assert!(expected.iter().all(|kept| *kept == F32 || types.contains(kept)), "{quantization:?}");
            // What waits for no memory stays plain.
            let compact =
                Storage { quantization, layout: WeightLayout::Compact, ..Storage::floats(DType::BF16) };
            let last = parts.len() - 1;
            for (i, (part, expected)) in parts.into_iter().zip(expected).enumerate() {
                let expected = if expected == BF16 && i < last { WeightType::CompactBf16 } else { expected };
                assert_eq!(compact.of(part, "model.layers.0.x"), expected, "{quantization:?} {part:?}");
                assert!(expected == F32 || compact.weight_types().contains(&expected));
            }
            assert!(types.iter().all(|kept| expected.contains(kept)), "{quantization:?}");
        }
    }
}
