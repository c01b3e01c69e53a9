//! What can be asked for, and the text in which the grammar engine is told.

use super::error::{GrammarError, GrammarFault};
use super::locate::locate;
use super::schema::{self, SchemaLimits};
use super::vocabulary::Vocabulary;
use llguidance::api::TopLevelGrammar;
use llguidance::regex_to_lark;
use serde_json::{Value, json};
use std::fmt::Write;

/// A language that an answer, or a part of one, has to be in.
#[derive(Debug, Clone, PartialEq)]
pub enum GrammarSource {
    /// JSON that a schema validates.
    Schema {
        schema: Value,
        whitespace: Whitespace,
    },
    /// A regular expression that the whole answer matches.
    Regex(String),
    /// One of these strings.
    Choice(Vec<String>),
    /// A grammar in llguidance's dialect of Lark; its start is the rule `start`.
    Lark(String),
    Pattern(Pattern),
}

/// What may stand between the tokens of a JSON text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Whitespace {
    /// Some, so that a model can indent as it is used to; not so much that it can go on forever.
    #[default]
    Some,
    None,
}

/// A language put together from parts, for formats that surround JSON with text, such as calls of tools.
#[derive(Debug, Clone, PartialEq)]
pub enum Pattern {
    /// Control tokens that the text names are themselves.
    Text(String),
    /// JSON that a schema validates. `part` is the schema's name in the request, for errors.
    Json {
        schema: Value,
        part: String,
    },
    Regex(String),
    /// One of these strings.
    Choice(Vec<String>),
    /// One of them.
    Any(Vec<Pattern>),
    /// All of them, one after the other.
    Sequence(Vec<Pattern>),
    Repeat {
        pattern: Box<Pattern>,
        min: usize,
        max: Option<usize>,
    },
}

/// Longest text of a grammar or a regular expression, in bytes.
const TEXT_LEN_MAX: usize = 64 << 10;
/// Deepest brackets in one: the engine's parser of them is recursive.
const NESTING_MAX: usize = 100;
const NUM_CHOICES_MAX: usize = 10_000;

impl GrammarSource {
    pub fn json_object() -> Self {
        Self::Schema { schema: json!({"type": "object"}), whitespace: Whitespace::Some }
    }

    /// As a part of a larger language; `param` is its name in the request. `None` for what can only stand alone.
    pub fn into_pattern(self, param: &str) -> Option<Pattern> {
        match self {
            GrammarSource::Schema { schema, .. } => Some(Pattern::Json { schema, part: param.to_owned() }),
            GrammarSource::Regex(regex) => Some(Pattern::Regex(regex)),
            GrammarSource::Choice(choices) => Some(Pattern::Choice(choices)),
            GrammarSource::Pattern(pattern) => Some(pattern),
            GrammarSource::Lark(_) => None,
        }
    }

    /// Adds to an error of the engine in which schema it lies and where. `is_refused` asks the engine about one schema, `may_go_on`
    /// says whether there is time.
    pub fn locate(
        &self,
        error: GrammarError,
        is_refused: &mut dyn FnMut(&Value, Whitespace) -> bool,
        may_go_on: &dyn Fn() -> bool,
    ) -> GrammarError {
        match self {
            GrammarSource::Schema { schema, whitespace } => {
                error.at(locate(schema, &mut |schema| is_refused(schema, *whitespace), may_go_on))
            }
            GrammarSource::Pattern(pattern) => {
                let mut parts = Vec::new();
                pattern.schemas(&mut parts);
                let mut is_refused = |schema: &Value| is_refused(schema, Whitespace::Some);
                let guilty = parts.into_iter().find(|(schema, _)| may_go_on() && is_refused(schema));
                let Some((schema, part)) = guilty else { return error };
                let message = of_schema(&error.message).to_owned();
                let error = GrammarError { message, ..error };
                error.at(locate(schema, &mut is_refused, may_go_on)).in_part(part)
            }
            GrammarSource::Regex(_) | GrammarSource::Choice(_) | GrammarSource::Lark(_) => error,
        }
    }

    /// What makes two sources the same.
    pub fn key(&self) -> [u8; 32] {
        *blake3::hash(format!("{self:?}").as_bytes()).as_bytes()
    }

    /// The grammar as the engine takes it. Refuses what it would not enforce.
    pub fn lower(&self, vocabulary: &Vocabulary) -> Result<TopLevelGrammar, GrammarError> {
        match self {
            GrammarSource::Schema { schema, whitespace } => {
                let lowered = schema::lower(schema, &SchemaLimits::default())?;
                Ok(TopLevelGrammar::from_json_schema(with_options(lowered, *whitespace)))
            }
            GrammarSource::Regex(regex) => {
                check_text("regular expression", regex)?;
                Ok(TopLevelGrammar::from_regex(without_anchors(regex)))
            }
            GrammarSource::Choice(choices) => Ok(TopLevelGrammar::from_regex(&choice_regex(choices)?)),
            GrammarSource::Lark(text) => {
                check_text("grammar", text)?;
                check_lark(text)?;
                Ok(TopLevelGrammar::from_lark(text.clone()))
            }
            GrammarSource::Pattern(pattern) => {
                let mut lark = String::from("start: ");
                pattern.write(vocabulary, &mut lark)?;
                Ok(TopLevelGrammar::from_lark(lark))
            }
        }
    }
}

impl Pattern {
    /// All schemas in it, with their names.
    fn schemas<'a>(&'a self, found: &mut Vec<(&'a Value, &'a str)>) {
        match self {
            Pattern::Json { schema, part } => found.push((schema, part)),
            Pattern::Any(patterns) | Pattern::Sequence(patterns) => {
                patterns.iter().for_each(|pattern| pattern.schemas(found));
            }
            Pattern::Repeat { pattern, .. } => pattern.schemas(found),
            Pattern::Text(_) | Pattern::Regex(_) | Pattern::Choice(_) => {}
        }
    }

    fn write(&self, vocabulary: &Vocabulary, out: &mut String) -> Result<(), GrammarError> {
        match self {
            Pattern::Text(text) => write_text(text, vocabulary, out),
            Pattern::Json { schema, part } => {
                let lowered =
                    schema::lower(schema, &SchemaLimits::default()).map_err(|error| error.in_part(part))?;
                let _ = write!(out, "%json {}", with_options(lowered, Whitespace::Some));
            }
            Pattern::Regex(regex) => {
                let _ = write!(out, "/{}/", regex_to_lark(without_anchors(regex), ""));
            }
            Pattern::Choice(choices) => {
                let _ = write!(out, "/{}/", regex_to_lark(&choice_regex(choices)?, ""));
            }
            Pattern::Any(patterns) => write_list(patterns, " | ", vocabulary, out)?,
            Pattern::Sequence(patterns) => write_list(patterns, " ", vocabulary, out)?,
            Pattern::Repeat { pattern, min, max } => {
                out.push('(');
                pattern.write(vocabulary, out)?;
                let _ = match max {
                    Some(max) => write!(out, "){{{min},{max}}}"),
                    None => write!(out, "){{{min},}}"),
                };
            }
        }
        Ok(())
    }
}

fn write_list(
    patterns: &[Pattern],
    separator: &str,
    vocabulary: &Vocabulary,
    out: &mut String,
) -> Result<(), GrammarError> {
    if patterns.is_empty() {
        out.push_str("\"\"");
        return Ok(());
    }
    out.push('(');
    for (i, pattern) in patterns.iter().enumerate() {
        if i > 0 {
            out.push_str(separator);
        }
        pattern.write(vocabulary, out)?;
    }
    out.push(')');
    Ok(())
}

/// One expression for all: as alternatives of a rule, thousands of them would be more than the engine's parser follows at once.
fn choice_regex(choices: &[String]) -> Result<String, GrammarError> {
    if choices.is_empty() || choices.len() > NUM_CHOICES_MAX {
        let message = format!("{} choices are not in [1, {NUM_CHOICES_MAX}]", choices.len());
        return Err(GrammarError::invalid(message));
    }
    if choices.iter().any(String::is_empty) {
        return Err(GrammarError::invalid("a choice is empty"));
    }
    let escaped: Vec<String> = choices.iter().map(|choice| regex::escape(choice)).collect();
    Ok(format!("({})", escaped.join("|")))
}

/// What the engine says of a schema within a grammar, without the grammar, which is not the client's.
fn of_schema(message: &str) -> &str {
    let first = message.lines().next().unwrap_or_default();
    first.split_once("JSON schema: ").map_or(first, |(_, said)| said)
}

/// Letters as a string, control tokens by their number: the engine's own syntax for them cannot name all.
fn write_text(text: &str, vocabulary: &Vocabulary, out: &mut String) {
    if text.is_empty() {
        out.push_str("\"\"");
        return;
    }
    let mut rest = text;
    let mut separator = "(";
    let (mut letters, mut done) = (0, 0);
    while !rest.is_empty() {
        match vocabulary.control_prefix(rest) {
            Some((token, len)) => {
                if letters > done {
                    let _ = write!(out, "{separator}{}", string(&text[done..letters]));
                    separator = " ";
                }
                let _ = write!(out, "{separator}<[{token}]>");
                separator = " ";
                letters += len;
                done = letters;
                rest = &rest[len..];
            }
            None => {
                let len = rest.chars().next().map_or(1, char::len_utf8);
                letters += len;
                rest = &rest[len..];
            }
        }
    }
    if letters > done {
        let _ = write!(out, "{separator}{}", string(&text[done..]));
    }
    out.push(')');
}

/// A Lark string, which has JSON's escapes.
fn string(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// The engine takes its options inside the schema. Escapes are the short ones only, so that every string has one spelling: with
/// `\u0061` for `a`, a name of `properties` could be written so that its schema is not applied.
fn with_options(lowered: Value, whitespace: Whitespace) -> Value {
    let mut schema = match lowered {
        Value::Object(map) => map,
        // `true` allows anything; `false` is refused by the lowering.
        _ => serde_json::Map::new(),
    };
    let options = match whitespace {
        Whitespace::Some => json!({
            "json_allowed_escapes": "nrbtf\\\"",
            "whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,40}",
        }),
        Whitespace::None => json!({"json_allowed_escapes": "nrbtf\\\"", "whitespace_flexible": false}),
    };
    schema.insert("x-guidance".into(), options);
    Value::Object(schema)
}

/// The whole answer has to match, so anchors around an expression say nothing new.
fn without_anchors(regex: &str) -> &str {
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    match regex.strip_suffix('$') {
        Some(rest) if !ends_in_escape(rest) => rest,
        _ => regex,
    }
}

fn ends_in_escape(text: &str) -> bool {
    text.bytes().rev().take_while(|&byte| byte == b'\\').count() % 2 == 1
}

fn check_text(what: &str, text: &str) -> Result<(), GrammarError> {
    if text.is_empty() {
        return Err(GrammarError::invalid(format!("the {what} is empty")));
    }
    if text.len() > TEXT_LEN_MAX {
        return Err(GrammarError::new(
            GrammarFault::TooComplex,
            format!("the {what} has {} bytes, more than {TEXT_LEN_MAX}", text.len()),
        ));
    }
    if nesting(text) > NESTING_MAX {
        return Err(GrammarError::new(
            GrammarFault::TooComplex,
            format!("the {what} is nested deeper than {NESTING_MAX} brackets"),
        ));
    }
    Ok(())
}

/// Counts brackets in strings too: too much is refused rather than too little.
fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

fn check_lark(text: &str) -> Result<(), GrammarError> {
    let unsupported = |message: &str| Err(GrammarError::new(GrammarFault::Unsupported, message));
    if text.contains("::=") {
        return unsupported(
            "it is GBNF or EBNF (`::=`); grammars are taken in llguidance's Lark syntax only",
        );
    }
    if text.contains("%json") {
        return unsupported(
            "`%json` in a grammar is not checked for keywords without effect; give the schema by itself",
        );
    }
    if text.contains("%llguidance") {
        return unsupported("`%llguidance` options are the server's choice");
    }
    Ok(())
}
