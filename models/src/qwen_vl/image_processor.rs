//! Qwen-VL's image processor: from the pixels of a picture to the patches of its vision tower, as preprocessor_config.json says, or the
//! `image_processor` of processor_config.json. Pixel values equal those of the published Python processor bit for bit.

use super::image_size::SizeRule;
use super::patch_embed::FRAMES;
use crate::config::json::{self, Fields};
use crate::pixels::{Normalisation, PixelValues, check_patch_size, check_steps, resized};
use crate::vision_parts::{CHANNELS, MERGE, places};
use crate::{ImageError, ImageProcessor, LoadError, ModelFiles, ProcessedImage, Transparency};
use scheduler::ImageInput;

const FILE: &str = "preprocessor_config.json";
/// What newer versions of the published code write in its place.
const PROCESSOR_FILE: &str = "processor_config.json";
const PART: &str = "image_processor";
/// Part of every digest: to be changed when the same settings begin to give other patches.
const DOMAIN: &[u8] = b"perilune qwen_vl picture 1";
/// The published number for bicubic.
const BICUBIC: usize = 3;

#[derive(Debug, Clone, PartialEq)]
pub struct QwenVlImageProcessor {
    rule: SizeRule,
    values: PixelValues,
    /// Where it was read, for messages.
    file: String,
}

impl QwenVlImageProcessor {
    pub fn from_files(files: &ModelFiles) -> Result<Self, LoadError> {
        if let Some(object) = json::read_object(files, PROCESSOR_FILE)? {
            let file = files.describe(PROCESSOR_FILE);
            let top = Fields::new(&file, "", &object);
            if let Some(part) = top.opt_object(PART)? {
                return Self::read(&file, &Fields::new(&file, PART, part));
            }
        }
        let file = files.describe(FILE);
        let object = json::require_object(files, FILE)?;
        Self::read(&file, &Fields::new(&file, "", &object))
    }

    /// Defaults are those of the published class.
    fn read(file: &str, fields: &Fields) -> Result<Self, LoadError> {
        check_steps(fields, &["do_resize", "do_rescale", "do_normalize"])?;
        for (key, expected) in [("merge_size", MERGE), ("temporal_patch_size", FRAMES), ("resample", BICUBIC)]
        {
            let found = fields.usize_or(key, expected, 0..=usize::MAX)?;
            if found != expected {
                return Err(fields.fail(key, format!("{found} is not supported, only {expected} is")));
            }
        }
        let factor = fields.f64_in("rescale_factor", Some(RESCALE), 0.0..=1.0)?;
        if factor != RESCALE {
            return Err(fields.fail("rescale_factor", format!("{factor} is not supported, only 1/255 is")));
        }
        let normalisation = Normalisation::read(fields, Some(CLIP))?;
        let (min_pixels, max_pixels) = pixels(fields)?;
        let rule =
            SizeRule { patch_size: fields.usize_or("patch_size", 14, 1..=1024)?, min_pixels, max_pixels };
        Ok(Self { file: file.to_string(), ..Self::new(rule, normalisation) })
    }

    fn new(rule: SizeRule, normalisation: Normalisation) -> Self {
        let values = PixelValues::new(|byte| (byte as f64 * RESCALE) as f32, normalisation);
        Self { rule, values, file: String::new() }
    }

    /// With pictures of at most so many pixels, where that is less. Fewer than a token has are too few.
    pub fn resizing_to(mut self, max_pixels: Option<usize>) -> Result<Self, LoadError> {
        let Some(pixels) = max_pixels else { return Ok(self) };
        let least = self.rule.factor() * self.rule.factor();
        if pixels < least {
            let message = format!("{pixels} is below the {least} pixels of a token");
            return Err(LoadError::Option { option: "image_resize_pixels", message });
        }
        let SizeRule { min_pixels, max_pixels, .. } = &mut self.rule;
        *max_pixels = pixels.min(*max_pixels);
        *min_pixels = pixels.min(*min_pixels);
        Ok(self)
    }

    /// That the tower takes the patches that this processor makes.
    pub fn check(&self, patch_size: usize) -> Result<(), LoadError> {
        check_patch_size(&self.file, self.rule.patch_size, patch_size)
    }

    /// Of the largest picture that can come out of it.
    pub fn max_patches(&self) -> usize {
        self.rule.max_patches()
    }

    /// `[rows * columns, 3 * p * p]`: the four patches of a token after each other, tokens in raster order, and so the patches inside one; inside a
    /// patch, channels, then rows, then columns. The published processor repeats each channel for the second frame.
    fn patches(&self, rgb: &[u8], [rows, columns]: [usize; 2]) -> Vec<f32> {
        let p = self.rule.patch_size;
        let width = columns * p;
        let mut patches = Vec::with_capacity(rows * columns * CHANNELS * p * p);
        for [row, column] in places([rows, columns]) {
            for (channel, values) in self.values.channels() {
                for y in row * p..(row + 1) * p {
                    let start = (y * width + column * p) * CHANNELS;
                    let pixels = rgb[start..start + p * CHANNELS].chunks_exact(CHANNELS);
                    patches.extend(pixels.map(|pixel| values[pixel[channel] as usize]));
                }
            }
        }
        patches
    }
}

const RESCALE: f64 = 1.0 / 255.0;
/// What the published class has.
const CLIP: Normalisation = Normalisation {
    mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
    std: [0.268_629_54, 0.261_302_6, 0.275_777_1],
};

/// The least and the most: under their own names, which go before those of the edges of `size`.
fn pixels(fields: &Fields) -> Result<(usize, usize), LoadError> {
    let range = 1..=1 << 28;
    let object = fields.opt_object("size")?;
    let path = fields.nested_path("size");
    let edge = |key: &str| match object {
        Some(size) => fields.nested(&path, size).usize(key, range.clone()).map(Some),
        None => Ok(None),
    };
    let either = |key: &str, edge_key: &str, default: usize| -> Result<usize, LoadError> {
        match fields.opt_usize(key, range.clone())? {
            Some(pixels) => Ok(pixels),
            None => Ok(edge(edge_key)?.unwrap_or(default)),
        }
    };
    let min = either("min_pixels", "shortest_edge", 56 * 56)?;
    let max = either("max_pixels", "longest_edge", 28 * 28 * 1280)?;
    if min > max {
        let message = format!("{min} pixels at least are more than {max} at most");
        return Err(
            fields.fail(if fields.get("min_pixels").is_some() { "min_pixels" } else { "size" }, message)
        );
    }
    Ok((min, max))
}

impl ImageProcessor for QwenVlImageProcessor {
    fn process(&self, rgb: &[u8], width: usize, height: usize) -> Result<ProcessedImage, ImageError> {
        let to = self.rule.resized(width, height)?;
        let rgb = resized(rgb, (width, height), to);
        let grid = [to.1, to.0].map(|side| side / self.rule.patch_size);
        let token_grid = grid.map(|side| side / MERGE);
        Ok(ProcessedImage::Rows(ImageInput {
            digest: self.values.digest(DOMAIN, [to.0, to.1, self.rule.patch_size, MERGE], &rgb),
            grid,
            num_tokens: token_grid[0] * token_grid[1],
            position_grid: Some(token_grid),
            patches: self.patches(&rgb, grid),
        }))
    }

    fn transparency(&self) -> Transparency {
        Transparency::Dropped
    }

    fn num_tokens(&self) -> Option<usize> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn published() -> Value {
        json!({
            "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
            "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"
        })
    }

    fn read(json: &Value) -> Result<QwenVlImageProcessor, LoadError> {
        QwenVlImageProcessor::read("p.json", &Fields::new("p.json", "", json.as_object().unwrap()))
    }

    fn from(name: &'static str, json: Value) -> Result<QwenVlImageProcessor, LoadError> {
        let files = vec![(name, &*json.to_string().into_bytes().leak())];
        QwenVlImageProcessor::from_files(&ModelFiles::Embedded(files.leak()))
    }

    #[test]
    fn reads_every_form_of_the_settings() {
        let processor = read(&published()).unwrap();
        assert_eq!(processor.rule, SizeRule { patch_size: 14, min_pixels: 3136, max_pixels: 12_845_056 });
        let edges = json!({ "size": { "shortest_edge": 3136, "longest_edge": 12845056 }, "min_pixels": null,
            "do_resize": true, "do_rescale": true, "do_normalize": true, "rescale_factor": 0.00392156862745098,
            "resample": 3, "do_convert_rgb": true });
        assert_eq!(read(&edges).unwrap(), processor);
        let both = json!({ "size": { "shortest_edge": 1, "longest_edge": 5000 }, "min_pixels": 3136 });
        assert_eq!(
            read(&both).unwrap().rule,
            SizeRule { patch_size: 14, min_pixels: 3136, max_pixels: 5000 }
        );
        let nothing = read(&json!({})).unwrap();
        assert_eq!((nothing.rule.max_pixels, &nothing.values), (1_003_520, &processor.values));
        let newer =
            from(PROCESSOR_FILE, json!({ "image_processor": published(), "processor_class": "X" })).unwrap();
        assert_eq!((newer.rule, &newer.values), (processor.rule, &processor.values));
        assert_eq!(from(FILE, published()).unwrap().values, processor.values);
    }

    #[test]
    fn pictures_may_be_made_smaller_and_not_larger() {
        let rule =
            |pixels| read(&published()).unwrap().resizing_to(Some(pixels)).map(|processor| processor.rule);
        let published = SizeRule { patch_size: 14, min_pixels: 3136, max_pixels: 12_845_056 };
        assert_eq!(rule(20_000_000).unwrap(), published);
        assert_eq!(rule(100_000).unwrap(), SizeRule { max_pixels: 100_000, ..published });
        assert_eq!(rule(1000).unwrap(), SizeRule { min_pixels: 1000, max_pixels: 1000, ..published });
        let message = rule(783).unwrap_err().to_string();
        assert_eq!(message, "image_resize_pixels: 783 is below the 784 pixels of a token");
    }

    #[test]
    fn wrong_settings_are_named() {
        let wrong = [
            ("patch_size", json!(0)),
            ("patch_size", json!("14")),
            ("min_pixels", json!(0)),
            ("min_pixels", json!(12845057)),
            ("max_pixels", json!(-1)),
            ("merge_size", json!(3)),
            ("temporal_patch_size", json!(1)),
            ("do_resize", json!(false)),
            ("do_normalize", json!(false)),
            ("do_rescale", json!(0)),
            ("resample", json!(2)),
            ("rescale_factor", json!(1.0)),
            ("image_mean", json!([0.5, 0.5])),
            ("image_std", json!([0.5, 0.0, 0.5])),
        ];
        for (key, value) in wrong {
            let mut config = published();
            config[key] = value.clone();
            let message = read(&config).unwrap_err().to_string();
            assert!(message.starts_with(&format!("p.json: {key}: ")), "{key} {value}: {message}");
        }
        let half = read(&json!({ "size": { "shortest_edge": 56 } })).unwrap_err().to_string();
        assert_eq!(half, "p.json: size.longest_edge: is missing");
        let nested = json!({ "image_processor": { "merge_size": 4 } });
        let message = from(PROCESSOR_FILE, nested).unwrap_err().to_string();
        assert_eq!(
            message,
            "embedded processor_config.json: image_processor.merge_size: 4 is not supported, only 2 is"
        );
        assert_eq!(
            from("other.json", json!({})).unwrap_err().to_string(),
            "embedded preprocessor_config.json is missing"
        );
    }

    #[test]
    fn the_digest_tells_pixels_sizes_and_settings_apart() {
        let settings = |std| {
            let rule = SizeRule { patch_size: 1, min_pixels: 1, max_pixels: 100 };
            QwenVlImageProcessor::new(rule, Normalisation { mean: [0.0, 0.2, 0.4], std: [1.0, std, 2.0] })
        };
        let rgb: Vec<u8> = (0..8 * 2 * 3).collect();
        let mut other = rgb.clone();
        other[17] ^= 1;
        let digest = |processor: QwenVlImageProcessor, rgb: &[u8], (w, h)| {
            processor.process(rgb, w, h).unwrap().into_rows().digest
        };
        let first = digest(settings(0.5), &rgb, (8, 2));
        assert_eq!(first, digest(settings(0.5), &rgb, (8, 2)));
        for (processor, rgb, size) in
            [(settings(0.5), &other, (8, 2)), (settings(0.5), &rgb, (4, 4)), (settings(0.25), &rgb, (8, 2))]
        {
            assert_ne!(first, digest(processor, rgb, size));
        }
    }
}
