//! A plain HTTP client: whole answers as JSON, streams as the list of their events.

use base64::Engine as _;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::time::Duration;

/// Longest that one request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(600);

#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    url: String,
}

/// A whole answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub text: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.text))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The error object, after checking that it is one.
    pub fn error(&self) -> Value {
        let error = self.json()["error"].clone();
        assert!(error["message"].is_string(), "no error object: {}", self.text);
        assert!(error["type"].is_string(), "no error type: {}", self.text);
        error
    }
}

impl Client {
    pub fn new(url: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(REQUEST_LIMIT))
            .build();
        Self { agent: config.into(), url: url.to_string() }
    }

    pub fn get(&self, path: &str) -> Reply {
        reply(self.agent.get(format!("{}{path}", self.url)).call())
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_text(path, &body.to_string())
    }

    /// Sends `body` as it is, JSON or not.
    pub fn post_text(&self, path: &str, body: &str) -> Reply {
        let request =
            self.agent.post(format!("{}{path}", self.url)).header("content-type", "application/json");
        reply(request.send(body))
    }

    /// Uploads a file as a form does.
    pub fn upload(&self, purpose: &str, filename: &str, content: &str) -> Reply {
        let boundary = "between-the-parts-of-this-form";
        let head = format!("--{boundary}\r\ncontent-disposition: form-data; name=");
        let body = format!(
            "{head}\"purpose\"\r\n\r\n{purpose}\r\n{head}\"file\"; filename=\"{filename}\"\r\n\r\n{content}\r\n--{boundary}--\r\n"
        );
        let request = self.agent.post(format!("{}/v1/files", self.url));
        reply(request.header("content-type", format!("multipart/form-data; boundary={boundary}")).send(body))
    }

    /// Posts with `"stream": true` and gives back the data of every event, `[DONE]` last.
    pub fn stream(&self, path: &str, body: &Value) -> Vec<String> {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let request =
            self.agent.post(format!("{}{path}", self.url)).header("content-type", "application/json");
        let response = request.send(body.to_string()).expect("the server answers");
        assert_eq!(response.status(), 200);
        let reader = BufReader::new(response.into_body().into_reader());
        let lines = reader.lines().map(|line| line.expect("the stream ends in order"));
        lines.filter_map(|line| line.strip_prefix("data: ").map(str::to_string)).collect()
    }

    /// The value of a metric without regard to its labels; the sum where it has several series.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text;
        let series = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
        });
        let values: Vec<f64> = series.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
        assert!(!values.is_empty(), "no metric {name} in\n{text}");
        values.iter().sum()
    }
}

fn reply(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Reply {
    let mut response = response.expect("the server answers");
    let headers = response.headers().iter();
    let headers = headers.map(|(n, v)| (n.to_string(), v.to_str().unwrap_or_default().to_string())).collect();
    let text = response.body_mut().with_config().limit(256 << 20).read_to_string().expect("a whole body");
    Reply { status: response.status().as_u16(), headers, text }
}

/// A greedy chat request.
pub fn chat(messages: Vec<Value>, max_tokens: usize) -> Value {
    json!({ "model": "perilune-demo", "messages": messages, "max_tokens": max_tokens, "temperature": 0 })
}

/// A user's message: pictures (as data URLs) first, then the text.
pub fn user(text: &str, pictures: &[String]) -> Value {
    let mut parts: Vec<Value> =
        pictures.iter().map(|url| json!({ "type": "image_url", "image_url": { "url": url } })).collect();
    parts.push(json!({ "type": "text", "text": text }));
    json!({ "role": "user", "content": parts })
}

pub fn data_url(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(png))
}
