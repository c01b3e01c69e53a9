//! A picture as a prompt holds it, after the model's image processor.

use scheduler::{ImageInput, TokenId};
use std::sync::Arc;

#[derive(Debug, Clone, PartialEq)]
pub enum Picture {
    /// Rows of embedding that a vision tower makes take the place of its tokens.
    Rows(Arc<ImageInput>),
    /// It is tokens of the vocabulary like a text's.
    Tokens(Arc<[TokenId]>),
}

impl Picture {
    /// What keeping it costs.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Rows(image) => size_of::<ImageInput>() + size_of_val(&image.patches[..]),
            Self::Tokens(tokens) => size_of_val(&tokens[..]),
        }
    }
}

impl From<ImageInput> for Picture {
    fn from(image: ImageInput) -> Self {
        Self::Rows(Arc::new(image))
    }
}
