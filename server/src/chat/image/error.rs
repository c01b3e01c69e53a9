//! Why a picture cannot be shown to the model.

use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageInputError {
    #[error("the model takes text only")]
    NoEyes,
    #[error("remote images are not enabled; send the picture as a data URL")]
    Remote,
    #[error("its address is not a valid http or https URL of up to 8192 characters")]
    NotAUrl,
    #[error("its host is not one that pictures may be fetched from, or cannot be found")]
    HostNotAllowed,
    /// Of a host that the operator named, or where the look-up itself does not work: it says nothing of which names there are.
    #[error("the name of its host cannot be looked up now")]
    LookUpFailed,
    #[error("looking up the name of its host took longer than {} seconds", limit.as_secs_f64())]
    LookUpTooSlow { limit: Duration },
    #[error("its host answered with status {status}, expected 200")]
    RemoteStatus { status: u16 },
    #[error("it was not there within {} seconds", limit.as_secs_f64())]
    RemoteTooSlow { limit: Duration },
    #[error("its address leads on to others more than {limit} times")]
    TooManyRedirects { limit: u32 },
    #[error("it cannot be fetched from its host")]
    RemoteFailed,
    #[error("remote pictures of this request have more than {limit} bytes together")]
    TooManyRemoteBytes { limit: usize },
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
    #[error("picture has {bytes} bytes or more, above the limit of {limit}")]
    TooManyBytes { bytes: usize, limit: usize },
    #[error(
        "picture has {width}x{height} pixels, above the limit of {max_pixels} pixels or {max_side} a side"
    )]
    TooManyPixels { width: u32, height: u32, max_pixels: u64, max_side: u32 },
    #[error("picture of {width}x{height} pixels is empty")]
    NoPixels { width: u32, height: u32 },
    #[error("picture is none of PNG, JPEG, WebP, GIF, BMP")]
    UnknownFormat,
    #[error(
        "animation of {frames} frames of {width}x{height} pixels is above the limit of {max_pixels} pixels in all frames"
    )]
    TooManyFrames { frames: usize, width: u32, height: u32, max_pixels: u64 },
    #[error("{format} picture is broken: {message}")]
    Broken { format: &'static str, message: &'static str },
    /// By the model's own rules.
    #[error("{0}")]
    Unsuitable(String),
}
