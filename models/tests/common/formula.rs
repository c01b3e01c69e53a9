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

/// As random as they need to be, by the name of a tensor.
pub fn words(name: &str, len: usize) -> impl Iterator<Item = u32> {
    let seed = fnv1a(name.as_bytes());
    (0..len as u32).map(move |i| {
        let n = i.wrapping_mul(2654435761).wrapping_add(seed);
        let n = (n ^ (n >> 15)).wrapping_mul(2246822519);
        n ^ (n >> 13)
    })
}

/// Numbers in [-1, 1).
fn units(name: &str, len: usize) -> impl Iterator<Item = f64> {
    words(name, len).map(|word| f64::from(word >> 8) / f64::from(1 << 23) - 1.0)
}

/// A tensor of Chameleon's encoder of pictures, by its name and shape.
fn weights(name: &str, shape: &[usize]) -> Vec<f32> {
    let inputs: usize = shape[1..].iter().product();
    let value = |u: f64| match shape.len() {
        _ if name.ends_with(".bias") => u / 10.0,
        1 => 1.0 + u / 4.0,
        4 => u * (3.0 / inputs as f64).sqrt(),
        _ => u,
    };
    units(name, shape.iter().product()).map(|u| value(u) as f32).collect()
}

/// A tensor of Qwen2.5-VL.
fn qwen_vl_weights(name: &str, shape: &[usize]) -> Vec<f32> {
    let inputs: usize = shape[1..].iter().product();
    // Rounded to f32 before they are scaled, as the fixture's were.
    let value = |u: f64| match shape.len() {
        _ if name == "model.embed_tokens.weight" => f64::from(u as f32) / 4.0,
        1 if name.ends_with(".bias") => f64::from((u / 10.0) as f32 * 2.5),
        1 => 1.0 + u / 4.0,
        _ => f64::from(u as f32) * (2.0 * (3.0 / inputs as f64).sqrt()),
    };
    units(name, shape.iter().product()).map(|u| value(u) as f32).collect()
}

/// All tensors of tests/fixtures/qwen2_5_vl, whose config.json this is.
pub fn qwen_vl(config: &serde_json::Value) -> Vec<Stored> {
    let number = |object: &serde_json::Value, key: &str| object[key].as_u64().unwrap() as usize;
    let [vocab, d, i, heads, kv_heads, num_layers] = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "num_hidden_layers",
    ]
    .map(|key| number(config, key));
    let kv = d / heads * kv_heads;
    let mut shapes: Vec<(String, Vec<usize>)> = Vec::new();
    let mut add = |name: String, shape: &[usize]| shapes.push((format!("{name}.weight"), shape.to_vec()));
    add("model.embed_tokens".into(), &[vocab, d]);
    add("lm_head".into(), &[vocab, d]);
    add("model.norm".into(), &[d]);
    for layer in 0..num_layers {
        for (name, shape) in [
            ("self_attn.o_proj", &[d, d][..]),
            ("mlp.gate_proj", &[i, d]),
            ("mlp.up_proj", &[i, d]),
            ("mlp.down_proj", &[d, i]),
            ("input_layernorm", &[d]),
            ("post_attention_layernorm", &[d]),
        ] {
            add(format!("model.layers.{layer}.{name}"), shape);
        }
    }
    let vision = &config["vision_config"];
    let [h, w, p, depth] =
        ["hidden_size", "intermediate_size", "patch_size", "depth"].map(|key| number(vision, key));
    add("visual.patch_embed.proj".into(), &[h, 3, 2, p, p]);
    for block in 0..depth {
        for name in ["norm1", "norm2"] {
            add(format!("visual.blocks.{block}.{name}"), &[h]);
        }
    }
    add("visual.merger.ln_q".into(), &[h]);
    let mut add_with_bias = |name: String, [n, k]: [usize; 2]| {
        shapes.push((format!("{name}.weight"), vec![n, k]));
        shapes.push((format!("{name}.bias"), vec![n]));
    };
    for layer in 0..num_layers {
        for (name, n) in [("q_proj", d), ("k_proj", kv), ("v_proj", kv)] {
            add_with_bias(format!("model.layers.{layer}.self_attn.{name}"), [n, d]);
        }
    }
    for block in 0..depth {
        for (name, shape) in [
            ("attn.qkv", [3 * h, h]),
            ("attn.proj", [h, h]),
            ("mlp.gate_proj", [w, h]),
            ("mlp.up_proj", [w, h]),
            ("mlp.down_proj", [h, w]),
        ] {
            add_with_bias(format!("visual.blocks.{block}.{name}"), shape);
        }
    }
    add_with_bias("visual.merger.mlp.0".into(), [4 * h, 4 * h]);
    add_with_bias("visual.merger.mlp.2".into(), [number(vision, "out_hidden_size"), 4 * h]);
    let stored = |(name, shape): (String, Vec<usize>)| {
        let data = qwen_vl_weights(&name, &shape).iter().flat_map(|value| value.to_le_bytes()).collect();
        (name, "F32", shape, data)
    };
    shapes.into_iter().map(stored).collect()
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

/// A safetensors file without any.
pub const NO_TENSORS: &[u8] = b"\x02\0\0\0\0\0\0\0{}";

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
