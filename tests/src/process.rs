//! Starting and stopping the real binary. Everything is on loopback, bounded, and ends with the test.

use crate::Client;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Longest that a start may take, on a machine that does other things too.
const START_LIMIT: Duration = Duration::from_secs(300);
/// Longest that a stop may take before the process is killed and the test fails.
const STOP_LIMIT: Duration = Duration::from_secs(300);

/// The binary, built with the profile of the tests.
pub fn binary() -> PathBuf {
    static BINARY: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    BINARY
        .get_or_init(|| {
            let mut folder = std::env::current_exe().expect("a test has a path");
            folder.pop(); // deps
            folder.pop();
            // As part of the workspace's tests, which is the one that is there after `cargo test --workspace`: `cargo build` leaves out what only tests
            // ask of crates that both share, and so would compile most of them a second time.
            let mut build = Command::new(env!("CARGO"));
            build.args(["test", "--quiet", "--locked", "--workspace", "--no-run", "--test", "program"]);
            if folder.ends_with("release") {
                build.arg("--release");
            }
            build.current_dir(crate::tree::root());
            assert!(build.status().expect("cargo runs").success(), "the binary does not build");
            folder.join("perilune")
        })
        .clone()
}

/// Runs the binary to its end and gives back what it printed.
pub fn run(args: &[&str]) -> Output {
    Command::new(binary())
        .args(args)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts")
}

/// A running server. Dropping it ends it.
pub struct Server {
    child: Child,
    url: String,
    log: mpsc::Receiver<String>,
}

impl Server {
    /// Starts `perilune serve` with `args` on a free port and waits until it says that it is ready.
    pub fn start(args: &[&str]) -> Self {
        Self::start_in(&std::env::temp_dir(), args)
    }

    /// The same, with `folder` as its working directory.
    pub fn start_in(folder: &Path, args: &[&str]) -> Self {
        let mut child = Command::new(binary())
            .current_dir(folder)
            .arg("serve")
            .args(args)
            .args(["--port", "0", "--log-format", "json"])
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let stderr = child.stderr.take().expect("stderr is piped");
        let (sender, log) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let started = Instant::now();
        let mut seen = Vec::new();
        while let Ok(line) = log.recv_timeout(START_LIMIT.saturating_sub(started.elapsed())) {
            if let Some(url) = ready_url(&line) {
                return Self { child, url, log };
            }
            seen.push(line);
        }
        let _ = child.kill();
        let _ = child.wait();
        panic!("the server did not get ready; it said:\n{}", seen.join("\n"));
    }

    pub fn client(&self) -> Client {
        Client::new(&self.url)
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn signal(&self, signal: i32) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a process id");
        // SAFETY: kill has no memory effects, and the id is that of our own child, which is not reaped yet.
        unsafe { libc::kill(pid, signal) };
    }

    /// Waits for the end of the process and gives back its exit code.
    pub fn wait(&mut self) -> Option<i32> {
        let started = Instant::now();
        while started.elapsed() < STOP_LIMIT {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status.code();
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        panic!("the server did not end within {STOP_LIMIT:?}");
    }

    /// The lines that it logged since the last call.
    pub fn log_lines(&self) -> Vec<String> {
        self.log.try_iter().collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(mut rest) = self.child.stdout.take() {
            let _ = rest.read_to_end(&mut Vec::new());
        }
    }
}

/// The address in the log line that says that the server is ready.
fn ready_url(line: &str) -> Option<String> {
    let at = line.find("ready on http://")? + "ready on ".len();
    let url: String =
        line[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || "/:.[]".contains(*c)).collect();
    Some(url.trim_end_matches('/').to_string())
}
