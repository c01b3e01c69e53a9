//! JSON that comes in pieces: what of it is one value, and whether it still is one.

/// Checks one value, byte by byte. Everything that it has taken is the beginning of valid JSON, except that control characters are let
/// into strings, where models write them and JSON wants them escaped.
#[derive(Debug, Clone)]
pub(super) struct JsonScanner {
    /// Open brackets, `true` for an object.
    nest: Vec<bool>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Value,
    /// After `[`.
    ValueOrEnd,
    /// After `{`.
    KeyOrEnd,
    Key,
    Colon,
    CommaOrEnd,
    String {
        is_key: bool,
    },
    Escape {
        is_key: bool,
    },
    /// Hexadecimal digits still to come.
    Unicode {
        is_key: bool,
        left: u8,
    },
    Number(Number),
    Literal(&'static [u8]),
    Done,
}

/// What of a number was there last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Int,
    Point,
    Fraction,
    E,
    ESign,
    Exponent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scan {
    /// All of the text belongs to the value, which goes on.
    More,
    /// The value is complete.
    Done,
    /// The next byte cannot follow.
    Bad,
}

impl JsonScanner {
    pub fn new() -> Self {
        Self { nest: Vec::new(), state: State::Value }
    }

    pub fn in_string(&self) -> bool {
        matches!(self.state, State::String { .. } | State::Escape { .. } | State::Unicode { .. })
    }

    /// How many bytes of `text` belong to the value.
    pub fn take(&mut self, text: &str) -> (usize, Scan) {
        for (at, byte) in text.bytes().enumerate() {
            if self.state == State::Done {
                return (at, Scan::Done);
            }
            match self.step(byte) {
                Some(true) => {}
                Some(false) => return (at, Scan::Done),
                None => return (at, Scan::Bad),
            }
        }
        (text.len(), if self.state == State::Done { Scan::Done } else { Scan::More })
    }

    /// `Some(false)`: the value, a number, ended before this byte.
    fn step(&mut self, byte: u8) -> Option<bool> {
        use State::{
            Colon, CommaOrEnd, Done, Escape, Key, KeyOrEnd, Literal, String, Unicode, Value, ValueOrEnd,
        };
        let is_white = matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        match (self.state, byte) {
            (State::Number(number), byte) => match number.then(byte) {
                Some(next) => self.state = State::Number(next),
                None if !number.may_end() => return None,
                None => {
                    self.end_value();
                    if self.state == Done {
                        return Some(false);
                    }
                    return self.step(byte);
                }
            },
            (String { is_key }, b'"') => {
                if is_key {
                    self.state = Colon;
                } else {
                    self.end_value();
                }
            }
            (String { is_key }, b'\\') => self.state = Escape { is_key },
            (String { .. }, _) => {}
            (Escape { is_key }, b'u') => self.state = Unicode { is_key, left: 4 },
            (Escape { is_key }, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.state = String { is_key };
            }
            (Unicode { is_key, left }, byte) if byte.is_ascii_hexdigit() => {
                self.state = if left == 1 { String { is_key } } else { Unicode { is_key, left: left - 1 } };
            }
            (Literal([expected]), byte) if *expected == byte => self.end_value(),
            (Literal([expected, rest @ ..]), byte) if *expected == byte => self.state = Literal(rest),
            (Value | ValueOrEnd | KeyOrEnd | Key | Colon | CommaOrEnd, _) if is_white => {}
            (KeyOrEnd, b'}') | (ValueOrEnd, b']') => self.close(),
            (KeyOrEnd | Key, b'"') => self.state = String { is_key: true },
            (Colon, b':') => self.state = Value,
            (CommaOrEnd, b',') => self.state = if self.in_object() { Key } else { Value },
            (CommaOrEnd, b'}') if self.in_object() => self.close(),
            (CommaOrEnd, b']') if !self.in_object() => self.close(),
            (Value | ValueOrEnd, byte) => self.state = self.begin(byte)?,
            _ => return None,
        }
        Some(true)
    }

    fn in_object(&self) -> bool {
        self.nest.last() == Some(&true)
    }

    fn begin(&mut self, byte: u8) -> Option<State> {
        Some(match byte {
            b'{' => {
                self.nest.push(true);
                State::KeyOrEnd
            }
            b'[' => {
                self.nest.push(false);
                State::ValueOrEnd
            }
            b'"' => State::String { is_key: false },
            b'-' => State::Number(Number::Minus),
            b'0' => State::Number(Number::Zero),
            b'1'..=b'9' => State::Number(Number::Int),
            b't' => State::Literal(b"rue"),
            b'f' => State::Literal(b"alse"),
            b'n' => State::Literal(b"ull"),
            _ => return None,
        })
    }

    fn close(&mut self) {
        self.nest.pop();
        self.end_value();
    }

    fn end_value(&mut self) {
        self.state = if self.nest.is_empty() { State::Done } else { State::CommaOrEnd };
    }
}

impl Number {
    fn then(self, byte: u8) -> Option<Self> {
        use Number::{E, ESign, Exponent, Fraction, Int, Minus, Point, Zero};
        Some(match (self, byte) {
            (Minus, b'0') => Zero,
            (Minus, b'1'..=b'9') | (Int, b'0'..=b'9') => Int,
            (Zero | Int, b'.') => Point,
            (Point | Fraction, b'0'..=b'9') => Fraction,
            (Zero | Int | Fraction, b'e' | b'E') => E,
            (E, b'+' | b'-') => ESign,
            (E | ESign | Exponent, b'0'..=b'9') => Exponent,
            _ => return None,
        })
    }

    fn may_end(self) -> bool {
        matches!(self, Self::Zero | Self::Int | Self::Fraction | Self::Exponent)
    }
}

/// Text that the scanner took, as valid JSON: control characters, which it lets into strings, escaped. Between values they are white
/// space and may be escaped by nobody, so `in_string` says where the text begins.
pub(super) fn escape_controls(text: &str, scanner: &JsonScanner, out: &mut String) {
    let mut scanner = scanner.clone();
    let mut from = 0;
    for (at, byte) in text.bytes().enumerate() {
        if byte < 0x20 && scanner.in_string() {
            out.push_str(&text[from..at]);
            push_escaped(&text[at..=at], out);
            from = at + 1;
        }
        let _ = scanner.step(byte);
    }
    out.push_str(&text[from..]);
}

/// A text as the inside of a JSON string.
pub(super) fn push_escaped(text: &str, out: &mut String) {
    let quoted = serde_json::to_string(text).expect("a string is JSON");
    out.push_str(&quoted[1..quoted.len() - 1]);
}

/// The inside of a JSON string that may hold control characters.
pub(super) fn unescape(quoted: &str) -> Option<String> {
    if let Ok(text) = serde_json::from_str(quoted) {
        return Some(text);
    }
    let mut valid = String::new();
    escape_controls(quoted, &JsonScanner::new(), &mut valid);
    serde_json::from_str(&valid).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(text: &str) -> (usize, Scan) {
        let mut scanner = JsonScanner::new();
        let (at, end) = scanner.take(text);
        // Byte by byte it is the same.
        let mut single = JsonScanner::new();
        let mut taken = 0;
        let mut last = Scan::More;
        while taken < text.len() && last == Scan::More {
            let next = (taken + 1..=text.len()).find(|&at| text.is_char_boundary(at)).expect("an end");
            let (len, scan) = single.take(&text[taken..next]);
            (taken, last) = (taken + len, scan);
        }
        assert_eq!((taken, last), (at, end), "{text:?}");
        (at, end)
    }

    #[test]
    fn takes_one_value() {
        for (value, rest) in [
            ("{}", "}"),
            ("{\"a\": [1, 2.5e-3, -0, {\"b\": null}], \"é\\u00e9\\\"\": \"}\"}", " x"),
            ("[]", ","),
            ("\"a\\\\\"", "\""),
            ("true", "x"),
            ("-12", "}"),
            (" [ ]", ""),
            ("\"raw\nline\"", ""),
        ] {
            let text = format!("{value}{rest}");
            assert_eq!(scan(&text), (value.len(), Scan::Done), "{text}");
        }
        assert_eq!(scan("12"), (2, Scan::More));
    }

    #[test]
    fn sees_the_first_wrong_byte() {
        for (text, at) in [
            ("}", 0),
            ("{,", 1),
            ("{\"a\" 1", 5),
            ("[1,]", 3),
            ("[1 2", 3),
            ("01", 1),
            ("-x", 1),
            ("1.e", 2),
            ("\"\\x", 2),
            ("trux", 3),
            ("{\"a\":1,}", 7),
            ("[1}", 2),
            ("\"\\u12g", 5),
        ] {
            let (taken, scan) = scan(text);
            // `01` is the number 0 and something after it.
            let expected = if text == "01" { Scan::Done } else { Scan::Bad };
            assert_eq!((taken, scan), (at, expected), "{text}");
        }
    }

    #[test]
    fn agrees_with_serde_on_random_text() {
        let mut state = 7u64;
        let mut below = |n: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % n
        };
        let alphabet = [
            "{", "}", "[", "]", ":", ",", "\"", "a", "1", "0", "-", ".", "e", " ", "true", "null", "\\n", "é",
        ];
        let (mut good, mut bad) = (0, 0);
        for _ in 0..200_000 {
            let text: String = (0..1 + below(7)).map(|_| alphabet[below(alphabet.len())]).collect();
            let mut scanner = JsonScanner::new();
            let (at, scan) = scanner.take(&text);
            // A number ends only with what follows it.
            let (at, scan) = if scan == Scan::More { (at, scanner.take(" ").1) } else { (at, scan) };
            let whole = scan == Scan::Done && text[at..].trim().is_empty();
            assert_eq!(whole, serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{text:?}");
            *(if whole { &mut good } else { &mut bad }) += 1;
        }
        assert!(good > 1000 && bad > 1000, "{good} {bad}");
    }

    #[test]
    fn control_characters_are_escaped_inside_strings_only() {
        let mut out = String::new();
        escape_controls("{\n\"a\": \"x\ny\"}", &JsonScanner::new(), &mut out);
        assert_eq!(out, "{\n\"a\": \"x\\ny\"}");
        assert_eq!(unescape("\"a\tb\\n\"").as_deref(), Some("a\tb\n"));
        assert_eq!(unescape("\"a"), None);
    }
}
