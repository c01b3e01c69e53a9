//! Bicubic resizing of a table of vectors, as torch does it (a = -0.75, align_corners=False, border clamped), in f32 and in
//! its order: four sums along the width, then one along the height.

const A: f32 = -0.75;

pub(crate) struct Resize {
    pub from: [usize; 2],
    pub to: [usize; 2],
    pub depth: usize,
}

impl Resize {
    /// One row of the output: the vector at `index` in raster order.
    pub fn pixel(&self, table: &[f32], index: usize, out: &mut [f32]) {
        let (ys, wy) = taps(index / self.to[1], self.from[0], self.to[0]);
        let (xs, wx) = taps(index % self.to[1], self.from[1], self.to[1]);
        for (c, out) in out.iter_mut().enumerate() {
            let at = |y: usize, x: usize| table[(y * self.from[1] + x) * self.depth + c];
            let rows = ys.map(|y| weighted(wx, xs.map(|x| at(y, x))));
            *out = weighted(wy, rows);
        }
    }
}

fn weighted(w: [f32; 4], v: [f32; 4]) -> f32 {
    v[0] * w[0] + v[1] * w[1] + v[2] * w[2] + v[3] * w[3]
}

/// The four source indices around an output index, and their weights.
fn taps(index: usize, from: usize, to: usize) -> ([usize; 4], [f32; 4]) {
    let scale = from as f32 / to as f32;
    let source = scale * (index as f32 + 0.5) - 0.5;
    let floor = source.floor();
    let t = source - floor;
    let clamped = |offset: f32| (floor + offset).clamp(0.0, (from - 1) as f32) as usize;
    let weights = [outer(t + 1.0), inner(t), inner(1.0 - t), outer(2.0 - t)];
    ([-1.0, 0.0, 1.0, 2.0].map(clamped), weights)
}

/// The kernel for distances up to 1.
fn inner(x: f32) -> f32 {
    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
}

/// The kernel for distances from 1 to 2.
fn outer(x: f32) -> f32 {
    ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
}
