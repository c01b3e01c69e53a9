//! Chameleon's image processor: from the pixels of a picture to tokens, as preprocessor_config.json says.
//!
//! ```text
//! [H, W, 3] ─▶ shorter side 512, Lanczos ─▶ 512 × 512 from the middle ─▶ scaled, normalised ─▶ encoder ─▶ tokens between their ends
//! ```
//! Of the resized picture only what is left after cropping is computed: a picture that is all width takes no more memory than others.

use super::config::{CHANNELS, VqConfig};
use super::encoder::Encoder;
use super::vocabulary::PictureTokens;
use crate::config::json::{self, Fields};
use crate::pixels::{Normalisation, PixelValues, check_len, check_steps};
use crate::resize::{Filter, Resize};
use crate::{ImageError, ImageProcessor, LoadError, ModelFiles, ProcessedImage, Transparency};
use std::sync::{Mutex, PoisonError};

const FILE: &str = "preprocessor_config.json";
/// Pillow's number of the filter.
const LANCZOS: usize = 1;

/// What preprocessor_config.json says.
#[derive(Debug, Clone, PartialEq)]
pub struct PixelRule {
    shortest_edge: usize,
    /// Of rows and of columns that are left.
    crop: usize,
    values: PixelValues,
}

impl PixelRule {
    pub fn from_files(files: &ModelFiles) -> Result<Self, LoadError> {
        let file = files.describe(FILE);
        let object = json::require_object(files, FILE)?;
        Self::read(&Fields::new(&file, "", &object))
    }

    /// What the file leaves out is as in the published class.
    fn read(fields: &Fields) -> Result<Self, LoadError> {
        check_steps(fields, &["do_resize", "do_center_crop", "do_rescale", "do_normalize"])?;
        if fields.usize_or("resample", LANCZOS, 0..=5)? != LANCZOS {
            return Err(fields.fail("resample", format!("only {LANCZOS} (Lanczos) is supported")));
        }
        let side = |object: &str, key: &str| -> Result<usize, LoadError> {
            let path = fields.nested_path(object);
            match fields.opt_object(object)? {
                Some(nested) => fields.nested(&path, nested).usize(key, 1..=4096),
                None => Ok(512),
            }
        };
        let shortest_edge = side("size", "shortest_edge")?;
        let (height, crop) = (side("crop_size", "height")?, side("crop_size", "width")?);
        if height != crop {
            return Err(fields.fail("crop_size", format!("{height} x {crop} is not a square")));
        }
        if crop > shortest_edge {
            let message = format!("{crop} is more than size.shortest_edge, {shortest_edge}");
            return Err(fields.fail("crop_size", message));
        }
        let factor = fields.f64_in("rescale_factor", Some(0.0078), 1e-9..=1e9)?;
        let default = Normalisation { mean: [1.0; CHANNELS], std: [1.0; CHANNELS] };
        let normalisation = Normalisation::read(fields, Some(default))?;
        let values = PixelValues::new(|byte| (byte as f64 * factor) as f32, normalisation);
        Ok(Self { shortest_edge, crop, values })
    }

    /// That the encoder takes what is left of a picture.
    pub fn check(&self, files: &ModelFiles, config: &VqConfig) -> Result<(), LoadError> {
        if self.crop == config.resolution {
            return Ok(());
        }
        let message =
            format!("{} is not vq_config.resolution of config.json, {}", self.crop, config.resolution);
        Err(LoadError::config(&files.describe(FILE), "crop_size", message))
    }

    /// `[crop, crop, 3]` bytes from the middle of the resized picture.
    pub fn cropped(&self, rgb: &[u8], width: usize, height: usize) -> Result<Vec<u8>, ImageError> {
        if width == 0 || height == 0 {
            return Err(ImageError::Empty { width, height });
        }
        check_len(rgb, (width, height));
        let short = width.min(height);
        // The quotient, and so the shorter side itself, rounded down.
        let [w, h] = [width, height].map(|side| side * self.shortest_edge / short);
        let [left, top] = [w, h].map(|side| (side - self.crop) / 2);
        let resize = Resize {
            filter: Filter::Lanczos,
            from: (width, height),
            to: (w, h),
            columns: left..left + self.crop,
            rows: top..top + self.crop,
        };
        Ok(resize.run(rgb))
    }

    /// `[crop, crop, 3]`, as the encoder takes it.
    pub fn pixels(&self, cropped: &[u8]) -> Vec<f32> {
        let pixels = cropped.chunks_exact(CHANNELS);
        pixels
            .flat_map(|pixel| std::array::from_fn::<f32, CHANNELS, _>(|c| self.values.of(c, pixel[c])))
            .collect()
    }
}

/// The whole way of a picture into a prompt.
pub struct ChameleonImageProcessor {
    rule: PixelRule,
    tokens: PictureTokens,
    num_tokens: usize,
    /// One picture at a time: it takes all threads, and its buffers are large.
    encoder: Mutex<Encoder>,
}

impl ChameleonImageProcessor {
    pub fn new(rule: PixelRule, tokens: PictureTokens, encoder: Encoder) -> Self {
        // With what is before and after it.
        let num_tokens = encoder.config().num_tokens() + 2;
        Self { rule, tokens, num_tokens, encoder: Mutex::new(encoder) }
    }
}

impl ImageProcessor for ChameleonImageProcessor {
    fn process(&self, rgb: &[u8], width: usize, height: usize) -> Result<ProcessedImage, ImageError> {
        let pixels = self.rule.pixels(&self.rule.cropped(rgb, width, height)?);
        // A picture is encoded from its pixels alone: after a panic the buffers hold nothing that is read.
        let codes = self.encoder.lock().unwrap_or_else(PoisonError::into_inner).encode(&pixels);
        Ok(ProcessedImage::Tokens(self.tokens.of(&codes.ok_or(ImageError::NotFinite)?)))
    }

    fn transparency(&self) -> Transparency {
        Transparency::OnWhite
    }

    fn num_tokens(&self) -> Option<usize> {
        Some(self.num_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(json: &Value) -> Result<PixelRule, String> {
        let rule = PixelRule::read(&Fields::new("p.json", "", json.as_object().unwrap()));
        rule.map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_left_out_is_as_published() {
        let published = json!({
            "crop_size": {"height": 512, "width": 512}, "do_center_crop": true, "do_convert_rgb": true, "do_normalize": true,
            "do_rescale": true, "do_resize": true, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0],
            "resample": 1, "rescale_factor": 0.0078, "size": {"shortest_edge": 512}
        });
        let rule = read(&published).unwrap();
        assert_eq!(rule, read(&json!({})).unwrap());
        assert_eq!((rule.values.of(0, 0), rule.values.of(2, 255)), (-1.0, (255.0f64 * 0.0078) as f32 - 1.0));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (key, value) in [
            ("do_resize", json!(false)),
            ("do_center_crop", json!(false)),
            ("resample", json!(3)),
            ("crop_size", json!({"height": 512, "width": 256})),
            ("crop_size", json!({"height": 1024, "width": 1024})),
            ("crop_size.height", json!(0)),
            ("size.shortest_edge", Value::Null),
            ("rescale_factor", json!(0)),
            ("image_mean", json!([1.0])),
            ("image_std", json!([1.0, 0.0, 1.0])),
        ] {
            let json = match key.split_once('.') {
                Some((outer, inner)) => json!({ outer: { inner: value, "width": 512 } }),
                None => json!({ key: value }),
            };
            let message = read(&json).unwrap_err();
            assert!(message.starts_with(&format!("p.json: {key}: ")), "{message}");
        }
    }

    #[test]
    fn any_shape_becomes_the_square() {
        let rule =
            read(&json!({"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}})).unwrap();
        for (width, height) in [(1, 1), (16, 16), (1, 3000), (3000, 1), (33, 20), (64, 47)] {
            let rgb = [9, 99, 199].repeat(width * height);
            let cropped = rule.cropped(&rgb, width, height).unwrap();
            assert_eq!(cropped, [9, 99, 199].repeat(16 * 16), "{width} x {height}");
            assert_eq!(rule.pixels(&cropped).len(), 16 * 16 * 3);
        }
        assert_eq!(rule.cropped(&[], 0, 4).unwrap_err(), ImageError::Empty { width: 0, height: 4 });
    }
}
