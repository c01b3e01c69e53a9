//! Kimi-VL's image processor: from the pixels of a picture to the patches of its vision tower, as preprocessor_config.json says.
//! Pixel values equal those of the published Python processor bit for bit.

use super::config::VisionConfig;
use super::image_size::{Layout, SizeRule};
use crate::config::json::{self, Fields};
use crate::pixels::{Normalisation, PixelValues, check_patch_size, resized};
use crate::vision_parts::{CHANNELS, MERGE};
use crate::{ImageError, ImageProcessor, LoadError, ModelFiles, ProcessedImage, Transparency};
use scheduler::ImageInput;
use serde_json::Value;

const FILE: &str = "preprocessor_config.json";
/// Part of every digest: to be changed when the same settings begin to give other patches.
const DOMAIN: &[u8] = b"perilune kimi_vl picture 1";
/// Padding is black.
const PADDING: usize = 0;

#[derive(Debug, Clone, PartialEq)]
pub struct KimiVlImageProcessor {
    rule: SizeRule,
    values: PixelValues,
}

impl KimiVlImageProcessor {
    pub fn from_files(files: &ModelFiles) -> Result<Self, LoadError> {
        let file = files.describe(FILE);
        let object = json::require_object(files, FILE)?;
        Self::read(&Fields::new(&file, "", &object))
    }

    /// No field has a default: the published code's own ones belong to another model.
    fn read(fields: &Fields) -> Result<Self, LoadError> {
        require(fields, "merge_kernel_size", &vec![MERGE, MERGE].into())?;
        require(fields, "pad_input", &true.into())?;
        let rule = SizeRule {
            patch_size: fields.usize("patch_size", 1..=1024)?,
            in_token_limit: fields.usize("in_token_limit", 1..=1 << 24)?,
        };
        let Normalisation { mean, std } = Normalisation::read(fields, None)?;
        Ok(Self::new(rule, mean, std))
    }

    pub fn new(rule: SizeRule, mean: [f32; CHANNELS], std: [f32; CHANNELS]) -> Self {
        let normalisation = Normalisation { mean, std };
        Self { rule, values: PixelValues::new(|byte| byte as f32 / 255.0, normalisation) }
    }

    /// That the tower takes the patches that this processor makes.
    pub fn check(&self, files: &ModelFiles, config: &VisionConfig) -> Result<(), LoadError> {
        check_patch_size(&files.describe(FILE), self.rule.patch_size, config.patch_size)
    }

    /// Of the largest picture that can come out of it.
    pub fn max_patches(&self) -> usize {
        self.rule.max_patches()
    }

    /// What a picture will take, without its pixels.
    pub fn layout(&self, width: usize, height: usize) -> Result<Layout, ImageError> {
        self.rule.layout(width, height)
    }

    /// `[rows * columns, 3 * p * p]`: patches in raster order; inside one, channels, then rows, then columns.
    fn patches(&self, rgb: &[u8], layout: &Layout) -> Vec<f32> {
        let p = self.rule.patch_size;
        let [rows, columns] = layout.grid;
        let (width, height) = layout.resized;
        let mut patches = Vec::with_capacity(rows * columns * CHANNELS * p * p);
        for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
            let first_x = (column * p).min(width);
            let num_x = p.min(width - first_x);
            for (channel, values) in self.values.channels() {
                for y in row * p..(row + 1) * p {
                    let num_x = if y < height { num_x } else { 0 };
                    let start = (y.min(height - 1) * width + first_x) * CHANNELS;
                    let pixels = rgb[start..start + num_x * CHANNELS].chunks_exact(CHANNELS);
                    patches.extend(pixels.map(|pixel| values[pixel[channel] as usize]));
                    patches.extend(std::iter::repeat_n(values[PADDING], p - num_x));
                }
            }
        }
        patches
    }
}

impl ImageProcessor for KimiVlImageProcessor {
    fn process(&self, rgb: &[u8], width: usize, height: usize) -> Result<ProcessedImage, ImageError> {
        let layout = self.rule.layout(width, height)?;
        let rgb = resized(rgb, (width, height), layout.resized);
        let (resized_width, resized_height) = layout.resized;
        let numbers = [resized_width, resized_height, self.rule.patch_size, MERGE];
        Ok(ProcessedImage::Rows(ImageInput {
            digest: self.values.digest(DOMAIN, numbers, &rgb),
            grid: layout.grid,
            num_tokens: layout.num_tokens(),
            position_grid: None,
            patches: self.patches(&rgb, &layout),
        }))
    }

    fn transparency(&self) -> Transparency {
        Transparency::Dropped
    }

    fn num_tokens(&self) -> Option<usize> {
        None
    }
}

/// Refuses a field that is missing, or has another value than the only one that is implemented.
fn require(fields: &Fields, key: &str, expected: &Value) -> Result<(), LoadError> {
    match fields.get(key) {
        Some(value) if value == expected => Ok(()),
        Some(value) => Err(fields.fail(key, format!("{value} is not supported, only {expected} is"))),
        None => Err(fields.fail(key, "is missing")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn published() -> Value {
        json!({
            "patch_size": 14, "pad_input": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
            "in_token_limit": 4096, "merge_kernel_size": [2, 2], "num_pooled_tokens": 1024,
            "image_processor_type": "KimiVLImageProcessor"
        })
    }

    fn read(json: &Value) -> Result<KimiVlImageProcessor, LoadError> {
        KimiVlImageProcessor::read(&Fields::new("p.json", "", json.as_object().unwrap()))
    }

    #[test]
    fn reads_the_published_settings() {
        let processor = read(&published()).unwrap();
        assert_eq!(processor.rule, SizeRule { patch_size: 14, in_token_limit: 4096 });
        assert_eq!(processor.values.of(1, 0), -1.0);
        assert_eq!(processor.values.of(2, 255), 1.0);
        assert_eq!(processor.max_patches(), processor.rule.max_patches());
    }

    #[test]
    fn every_field_is_needed_and_checked() {
        let wrong = [
            ("patch_size", json!(0)),
            ("patch_size", json!(14.5)),
            ("patch_size", json!("14")),
            ("in_token_limit", json!(-1)),
            ("in_token_limit", json!(u64::MAX)),
            ("merge_kernel_size", json!([3, 3])),
            ("merge_kernel_size", json!(2)),
            ("pad_input", json!(false)),
            ("image_mean", json!([0.5, 0.5])),
            ("image_mean", json!(0.5)),
            ("image_mean", json!([0.5, 0.5, 1e300])),
            ("image_std", json!([0.5, 0.0, 0.5])),
            ("image_std", json!([0.5, null, 0.5])),
        ];
        for (key, value) in wrong {
            let mut config = published();
            config[key] = value.clone();
            let message = read(&config).unwrap_err().to_string();
            assert!(message.starts_with(&format!("p.json: {key}: ")), "{key} {value}: {message}");
            config.as_object_mut().unwrap().remove(key);
            assert_eq!(read(&config).unwrap_err().to_string(), format!("p.json: {key}: is missing"));
        }
    }

    #[test]
    fn a_missing_or_broken_file_is_named() {
        let from =
            |files| KimiVlImageProcessor::from_files(&ModelFiles::Embedded(files)).unwrap_err().to_string();
        assert_eq!(from(&[]), "embedded preprocessor_config.json is missing");
        assert!(from(&[(FILE, b"{")]).starts_with("embedded preprocessor_config.json is not valid JSON: "));
    }

    /// Patches of 2 x 2 pixels, so that the whole result can be read.
    fn small() -> KimiVlImageProcessor {
        let rule = SizeRule { patch_size: 2, in_token_limit: 16 };
        KimiVlImageProcessor::new(rule, [0.0, 0.2, 0.4], [1.0, 0.5, 2.0])
    }

    #[test]
    fn patches_are_in_the_order_of_the_weights_and_padded_with_black() {
        let rgb: Vec<u8> = (1..=5 * 3 * 3).collect();
        let image = small().process(&rgb, 5, 3).unwrap().into_rows();
        assert_eq!(image.grid, [2, 4]);
        assert_eq!(image.num_tokens, 2);
        assert_eq!(image.patches.len(), 8 * 12);
        let byte = |c: usize, y: usize, x: usize| {
            if x < 5 && y < 3 { f32::from(rgb[(y * 5 + x) * 3 + c]) } else { 0.0 }
        };
        let (mean, std) = ([0.0, 0.2, 0.4], [1.0, 0.5, 2.0]);
        for (index, &value) in image.patches.iter().enumerate() {
            let (patch, c, y, x) = (index / 12, index / 4 % 3, index / 2 % 2, index % 2);
            let expected = (byte(c, patch / 4 * 2 + y, patch % 4 * 2 + x) / 255.0 - mean[c]) / std[c];
            assert_eq!(value, expected, "patch {patch} channel {c} row {y} column {x}");
        }
    }

    #[test]
    fn the_digest_tells_pixels_shapes_and_settings_apart() {
        let rgb: Vec<u8> = (0..6 * 4 * 3).collect();
        let mut other = rgb.clone();
        other[71] ^= 1;
        let settings = |limit, std| {
            let rule = SizeRule { patch_size: 2, in_token_limit: limit };
            KimiVlImageProcessor::new(rule, [0.0, 0.2, 0.4], std)
        };
        let digest = |processor: &KimiVlImageProcessor, rgb: &[u8], width, height| {
            processor.process(rgb, width, height).unwrap().into_rows().digest
        };
        let different = [
            digest(&small(), &rgb, 6, 4),
            digest(&small(), &rgb, 4, 6),
            digest(&small(), &rgb, 8, 3),
            digest(&small(), &other, 6, 4),
            digest(&settings(16, [1.0, 0.5, 1.5]), &rgb, 6, 4),
            digest(&settings(4, [1.0, 0.5, 2.0]), &rgb, 6, 4),
        ];
        for (i, a) in different.iter().enumerate() {
            assert!(different[i + 1..].iter().all(|b| a != b), "digest {i} is not unique");
        }
        assert_eq!(different[0], digest(&small(), &rgb, 6, 4));
        // A limit that does not apply changes nothing, so neither the digest.
        assert_eq!(different[0], digest(&settings(1000, [1.0, 0.5, 2.0]), &rgb, 6, 4));
    }

    #[test]
    fn random_sizes_give_as_many_patches_as_announced() {
        let processor = small();
        let mut state = 3u32;
        for _ in 0..500 {
            let [width, height] = [0, 1].map(|_| {
                state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                1 + (state >> 16) as usize % (1 << (1 + (state >> 8) % 6))
            });
            let rgb = vec![state as u8; width * height * 3];
            let image = processor.process(&rgb, width, height).unwrap().into_rows();
            assert_eq!(image.patches.len(), image.num_patches() * 12, "{width}x{height}");
            assert_eq!(image.num_tokens * 4, image.num_patches());
            assert!(image.num_patches() <= processor.max_patches());
        }
    }
}
