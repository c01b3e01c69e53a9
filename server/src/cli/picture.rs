//! Pictures as data URLs, the form in which the API takes them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::path::Path;

/// A file as it is: the server decodes it.
pub fn from_file(path: &Path) -> Result<String, String> {
    let content =
        std::fs::read(path).map_err(|error| format!("failed to read {}: {error}", path.display()))?;
    let format = image::guess_format(&content).map_err(|_| format!("{} is not a picture", path.display()))?;
    Ok(data_url(format.to_mime_type(), &content))
}

/// A PNG of the given size that no other seed gives.
pub fn noise(width: u32, height: u32, mut next: impl FnMut() -> u64) -> Result<String, String> {
    // Coarse squares keep the file small; a picture of pure noise would measure the decoder.
    let colours: Vec<[u8; 3]> =
        (0..256).map(|_| next().to_le_bytes()[..3].try_into().unwrap_or_default()).collect();
    let picture = image::RgbImage::from_fn(width, height, |x, y| {
        image::Rgb(colours[((x / 16 + 7 * (y / 16)) % 256) as usize])
    });
    let mut png = std::io::Cursor::new(Vec::new());
    picture
        .write_to(&mut png, image::ImageFormat::Png)
        .map_err(|error| format!("failed to write a PNG: {error}"))?;
    Ok(data_url("image/png", png.get_ref()))
}

fn data_url(mime_type: &str, content: &[u8]) -> String {
    format!("data:{mime_type};base64,{}", STANDARD.encode(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_pictures_are_pngs_and_differ() {
        let draw = |seed: u64| {
            let mut state = seed;
            noise(37, 21, || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                state >> 20
            })
        };
        let url = draw(1).unwrap();
        let png = STANDARD.decode(url.strip_prefix("data:image/png;base64,").unwrap()).unwrap();
        let picture = image::load_from_memory(&png).unwrap();
        assert_eq!((picture.width(), picture.height()), (37, 21));
        assert_eq!(draw(1).unwrap(), url);
        assert_ne!(draw(2).unwrap(), url);
    }

    #[test]
    fn files_that_are_no_pictures_are_refused() {
        assert!(
            from_file(Path::new("/nowhere/x.png"))
                .unwrap_err()
                .starts_with("failed to read /nowhere/x.png: ")
        );
        let this = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        assert_eq!(from_file(&this).unwrap_err(), format!("{} is not a picture", this.display()));
    }
}
