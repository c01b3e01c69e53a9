//! API keys. Only digests are kept, and comparing takes the same time for every wrong key.

use crate::reload::{FileError, FromFiles, NamedFile, Reload};
use axum::http::{HeaderMap, header};
use std::path::PathBuf;
use std::sync::Arc;
use subtle::{Choice, ConstantTimeEq};

#[derive(Clone, Default)]
pub struct ApiKeys {
    given: Vec<Digest>,
    /// Never empty: a file without keys cannot be used, or it would open the server.
    file: Option<Arc<FromFiles<Vec<Digest>>>>,
}

type Digest = [u8; 32];

impl ApiKeys {
    pub fn new<S: AsRef<str>>(keys: &[S]) -> Self {
        Self { given: keys.iter().map(|key| digest(key.as_ref().as_bytes())).collect(), file: None }
    }

    /// And those in a file, as it is from time to time.
    pub fn with_file<S: AsRef<str>>(keys: &[S], path: PathBuf) -> Result<Self, FileError> {
        let named = vec![NamedFile { flag: "api-key-file", path }];
        let file = FromFiles::open("api_keys", named, Box::new(parse_keys))?;
        Ok(Self { file: Some(Arc::new(file)), ..Self::new(keys) })
    }

    pub fn is_empty(&self) -> bool {
        self.given.is_empty() && self.file.is_none()
    }

    /// To be read again.
    pub fn file(&self) -> Option<Arc<dyn Reload>> {
        self.file.clone().map(|file| file as Arc<dyn Reload>)
    }

    fn all(&self) -> Vec<Digest> {
        let mut all = self.given.clone();
        all.extend(self.file.iter().flat_map(|file| file.get().to_vec()));
        all
    }

    /// Without keys every request may pass, whatever its header says.
    pub fn allow(&self, headers: &HeaderMap) -> bool {
        if self.is_empty() {
            return true;
        }
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
        // Anthropic's clients send theirs in a header of its own.
        let own = headers.get("x-api-key").map(|value| value.as_bytes());
        let all = self.all();
        let known = [bearer, own]
            .into_iter()
            .flatten()
            .fold(Choice::from(0), |known, key| known | is_among(&all, key));
        known.into()
    }
}

fn is_among(keys: &[Digest], key: &[u8]) -> Choice {
    let given = digest(key.trim_ascii());
    keys.iter().fold(Choice::from(0), |known, key| known | key.ct_eq(&given))
}

/// One a line.
fn parse_keys(files: &[NamedFile], contents: &[Vec<u8>]) -> Result<Vec<Digest>, FileError> {
    let lines = contents[0].split(|&byte| byte == b'\n').map(|line| line.trim_ascii());
    let keys: Vec<Digest> =
        lines.filter(|line| !line.is_empty() && !line.starts_with(b"#")).map(digest).collect();
    match keys.is_empty() {
        true => Err(files[0].error("has no key")),
        false => Ok(keys),
    }
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys, redacted", self.all().len())
    }
}

/// The key in an `Authorization` header.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
}

fn digest(key: &[u8]) -> Digest {
    *blake3::hash(key).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(keys: &[&str], header: Option<&str>, expected: bool) {
        let mut headers = HeaderMap::new();
        if let Some(header) = header {
            headers.insert("authorization", header.parse().expect("a header value"));
        }
        assert_eq!(ApiKeys::new(keys).allow(&headers), expected, "{keys:?} {header:?}");
    }

    #[test]
    fn keys() {
        check(&[], None, true);
        check(&[], Some(""), true);
        check(&["a", "b"], Some("Bearer a"), true);
        check(&["a", "b"], Some("bearer b "), true);
        for header in ["", "Bearer", "Bearer ", "Bearer ab", "Basic a", "a", "Bearer a b"] {
            check(&["a", "b"], Some(header), false);
        }
        check(&["a"], None, false);
    }

    #[test]
    fn anthropics_header() {
        for (key, bearer, expected) in [
            ("b", None, true),
            (" b", None, true),
            ("c", None, false),
            ("", None, false),
            ("Bearer a", None, false),
        ]
        .into_iter()
        .chain([
            ("a", Some("Bearer c"), true),
            ("c", Some("Bearer a"), true),
            ("c", Some("Bearer d"), false),
        ]) {
            let mut headers = HeaderMap::new();
            headers.insert("x-api-key", key.parse().expect("a header value"));
            if let Some(bearer) = bearer {
                headers.insert("authorization", bearer.parse().expect("a header value"));
            }
            assert_eq!(ApiKeys::new(&["a", "b"]).allow(&headers), expected, "{key:?} {bearer:?}");
        }
    }

    #[test]
    fn keys_in_a_file_come_and_go() {
        use crate::reload::{Occasion, Reloaded};
        use std::env;
        let path = env::temp_dir().join(format!("perilune-{}-keys", std::process::id()));
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("# team\n\n");
        let error = ApiKeys::with_file(&["a"], path.clone()).unwrap_err().to_string();
        assert_eq!(error, format!("--api-key-file: {} has no key", path.display()));
        write("# team\n  b \r\n\nc");
        let keys = ApiKeys::with_file(&["a"], path.clone()).unwrap();
        let allowed = |keys: &ApiKeys| {
            ["a", "b", "c", "d", "# team", ""].map(|key| {
                let mut headers = HeaderMap::new();
                headers.insert("x-api-key", key.parse().unwrap());
                keys.allow(&headers)
            })
        };
        assert_eq!(allowed(&keys), [true, true, true, false, false, false]);
        assert_eq!(format!("{keys:?}"), "3 keys, redacted");
        // Copies, which handlers have, see what is new.
        let copy = keys.clone();
        write("d");
        assert_eq!(keys.file().unwrap().reload(Occasion::Signal), Reloaded::Taken);
        assert_eq!(allowed(&copy), [true, false, false, true, false, false]);
        write("");
        assert!(matches!(keys.file().unwrap().reload(Occasion::Signal), Reloaded::Failed(_)));
        assert_eq!(allowed(&copy), [true, false, false, true, false, false]);
        let only = ApiKeys { given: Vec::new(), ..copy };
        assert!(!only.is_empty() && !allowed(&only)[0]);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn keys_are_not_printed() {
        assert_eq!(format!("{:?}", ApiKeys::new(&["secret"])), "1 keys, redacted");
    }
}
