//! What streaming costs the server itself: CPU time for each token sent to 256 clients, with a fake model whose own time is taken
//! off. The clients are another process, so that theirs is not counted. Goal: 12 microseconds.
//!
//! `cargo bench -p perilune --bench stream_cost`; without `--bench`, as in a test run, a few tokens to a few clients.

#[path = "../tests/harness/mod.rs"]
mod harness;

use harness::{Setup, TestServer};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Load {
    num_clients: usize,
    num_tokens: usize,
    /// Of one step of the model; none is as fast as it goes.
    step: Option<Duration>,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).map(String::as_str) == Some("--client") {
        return client(&args[2..]);
    }
    if !args.iter().any(|arg| arg == "--bench") {
        return report("a few", Load { num_clients: 8, num_tokens: 20, step: None });
    }
    for _ in 0..2 {
        let step = Some(Duration::from_millis(20));
        report("20 ms a step", Load { num_clients: 256, num_tokens: 500, step });
    }
    report("5 ms a step", Load { num_clients: 256, num_tokens: 900, step: Some(Duration::from_millis(5)) });
    report("no pause", Load { num_clients: 256, num_tokens: 900, step: None });
}

fn cpu(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn report(name: &str, load: Load) {
    let Load { num_clients, num_tokens, step } = load;
    let mut setup = Setup::default();
    setup.config.num_blocks = 60_000;
    let server = TestServer::with(setup);
    server.control.pace(step);
    let mut client = Command::new(std::env::current_exe().expect("a path"))
        .args(["--client", &server.address.to_string(), &num_clients.to_string(), &num_tokens.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a client");
    let mut stdout = BufReader::new(client.stdout.take().expect("piped"));
    let mut line = String::new();
    // All streams have begun: what opening them cost is not part of a token's cost.
    stdout.read_line(&mut line).expect("a line");
    let start = Instant::now();
    let (cpu_before, model_before, tokens_before) = (
        cpu(ClockId::ProcessCPUTime),
        server.control.model_cpu(),
        server.metric("vllm:generation_tokens_total", ""),
    );
    drop(client.stdin.take());
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("text");
    let wall = start.elapsed();
    let tokens = server.metric("vllm:generation_tokens_total", "") - tokens_before;
    let spent = cpu(ClockId::ProcessCPUTime) - cpu_before;
    let model = server.control.model_cpu() - model_before;
    assert!(client.wait().expect("ends").success(), "{rest}");
    let per_token = |time: Duration| time.as_secs_f64() * 1e6 / tokens;
    println!(
        "{name}: {:.2} us of server CPU a token (and {:.2} us of the fake model), {num_clients} clients, {tokens} tokens in {:.2} s, {} chunks",
        per_token(spent - model),
        per_token(model),
        wall.as_secs_f64(),
        rest.trim()
    );
}

/// Opens all streams, says so, waits for the end of standard input, reads all streams to their end, and prints the number of chunks.
fn client(args: &[String]) {
    let address: SocketAddr = args[0].parse().expect("an address");
    let num_clients: usize = args[1].parse().expect("a number");
    let num_tokens: usize = args[2].parse().expect("a number");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let chunks = runtime.block_on(async {
        let mut streams = Vec::new();
        for i in 0..num_clients {
            let mut stream = tokio::net::TcpStream::connect(address).await.expect("connects");
            let body = json!({
                "messages": [{"role": "user", "content": format!("client {i}")}],
                "max_tokens": num_tokens, "ignore_eos": true, "stream": true, "seed": i,
            })
            .to_string();
            let head = format!(
                "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all((head + &body).as_bytes()).await.expect("writes");
            streams.push(stream);
        }
        let mut begun = [0; 1];
        for stream in &streams {
            stream.peek(&mut begun).await.expect("begins");
        }
        println!("begun");
        std::io::stdout().flush().expect("flushes");
        let readers: Vec<_> = streams.into_iter().map(|stream| tokio::spawn(read_stream(stream))).collect();
        let mut chunks = 0;
        for reader in readers {
            chunks += reader.await.expect("reads");
        }
        chunks
    });
    println!("{chunks}");
}

async fn read_stream(mut stream: tokio::net::TcpStream) -> usize {
    const END: &[u8] = b"0\r\n\r\n";
    let mut buffer = vec![0; 64 * 1024];
    let (mut tail, mut chunks) = (Vec::new(), 0);
    loop {
        let len = stream.read(&mut buffer).await.expect("reads");
        assert!(len > 0, "the stream ended early");
        chunks += 1;
        tail.extend_from_slice(&buffer[..len]);
        tail.drain(..tail.len().saturating_sub(END.len()));
        if tail == END {
            return chunks;
        }
    }
}
