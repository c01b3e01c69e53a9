//! Chameleon: pictures are tokens of the vocabulary, 1,024 to a picture, and a picture's own tokens are never drawn in an answer.

mod vocabulary;

pub use vocabulary::PictureVocabulary;
