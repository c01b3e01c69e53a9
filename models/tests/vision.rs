//! Pictures of Kimi-VL against Pillow and torch: the fixtures' README says how the expected values were made.

#[path = "common/formula.rs"]
mod formula;

use formula::{noise, smooth};
use image::RgbImage;
use kernels::{ActivationChoice, CpuOptions, DType, Device, Tensor};
use models::kimi_vl::{KimiVlImageProcessor, Vision, VisionConfig, VisionSize, resize};
use models::{Checkpoint, ImageProcessor, ModelFiles, Storage};
use safetensors::SafeTensors;
use scheduler::ImageInput;
use serde_json::Value;
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn read(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn read_json(name: &str) -> Value {
    serde_json::from_slice(&read(name)).unwrap()
}

/// Alpha is dropped, grey and palette become RGB.
fn picture(name: &str) -> RgbImage {
    image::open(fixture(name)).unwrap_or_else(|e| panic!("{name}: {e}")).to_rgb8()
}

fn number(json: &Value, name: &str) -> usize {
    json[name].as_u64().unwrap_or_else(|| panic!("{name} of {json}")) as usize
}

fn array(arrays: &SafeTensors, name: &str) -> Vec<f32> {
    let tensor = arrays.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(tensor.dtype(), safetensors::Dtype::F32);
    tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn processor() -> KimiVlImageProcessor {
    KimiVlImageProcessor::from_files(&ModelFiles::Directory(fixture("kimi_vl"))).unwrap()
}

/// Every picture of the fixtures: its description, its pixels, and what the processor makes of it.
fn pictures() -> Vec<(Value, RgbImage, ImageInput)> {
    let golden = read_json("kimi_vl/golden.json");
    let process = |description: &Value| {
        let rgb = picture(&format!("kimi_vl/{}", description["file"].as_str().unwrap()));
        let (width, height) = (rgb.width() as usize, rgb.height() as usize);
        assert_eq!([width, height], ["width", "height"].map(|name| number(description, name)));
        let image = processor().process(&rgb, width, height).unwrap().into_rows();
        (description.clone(), rgb, image)
    };
    let pictures: Vec<_> = golden["images"].as_array().unwrap().iter().map(process).collect();
    assert!(pictures.len() >= 7);
    pictures
}

/// `images/large.png` is `large` in the names of its arrays.
fn stem(description: &Value) -> String {
    let file = description["file"].as_str().unwrap();
    file.trim_start_matches("images/").trim_end_matches(".png").to_owned()
}

#[test]
fn pixel_values_equal_the_published_processors() {
    let content = read("kimi_vl/golden.safetensors");
    let arrays = SafeTensors::deserialize(&content).unwrap();
    let mut num_resized = 0;
    for (description, rgb, image) in pictures() {
        let name = stem(&description);
        assert_eq!(
            image.grid.to_vec(),
            serde_json::from_value::<Vec<usize>>(description["grid"].clone()).unwrap()
        );
        assert_eq!(image.num_tokens, number(&description, "num_tokens"), "{name}");
        let resized = match description["resized_file"].as_str() {
            Some(file) => picture(&format!("kimi_vl/{file}")),
            None => rgb,
        };
        num_resized += usize::from(description["resized_file"].is_string());
        let size = [resized.width(), resized.height()].map(|side| side as usize);
        assert_eq!(
            size,
            ["resized_width", "resized_height"].map(|side| number(&description, side)),
            "{name}"
        );
        assert_eq!(image.patches, patches_of(&resized, image.grid), "{name}");
        let ends = [&image.patches[..588], &image.patches[image.patches.len() - 588..]].concat();
        assert_eq!(ends, array(&arrays, &format!("{name}.first_last_patch")), "{name}");
    }
    assert!(num_resized > 0);
}

/// Patches written the slow way: one value after the other, from the place that the definition names.
fn patches_of(resized: &RgbImage, [rows, columns]: [usize; 2]) -> Vec<f32> {
    let value = |index: usize| {
        let (patch, c, y, x) = (index / 588, index / 196 % 3, index / 14 % 14, index % 14);
        let (x, y) = (patch % columns * 14 + x, patch / columns * 14 + y);
        let byte = resized.get_pixel_checked(x as u32, y as u32).map_or(0, |pixel| pixel[c]);
        (f32::from(byte) / 255.0 - 0.5) / 0.5
    };
    (0..rows * columns * 588).map(value).collect()
}

#[test]
fn resizing_equals_pillow_byte_for_byte() {
    let cases = read_json("resize/bicubic.json");
    let cases = cases["cases"].as_array().unwrap();
    assert!(cases.len() >= 14);
    for case in cases {
        let file = case["resized_file"].as_str().unwrap();
        let expected = picture(&format!("resize/{file}"));
        let [width, height] = ["width", "height"].map(|name| number(case, name));
        let to = ["resized_width", "resized_height"].map(|name| number(case, name));
        let seed = number(case, "seed");
        let rgb = match case["formula"].as_str().unwrap() {
            "smooth" => smooth(width, height, seed),
            "noise" => noise(width, height, seed),
            other => panic!("unknown formula {other}"),
        };
        let got = resize(&rgb, (width, height), (to[0], to[1]));
        let num_different = got.iter().zip(expected.as_raw()).filter(|(a, b)| a != b).count();
        assert_eq!((got.len(), num_different), (expected.as_raw().len(), 0), "{file}");
    }
}

/// Ramps and curves with a disc of the inverted colours in the middle.
/// Tower and projector of the fixture, for pictures of up to `max_patches`.
fn vision(device: &Device, stored_as: DType, max_patches: usize) -> Vision {
    let checkpoint = Checkpoint::open(&ModelFiles::Directory(fixture("kimi_vl"))).unwrap();
    Vision::load(&checkpoint, device, &Storage::floats(stored_as), &config(), max_patches).unwrap()
}

fn config() -> VisionConfig {
    let json = read_json("kimi_vl/config.json");
    let text_hidden_size = number(&json["text_config"], "hidden_size");
    VisionConfig::read("config.json", json["vision_config"].as_object().unwrap(), text_hidden_size).unwrap()
}

fn encode(vision: &mut Vision, device: &Device, image: &ImageInput) -> Vec<f32> {
    let mut out = Tensor::zeros(device, DType::F32, &[image.num_tokens, config().text_hidden_size]);
    vision.encode(image, &mut out);
    out.to_f32_vec()
}

/// The largest difference, as a share of the largest expected value.
fn difference(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let largest = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, |a: f32, b| a.max(b.abs()));
    assert!(got.iter().all(|value| value.is_finite()));
    let scale = largest(&mut expected.iter().copied());
    largest(&mut got.iter().zip(expected).map(|(a, b)| a - b)) / scale
}

/// Activations are not rounded.
fn exact() -> Device {
    let options =
        CpuOptions { threads: Some(2), activations: ActivationChoice::F32, ..CpuOptions::default() };
    Device::cpu_with(options).unwrap()
}

#[test]
fn tower_and_projector_agree_with_torch() {
    let device = exact();
    let content = read("kimi_vl/golden.safetensors");
    let arrays = SafeTensors::deserialize(&content).unwrap();
    // The fixture's weights are bf16, so keeping them as bf16 loses nothing.
    for stored_as in [DType::F32, DType::BF16] {
        let mut vision = vision(&device, stored_as, processor().max_patches());
        for (description, _, image) in pictures() {
            let name = stem(&description);
            let tower =
                difference(&vision.tower_rows(&image), &array(&arrays, &format!("{name}.vision_tower")));
            assert!(tower < 1e-4, "{name} {stored_as:?}: tower differs by {tower:.1e}");
            let expected = array(&arrays, &format!("{name}.projected"));
            let projected = difference(&encode(&mut vision, &device, &image), &expected);
            assert!(projected < 1e-4, "{name} {stored_as:?}: projector differs by {projected:.1e}");
        }
    }
}

#[test]
fn a_pictures_rows_do_not_depend_on_what_else_is_encoded() {
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let pictures = pictures();
    let device = Device::cpu(Some(2));
    let mut shared = vision(&device, DType::BF16, processor().max_patches());
    let first: Vec<_> =
        pictures.iter().map(|(_, _, image)| bits(encode(&mut shared, &device, image))).collect();
    // In the opposite order after all of them; alone in buffers that just fit; with another number of threads.
    for ((description, _, image), expected) in pictures.iter().zip(&first).rev() {
        assert_eq!(&bits(encode(&mut shared, &device, image)), expected, "{} again", stem(description));
        for threads in [1, 3] {
            let device = Device::cpu(Some(threads));
            let mut alone = vision(&device, DType::BF16, image.num_patches());
            assert_eq!(&bits(encode(&mut alone, &device, image)), expected, "{} alone", stem(description));
        }
    }
}

#[test]
fn planned_bytes_are_allocated_bytes() {
    for (threads, max_patches) in [(1, 4), (3, 88), (2, processor().max_patches())] {
        for stored_as in [DType::F32, DType::BF16, DType::F16] {
            let device = Device::cpu(Some(threads));
            let before = device.allocated_bytes();
            let vision = vision(&device, stored_as, max_patches);
            let size = VisionSize::of(&device, &config(), &Storage::floats(stored_as), max_patches);
            assert_eq!(
                device.allocated_bytes() - before,
                size.weight_bytes + size.buffer_bytes,
                "{stored_as:?} {max_patches}"
            );
            drop(vision);
            assert_eq!(device.allocated_bytes(), before);
        }
    }
}

#[test]
fn parameters_are_those_of_the_checkpoint() {
    let content = read("kimi_vl/model.safetensors");
    let tensors = SafeTensors::deserialize(&content).unwrap();
    let of_vision =
        |name: &str| name.starts_with("vision_tower.") || name.starts_with("multi_modal_projector.");
    let stored = tensors
        .iter()
        .filter(|(name, _)| of_vision(name))
        .map(|(_, tensor)| tensor.shape().iter().product::<usize>());
    let size = VisionSize::of(&Device::cpu(Some(1)), &config(), &Storage::floats(DType::BF16), 4);
    assert_eq!(size.parameters, stored.sum::<usize>() as u64);
    // The published model: 416,866,032 in the tower and 30,679,808 in the projector.
    let published = VisionConfig {
        patch_size: 14,
        hidden_size: 1152,
        intermediate_size: 4304,
        num_layers: 27,
        num_heads: 16,
        table: [64, 64],
        text_hidden_size: 2048,
    };
    let size = VisionSize::of(&Device::cpu(Some(1)), &published, &Storage::floats(DType::BF16), 4);
    assert_eq!(size.parameters, 416_866_032 + 30_679_808);
}

#[test]
fn dummy_weights_see_the_picture() {
    let device = Device::cpu(Some(2));
    let mut vision =
        Vision::load(&Checkpoint::dummy(7), &device, &Storage::floats(DType::BF16), &config(), 64).unwrap();
    let black = processor().process(&vec![0; 56 * 30 * 3], 56, 30).unwrap().into_rows();
    let noisy = processor().process(&noise(56, 30, 1), 56, 30).unwrap().into_rows();
    let [black, noisy] = [black, noisy].map(|image| encode(&mut vision, &device, &image));
    assert!(black.iter().chain(&noisy).all(|value| value.is_finite()));
    assert!(difference(&black, &noisy) > 0.01);
}

#[test]
fn a_processor_for_other_patches_is_refused() {
    let files = ModelFiles::Directory(fixture("kimi_vl"));
    processor().check(&files, &config()).unwrap();
    let message =
        processor().check(&files, &VisionConfig { patch_size: 16, ..config() }).unwrap_err().to_string();
    assert!(
        message.ends_with("preprocessor_config.json: patch_size: 14 is not that of config.json, 16"),
        "{message}"
    );
}
