//! The page to try a model on: a few files built into the binary, served at `/` and below `/page/`. They hold no secret and need
//! no key; what the page calls does.

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asset {
    pub path: &'static str,
    pub content_type: &'static str,
    pub content: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! asset {
    ($path:literal, $content_type:ident, $file:literal) => {
        Asset { path: $path, content_type: $content_type, content: include_str!($file) }
    };
}

pub const ASSETS: &[Asset] = &[
    asset!("/", HTML, "page.html"),
    asset!("/page/page.css", CSS, "page.css"),
    asset!("/page/main.js", SCRIPT, "main.js"),
    asset!("/page/api.js", SCRIPT, "api.js"),
    asset!("/page/dom.js", SCRIPT, "dom.js"),
    asset!("/page/markdown.js", SCRIPT, "markdown.js"),
    asset!("/page/pictures.js", SCRIPT, "pictures.js"),
    asset!("/page/settings.js", SCRIPT, "settings.js"),
    asset!("/page/view.js", SCRIPT, "view.js"),
];

/// Only the page's own files and its own server, and no way from text to markup: what a model writes cannot run, load or send.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data: blob:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    ASSETS.iter().fold(Router::new(), |router, asset| {
        let etag = etag(asset.content);
        router.route(asset.path, get(async move |headers: HeaderMap| respond(asset, &etag, &headers)))
    })
}

/// Quoted, as in the header.
fn etag(content: &str) -> HeaderValue {
    let digest = blake3::hash(content.as_bytes()).to_hex();
    HeaderValue::try_from(format!("\"{}\"", &digest[..32])).expect("hexadecimal digits fit a header")
}

fn respond(asset: &Asset, etag: &HeaderValue, request: &HeaderMap) -> Response {
    let mut response = match is_known(request, etag) {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => Response::new(Body::from(asset.content)),
    };
    let headers = response.headers_mut();
    let mut set = |name, value| headers.insert(name, HeaderValue::from_static(value));
    set(header::CONTENT_TYPE, asset.content_type);
    // Kept, but asked for again: another binary may answer at this address tomorrow.
    set(header::CACHE_CONTROL, "no-cache");
    set(header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY);
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::REFERRER_POLICY, "no-referrer");
    set(header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
    headers.insert(header::ETAG, etag.clone());
    response
}

/// Whether the client holds this very content (RFC 9110, 13.1.2: compared weakly, `*` is anything).
fn is_known(request: &HeaderMap, etag: &HeaderValue) -> bool {
    let lists = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut tags = lists.flat_map(|list| list.split(',')).map(str::trim);
    tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag).as_bytes() == etag.as_bytes())
}
