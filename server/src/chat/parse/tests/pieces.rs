//! An output cut into pieces, and what a client has put together of them.

use super::*;

/// What a client has put together.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Said {
    pub reasoning: String,
    pub text: String,
    /// id, name, arguments, whether it ended
    pub calls: Vec<(String, String, String, bool)>,
    pub may_think_late: bool,
}

impl Events for Said {
    fn reasoning(&mut self, text: &str) {
        assert!(!text.is_empty());
        let is_first = self.text.is_empty() && self.calls.is_empty();
        assert!(is_first || self.may_think_late, "thinking comes first: {self:?} {text:?}");
        self.reasoning.push_str(text);
    }
    fn text(&mut self, text: &str) {
        assert!(!text.is_empty());
        assert!(self.calls.iter().all(|call| call.3), "a call is open");
        self.text.push_str(text);
    }
    fn call_start(&mut self, index: usize, id: String, name: String) {
        assert_eq!(index, self.calls.len());
        assert!(self.calls.iter().all(|call| call.3 && call.0 != id));
        self.calls.push((id, name, String::new(), false));
    }
    fn call_arguments(&mut self, index: usize, json: &str) {
        assert!(!json.is_empty() && index + 1 == self.calls.len() && !self.calls[index].3);
        self.calls[index].2.push_str(json);
    }
    fn call_end(&mut self, index: usize) {
        assert!(index + 1 == self.calls.len() && !self.calls[index].3);
        self.calls[index].3 = true;
    }
}

impl Said {
    pub fn calls(&self) -> Vec<(&str, Value)> {
        let parsed = |arguments: &str| {
            serde_json::from_str(arguments).unwrap_or_else(|_| json!({"not JSON": arguments}))
        };
        self.calls.iter().map(|call| (call.1.as_str(), parsed(&call.2))).collect()
    }
}

pub(super) struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

pub(super) fn tools() -> Arc<[ToolSignature]> {
    let weather = json!({"type": "object", "properties": {
        "city": {"type": "string"}, "days": {"type": "integer"}, "hourly": {"type": "boolean"}, "tags": {"type": "array"},
        "note": {"type": ["string", "null"]},
    }});
    [ToolSignature::new("get_weather", &weather), ToolSignature::new("now", &json!({}))].into()
}

pub(super) fn options(format: Option<ToolFormat>, reasoning: Option<(&str, &str, bool)>) -> ParseOptions {
    ParseOptions {
        reasoning: reasoning.map(|(start, end, open_in_prompt)| ReasoningMarkers {
            start: start.into(),
            end: end.into(),
            open_in_prompt,
        }),
        tools: format.map(|format| (format, tools())),
        id_stem: "test".into(),
    }
}

/// One piece of an output.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    Text(String),
    Control(String),
}

pub(super) fn run(options: &ParseOptions, pieces: &[Piece]) -> (Said, End) {
    run_until(options, pieces, Ending::Natural)
}

pub(super) fn run_until(options: &ParseOptions, pieces: &[Piece], ending: Ending) -> (Said, End) {
    let mut parser = Parser::new(options.clone());
    let may_think_late = options.tools.as_ref().is_some_and(|(format, _)| format.frames_all());
    let mut said = Said { may_think_late, ..Said::default() };
    for piece in pieces {
        match piece {
            Piece::Text(text) => parser.push(text, &mut said),
            Piece::Control(text) => parser.push_control(text, &mut said),
        }
    }
    let end = parser.finish(ending, &mut said);
    assert!(said.calls.iter().all(|call| call.3), "every call ends: {said:?}");
    assert_eq!(
        parser.len(),
        pieces.iter().map(|(Piece::Text(text) | Piece::Control(text))| text.len()).sum::<usize>()
    );
    (said, end)
}

/// The format's markers as control tokens, the rest as text.
pub(super) fn with_controls(text: &str, markers: &[&str]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Found::At(at, marker) = find(rest, markers, true) {
        pieces.push(Piece::Text(rest[..at].into()));
        pieces.push(Piece::Control(markers[marker].into()));
        rest = &rest[at + markers[marker].len()..];
    }
    pieces.push(Piece::Text(rest.into()));
    pieces
}

pub(super) fn cut(text: &str, random: &mut Random, longest: usize) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let chars = 1 + random.below(longest);
        let at = rest.char_indices().nth(chars).map_or(rest.len(), |(at, _)| at);
        let (piece, after) = rest.split_at(at);
        pieces.push(piece.to_owned());
        rest = after;
    }
    pieces
}

pub(super) fn cut_pieces(pieces: &[Piece], random: &mut Random) -> Vec<Piece> {
    let longest = 1 + random.below(12);
    let one = |piece: &Piece| match piece {
        Piece::Text(text) => cut(text, random, longest).into_iter().map(Piece::Text).collect(),
        Piece::Control(_) => vec![piece.clone()],
    };
    pieces.iter().flat_map(one).collect()
}

/// The same in one piece, in many cuts, and with the format's markers as control tokens.
pub(super) fn check(options: &ParseOptions, text: &str) -> (Said, End) {
    check_until(options, text, Ending::Natural)
}

pub(super) fn check_until(options: &ParseOptions, text: &str, ending: Ending) -> (Said, End) {
    let whole = run_until(options, &[Piece::Text(text.into())], ending);
    let mut random = Random(text.len() as u64);
    for _ in 0..40 {
        let pieces = cut_pieces(&[Piece::Text(text.into())], &mut random);
        assert_eq!(run_until(options, &pieces, ending), whole, "{pieces:?}");
    }
    whole
}

pub(super) fn check_controls(options: &ParseOptions, text: &str) -> (Said, End) {
    let mut markers = options.tools.as_ref().map_or(Vec::new(), |(format, _)| format.markers().to_vec());
    if let Some(reasoning) = &options.reasoning {
        markers.extend([reasoning.start.as_str(), reasoning.end.as_str()]);
    }
    let pieces = with_controls(text, &markers);
    let whole = run(options, &pieces);
    let mut random = Random(text.len() as u64);
    for _ in 0..20 {
        let pieces = cut_pieces(&pieces, &mut random);
        assert_eq!(run(options, &pieces), whole, "{pieces:?}");
    }
    whole
}
