//! Pictures and weights from integer formulas, as tools/golden writes them: what is too large for a fixture.
#![allow(dead_code, reason = "every test file uses its part")]

/// `[height, width, 3]`: gradients, and a disc.
pub fn smooth(width: usize, height: usize, seed: usize) -> Vec<u8> {
    let radius = width.min(height) as i64 / 3;
    let pixel = |x: usize, y: usize| {
        let channels =
            [7 * x + 3 * y + seed, x * y / 16 + 5 * seed, x * x / 8 + 11 * y + seed].map(|c| (c % 256) as u8);
        let [from_middle_x, from_middle_y] =
            [(x, width), (y, height)].map(|(at, of)| 2 * at as i64 - of as i64);
        let inside = from_middle_x.pow(2) + from_middle_y.pow(2) <= (2 * radius).pow(2);
        channels.map(|c| if inside { 255 - c } else { c })
    };
    (0..height).flat_map(|y| (0..width).flat_map(move |x| pixel(x, y))).collect()
}

/// `[height, width, 3]`: without any smoothness.
pub fn noise(width: usize, height: usize, seed: usize) -> Vec<u8> {
    let byte = |index: usize| {
        let n = (index as u32 + 1 + 7919 * seed as u32).wrapping_mul(2654435761);
        ((n ^ (n >> 15)).wrapping_mul(2246822519) >> 24) as u8
    };
    (0..width * height * 3).map(byte).collect()
}

/// FNV-1a of 32 bits.
pub fn fnv1a(data: &[u8]) -> u32 {
    data.iter().fold(0x811c_9dc5, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// A tensor of Chameleon's encoder of pictures, by its name and shape.
fn weights(name: &str, shape: &[usize]) -> Vec<f32> {
    let seed = fnv1a(name.as_bytes());
    let inputs: usize = shape[1..].iter().product();
    let value = |i: u32| {
        let n = i.wrapping_mul(2654435761).wrapping_add(seed);
        let n = (n ^ (n >> 15)).wrapping_mul(2246822519);
        let u = f64::from((n ^ (n >> 13)) >> 8) / f64::from(1 << 23) - 1.0;
        let value = match shape.len() {
            _ if name.ends_with(".bias") => u / 10.0,
            1 => 1.0 + u / 4.0,
            4 => u * (3.0 / inputs as f64).sqrt(),
            _ => u,
        };
        value as f32
    };
    (0..shape.iter().product::<usize>() as u32).map(value).collect()
}

/// A tensor as safetensors names its type, its shape, and its bytes.
pub type Stored = (String, &'static str, Vec<usize>, Vec<u8>);

/// All tensors of the encoder of tests/fixtures/chameleon/pictures.json: a base of 32 channels, two resolutions, one block at each.
pub fn encoder() -> Vec<Stored> {
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    let mut convolution = |name: &str, [from, to]: [usize; 2], side: usize| {
        shapes.push((format!("{name}.weight"), vec![to, from, side, side]));
        shapes.push((format!("{name}.bias"), vec![to]));
    };
    convolution("encoder.conv_in", [3, 32], 3);
    for (name, channels) in [
        ("encoder.down.0.block.0", [32, 32]),
        ("encoder.down.1.block.0", [32, 64]),
        ("encoder.mid.block_1", [64, 64]),
        ("encoder.mid.block_2", [64, 64]),
    ] {
        convolution(&format!("{name}.conv1"), channels, 3);
        convolution(&format!("{name}.conv2"), [channels[1]; 2], 3);
    }
    convolution("encoder.down.1.block.0.nin_shortcut", [32, 64], 1);
    convolution("encoder.down.0.downsample.conv", [32, 32], 3);
    for part in ["q", "k", "v", "proj_out"] {
        convolution(&format!("encoder.mid.attn_1.{part}"), [64, 64], 1);
    }
    convolution("encoder.conv_out", [64, 8], 3);
    convolution("quant_conv", [8, 4], 1);
    convolution("post_quant_conv", [4, 8], 1);
    for (name, channels) in [
        ("encoder.down.0.block.0.norm1", 32),
        ("encoder.down.0.block.0.norm2", 32),
        ("encoder.down.1.block.0.norm1", 32),
        ("encoder.down.1.block.0.norm2", 64),
        ("encoder.mid.block_1.norm1", 64),
        ("encoder.mid.block_1.norm2", 64),
        ("encoder.mid.block_2.norm1", 64),
        ("encoder.mid.block_2.norm2", 64),
        ("encoder.mid.attn_1.norm", 64),
        ("encoder.norm_out", 64),
    ] {
        shapes.extend(["weight", "bias"].map(|what| (format!("{name}.{what}"), vec![channels])));
    }
    shapes.push(("quantize.embedding.weight".into(), vec![16, 4]));
    let stored = |(name, shape): (String, Vec<usize>)| {
        let name = format!("model.vqmodel.{name}");
        let data = weights(&name, &shape).iter().flat_map(|value| value.to_le_bytes()).collect();
        (name, "F32", shape, data)
    };
    shapes.into_iter().map(stored).collect()
}

/// A safetensors file with these tensors beside those of another file.
pub fn joined(file: &[u8], more: Vec<Stored>) -> Vec<u8> {
    let header_len = u64::from_le_bytes(*file.first_chunk::<8>().unwrap()) as usize;
    let (header, data) = file[8..].split_at(header_len);
    let mut header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).unwrap();
    let mut data = data.to_vec();
    for (name, dtype, shape, bytes) in more {
        let start = data.len();
        data.extend(bytes);
        let place =
            serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, data.len()] });
        header.insert(name, place);
    }
    let header = serde_json::to_vec(&header).unwrap();
    [&(header.len() as u64).to_le_bytes(), &header[..], &data[..]].concat()
}
