//! Clients that leave, stall or say nothing, and a server that goes down: memory is given back, and streams end as they should.

use crate::harness;

use harness::client::{Connection, parse_events};
use harness::fake::Fault;
use harness::{PATIENCE, Setup, TestServer, patient_http, wait_until};
use perilune::http::HttpLimits;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::time::Duration;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn endless(prompt: &str) -> Value {
    json!({"prompt": prompt, "max_tokens": 900, "ignore_eos": true, "stream": true})
}

/// Starts a stream and reads its first chunk, with the model held before its next step.
fn held_stream(server: &TestServer, body: &Value) -> Connection {
    server.control.close();
    let mut connection = server.connect();
    connection.send_json(COMPLETIONS, body);
    server.control.wait_until_blocked();
    server.control.permit(1);
    assert_eq!(connection.head().status, 200);
    assert!(!connection.chunk().is_empty());
    server.control.wait_until_blocked();
    connection
}

/// After the client left: the step that is under way ends, and the next one is without it.
fn check_freed(server: &TestServer, witness: &mut Connection) {
    server.wait_for_metric("perilune:http_connections", 2.0);
    let before = server.control.batches().len();
    assert_eq!(server.control.batches()[before - 1].len(), 2, "both are in the step under way");
    server.control.permit(1);
    server.control.wait_until_blocked();
    assert_eq!(server.control.batches()[before].len(), 1, "the next step is without the one that left");
    server.control.open();
    assert_eq!(witness.head().status, 200);
    let rest = witness.receive_rest();
    assert_eq!(parse_events(&rest).last().map(String::as_str), Some("[DONE]"));
    server.wait_for_ended("abort", 1.0);
    server.wait_for_metric("vllm:num_requests_running", 0.0);
    server.wait_for_metric("vllm:kv_cache_usage_perc", 0.0);
}

/// Two streams: one to leave, and one that stays. The metrics' own connection is the second one while it is asked.
fn two_streams(server: &TestServer) -> (Connection, Connection) {
    let leaver = held_stream(server, &endless("the one that leaves"));
    let mut witness = server.connect();
    witness.send_json(COMPLETIONS, &endless("the one that stays"));
    // The witness is admitted after the step under way, so it is in the one after.
    server.wait_for_pending(1);
    server.control.permit(1);
    server.control.wait_until_blocked();
    assert_eq!(server.control.batches().last().map(Vec::len), Some(2));
    (leaver, witness)
}

#[test]
fn a_client_that_leaves_is_gone_before_the_next_step() {
    for server in [TestServer::start(), TestServer::working_alone()] {
        let (leaver, mut witness) = two_streams(&server);
        drop(leaver);
        check_freed(&server, &mut witness);
    }
}

#[test]
fn a_client_that_sent_more_and_leaves_is_gone_too() {
    let server = TestServer::start();
    let (mut leaver, mut witness) = two_streams(&server);
    // hyper reads no further while it answers, and so does not see the end of the connection.
    leaver.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n");
    drop(leaver);
    check_freed(&server, &mut witness);
}

#[test]
fn a_client_that_waits_for_a_whole_answer_and_leaves_is_gone_too() {
    let server = TestServer::start();
    server.control.close();
    let mut leaver = server.connect();
    let mut body = endless("not streamed");
    body["stream"] = false.into();
    leaver.send_json(COMPLETIONS, &body);
    server.control.wait_until_blocked();
    drop(leaver);
    server.wait_for_metric("perilune:http_connections", 1.0);
    server.control.open();
    server.wait_for_ended("abort", 1.0);
    server.wait_for_metric("vllm:num_requests_running", 0.0);
    assert_eq!(server.control.batches().len(), 1, "no step after the one under way");
}

#[test]
fn a_client_that_reads_nothing_is_dropped() {
    let mut setup = Setup::default();
    setup.options.http =
        HttpLimits { stall_timeout: Duration::from_millis(300), send_buffer: 4096, ..patient_http() };
    let server = TestServer::with(setup);
    let mut connection = server.connect();
    // Many answers with everything reported: more than all buffers on the way hold.
    let mut body = endless("stalled");
    body["n"] = 100.into();
    body["logprobs"] = 20.into();
    connection.send_json(COMPLETIONS, &body);
    // The metrics' own is left.
    server.wait_for_metric("perilune:http_connections", 1.0);
    server.wait_for_metric("vllm:num_requests_running", 0.0);
    drop(connection);
}

#[test]
fn silent_and_slow_heads_are_closed() {
    let mut setup = Setup::default();
    let short = Duration::from_millis(200);
    setup.options.http = HttpLimits { header_timeout: short, idle_timeout: short, ..patient_http() };
    let server = TestServer::with(setup);
    assert!(server.connect().is_closed(), "a silent connection");
    let mut connection = server.connect();
    connection.write(b"GET /health HTTP/1.1\r\nx: ");
    assert!(connection.is_closed(), "half a head");
    assert!(asked_in_time(&server).is_closed(), "idle after an answer");
}

/// A connection with an answer, to a server that soon closes those that say nothing. On a busy machine this test itself may be who is late: then
/// it tries again.
fn asked_in_time(server: &TestServer) -> Connection {
    for _ in 0..100 {
        let mut connection = server.connect();
        let request = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
        if connection.stream.get_mut().write_all(request).is_ok() && connection.is_answered() {
            assert_eq!(connection.receive().status, 200);
            return connection;
        }
    }
    panic!("connections are closed before they can ask");
}

/// A proxy keeps connections for a minute and more, and must not find them closed when it needs them.
#[test]
fn connections_are_kept_for_longer_than_a_head_may_take() {
    let mut setup = Setup::default();
    setup.options.http = HttpLimits { header_timeout: Duration::from_millis(200), ..patient_http() };
    let server = TestServer::with(setup);
    let mut kept = asked_in_time(&server);
    assert!(server.connect().is_closed(), "a younger one that says nothing");
    kept.send("GET", "/health", &[], b"");
    assert_eq!(kept.receive().status, 200);
}

#[test]
fn slow_bodies_are_refused() {
    let mut setup = Setup::default();
    setup.options.limits.body_timeout = Duration::from_millis(200);
    let server = TestServer::with(setup);
    let mut connection = server.connect();
    connection.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{");
    assert_eq!(connection.receive().status, 408);
}

/// A large picture over a slow line takes longer than a small body may, and comes all the same.
#[test]
fn long_bodies_that_come_steadily_are_waited_for() {
    let mut setup = Setup::default();
    setup.options.limits.body_timeout = Duration::from_millis(200);
    let server = TestServer::with(setup);
    let body = json!({"prompt": "hi", "max_tokens": 1, "user": "x".repeat(4 << 20)}).to_string();
    let head = |len: usize| {
        format!(
            "POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len}\r\n\r\n"
        )
    };
    let (beginning, rest) = body.split_at(body.len() - 1000);
    let beginning = head(body.len()) + beginning;
    let waited_for = || {
        let mut steady = server.connect();
        if steady.stream.get_mut().write_all(beginning.as_bytes()).is_err() {
            return false;
        }
        // Begun later, and given up on.
        let mut slow = server.connect();
        slow.write(head(100).as_bytes());
        assert_eq!(slow.receive().status, 408);
        steady.stream.get_mut().write_all(rest.as_bytes()).is_ok()
            && steady.is_answered()
            && steady.receive().status == 200
    };
    // On a busy machine this test may itself not be steady, but not every time.
    assert!((0..50).any(|_| waited_for()));
}

/// In its own language: SETTINGS, then GOAWAY with HTTP_1_1_REQUIRED.
#[test]
fn a_client_that_begins_with_http2_is_told() {
    let server = TestServer::start();
    let mut connection = server.connect();
    connection.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    let mut frames = vec![0; 9 + 9 + 33];
    connection.stream.read_exact(&mut frames).expect("both frames");
    assert_eq!(frames[..9], *b"\0\0\0\x04\0\0\0\0\0");
    assert_eq!(frames[9..18], *b"\0\0\x21\x07\0\0\0\0\0");
    assert_eq!(frames[18..26], *b"\0\0\0\0\0\0\0\x0d");
    assert_eq!(frames[26..], *b"this server speaks HTTP/1");
    assert!(connection.is_closed());
}

#[test]
fn connections_are_used_again() {
    let server = TestServer::start();
    let mut connection = server.connect();
    for stream in [false, true, false] {
        let body = json!({"prompt": "hi", "max_tokens": 5, "stream": stream});
        connection.send_json(COMPLETIONS, &body);
        assert_eq!(connection.receive().status, 200);
    }
}

#[test]
fn silence_is_filled_with_comments() {
    let mut setup = Setup::default();
    setup.options.limits.keep_alive = Some(Duration::from_millis(50));
    let server = TestServer::with(setup);
    server.control.close();
    let mut connection = server.connect();
    connection.send_json(COMPLETIONS, &endless("waiting"));
    assert_eq!(connection.head().status, 200, "the status does not wait for ever");
    for _ in 0..3 {
        assert_eq!(connection.chunk(), b": keep-alive\n\n");
    }
    server.control.open();
    let rest = connection.receive_rest();
    assert_eq!(parse_events(&rest).last().map(String::as_str), Some("[DONE]"));
}

/// What load balancers ask for: streams count until they end, others until they are answered.
#[test]
fn load_is_how_many_requests_are_in_flight() {
    let server = TestServer::start();
    let load = || server.get("/load").json();
    assert_eq!(load(), json!({"server_load": 0}));
    let mut stream = held_stream(&server, &endless("streamed"));
    let mut whole = server.connect();
    whole.send_json(CHAT, &json!({"messages": [{"role": "user", "content": "hi"}]}));
    server.wait_for_pending(1);
    assert_eq!(load(), json!({"server_load": 2}));
    assert_eq!(server.send("POST", "/ping", &[], b"").status, 200);
    server.control.open();
    assert_eq!(whole.receive().status, 200);
    stream.receive_rest();
    wait_until("nothing is in flight", || load()["server_load"] == 0);
}

#[test]
fn a_full_queue_is_a_429() {
    let mut setup = Setup::default();
    setup.options.scheduling.max_waiting = 2;
    setup.config.max_running = 1;
    let server = TestServer::with(setup);
    let running = held_stream(&server, &endless("running"));
    let mut waiting = Vec::new();
    for i in 0..2 {
        let mut connection = server.connect();
        connection.send_json(COMPLETIONS, &endless(&format!("waiting {i}")));
        waiting.push(connection);
    }
    // Admission happens between steps.
    server.wait_for_pending(2);
    server.control.permit(1);
    server.control.wait_until_blocked();
    let mut refused = server.connect();
    refused.send_json(COMPLETIONS, &endless("refused"));
    server.wait_for_pending(1);
    server.control.open();
    let response = refused.receive();
    assert_eq!(response.status, 429, "{}", response.text());
    assert_eq!(response.header("retry-after"), Some("1"));
    assert_eq!(response.json()["error"]["code"], "rate_limit_exceeded");
    assert_eq!(server.metric("vllm:admission_rejections_total", ""), 1.0);
    drop((running, waiting));
    server.wait_for_metric("vllm:num_requests_running", 0.0);
}

#[test]
fn a_failed_step_ends_everything_with_an_error() {
    let starts = [TestServer::start, TestServer::working_alone];
    for (fault, start) in
        [Fault::Error, Fault::Panic].into_iter().flat_map(|f| starts.map(|start| (f, start)))
    {
        let server = start();
        let mut stream = held_stream(&server, &endless("streamed"));
        let mut whole = server.connect();
        whole.send_json(CHAT, &json!({"messages": [{"role": "user", "content": "hi"}]}));
        server.wait_for_pending(1);
        server.fail_next(fault);
        server.control.open();
        let events = parse_events(&stream.receive_rest());
        let [.., error, done] = &events[..] else { panic!("{events:?}") };
        assert_eq!(done, "[DONE]");
        let error: Value = serde_json::from_str(error).expect("JSON");
        assert_eq!(error["error"]["code"], "engine_error");
        let response = whole.receive();
        assert!([500, 503].contains(&response.status), "{}", response.text());
        assert_eq!((server.get("/health").status, server.get("/livez").status), (503, 200));
        assert_eq!((server.get("/ping").status, server.send("POST", "/ping", &[], b"").status), (503, 503));
        // Later requests are refused rather than left waiting.
        assert_eq!(server.post(CHAT, &json!({"messages": [{"role": "user", "content": "hi"}]})).status, 503);
    }
}

#[test]
fn draining_lets_requests_finish() {
    let mut server = TestServer::start();
    let mut stream = held_stream(&server, &endless("in flight"));
    let mut idle = server.connect();
    idle.send("GET", "/readyz", &[], b"");
    assert_eq!(idle.receive().status, 200);
    let serving = server.serving.take().expect("serving");
    let drain = server.runtime.spawn(serving.drain(PATIENCE, std::future::pending()));
    assert!(idle.is_closed(), "an idle connection is closed");
    // New ones are told, and told to leave.
    let response = server.get("/readyz");
    assert_eq!((response.status, response.header("connection")), (503, Some("close")));
    let response = server.post(COMPLETIONS, &json!({"prompt": "too late"}));
    assert_eq!((response.status, response.header("retry-after")), (503, Some("5")));
    assert_eq!(response.json()["error"]["code"], "shutting_down");
    assert_eq!((server.get("/health").status, server.get("/livez").status), (200, 200));
    server.control.open();
    let rest = stream.receive_rest();
    let events = parse_events(&rest);
    let last: Value = serde_json::from_str(&events[events.len() - 2]).expect("JSON");
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert!(stream.is_closed());
    server.runtime.block_on(drain).expect("drains");
    assert!(std::net::TcpStream::connect(server.address).is_err(), "nothing listens any more");
}

#[test]
fn draining_ends_what_does_not_finish() {
    for mut server in [TestServer::start(), TestServer::working_alone()] {
        let mut stream = held_stream(&server, &endless("too long"));
        let mut whole = server.connect();
        whole.send_json(
            COMPLETIONS,
            &json!({"prompt": "too long as well", "max_tokens": 900, "ignore_eos": true}),
        );
        // Connections without a request are closed when draining begins: both are to be under way.
        server.wait_for_pending(1);
        server.control.permit(1);
        server.control.wait_until_blocked();
        assert_eq!(server.control.batches().last().map(Vec::len), Some(2));
        let serving = server.serving.take().expect("serving");
        let engine = serving.engine().clone();
        let (hurry, hurried) = tokio::sync::oneshot::channel::<()>();
        let drain = server.runtime.spawn(serving.drain(PATIENCE, async {
            let _ = hurried.await;
        }));
        hurry.send(()).expect("the drain waits for it");
        // The engine is told to stop; the step under way ends first.
        wait_until("the engine is told to stop", || engine.is_stopping());
        server.control.permit(1);
        let events = parse_events(&stream.receive_rest());
        let error: Value = serde_json::from_str(&events[events.len() - 2]).expect("JSON");
        assert_eq!(error["error"]["code"], "shutting_down");
        assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
        assert_eq!(whole.receive().status, 503);
        server.runtime.block_on(drain).expect("drains");
    }
}

/// More than all buffers on the way hold, asked for and complete, and not read yet.
fn unread() -> (TestServer, Connection) {
    let mut setup = Setup::default();
    setup.options.http = HttpLimits { send_buffer: 4096, flush_timeout: Duration::ZERO, ..patient_http() };
    let server = TestServer::with(setup);
    let mut slow = server.connect();
    let body = json!({"prompt": "hi", "max_tokens": 900, "ignore_eos": true, "n": 100, "logprobs": 20});
    slow.send_json(COMPLETIONS, &body);
    server.wait_for_ended("length", 100.0);
    (server, slow)
}

/// An answer may be complete long before its reader has it: the time to go down in is also for that.
#[test]
fn draining_waits_for_clients_that_read_slowly() {
    let (mut server, mut slow) = unread();
    // This one will never ask for anything.
    let mut silent = server.connect();
    server.wait_for_metric("perilune:http_connections", 3.0);
    let serving = server.serving.take().expect("serving");
    let engine = serving.engine().clone();
    let drain = server.runtime.spawn(serving.drain(PATIENCE, std::future::pending()));
    wait_until("the engine has stopped", || engine.is_stopping());
    wait_until("nothing listens", || std::net::TcpStream::connect(server.address).is_err());
    assert!(silent.is_closed());
    assert!(!drain.is_finished());
    let answer = slow.receive().json();
    assert_eq!(answer["choices"].as_array().map(Vec::len), Some(100));
    drop(slow);
    server.runtime.block_on(drain).expect("drains");
}

#[test]
fn draining_does_not_wait_for_clients_that_read_nothing_when_its_time_is_over() {
    let (mut server, _slow) = unread();
    let serving = server.serving.take().expect("serving");
    let (hurry, hurried) = tokio::sync::oneshot::channel::<()>();
    let drain = server.runtime.spawn(serving.drain(PATIENCE, async {
        let _ = hurried.await;
    }));
    wait_until("nothing listens", || std::net::TcpStream::connect(server.address).is_err());
    hurry.send(()).expect("the drain waits for it");
    server.runtime.block_on(drain).expect("drains");
}
