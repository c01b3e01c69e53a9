//! `data:` URLs: media type and base64 body (RFC 2397), read as tolerantly as browsers and other servers do.

use super::error::ImageInputError;
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// How a client calls what it sends. Both kinds are told by their content alone; only the media types of data URLs differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    Image,
    Video,
}

/// With or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

pub(super) fn decode(url: &str, media: Media, max_bytes: usize) -> Result<Vec<u8>, ImageInputError> {
    let url = url.trim();
    let (scheme, rest) = url.split_once(':').ok_or(ImageInputError::NotADataUrl)?;
    match scheme.to_ascii_lowercase().as_str() {
        "data" => {}
        "http" | "https" => return Err(ImageInputError::Remote),
        _ => return Err(ImageInputError::NotADataUrl),
    }
    let (header, body) = rest.split_once(',').ok_or(ImageInputError::NotADataUrl)?;
    let mut parameters = header.split(';').map(str::trim);
    let media_type = parameters.next().unwrap_or_default().to_ascii_lowercase();
    let is_video = media == Media::Video && media_type.starts_with("video/");
    if !(media_type.is_empty()
        || media_type.starts_with("image/")
        || media_type == "application/octet-stream"
        || is_video)
    {
        let media_type = media_type.chars().take(64).collect();
        return Err(ImageInputError::NotAPicture { media_type });
    }
    if !parameters.any(|parameter| parameter.eq_ignore_ascii_case("base64")) {
        return Err(ImageInputError::NotBase64);
    }
    let body = clean(body)?;
    let bytes = body.len() / 4 * 3;
    if bytes > max_bytes {
        return Err(ImageInputError::TooManyBytes { bytes, limit: max_bytes });
    }
    BASE64.decode(body).map_err(|_| ImageInputError::BadBase64)
}

/// Without whitespace and percent escapes, in the standard alphabet.
fn clean(body: &str) -> Result<Vec<u8>, ImageInputError> {
    let mut cleaned = Vec::with_capacity(body.len());
    let mut bytes = body.bytes();
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'%' => {
                let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
                let (high, low) = (digit(), digit());
                high.zip(low).map(|(high, low)| (high * 16 + low) as u8).ok_or(ImageInputError::BadBase64)?
            }
            byte => byte,
        };
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => {}
            b'-' => cleaned.push(b'+'),
            b'_' => cleaned.push(b'/'),
            byte => cleaned.push(byte),
        }
    }
    Ok(cleaned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, expected: Result<&[u8], ImageInputError>) {
        assert_eq!(decode(url, Media::Image, 8).as_deref().map_err(Clone::clone), expected, "{url}");
    }

    #[test]
    fn reads_what_clients_write() {
        check("data:image/png;base64,/+8=", Ok(&[0xff, 0xef]));
        check("data:image/png;base64,/+8", Ok(&[0xff, 0xef]));
        check("DATA:Image/PNG;charset=x;BASE64,_-8=", Ok(&[0xff, 0xef]));
        check(" data:;base64,%2F%2B8%3D\n", Ok(&[0xff, 0xef]));
        check("data:application/octet-stream;base64,/ +\r\n8", Ok(&[0xff, 0xef]));
        check("data:image/png;base64,", Ok(&[]));
    }

    #[test]
    fn names_what_is_wrong() {
        check("https://example.org/a.png", Err(ImageInputError::Remote));
        check("file:///etc/passwd", Err(ImageInputError::NotADataUrl));
        check("iVBORw0KGgo=", Err(ImageInputError::NotADataUrl));
        check("data:image/png;base64", Err(ImageInputError::NotADataUrl));
        check("data:image/png,abc", Err(ImageInputError::NotBase64));
        check(
            "data:video/mp4;base64,AAAA",
            Err(ImageInputError::NotAPicture { media_type: "video/mp4".into() }),
        );
        check("data:image/png;base64,A", Err(ImageInputError::BadBase64));
        check("data:image/png;base64,AA!A", Err(ImageInputError::BadBase64));
        check("data:image/png;base64,AA%4", Err(ImageInputError::BadBase64));
        check(
            "data:image/png;base64,AAAAAAAAAAAAAAAA",
            Err(ImageInputError::TooManyBytes { bytes: 12, limit: 8 }),
        );
    }
}
