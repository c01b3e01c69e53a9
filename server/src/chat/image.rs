//! From the URL of a picture to RGB bytes, as PIL's `convert("RGB")` would give them. Everything here comes from a stranger: limits are
//! checked before memory is taken.

use super::data_url;
use ::image::codecs::gif::GifDecoder;
use ::image::codecs::png::PngDecoder;
use ::image::codecs::webp::WebPDecoder;
use ::image::{AnimationDecoder, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLimits {
    /// Of the file.
    pub max_bytes: usize,
    pub max_pixels: u64,
    /// Of width and of height.
    pub max_side: u32,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self { max_bytes: 32 << 20, max_pixels: 64_000_000, max_side: 32_768 }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbPicture {
    pub width: usize,
    pub height: usize,
    /// `[height, width, 3]`, row-major.
    pub rgb: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageInputError {
    #[error("remote images are not enabled; send the picture as a data URL")]
    Remote,
    #[error("image URL must be a data URL such as data:image/png;base64,…")]
    NotADataUrl,
    #[error("data URL must be base64")]
    NotBase64,
    #[error("data URL has a broken base64 body")]
    BadBase64,
    #[error("data URL is {media_type}, which is not a picture")]
    NotAPicture { media_type: String },
    #[error("picture is empty")]
    Empty,
    #[error("picture has {bytes} bytes, above the limit of {limit}")]
    TooManyBytes { bytes: usize, limit: usize },
    #[error(
        "picture has {width}x{height} pixels, above the limit of {max_pixels} pixels or {max_side} a side"
    )]
    TooManyPixels { width: u32, height: u32, max_pixels: u64, max_side: u32 },
    #[error("picture of {width}x{height} pixels is empty")]
    NoPixels { width: u32, height: u32 },
    #[error("picture is none of PNG, JPEG, WebP, GIF, BMP")]
    UnknownFormat,
    #[error("picture is animated; send one frame")]
    Animated,
    #[error("{format} picture is broken: {message}")]
    Broken { format: &'static str, message: String },
}

/// A picture given as `image_url.url`.
pub fn load_url(url: &str, limits: &ImageLimits) -> Result<RgbPicture, ImageInputError> {
    decode_image(&data_url::decode(url, limits.max_bytes)?, limits)
}

/// The format is told by the first bytes, whatever the sender says.
pub fn decode_image(bytes: &[u8], limits: &ImageLimits) -> Result<RgbPicture, ImageInputError> {
    if bytes.is_empty() {
        return Err(ImageInputError::Empty);
    }
    if bytes.len() > limits.max_bytes {
        return Err(ImageInputError::TooManyBytes { bytes: bytes.len(), limit: limits.max_bytes });
    }
    let format = ::image::guess_format(bytes).map_err(|_| ImageInputError::UnknownFormat)?;
    let name = format_name(format).ok_or(ImageInputError::UnknownFormat)?;
    // The decoders are safe Rust and meant not to panic; should one do so, it is this picture's fault alone.
    let decoded = catch_unwind(AssertUnwindSafe(|| decode_format(bytes, format, name, limits)));
    decoded.unwrap_or_else(|_| Err(broken(name, "cannot be decoded".to_string())))
}

fn format_name(format: ImageFormat) -> Option<&'static str> {
    match format {
        ImageFormat::Png => Some("PNG"),
        ImageFormat::Jpeg => Some("JPEG"),
        ImageFormat::WebP => Some("WebP"),
        ImageFormat::Gif => Some("GIF"),
        ImageFormat::Bmp => Some("BMP"),
        _ => None,
    }
}

fn broken(format: &'static str, message: String) -> ImageInputError {
    ImageInputError::Broken { format, message }
}

fn decode_format(
    bytes: &[u8],
    format: ImageFormat,
    name: &'static str,
    limits: &ImageLimits,
) -> Result<RgbPicture, ImageInputError> {
    let fail = |error: ImageError| broken(name, error.to_string());
    let reader = || Cursor::new(bytes);
    // The header alone, before anything is allocated for pixels.
    let (width, height) = ImageReader::with_format(reader(), format).into_dimensions().map_err(fail)?;
    check_size(width, height, limits)?;
    // Four channels of 16 bits, twice: the picture and what a decoder keeps aside.
    let mut memory = Limits::default();
    memory.max_image_width = Some(limits.max_side);
    memory.max_image_height = Some(limits.max_side);
    memory.max_alloc = Some(u64::from(width) * u64::from(height) * 16 + (16 << 20));
    match format {
        ImageFormat::Gif => decode_gif(bytes, memory, fail),
        ImageFormat::Png => {
            let decoder = PngDecoder::with_limits(reader(), memory).map_err(fail)?;
            if decoder.is_apng().map_err(fail)? {
                return Err(ImageInputError::Animated);
            }
            to_rgb(DynamicImage::from_decoder(decoder).map_err(fail)?)
        }
        ImageFormat::WebP => {
            let mut decoder = WebPDecoder::new(reader()).map_err(fail)?;
            if decoder.has_animation() {
                return Err(ImageInputError::Animated);
            }
            decoder.set_limits(memory).map_err(fail)?;
            to_rgb(DynamicImage::from_decoder(decoder).map_err(fail)?)
        }
        ImageFormat::Jpeg if !jpeg_is_whole(bytes) => {
            Err(broken(name, "the file ends too early".to_string()))
        }
        _ => {
            let mut reader = ImageReader::with_format(reader(), format);
            reader.limits(memory);
            to_rgb(reader.decode().map_err(fail)?)
        }
    }
}

fn check_size(width: u32, height: u32, limits: &ImageLimits) -> Result<(), ImageInputError> {
    let ImageLimits { max_bytes: _, max_pixels, max_side } = *limits;
    if width == 0 || height == 0 {
        return Err(ImageInputError::NoPixels { width, height });
    }
    if u64::from(width) * u64::from(height) > max_pixels || width > max_side || height > max_side {
        return Err(ImageInputError::TooManyPixels { width, height, max_pixels, max_side });
    }
    Ok(())
}

fn decode_gif(
    bytes: &[u8],
    memory: Limits,
    fail: impl Fn(ImageError) -> ImageInputError,
) -> Result<RgbPicture, ImageInputError> {
    let mut decoder = GifDecoder::new(Cursor::new(bytes)).map_err(&fail)?;
    decoder.set_limits(memory).map_err(&fail)?;
    let mut frames = decoder.into_frames();
    let frame = frames.next().ok_or_else(|| broken("GIF", "has no frame".to_string()))?.map_err(&fail)?;
    match frames.next() {
        None => to_rgb(frame.into_buffer().into()),
        Some(Ok(_)) => Err(ImageInputError::Animated),
        Some(Err(error)) => Err(fail(error)),
    }
}

/// The decoder fills what is missing with grey; a picture that was cut off on its way is an error instead.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xda;
    let mut at = 2;
    // Segments carry their length; thumbnails with ends of their own lie inside of segments.
    while let Some(&[0xff, marker]) = bytes.get(at..at + 2) {
        match (marker, bytes.get(at + 2..at + 4)) {
            (START_OF_SCAN, _) => return bytes[at..].windows(2).any(|pair| pair == [0xff, 0xd9]),
            (0xff, _) => at += 1,
            (_, Some(&[high, low])) => at += 2 + usize::from(u16::from_be_bytes([high, low])),
            (_, _) => return false,
        }
    }
    // Not the usual order of segments: the decoder's business.
    at < bytes.len()
}

/// Alpha is dropped, grey is copied to all channels, of 16 bits the high ones count, except that grey of 16 bits is clipped: all as PIL
/// does it. No rotation by EXIF. Only the transparent pixels of a GIF differ: PIL shows the colour that the palette has for them, here they
/// are black.
fn to_rgb(picture: DynamicImage) -> Result<RgbPicture, ImageInputError> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let high = |v: &u16| (v >> 8) as u8;
    let clipped = |v: &u16| (*v).min(255) as u8;
    let rgb = match picture {
        DynamicImage::ImageRgb8(picture) => picture.into_raw(),
        DynamicImage::ImageRgba8(picture) => {
            picture.pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2]]).collect()
        }
        DynamicImage::ImageLuma8(picture) => picture.pixels().flat_map(|p| [p.0[0]; 3]).collect(),
        DynamicImage::ImageLumaA8(picture) => picture.pixels().flat_map(|p| [p.0[0]; 3]).collect(),
        DynamicImage::ImageRgb16(picture) => picture.as_raw().iter().map(high).collect(),
        DynamicImage::ImageRgba16(picture) => {
            picture.pixels().flat_map(|p| [0, 1, 2].map(|c| high(&p.0[c]))).collect()
        }
        DynamicImage::ImageLuma16(picture) => picture.pixels().flat_map(|p| [clipped(&p.0[0]); 3]).collect(),
        DynamicImage::ImageLumaA16(picture) => picture.pixels().flat_map(|p| [high(&p.0[0]); 3]).collect(),
        other => other.into_rgb8().into_raw(),
    };
    Ok(RgbPicture { width, height, rgb })
}

#[cfg(test)]
mod tests;
