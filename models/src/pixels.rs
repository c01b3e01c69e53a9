//! What image processors share: the normalised value of each byte, resizing, and the name of what they make by its content.

use crate::LoadError;
use crate::config::json::Fields;
use crate::resize::resize;
use crate::vision_parts::CHANNELS;
use scheduler::Digest;
use std::borrow::Cow;

/// `(scaled(byte) - mean) / std`, channel by channel.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PixelValues([[f32; 256]; CHANNELS]);

/// Of each channel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Normalisation {
    pub mean: [f32; CHANNELS],
    pub std: [f32; CHANNELS],
}

impl Normalisation {
    /// `image_mean` and `image_std`; without a default both have to be there.
    pub fn read(fields: &Fields, default: Option<Self>) -> Result<Self, LoadError> {
        let mean = fields.numbers("image_mean", default.map(|default| default.mean))?;
        let std = fields.numbers("image_std", default.map(|default| default.std))?;
        match std.iter().any(|&s| s <= 0.0) {
            true => Err(fields.fail("image_std", "has a value that is not positive")),
            false => Ok(Self { mean, std }),
        }
    }
}

impl PixelValues {
    pub fn new(scaled: impl Fn(usize) -> f32, Normalisation { mean, std }: Normalisation) -> Self {
        let value = |c: usize, byte: usize| (scaled(byte) - mean[c]) / std[c];
        Self(std::array::from_fn(|c| std::array::from_fn(|byte| value(c, byte))))
    }

    /// Of each channel in order.
    pub fn channels(&self) -> impl Iterator<Item = (usize, &[f32; 256])> {
        self.0.iter().enumerate()
    }

    pub fn of(&self, channel: usize, byte: u8) -> f32 {
        self.0[channel][byte as usize]
    }

    /// Names what is made of the resized pixels by these, by the values of bytes, and by the numbers that say how they are laid out. `domain` is to be
    /// changed when the same of all these begins to give something else.
    pub fn digest(&self, domain: &[u8], layout: [usize; 4], rgb: &[u8]) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(domain);
        for number in layout {
            hasher.update(&(number as u64).to_le_bytes());
        }
        for value in self.0.iter().flatten() {
            hasher.update(&value.to_le_bytes());
        }
        hasher.update(rgb);
        Digest(*hasher.finalize().as_bytes())
    }
}

/// `[height, width, 3]`, bicubic, where the size changes at all. Sizes are width and height.
pub(crate) fn resized(rgb: &[u8], from: (usize, usize), to: (usize, usize)) -> Cow<'_, [u8]> {
    check_len(rgb, from);
    if from == to { Cow::Borrowed(rgb) } else { Cow::Owned(resize(rgb, from, to)) }
}

/// That pixels are as many as the picture's width and height say.
pub(crate) fn check_len(rgb: &[u8], (width, height): (usize, usize)) {
    let len = width.checked_mul(height).and_then(|n| n.checked_mul(CHANNELS));
    assert_eq!(len, Some(rgb.len()), "pixels");
}

/// That no step of processing is switched off.
pub(crate) fn check_steps(fields: &Fields, keys: &[&str]) -> Result<(), LoadError> {
    for key in keys {
        if !fields.bool_or(key, true)? {
            return Err(fields.fail(key, "false is not supported"));
        }
    }
    Ok(())
}

/// That a processor, which was read from `file`, makes the patches that a tower takes.
pub(crate) fn check_patch_size(file: &str, made: usize, taken: usize) -> Result<(), LoadError> {
    match made == taken {
        true => Ok(()),
        false => {
            let message = format!("{made} is not that of config.json, {taken}");
            Err(LoadError::config(file, "patch_size", message))
        }
    }
}
