//! The lines of a batch: `{"custom_id": …, "method": "POST", "url": "/v1/…", "body": {…}}`, in OpenAI's form.

use crate::body::parsed_overhead;
use crate::openai::fields::BYTE_ORDER_MARK;
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::io::{self, BufRead, Read};

/// OpenAI's limit is 64 characters; ours only bounds memory.
const CUSTOM_ID_LEN_MAX: usize = 512;
/// Mistakes that a report of a bad file lists at most.
const NUM_ERRORS_MAX: usize = 100;

#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// From 1.
    pub number: usize,
    pub custom_id: String,
    pub url: String,
    pub body: Map<String, Value>,
    /// About what it takes while it runs, in bytes: its text, and what is parsed of it.
    pub weight: usize,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    pub line: Option<usize>,
    pub code: &'static str,
    pub param: Option<&'static str>,
    pub message: String,
}

/// What lines may say.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The route that all lines name; `None`: each its own.
    pub endpoint: Option<String>,
    pub num_lines_max: usize,
    pub line_len_max: usize,
}

#[derive(Debug)]
pub struct LineReader<R> {
    reader: R,
    number: usize,
    line_len_max: usize,
    buffer: Vec<u8>,
}

impl<R: BufRead> LineReader<R> {
    pub fn new(reader: R, line_len_max: usize) -> Self {
        Self { reader, number: 0, line_len_max, buffer: Vec::new() }
    }

    /// The next line that is not blank, with its number; a line that is too long is given cut off.
    pub fn next_raw(&mut self) -> io::Result<Option<(usize, &[u8])>> {
        loop {
            self.buffer.clear();
            let limit = self.line_len_max as u64 + 2;
            if self.reader.by_ref().take(limit).read_until(b'\n', &mut self.buffer)? == 0 {
                return Ok(None);
            }
            self.number += 1;
            if self.buffer.len() as u64 == limit && !self.buffer.ends_with(b"\n") {
                skip_line(&mut self.reader)?;
            }
            let is_blank = self.buffer.trim_ascii().is_empty();
            if !is_blank {
                break;
            }
        }
        let line = self.buffer.trim_ascii();
        let line = if self.number == 1 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
        Ok(Some((self.number, line)))
    }

    pub fn next_line(&mut self, rules: &Rules) -> io::Result<Option<Result<Line, Mistake>>> {
        Ok(self.next_raw()?.map(|(number, bytes)| parse(number, bytes, rules)))
    }
}

fn skip_line(reader: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = reader.fill_buf()?;
        let (len, is_end) = match buffer.iter().position(|&byte| byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (buffer.len(), buffer.is_empty()),
        };
        reader.consume(len);
        if is_end {
            return Ok(());
        }
    }
}

fn parse(number: usize, bytes: &[u8], rules: &Rules) -> Result<Line, Mistake> {
    let mistake = |code, param, message: String| Mistake { line: Some(number), code, param, message };
    if bytes.len() > rules.line_len_max {
        let message = format!("the line is longer than {} bytes", rules.line_len_max);
        return Err(mistake("line_too_long", None, message));
    }
    let not_an_object =
        |why: String| mistake("invalid_json_line", None, format!("the line is not a JSON object{why}"));
    let bytes = if number == 1 { bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes) } else { bytes };
    let mut line = match serde_json::from_slice(bytes) {
        Ok(Value::Object(line)) => line,
        Ok(_) => return Err(not_an_object(String::new())),
        Err(error) => return Err(not_an_object(format!(": {error}"))),
    };
    let [custom_id, method, url, body] =
        ["custom_id", "method", "url", "body"].map(|name| line.shift_remove(name));
    let text = |param, value: Option<Value>| match value {
        Some(Value::String(text)) => Ok(text),
        None | Some(Value::Null) => {
            Err(mistake("missing_required_parameter", Some(param), format!("`{param}` is missing")))
        }
        Some(_) => Err(mistake("invalid_type", Some(param), format!("`{param}` is not a string"))),
    };
    let custom_id = text("custom_id", custom_id)?;
    if custom_id.is_empty() || custom_id.len() > CUSTOM_ID_LEN_MAX {
        let message = format!("`custom_id` has {} bytes, expected 1 to {CUSTOM_ID_LEN_MAX}", custom_id.len());
        return Err(mistake("invalid_custom_id", Some("custom_id"), message));
    }
    let method = text("method", method)?;
    if method != "POST" {
        return Err(mistake(
            "invalid_method",
            Some("method"),
            format!("`method` is {method:?}, expected \"POST\""),
        ));
    }
    let url = text("url", url)?;
    match &rules.endpoint {
        Some(endpoint) if *endpoint != url => {
            let message = format!("`url` is {url:?}, the batch's endpoint is {endpoint:?}");
            return Err(mistake("mismatched_url", Some("url"), message));
        }
        None if !endpoints().any(|endpoint| endpoint == url) => {
            return Err(mistake("invalid_url", Some("url"), unknown_endpoint(&url)));
        }
        _ => {}
    }
    match body {
        Some(Value::Object(body)) => {
            Ok(Line { number, custom_id, url, body, weight: 2 * bytes.len() + parsed_overhead(bytes) })
        }
        None | Some(Value::Null) => {
            Err(mistake("missing_required_parameter", Some("body"), "`body` is missing".into()))
        }
        Some(_) => Err(mistake("invalid_type", Some("body"), "`body` is not an object".into())),
    }
}

/// Reads all of a file and counts its lines, or says what is wrong with it.
pub fn check<R: BufRead>(reader: R, rules: &Rules) -> io::Result<Result<usize, Vec<Mistake>>> {
    let mut reader = LineReader::new(reader, rules.line_len_max);
    let mut seen = HashSet::new();
    let mut mistakes = Vec::new();
    let mut num_lines = 0;
    while let Some(line) = reader.next_line(rules)? {
        num_lines += 1;
        if num_lines > rules.num_lines_max {
            let message = format!("the file has more than {} lines", rules.num_lines_max);
            mistakes.push(Mistake { line: None, code: "too_many_lines", param: None, message });
            break;
        }
        match line {
            Err(mistake) => mistakes.push(mistake),
            Ok(line) if !seen.insert(key(&line.custom_id)) => mistakes.push(Mistake {
                line: Some(line.number),
                code: "duplicate_custom_id",
                param: Some("custom_id"),
                message: format!("`custom_id` {:?} was on a line before", line.custom_id),
            }),
            Ok(_) => {}
        }
        if mistakes.len() >= NUM_ERRORS_MAX {
            break;
        }
    }
    if num_lines == 0 {
        let message = "the file has no lines".into();
        mistakes.push(Mistake { line: None, code: "empty_file", param: None, message });
    }
    Ok(if mistakes.is_empty() { Ok(num_lines) } else { Err(mistakes) })
}

/// A custom_id in little memory.
pub type Key = [u8; 16];

pub fn key(custom_id: &str) -> Key {
    let mut key = Key::default();
    key.copy_from_slice(&blake3::hash(custom_id.as_bytes()).as_bytes()[..16]);
    key
}

/// Routes that a line may name, where this server has them.
const BATCHABLE: &[&str] = &[
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/v1/score",
    "/v1/rerank",
    "/v1/rewards",
];

pub fn endpoints() -> impl Iterator<Item = &'static str> {
    BATCHABLE.iter().copied()
}

pub fn unknown_endpoint(url: &str) -> String {
    format!(
        "{url:?} is not a route that can be batched; known are {}",
        endpoints().collect::<Vec<_>>().join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules { endpoint: Some("/v1/completions".into()), num_lines_max: 4, line_len_max: 200 }
    }

    fn line(custom_id: &str) -> String {
        format!(
            r#"{{"custom_id":"{custom_id}","method":"POST","url":"/v1/completions","body":{{"prompt":"a"}}}}"#
        )
    }

    fn codes(text: &str) -> Vec<(Option<usize>, &'static str)> {
        match check(text.as_bytes(), &rules()).expect("memory can be read") {
            Ok(_) => Vec::new(),
            Err(mistakes) => mistakes.iter().map(|mistake| (mistake.line, mistake.code)).collect(),
        }
    }

    #[test]
    fn good_files() {
        for (text, count) in [
            (line("a"), 1),
            (format!("\u{feff}{}\r\n\r\n  \n{}\n", line("a"), line("b")), 2),
            (format!("{}\n{}\n{}\n{}", line("a"), line("b"), line("A"), line("é")), 4),
        ] {
            assert_eq!(check(text.as_bytes(), &rules()).expect("memory can be read"), Ok(count), "{text}");
        }
    }

    #[test]
    fn mistakes_have_numbers_and_codes() {
        let a = line("a");
        let with = |from: &str, to: &str| a.replace(from, to);
        let long = with("\"a\"}", &format!("\"{}\"}}", "x".repeat(200)));
        #[rustfmt::skip]
        let cases = [
            (String::new(), vec![(None, "empty_file")]),
            ("\n \n".into(), vec![(None, "empty_file")]),
            (format!("{a}\nnonsense\n"), vec![(Some(2), "invalid_json_line")]),
            (format!("\n{a}\n[1]\n"), vec![(Some(3), "invalid_json_line")]),
            // Not its fields in their order.
            (
                "[\"a\",\"POST\",\"/v1/completions\",{}]\n".to_owned(),
                vec![(Some(1), "invalid_json_line")],
            ),
            (format!("{a}\n{a}"), vec![(Some(2), "duplicate_custom_id")]),
            (with("custom_id", "id"), vec![(Some(1), "missing_required_parameter")]),
            (with(r#":"a","method"#, r#":5,"method"#), vec![(Some(1), "invalid_type")]),
            (with(r#":"a","method"#, r#":"","method"#), vec![(Some(1), "invalid_custom_id")]),
            (with("POST", "GET"), vec![(Some(1), "invalid_method")]),
            (with("/v1/completions", "/v1/chat/completions"), vec![(Some(1), "mismatched_url")]),
            (with(r#"{"prompt":"a"}"#, "[]"), vec![(Some(1), "invalid_type")]),
            (with(r#"{"prompt":"a"}"#, "null"), vec![(Some(1), "missing_required_parameter")]),
            (format!("{long}\n{}", line("b")), vec![(Some(1), "line_too_long")]),
            (["a", "b", "c", "d", "e"].map(line).join("\n"), vec![(None, "too_many_lines")]),
            ("x\ny\n".into(), vec![(Some(1), "invalid_json_line"), (Some(2), "invalid_json_line")]),
        ];
        for (text, expected) in cases {
            assert_eq!(codes(&text), expected, "{text}");
        }
    }

    #[test]
    fn without_a_batch_each_line_names_its_route() {
        let rules = Rules { endpoint: None, ..rules() };
        let text = format!("{}\n{}", line("a"), line("b").replace("/v1/completions", "/v1/chat/completions"));
        assert_eq!(check(text.as_bytes(), &rules).expect("memory can be read"), Ok(2));
        for url in
            ["/v1/files", "/v1/batches", "/metrics", "http://x/v1/completions", "/v1/completions?x", ""]
        {
            let text = line("a").replace("/v1/completions", url);
            let mistakes = check(text.as_bytes(), &rules).expect("memory can be read").unwrap_err();
            assert_eq!(mistakes[0].code, "invalid_url", "{url}");
        }
    }
}
