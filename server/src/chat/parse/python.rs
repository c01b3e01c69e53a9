//! A Python literal to JSON, while it comes: strings in either quotes, numbers, `True`, `False`, `None`, lists, tuples, dictionaries.

use super::json::push_escaped;

#[derive(Debug)]
pub(super) struct Python {
    /// The closing brackets that are due.
    nest: Vec<char>,
    state: State,
}

#[derive(Debug)]
enum State {
    Value,
    /// After an opening bracket, or after a comma.
    ValueOrEnd {
        is_first: bool,
    },
    Colon,
    CommaOrEnd,
    String {
        quote: char,
        is_key: bool,
    },
    /// After a backslash; what follows it so far, where it takes more than one character.
    Escape {
        quote: char,
        is_key: bool,
        text: String,
    },
    /// A number, or a word.
    Word(String),
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PythonScan {
    More,
    Done,
    Bad,
}

/// The longest number that is passed on.
const WORD_LEN_MAX: usize = 64;

impl Python {
    pub fn new() -> Self {
        Self { nest: Vec::new(), state: State::Value }
    }

    /// How many bytes of `text` belong to the literal. Appends what of the JSON is certain.
    pub fn take(&mut self, text: &str, out: &mut String) -> (usize, PythonScan) {
        for (at, c) in text.char_indices() {
            match self.step(c, out) {
                Some(true) => {}
                Some(false) => return (at, PythonScan::Done),
                None => return (at, PythonScan::Bad),
            }
            if matches!(self.state, State::Done) {
                return (at + c.len_utf8(), PythonScan::Done);
            }
        }
        (text.len(), PythonScan::More)
    }

    /// `Some(false)`: the literal, a number or a word, ended before this character.
    fn step(&mut self, c: char, out: &mut String) -> Option<bool> {
        match &mut self.state {
            State::Value | State::ValueOrEnd { .. } | State::Colon | State::CommaOrEnd
                if c.is_whitespace() => {}
            State::ValueOrEnd { .. } | State::CommaOrEnd if self.nest.last() == Some(&c) => self.close(out),
            State::Value | State::ValueOrEnd { .. } => return self.begin(c, out),
            State::Colon if c == ':' => {
                out.push_str(": ");
                self.state = State::Value;
            }
            // The comma is written when something follows it: Python allows a last one.
            State::CommaOrEnd if c == ',' => self.state = State::ValueOrEnd { is_first: false },
            State::String { quote, is_key } => {
                let (quote, is_key) = (*quote, *is_key);
                match c {
                    '\\' => self.state = State::Escape { quote, is_key, text: String::new() },
                    c if c == quote => {
                        out.push('"');
                        if is_key { self.state = State::Colon } else { self.end_value() }
                    }
                    c => push_escaped(c.encode_utf8(&mut [0; 4]), out),
                }
            }
            State::Escape { quote, is_key, text } => {
                text.push(c);
                if let Some(meaning) = escape(text)? {
                    push_escaped(&meaning, out);
                    self.state = State::String { quote: *quote, is_key: *is_key };
                }
            }
            State::Word(word) => {
                if c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-' | '_') {
                    word.push(c);
                    return (word.len() <= WORD_LEN_MAX).then_some(true);
                }
                let json = word_to_json(word)?;
                out.push_str(&json);
                self.end_value();
                if matches!(self.state, State::Done) {
                    return Some(false);
                }
                return self.step(c, out);
            }
            _ => return None,
        }
        Some(true)
    }

    fn begin(&mut self, c: char, out: &mut String) -> Option<bool> {
        let in_map = self.nest.last() == Some(&'}');
        let is_key = in_map && matches!(self.state, State::ValueOrEnd { .. });
        if matches!(self.state, State::ValueOrEnd { is_first: false }) {
            out.push_str(", ");
        }
        match c {
            '\'' | '"' => {
                out.push('"');
                self.state = State::String { quote: c, is_key };
            }
            _ if is_key => return None,
            '[' | '(' | '{' => {
                out.push(if c == '{' { '{' } else { '[' });
                self.nest.push(match c {
                    '[' => ']',
                    '(' => ')',
                    _ => '}',
                });
                self.state = State::ValueOrEnd { is_first: true };
            }
            c if c.is_ascii_alphanumeric() || matches!(c, '-' | '+' | '.') => {
                self.state = State::Word(c.into())
            }
            _ => return None,
        }
        Some(true)
    }

    fn close(&mut self, out: &mut String) {
        let bracket = self.nest.pop();
        out.push(if bracket == Some('}') { '}' } else { ']' });
        self.end_value();
    }

    fn end_value(&mut self) {
        self.state = if self.nest.is_empty() { State::Done } else { State::CommaOrEnd };
    }
}

/// What an escape means, without its backslash. `Some(None)`: more of it is to come.
#[allow(clippy::option_option, reason = "three answers: wrong, unfinished, and the character")]
fn escape(text: &str) -> Option<Option<String>> {
    let mut rest = text.chars();
    let digits = match rest.next()? {
        'x' => 2,
        'u' => 4,
        'U' => 8,
        'n' => return Some(Some("\n".into())),
        't' => return Some(Some("\t".into())),
        'r' => return Some(Some("\r".into())),
        'b' => return Some(Some("\u{8}".into())),
        'f' => return Some(Some("\u{c}".into())),
        '0' => return Some(Some("\0".into())),
        '\n' => return Some(Some(String::new())),
        c @ ('\\' | '\'' | '"') => return Some(Some(c.into())),
        // Python keeps the backslash of what it does not know.
        c => return Some(Some(format!("\\{c}"))),
    };
    let hex = rest.as_str();
    if !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    if hex.len() < digits {
        return Some(None);
    }
    // Half a surrogate pair is no character.
    let code = u32::from_str_radix(hex, 16).ok()?;
    Some(Some(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER).into()))
}

fn word_to_json(word: &str) -> Option<String> {
    let number = word.strip_prefix('+').unwrap_or(word).replace('_', "");
    Some(match word {
        "True" | "true" => "true".into(),
        "False" | "false" => "false".into(),
        "None" | "null" => "null".into(),
        _ if serde_json::from_str::<serde_json::Number>(&number).is_ok() => number,
        // `1.` and `.5` are numbers to Python.
        _ => serde_json::Number::from_f64(number.parse().ok()?)?.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str, rest: &str) {
        for by_char in [false, true] {
            let (mut python, mut out, mut taken) = (Python::new(), String::new(), 0);
            let mut scan = PythonScan::More;
            while scan == PythonScan::More && taken < text.len() {
                let end = if by_char {
                    taken + text[taken..].chars().next().map_or(0, char::len_utf8)
                } else {
                    text.len()
                };
                let (len, next) = python.take(&text[taken..end], &mut out);
                (taken, scan) = (taken + len, next);
            }
            assert_eq!((out.as_str(), &text[taken..], scan), (expected, rest, PythonScan::Done), "{text}");
            assert!(serde_json::from_str::<serde_json::Value>(&out).is_ok(), "{out}");
        }
    }

    #[test]
    fn literals_become_json() {
        check("'it\\'s \"x\"', b", r#""it's \"x\"""#, ", b");
        check("12,", "12", ",");
        check("-1.5e3)", "-1.5e3", ")");
        check("1_000)", "1000", ")");
        check(".5)", "0.5", ")");
        check("True)", "true", ")");
        check("None]", "null", "]");
        check("[1, 'a', (2, 3,), {}]x", r#"[1, "a", [2, 3], {}]"#, "x");
        check("{'k': [None, True], \"j\": {'a': 1,}})", r#"{"k": [null, true], "j": {"a": 1}}"#, ")");
        check("'\\u00e9\\x41\\n\\q日'", r#""éA\n\\q日""#, "");
    }

    #[test]
    fn other_things_are_refused() {
        for text in ["f(1)", "[1 2]", "{1: 2}", "{'a' 1}", "x)", "'\\xzz'", "@", "inf)", "1e999)", "]"] {
            let (mut python, mut out) = (Python::new(), String::new());
            assert_eq!(python.take(text, &mut out).1, PythonScan::Bad, "{text}");
        }
    }
}
