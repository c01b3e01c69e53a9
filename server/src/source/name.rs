//! Names on the hub: `org/name`, optionally `@revision`. They become parts of URLs and of paths, so little is allowed in them.

use std::fmt;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    /// `org/name`.
    pub repository: String,
    /// A branch, a tag, a commit, or `refs/pr/1`.
    pub revision: String,
}

impl HubName {
    /// `None` for what cannot be one, such as `/models/x` or `../x`.
    pub fn parse(text: &str) -> Option<Self> {
        let (repository, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (org, name) = repository.split_once('/')?;
        let good =
            is_safe_file_name(org) && is_safe_file_name(name) && revision.split('/').all(is_safe_file_name);
        good.then(|| Self { repository: repository.to_string(), revision: revision.to_string() })
    }

    /// The folder in the cache: `models--org--name`.
    pub fn folder(&self) -> String {
        format!("models--{}", self.repository.replace('/', "--"))
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision.as_str() {
            "main" => f.write_str(&self.repository),
            revision => write!(f, "{}@{revision}", self.repository),
        }
    }
}

/// One component of a path, with nothing in it that a file system or a URL reads in its own way.
pub(super) fn is_safe_file_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !name.is_empty() && name.len() <= 128 && !name.starts_with('.') && name.bytes().all(good)
}

pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_revisions() {
        let check = |text: &str, expected: Option<(&str, &str, &str)>| {
            let name = HubName::parse(text);
            let parts = name.as_ref().map(|n| (n.repository.as_str(), n.revision.as_str()));
            assert_eq!(parts, expected.map(|(repository, revision, _)| (repository, revision)), "{text}");
            assert_eq!(name.map(|n| n.folder()).as_deref(), expected.map(|(_, _, folder)| folder));
        };
        check("a/b", Some(("a/b", "main", "models--a--b")));
        check("Org-1/Name_2.5@v1.0", Some(("Org-1/Name_2.5", "v1.0", "models--Org-1--Name_2.5")));
        check("a/b@refs/pr/1", Some(("a/b", "refs/pr/1", "models--a--b")));
        for bad in [
            "",
            "a",
            "a/",
            "/a",
            "a/b/c",
            "../b",
            "a/..",
            "a/b@",
            "a/b@../x",
            "a/b@x/../../y",
            "./a",
            "a b/c",
            "a/b?x",
            "a/%2e",
        ] {
            check(bad, None);
        }
    }
}
