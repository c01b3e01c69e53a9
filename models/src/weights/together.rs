//! Takes the tensors of experts that lie together from the files, each expert as matrices of its own.

use super::experts::{ExpertPart, Together, together};
use super::{Checkpoint, WeightTensor};
use crate::LoadError;
use std::sync::Arc;

impl Checkpoint {
    /// Gate, up and down of each expert of `module`, whose tensors are `gate_up_proj` and `down_proj`: experts, width inside one, width outside.
    pub(crate) fn experts_together(
        &self,
        module: &str,
        sizes: [usize; 3],
    ) -> Result<Vec<[WeightTensor<'_>; 3]>, LoadError> {
        let names = together(module);
        let found = names.each_ref().map(|name| self.shape_of(name).unwrap_or_default());
        // Other shapes are refused where they are taken.
        let layout = Together::of(found, sizes).unwrap_or(Together::published(sizes));
        let [gate_up_shape, down_shape] = layout.shapes();
        let gate_up = Arc::new(self.take(&names[0], &gate_up_shape)?);
        let down = Arc::new(self.take(&names[1], &down_shape)?);
        let parts = |expert: usize| {
            let parts = [(&gate_up, ExpertPart::Gate), (&gate_up, ExpertPart::Up), (&down, ExpertPart::Down)];
            parts.map(|(tensor, part)| WeightTensor::Slice(layout.slice(tensor, expert, part)))
        };
        Ok((0..sizes[0]).map(parts).collect())
    }

    /// Whether the experts of `module` lie together.
    pub(crate) fn has_experts_together(&self, module: &str) -> bool {
        self.has(&together(module)[0])
    }
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
