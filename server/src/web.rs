//! What web pages may do. A browser lets any page send requests to a server on its reader's own machine; what it may not do without being
//! asked is read the answers, or send JSON. Two things get around that: a name that an attacker's DNS server moves to 127.0.0.1 (DNS
//! rebinding), and bodies of types that need no question. And pages that are meant to use the API need a permission (CORS).

use crate::error::ApiError;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::net::{IpAddr, Ipv6Addr};

#[derive(Debug, Clone, Default)]
pub struct WebPolicy {
    /// Names that requests may call the server by, besides addresses and names that no public DNS server has; `None`: any.
    pub hosts: Option<Vec<String>>,
    pub origins: Origins,
}

/// Pages that may use the API, by where they come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Origins {
    #[default]
    None,
    Any,
    Listed(Vec<String>),
}

impl Origins {
    /// Of the words of a flag: `*`, or origins such as `https://chat.example.org`.
    pub fn parse(words: &[String]) -> Result<Self, String> {
        if words.iter().any(|word| word.trim() == "*") {
            return Ok(Self::Any);
        }
        let origins = words.iter().map(|word| parse_origin(word.trim())).collect::<Result<Vec<_>, _>>()?;
        Ok(if origins.is_empty() { Self::None } else { Self::Listed(origins) })
    }

    /// The value of `Access-Control-Allow-Origin` for a page of this origin.
    fn allow(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        match self {
            Origins::None => None,
            Origins::Any => Some(HeaderValue::from_static("*")),
            Origins::Listed(listed) => {
                let is_listed = |text: &str| listed.iter().any(|one| one.eq_ignore_ascii_case(text));
                origin.to_str().is_ok_and(is_listed).then(|| origin.clone())
            }
        }
    }
}

fn parse_origin(word: &str) -> Result<String, String> {
    let wrong = || format!("`{word}` is neither * nor an origin such as https://chat.example.org");
    let (scheme, authority) = word.split_once("://").ok_or_else(wrong)?;
    let is_scheme = scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let is_authority = authority.bytes().all(|byte| byte.is_ascii_graphic() && !b"/?#@\\*".contains(&byte));
    match scheme.is_empty() || authority.is_empty() || !is_scheme || !is_authority {
        true => Err(wrong()),
        false => Ok(word.to_owned()),
    }
}

/// The words of a flag as names; `None` where any will do.
pub fn parse_hosts(words: &[String]) -> Result<Option<Vec<String>>, String> {
    let mut hosts = Vec::new();
    for word in words.iter().map(|word| word.trim()) {
        if word == "*" {
            return Ok(None);
        }
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if word.is_empty() || !word.bytes().all(is_name) {
            return Err(format!("`{word}` is neither * nor a name such as chat.example.org"));
        }
        hosts.push(word.to_ascii_lowercase());
    }
    Ok(Some(hosts))
}

impl WebPolicy {
    pub fn check(&self, request: &Request) -> Result<(), ApiError> {
        let headers = request.headers();
        if let Some(allowed) = &self.hosts {
            let uri_host = request.uri().authority().map(|authority| authority.as_str());
            // A browser always says a name.
            let header_hosts = headers.get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or("?"));
            for host in header_hosts.chain(uri_host) {
                if !is_known(host, allowed) {
                    return Err(ApiError::HostNotAllowed { host: name_of(host).chars().take(253).collect() });
                }
            }
        }
        let is_from_elsewhere = headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site");
        if is_from_elsewhere
            && changes_something(request.method())
            && !is_json(headers)
            && self.allows(request).is_none()
        {
            return Err(ApiError::OriginNotAllowed);
        }
        Ok(())
    }

    /// The value of `Access-Control-Allow-Origin` for who asks, if it is a page that may use the API.
    pub fn allows(&self, request: &Request) -> Option<HeaderValue> {
        request.headers().get(header::ORIGIN).and_then(|origin| self.origins.allow(origin))
    }

    /// Adds to an answer what a browser looks for before it shows it to a page.
    pub fn mark(&self, allowed: Option<HeaderValue>, headers: &mut HeaderMap) {
        if let Some(allowed) = allowed {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
        if matches!(self.origins, Origins::Listed(_)) {
            headers.append(header::VARY, HeaderValue::from_static("origin"));
        }
    }
}

/// Whether this is a browser's question before a request (a "preflight").
pub fn is_question(request: &Request) -> bool {
    request.method() == Method::OPTIONS && request.headers().contains_key(ASKED_METHOD)
}

/// Whether the body is said to be JSON.
pub fn is_json(headers: &HeaderMap) -> bool {
    let media_type = media_type(headers);
    media_type == "application/json"
        || (media_type.starts_with("application/") && media_type.ends_with("+json"))
}

pub fn media_type(headers: &HeaderMap) -> String {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase()
}

fn changes_something(method: &Method) -> bool {
    ![Method::GET, Method::HEAD, Method::OPTIONS].contains(method)
}

/// `host` is a `Host` header's value.
fn is_known(host: &str, allowed: &[String]) -> bool {
    let name = name_of(host).trim_end_matches('.').to_ascii_lowercase();
    // What is an address was not looked up.
    let is_address = name.parse::<IpAddr>().is_ok();
    let is_private = name == "localhost"
        || [".localhost", ".local", ".internal"].iter().any(|suffix| name.ends_with(suffix));
    is_address || is_private || allowed.contains(&name)
}

/// Without the port, and without an address's brackets.
fn name_of(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) if address.parse::<Ipv6Addr>().is_ok() => address,
        Some(_) => host,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    }
}

const EXPOSED: HeaderValue =
    HeaderValue::from_static("x-request-id, request-id, x-ignored-params, server-timing, retry-after");
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, DELETE, OPTIONS");
const ASKED_METHOD: HeaderName = header::ACCESS_CONTROL_REQUEST_METHOD;

/// The answer to such a question. Which headers it asks for is up to the client: SDKs send many of their own.
pub fn yes(asked: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    if let Some(names) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let allowed = ["chat.example.org".to_owned()];
        for known in [
            "localhost",
            "LocalHost:8000",
            "a.localhost",
            "127.0.0.1:8000",
            "127.0.0.1",
            "192.168.1.5:1",
            "[::1]:8000",
            "[::1]",
            "host.docker.internal:8000",
            "box.local",
            "localhost.",
            "chat.example.org",
            "Chat.Example.ORG:443",
        ] {
            assert!(is_known(known, &allowed), "{known}");
        }
        for unknown in [
            "evil.example",
            "evil.example:8000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "a.chat.example.org",
            "notlocalhost",
            "",
            ":8000",
            "[evil.example]:1",
            "0x7f.1",
            "x",
        ] {
            assert!(!is_known(unknown, &allowed), "{unknown}");
        }
    }

    #[test]
    fn flags() {
        let words = |words: &[&str]| words.iter().map(|word| word.to_string()).collect::<Vec<_>>();
        let parse = |list: &[&str]| Origins::parse(&words(list));
        assert_eq!(parse(&[]), Ok(Origins::None));
        assert_eq!(parse(&["https://a.b", "*"]), Ok(Origins::Any));
        let two = ["http://localhost:3000", "app://obsidian.md"];
        assert_eq!(parse(&two), Ok(Origins::Listed(words(&two))));
        for wrong in
            ["", "a.b", "https://", "://a", "https://a.b/", "https://a.b/c", "https://*.b", "ht tp://a"]
        {
            assert!(parse(&[wrong]).is_err(), "{wrong}");
        }
        assert_eq!(parse_hosts(&words(&["A.b", "c"])), Ok(Some(words(&["a.b", "c"]))));
        assert_eq!(parse_hosts(&words(&["a", "*"])), Ok(None));
        for wrong in ["", "a:80", "http://a", "*.a", "a b"] {
            assert!(parse_hosts(&words(&[wrong])).is_err(), "{wrong}");
        }
    }
}
