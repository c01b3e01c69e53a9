//! Pictures of Qwen3-VL against the published image processor and the published tower: `common/qwen3_vl.rs` says how the expected values were made.

mod common;

use common::formula::fnv1a;
use common::qwen3_vl::{DENSE, MOE, levels};
use common::{Golden, bare_gpu, files, fixture, options};
use kernels::{ActivationChoice, CpuOptions, DType, Device, Tensor};
use models::qwen_vl::QwenVlImageProcessor;
use models::qwen3_vl::{Vision, VisionConfig};
use models::{Checkpoint, ImageProcessor, LoadOptions, ModelFiles, Storage};
use scheduler::ImageInput;
use serde_json::{Value, json};

fn config() -> VisionConfig {
    let json = common::qwen3_vl::config(DENSE);
    let hidden_size = json["text_config"]["hidden_size"].as_u64().unwrap() as usize;
    VisionConfig::read("config.json", json["vision_config"].as_object().unwrap(), hidden_size).unwrap()
}

/// Every picture with its description and the rows of its levels.
fn pictures() -> Vec<(Value, ImageInput, Vec<Vec<f32>>)> {
    let processor = QwenVlImageProcessor::from_files(&files(DENSE)).unwrap();
    let process = |(description, (file, levels)): (Value, (String, Vec<Vec<f32>>))| {
        let rgb = image::open(fixture(DENSE).join(&file)).unwrap().to_rgb8();
        let (width, height) = (rgb.width() as usize, rgb.height() as usize);
        assert_eq!(
            json!([file, width, height]),
            json!([description["file"], description["width"], description["height"]])
        );
        (description, processor.process(&rgb, width, height).unwrap().into_rows(), levels)
    };
    let described = Golden::read(DENSE).images;
    let pictures: Vec<_> = described.into_iter().zip(levels(DENSE)).map(process).collect();
    assert_eq!(pictures.len(), 3);
    pictures
}

/// Byte for byte: resized as Pillow does, normalised in f32, in the published order. Of the two frames, which are equal, there is one.
#[test]
fn pixel_values_equal_the_published_processors() {
    for (description, image, _) in pictures() {
        assert_eq!(json!(image.grid), description["grid"], "{description}");
        assert_eq!(json!(image.num_tokens), description["num_tokens"], "{description}");
        assert_eq!(image.position_grid, Some(image.grid.map(|side| side / 2)), "{description}");
        let bytes: Vec<u8> = image.patches.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(json!(fnv1a(&bytes)), description["patches_fnv1a"], "{description}");
    }
}

fn vision(device: &Device, float: DType, max_patches: usize) -> Vision {
    let checkpoint = Checkpoint::open(&files(DENSE)).unwrap();
    Vision::load(&checkpoint, device, &Storage::floats(float), &config(), max_patches).unwrap()
}

/// Of each level.
fn encode(vision: &mut Vision, device: &Device, image: &ImageInput) -> Vec<Vec<f32>> {
    let shape = [image.num_tokens, config().text_hidden_size];
    let mut outs: Vec<Tensor> =
        (0..config().num_levels()).map(|_| Tensor::zeros(device, DType::F32, &shape)).collect();
    vision.encode(image, &mut outs);
    outs.iter().map(Tensor::to_f32_vec).collect()
}

fn exact() -> Device {
    let options =
        CpuOptions { threads: Some(2), activations: ActivationChoice::F32, ..CpuOptions::default() };
    Device::cpu_with(options).unwrap()
}

/// Eight values of the first row, of one in the middle and of the last.
fn sample(rows: &[f32], num_tokens: usize) -> Vec<f32> {
    let width = rows.len() / num_tokens;
    [0, num_tokens / 2, num_tokens - 1].iter().flat_map(|row| &rows[row * width..][..8]).copied().collect()
}

#[test]
fn rows_of_every_level_equal_the_published_towers() {
    let device = exact();
    let most = pictures().iter().map(|(_, image, _)| image.num_patches()).max().unwrap();
    let mut vision = vision(&device, DType::F32, most);
    for (description, image, expected) in pictures() {
        let found = encode(&mut vision, &device, &image);
        assert_eq!((found.len(), expected.len()), (3, 3));
        for (level, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let found = sample(found, image.num_tokens);
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-4, "{description}, {level}: {found} is not {expected}");
            }
            assert_eq!(found.len(), expected.len());
        }
    }
}

/// Whatever was encoded before, and whatever the buffers were made for.
#[test]
fn rows_hang_on_nothing_but_the_picture() {
    let device = exact();
    let pictures = pictures();
    let mut large = vision(&device, DType::F32, 400);
    let together: Vec<_> = pictures.iter().map(|(_, image, _)| encode(&mut large, &device, image)).collect();
    for ((description, image, _), expected) in pictures.iter().zip(&together).rev() {
        assert!(encode(&mut large, &device, image) == *expected, "{description} after others");
        let mut alone = vision(&device, DType::F32, image.num_patches());
        assert!(encode(&mut alone, &device, image) == *expected, "{description} alone");
    }
}

#[test]
fn a_gpu_comes_close() {
    let (cpu, gpu) = (exact(), bare_gpu());
    let (_, image, _) = pictures().into_iter().next().unwrap();
    let most = image.num_patches();
    let expected = encode(&mut vision(&cpu, DType::F32, most), &cpu, &image);
    let found = encode(&mut vision(&gpu, DType::BF16, most), &gpu, &image);
    assert!(gpu.synchronize().is_ok());
    for (found, expected) in found.iter().zip(&expected) {
        let largest = expected.iter().fold(0.0, |a: f32, b| a.max(b.abs()));
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (found - expected).abs() < 0.05 * largest,
                "{found} is not {expected}, of up to {largest}"
            );
        }
    }
}

/// What the plan says a tower takes is what loading it takes.
#[test]
fn sizes_are_those_that_are_allocated() {
    let device = exact();
    for max_patches in [64, 204] {
        let before = device.allocated_bytes();
        let vision = vision(&device, DType::F32, max_patches);
        let size = Vision::size(&device, &config(), &Storage::floats(DType::F32), max_patches);
        assert_eq!(device.allocated_bytes() - before, size.weight_bytes + size.buffer_bytes);
        drop(vision);
    }
    let published = json!({"model_type": "qwen3_vl", "out_hidden_size": 4096});
    let published = VisionConfig::read("config.json", published.as_object().unwrap(), 4096).unwrap();
    let size = Vision::size(&device, &published, &Storage::floats(DType::BF16), 4);
    // Qwen3-VL-8B: patches, positions, 27 blocks, and four mergers, of which three normalise 4608 values.
    let [d, i, m] = [1152, 4304, 4608];
    let block = 4 * d + (3 * d * d + 3 * d) + (d * d + d) + (d * i + i) + (i * d + d);
    let merger = |normed: u64| 2 * normed + (m * m + m) + (m * 4096 + 4096);
    let expected = (2 * 768 * d + d) + 2304 * d + 27 * block + merger(d) + 3 * merger(m);
    assert_eq!(size.parameters, expected);
}

/// Rows of all levels are kept, and a level needs a layer.
#[test]
fn what_is_kept_of_pictures_is_planned() {
    let with_taps = |taps: Value| {
        let mut config = common::qwen3_vl::config(DENSE);
        config["vision_config"]["deepstack_visual_indexes"] = taps;
        config["vision_config"]["depth"] = 5.into();
        let processor = common::qwen3_vl::processor(DENSE);
        let files: Vec<(&str, &[u8])> = [("config.json", config), processor]
            .map(|(name, json)| (name, &*json.to_string().into_bytes().leak()))
            .to_vec();
        models::plan(&ModelFiles::Embedded(files.leak()), &options())
    };
    let [none, two] = [json!([]), json!([0, 2])].map(|taps| with_taps(taps).unwrap().memory.image_cache);
    let images = models::plan(&files(DENSE), &options()).unwrap().images.unwrap();
    let rows = (images.num_blocks * images.rows_per_block + images.max_tokens) as u64;
    assert_eq!(two - none, 2 * 4 * 48 * rows);
    let message = with_taps(json!([0, 1, 2, 3])).unwrap_err().to_string();
    let expected =
        "config.json: vision_config.deepstack_visual_indexes: 4 blocks are more than num_hidden_layers = 3";
    assert!(message.ends_with(expected), "{message}");
}

#[test]
fn pictures_are_planned_for_as_large_as_they_may_be() {
    let plan =
        |pixels| models::plan(&files(DENSE), &LoadOptions { image_resize_pixels: pixels, ..options() });
    let [whole, small] = [None, Some(9000)].map(|pixels| plan(pixels).unwrap());
    assert!(small.images.unwrap().max_patches < whole.images.unwrap().max_patches);
    assert!(small.memory.image_cache < whole.memory.image_cache);
    let message = plan(Some(5)).unwrap_err().to_string();
    assert_eq!(message, "image_resize_pixels: 5 is below the 1024 pixels of a token");
}

#[test]
fn what_is_wrong_with_experts_is_named() {
    for (key, value, reason) in [
        ("norm_topk_prob", json!(false), "false is not supported for this architecture"),
        (
            "model_type",
            json!("qwen3_vl_text"),
            "\"qwen3_vl_text\" is not supported, only \"qwen3_vl_moe_text\" is",
        ),
        ("num_experts_per_tok", json!(7), "7 is more than the 6 experts to choose from"),
    ] {
        let mut config = common::qwen3_vl::config(MOE);
        config["text_config"][key] = value;
        let files = [("config.json", &*config.to_string().into_bytes().leak())].to_vec();
        let message = models::plan(&ModelFiles::Embedded(files.leak()), &options()).unwrap_err().to_string();
        assert_eq!(message, format!("embedded config.json: text_config.{key}: {reason}"));
    }
}
