//! Takes the tensors of a quantised matrix from the files and checks them: names, types, shapes, and what a form promises.

use super::fp8::Fp8;

use super::experts::Slice;
use super::grouped::{Grouped, Levels, Words, Zeros};
use super::mxfp4::{LARGEST_SCALE, Mxfp4, Mxfp4Rows};
use super::{Checkpoint, WeightTensor};
use crate::LoadError;
use crate::published::{Cut, Scheme};
use kernels::{GROUP, WeightType};
use std::sync::Arc;

/// A module's matrix while its tensors are taken.
struct Module<'c, 'm> {
    checkpoint: &'c Checkpoint,
    name: &'m str,
    shape: [usize; 2],
}

impl Checkpoint {
    /// The matrix `[n, k]` of a module, in the form that its scheme says; without one, `MODULE.weight` in floats.
    pub fn weight(
        &self,
        module: &str,
        scheme: Option<&Scheme>,
        shape: [usize; 2],
    ) -> Result<WeightTensor<'_>, LoadError> {
        // Random weights have no form of their own.
        let Some(scheme) = scheme.filter(|_| !self.is_dummy()) else {
            return Ok(WeightTensor::Floats(self.take(&format!("{module}.weight"), &shape)?));
        };
        if let Scheme::Blocks { .. } = scheme {
            return Ok(WeightTensor::Blocks(self.take_blocks(&format!("{module}.weight"), shape)?));
        }
        let from = Module { checkpoint: self, name: module, shape };
        let kept_as = scheme.kept_as();
        match *scheme {
            Scheme::Packed { bits, group, zeros, scattered } => {
                from.packed((bits, group, scattered), zeros, kept_as)
            }
            Scheme::Bytes { group } => from.bytes(group),
            Scheme::Awq { group } => from.awq(group),
            Scheme::Gptq { bits, group, zeros, less_one, scattered } => {
                from.gptq((bits, group, scattered), (zeros, less_one), kept_as)
            }
            Scheme::Fp8 { cut, scales } => from.fp8(cut, scales),
            Scheme::Blocks { .. } => unreachable!("taken above"),
            Scheme::Mxfp4 => unreachable!("only experts in one tensor are of this form"),
        }
    }

    /// Matrices `[n / step, k]` of experts in one tensor of all: of each expert every `step`th row, from the first `step` rows on.
    pub(crate) fn fused(
        &self,
        name: &str,
        scheme: Option<&Scheme>,
        ([experts, n, k], step): ([usize; 3], usize),
    ) -> Result<Vec<Vec<WeightTensor<'_>>>, LoadError> {
        match scheme {
            None => {
                let tensor = Arc::new(self.take(name, &[experts, k, n])?);
                let slice = |expert, first| Slice::of_columns(&tensor, [n, k], expert, first..n, step);
                Ok(of_each(experts, step, |expert, first| WeightTensor::Slice(slice(expert, first))))
            }
            Some(Scheme::Mxfp4) => {
                let of = Arc::new(self.mxfp4(name, [experts, n, k])?);
                let rows = |expert, first| Mxfp4Rows { of: Arc::clone(&of), expert, first, step };
                Ok(of_each(experts, step, |expert, first| WeightTensor::Mxfp4(rows(expert, first))))
            }
            Some(_) => {
                let message = "experts in one tensor are read as floats and in MXFP4, not in this form";
                Err(self.fail(name, message.into()))
            }
        }
    }

    fn mxfp4(&self, name: &str, [experts, n, k]: [usize; 3]) -> Result<Mxfp4<'_>, LoadError> {
        let [block_name, scale_name] = ["blocks", "scales"].map(|part| format!("{name}_{part}"));
        if !k.is_multiple_of(GROUP) {
            return Err(self.fail(&block_name, format!("{k} inputs are not whole groups of {GROUP}")));
        }
        let blocks = self.take_as(&block_name, "U8", &[experts, n, k / GROUP, GROUP / 2])?;
        let scales = self.take_as(&scale_name, "U8", &[experts, n, k / GROUP])?;
        if let Some(code) = scales.iter().find(|&&code| code > LARGEST_SCALE) {
            let message = format!("has the exponent {code}, and {LARGEST_SCALE} is the largest that is read");
            return Err(self.fail(&scale_name, message));
        }
        Ok(Mxfp4 { blocks, scales, shape: [n, k] })
    }
}

/// For each expert what there is of each of its first rows.
fn of_each<T>(experts: usize, step: usize, of: impl Fn(usize, usize) -> T) -> Vec<Vec<T>> {
    (0..experts).map(|expert| (0..step).map(|first| of(expert, first)).collect()).collect()
}

impl<'c> Module<'c, '_> {
    fn tensor(&self, part: &str) -> String {
        format!("{}.{part}", self.name)
    }

    fn words(&self, part: &str, shape: [usize; 2]) -> Result<Words<'c>, LoadError> {
        Ok(Words(self.checkpoint.take_as(&self.tensor(part), "I32", &shape)?))
    }

    /// Of a group that is a whole row if there is no other.
    fn group(&self, group: Option<usize>) -> usize {
        group.unwrap_or(self.shape[1])
    }

    fn fail(&self, part: &str, message: String) -> LoadError {
        self.checkpoint.fail(&self.tensor(part), message)
    }

    fn packed(
        &self,
        (bits, group, scattered): (u32, Option<usize>, bool),
        zeros: bool,
        kept_as: Option<WeightType>,
    ) -> Result<WeightTensor<'c>, LoadError> {
        let [n, k] = self.shape;
        let (group, per_word) = (self.group(group), 32 / bits as usize);
        let words_per_row = k.div_ceil(per_word);
        let words = self.words("weight_packed", [n, words_per_row])?;
        let said = self.checkpoint.take_as(&self.tensor("weight_shape"), "I64", &[2])?;
        let said: Vec<u64> = said.as_chunks().0.iter().map(|&bytes| u64::from_le_bytes(bytes)).collect();
        if said != [n as u64, k as u64] {
            return Err(self.fail("weight_shape", format!("says {said:?}, expected {:?}", self.shape)));
        }
        let num_groups = k.div_ceil(group);
        let scales = self.checkpoint.take(&self.tensor("weight_scale"), &[n, num_groups])?;
        let zeros = match zeros {
            false => Zeros::Middle,
            true => Zeros::Rows(self.words("weight_zero_point", [n.div_ceil(per_word), num_groups])?),
        };
        let levels = Levels::Rows { words, words_per_row };
        let columns = scattered.then(|| self.group_of_columns("weight_g_idx", num_groups)).transpose()?;
        Ok(WeightTensor::Grouped(Grouped {
            shape: self.shape,
            bits,
            group,
            columns,
            levels,
            scales,
            scales_by_group: false,
            zeros,
            kept_as,
        }))
    }

    fn bytes(&self, group: Option<usize>) -> Result<WeightTensor<'c>, LoadError> {
        let [n, k] = self.shape;
        let group = self.group(group);
        let levels = self.checkpoint.take_as(&self.tensor("weight"), "I8", &[n, k])?;
        let scales = self.checkpoint.take(&self.tensor("weight_scale"), &[n, k.div_ceil(group)])?;
        Ok(WeightTensor::Grouped(Grouped {
            shape: self.shape,
            bits: 8,
            group,
            columns: None,
            levels: Levels::Bytes(levels),
            scales,
            scales_by_group: false,
            zeros: Zeros::Middle,
            kept_as: Some(WeightType::Int8),
        }))
    }

    fn awq(&self, group: usize) -> Result<WeightTensor<'c>, LoadError> {
        let [n, k] = self.shape;
        self.check_words(n, 8)?;
        let num_groups = k.div_ceil(group);
        let levels = Levels::Awq { words: self.words("qweight", [k, n / 8])? };
        let zeros = Zeros::Awq(self.words("qzeros", [num_groups, n / 8])?);
        let scales = self.checkpoint.take(&self.tensor("scales"), &[num_groups, n])?;
        Ok(WeightTensor::Grouped(Grouped {
            shape: self.shape,
            bits: 4,
            group,
            columns: None,
            levels,
            scales,
            scales_by_group: true,
            zeros,
            kept_as: Some(WeightType::Int4Zero),
        }))
    }

    fn gptq(
        &self,
        (bits, group, scattered): (u32, Option<usize>, bool),
        (has_zeros, less_one): (bool, bool),
        kept_as: Option<WeightType>,
    ) -> Result<WeightTensor<'c>, LoadError> {
        let [n, k] = self.shape;
        let (group, per_word) = (self.group(group), 32 / bits as usize);
        self.check_words(n, per_word)?;
        self.check_words(k, per_word)?;
        let num_groups = k.div_ceil(group);
        let levels = Levels::Columns { words: self.words("qweight", [k / per_word, n])? };
        let words = self.words("qzeros", [num_groups, n / per_word])?;
        let scales = self.checkpoint.take(&self.tensor("scales"), &[num_groups, n])?;
        let columns = scattered.then(|| self.group_of_columns("g_idx", num_groups)).transpose()?;
        if columns.is_none() && self.checkpoint.has(&self.tensor("g_idx")) {
            let groups = Words(self.checkpoint.take_as(&self.tensor("g_idx"), "I32", &[k])?);
            if let Some(i) = (0..k).find(|&i| groups.get(i) as usize != i / group) {
                let message = format!("column {i} is of group {}, though desc_act is false", groups.get(i));
                return Err(self.fail("g_idx", message));
            }
        }
        let add = u32::from(less_one);
        if !has_zeros {
            let middle =
                (0..per_word).fold(0u32, |word, i| word | ((1 << (bits - 1)) - add) << (bits as usize * i));
            if (0..num_groups * n / per_word).any(|i| words.get(i) != middle) {
                return Err(self.fail("qzeros", "has zeros of its own, though sym is true".into()));
            }
        }
        let zeros = if has_zeros { Zeros::Columns { words, add } } else { Zeros::Middle };
        Ok(WeightTensor::Grouped(Grouped {
            shape: self.shape,
            bits,
            group,
            columns,
            levels,
            scales,
            scales_by_group: true,
            zeros,
            kept_as,
        }))
    }

    /// Which group each column is of.
    fn group_of_columns(&self, part: &str, num_groups: usize) -> Result<Words<'c>, LoadError> {
        let k = self.shape[1];
        let groups = Words(self.checkpoint.take_as(&self.tensor(part), "I32", &[k])?);
        match (0..k).find(|&i| groups.get(i) as usize >= num_groups) {
            Some(i) => {
                let message = format!("column {i} is of group {}, and there are {num_groups}", groups.get(i));
                Err(self.fail(part, message))
            }
            None => Ok(groups),
        }
    }

    fn fp8(&self, cut: Cut, scales: &str) -> Result<WeightTensor<'c>, LoadError> {
        let [n, k] = self.shape;
        let values = self.checkpoint.take_as(&self.tensor("weight"), "F8_E4M3", &[n, k])?;
        let block = match cut {
            Cut::Blocks(block) => block,
            Cut::Rows => [1, k],
            Cut::Whole => [n, k],
        };
        let mut scales = self.tensor(scales);
        let other = self.tensor("weight_scale_inv");
        if cut == Cut::Whole && !self.checkpoint.has(&scales) && self.checkpoint.has(&other) {
            scales = other;
        }
        let shape = match cut {
            // One number, or a list of one.
            Cut::Whole if self.checkpoint.is_number(&scales) => vec![],
            Cut::Whole => vec![1],
            Cut::Blocks(_) | Cut::Rows => vec![n.div_ceil(block[0]), k.div_ceil(block[1])],
        };
        let scales = self.checkpoint.take(&scales, &shape)?;
        Ok(WeightTensor::Fp8(Fp8 { shape: self.shape, values, scales, block }))
    }

    fn check_words(&self, len: usize, per_word: usize) -> Result<(), LoadError> {
        match len.is_multiple_of(per_word) {
            true => Ok(()),
            false => Err(self.fail("qweight", format!("{len} is not a multiple of {per_word}"))),
        }
    }
}
