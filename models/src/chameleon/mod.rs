//! Chameleon: pictures are tokens of the vocabulary, 1,024 to a picture, and a picture's own tokens are never drawn in an answer.
//!
//! ```text
//! pixels ─image processor─▶ square ─encoder─▶ nearest entries of a codebook ─vocabulary─▶ tokens, which the prompt holds like a text's
//!           └─────────────────── on the server's threads, before a request is scheduled ──────────────────┘
//! ```

pub(crate) mod config;
mod conv;
pub(crate) mod encoder;
pub(crate) mod image_processor;
pub(crate) mod vocabulary;

pub use config::VqConfig;
pub use encoder::Encoder;
pub use image_processor::{ChameleonImageProcessor, PixelRule};
pub use vocabulary::{PictureTokens, PictureVocabulary};
