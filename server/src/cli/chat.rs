//! `perilune chat`: talks to a running server in the terminal, pictures included.

use super::client::{Client, ClientError};
use super::picture;
use clap::Args;
use serde_json::{Value, json};
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

const HELP: &str = "/image PATH  attach a picture to the next message
/reset       forget the conversation
/quit        leave";

#[derive(Debug, Args)]
pub struct ChatArgs {
    /// Address of the server
    #[arg(long, default_value = "http://127.0.0.1:8000", env = "PERILUNE_URL")]
    pub url: String,

    /// Key that the server asks for
    #[arg(long, value_name = "KEY", env = "PERILUNE_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,

    /// Model to talk to; default: the first one that the server lists
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,

    /// System message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,

    /// Say this, print the answer and exit
    #[arg(long, value_name = "TEXT")]
    pub message: Option<String>,

    /// Picture to attach to the first message; may be given several times
    #[arg(long, value_name = "PATH")]
    pub image: Vec<PathBuf>,

    /// Most tokens of one answer
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: Option<u32>,

    /// Randomness of the answers; 0 is none
    #[arg(long, value_name = "X")]
    pub temperature: Option<f32>,
}

pub fn run(args: ChatArgs) -> anyhow::Result<()> {
    let mut session = Session::open(&args)?;
    for path in &args.image {
        session.attach(path).map_err(anyhow::Error::msg)?;
    }
    let mut out = std::io::stdout();
    match &args.message {
        Some(text) => Ok(session.say(text, &mut out)?),
        None => {
            let input = std::io::stdin();
            let prompt = if input.is_terminal() { "> " } else { "" };
            Ok(session.converse(input.lock(), prompt, &mut out)?)
        }
    }
}

/// A conversation so far, and what goes with its next message.
struct Session {
    client: Client,
    model: String,
    system: Option<String>,
    max_tokens: Option<u32>,
    temperature: Option<f32>,
    /// Turns of user and assistant, as the API takes them.
    turns: Vec<Value>,
    /// Data URLs of pictures not yet sent.
    attached: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
enum SayError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("failed to write: {0}")]
    Output(#[from] std::io::Error),
}

/// A line that was typed.
#[derive(Debug, PartialEq)]
enum Line<'a> {
    Nothing,
    Quit,
    Reset,
    Help,
    Image(&'a str),
    UnknownCommand(&'a str),
    Say(&'a str),
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Self {
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (word, rest.trim()) {
            ("", _) => Line::Nothing,
            ("/quit" | "/exit", "") => Line::Quit,
            ("/reset", "") => Line::Reset,
            ("/help", "") => Line::Help,
            ("/image", path) if !path.is_empty() => Line::Image(path),
            (command, _) if command.starts_with('/') => Line::UnknownCommand(line),
            _ => Line::Say(line),
        }
    }
}

impl Session {
    fn open(args: &ChatArgs) -> Result<Self, ClientError> {
        let ChatArgs { url, api_key, model, system, message: _, image: _, max_tokens, temperature } = args;
        let client = Client::new(url, api_key.as_deref())?;
        let model = match model {
            Some(name) => name.clone(),
            None => client.default_model()?,
        };
        Ok(Self {
            client,
            model,
            system: system.clone(),
            max_tokens: *max_tokens,
            temperature: *temperature,
            turns: Vec::new(),
            attached: Vec::new(),
        })
    }

    /// Reads lines until the end or `/quit`. A message that fails is reported and forgotten; the conversation goes on.
    fn converse(
        &mut self,
        mut input: impl BufRead,
        prompt: &str,
        out: &mut impl Write,
    ) -> std::io::Result<()> {
        loop {
            write!(out, "{prompt}")?;
            out.flush()?;
            let mut line = String::new();
            if input.read_line(&mut line)? == 0 {
                return Ok(());
            }
            match Line::parse(&line) {
                Line::Nothing => {}
                Line::Quit => return Ok(()),
                Line::Reset => {
                    self.turns.clear();
                    self.attached.clear();
                }
                Line::Help => writeln!(out, "{HELP}")?,
                Line::Image(path) => match self.attach(Path::new(path)) {
                    Ok(()) => writeln!(out, "[{path} goes with the next message]")?,
                    Err(message) => writeln!(out, "[{message}]")?,
                },
                Line::UnknownCommand(line) => writeln!(out, "[unknown command {line}]\n{HELP}")?,
                Line::Say(text) => match self.say(text, out) {
                    Ok(()) => {}
                    Err(SayError::Client(error)) => writeln!(out, "[{error}]")?,
                    Err(SayError::Output(error)) => return Err(error),
                },
            }
        }
    }

    fn attach(&mut self, path: &Path) -> Result<(), String> {
        self.attached.push(picture::from_file(path)?);
        Ok(())
    }

    /// Sends a message and writes the answer as it comes. Only an answered message becomes part of the conversation.
    fn say(&mut self, text: &str, out: &mut impl Write) -> Result<(), SayError> {
        self.turns.push(json!({ "role": "user", "content": self.content(text) }));
        let answer = self.answer(out);
        writeln!(out)?;
        match answer {
            Ok(answer) => {
                self.turns.push(json!({ "role": "assistant", "content": answer }));
                self.attached.clear();
                Ok(())
            }
            Err(error) => {
                self.turns.pop();
                Err(error)
            }
        }
    }

    fn content(&self, text: &str) -> Value {
        if self.attached.is_empty() {
            return text.into();
        }
        let pictures =
            self.attached.iter().map(|url| json!({ "type": "image_url", "image_url": { "url": url } }));
        pictures.chain([json!({ "type": "text", "text": text })]).collect()
    }

    fn answer(&self, out: &mut impl Write) -> Result<String, SayError> {
        let mut answer = String::new();
        let mut is_thinking = false;
        for event in self.client.stream("/v1/chat/completions", &self.request())? {
            let event = event?;
            let Some(delta) = event.pointer("/choices/0/delta") else { continue };
            let text = |key| delta.get(key).and_then(Value::as_str).unwrap_or_default();
            // Reasoning is shown and not sent back.
            let (thought, said) = (text("reasoning_content"), text("content"));
            answer.push_str(said);
            is_thinking |= !thought.is_empty();
            // The answer begins on a line of its own.
            let end = if is_thinking && !said.is_empty() { "\n\n" } else { "" };
            is_thinking &= said.is_empty();
            write!(out, "{thought}{end}{said}")?;
            out.flush()?;
        }
        Ok(answer)
    }

    fn request(&self) -> Value {
        let system = self.system.iter().map(|text| json!({ "role": "system", "content": text }));
        let messages: Vec<Value> = system.chain(self.turns.iter().cloned()).collect();
        let mut request = json!({ "model": self.model, "messages": messages, "stream": true });
        if let Some(max_tokens) = self.max_tokens {
            request["max_tokens"] = max_tokens.into();
        }
        if let Some(temperature) = self.temperature {
            request["temperature"] = temperature.into();
        }
        request
    }
}

#[cfg(test)]
mod tests {
    use super::super::stand_in::{Answer, StandIn};
    use super::*;

    fn delta(content: &str) -> String {
        format!("data: {}\n\n", json!({ "choices": [{ "index": 0, "delta": { "content": content } }] }))
    }

    fn saying(words: &[&str]) -> Answer {
        let role = json!({ "choices": [{ "index": 0, "delta": { "role": "assistant", "content": "" } }] });
        let words: String = words.iter().map(|word| delta(word)).collect();
        Answer::stream(format!("data: {role}\n\n: keep-alive\n\n{words}data: [DONE]\n\n"))
    }

    fn models() -> Answer {
        Answer::json(200, json!({ "data": [{ "id": "toy" }, { "id": "other" }] }))
    }

    fn args(server: &StandIn) -> ChatArgs {
        ChatArgs {
            url: server.url(),
            api_key: Some("secret".into()),
            model: None,
            system: Some("be brief".into()),
            message: None,
            image: Vec::new(),
            max_tokens: Some(7),
            temperature: None,
        }
    }

    fn converse(server: &StandIn, typed: &str) -> String {
        let mut out = Vec::new();
        Session::open(&args(server)).unwrap().converse(typed.as_bytes(), "> ", &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn png() -> PathBuf {
        let path = std::env::temp_dir().join(format!("perilune-chat-test-{}.png", std::process::id()));
        image::RgbImage::from_pixel(3, 2, image::Rgb([9, 8, 7])).save(&path).unwrap();
        path
    }

    #[test]
    fn turns_are_remembered_until_reset() {
        let server =
            StandIn::start(vec![models(), saying(&["Hel", "lo"]), saying(&["Two"]), saying(&["New"])]);
        let shown = converse(&server, "hi\n\n  and?  \n/reset\nagain\n/quit\nnever sent\n");
        assert_eq!(shown, "> Hello\n> > Two\n> > New\n> ");
        let requests = server.finish();
        assert_eq!(requests[0].line, "GET /v1/models HTTP/1.1");
        assert!(requests.iter().all(|request| request.header("authorization") == Some("Bearer secret")));
        assert_eq!(requests[1].line, "POST /v1/chat/completions HTTP/1.1");
        let system = json!({ "role": "system", "content": "be brief" });
        let [user, assistant] = [("user", "hi"), ("assistant", "Hello")]
            .map(|(role, content)| json!({ "role": role, "content": content }));
        let expected = json!({ "model": "toy", "messages": [system, user], "stream": true, "max_tokens": 7 });
        assert_eq!(requests[1].json(), expected);
        assert_eq!(
            requests[2].json()["messages"],
            json!([system, user, assistant, { "role": "user", "content": "and?" }])
        );
        assert_eq!(requests[3].json()["messages"], json!([system, { "role": "user", "content": "again" }]));
    }

    #[test]
    fn an_answer_begins_below_what_was_thought() {
        let thought = |text: &str| {
            let delta = json!({ "reasoning_content": text });
            format!("data: {}\n\n", json!({ "choices": [{ "index": 0, "delta": delta }] }))
        };
        let stream =
            thought("Small ") + &thought("talk.") + &delta("Hel") + &delta("lo") + "data: [DONE]\n\n";
        let server = StandIn::start(vec![models(), Answer::stream(stream), saying(&["Yes"])]);
        assert_eq!(converse(&server, "hi\nand?\n"), "> Small talk.\n\nHello\n> Yes\n> ");
        assert_eq!(server.finish()[2].json()["messages"][2]["content"], "Hello");
    }

    #[test]
    fn a_failed_message_is_reported_and_not_remembered() {
        let refusal = Answer::json(400, json!({ "error": { "message": "too long" } }));
        let broken = Answer::stream(delta("Wel"));
        let server = StandIn::start(vec![models(), refusal, broken, saying(&["Yes"])]);
        let url = server.url();
        let shown = converse(&server, "one\ntwo\nthree\n");
        let expected = format!(
            "> \n[400 from {url}/v1/chat/completions: too long]\n> Wel\n[the stream broke off: it ended without [DONE]]\n> Yes\n> "
        );
        assert_eq!(shown, expected);
        assert_eq!(server.finish()[3].json()["messages"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn a_picture_goes_with_one_message() {
        let path = png();
        let server = StandIn::start(vec![models(), saying(&["A dot"]), saying(&["No"])]);
        let shown =
            converse(&server, &format!("/image {0}\nwhat?\n/image /no/such\nmore?\n", path.display()));
        std::fs::remove_file(&path).unwrap();
        assert!(
            shown.contains("goes with the next message]\n> A dot\n> [failed to read /no/such: "),
            "{shown}"
        );
        let requests = server.finish();
        let content = &requests[1].json()["messages"][1]["content"];
        assert_eq!(content[0]["type"], "image_url");
        assert!(content[0]["image_url"]["url"].as_str().unwrap().starts_with("data:image/png;base64,iVBOR"));
        assert_eq!(content[1], json!({ "type": "text", "text": "what?" }));
        let later = requests[2].json();
        assert_eq!(later["messages"][1]["content"][0]["type"], "image_url");
        assert_eq!(later["messages"][3]["content"], "more?");
    }

    #[test]
    fn lines() {
        for (typed, line) in [
            ("", Line::Nothing),
            (" \t\n", Line::Nothing),
            ("/quit\n", Line::Quit),
            (" /reset ", Line::Reset),
            ("/image  a b.png\n", Line::Image("a b.png")),
            ("/image", Line::UnknownCommand("/image")),
            ("/images x", Line::UnknownCommand("/images x")),
            ("/quit now", Line::UnknownCommand("/quit now")),
            ("what is 1/2?\n", Line::Say("what is 1/2?")),
        ] {
            assert_eq!(Line::parse(typed), line, "{typed:?}");
        }
    }
}
