//! Pictures from a stand-in of a host with https: whom the server believes, and whom it does not.

use crate::harness;

use harness::{PATIENCE, Setup, TestServer};
use perilune::chat::image::remote::{Authorities, Hosts, RemotePolicy};
use perilune::pictures::PictureOptions;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Cursor, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

const CHAT: &str = "/v1/chat/completions";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name)
}

fn authorities() -> Authorities {
    let text = std::fs::read(fixture("authority.pem")).expect("a fixture");
    Authorities::from_pem(&text).expect("a certificate")
}

/// Shows one certificate and gives one picture, or the way to it, to whoever believes it.
struct Host {
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Host {
    fn start(certificate: &str) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let certificate = CertificateDer::from_pem_file(fixture(certificate)).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(fixture("host.key.pem")).expect("a key");
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("the key is the certificate's");
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let stopping = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stopping = stopping.clone();
            move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    if stopping.load(Ordering::SeqCst) {
                        return;
                    }
                    let connection = ServerConnection::new(config.clone()).expect("a connection");
                    // A client that does not believe the certificate hangs up.
                    let _ = answer(StreamOwned::new(connection, stream));
                }
            }
        });
        Self { address, stopping, thread: Some(thread) }
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }
}

fn answer(stream: StreamOwned<ServerConnection, TcpStream>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
    }
    let body = png();
    let head = match first.starts_with("GET /moved ") {
        true => "302 X\r\nLocation: /a.png".to_owned(),
        false => "200 X".to_owned(),
    };
    let stream = reader.get_mut();
    let length = if head.starts_with("302") { 0 } else { body.len() };
    write!(stream, "HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")?;
    stream.write_all(&body[..length])?;
    stream.conn.send_close_notify();
    stream.flush()
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn png() -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let picture = image::RgbImage::from_fn(20, 33, |x, y| image::Rgb([x as u8, y as u8, 9]));
    picture.write_to(&mut bytes, image::ImageFormat::Png).expect("encodes");
    bytes.into_inner()
}

fn about(url: &str) -> Value {
    let content =
        json!([{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": url}}]);
    json!({"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 12, "ignore_eos": true})
}

fn server(authorities: Authorities) -> TestServer {
    let remote = RemotePolicy {
        hosts: Hosts::Any,
        addresses: vec!["127.0.0.1/32".parse().expect("a range")],
        authorities,
        timeout: PATIENCE,
        ..RemotePolicy::default()
    };
    let mut setup = Setup::default();
    setup.options.pictures = PictureOptions { remote, ..PictureOptions::default() };
    TestServer::with(setup)
}

#[test]
fn a_host_that_the_authority_vouches_for_is_believed() {
    use base64::Engine;
    let (host, server) = (Host::start("host.pem"), server(authorities()));
    let data_url =
        format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(png()));
    let sent = server.ask(CHAT, &about(&data_url));
    for path in ["/a.png", "/moved"] {
        let fetched = server.ask(CHAT, &about(&host.url(path)));
        assert_eq!(fetched["choices"], sent["choices"], "{path}");
        assert_eq!(fetched["usage"]["prompt_tokens"], sent["usage"]["prompt_tokens"], "{path}");
    }
}

#[test]
fn nobody_else_is_believed() {
    let cases = [
        ("host.pem", Authorities::Public, "an authority that nobody knows"),
        ("elsewhere.pem", authorities(), "another host's certificate"),
        ("expired.pem", authorities(), "a certificate of the past"),
    ];
    for (certificate, authorities, what) in cases {
        let (host, server) = (Host::start(certificate), server(authorities));
        let response = server.post(CHAT, &about(&host.url("/a.png")));
        assert_eq!(response.status, 400, "{what}: {}", response.text());
        let error = &response.json()["error"];
        assert_eq!(error["param"], "messages[0].content[1].image_url", "{what}");
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains("cannot be fetched"), "{what}: {message}");
        assert_eq!(server.metric("perilune:media_fetches_total", "outcome=\"ok\""), 0.0);
    }
}

#[test]
fn files_of_authorities_are_checked() {
    for (text, message) in [
        (&b""[..], "no certificate"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no certificate"),
        (b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n", "in PEM"),
    ] {
        let error = Authorities::from_pem(text).expect_err("refused");
        assert!(error.contains(message), "{error}");
    }
    let Authorities::Listed(certificates) = authorities() else { panic!("a list") };
    assert_eq!(certificates.len(), 1);
}
