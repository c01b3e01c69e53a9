//! Animations of a few grey frames, put together from still pictures chunk by chunk, and what becomes of them.

use super::*;

const SIZE: (u32, u32) = (3, 2);

fn grey(shade: u8) -> DynamicImage {
    ImageBuffer::from_pixel(SIZE.0, SIZE.1, Rgba([shade, shade, shade, 255])).into()
}

/// The same frames in each format that has any.
pub fn all(shades: &[u8]) -> [(ImageFormat, Vec<u8>); 3] {
    [
        (ImageFormat::Gif, gif(shades)),
        (ImageFormat::WebP, webp(shades)),
        (ImageFormat::Png, apng(shades, shades.len() as u32)),
    ]
}

fn gif(shades: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = ::image::codecs::gif::GifEncoder::new(&mut bytes);
    for &shade in shades {
        encoder.encode_frame(::image::Frame::new(grey(shade).into_rgba8())).expect("encodes");
    }
    drop(encoder);
    bytes
}

fn png_chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let named = [&kind[..], data].concat();
    [&(data.len() as u32).to_be_bytes()[..], &named, &crc32(&named).to_be_bytes()].concat()
}

/// The data of the chunks of a kind, one after the other.
fn data_of(png: &[u8], kind: &[u8; 4]) -> Vec<u8> {
    let (mut at, mut data) = (8, Vec::new());
    while at < png.len() {
        let length = u32::from_be_bytes(png[at..at + 4].try_into().unwrap()) as usize;
        if &png[at + 4..at + 8] == kind {
            data.extend(&png[at + 8..at + 8 + length]);
        }
        at += 12 + length;
    }
    data
}

/// `announced` is how many frames it says it has.
fn apng(shades: &[u8], announced: u32) -> Vec<u8> {
    let stills: Vec<_> = shades.iter().map(|&shade| encode(&grey(shade), ImageFormat::Png)).collect();
    let mut bytes = stills[0][..8].to_vec();
    bytes.extend(png_chunk(b"IHDR", &data_of(&stills[0], b"IHDR")));
    bytes.extend(png_chunk(b"acTL", &[announced.to_be_bytes(), [0; 4]].concat()));
    let mut sequence = 0u32..;
    for (index, still) in stills.iter().enumerate() {
        let numbers = [sequence.next().unwrap(), SIZE.0, SIZE.1, 0, 0];
        let mut control = numbers.map(u32::to_be_bytes).concat();
        control.extend([0, 1, 0, 10, 0, 0]);
        bytes.extend(png_chunk(b"fcTL", &control));
        let data = data_of(still, b"IDAT");
        if index == 0 {
            bytes.extend(png_chunk(b"IDAT", &data));
        } else {
            bytes.extend(png_chunk(b"fdAT", &[&sequence.next().unwrap().to_be_bytes()[..], &data].concat()));
        }
    }
    bytes.extend(png_chunk(b"IEND", &[]));
    bytes
}

fn riff_chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let padding = vec![0; data.len() % 2];
    [&kind[..], &(data.len() as u32).to_le_bytes(), data, &padding].concat()
}

fn webp(shades: &[u8]) -> Vec<u8> {
    let size = [SIZE.0 - 1, SIZE.1 - 1].map(|side| side.to_le_bytes()[..3].to_vec()).concat();
    const NOT_BLENDED: u8 = 2;
    let mut body = b"WEBP".to_vec();
    // Animated, with transparency.
    body.extend(riff_chunk(b"VP8X", &[&[0x12, 0, 0, 0][..], &size].concat()));
    body.extend(riff_chunk(b"ANIM", &[0; 6]));
    for &shade in shades {
        let still = encode(&grey(shade), ImageFormat::WebP);
        let place_and_time = [&[0; 6][..], &size, &[100, 0, 0, NOT_BLENDED]].concat();
        body.extend(riff_chunk(b"ANMF", &[&place_and_time[..], &still[12..]].concat()));
    }
    [&b"RIFF"[..], &(body.len() as u32).to_le_bytes(), &body].concat()
}

#[test]
fn frames_are_shown_one_by_one() {
    let shades = [0, 50, 100, 150, 200];
    let limits = |max_frames| ImageLimits { max_frames, ..ImageLimits::default() };
    for (format, bytes) in all(&shades) {
        let shown = |max_frames| {
            let frames =
                frames_of(&bytes, &limits(max_frames)).unwrap_or_else(|error| panic!("{format:?}: {error}"));
            for frame in &frames {
                assert_eq!((frame.width, frame.height, frame.rgb.len()), (3, 2, 18), "{format:?}");
                assert!(frame.rgb.iter().all(|&byte| byte == frame.rgb[0]), "{format:?}: {:?}", frame.rgb);
            }
            frames.iter().map(|frame| frame.rgb[0]).collect::<Vec<_>>()
        };
        assert_eq!(shown(8), shades, "{format:?}");
        assert_eq!(shown(5), shades, "{format:?}");
        assert_eq!(shown(3), [0, 100, 200], "{format:?}");
        assert_eq!(shown(1), [0], "{format:?}");
    }
}

#[test]
fn all_frames_count_before_the_first_is_decoded() {
    let limits = ImageLimits { max_animation_pixels: 3 * 6, ..ImageLimits::default() };
    for (format, bytes) in all(&[1, 2, 3]) {
        assert_eq!(frames_of(&bytes, &limits).map(|frames| frames.len()), Ok(3), "{format:?}");
    }
    for (format, bytes) in all(&[1, 2, 3, 4]) {
        let refused = ImageInputError::TooManyFrames { frames: 4, width: 3, height: 2, max_pixels: 18 };
        assert_eq!(frames_of(&bytes, &limits), Err(refused), "{format:?}");
    }
    // A header that announces more frames than there is memory to count them in.
    let error = frames_of(&apng(&[1, 2], u32::MAX), &ImageLimits::default()).unwrap_err();
    assert!(matches!(error, ImageInputError::TooManyFrames { frames: 0xffff_ffff, .. }), "{error}");
}

#[test]
fn animations_that_are_cut_off_or_lie_are_broken() {
    for (format, bytes) in all(&[10, 20, 30]) {
        for len in (bytes.len() / 3..bytes.len() - 12).step_by(3) {
            assert!(frames_of(&bytes[..len], &ImageLimits::default()).is_err(), "{format:?} cut to {len}");
        }
    }
    let error = frames_of(&apng(&[1, 2], 5), &ImageLimits::default()).unwrap_err();
    assert!(matches!(error, ImageInputError::Broken { format: "PNG", .. }), "{error}");
    // One frame is a picture.
    assert_eq!(frames_of(&apng(&[77], 1), &ImageLimits::default()).unwrap()[0].rgb, [77; 18]);
    assert_eq!(frames_of(&webp(&[77]), &ImageLimits::default()).unwrap()[0].rgb, [77; 18]);
}

#[test]
fn the_taker_can_stop_the_decoder() {
    let mut taken = 0;
    let how = (&ImageLimits::default(), Transparency::Dropped);
    let result = decode(&Blocking::in_test(), &gif(&[1, 2, 3]), how, &mut |_| {
        taken += 1;
        Err(ImageInputError::Unsuitable("enough".into()))
    });
    assert_eq!((result, taken), (Err(ImageInputError::Unsuitable("enough".into())), 1));
}
