//! Experts of a layer that lie together: one tensor for gates and ups, one for downs.
//!
//! ```text
//!                 as published            as newer versions keep it in memory
//! gate_up_proj    [E, H, 2 I]             [E, 2 I, H]              gates before ups
//! down_proj       [E, I, H]               [E, H, I]
//! ```
//! Which of the two it is follows from both shapes together, whatever the sizes.

use super::host::HostWeights;
use super::{Checkpoint, WeightTensor};
use crate::LoadError;
use kernels::{DType, HostTensor, WeightRows};
use std::sync::Arc;

/// A matrix `[n, k]` within a tensor of floats.
pub struct Slice<'a> {
    tensor: Arc<HostWeights<'a>>,
    shape: [usize; 2],
    /// The number of its first value, and how far the next row is from a row, the next column from a column.
    start: usize,
    steps: [usize; 2],
}

impl Slice<'_> {
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    pub fn read_f32(&self, row: usize, out: &mut [f32]) {
        let ([row_step, step], view) = (self.steps, self.tensor.view());
        let first = self.start + row * row_step;
        if step == 1 {
            let size = view.dtype.size();
            let data = &view.data[first * size..(first + out.len()) * size];
            let row = HostTensor { shape: &[1, out.len()], data, ..view };
            return WeightRows::read_f32(&row, 0, out);
        }
        // Rows that are packed after each other lie beside each other here, so that what one fetches is there for the next.
        let bytes = |column: usize| &view.data[(first + column * step) * view.dtype.size()..];
        let halves = |column: usize| *bytes(column).first_chunk::<2>().expect("within the tensor");
        let columns = out.iter_mut().enumerate();
        match view.dtype {
            DType::F32 => columns.for_each(|(column, value)| {
                let bytes = bytes(column).first_chunk::<4>().expect("within the tensor");
                *value = f32::from_le_bytes(*bytes);
            }),
            DType::BF16 => columns
                .for_each(|(column, value)| *value = half::bf16::from_le_bytes(halves(column)).to_f32()),
            DType::F16 => {
                columns.for_each(|(column, value)| *value = half::f16::from_le_bytes(halves(column)).to_f32())
            }
            other => unreachable!("weights are floats, not {other:?}"),
        }
    }
}

/// How experts lie in their two tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Together {
    is_plain: bool,
    experts: usize,
    /// Width inside an expert, and outside.
    inner: usize,
    hidden: usize,
}

/// A matrix of an expert.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum ExpertPart {
    Gate,
    Up,
    Down,
}

impl Together {
    /// Of tensors of these shapes; `None`: of other sizes.
    pub fn of([gate_up, down]: [&[usize]; 2], [experts, inner, hidden]: [usize; 3]) -> Option<Self> {
        let layouts = [true, false].map(|is_plain| Self { is_plain, experts, inner, hidden });
        layouts.into_iter().find(|layout| layout.shapes() == [gate_up, down])
    }

    /// Of both tensors.
    fn shapes(&self) -> [[usize; 3]; 2] {
        let Self { is_plain, experts, inner, hidden } = *self;
        match is_plain {
            true => [[experts, 2 * inner, hidden], [experts, hidden, inner]],
            false => [[experts, hidden, 2 * inner], [experts, inner, hidden]],
        }
    }

    /// Of the tensor that has it.
    pub fn slice<'a>(&self, tensor: &Arc<HostWeights<'a>>, expert: usize, part: ExpertPart) -> Slice<'a> {
        let (inner, hidden) = (self.inner, self.hidden);
        // Its first row and number of rows, of so many of the expert, and columns.
        let [first, n, rows, k] = match part {
            ExpertPart::Gate => [0, inner, 2 * inner, hidden],
            ExpertPart::Up => [inner, inner, 2 * inner, hidden],
            ExpertPart::Down => [0, hidden, hidden, inner],
        };
        let steps = if self.is_plain { [k, 1] } else { [1, rows] };
        let start = expert * rows * k + first * steps[0];
        Slice { tensor: Arc::clone(tensor), shape: [n, k], start, steps }
    }
}

impl Checkpoint {
    /// Gate, up and down of each expert of `module`, whose tensors are `gate_up_proj` and `down_proj`: experts, width inside one, width outside.
    pub(crate) fn experts_together(
        &self,
        module: &str,
        sizes: [usize; 3],
    ) -> Result<Vec<[WeightTensor<'_>; 3]>, LoadError> {
        let names = together(module);
        let published = Together { is_plain: false, experts: sizes[0], inner: sizes[1], hidden: sizes[2] };
        let found = names.each_ref().map(|name| self.shape_of(name).unwrap_or_default());
        // Other shapes are refused where they are taken.
        let layout = Together::of(found, sizes).unwrap_or(published);
        let [gate_up_shape, down_shape] = layout.shapes();
        let gate_up = Arc::new(self.take(&names[0], &gate_up_shape)?);
        let down = Arc::new(self.take(&names[1], &down_shape)?);
        let parts = |expert: usize| {
            let parts = [(&gate_up, ExpertPart::Gate), (&gate_up, ExpertPart::Up), (&down, ExpertPart::Down)];
            parts.map(|(tensor, part)| WeightTensor::Slice(layout.slice(tensor, expert, part)))
        };
        Ok((0..layout.experts).map(parts).collect())
    }

    /// Whether the experts of `module` lie together.
    pub(crate) fn has_experts_together(&self, module: &str) -> bool {
        self.has(&together(module)[0])
    }
}

/// The names of both tensors.
pub(super) fn together(module: &str) -> [String; 2] {
    ["gate_up_proj", "down_proj"].map(|part| format!("{module}.{part}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelFiles;
    use serde_json::json;

    /// A file with the two tensors of experts in f32, in these shapes, whose values are their numbers.
    fn checkpoint(shapes: [[usize; 3]; 2]) -> Checkpoint {
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, shape) in together("m.experts").into_iter().zip(shapes) {
            let start = data.len();
            data.extend((0..shape.iter().product::<usize>()).flat_map(|i| (i as f32).to_le_bytes()));
            let place = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
            header.insert(name, place);
        }
        let header = serde_json::to_vec(&header).unwrap();
        let file = [&(header.len() as u64).to_le_bytes(), &header[..], &data[..]].concat();
        let files: Vec<(&str, &[u8])> = vec![("model.safetensors", file.leak())];
        Checkpoint::open(&ModelFiles::Embedded(files.leak())).unwrap()
    }

    #[test]
    fn both_layouts_are_told_apart_by_their_shapes() {
        // The second has tensors of gates and ups that are square, the third downs that are.
        for [inner, hidden] in [[3, 5], [2, 4], [4, 4]] {
            let experts = 2;
            for is_plain in [true, false] {
                let shapes = match is_plain {
                    true => [[experts, 2 * inner, hidden], [experts, hidden, inner]],
                    false => [[experts, hidden, 2 * inner], [experts, inner, hidden]],
                };
                let checkpoint = checkpoint(shapes);
                assert!(checkpoint.has_experts_together("m.experts"));
                let found = checkpoint.experts_together("m.experts", [experts, inner, hidden]).unwrap();
                let at = |expert: usize, row: usize, column: usize, rows: usize, columns: usize| {
                    let inside = if is_plain { row * columns + column } else { column * rows + row };
                    (expert * rows * columns + inside) as f32
                };
                for (expert, [gate, up, down]) in found.iter().enumerate() {
                    let of = |first: usize, n: usize, rows: usize, columns: usize| -> Vec<f32> {
                        let places = (0..n).flat_map(|row| (0..columns).map(move |column| (row, column)));
                        places.map(|(row, column)| at(expert, first + row, column, rows, columns)).collect()
                    };
                    assert_eq!(gate.to_f32(), of(0, inner, 2 * inner, hidden), "{inner} {hidden} {is_plain}");
                    assert_eq!(
                        up.to_f32(),
                        of(inner, inner, 2 * inner, hidden),
                        "{inner} {hidden} {is_plain}"
                    );
                    assert_eq!(down.to_f32(), of(0, hidden, hidden, inner), "{inner} {hidden} {is_plain}");
                }
            }
        }
    }

    #[test]
    fn other_shapes_are_named() {
        let Err(error) = checkpoint([[2, 5, 6], [2, 5, 3]]).experts_together("m.experts", [2, 3, 5]) else {
            panic!("downs of another layout")
        };
        assert!(error.to_string().contains("m.experts.down_proj"), "{error}");
    }
}
