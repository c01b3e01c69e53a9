//! Pictures of Kimi-VL against Pillow and torch: the fixtures' README says how the expected values were made.

use image::RgbImage;
use models::kimi_vl::{KimiVlImageProcessor, resize};
use models::{ImageProcessor, ModelFiles};
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
        let image = processor().process(&rgb, width, height).unwrap();
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
fn smooth(width: usize, height: usize, seed: usize) -> Vec<u8> {
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

fn noise(width: usize, height: usize, seed: usize) -> Vec<u8> {
    let byte = |index: usize| {
        let n = (index as u32 + 1 + 7919 * seed as u32).wrapping_mul(2654435761);
        ((n ^ (n >> 15)).wrapping_mul(2246822519) >> 24) as u8
    };
    (0..width * height * 3).map(byte).collect()
}
