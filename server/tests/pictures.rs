//! Pictures from data URLs and from stand-ins of other hosts, still and moving: what is fetched, what is refused, what is done once, and
//! who waits for it.

use crate::harness;
use crate::support;

use harness::client::Response;
use harness::{PATIENCE, Setup, TestServer, fake};
use image::{Frame, ImageFormat, Rgba, RgbaImage};
use perilune::chat::image::remote::{Hosts, RemotePolicy};
use perilune::pictures::PictureOptions;
use serde_json::{Value, json};
use std::io::Cursor;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::hub::{Answer, StandIn};

const CHAT: &str = "/v1/chat/completions";
const PLACE: &str = "messages[0].content[1].image_url";

fn shade(shade: u8) -> RgbaImage {
    RgbaImage::from_pixel(20, 33, Rgba([shade, shade, 9, 255]))
}

fn png(of: u8) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    shade(of).write_to(&mut bytes, ImageFormat::Png).expect("encodes");
    bytes.into_inner()
}

fn gif(shades: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = image::codecs::gif::GifEncoder::new(&mut bytes);
    for &of in shades {
        encoder.encode_frame(Frame::new(shade(of))).expect("encodes");
    }
    drop(encoder);
    bytes
}

fn data_url(media_type: &str, bytes: &[u8]) -> String {
    use base64::Engine;
    format!("data:{media_type};base64,{}", base64::engine::general_purpose::STANDARD.encode(bytes))
}

fn part(kind: &str, url: &str) -> Value {
    json!({"type": kind, kind: {"url": url}})
}

fn question(parts: &[Value]) -> Value {
    let mut content = vec![json!({"type": "text", "text": "what?"})];
    content.extend_from_slice(parts);
    json!({"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 12, "ignore_eos": true})
}

fn about(url: &str) -> Value {
    question(&[part("image_url", url)])
}

fn with_pictures(pictures: PictureOptions) -> TestServer {
    let mut setup = Setup::default();
    setup.options.pictures = pictures;
    TestServer::with(setup)
}

/// Any host, and loopback too.
fn open(timeout: Duration) -> RemotePolicy {
    let addresses = vec!["127.0.0.1/32".parse().expect("a range")];
    RemotePolicy { hosts: Hosts::Any, addresses, timeout, ..RemotePolicy::default() }
}

fn with_remote(remote: RemotePolicy) -> TestServer {
    with_pictures(PictureOptions { remote, ..PictureOptions::default() })
}

fn text(answer: &Value) -> &Value {
    &answer["choices"][0]["message"]["content"]
}

/// A 400 that names `param`. Returns what it says.
fn refused(response: &Response, param: &str) -> String {
    assert_eq!(response.status, 400, "{}", response.text());
    let error = &response.json()["error"];
    assert_eq!(error["param"], param, "{error}");
    error["message"].as_str().expect("a message").to_owned()
}

#[test]
fn nothing_is_fetched_unless_the_operator_allows_it() {
    let host = StandIn::start(|_| Answer::body(&png(1)));
    let url = format!("{}/a.png", host.url());
    let closed = TestServer::start();
    assert!(refused(&closed.post(CHAT, &about(&url)), PLACE).contains("not enabled"));
    // Allowed, but not to reach this machine.
    let public = with_remote(RemotePolicy { addresses: Vec::new(), ..open(PATIENCE) });
    for url in [&url, "http://169.254.169.254/latest/meta-data/", "http://localhost:1/", "http://[::1]:1/"] {
        assert!(refused(&public.post(CHAT, &about(url)), PLACE).contains("may be fetched"), "{url}");
    }
    let listed = Hosts::Listed(vec!["example.org".parse().expect("a host")]);
    let listed = with_remote(RemotePolicy { hosts: listed, ..open(PATIENCE) });
    assert!(refused(&listed.post(CHAT, &about(&url)), PLACE).contains("may be fetched"));
    // A picture in a text is text.
    assert_eq!(
        closed.ask(
            CHAT,
            &json!({"messages": [{"role": "user", "content": format!("![]({url})")}], "max_tokens": 1})
        )["object"],
        "chat.completion"
    );
    assert!(host.asked().is_empty(), "somebody asked for {:?}", host.asked());
}

#[test]
fn a_remote_picture_is_what_the_same_bytes_are() {
    let host = StandIn::start(|asked| match asked.path.as_str() {
        "/moved" => Answer::status(302).header("Location", "/a.png"),
        // The type that a host claims does not matter.
        _ => Answer::body(&png(7)).header("Content-Type", "text/html"),
    });
    let server = with_remote(open(PATIENCE));
    let sent = server.ask(CHAT, &about(&data_url("image/png", &png(7))));
    for path in ["/a.png", "/moved"] {
        let fetched = server.ask(CHAT, &about(&format!("{}{path}", host.url())));
        assert_eq!(
            (text(&fetched), &fetched["usage"]["prompt_tokens"]),
            (text(&sent), &sent["usage"]["prompt_tokens"])
        );
    }
    // Twice in a request, fetched once.
    let before = host.asked().len();
    let url = format!("{}/twice", host.url());
    server.ask(CHAT, &question(&[part("image_url", &url), part("image_url", &url)]));
    assert_eq!(host.asked().len(), before + 1);
    assert!(host.asked().iter().all(|asked| asked.header("authorization").is_none()));
    assert_eq!(server.metric("perilune:media_fetches_total", "outcome=\"ok\""), 3.0);
    let count = server
        .ask("/tokenize", &json!({"messages": [{"role": "user", "content": [part("image_url", &url)]}]}));
    assert!(count["count"].as_u64().expect("a count") > 3);
}

#[test]
fn what_hosts_answer_is_not_told() {
    let host = StandIn::start(|asked| match asked.path.as_str() {
        "/metadata" => Answer::status(302).header("Location", "http://169.254.169.254/latest/meta-data/"),
        "/file" => Answer::status(302).header("Location", "file:///etc/passwd"),
        "/loop" => Answer::status(302).header("Location", "/loop"),
        "/page" => Answer::body(b"<html>internal secret</html>"),
        "/cut" => Answer::body(&png(1)).broken_after(20),
        "/bomb" => Answer::body(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\xff\xff\xff\0\xff\xff\xff\x08\x02\0\0\0"),
        _ => Answer::status(404),
    });
    let server = with_remote(open(PATIENCE));
    for (path, says) in [
        ("/metadata", "may be fetched"),
        ("/file", "status 404"),
        ("/loop", "more than 3 times"),
        ("/page", "none of PNG"),
        ("/cut", "cannot be fetched"),
        ("/bomb", "PNG picture is broken"),
        ("/missing", "status 404"),
    ] {
        let message = refused(&server.post(CHAT, &about(&format!("{}{path}", host.url()))), PLACE);
        assert!(message.contains(says), "{path}: {message}");
        for leak in ["secret", "169.254", "127.0.0.1", "/etc"] {
            assert!(!message.contains(leak), "{path}: {message}");
        }
    }
    // The second picture is named where it is.
    let parts = [
        part("image_url", &data_url("image/png", &png(1))),
        part("video_url", &format!("{}/page", host.url())),
    ];
    refused(&server.post(CHAT, &question(&parts)), "messages[0].content[2].video_url");
    assert_eq!(server.metric("perilune:media_fetches_total", "outcome=\"failed\""), 5.0);
}

/// Hosts that take connections and say nothing hold up their own requests only.
#[test]
fn slow_hosts_hold_up_nobody_else() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = |i: usize| format!("http://{}/{i}", silent.local_addr().expect("an address"));
    let server = with_remote(open(PATIENCE));
    let mut waiting: Vec<_> = (0..24)
        .map(|i| {
            let mut connection = server.connect();
            connection.send_json(CHAT, &about(&url(i)));
            connection
        })
        .collect();
    // Text, and pictures that are here already.
    server.ask(CHAT, &question(&[]));
    server.ask(CHAT, &about(&data_url("image/png", &png(3))));
    drop(silent);
    assert!(waiting.iter_mut().all(|connection| connection.receive().status == 400));

    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let hasty = with_remote(open(Duration::from_millis(50)));
    let url = format!("http://{}/", silent.local_addr().expect("an address"));
    // On a busy machine the time may be over before the fetch has begun, which is told in other words.
    let is_too_slow = || refused(&hasty.post(CHAT, &about(&url)), PLACE).contains("within 0.05 seconds");
    assert!((0..50).any(|_| is_too_slow()));
}

#[test]
fn an_animation_is_its_frames() {
    let server = TestServer::start();
    let stills: Vec<Value> =
        [10, 20, 30].map(|of| part("image_url", &data_url("image/png", &png(of)))).to_vec();
    let expected = server.ask(CHAT, &question(&stills));
    let bytes = gif(&[10, 20, 30]);
    for moving in [
        part("image_url", &data_url("image/gif", &bytes)),
        part("video_url", &data_url("image/gif", &bytes)),
        part("video_url", &data_url("video/mp4", &bytes)),
        json!({"type": "input_image", "image_url": data_url("image/gif", &bytes)}),
        json!({"type": "image_url", "image_url": data_url("image/gif", &bytes)}),
    ] {
        let answer = server.ask(CHAT, &question(std::slice::from_ref(&moving)));
        assert_eq!(text(&answer), text(&expected), "{}", moving["type"]);
        assert_eq!(answer["usage"]["prompt_tokens"], expected["usage"]["prompt_tokens"]);
    }
    // Of many frames some are shown: the first, the last, and evenly between.
    let few = with_pictures(PictureOptions {
        limits: perilune::chat::ImageLimits { max_frames: 3, ..Default::default() },
        ..PictureOptions::default()
    });
    let long = data_url("image/gif", &gif(&[10, 11, 12, 20, 21, 22, 30]));
    assert_eq!(text(&few.ask(CHAT, &about(&long))), text(&expected));
    refused(
        &server.post(CHAT, &question(&[part("video_url", &data_url("video/mp4", b"no picture"))])),
        "messages[0].content[1].video_url",
    );
}

#[test]
fn pictures_and_frames_are_counted_together() {
    let server = with_pictures(PictureOptions { max_pictures: 4, ..PictureOptions::default() });
    let still = || part("image_url", &data_url("image/png", &png(1)));
    let moving = part("image_url", &data_url("image/gif", &gif(&[1, 2, 3])));
    server.ask(CHAT, &question(&[still(), moving.clone()]));
    server.ask(CHAT, &question(&[still(), still(), still(), still()]));
    let five = question(&[still(), still(), still(), still(), still()]);
    assert!(refused(&server.post(CHAT, &five), "messages[0].content[5].image_url").contains("4 pictures"));
    let too_many_frames = question(&[still(), still(), moving]);
    refused(&server.post(CHAT, &too_many_frames), "messages[0].content[3].image_url");
}

#[test]
fn a_picture_is_processed_once() {
    let server = TestServer::start();
    // Words before the picture, each time others, so that no block of the prompt is found.
    let body = |of: u8, words: &str| {
        let mut body = about(&data_url("image/png", &png(of)));
        let content = body["messages"][0]["content"].as_array_mut().expect("parts");
        content.insert(0, json!({"type": "text", "text": words}));
        body
    };
    // Eight at once: the first holds the picture until all others wait for it, or have not come so far.
    server.control.hold_images(true);
    let mut asked: Vec<_> = (0..8)
        .map(|i| {
            let mut connection = server.connect();
            connection.send_json(CHAT, &body(1, &format!("{i} at once")));
            connection
        })
        .collect();
    server.control.wait_for_images(1);
    server.control.hold_images(false);
    let answers: Vec<_> = asked.iter_mut().map(|connection| connection.receive().json()).collect();
    assert!(answers.iter().all(|answer| text(answer).is_string()));
    assert_eq!(server.control.images_processed(), 1);
    // One after the other: the embedding on the device is found.
    for words in ["a", "b", "c"] {
        let answer = server.ask(CHAT, &body(1, words));
        assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    }
    assert_eq!(server.control.images_processed(), 1);
    server.ask(CHAT, &body(2, "d"));
    assert_eq!(server.control.images_processed(), 2);
    assert_eq!(server.metric("vllm:mm_cache_queries_total", ""), 12.0);
    assert_eq!(server.metric("vllm:mm_cache_hits_total", ""), 10.0);
    assert_eq!(server.metric("perilune:embedding_cache_queries_total", ""), 12.0);
    assert_eq!(server.metric("perilune:embedding_cache_hits_total", ""), 10.0);
    assert_eq!(server.metric("perilune:encoded_images_total", ""), 2.0);
    assert!(server.metric("perilune:image_cache_bytes", "") > 0.0);

    // Without room to keep them, each time anew.
    let forgetful = with_pictures(PictureOptions { cache_bytes: 0, ..PictureOptions::default() });
    (0..3).for_each(|_| drop(forgetful.ask(CHAT, &body(1, "a"))));
    assert_eq!(forgetful.control.images_processed(), 3);
    assert_eq!(forgetful.metric("perilune:image_cache_bytes", ""), 0.0);
}

/// As many pictures as may be prepared at a time, none of them ready: both async threads are free.
#[test]
fn pictures_are_not_processed_on_async_threads() {
    let server = TestServer::start();
    server.control.hold_images(true);
    let num_places = 2 * std::thread::available_parallelism().map_or(1, usize::from);
    let mut asked: Vec<_> = (0..num_places + 3)
        .map(|i| {
            let mut connection = server.connect();
            connection.send_json(CHAT, &about(&data_url("image/png", &png(i as u8))));
            connection
        })
        .collect();
    server.control.wait_for_images(num_places);
    for _ in 0..5 {
        assert_eq!(server.get("/health").status, 200);
        assert_eq!(server.get("/v1/models").status, 200);
    }
    // Nor do prompts without pictures wait for those with some.
    server.ask(CHAT, &question(&[]));
    assert_eq!(server.control.images_processed(), num_places, "no more at a time");
    server.control.hold_images(false);
    assert!(asked.iter_mut().all(|connection| connection.receive().status == 200));
}

#[test]
fn a_place_for_a_picture_needs_a_picture() {
    let server = TestServer::start();
    let complete =
        |prompt: Value| server.post("/v1/completions", &json!({"prompt": prompt, "max_tokens": 2}));
    for prompt in [
        json!("look: <|image|>!"),
        json!(["fine", "<|image|>"]),
        json!([65, fake::IMAGE, 66]),
        json!([[65], [66, fake::IMAGE]]),
    ] {
        let message = refused(&complete(prompt.clone()), "prompt");
        assert!(message.contains("<|image|>") && message.contains("no picture"), "{prompt}: {message}");
    }
    assert_eq!(complete(json!("look: <|eos|>!")).status, 200);
    // In a message it is text like any other, and tokens can be counted.
    let chat = json!({"messages": [{"role": "user", "content": "<|image|>"}], "max_tokens": 2});
    assert_eq!(server.post(CHAT, &chat).status, 200);
    assert_eq!(server.ask("/tokenize", &json!({"prompt": "<|image|>"}))["tokens"], json!([fake::IMAGE]));
    // One that the model writes is not sent back as a prompt's own.
    let picture = about(&data_url("image/png", &png(1)));
    assert_eq!(server.post(CHAT, &picture).status, 200);
}

#[test]
fn timings_tell_pictures_and_shares_add_up() {
    let server = TestServer::start();
    let device_ms = Arc::new(Mutex::new(0.0));
    std::thread::scope(|scope| {
        for i in 0..12u8 {
            let (server, device_ms) = (&server, device_ms.clone());
            scope.spawn(move || {
                let parts = if i % 2 == 0 {
                    vec![part("image_url", &data_url("image/png", &png(i)))]
                } else {
                    vec![]
                };
                let mut body = question(&parts);
                body["timings"] = true.into();
                body["n"] = 2.into();
                let response = server.post(CHAT, &body);
                assert_eq!(response.status, 200, "{}", response.text());
                let header = response.header("server-timing").expect("on whole answers").to_owned();
                let answer = response.json();
                for choice in answer["choices"].as_array().expect("choices") {
                    let timings = &choice["timings"];
                    let vision = timings["vision_ms"].as_f64().expect("a time");
                    assert_eq!(vision > 0.0, i % 2 == 0, "{timings}");
                    assert!(header.starts_with(&format!("vision;dur={vision:.3}, queue;dur=")), "{header}");
                    *device_ms.lock().expect("whole") += timings["device_ms"].as_f64().expect("a time");
                }
            });
        }
    });
    let told = *device_ms.lock().expect("whole");
    let worked = 1000.0 * server.metric("perilune:device_seconds_total", "");
    // Each of the 24 is rounded down to a microsecond.
    assert!(told <= worked + 1e-6 && told > worked - 0.024 - 1e-6, "{told} ms of {worked} ms");
}
