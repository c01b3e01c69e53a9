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
        let Some(value) = headers.get(header::AUTHORIZATION) else { return false };
        let Some((scheme, key)) = value.as_bytes().split_at_checked(7) else { return false };
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return false;
        }
        let given = digest(key.trim_ascii());
        let known = self.0.iter().fold(Choice::from(0), |known, key| known | key.ct_eq(&given));
        known.into()
    }
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys, redacted", self.0.len())
    }
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
    fn keys_are_not_printed() {
        assert_eq!(format!("{:?}", ApiKeys::new(&["secret"])), "1 keys, redacted");
    }
}
