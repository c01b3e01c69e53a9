//! What the tests of ops share: devices to try, numbers to fill in, comparisons.

use half::{bf16, f16};
use kernels::{
    ActivationChoice, ActivationType, CpuOptions, DType, Device, ExpertSource, Experts, GroupedRow,
    HostTensor, Isa, Tensor, WeightType,
};

pub const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// Every instruction set of this machine, with one thread and with more.
pub fn devices() -> Vec<Device> {
    let isas = Isa::ALL.into_iter().filter(|isa| isa.is_available());
    isas.flat_map(|isa| [1, 3].map(|threads| device(isa, threads))).collect()
}

/// Activations stay f32.
pub fn device(isa: Isa, threads: usize) -> Device {
    let options = CpuOptions {
        threads: Some(threads),
        isa: Some(isa),
        activations: ActivationChoice::F32,
        ..CpuOptions::default()
    };
    Device::cpu_with(options).expect("an available instruction set")
}

/// Every instruction set of this machine that rounds activations, with one thread and with more: to bf16, or to int8, or to both, or as it does
/// unless it is told.
pub fn rounding_devices() -> Vec<Device> {
    let isas = || Isa::ALL.into_iter().filter(|isa| isa.is_available());
    let of = |isa, activations| {
        [1, 3].map(|threads| CpuOptions {
            threads: Some(threads),
            isa: Some(isa),
            activations,
            ..CpuOptions::default()
        })
    };
    let told = isas().flat_map(|isa| [of(isa, ActivationChoice::BF16), of(isa, ActivationChoice::Int8)]);
    // The only one that cannot be asked for by name.
    let to_int16 = |device: &Device| device.activation_type(WeightType::CompactBf16) == ActivationType::Int16;
    let untold = isas().flat_map(|isa| of(isa, ActivationChoice::Auto));
    let untold = untold.filter_map(|options| Device::cpu_with(options).ok()).filter(to_int16);
    told.flatten().filter_map(|options| Device::cpu_with(options).ok()).chain(untold).collect()
}

/// Numbers in ±1 that look random, the same for the same seed.
pub fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..16).for_each(|_| {
        next();
    });
    (0..len).map(|_| next()).collect()
}

/// Values rounded to a type: its bytes, and what they stand for.
pub struct Host {
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
    pub values: Vec<f64>,
}

impl Host {
    pub fn new(dtype: DType, shape: &[usize], values: &[f32]) -> Self {
        let encode = |v: f32| -> (Vec<u8>, f64) {
            match dtype {
                DType::F32 => (v.to_le_bytes().to_vec(), f64::from(v)),
                DType::BF16 => (bf16::from_f32(v).to_le_bytes().to_vec(), bf16::from_f32(v).to_f64()),
                DType::F16 => (f16::from_f32(v).to_le_bytes().to_vec(), f16::from_f32(v).to_f64()),
                DType::I32 | DType::U8 => panic!("not a float"),
            }
        };
        let (bytes, values): (Vec<Vec<u8>>, Vec<f64>) = values.iter().map(|&v| encode(v)).unzip();
        Self { dtype, shape: shape.to_vec(), bytes: bytes.concat(), values }
    }

    pub fn random(dtype: DType, shape: &[usize], seed: u64) -> Self {
        Self::new(dtype, shape, &values(seed, shape.iter().product()))
    }

    pub fn view(&self) -> HostTensor<'_> {
        HostTensor::new(self.dtype, &self.shape, &self.bytes).expect("as many bytes as the shape says")
    }

    pub fn tensor(&self, device: &Device) -> Tensor {
        Tensor::from_host(device, self.view())
    }

    /// Rows of the last dimension.
    pub fn rows(&self) -> Vec<Vec<f64>> {
        rows(&self.values, *self.shape.last().expect("a shape has dimensions"))
    }
}

/// Gate and up `[I, H]` and down `[H, I]` of each expert.
pub fn random_experts(dtype: DType, [count, hidden, inner]: [usize; 3]) -> Vec<[Host; 3]> {
    let part = |expert, (part, shape): (u64, [usize; 2])| Host::random(dtype, &shape, 3 * expert + part);
    let shapes = [(0, [inner, hidden]), (1, [inner, hidden]), (2, [hidden, inner])];
    (0..count as u64).map(|expert| shapes.map(|shape| part(expert, shape))).collect()
}

pub fn pack_experts(device: &Device, stored_as: WeightType, hosts: &[[Host; 3]]) -> Experts {
    let sources: Vec<ExpertSource> = hosts
        .iter()
        .map(|[gate, up, down]| ExpertSource { gate: gate.view(), up: up.view(), down: down.view() })
        .collect();
    Experts::pack(device, stored_as, &sources)
}

/// What a matrix of rows of `k` weights holds when it is packed from these values, row by row.
pub fn kept(stored_as: WeightType, values: &[f64], k: usize) -> Vec<Vec<f64>> {
    let narrow: Vec<f32> = values.iter().map(|&v| v as f32).collect();
    if let Some(dtype) = stored_as.float() {
        return Host::new(dtype, &[values.len() / k, k], &narrow).rows();
    }
    let row = |values: &[f32]| {
        let (mut groups, mut out) = (GroupedRow::new(k), vec![0.0; k]);
        groups.quantize(stored_as, values);
        groups.dequantize(&mut out);
        out.into_iter().map(f64::from).collect()
    };
    narrow.chunks(k).map(row).collect()
}

/// What they count as in a product on this device.
pub fn multiplied(device: &Device, stored_as: WeightType, values: &[f64], k: usize) -> Vec<Vec<f64>> {
    let mut kept = kept(stored_as, values, k);
    if device.activation_type(stored_as) == ActivationType::Int16 {
        kept.iter_mut().flat_map(|row| row.chunks_mut(256)).for_each(to_levels);
    }
    kept
}

/// Weights of one row and block of compact bf16, as whole numbers of 14 bits times a power of two.
pub fn to_levels(block: &mut [f64]) {
    let upper = |w: f64| bf16::from_f64(w).to_bits() >> 8 & 127;
    let inside = |base: u16| block.iter().filter(|&&w| (base..base + 8).contains(&upper(w))).count();
    // The first of those with most of them.
    let base = (0..=120).rev().max_by_key(|&base| inside(base)).unwrap();
    let step = f64::exp2(2.0 * f64::from(base) - 124.0);
    for w in block {
        *w = match upper(*w) {
            _ if base == 120 => f64::NAN,
            upper if upper < base => 0.0,
            upper if upper > base + 7 => *w,
            _ => step * (*w / step + 0.5).floor(),
        };
    }
}

pub fn rows(values: &[f64], len: usize) -> Vec<Vec<f64>> {
    values.chunks(len).map(<[f64]>::to_vec).collect()
}

/// Within `tolerance` of the largest expected magnitude (at least 1).
pub fn assert_close(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    let scale = expected.iter().fold(1.0, |max: f64, v| max.max(v.abs()));
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(found) - expected).abs();
        assert!(error <= tolerance * scale, "{what}: element {i} is {found}, not {expected}");
    }
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}
