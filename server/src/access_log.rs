//! Which requests have a line in the log of their own. Metrics count all of them.

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccessLog {
    /// No request has one.
    pub is_off: bool,
    /// Routes whose requests have none, besides those that machines poll.
    pub quiet: Vec<String>,
}

/// Polled by machines: not worth a line each.
const POLLED: &[&str] = &["/health", "/livez", "/live", "/readyz", "/ready", "/ping", "/load", "/metrics"];

impl AccessLog {
    /// `paths` are of routes, with or without `/v1`.
    pub fn new(is_off: bool, paths: Vec<String>) -> Result<Self, String> {
        match paths.iter().find(|path| !path.starts_with('/')) {
            Some(path) => Err(format!("`{path}` is not a path such as /v1/models")),
            None => Ok(Self { is_off, quiet: paths }),
        }
    }

    pub fn has_line(&self, route: &str) -> bool {
        let route = without_v1(route);
        !self.is_off && !POLLED.contains(&route) && !self.quiet.iter().any(|path| without_v1(path) == route)
    }
}

fn without_v1(path: &str) -> &str {
    path.strip_prefix("/v1").filter(|rest| rest.starts_with('/')).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let log = |is_off, paths: &[&str]| {
            AccessLog::new(is_off, paths.iter().map(|path| path.to_string()).collect())
        };
        let has = |log: &AccessLog| {
            ["/v1/models", "/models", "/v1/health", "/metrics", "/v1x", "none"]
                .map(|route| log.has_line(route))
        };
        assert_eq!(has(&AccessLog::default()), [true, true, false, false, true, true]);
        for path in ["/v1/models", "/models"] {
            assert_eq!(has(&log(false, &[path]).unwrap()), [false, false, false, false, true, true]);
        }
        assert_eq!(has(&log(true, &[]).unwrap()), [false; 6]);
        assert!(log(false, &["/a", "models"]).unwrap_err().contains("`models`"));
    }
}
