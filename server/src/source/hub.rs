//! A client of the hub's file API: list a repository, ask for a file's size and hash, read it from a position on.
//!
//! Redirects are followed by hand, because the token must reach the endpoint's host and no other.

use super::name::{HubName, is_commit, is_safe_file_name};
use super::settings::HubSettings;
use std::io::Read;
use std::time::Duration;
use ureq::http::{Response, StatusCode, Uri, header};
use ureq::{Agent, Body};

#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("HF_ENDPOINT {endpoint:?} is not an http or https URL")]
    Endpoint { endpoint: String },
    #[error("failed to reach {url}: {message}")]
    Unreachable { url: String, message: String },
    #[error("{name} needs a token that may read it (HF_TOKEN), or does not exist")]
    Unauthorized { name: String },
    #[error("{name} is gated: ask for access on its page, then set HF_TOKEN")]
    Forbidden { name: String },
    #[error("{name} does not exist on {endpoint}")]
    NotFound { name: String, endpoint: String },
    #[error("hub answered {status} to {url}")]
    Status { status: u16, url: String },
    #[error("hub's answer to {url} makes no sense: {message}")]
    Nonsense { url: String, message: String },
    #[error("{file}: {got} bytes came, the hub announced {expected}")]
    WrongSize { file: String, got: u64, expected: u64 },
    #[error("{file}: content does not have the announced SHA-256 {expected}")]
    WrongHash { file: String, expected: String },
}

pub(super) struct Hub {
    agent: Agent,
    endpoint: Uri,
    base: String,
    token: Option<String>,
    pub retry_pause: Duration,
}

pub(super) struct Listing {
    pub commit: String,
    pub files: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileMeta {
    /// Names the blob.
    pub etag: String,
    pub size: Option<u64>,
}

impl FileMeta {
    /// Large files are stored under the hash of their content.
    pub fn sha256(&self) -> Option<&str> {
        let hex = self.etag.len() == 64 && self.etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        hex.then_some(self.etag.as_str())
    }
}

/// Where the answer's bytes belong.
pub(super) struct Reading {
    pub body: Box<dyn Read>,
    /// As asked for, or 0 where the server does not know ranges.
    pub start: u64,
}

const MAX_REDIRECTS: usize = 8;
const MAX_LISTING_BYTES: u64 = 32 << 20;

impl Hub {
    pub fn new(settings: &HubSettings) -> Result<Self, HubError> {
        let bad = || HubError::Endpoint { endpoint: settings.endpoint.clone() };
        let endpoint: Uri = settings.endpoint.parse().map_err(|_| bad())?;
        if !matches!(endpoint.scheme_str(), Some("http" | "https")) {
            return Err(bad());
        }
        let host = endpoint.host().ok_or_else(bad)?;
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_resolve(Some(Duration::from_secs(10)))
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .user_agent(concat!("perilune/", env!("CARGO_PKG_VERSION")));
        // A stand-in on this machine is not behind the proxy of the environment.
        if matches!(host, "localhost" | "127.0.0.1" | "[::1]") {
            config = config.proxy(None);
        }
        let agent = Agent::new_with_config(config.build());
        let (base, token) = (settings.endpoint.clone(), settings.token.clone());
        Ok(Self { agent, endpoint, base, token, retry_pause: settings.retry_pause })
    }

    /// The commit of a revision and its files.
    pub fn list(&self, name: &HubName) -> Result<Listing, HubError> {
        let revision = name.revision.replace('/', "%2F");
        let url = format!("{}/api/models/{}/revision/{revision}", self.base, name.repository);
        let mut response = self.request("GET", &url, None)?;
        self.check(&response, name, &url)?;
        let nonsense = |message: String| HubError::Nonsense { url: url.clone(), message };
        let content = response.body_mut().with_config().limit(MAX_LISTING_BYTES).read_to_vec();
        let content = content
            .map_err(|error| HubError::Unreachable { url: url.clone(), message: error.to_string() })?;
        let answer: serde_json::Value =
            serde_json::from_slice(&content).map_err(|error| nonsense(error.to_string()))?;
        let commit = answer["sha"].as_str().filter(|sha| is_commit(sha));
        let commit = commit.ok_or_else(|| nonsense("it names no commit".to_string()))?.to_string();
        // Names that no model needs are not looked at again.
        let files =
            answer["siblings"].as_array().into_iter().flatten().filter_map(|file| file["rfilename"].as_str());
        let files = files.filter(|file| is_safe_file_name(file)).map(str::to_string).collect();
        Ok(Listing { commit, files })
    }

    pub fn meta(&self, name: &HubName, commit: &str, file: &str) -> Result<FileMeta, HubError> {
        let url = self.file_url(name, commit, file);
        // The first answer knows the hash; a store that it redirects to may know another.
        let mut response = self.send("HEAD", &url, None)?;
        for _ in 0..MAX_REDIRECTS {
            if !response.status().is_redirection() || response.headers().contains_key("x-linked-etag") {
                break;
            }
            let next = self.redirection(&response, &url)?;
            response = self.send("HEAD", &next, None)?;
        }
        if !response.status().is_redirection() {
            self.check(&response, name, &url)?;
        }
        let header = |key: &str| response.headers().get(key).and_then(|value| value.to_str().ok());
        let etag = header("x-linked-etag").or_else(|| header("etag")).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_string();
        if !is_safe_file_name(&etag) {
            return Err(HubError::Nonsense { url, message: "it has no usable etag".to_string() });
        }
        let length = header("content-length").filter(|_| response.status().is_success());
        let size = header("x-linked-size").or(length).and_then(|size| size.parse().ok());
        Ok(FileMeta { etag, size })
    }

    /// Reads a file from byte `start` on.
    pub fn read(&self, name: &HubName, commit: &str, file: &str, start: u64) -> Result<Reading, HubError> {
        let url = self.file_url(name, commit, file);
        let range = (start > 0).then(|| format!("bytes={start}-"));
        let response = self.request("GET", &url, range.as_deref())?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE && start > 0 {
            return self.read(name, commit, file, 0);
        }
        self.check(&response, name, &url)?;
        let start = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let value =
                    response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
                let from = value
                    .and_then(|value| value.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
                if from != Some(start) {
                    let message = format!("asked for bytes from {start}, got content-range {value:?}");
                    return Err(HubError::Nonsense { url, message });
                }
                start
            }
            _ => 0,
        };
        let body = response.into_body().into_with_config().limit(u64::MAX).reader();
        Ok(Reading { body: Box::new(body), start })
    }

    fn file_url(&self, name: &HubName, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{file}", self.base, name.repository)
    }

    /// Sends and follows redirects.
    fn request(&self, method: &str, url: &str, range: Option<&str>) -> Result<Response<Body>, HubError> {
        let mut url = url.to_string();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(method, &url, range)?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            url = self.redirection(&response, &url)?;
        }
        Err(HubError::Nonsense { url, message: "it redirects without end".to_string() })
    }

    fn send(&self, method: &str, url: &str, range: Option<&str>) -> Result<Response<Body>, HubError> {
        let mut request = match method {
            "HEAD" => self.agent.head(url),
            _ => self.agent.get(url),
        };
        // Sizes and ranges are those of the file, not of a compressed form.
        request = request.header(header::ACCEPT_ENCODING, "identity");
        if let Some(range) = range {
            request = request.header(header::RANGE, range);
        }
        if let Some(token) = self.token.as_ref().filter(|_| self.is_endpoint(url)) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        // The message must not name what a signed URL of a store carries in its query.
        let shown = url.split('?').next().unwrap_or(url).to_string();
        request.call().map_err(|error| HubError::Unreachable { url: shown, message: error.to_string() })
    }

    fn is_endpoint(&self, url: &str) -> bool {
        url.parse::<Uri>().is_ok_and(|uri| {
            uri.scheme() == self.endpoint.scheme()
                && uri.host() == self.endpoint.host()
                && uri.port_u16() == self.endpoint.port_u16()
        })
    }

    /// Where an answer sends us: an absolute URL, or a path on the same host. Never from https to http.
    fn redirection(&self, response: &Response<Body>, from: &str) -> Result<String, HubError> {
        let nonsense =
            |message: &str| HubError::Nonsense { url: from.to_string(), message: message.to_string() };
        let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| nonsense("it redirects to nowhere"))?;
        let from: Uri = from.parse().map_err(|_| nonsense("its URL is broken"))?;
        let (scheme, authority) =
            (from.scheme_str().unwrap_or("https"), from.authority().map_or("", |a| a.as_str()));
        let to = match location {
            path if path.starts_with("//") => format!("{scheme}:{path}"),
            path if path.starts_with('/') => format!("{scheme}://{authority}{path}"),
            url => url.to_string(),
        };
        match (scheme, to.split("://").next()) {
            (_, Some("https")) | ("http", Some("http")) => Ok(to),
            _ => Err(nonsense("it redirects to something other than https")),
        }
    }

    fn check(&self, response: &Response<Body>, name: &HubName, url: &str) -> Result<(), HubError> {
        let name = name.to_string();
        Err(match response.status().as_u16() {
            200..=299 => return Ok(()),
            401 => HubError::Unauthorized { name },
            403 => HubError::Forbidden { name },
            404 => HubError::NotFound { name, endpoint: self.base.clone() },
            status => HubError::Status { status, url: url.to_string() },
        })
    }
}
