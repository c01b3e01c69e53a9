//! HTTPS: what is served is what is served in the clear; who is let in, who is not, and what happens to those that are slow; certificates that
//! change while the server serves.

use crate::harness;

use harness::certificates::{Authority, Pair};
use harness::client::{Connection, Response, open_socket};
use harness::{PATIENCE, Setup, TestServer, find_metric, patient_http, wait_until};
use perilune::http::HttpLimits;
use perilune::reload::{FileError, Occasion, Reload, Reloaded};
use perilune::tls::{Clients, Tls, TlsFiles, open};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const COMPLETIONS: &str = "/v1/completions";
const HANDSHAKES: &str = "perilune:tls_handshakes_total";

/// A folder of one test, gone when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("perilune-tls-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).expect("writes");
        path
    }

    fn files(&self, pair: &Pair) -> TlsFiles {
        TlsFiles {
            certificates: self.write("certificate.pem", &pair.certificate),
            key: Some(self.write("key.pem", &pair.key)),
            authorities: None,
            clients: Clients::Any,
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn serve(tls: &Arc<Tls>, http: HttpLimits) -> TestServer {
    let mut setup = Setup::default();
    setup.options.tls = Some(tls.clone());
    setup.options.http = http;
    TestServer::with(setup)
}

/// A server with a new certificate of this authority, and a client that knows it.
fn start(authority: &Authority) -> (TestServer, Client) {
    let folder = Folder::new();
    let tls = Arc::new(open(folder.files(&authority.issue("server"))).expect("opens"));
    (serve(&tls, patient_http()), Client::new(authority))
}

type Https = StreamOwned<ClientConnection, TcpStream>;

#[derive(Clone)]
struct Client(Arc<ClientConfig>);

impl Client {
    fn new(authority: &Authority) -> Self {
        Self::with(authority, None, &[b"http/1.1"])
    }

    fn with(authority: &Authority, shown: Option<&Pair>, protocols: &[&[u8]]) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_slice(&authority.certificate).into_owned()).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let mut config = match shown {
            None => builder.with_no_client_auth(),
            Some(Pair { certificate, key }) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate")],
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key"),
                )
                .expect("the key is the certificate's"),
        };
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Self(Arc::new(config))
    }

    fn connect(&self, address: SocketAddr) -> Connection<Https> {
        let name = ServerName::try_from("127.0.0.1").expect("a name");
        let connection = ClientConnection::new(self.0.clone(), name).expect("a connection");
        Connection::over(StreamOwned::new(connection, open_socket(address)))
    }

    /// Asks for a route; an error is one of TLS. With TLS 1.3 a client that is refused learns of it with the answer.
    fn get(&self, address: SocketAddr, path: &str) -> std::io::Result<Response> {
        let mut connection = self.connect(address);
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let stream = connection.stream.get_mut();
        stream.write_all(request.as_bytes())?;
        stream.flush()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(Connection::over(std::io::Cursor::new(answer)).receive())
    }

    fn metric(&self, server: &TestServer, name: &str, label: &str) -> f64 {
        let text = self.get(server.address, "/metrics").expect("an answer").text().to_owned();
        find_metric(&text, name, label).unwrap_or_else(|| panic!("no series {name} with {label}"))
    }

    fn outcome(&self, server: &TestServer, name: &str) -> f64 {
        self.metric(server, HANDSHAKES, &format!("\"{name}\""))
    }
}

fn ask(connection: &mut Connection<impl Read + Write>, stream: bool) -> Response {
    let body = json!({"prompt": "hi", "max_tokens": 40, "ignore_eos": true, "seed": 3, "stream": stream});
    connection.send_json(COMPLETIONS, &body);
    let response = connection.receive();
    assert_eq!(response.status, 200, "{}", response.text());
    response
}

#[test]
fn answers_are_those_in_the_clear_with_keys_of_any_form() {
    let authority = Authority::new("authority");
    let client = Client::new(&authority);
    let plain = TestServer::start();
    let expected = ask(&mut plain.connect(), false).json();
    let [pkcs1, rsa] = authority.issue_rsa("server");
    let both = authority.issue("server");
    let both = Pair { certificate: both.certificate.clone() + &both.key, key: String::new() };
    let pairs = [authority.issue("server"), authority.issue_sec1("server"), pkcs1, rsa, both];
    for (i, pair) in pairs.iter().enumerate() {
        let folder = Folder::new();
        let files = folder.files(pair);
        // The last has its key beside the certificate.
        let files = if pair.key.is_empty() { TlsFiles { key: None, ..files } } else { files };
        let server = serve(&Arc::new(open(files).expect("opens")), patient_http());
        let mut connection = client.connect(server.address);
        for stream in [false, true, false] {
            let response = ask(&mut connection, stream);
            match stream {
                true => assert_eq!(response.events().last().map(String::as_str), Some("[DONE]"), "{i}"),
                false => assert_eq!(response.json()["choices"], expected["choices"], "{i}"),
            }
        }
        let tls = &connection.stream.get_ref().conn;
        assert_eq!(tls.alpn_protocol(), Some(&b"http/1.1"[..]));
        drop(connection);
        // The end is told as TLS does, which `read_to_end` checks.
        assert_eq!(client.get(server.address, "/health").expect("an answer").status, 200);
    }
}

#[test]
fn long_bodies_come_and_go() {
    let (server, client) = start(&Authority::new("authority"));
    let mut connection = client.connect(server.address);
    let body = json!({"prompt": "hi", "max_tokens": 300, "ignore_eos": true, "n": 32, "logprobs": 20, "user": "x".repeat(3 << 20)});
    connection.send_json(COMPLETIONS, &body);
    let response = connection.receive();
    assert_eq!(response.status, 200);
    assert!(response.body.len() > 1 << 20, "{}", response.body.len());
    assert_eq!(response.json()["choices"].as_array().map(Vec::len), Some(32));
}

#[test]
fn http_without_tls_is_told() {
    let (server, client) = start(&Authority::new("authority"));
    let mut connection = server.connect();
    connection.send_json(COMPLETIONS, &json!({"prompt": "x".repeat(100_000)}));
    let response = connection.receive();
    assert_eq!((response.status, response.header("connection")), (400, Some("close")));
    assert_eq!(response.json()["error"]["code"], "https_required");
    drop(connection);
    let mut connection = server.connect();
    connection.write(b"\x15\x03\x01rubbish that is long enough");
    assert!(connection.is_closed());
    wait_until("both are counted", || {
        (client.outcome(&server, "plain_http"), client.outcome(&server, "malformed")) == (1.0, 1.0)
    });
    assert!(client.outcome(&server, "ok") >= 2.0);
}

#[test]
fn silence_in_a_handshake_keeps_nobody_waiting_and_ends() {
    let authority = Authority::new("authority");
    let client = Client::new(&authority);
    let folder = Folder::new();
    let tls = Arc::new(open(folder.files(&authority.issue("server"))).expect("opens"));
    let server = serve(&tls, patient_http());
    let silent = [server.connect(), server.connect()];
    let mut half = server.connect();
    half.write(b"\x16\x03\x01\x02\x00\x01");
    assert_eq!(client.get(server.address, "/health").expect("an answer").status, 200);
    // Who closes before it said anything is nobody's failure.
    drop(silent);
    drop(half);
    wait_until("the half one is counted", || client.outcome(&server, "closed") == 1.0);
    wait_until("all are gone", || client.metric(&server, "perilune:http_connections", "") == 1.0);
    drop(server);

    let short = HttpLimits { header_timeout: Duration::from_millis(200), ..patient_http() };
    let server = serve(&tls, short);
    assert!(server.connect().is_closed(), "a silent connection");
    let mut half = server.connect();
    half.write(b"\x16\x03\x01\x02\x00\x01");
    assert!(half.is_closed(), "half a hello");
    // On a busy machine this client may itself be late, but not every time.
    let get = || (0..100).find_map(|_| client.get(server.address, "/metrics").ok()).expect("an answer");
    let text = get().text().to_owned();
    assert!(find_metric(&text, HANDSHAKES, "\"timeout\"").is_some_and(|count| count >= 2.0), "{text}");
}

#[test]
fn clients_are_asked_for_certificates() {
    let [ours, theirs] = ["ours", "theirs"].map(Authority::new);
    for clients in [Clients::Known, Clients::Checked, Clients::Any] {
        let folder = Folder::new();
        let authorities = Some(folder.write("authorities.pem", &ours.pem()));
        let files = TlsFiles { authorities, clients, ..folder.files(&ours.issue("server")) };
        let server = serve(&Arc::new(open(files).expect("opens")), patient_http());
        let get = |shown: Option<&Pair>| {
            let client = Client::with(&ours, shown, &[]);
            client.get(server.address, "/health").map(|response| response.status).ok()
        };
        let good = ours.issue("client");
        assert_eq!(get(Some(&good)), Some(200));
        let is_open = clients == Clients::Any;
        assert_eq!(get(None), (clients != Clients::Known).then_some(200), "{clients:?}");
        for wrong in [theirs.issue("client"), ours.issue_expired("client")] {
            assert_eq!(get(Some(&wrong)), is_open.then_some(200), "{clients:?}");
        }
        let client = Client::with(&ours, Some(&good), &[]);
        let expected = match clients {
            Clients::Known => 3.0,
            Clients::Checked => 2.0,
            Clients::Any => 0.0,
        };
        assert_eq!(client.outcome(&server, "client_certificate"), expected, "{clients:?}");
    }
}

#[test]
fn clients_that_believe_nobody_or_speak_something_else_are_counted() {
    let authority = Authority::new("authority");
    let (server, client) = start(&authority);
    let stranger = Client::new(&Authority::new("another"));
    assert!(stranger.get(server.address, "/health").is_err());
    let of_future = Client::with(&authority, None, &[b"h2"]);
    let error = of_future.get(server.address, "/health").err().expect("nothing in common");
    assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");
    assert_eq!(
        Client::with(&authority, None, &[b"h2", b"http/1.1"])
            .get(server.address, "/health")
            .expect("1.1")
            .status,
        200
    );
    wait_until("both are counted", || {
        (client.outcome(&server, "refused_by_client"), client.outcome(&server, "nothing_in_common"))
            == (1.0, 1.0)
    });
}

#[test]
fn certificates_change_while_the_server_serves() {
    let [before, after] = ["before", "after"].map(Authority::new);
    let folder = Folder::new();
    let tls = Arc::new(open(folder.files(&before.issue("server"))).expect("opens"));
    let server = serve(&tls, patient_http());
    let [old, new] = [&before, &after].map(Client::new);
    let health = |client: &Client| client.get(server.address, "/health").is_ok();
    let mut kept = old.connect(server.address);
    assert_eq!(ask(&mut kept, false).status, 200);
    assert_eq!(tls.reload(Occasion::Timer), Reloaded::Unchanged);

    // The certificate came, and its key did not yet.
    let next = after.issue("server");
    folder.write("certificate.pem", &next.certificate);
    let Reloaded::Failed(FileError { flag, message }) = tls.reload(Occasion::Signal) else {
        panic!("refused")
    };
    assert_eq!(flag, "ssl-keyfile");
    assert!(message.contains("key.pem has a key that is not the one of the certificate in "), "{message}");
    assert!(health(&old) && !health(&new), "the old one stays");
    folder.write("key.pem", &next.key);
    assert_eq!(tls.reload(Occasion::Timer), Reloaded::Changing);
    assert_eq!(tls.reload(Occasion::Timer), Reloaded::Taken);
    assert!(health(&new) && !health(&old), "the new one");
    assert_eq!(ask(&mut kept, true).status, 200);
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let authority = Authority::new("authority");
    let (pair, other) = (authority.issue("server"), authority.issue("server"));
    let folder = Folder::new();
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let traditional =
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    let rubbish = "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n";
    let not_der = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let not_a_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let cases = [
        ("", &*pair.key, None, "--ssl-certfile: ", "certificate.pem has no certificate in PEM"),
        (rubbish, &pair.key, None, "--ssl-certfile: ", "certificate.pem is not a file in PEM: "),
        (not_der, &pair.key, None, "--ssl-certfile: ", "certificate.pem cannot be used: "),
        (&pair.certificate, "", None, "--ssl-keyfile: ", "key.pem has no private key in PEM"),
        (&pair.certificate, encrypted, None, "--ssl-keyfile: ", "key.pem has an encrypted key"),
        (&pair.certificate, traditional, None, "--ssl-keyfile: ", "key.pem has an encrypted key"),
        (&pair.certificate, not_a_key, None, "--ssl-keyfile: ", "key.pem has a key that cannot be used: "),
        (&pair.certificate, &other.key, None, "--ssl-keyfile: ", "key.pem has a key that is not the one of "),
        (&pair.certificate, &pair.key, Some(""), "--ssl-ca-certs: ", "ca.pem has no certificate in PEM"),
        (
            &pair.certificate,
            &pair.key,
            Some(not_der),
            "--ssl-ca-certs: ",
            "ca.pem has a certificate that is no authority's",
        ),
    ];
    for (certificate, key, authorities, flag, words) in cases {
        let certificate = certificate.to_owned();
        let files = folder.files(&Pair { certificate, key: key.to_owned() });
        let authorities = authorities.map(|text| folder.write("ca.pem", text));
        let error = open(TlsFiles { authorities, clients: Clients::Known, ..files }).expect_err(words);
        let error = error.to_string();
        assert!(error.starts_with(flag) && error.contains(words), "{words}: {error}");
        assert!(error.contains(folder.0.to_str().expect("UTF-8")), "{error}");
    }
    let files = folder.files(&pair);
    let error =
        open(TlsFiles { key: Some(Path::new("/nonexistent/key").into()), ..files }).expect_err("no file");
    assert!(error.to_string().starts_with("--ssl-keyfile: /nonexistent/key cannot be read: "), "{error}");
}

#[test]
fn a_client_that_leaves_is_gone_and_one_that_reads_nothing_too() {
    let authority = Authority::new("authority");
    let folder = Folder::new();
    let tls = Arc::new(open(folder.files(&authority.issue("server"))).expect("opens"));
    let stalled =
        HttpLimits { stall_timeout: Duration::from_millis(300), send_buffer: 4096, ..patient_http() };
    for (http, leaves) in [(patient_http(), true), (stalled, false)] {
        let (server, client) = (serve(&tls, http), Client::new(&authority));
        let mut connection = client.connect(server.address);
        let mut body = json!({"prompt": "hi", "max_tokens": 900, "ignore_eos": true, "stream": true});
        if leaves {
            server.control.close();
        } else {
            // More than all buffers on the way hold.
            body["n"] = 100.into();
            body["logprobs"] = 20.into();
        }
        connection.send_json(COMPLETIONS, &body);
        let kept = match leaves {
            true => {
                server.control.wait_until_blocked();
                drop(connection);
                None
            }
            false => Some(connection),
        };
        // The metrics' own is left.
        wait_until("it is gone", || client.metric(&server, "perilune:http_connections", "") == 1.0);
        server.control.open();
        // Where nothing holds the model, it may have come to its end before that.
        let is_ended = || client.metric(&server, "vllm:request_success_total", "\"abort\"") > 0.0;
        wait_until("it is ended", || !leaves || is_ended());
        wait_until("nothing runs", || client.metric(&server, "vllm:num_requests_running", "") == 0.0);
        drop(kept);
    }
}

#[test]
fn draining_tells_those_that_come_and_closes_those_that_say_nothing() {
    let authority = Authority::new("authority");
    let (mut server, client) = start(&authority);
    server.control.close();
    let mut stream = client.connect(server.address);
    stream.send_json(
        COMPLETIONS,
        &json!({"prompt": "in flight", "max_tokens": 20, "ignore_eos": true, "stream": true}),
    );
    server.control.wait_until_blocked();
    let mut silent = server.connect();
    wait_until("both are connected", || client.metric(&server, "perilune:http_connections", "") == 3.0);
    let serving = server.serving.take().expect("serving");
    let drain = server.runtime.spawn(serving.drain(PATIENCE, std::future::pending()));
    assert!(silent.is_closed());
    let response = client.get(server.address, "/readyz").expect("an answer");
    assert_eq!(response.status, 503);
    server.control.open();
    assert_eq!(stream.head().status, 200);
    let rest = stream.receive_rest();
    let events = harness::client::parse_events(&rest);
    let last: Value = serde_json::from_str(&events[events.len() - 2]).expect("JSON");
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    server.runtime.block_on(drain).expect("drains");
}
