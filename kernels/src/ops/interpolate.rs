//! interpolate_positions: a table of vectors resized to h × w, bicubic as torch has it (a = -0.75, align_corners=False, border
//! clamped); the identity when the size is the same.
//! interpolate_corners: the same, bilinear and corner to corner (align_corners=True).
//! table [H0, W0, D] f32 · out [h·w, D] f32, raster order

use crate::cpu::interpolate::{self, Resize};
use crate::cuda::interpolate as cuda_interpolate;
use crate::{Device, Tensor};

pub fn interpolate_positions(table: &Tensor, h: usize, w: usize, out: &mut Tensor) {
    let resize = resize("interpolate_positions", table, [h, w], out);
    if resize.from == resize.to {
        return match &out.device().clone() {
            Device::Cpu(_) => out.as_f32_mut().copy_from_slice(table.as_f32()),
            Device::Cuda(cuda) => cuda_interpolate::copy(cuda, table, out),
        };
    }
    match &out.device().clone() {
        Device::Cpu(cpu) => {
            let table = table.as_f32();
            cpu.for_rows(out.as_f32_mut(), resize.depth, |first, rows| {
                interpolate::pixels(cpu.isa, &resize, table, first, rows);
            });
        }
        Device::Cuda(cuda) => cuda_interpolate::interpolate(cuda, table, &resize, out),
    }
}

pub fn interpolate_corners(table: &Tensor, h: usize, w: usize, out: &mut Tensor) {
    let resize = resize("interpolate_corners", table, [h, w], out);
    match &out.device().clone() {
        Device::Cpu(cpu) => {
            let table = table.as_f32();
            cpu.for_rows(out.as_f32_mut(), resize.depth, |first, rows| {
                interpolate::corners(cpu.isa, &resize, table, first, rows);
            });
        }
        Device::Cuda(cuda) => cuda_interpolate::corners(cuda, table, &resize, out),
    }
}

fn resize(op: &str, table: &Tensor, to: [usize; 2], out: &Tensor) -> Resize {
    let &[h0, w0, depth] = table.shape() else { panic!("{op}: table {:?}", table.shape()) };
    assert_eq!(out.rows(), to[0] * to[1], "{op}: rows");
    assert_eq!(out.row_len(), depth, "{op}: width");
    Resize { from: [h0, w0], to, depth }
}
