//! A small blocking client of the OpenAI API: JSON out, JSON or a stream of events back.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::time::Duration;
use ureq::Agent;

/// Longer lines than this are not a stream of tokens.
const MAX_LINE: u64 = 16 << 20;
const MAX_BODY: u64 = 64 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{url} is not an http or https address, such as http://127.0.0.1:8000")]
    Address { url: String },
    #[error("failed to reach {url}: {message}")]
    Unreachable { url: String, message: String },
    /// What the server answered instead of a result.
    #[error("{status} from {url}: {message}")]
    Refused { url: String, status: u16, message: String },
    #[error("the stream reports an error: {0}")]
    Failed(String),
    #[error("the stream broke off: {0}")]
    Broken(String),
    #[error("unexpected answer from {url}: {message}")]
    Unexpected { url: String, message: String },
}

/// One for all threads: connections are pooled.
#[derive(Debug, Clone)]
pub struct Client {
    agent: Agent,
    /// Without a slash at the end and without `/v1`.
    base: String,
    authorization: Option<String>,
}

impl Client {
    pub fn new(url: &str, api_key: Option<&str>) -> Result<Self, ClientError> {
        if !["http://", "https://"].iter().any(|scheme| url.len() > scheme.len() && url.starts_with(scheme)) {
            return Err(ClientError::Address { url: url.into() });
        }
        let base = url.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base).to_owned();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .max_idle_connections_per_host(1024)
            .build();
        let authorization = api_key.map(|key| format!("Bearer {key}"));
        Ok(Self { agent: config.into(), base, authorization })
    }

    /// The first model that the server lists.
    pub fn default_model(&self) -> Result<String, ClientError> {
        let url = format!("{}/v1/models", self.base);
        let mut request = self.agent.get(&url);
        if let Some(value) = &self.authorization {
            request = request.header("authorization", value);
        }
        let body = self.body_of(&url, request.call())?;
        let text = read_all(body).map_err(|message| ClientError::Unexpected { url: url.clone(), message })?;
        let json: Value = serde_json::from_str(&text)
            .map_err(|error| ClientError::Unexpected { url: url.clone(), message: error.to_string() })?;
        match json.pointer("/data/0/id").and_then(Value::as_str) {
            Some(id) => Ok(id.into()),
            None => Err(ClientError::Unexpected { url, message: "it lists no model".into() }),
        }
    }

    /// Sends a request that is answered by a stream. `path` is such as `/v1/completions`.
    pub fn stream(&self, path: &str, request: &Value) -> Result<Events<impl BufRead + use<>>, ClientError> {
        let url = format!("{}{path}", self.base);
        let mut post = self.agent.post(&url).header("content-type", "application/json");
        if let Some(value) = &self.authorization {
            post = post.header("authorization", value);
        }
        let body = self.body_of(&url, post.send(request.to_string()))?;
        Ok(Events { reader: BufReader::new(body), finished: false })
    }

    /// The body of a good answer; of another one, what it says.
    fn body_of(
        &self,
        url: &str,
        response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<impl Read + use<>, ClientError> {
        let response = response
            .map_err(|error| ClientError::Unreachable { url: url.into(), message: error.to_string() })?;
        let status = response.status().as_u16();
        let body = response.into_body().into_reader();
        if status == 200 {
            return Ok(body);
        }
        let text = read_all(body).unwrap_or_default();
        let json: Value = serde_json::from_str(&text).unwrap_or_default();
        let message =
            json.pointer("/error/message").and_then(Value::as_str).unwrap_or(text.trim()).to_owned();
        Err(ClientError::Refused { url: url.into(), status, message })
    }
}

fn read_all(body: impl Read) -> Result<String, String> {
    let mut text = String::new();
    body.take(MAX_BODY).read_to_string(&mut text).map_err(|error| error.to_string())?;
    Ok(text)
}

/// The events of a stream up to `[DONE]`. A stream that ends without it, or with an error, ends in an `Err`.
pub struct Events<R> {
    reader: R,
    finished: bool,
}

impl<R: BufRead> Iterator for Events<R> {
    type Item = Result<Value, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let event = self.read_event().transpose();
        self.finished = !matches!(event, Some(Ok(_)));
        event
    }
}

impl<R: BufRead> Events<R> {
    /// `None` is the end that the server announced.
    fn read_event(&mut self) -> Result<Option<Value>, ClientError> {
        let broken = |message: String| ClientError::Broken(message);
        let mut data = String::new();
        loop {
            let mut line = String::new();
            let len = self.reader.by_ref().take(MAX_LINE).read_line(&mut line);
            let len = len.map_err(|error| broken(error.to_string()))?;
            if len == 0 {
                return Err(broken("it ended without [DONE]".into()));
            }
            if len as u64 == MAX_LINE {
                return Err(broken(format!("a line is longer than {MAX_LINE} bytes")));
            }
            // Comments keep the connection alive, other fields say nothing that the data does not.
            if let Some(rest) = line.trim_end_matches(['\r', '\n']).strip_prefix("data:") {
                data.push_str(rest.strip_prefix(' ').unwrap_or(rest));
            } else if line.trim_end_matches(['\r', '\n']).is_empty() && !data.is_empty() {
                return parse(&data);
            }
        }
    }
}

fn parse(data: &str) -> Result<Option<Value>, ClientError> {
    if data == "[DONE]" {
        return Ok(None);
    }
    let json: Value = serde_json::from_str(data)
        .map_err(|error| ClientError::Broken(format!("an event is not JSON: {error}")))?;
    match json.get("error") {
        Some(error) => {
            let message = error.get("message").and_then(Value::as_str);
            Err(ClientError::Failed(message.map_or_else(|| error.to_string(), str::to_owned)))
        }
        None => Ok(Some(json)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn events(text: &str) -> Vec<Result<Value, String>> {
        let events = Events { reader: text.as_bytes(), finished: false };
        events.map(|event| event.map_err(|error| error.to_string())).collect()
    }

    #[test]
    fn a_stream_ends_once_and_says_how() {
        let broken = |what: &str| Err(format!("the stream broke off: {what}"));
        let cases = [
            ("data: {\"a\":1}\n\ndata: [DONE]\n\nrubbish", vec![Ok(json!({"a": 1}))]),
            (": ping\n\ndata:2\r\n\r\nevent: x\nid: 7\ndata: [DONE]\n\n", vec![Ok(json!(2))]),
            ("data: [1,\ndata: 2]\n\n\n\ndata: [DONE]\n\n", vec![Ok(json!([1, 2]))]),
            ("", vec![broken("it ended without [DONE]")]),
            ("data: 1\n\ndata: [DO", vec![Ok(json!(1)), broken("it ended without [DONE]")]),
            (
                "data: {\n\n",
                vec![broken("an event is not JSON: EOF while parsing an object at line 1 column 1")],
            ),
            (
                "data: 1\n\ndata: {\"error\":{\"message\":\"out\"}}\n\ndata: [DONE]\n\n",
                vec![Ok(json!(1)), Err("the stream reports an error: out".into())],
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(events(text), expected, "{text:?}");
        }
    }

    #[test]
    fn addresses() {
        for (url, base) in [
            ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
            ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
            ("https://x/api/v1/", "https://x/api"),
        ] {
            assert_eq!(Client::new(url, None).unwrap().base, base);
        }
        for url in ["", "127.0.0.1:8000", "ftp://x", "http://"] {
            assert!(Client::new(url, None).is_err(), "{url}");
        }
    }
}
