//! Moving rows.

use crate::Tensor;

/// `out[t, :] = table[ids[t], :]`; `table` `[V, D]` any float, `out` `[T, D]` f32.
pub fn embedding(table: &Tensor, ids: &[u32], out: &mut Tensor) {
    gather_rows(table, ids, out);
}

/// `out[t, :] = src[rows[t], :]`; `src` `[R, D]` any float.
pub fn gather_rows(src: &Tensor, rows: &[u32], out: &mut Tensor) {
    let [r, d] = *src.shape() else { panic!("gather_rows: src") };
    assert_eq!(out.len(), rows.len() * d, "gather_rows: out");
    for (row, out) in rows.iter().zip(out.as_f32_mut().chunks_exact_mut(d)) {
        assert!((*row as usize) < r, "gather_rows: row {row} of {r}");
        for (i, out) in out.iter_mut().enumerate() {
            *out = src.get(*row as usize * d + i);
        }
    }
}

/// `dst[dst_rows[i], :] = src[src_rows[i], :]`; `[.., D]`, any floats.
pub fn scatter_rows(src: &Tensor, src_rows: &[u32], dst: &mut Tensor, dst_rows: &[u32]) {
    let d = *src.shape().last().expect("scatter_rows: src");
    assert_eq!(dst.shape().last(), Some(&d), "scatter_rows: dst");
    assert_eq!(src_rows.len(), dst_rows.len(), "scatter_rows: rows");
    let (sources, targets) = (src.len() / d, dst.len() / d);
    for (&from, &to) in src_rows.iter().zip(dst_rows) {
        let (from, to) = (from as usize, to as usize);
        assert!(from < sources && to < targets, "scatter_rows: row");
        for i in 0..d {
            dst.set(to * d + i, src.get(from * d + i));
        }
    }
}

/// `dst[slots[t], :] = src[t, :]`, rounded to the type of `dst`: how keys and values are written. `src` `[T, ..]` f32.
pub fn store_rows(src: &Tensor, dst: &mut Tensor, slots: &[u32]) {
    let w = src.len() / slots.len().max(1);
    assert_eq!(src.len(), w * slots.len(), "store_rows: src");
    for (t, slot) in slots.iter().enumerate() {
        assert!((*slot as usize + 1) * w <= dst.len(), "store_rows: slot {slot}");
        for i in 0..w {
            dst.set(*slot as usize * w + i, src.as_f32()[t * w + i]);
        }
    }
}

/// `dst[t, h, dst_offset + i] = src[t, h, src_offset + i]` for `i < len`; `src` `[T, H, D]` with `H` of `dst` or 1 (then the same for
/// all heads).
pub fn copy_slice(src: &Tensor, src_offset: usize, dst: &mut Tensor, dst_offset: usize, len: usize) {
    let [t, hs, d] = *src.shape() else { panic!("copy_slice: src") };
    let [td, h, e] = *dst.shape() else { panic!("copy_slice: dst") };
    assert_eq!(t, td, "copy_slice: rows");
    assert!(hs == h || hs == 1, "copy_slice: heads");
    assert!(src_offset + len <= d && dst_offset + len <= e, "copy_slice: slice");
    let from = src.as_f32();
    let to = dst.as_f32_mut();
    for i in 0..t {
        for head in 0..h {
            let source = &from[(i * hs + head.min(hs - 1)) * d + src_offset..][..len];
            to[(i * h + head) * e + dst_offset..][..len].copy_from_slice(source);
        }
    }
}

/// Bicubic interpolation of a position table, as torch's `interpolate(mode="bicubic", align_corners=False)`: a = -0.75, border
/// clamped, no antialias. `table` `[H0, W0, D]` any float, `out` `[h * w, D]` f32. A table of that very size is copied.
pub fn interpolate_positions(table: &Tensor, h: usize, w: usize, out: &mut Tensor) {
    let [h0, w0, d] = *table.shape() else { panic!("interpolate_positions: table") };
    assert_eq!(out.len(), h * w * d, "interpolate_positions: out");
    let out = out.as_f32_mut();
    for y in 0..h {
        let rows = taps(y, h, h0);
        for x in 0..w {
            let columns = taps(x, w, w0);
            let out = &mut out[(y * w + x) * d..][..d];
            if (h, w) == (h0, w0) {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = table.get((y * w + x) * d + i);
                }
                continue;
            }
            for (i, out) in out.iter_mut().enumerate() {
                let mut sum = 0.0;
                for (row, wy) in rows {
                    let mut line = 0.0;
                    for (column, wx) in columns {
                        line += wx * table.get((row * w0 + column) * d + i);
                    }
                    sum += wy * line;
                }
                *out = sum;
            }
        }
    }
}

/// The four source positions of target position `i` and their weights.
fn taps(i: usize, size: usize, source: usize) -> [(usize, f32); 4] {
    const A: f32 = -0.75;
    let at = (i as f32 + 0.5) * (source as f32 / size as f32) - 0.5;
    let base = at.floor();
    let f = at - base;
    let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let weights = [far(f + 1.0), near(f), near(1.0 - f), far(2.0 - f)];
    std::array::from_fn(|k| {
        let at = base as isize + k as isize - 1;
        (at.clamp(0, source as isize - 1) as usize, weights[k])
    })
}
