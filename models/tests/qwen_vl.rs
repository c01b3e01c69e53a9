//! Pictures of Qwen2.5-VL against the published image processor and the published tower: the fixtures' README says how the expected values were made.

mod common;

use common::formula::fnv1a;
use common::{Golden, bare_gpu, files, fixture, options};
use kernels::{ActivationChoice, CpuOptions, DType, Device, Tensor};
use models::qwen_vl::{QwenVlImageProcessor, Vision, VisionConfig};
use models::{Checkpoint, ImageProcessor, LoadOptions, Storage};
use scheduler::ImageInput;
use serde_json::Value;

const FAMILY: &str = "qwen2_5_vl";

fn config() -> VisionConfig {
    let json: Value =
        serde_json::from_slice(&std::fs::read(fixture(FAMILY).join("config.json")).unwrap()).unwrap();
    let hidden_size = json["hidden_size"].as_u64().unwrap() as usize;
    VisionConfig::read("config.json", json["vision_config"].as_object().unwrap(), hidden_size).unwrap()
}

/// Every picture with its description and the name of its arrays.
fn pictures() -> Vec<(String, Value, ImageInput)> {
    let processor = QwenVlImageProcessor::from_files(&files(FAMILY)).unwrap();
    let process = |description: &Value| {
        let file = description["file"].as_str().unwrap();
        let rgb = image::open(fixture(FAMILY).join(file)).unwrap().to_rgb8();
        let (width, height) = (rgb.width() as usize, rgb.height() as usize);
        assert_eq!(
            [width, height].map(Value::from),
            ["width", "height"].map(|side| description[side].clone())
        );
        let image = processor.process(&rgb, width, height).unwrap().into_rows();
        let name = file.trim_start_matches("images/").trim_end_matches(".png").to_owned();
        (name, description.clone(), image)
    };
    let pictures: Vec<_> = Golden::read(FAMILY).images.iter().map(process).collect();
    assert_eq!(pictures.len(), 6);
    pictures
}

/// Byte for byte: resized as Pillow does, normalised in f32, in the published order. Of the two frames, which are equal, there is one.
#[test]
fn pixel_values_equal_the_published_processors() {
    for (name, description, image) in pictures() {
        assert_eq!(serde_json::json!(image.grid), description["grid"], "{name}");
        assert_eq!(serde_json::json!(image.num_tokens), description["num_tokens"], "{name}");
        assert_eq!(image.position_grid, Some(image.grid.map(|side| side / 2)), "{name}");
        let bytes: Vec<u8> = image.patches.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(serde_json::json!(fnv1a(&bytes)), description["patches_fnv1a"], "{name}");
    }
}

fn vision(device: &Device, float: DType, max_patches: usize) -> Vision {
    let checkpoint = Checkpoint::open(&files(FAMILY)).unwrap();
    Vision::load(&checkpoint, device, &Storage::floats(float), &config(), max_patches).unwrap()
}

fn encode(vision: &mut Vision, device: &Device, image: &ImageInput) -> Vec<f32> {
    let mut out = Tensor::zeros(device, DType::F32, &[image.num_tokens, config().text_hidden_size]);
    vision.encode(image, &mut out);
    out.to_f32_vec()
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
fn rows_equal_the_published_towers() {
    let (device, golden) = (exact(), Golden::read(FAMILY));
    let most = pictures().iter().map(|(_, _, image)| image.num_patches()).max().unwrap();
    let mut vision = vision(&device, DType::F32, most);
    for (name, _, image) in pictures() {
        let found = sample(&encode(&mut vision, &device, &image), image.num_tokens);
        let expected = golden.named(&format!("{name}.rows"));
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-4, "{name}: {found} is not {expected}");
        }
        assert_eq!(found.len(), expected.len());
    }
}

/// Whatever was encoded before, and whatever the buffers were made for.
#[test]
fn rows_hang_on_nothing_but_the_picture() {
    let device = exact();
    let pictures = pictures();
    let mut large = vision(&device, DType::F32, 400);
    let together: Vec<_> = pictures.iter().map(|(_, _, image)| encode(&mut large, &device, image)).collect();
    for ((name, _, image), expected) in pictures.iter().zip(&together).rev() {
        assert!(encode(&mut large, &device, image) == *expected, "{name} after others");
        let mut alone = vision(&device, DType::F32, image.num_patches());
        assert!(encode(&mut alone, &device, image) == *expected, "{name} alone");
    }
}

#[test]
fn a_gpu_comes_close() {
    let (cpu, gpu) = (exact(), bare_gpu());
    let (_, _, image) = pictures().into_iter().find(|(name, _, _)| name == "wide").unwrap();
    let expected = encode(&mut vision(&cpu, DType::F32, 100), &cpu, &image);
    let largest = expected.iter().fold(0.0, |a: f32, b| a.max(b.abs()));
    let found = encode(&mut vision(&gpu, DType::BF16, 100), &gpu, &image);
    assert!(gpu.synchronize().is_ok());
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() < 0.05 * largest, "{found} is not {expected}, of up to {largest}");
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
    let published = VisionConfig {
        patch_size: 14,
        hidden_size: 1280,
        intermediate_size: 3420,
        num_layers: 32,
        num_heads: 16,
        window: 4,
        sees_all: vec![false; 32],
        rope_theta: 10_000.0,
        text_hidden_size: 2048,
    };
    assert_eq!(Vision::size(&device, &published, &Storage::floats(DType::BF16), 4).parameters, 668_684_288);
}

#[test]
fn pictures_are_planned_for_as_large_as_they_may_be() {
    let plan =
        |pixels| models::plan(&files(FAMILY), &LoadOptions { image_resize_pixels: pixels, ..options() });
    let whole = plan(None).unwrap();
    let small = plan(Some(4000)).unwrap();
    let [patches, fewer] = [&whole, &small].map(|plan| plan.images.unwrap().max_patches);
    assert!(fewer < patches && small.memory.vision_buffers < whole.memory.vision_buffers);
    assert_eq!(small.memory.vision_weights, whole.memory.vision_weights);
    let message = plan(Some(5)).unwrap_err().to_string();
    assert_eq!(message, "image_resize_pixels: 5 is below the 784 pixels of a token");
    let other = LoadOptions { image_resize_pixels: Some(10_000), ..options() };
    for family in ["kimi_vl", "llama"] {
        let message = models::plan(&files(family), &other).unwrap_err().to_string();
        assert!(message.starts_with("image_resize_pixels: the model has no image processor"), "{message}");
    }
}
