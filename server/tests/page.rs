//! The page as files over HTTP: its headers, its size, what it may never contain. How it works is tested in a browser, by
//! `tests/page/run`.

use crate::harness;

use harness::client::Response;
use harness::{Setup, TestServer};
use perilune::app::AppLimits;
use perilune::page::{ASSETS, Asset};

/// Read by people on slow lines too, and without a build step nothing makes it smaller.
const BYTES_MAX: usize = 72 * 1024;

fn get(server: &TestServer, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
    let mut connection = server.connect();
    connection.send(method, path, headers, b"");
    if method == "HEAD" { connection.head() } else { connection.receive() }
}

fn scripts() -> impl Iterator<Item = &'static Asset> {
    ASSETS.iter().filter(|asset| asset.path.ends_with(".js"))
}

#[test]
fn every_file_with_its_headers() {
    let server = TestServer::start();
    for asset in ASSETS {
        let response = get(&server, "GET", asset.path, &[]);
        assert_eq!((response.status, response.text()), (200, asset.content), "{}", asset.path);
        for (name, expected) in [
            ("content-type", asset.content_type),
            ("cache-control", "no-cache"),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(response.header(name), Some(expected), "{} {name}", asset.path);
        }
        let policy = response.header("content-security-policy").expect("a policy");
        let rules: Vec<&str> = policy.split(';').map(str::trim).collect();
        for rule in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src data: blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        ] {
            assert!(rules.contains(&rule), "{rule} in {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
    }
}

#[test]
fn what_the_client_has_is_not_sent_again() {
    let server = TestServer::start();
    let mut etags = Vec::new();
    for asset in ASSETS {
        let etag = get(&server, "GET", asset.path, &[]).header("etag").expect("an etag").to_owned();
        for (tag, status) in [
            (etag.clone(), 304),
            (format!("W/{etag}"), 304),
            (format!("\"other\" , {etag}"), 304),
            ("*".to_owned(), 304),
            ("\"other\"".to_owned(), 200),
            (String::new(), 200),
        ] {
            let response = get(&server, "GET", asset.path, &[("if-none-match", &tag)]);
            assert_eq!(response.status, status, "{} {tag}", asset.path);
            assert_eq!(response.header("etag"), Some(etag.as_str()));
            assert_eq!(response.text().is_empty(), status == 304);
        }
        assert_eq!(get(&server, "HEAD", asset.path, &[]).status, 200);
        assert!(!etags.contains(&etag), "two files with the tag {etag}");
        etags.push(etag);
    }
}

#[test]
fn it_can_be_left_out() {
    let mut setup = Setup::default();
    setup.options.limits.page = false;
    let server = TestServer::with(setup);
    for asset in ASSETS {
        assert_eq!(get(&server, "GET", asset.path, &[]).status, 404, "{}", asset.path);
    }
    assert_eq!(get(&server, "GET", "/v1/models", &[]).status, 200);
}

#[test]
fn nothing_comes_from_elsewhere() {
    // The namespace of SVG is a name, not an address.
    const NAMES: [&str; 2] = ["http://www.w3.org/2000/svg", "https?:"];
    for asset in ASSETS {
        let mut text = asset.content.to_owned();
        NAMES.iter().for_each(|name| text = text.replace(name, ""));
        for address in ["http:", "https:", "//cdn", "src=\"//", "@import", " url(", ":url("] {
            assert!(!text.contains(address), "{} names {address}", asset.path);
        }
    }
}

#[test]
fn no_text_becomes_markup_or_code() {
    for asset in scripts() {
        for word in [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "DOMParser",
            "srcdoc",
            "setHTML",
            "createContextualFragment",
        ] {
            assert!(!asset.content.contains(word), "{} uses {word}", asset.path);
        }
    }
    let page = ASSETS[0].content;
    for inline in ["<style", " style=", " onclick=", " onload=", "<script>"] {
        assert!(!page.contains(inline), "the policy forbids {inline}");
    }
}

/// Each file that the page or a script names is served, and each served file is named.
#[test]
fn the_files_are_complete() {
    let mut named = vec!["/".to_owned()];
    for asset in ASSETS {
        let quoted = asset.content.split(['"', '\'']).filter(|text| !text.contains(char::is_whitespace));
        for text in quoted {
            if let Some(file) = text.strip_prefix("./").or(text.strip_prefix("page/")) {
                named.push(format!("/page/{file}"));
            }
        }
    }
    named.sort();
    named.dedup();
    let mut served: Vec<_> = ASSETS.iter().map(|asset| asset.path.to_owned()).collect();
    served.sort();
    assert_eq!(named, served);
}

#[test]
fn it_is_small_and_knows_the_limit() {
    let bytes: usize = ASSETS.iter().map(|asset| asset.content.len()).sum();
    assert!(bytes <= BYTES_MAX, "the page has {bytes} bytes");
    let limit = format!("BODY_LEN_MAX = {};", AppLimits::default().body_len_max);
    assert!(scripts().any(|asset| asset.content.contains(&limit)), "no script has {limit}");
}
