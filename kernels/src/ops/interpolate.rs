//! interpolate_positions: a table of vectors resized to h × w, bicubic as torch has it (a = -0.75, align_corners=False, border
//! clamped); the identity when the size is the same.
//! table [H0, W0, D] f32 · out [h·w, D] f32, raster order

use crate::cpu::interpolate::{self, Resize};
use crate::cuda::interpolate as cuda_interpolate;
use crate::{Device, Tensor};

pub fn interpolate_positions(table: &Tensor, h: usize, w: usize, out: &mut Tensor) {
    let &[h0, w0, depth] = table.shape() else { panic!("interpolate_positions: table {:?}", table.shape()) };
    assert_eq!(out.rows(), h * w, "interpolate_positions: rows");
    assert_eq!(out.row_len(), depth, "interpolate_positions: width");
    if [h0, w0] == [h, w] {
        return match &out.device().clone() {
            Device::Cpu(_) => out.as_f32_mut().copy_from_slice(table.as_f32()),
            Device::Cuda(cuda) => cuda_interpolate::copy(cuda, table, out),
        };
    }
    let resize = Resize { from: [h0, w0], to: [h, w], depth };
    match &out.device().clone() {
        Device::Cpu(cpu) => {
            let table = table.as_f32();
            cpu.for_rows(out.as_f32_mut(), depth, |first, rows| {
                interpolate::pixels(cpu.isa, &resize, table, first, rows);
            });
        }
        Device::Cuda(cuda) => cuda_interpolate::interpolate(cuda, table, &resize, out),
    }
}
