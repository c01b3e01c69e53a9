//! The binary as a supervisor sees it: flags, the configuration file, exit codes, signals.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

pub fn perilune(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perilune"));
    // What the tests' own environment says must not matter.
    command.env_clear().env("HF_HUB_OFFLINE", "1").env("HOME", "/nonexistent").args(args);
    command
}

fn run(args: &[&str]) -> Output {
    perilune(args).output().expect("runs")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn print_config(args: &[&str]) -> Value {
    let mut all = vec!["serve", "--print-config"];
    all.extend(args);
    let output = run(&all);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// A folder of this test alone, gone when it is dropped.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("perilune-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    pub fn write(&self, name: &str, content: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, content).expect("writes");
        path.to_str().expect("UTF-8").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn flags_mean_what_they_say() {
    let config = print_config(&[]);
    assert_eq!((&config["host"], &config["port"]), (&json!("127.0.0.1"), &json!(8000)));
    assert_eq!((&config["warnings"], &config["page"]), (&json!([]), &json!(true)));
    let config = print_config(&[
        "some/model",
        "--max-model-len",
        "32k",
        "--memory",
        "8GiB",
        "--api-key",
        "a",
        "--api-key",
        "b",
        "--host",
        "0.0.0.0",
        "--served-model-name",
        "x",
        "y",
        "--no-enable-prefix-caching",
        "--no-page",
        "--trust-remote-code",
        "--dtype",
        "half",
    ]);
    assert_eq!(config["model"], "some/model");
    assert_eq!(config["max_model_len"], 32_000);
    assert_eq!(config["memory"], "Bytes(8589934592)");
    assert_eq!(config["kv_offloading_size"], 0);
    // A bare number is of GiB, as in vLLM.
    for size in ["1.5", "1536MiB"] {
        assert_eq!(print_config(&["--kv-offloading-size", size])["kv_offloading_size"], 3 << 29);
    }
    assert_eq!(config["served_model_name"], json!(["x", "y"]));
    assert_eq!((&config["enable_prefix_caching"], &config["page"]), (&json!(false), &json!(false)));
    assert_eq!(config["dtype"], "F16");
    assert_eq!(config["api_key"], "2 keys, redacted");
    assert_eq!(config["warnings"], json!(["--trust-remote-code has no effect here"]));
    assert_eq!(print_config(&["--max-model-len", "-1"])["max_model_len"], Value::Null);
    let closed = print_config(&[]);
    assert_eq!((&closed["remote_images"], &closed["allowed_media_addresses"]), (&json!(false), &json!([])));
    assert_eq!(print_config(&["--allow-remote-images"])["remote_images"], true);
    // A list of hosts allows these, and no others, with the other flag or without.
    let listed = [
        "--allowed-media-domains",
        "Example.org",
        "*.example.net",
        "--allowed-media-addresses=10.0.0.0/8,[::1]:80",
    ];
    for flags in [&listed[..], &[&listed[..], &["--allow-remote-images"]].concat()] {
        let config = print_config(flags);
        assert_eq!(config["remote_images"], json!(["example.org", "*.example.net"]));
        assert_eq!(config["allowed_media_addresses"], json!(["10.0.0.0/8", "[::1]:80"]));
    }
    let authority = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tls/authority.pem");
    assert_eq!(closed["media_authorities"], "public");
    assert_eq!(print_config(&["--media-ca-file", authority])["media_authorities"], 1);
    let pictures =
        print_config(&["--max-video-frames", "3", "--max-images=9", "--mm-processor-cache-gb", "1.5"]);
    assert_eq!((&pictures["max_video_frames"], &pictures["max_images"]), (&json!(3), &json!(9)));
    assert_eq!(pictures["mm_processor_cache_bytes"], 3 << 29);
    let local = print_config(&["--host", "[::1]"]);
    assert_eq!((&local["host"], &local["warnings"]), (&json!("::1"), &json!([])));
    for (host, hosts) in [("localhost", json!([])), ("127.1", json!(["127.1"]))] {
        let local = print_config(&["--host", host]);
        assert_eq!((&local["allowed_hosts"], &local["warnings"]), (&hosts, &json!([])), "{host}");
    }
    let open = print_config(&["--host", "0.0.0.0"]);
    assert_eq!(open["allowed_hosts"], json!(null));
    assert!(
        open["warnings"][0].as_str().is_some_and(|warning| warning.contains("without --api-key")),
        "{open}"
    );
}

/// A thread's stack is room of a process's addresses, of which there is a limit here. Stacks are large: what threads that have started still ask
/// for, without which they end the process, is small beside the room that is left when one more stack does not fit.
#[cfg(target_os = "linux")]
#[test]
fn threads_that_cannot_be_started_are_told() {
    let serve =
        "ulimit -v 16000000 && exec \"$0\" serve --port 0 --device cpu --threads 4000 --max-model-len 64";
    let mut command = Command::new("sh");
    command.env_clear().env("HF_HUB_OFFLINE", "1").env("HOME", "/nonexistent");
    command.env("RUST_MIN_STACK", (1_u64 << 29).to_string());
    let output = command.args(["-c", serve, env!("CARGO_BIN_EXE_perilune")]).output().expect("runs");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    let line = said.lines().last().expect("a line");
    assert!(
        line.contains("failed to start thread ")
            && line.contains(" of 4000 ")
            && line.contains("(--threads)"),
        "{said}"
    );
    assert!(!said.contains("panicked"), "{said}");
}

/// The engine's is the first thread that does as the environment says: here it asks for more addresses than there are.
#[cfg(target_os = "linux")]
#[test]
fn an_engine_without_a_thread_is_told() {
    let mut command = perilune(&["serve", "--port", "0", "--device", "cpu", "--max-model-len", "64"]);
    let output = command.env("RUST_MIN_STACK", (1_u64 << 50).to_string()).output().expect("runs");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("failed to start the engine's thread: "), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn the_configuration_file_is_below_flags_and_environment() {
    let folder = Folder::new("config");
    let file = folder.write(
        "config.yaml",
        "\u{feff}port: 8001\nmax_num_seqs: 17\nserved-model-name:\n  - one\n  - two\nenable-prefix-caching: false\nasync-scheduling: false\nseed: 5 # a comment\n",
    );
    let config = print_config(&["--config", &file, "--port", "8002"]);
    assert_eq!((&config["port"], &config["max_num_seqs"]), (&json!(8002), &json!(17)));
    assert_eq!(config["served_model_name"], json!(["one", "two"]));
    assert_eq!((&config["enable_prefix_caching"], &config["seed"]), (&json!(false), &json!(5)));
    assert_eq!(
        (&config["async_scheduling"], &print_config(&[])["async_scheduling"]),
        (&json!(false), &json!(true))
    );
    let config =
        print_config(&["--config", &file, "--served-model-name", "three", "--enable-prefix-caching"]);
    assert_eq!(config["served_model_name"], json!(["three"]));
    assert_eq!(config["enable_prefix_caching"], true);
    let mut command = perilune(&["serve", "--print-config", "--config", &file]);
    let output =
        command.env("PERILUNE_SEED", "6").env("PERILUNE_PORT", "tcp://10.0.0.1:80").output().expect("runs");
    let config: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&config["seed"], &config["port"]), (&json!(6), &json!(8001)));
}

#[test]
fn variables_that_mean_nothing_are_told() {
    let mut command = perilune(&["serve", "--print-config"]);
    command.env("PERILUNE_MAX_NUM_SEQZ", "4").env("PERILUNE_SEED", "6");
    // Of a service named perilune, as Kubernetes sets them.
    command.env("PERILUNE_PORT", "tcp://10.0.0.1:80").env("PERILUNE_PORT_80_TCP_ADDR", "10.0.0.1");
    command.env("PERILUNE_SERVICE_HOST", "10.0.0.1").env("PERILUNE_A_SERVICE_PORT_HTTP", "80");
    let output = command.output().expect("runs");
    let config: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let warnings = config["warnings"].as_array().expect("a list");
    let about = |name: &str| warnings.iter().filter(|warning| warning.to_string().contains(name)).count();
    assert_eq!((about("PERILUNE_MAX_NUM_SEQZ"), about("PERILUNE_")), (1, 1), "{warnings:?}");
}

#[cfg(unix)]
#[test]
fn what_is_not_utf8_is_named() {
    use std::os::unix::ffi::OsStrExt;
    let bad = std::ffi::OsStr::from_bytes(b"a\xff");
    let said = |command: &mut Command| {
        let output = command.output().expect("runs");
        assert_eq!(output.status.code(), Some(2));
        text(&output.stderr)
    };
    let argument = said(perilune(&["serve", "--print-config", "--host"]).arg(bad));
    assert_eq!(argument, "error: the argument \"a\\xFF\" is not UTF-8\n");
    let variable = said(perilune(&["serve", "--print-config"]).env("PERILUNE_HOST", bad).env("OTHER", bad));
    assert_eq!(variable, "error: the environment's PERILUNE_HOST is not UTF-8\n");
}

/// Whoever can be reached from a browser on the same machine alone is called by few names; with a key, or from elsewhere, by any.
#[test]
fn hosts_are_checked_where_a_page_could_do_harm() {
    let hosts = |args: &[&str]| print_config(args)["allowed_hosts"].clone();
    assert_eq!(hosts(&[]), json!([]));
    assert_eq!(hosts(&["--api-key", "a"]), Value::Null);
    assert_eq!(hosts(&["--host", "0.0.0.0"]), Value::Null);
    assert_eq!(hosts(&["--allowed-hosts", "a.b", "C.d"]), json!(["a.b", "c.d"]));
    assert_eq!(hosts(&["--host", "0.0.0.0", "--allowed-hosts", "a.b"]), json!(["a.b"]));
    assert_eq!(hosts(&["--allowed-hosts", "*"]), Value::Null);
    // No page can connect to a file.
    assert_eq!(hosts(&["--uds", "socket"]), Value::Null);
    assert_eq!(hosts(&["--uds", "socket", "--allowed-hosts", "a.b"]), json!(["a.b"]));
    assert_eq!(
        print_config(&["--allowed-origins", "https://a.b"])["allowed_origins"],
        json!(["https://a.b"])
    );
}

#[test]
fn mistakes_have_exit_codes_and_one_clear_line() {
    let folder = Folder::new("mistakes");
    let bad_key = folder.write("bad.yaml", "no-such-flag: 1\n");
    let nested = folder.write("nested.yaml", "config: other.yaml\n");
    let not_json = folder.write("config.json", "{");
    let directory = folder.0.to_str().expect("UTF-8").to_owned();
    #[rustfmt::skip]
    let cases: &[(&[&str], i32, &str)] = &[
        (&[], 2, "Usage"),
        (&["nonsense"], 2, "nonsense"),
        (&["serve", "--no-such-flag"], 2, "--no-such-flag"),
        (&["serve", "--port", "70000"], 2, "--port"),
        (&["serve", "--host", ""], 2, "--host: is empty"),
        (&["serve", "--max-model-len", "many"], 2, "--max-model-len"),
        (&["serve", "--memory", "1.5"], 2, "--memory"),
        (&["serve", "--max-num-seqs", "0"], 2, "--max-num-seqs"),
        (&["serve", "--max-num-seqs", "64", "--max-num-batched-tokens", "63"], 2, "--max-num-batched-tokens"),
        (&["serve", "--threads", "100000"], 2, "--threads: 100000 is above 4096"),
        (&["serve", "--served-model-name", ""], 2, "--served-model-name"),
        (&["serve", "--allowed-origins", "chat.example.org"], 2, "--allowed-origins"),
        (&["serve", "--allowed-hosts", "http://chat.example.org"], 2, "--allowed-hosts"),
        (&["serve", "--config", &nested], 2, "`config`"),
        (&["serve", "--threads-bind", "0,0"], 2, "--threads-bind"),
        (&["serve", "--threads-bind", "1023", "--port", "0"], 2, "threads_bind: this process may not run on CPU 1023"),
        (&["serve", "--threads-bind", "0", "--threads", "2", "--port", "0"], 2, "threads_bind: 2 threads"),
        (&["serve", "--shutdown-timeout", "-1"], 2, "--shutdown-timeout"),
        (&["serve", "--keep-alive-timeout", "0"], 2, "--keep-alive-timeout"),
        (&["serve", "--allowed-media-domains", "http://example.org/"], 2, "--allowed-media-domains"),
        (&["serve", "--allowed-media-addresses", "10.0.0.0/33"], 2, "--allowed-media-addresses"),
        (&["serve", "--image-fetch-timeout", "0"], 2, "--image-fetch-timeout"),
        (&["serve", "--media-ca-file", "/nonexistent/file"], 2, "--media-ca-file"),
        (&["serve", "--mm-processor-cache-gb", "-1"], 2, "--mm-processor-cache-gb"),
        (&["serve", "--kv-offloading-size", "some"], 2, "--kv-offloading-size"),
        (&["serve", "--kv-offloading-size", "1", "--no-enable-prefix-caching"], 2, "--no-enable-prefix-caching"),
        (&["plan", "--kv-offloading-size", "5B"], 3, "have no room for one KV block"),
        (&["serve", "--max-video-frames", "0"], 2, "--max-video-frames"),
        (&["serve", "--device", "tpu"], 2, "--device"),
        (&["kernels", "build", "--output", "x"], 2, "--arch"),
        (&["kernels", "build", "--output", "x", "--arch", "gfx90a"], 2, "sm_90a"),
        (&["kernels", "build", "--output", "x", "--arch", "sm_90a", "--nvrtc-dir", "/nowhere"], 1, "libnvrtc"),
        (&["serve", "--device", "cuda:first"], 2, "--device"),
        (&["serve", "--config", "/nonexistent/file"], 2, "--config"),
        (&["serve", "--config", &bad_key], 2, "no-such-flag"),
        (&["serve", "--config", &not_json], 2, "--config"),
        (&["plan", "--config", &bad_key], 2, "no-such-flag"),
        (&["run-batch", "--config", &bad_key, "-i", "in", "-o", "out"], 2, "no-such-flag"),
        (&["bench-engine", "--config", &bad_key], 2, "no-such-flag"),
        (&["serve", "--ssl-certfile", "/nonexistent/file"], 2, "--ssl-certfile: /nonexistent/file cannot be read"),
        (&["serve", "--ssl-keyfile", "x"], 2, "--ssl-keyfile: needs --ssl-certfile"),
        (&["serve", "--ssl-certfile", "x", "--ssl-cert-reqs", "2"], 2, "--ssl-cert-reqs: needs --ssl-ca-certs"),
        (&["serve", "--ssl-certfile", "x", "--ssl-ca-certs", "x", "--ssl-cert-reqs", "3"], 2, "--ssl-cert-reqs: must be 0, 1 or 2"),
        (&["serve", "--uds", ""], 2, "--uds"),
        (&["serve", "--uds-permissions", "888"], 2, "--uds-permissions: `888` is not an octal number"),
        (&["serve", "--uds", &directory], 1, "a file is there that is no socket"),
        (&["serve", "--root-path", "models"], 2, "--root-path: `models` is not a path"),
        (&["serve", "--api-key-file", "/nonexistent/file"], 2, "--api-key-file: /nonexistent/file cannot be read"),
        (&["serve", "--disable-access-log-for-endpoints", "models"], 2, "--disable-access-log-for-endpoints: `models` is not a path"),
        (&["chat", "--url", "https://127.0.0.1:1", "--ca", "/nonexistent/file"], 1, "--ca: /nonexistent/file cannot be read"),
        (&["chat", "--key", "x"], 2, "--cert"),
        (&["serve", "/nonexistent/model"], 3, "/nonexistent/model"),
        (&["serve", &directory, "--port", "0"], 3, "tokenizer.json"),
        (&["serve", "nobody/nothing"], 3, "nobody/nothing"),
    ];
    for (args, code, words) in cases {
        let output = run(args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(*code), "{args:?}: {said}");
        assert!(said.contains(words), "{args:?}: {said}");
        assert!(!said.contains("panicked"), "{args:?}: {said}");
    }
    if !models::has_nvidia_driver() {
        let output = run(&["serve", "--device", "cuda:1", "--port", "0"]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains("libcuda was not found") && said.contains("--device cpu"), "{said}");
        // What would fit can be said without one.
        let output = run(&["plan", "--device", "cuda", "--memory", "2GiB"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let output = run(&["plan", "--device", "cuda"]);
        assert!(text(&output.stderr).contains("memory: "), "{}", text(&output.stderr));
    }
    assert!(!text(&run(&["serve", "--help"]).stdout).contains("emulated"));
    for args in [&["--help"][..], &["serve", "--help"], &["--version"]] {
        assert!(run(args).status.success(), "{args:?}");
    }
}

/// A server on any port, with a log to read and little memory.
pub const SMALL: &[&str] =
    &["serve", "--port", "0", "--log-format", "json", "--memory", "300MB", "--max-num-seqs", "8"];

/// A running server and the lines of its log.
pub struct Server {
    pub child: Child,
    pub log: BufReader<std::process::ChildStderr>,
    /// With its scheme.
    pub url: String,
}

impl Server {
    pub fn start(args: &[&str]) -> Self {
        Self::from(perilune(&[SMALL, args].concat()))
    }

    /// What `command` starts, which ends in a `serve`.
    pub fn from(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("starts");
        let log = BufReader::new(child.stderr.take().expect("piped"));
        let mut server = Self { child, log, url: String::new() };
        let line = server.wait_for_line("ready on ");
        server.url = line["message"]
            .as_str()
            .and_then(|text| text.strip_prefix("ready on "))
            .expect("an address")
            .into();
        server
    }

    /// The next line of the log whose message begins so. None before it may tell of a failure.
    pub fn wait_for_line(&mut self, beginning: &str) -> Value {
        loop {
            let mut line = String::new();
            assert!(self.log.read_line(&mut line).expect("reads") > 0, "the server ended early");
            let line: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"));
            if line["message"].as_str().is_some_and(|text| text.starts_with(beginning)) {
                return line;
            }
            assert_ne!(line["level"], "ERROR", "{line}");
        }
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().expect("runs");
        assert!(status.success());
    }

    pub fn post(&self, path: &str, body: &Value) -> (String, String) {
        let mut stream =
            TcpStream::connect(self.url.strip_prefix("http://").expect("in the clear")).expect("connects");
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).expect("writes");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("reads");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        (head.to_owned(), body.to_owned())
    }

    pub fn terminate(self) -> (Option<i32>, String) {
        self.signal("-TERM");
        self.end()
    }

    /// The exit code and the rest of the log, once it has ended.
    pub fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).expect("reads");
        (self.child.wait().expect("ends").code(), rest)
    }
}

/// Of a test that fails.
impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_embedded_model_serves_and_stops() {
    if perilune::source::embedded::FILES.is_empty() {
        // A build without a model says so.
        assert_eq!(run(&["serve"]).status.code(), Some(3));
        return;
    }
    let server = Server::start(&[]);
    let secret = "a sentence that must not be in the log";
    let body = json!({"messages": [{"role": "user", "content": secret}], "max_tokens": 8, "temperature": 0});
    let (head, answer) = server.post("/v1/chat/completions", &body);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}\n{answer}");
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!(answer["model"], perilune::source::embedded::NAME);
    assert!(
        answer["usage"]["completion_tokens"].as_u64().is_some_and(|count| (1..=8).contains(&count)),
        "{answer}"
    );
    let (head, _) = server.post("/v1/chat/completions", &json!({"messages": []}));
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    let (code, log) = server.terminate();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("\"status\":200") && log.contains("SIGTERM") && log.contains("stopped"), "{log}");
    assert!(!log.contains("sentence"), "{log}");
}
