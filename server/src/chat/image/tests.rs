//! Conversions against values taken from PIL, and a stream of broken files.

mod animated;

use super::*;
use ::image::{ImageBuffer, Luma, LumaA, Rgb, Rgba};

fn encode(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).expect("encodes");
    bytes.into_inner()
}

fn colours(width: u32, height: u32) -> DynamicImage {
    ImageBuffer::from_fn(width, height, |x, y| {
        Rgb([(x * 37 % 256) as u8, (y * 53 % 256) as u8, ((x + y) * 11 % 256) as u8])
    })
    .into()
}

/// What `decode` hands out.
fn frames_of(bytes: &[u8], limits: &ImageLimits) -> Result<Vec<RgbPicture>, ImageInputError> {
    let mut frames = Vec::new();
    decode(&Blocking::in_test(), bytes, (limits, Transparency::Dropped), &mut |frame| {
        frames.push(frame);
        Ok(())
    })?;
    Ok(frames)
}

fn decode_image(bytes: &[u8], limits: &ImageLimits) -> Result<RgbPicture, ImageInputError> {
    let mut frames = frames_of(bytes, limits)?;
    assert_eq!(frames.len(), 1, "a still picture");
    Ok(frames.remove(0))
}

fn decode_default(bytes: &[u8]) -> Result<RgbPicture, ImageInputError> {
    decode_image(bytes, &ImageLimits::default())
}

#[test]
fn lossless_formats_give_the_pixels_back() {
    let picture = colours(13, 7);
    for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP] {
        let decoded = decode_default(&encode(&picture, format)).expect("decodes");
        assert_eq!((decoded.width, decoded.height), (13, 7));
        assert_eq!(decoded.rgb, picture.as_bytes(), "{format:?}");
    }
    let decoded = decode_default(&encode(&picture, ImageFormat::Jpeg)).expect("decodes");
    assert_eq!((decoded.width, decoded.height, decoded.rgb.len()), (13, 7, 13 * 7 * 3));
    let few: DynamicImage =
        ImageBuffer::from_fn(
            5,
            3,
            |x, _| if x < 2 { Rgba([255u8, 0, 0, 255]) } else { Rgba([0, 0, 255, 255]) },
        )
        .into();
    let decoded = decode_default(&encode(&few, ImageFormat::Gif)).expect("decodes");
    assert_eq!(&decoded.rgb[..9], [255, 0, 0, 255, 0, 0, 0, 0, 255]);
}

#[test]
fn channels_become_rgb_as_pil_makes_them() {
    let check = |picture: DynamicImage, expected: &[u8]| {
        assert_eq!(decode_default(&encode(&picture, ImageFormat::Png)).expect("decodes").rgb, expected);
    };
    check(ImageBuffer::from_pixel(1, 1, Luma([77u8])).into(), &[77, 77, 77]);
    check(ImageBuffer::from_pixel(1, 1, LumaA([77u8, 0])).into(), &[77, 77, 77]);
    check(ImageBuffer::from_pixel(1, 1, Rgba([1u8, 2, 3, 0])).into(), &[1, 2, 3]);
    check(ImageBuffer::from_pixel(1, 1, Rgb([0x12ffu16, 0x3400, 0x00ff])).into(), &[0x12, 0x34, 0]);
    check(ImageBuffer::from_pixel(1, 1, Rgba([0x12ffu16, 0x3400, 0xffff, 0])).into(), &[0x12, 0x34, 0xff]);
    check(ImageBuffer::from_pixel(1, 1, LumaA([0x12ffu16, 9])).into(), &[0x12; 3]);
    check(ImageBuffer::from_pixel(1, 1, Luma([0x12ffu16])).into(), &[GREY16_0X12FF; 3]);
}

#[test]
fn white_shows_through_where_the_model_wants_it() {
    let check = |picture: DynamicImage, expected: &[u8]| {
        let png = encode(&picture, ImageFormat::Png);
        let how = (&ImageLimits::default(), Transparency::OnWhite);
        let mut frames = Vec::new();
        let take = &mut |frame: RgbPicture| {
            frames.push(frame.rgb);
            Ok(())
        };
        decode(&Blocking::in_test(), &png, how, take).expect("decodes");
        assert_eq!(frames, [expected]);
    };
    check(ImageBuffer::from_pixel(1, 1, Rgb([1u8, 2, 3])).into(), &[1, 2, 3]);
    check(ImageBuffer::from_pixel(1, 1, Rgba([1u8, 2, 3, 255])).into(), &[1, 2, 3]);
    check(ImageBuffer::from_pixel(1, 1, Rgba([1u8, 2, 3, 0])).into(), &[255, 255, 255]);
    // 255 - 254 * 51 / 255, and 51 of alpha are a fifth.
    check(ImageBuffer::from_pixel(1, 1, Rgba([1u8, 100, 255, 51])).into(), &[204, 224, 255]);
    check(ImageBuffer::from_pixel(1, 1, LumaA([5u8, 51])).into(), &[205, 205, 205]);
    check(ImageBuffer::from_pixel(1, 1, LumaA([0x05ffu16, 0x33ff])).into(), &[205, 205, 205]);
    check(ImageBuffer::from_pixel(1, 1, Rgba([0x0100u16, 0, 0, 0xffff])).into(), &[1, 0, 0]);
}

/// What Pillow 12.3 makes of a pixel of 0x12ff in a grey PNG of 16 bits.
const GREY16_0X12FF: u8 = 255;

#[test]
fn limits_hold_before_memory_is_taken() {
    let limits = ImageLimits { max_bytes: 10_000, max_pixels: 100, max_side: 40, ..ImageLimits::default() };
    let refuse = |bytes: &[u8]| decode_image(bytes, &limits).expect_err("refused");
    let too_many =
        |width, height| ImageInputError::TooManyPixels { width, height, max_pixels: 100, max_side: 40 };
    assert_eq!(refuse(&encode(&colours(11, 10), ImageFormat::Png)), too_many(11, 10));
    assert_eq!(refuse(&encode(&colours(1, 41), ImageFormat::Bmp)), too_many(1, 41));
    assert!(decode_image(&encode(&colours(10, 10), ImageFormat::Png), &limits).is_ok());
    assert_eq!(refuse(&[0; 10_001]), ImageInputError::TooManyBytes { bytes: 10_001, limit: 10_000 });
    assert_eq!(refuse(&[]), ImageInputError::Empty);
}

/// A PNG of 2 x 2 whose header says something else.
fn png_claiming(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = encode(&colours(2, 2), ImageFormat::Png);
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    bytes
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        (0..8).for_each(|_| crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 });
    }
    !crc
}

#[test]
fn headers_of_bombs_are_refused() {
    assert!(decode_default(&png_claiming(2, 2)).is_ok());
    for (width, height) in [(65_535, 65_535), (u32::MAX / 2, 1), (1, 1_000_000), (32_769, 1)] {
        let error = decode_default(&png_claiming(width, height)).expect_err("refused");
        // The decoder's own limit may come first.
        assert!(error.to_string().contains("limit"), "{error}");
    }
    // As large as is allowed, with the data of four pixels.
    assert!(matches!(
        decode_default(&png_claiming(8000, 8000)),
        Err(ImageInputError::Broken { format: "PNG", .. })
    ));
    assert!(decode_default(&png_claiming(0, 5)).is_err());
}

#[test]
fn other_files_are_named_unknown() {
    for bytes in
        [&b"<svg xmlns='http://www.w3.org/2000/svg'/>"[..], b"%PDF-1.7", b"II*\0aaaaaaaa", b"\0", b"hello"]
    {
        assert_eq!(decode_default(bytes), Err(ImageInputError::UnknownFormat));
    }
}

#[test]
fn truncated_pictures_are_broken_and_never_a_panic() {
    let picture = colours(40, 30);
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp]
    {
        let whole = encode(&picture, format);
        let step = (whole.len() / 120).max(1);
        // The last chunk of a PNG and the last byte of a GIF say only that it ends.
        let end = whole.len() - 16;
        for len in (1..end).step_by(step) {
            let result = decode_default(&whole[..len]);
            assert!(result.is_err(), "{format:?} of {} bytes cut to {len} decoded", whole.len());
        }
    }
}

#[test]
fn mutated_pictures_never_panic() {
    let mut state = 11u64;
    let mut random = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    let limits = ImageLimits { max_pixels: 1 << 20, ..ImageLimits::default() };
    let still = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp];
    let still = still.map(|format| (format, encode(&colours(33, 17), format)));
    for (format, whole) in still.into_iter().chain(animated::all(&[20, 200, 90])) {
        for _ in 0..400 {
            let mut bytes = whole.clone();
            for _ in 0..1 + random(6) {
                let at = random(bytes.len());
                bytes[at] = random(256) as u8;
            }
            // Either outcome is right; `cannot be decoded` would be a panic inside the decoder.
            if let Err(error) = frames_of(&bytes, &limits) {
                assert!(!error.to_string().contains("cannot be decoded"), "{format:?}");
            }
        }
    }
}
