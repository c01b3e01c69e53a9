//! API keys. Only digests are kept, and comparing takes the same time for every wrong key.

use axum::http::{HeaderMap, header};
use subtle::{Choice, ConstantTimeEq};

#[derive(Clone, Default)]
pub struct ApiKeys(Vec<[u8; 32]>);

impl ApiKeys {
    pub fn new<S: AsRef<str>>(keys: &[S]) -> Self {
        Self(keys.iter().map(|key| digest(key.as_ref().as_bytes())).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Without keys every request may pass, whatever its header says.
    pub fn allow(&self, headers: &HeaderMap) -> bool {
        if self.is_empty() {
            return true;
        }
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
        // Anthropic's clients send theirs in a header of its own.
        let own = headers.get("x-api-key").map(|value| value.as_bytes());
        let known =
            [bearer, own].into_iter().flatten().fold(Choice::from(0), |known, key| known | self.knows(key));
        known.into()
    }

    fn knows(&self, key: &[u8]) -> Choice {
        let given = digest(key.trim_ascii());
        self.0.iter().fold(Choice::from(0), |known, key| known | key.ct_eq(&given))
    }
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys, redacted", self.0.len())
    }
}

/// The key in an `Authorization` header.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
}

fn digest(key: &[u8]) -> [u8; 32] {
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
    fn keys_are_not_printed() {
        assert_eq!(format!("{:?}", ApiKeys::new(&["secret"])), "1 keys, redacted");
    }
}
