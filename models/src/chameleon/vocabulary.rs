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
    /// `<reserved08706>`: what ends a turn.
    pub separator: Option<TokenId>,
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
        let [placeholder, separator] = [token("<image>")?, token("<reserved08706>")?];
        Ok(Self { codes, placeholder, ends, separator })
    }

    /// The tokens of all pictures, sorted: what an answer has none of. What is before and after a picture is not among them, as in the published code.
    pub fn never_drawn(&self) -> Vec<TokenId> {
        let mut ids: Vec<TokenId> = self.codes.values().copied().collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// A token for each entry of the codebook, and what is before and after a picture's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PictureTokens {
    entries: Vec<TokenId>,
    ends: [TokenId; 2],
    placeholder: TokenId,
}

impl PictureTokens {
    /// `top` is config.json: every entry of the codebook needs a token.
    pub fn new(top: &Fields, vocabulary: &PictureVocabulary, num_entries: usize) -> Result<Self, LoadError> {
        let fail = |message: String| top.fail(KEY, message);
        let entry = |code: usize| {
            let token = vocabulary.codes.get(&code).copied();
            token.ok_or_else(|| fail(format!("has no token for entry {code} of the codebook")))
        };
        Ok(Self {
            entries: (0..num_entries).map(entry).collect::<Result<_, _>>()?,
            ends: vocabulary.ends.ok_or_else(|| fail("has no <racm3:break> and <eoss>".into()))?,
            placeholder: vocabulary.placeholder.ok_or_else(|| fail("has no <image>".into()))?,
        })
    }

    /// Where a picture goes in a text.
    pub fn placeholder(&self) -> TokenId {
        self.placeholder
    }

    /// A whole picture: what is before it, a token for each of these entries, and what is after it.
    pub fn of(&self, codes: &[usize]) -> Vec<TokenId> {
        let [begin, end] = self.ends;
        std::iter::once(begin).chain(codes.iter().map(|&code| self.entries[code])).chain([end]).collect()
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
    fn a_picture_has_a_token_for_each_entry_and_two_ends() {
        let names = json!({"IMGIMGAZ": 9, "IMGIMGBZ": 8, "<image>": 20, "<racm3:break>": 22, "<eoss>": 21});
        let whole = read(names.clone()).unwrap();
        let json = json!({});
        let top = Fields::new("config.json", "", json.as_object().unwrap());
        let tokens = PictureTokens::new(&top, &whole, 2).unwrap();
        assert_eq!((tokens.of(&[1, 0, 1]), tokens.placeholder()), (vec![22, 8, 9, 8, 21], 20));
        let error = PictureTokens::new(&top, &whole, 3).unwrap_err().to_string();
        assert_eq!(error, "config.json: vocabulary_map: has no token for entry 2 of the codebook");
        for missing in ["<image>", "<racm3:break>", "<eoss>"] {
            let mut names = names.clone();
            names.as_object_mut().unwrap().remove(missing);
            let error = PictureTokens::new(&top, &read(names).unwrap(), 2).unwrap_err().to_string();
            assert!(error.contains(missing), "{error}");
        }
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
