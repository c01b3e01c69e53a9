//! Which token ids stand for pictures, read from `vocabulary_map` of config.json: the ids are those of the names there, in no order that could
//! be assumed.
//!
//! ```text
//! IMGIMGBACZ ─▶ letters A … J for digits 0 … 9 ─▶ entry 102 of the codebook
//! ```

use crate::LoadError;
use crate::config::json::Fields;
use scheduler::TokenId;
use std::collections::BTreeMap;

const KEY: &str = "vocabulary_map";
const PREFIX: &str = "IMGIMG";

/// Tokens that pictures are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PictureVocabulary {
    /// The token of each entry of the codebook.
    pub codes: BTreeMap<usize, TokenId>,
    /// `<image>`: where a picture goes in a text.
    pub placeholder: Option<TokenId>,
    /// `<racm3:break>` and `<eoss>`: before and after the tokens of a picture.
    pub ends: Option<[TokenId; 2]>,
}

impl PictureVocabulary {
    pub fn read(top: &Fields, vocab_size: usize) -> Result<Self, LoadError> {
        let names = top.opt_object(KEY)?.ok_or_else(|| top.fail(KEY, "is missing"))?;
        let path = top.nested_path(KEY);
        let map = top.nested(&path, names);
        let token = |name: &str| map.opt_token_id(name, vocab_size);
        let mut codes = BTreeMap::new();
        for (name, value) in names {
            let Some(code) = name.strip_prefix(PREFIX) else { continue };
            let code = code_of(code)
                .ok_or_else(|| map.fail(name, "is not IMGIMG, digits as letters from A to J, and Z"))?;
            let id = token(name)?.filter(|_| value.is_u64());
            let id = id.ok_or_else(|| map.fail(name, "is not a token id"))?;
            if codes.insert(code, id).is_some() {
                return Err(map.fail(name, format!("is a second name of entry {code}")));
            }
        }
        if codes.is_empty() {
            return Err(top.fail(KEY, "has no name that begins with IMGIMG"));
        }
        let ends = match (token("<racm3:break>")?, token("<eoss>")?) {
            (Some(begin), Some(end)) => Some([begin, end]),
            _ => None,
        };
        Ok(Self { codes, placeholder: token("<image>")?, ends })
    }

    /// The tokens of all pictures, sorted: what an answer has none of. What is before and after a picture is not among them, as in the published code.
    pub fn never_drawn(&self) -> Vec<TokenId> {
        let mut ids: Vec<TokenId> = self.codes.values().copied().collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// The entry that letters name, and nothing else.
fn code_of(letters: &str) -> Option<usize> {
    let letters = letters.strip_suffix('Z')?;
    if letters.is_empty() || letters.len() > 9 {
        return None;
    }
    letters.bytes().try_fold(0, |code, letter| match letter {
        b'A'..=b'J' => Some(10 * code + usize::from(letter - b'A')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(map: Value) -> Result<PictureVocabulary, String> {
        let json = json!({ KEY: map });
        let fields = Fields::new("config.json", "", json.as_object().unwrap());
        PictureVocabulary::read(&fields, 100).map_err(|error| error.to_string())
    }

    #[test]
    fn letters_are_digits_and_ids_come_in_any_order() {
        let names = json!({"IMGIMGBACZ": 7, "IMGIMGAZ": 9, "IMGIMGBZ": 8, "<image>": 20, "<racm3:break>": 22, "<eoss>": 21, "a": 5});
        let found = read(names).unwrap();
        assert_eq!(found.codes, BTreeMap::from([(0, 9), (1, 8), (102, 7)]));
        assert_eq!((found.placeholder, found.ends), (Some(20), Some([22, 21])));
        assert_eq!(found.never_drawn(), [7, 8, 9]);
        assert_eq!(read(json!({"IMGIMGAZ": 1})).unwrap().ends, None);
    }

    #[test]
    fn names_that_are_wrong_are_named() {
        let check = |map: Value, start: &str| {
            let error = read(map).unwrap_err();
            assert!(error.starts_with(&format!("config.json: {start}")), "{error}");
        };
        check(Value::Null, "vocabulary_map: is missing");
        check(json!([1]), "vocabulary_map: ");
        check(json!({"a": 1}), "vocabulary_map: has no name");
        check(json!({"IMGIMGAB": 1}), "vocabulary_map.IMGIMGAB: ");
        check(json!({"IMGIMGKZ": 1}), "vocabulary_map.IMGIMGKZ: ");
        check(json!({"IMGIMGZ": 1}), "vocabulary_map.IMGIMGZ: ");
        check(json!({"IMGIMGAAAAAAAAAAZ": 1}), "vocabulary_map.IMGIMGAAAAAAAAAAZ: ");
        check(json!({"IMGIMGAZ": 100}), "vocabulary_map.IMGIMGAZ: 100 is not below");
        check(json!({"IMGIMGAZ": null}), "vocabulary_map.IMGIMGAZ: ");
        check(json!({"IMGIMGAZ": [1]}), "vocabulary_map.IMGIMGAZ: ");
        check(json!({"IMGIMGAZ": "1"}), "vocabulary_map.IMGIMGAZ: ");
        check(json!({"IMGIMGAZ": 1, "IMGIMGAAZ": 2}), "vocabulary_map.");
    }
}
