//! How many frames a file has, read from its structure alone, before anything is decoded; and which of them are shown to the model.

use ::image::ImageFormat;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Still,
    /// With so many frames, as the file says.
    Animated(usize),
}

/// `None` where the structure ends too early or makes no sense.
pub fn kind(bytes: &[u8], format: ImageFormat) -> Option<Kind> {
    match format {
        ImageFormat::Png => png(bytes),
        ImageFormat::WebP => webp(bytes),
        ImageFormat::Gif => gif(bytes),
        _ => Some(Kind::Still),
    }
}

/// Evenly over all frames, the first and the last among them: `floor(i (n - 1) / (k - 1))`, as numpy's linspace in vLLM.
pub fn sample(num_frames: usize, num_wanted: usize) -> Vec<usize> {
    assert!(num_wanted > 0, "at least one frame is shown");
    if num_frames <= num_wanted {
        return (0..num_frames).collect();
    }
    (0..num_wanted).map(|i| i * (num_frames - 1) / (num_wanted - 1).max(1)).collect()
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// `acTL`, before the picture's data, announces frames.
fn png(bytes: &[u8]) -> Option<Kind> {
    let mut at = 8;
    loop {
        let length = u32::from_be_bytes(array(bytes, at)?) as usize;
        match &array(bytes, at + 4)? {
            b"acTL" => {
                let num_frames = u32::from_be_bytes(array(bytes, at + 8)?) as usize;
                return Some(if num_frames > 1 { Kind::Animated(num_frames) } else { Kind::Still });
            }
            b"IDAT" | b"IEND" => return Some(Kind::Still),
            _ => at = at.checked_add(length)?.checked_add(12)?,
        }
    }
}

/// The extended format's header has a flag for animation; each `ANMF` is a frame.
fn webp(bytes: &[u8]) -> Option<Kind> {
    const ANIMATED: u8 = 0x02;
    if &array(bytes, 12)? != b"VP8X" || array::<1>(bytes, 20)?[0] & ANIMATED == 0 {
        return Some(Kind::Still);
    }
    let end = 8 + u32::from_le_bytes(array(bytes, 4)?) as usize;
    let mut num_frames = 0;
    let mut at = 12;
    while at < end {
        let length = u32::from_le_bytes(array(bytes, at + 4)?) as usize;
        if &array(bytes, at)? == b"ANMF" {
            num_frames += 1;
        }
        at = at.checked_add(length)?.checked_add(8)?;
        if at > bytes.len() {
            return None;
        }
        // Chunks begin at even places.
        at += length % 2;
    }
    (num_frames > 0).then_some(Kind::Animated(num_frames))
}

fn gif(bytes: &[u8]) -> Option<Kind> {
    const EXTENSION: u8 = 0x21;
    const IMAGE: u8 = 0x2c;
    const TRAILER: u8 = 0x3b;
    let mut at = 13 + color_table(array::<1>(bytes, 10)?[0]);
    let mut num_frames = 0;
    loop {
        match array::<1>(bytes, at)?[0] {
            EXTENSION => at = after_blocks(bytes, at + 2)?,
            IMAGE => {
                let table = color_table(array::<1>(bytes, at + 9)?[0]);
                // The code size of the compression comes before the data.
                at = after_blocks(bytes, at + 10 + table + 1)?;
                num_frames += 1;
            }
            TRAILER => break,
            _ => return None,
        }
    }
    match num_frames {
        0 => None,
        1 => Some(Kind::Still),
        _ => Some(Kind::Animated(num_frames)),
    }
}

/// Bytes of a GIF's colour table, by the flags that announce it.
fn color_table(flags: u8) -> usize {
    if flags & 0x80 != 0 { 3 << ((flags & 7) + 1) } else { 0 }
}

/// Behind a GIF's data blocks, which begin with their length and end with one of length 0.
fn after_blocks(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match array::<1>(bytes, at)?[0] {
            0 => return Some(at + 1),
            length => at += 1 + usize::from(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_evenly() {
        let check = |num_frames, num_wanted, expected: &[usize]| {
            assert_eq!(sample(num_frames, num_wanted), expected, "{num_wanted} of {num_frames}");
        };
        check(1, 8, &[0]);
        check(3, 8, &[0, 1, 2]);
        check(8, 8, &[0, 1, 2, 3, 4, 5, 6, 7]);
        check(9, 8, &[0, 1, 2, 3, 4, 5, 6, 8]);
        check(100, 4, &[0, 33, 66, 99]);
        check(100, 2, &[0, 99]);
        check(100, 1, &[0]);
        for (num_frames, num_wanted) in (1..60).flat_map(|n| (1..60).map(move |k| (n, k))) {
            let taken = sample(num_frames, num_wanted);
            assert_eq!(taken.len(), num_frames.min(num_wanted));
            assert!(taken.windows(2).all(|pair| pair[0] < pair[1]) && taken[taken.len() - 1] < num_frames);
        }
    }

    #[test]
    fn structures_that_lead_nowhere_are_none() {
        let gif_head = b"GIF89a\x01\0\x01\0\0\0\0";
        for rest in
            [&b""[..], b";", b"\x2c", b"\x21\xf9\x04", b"\x21\xfe\xff", b"x", b"\x2c\0\0\0\0\x01\0\x01\0\x87"]
        {
            assert_eq!(kind(&[gif_head, rest].concat(), ImageFormat::Gif), None, "{rest:?}");
        }
        assert_eq!(kind(b"\x89PNG\r\n\x1a\n\xff\xff\xff\xffIHDR", ImageFormat::Png), None);
        assert_eq!(kind(b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\0\0\0\0\0\0", ImageFormat::WebP), None);
        assert_eq!(kind(b"RIFF\xff\0\0\0WEBPVP8X\xff\xff\xff\xff\x02", ImageFormat::WebP), None);
    }
}
