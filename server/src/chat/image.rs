//! From the URL of a picture to RGB bytes, as PIL's `convert("RGB")` would give them. Everything here comes from a stranger: limits are
//! checked before memory is taken.

pub mod address;
mod animation;
pub mod cache;
mod data_url;
mod error;
pub mod remote;

use crate::blocking::Blocking;
use ::image::codecs::gif::GifDecoder;
use ::image::codecs::png::PngDecoder;
use ::image::codecs::webp::WebPDecoder;
use ::image::{
    AnimationDecoder, DynamicImage, Frames, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits,
};
use animation::Kind;
pub use data_url::Media;
pub use error::ImageInputError;
use models::Transparency;
use std::io::{Cursor, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLimits {
    /// Of the file.
    pub max_bytes: usize,
    pub max_pixels: u64,
    /// Of width and of height.
    pub max_side: u32,
    /// Frames of an animation that are shown to the model.
    pub max_frames: usize,
    /// Of all frames of an animation together, shown or not.
    pub max_animation_pixels: u64,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self {
            max_bytes: 32 << 20,
            max_pixels: 64_000_000,
            max_side: 32_768,
            max_frames: 8,
            max_animation_pixels: 256_000_000,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbPicture {
    pub width: usize,
    pub height: usize,
    /// `[height, width, 3]`, row-major.
    pub rgb: Vec<u8>,
}

/// Bytes of a data URL.
pub fn read_data_url(
    _: &Blocking,
    url: &str,
    media: Media,
    limits: &ImageLimits,
) -> Result<Vec<u8>, ImageInputError> {
    data_url::decode(url, media, limits.max_bytes)
}

pub fn is_remote(url: &str) -> bool {
    let scheme = url.trim_start().split(':').next().unwrap_or_default();
    scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")
}

/// Hands the picture, or the frames that are shown of an animation, to `take`, one at a time. The format is told by the first bytes,
/// whatever the sender says.
pub fn decode(
    _: &Blocking,
    bytes: &[u8],
    (limits, transparency): (&ImageLimits, Transparency),
    take: &mut dyn FnMut(RgbPicture) -> Result<(), ImageInputError>,
) -> Result<(), ImageInputError> {
    if bytes.is_empty() {
        return Err(ImageInputError::Empty);
    }
    if bytes.len() > limits.max_bytes {
        return Err(ImageInputError::TooManyBytes { bytes: bytes.len(), limit: limits.max_bytes });
    }
    let format = ::image::guess_format(bytes).map_err(|_| ImageInputError::UnknownFormat)?;
    let name = format_name(format).ok_or(ImageInputError::UnknownFormat)?;
    File { bytes, format, name, transparency }.decode(limits, take)
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

struct File<'a> {
    bytes: &'a [u8],
    format: ImageFormat,
    name: &'static str,
    transparency: Transparency,
}

impl File<'_> {
    fn broken(&self, message: &'static str) -> ImageInputError {
        ImageInputError::Broken { format: self.name, message }
    }

    /// In words of our own: a decoder's errors print its structs.
    fn undecodable(&self, error: ImageError) -> ImageInputError {
        self.broken(match error {
            ImageError::IoError(error) if error.kind() == ErrorKind::UnexpectedEof => {
                "the file ends too early"
            }
            ImageError::Limits(_) => "it needs more memory than the limit for a picture of its size",
            ImageError::Unsupported(_) => "it is of a kind that is not supported",
            _ => "its data is damaged",
        })
    }

    /// The decoders are safe Rust and meant not to panic; should one do so, it is this picture's fault alone.
    fn guarded<T>(&self, decode: impl FnOnce() -> Result<T, ImageInputError>) -> Result<T, ImageInputError> {
        catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| Err(self.broken("cannot be decoded")))
    }

    fn rgb(&self, picture: DynamicImage) -> RgbPicture {
        to_rgb(picture, self.transparency)
    }

    fn reader(&self) -> Cursor<&[u8]> {
        Cursor::new(self.bytes)
    }

    fn decode(
        &self,
        limits: &ImageLimits,
        take: &mut dyn FnMut(RgbPicture) -> Result<(), ImageInputError>,
    ) -> Result<(), ImageInputError> {
        // The header alone, before anything is allocated for pixels.
        let (width, height) = self.guarded(|| {
            let reader = ImageReader::with_format(self.reader(), self.format);
            reader.into_dimensions().map_err(|error| self.undecodable(error))
        })?;
        check_size(width, height, limits)?;
        // Four channels of 16 bits, twice: the picture and what a decoder keeps aside.
        let mut memory = Limits::default();
        memory.max_image_width = Some(limits.max_side);
        memory.max_image_height = Some(limits.max_side);
        memory.max_alloc = Some(u64::from(width) * u64::from(height) * 16 + (16 << 20));
        match animation::kind(self.bytes, self.format) {
            None => Err(self.broken("the file ends too early or is damaged")),
            Some(Kind::Still) => take(self.guarded(|| self.decode_still(memory))?),
            Some(Kind::Animated(num_frames)) => {
                check_frames(num_frames, width, height, limits)?;
                let wanted = animation::sample(num_frames, limits.max_frames);
                self.decode_frames(memory, &wanted, take)
            }
        }
    }

    fn decode_still(&self, memory: Limits) -> Result<RgbPicture, ImageInputError> {
        let fail = |error: ImageError| self.undecodable(error);
        match self.format {
            // By its frames, because the first one may be smaller than the picture.
            ImageFormat::Gif => {
                let frame = self.frames(memory)?.next();
                Ok(self.rgb(
                    frame.ok_or_else(|| self.broken("has no frame"))?.map_err(fail)?.into_buffer().into(),
                ))
            }
            ImageFormat::WebP => {
                let mut decoder = WebPDecoder::new(self.reader()).map_err(fail)?;
                decoder.set_limits(memory).map_err(fail)?;
                Ok(self.rgb(DynamicImage::from_decoder(decoder).map_err(fail)?))
            }
            ImageFormat::Jpeg if !jpeg_is_whole(self.bytes) => Err(self.broken("the file ends too early")),
            _ => {
                let mut reader = ImageReader::with_format(self.reader(), self.format);
                reader.limits(memory);
                Ok(self.rgb(reader.decode().map_err(fail)?))
            }
        }
    }

    /// Every frame up to the last wanted one is decoded, because each is drawn over those before it.
    fn decode_frames(
        &self,
        memory: Limits,
        wanted: &[usize],
        take: &mut dyn FnMut(RgbPicture) -> Result<(), ImageInputError>,
    ) -> Result<(), ImageInputError> {
        let mut frames = self.guarded(|| self.frames(memory))?;
        let mut next = 0;
        for &index in wanted {
            let frame = self.guarded(|| {
                for frame in frames.by_ref().take(index - next) {
                    frame.map_err(|error| self.undecodable(error))?;
                }
                let frame = frames.next().ok_or_else(|| self.broken("has fewer frames than it announces"))?;
                Ok(self.rgb(frame.map_err(|error| self.undecodable(error))?.into_buffer().into()))
            })?;
            take(frame)?;
            next = index + 1;
        }
        Ok(())
    }

    fn frames(&self, memory: Limits) -> Result<Frames<'_>, ImageInputError> {
        let fail = |error: ImageError| self.undecodable(error);
        Ok(match self.format {
            ImageFormat::Gif => {
                let mut decoder = GifDecoder::new(self.reader()).map_err(fail)?;
                decoder.set_limits(memory).map_err(fail)?;
                decoder.into_frames()
            }
            ImageFormat::WebP => {
                let mut decoder = WebPDecoder::new(self.reader()).map_err(fail)?;
                decoder.set_limits(memory).map_err(fail)?;
                decoder.into_frames()
            }
            ImageFormat::Png => {
                let decoder = PngDecoder::with_limits(self.reader(), memory).map_err(fail)?;
                decoder.apng().map_err(fail)?.into_frames()
            }
            _ => return Err(self.broken("cannot have frames")),
        })
    }
}

fn check_size(width: u32, height: u32, limits: &ImageLimits) -> Result<(), ImageInputError> {
    let ImageLimits { max_pixels, max_side, .. } = *limits;
    if width == 0 || height == 0 {
        return Err(ImageInputError::NoPixels { width, height });
    }
    if u64::from(width) * u64::from(height) > max_pixels || width > max_side || height > max_side {
        return Err(ImageInputError::TooManyPixels { width, height, max_pixels, max_side });
    }
    Ok(())
}

/// Bounds the work: all frames are decoded, whichever are shown.
fn check_frames(frames: usize, width: u32, height: u32, limits: &ImageLimits) -> Result<(), ImageInputError> {
    let max_pixels = limits.max_animation_pixels;
    match (frames as u64).checked_mul(u64::from(width) * u64::from(height)) {
        Some(pixels) if pixels <= max_pixels => Ok(()),
        _ => Err(ImageInputError::TooManyFrames { frames, width, height, max_pixels }),
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

/// Alpha is dropped, or what is transparent shows white, as the model wants it; grey is copied to all channels, of 16 bits the high ones count,
/// except that grey of 16 bits is clipped: all as PIL does it. No rotation by EXIF. Only the transparent pixels of a GIF whose alpha is dropped
/// differ: PIL shows the colour that the palette has for them, here they are black.
fn to_rgb(picture: DynamicImage, transparency: Transparency) -> RgbPicture {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let high = |v: u16| (v >> 8) as u8;
    let clipped = |v: &u16| (*v).min(255) as u8;
    let seen = |color: u8, alpha: u8| match transparency {
        Transparency::Dropped => color,
        Transparency::OnWhite => on_white(color, alpha),
    };
    let rgb = match picture {
        DynamicImage::ImageRgb8(picture) => picture.into_raw(),
        DynamicImage::ImageRgba8(picture) => {
            picture.pixels().flat_map(|p| [0, 1, 2].map(|c| seen(p.0[c], p.0[3]))).collect()
        }
        DynamicImage::ImageLuma8(picture) => picture.pixels().flat_map(|p| [p.0[0]; 3]).collect(),
        DynamicImage::ImageLumaA8(picture) => {
            picture.pixels().flat_map(|p| [seen(p.0[0], p.0[1]); 3]).collect()
        }
        DynamicImage::ImageRgb16(picture) => picture.as_raw().iter().map(|&v| high(v)).collect(),
        DynamicImage::ImageRgba16(picture) => {
            let pixels = picture.pixels();
            pixels.flat_map(|p| [0, 1, 2].map(|c| seen(high(p.0[c]), high(p.0[3])))).collect()
        }
        DynamicImage::ImageLuma16(picture) => picture.pixels().flat_map(|p| [clipped(&p.0[0]); 3]).collect(),
        DynamicImage::ImageLumaA16(picture) => {
            picture.pixels().flat_map(|p| [seen(high(p.0[0]), high(p.0[1])); 3]).collect()
        }
        other => other.into_rgb8().into_raw(),
    };
    RgbPicture { width, height, rgb }
}

/// A colour that lets white through; what is left of a level is cut off.
fn on_white(color: u8, alpha: u8) -> u8 {
    let alpha = f64::from(alpha) / 255.0;
    ((1.0 - alpha) * 255.0 + alpha * f64::from(color)) as u8
}

#[cfg(test)]
mod tests;
