//! Stop strings in streamed text. Only what could be the beginning of one is held back, and never a part of one leaks.
//!
//! The stop string that ends first ends the answer; of several that end there, the longest. So the result depends on the text alone, not
//! on how it came in pieces.

use std::sync::Arc;

/// Whether the answer shows the stop string that ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopInclusion {
    Excluded,
    Included,
}

/// An automaton over bytes (Aho and Corasick), shared by the answers to one request.
#[derive(Debug)]
struct Automaton {
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    children: Vec<(u8, u32)>,
    /// The longest other node whose path is an end of this one's path.
    fail: u32,
    /// Bytes from the root: how much of the text this node's path is.
    depth: usize,
    /// The longest stop string that ends here: its index and length.
    stop: Option<(usize, usize)>,
}

#[derive(Debug, Clone)]
pub struct StopMatcher {
    /// Without a stop string nothing is held back and nothing looked up.
    is_empty: bool,
    automaton: Arc<Automaton>,
    inclusion: StopInclusion,
    node: u32,
    /// Text that was not let out; its last `depth` bytes are the current node's path.
    held: String,
    stopped: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stop[{index}] is empty")]
pub struct EmptyStop {
    pub index: usize,
}

impl StopMatcher {
    pub fn new<S: AsRef<str>>(stops: &[S], inclusion: StopInclusion) -> Result<Self, EmptyStop> {
        if let Some(index) = stops.iter().position(|stop| stop.as_ref().is_empty()) {
            return Err(EmptyStop { index });
        }
        let automaton = Arc::new(Automaton::new(stops.iter().map(AsRef::as_ref)));
        let is_empty = stops.is_empty();
        Ok(Self { is_empty, automaton, inclusion, node: 0, held: String::new(), stopped: false })
    }

    /// Whether there are no stop strings.
    pub fn is_empty(&self) -> bool {
        self.is_empty
    }

    /// Appends the text that is safe to show and says which stop string, if any, ended the answer. After that nothing comes out.
    pub fn push(&mut self, delta: &str, out: &mut String) -> Option<usize> {
        if self.stopped {
            return None;
        }
        if self.is_empty {
            out.push_str(delta);
            return None;
        }
        let before = self.held.len();
        self.held.push_str(delta);
        for (at, byte) in delta.bytes().enumerate() {
            self.node = self.automaton.step(self.node, byte);
            let Some((stop, len)) = self.automaton.nodes[self.node as usize].stop else { continue };
            let end = before + at + 1;
            let shown = match self.inclusion {
                StopInclusion::Excluded => end - len,
                StopInclusion::Included => end,
            };
            out.push_str(&self.held[..shown]);
            self.held.clear();
            self.stopped = true;
            return Some(stop);
        }
        // The path is a beginning of a stop string, so it starts at a character.
        let safe = self.held.len() - self.automaton.nodes[self.node as usize].depth;
        out.push_str(&self.held[..safe]);
        self.held.drain(..safe);
        None
    }

    /// Bytes that were held back.
    pub fn held_len(&self) -> usize {
        self.held.len()
    }

    /// Appends what was held back: the text ended otherwise.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
        self.node = 0;
    }
}

impl Automaton {
    fn new<'a>(stops: impl Iterator<Item = &'a str>) -> Self {
        let mut nodes = vec![Node::default()];
        for (index, stop) in stops.enumerate() {
            let mut node = 0;
            for byte in stop.bytes() {
                node = match child(&nodes[node], byte) {
                    Some(next) => next as usize,
                    None => {
                        let next = nodes.len();
                        let depth = nodes[node].depth + 1;
                        nodes[node].children.push((byte, next as u32));
                        nodes.push(Node { depth, ..Node::default() });
                        next
                    }
                };
            }
            // The same string twice: the first one counts.
            nodes[node].stop.get_or_insert((index, stop.len()));
        }
        let mut automaton = Self { nodes };
        automaton.link();
        automaton
    }

    /// Breadth first, so that a shorter path's links are there when a longer one needs them.
    fn link(&mut self) {
        let mut queue = std::collections::VecDeque::from([0u32]);
        while let Some(parent) = queue.pop_front() {
            for (byte, node) in self.nodes[parent as usize].children.clone() {
                let fail = if parent == 0 { 0 } else { self.step(self.nodes[parent as usize].fail, byte) };
                let inherited = self.nodes[fail as usize].stop;
                let node_ref = &mut self.nodes[node as usize];
                node_ref.fail = fail;
                node_ref.stop = node_ref.stop.or(inherited);
                queue.push_back(node);
            }
        }
    }

    fn step(&self, mut node: u32, byte: u8) -> u32 {
        loop {
            match child(&self.nodes[node as usize], byte) {
                Some(next) => return next,
                None if node == 0 => return 0,
                None => node = self.nodes[node as usize].fail,
            }
        }
    }
}

fn child(node: &Node, byte: u8) -> Option<u32> {
    node.children.iter().find(|(b, _)| *b == byte).map(|(_, next)| *next)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which stop string ends first, of those the longest; what is shown.
    fn naive(text: &str, stops: &[&str], inclusion: StopInclusion) -> (String, Option<usize>) {
        let ends = stops.iter().enumerate().flat_map(|(index, stop)| {
            let found = (0..text.len()).filter(|&at| text.as_bytes()[at..].starts_with(stop.as_bytes()));
            found.map(move |at| (at + stop.len(), at, index))
        });
        match (ends.min(), inclusion) {
            (None, _) => (text.to_string(), None),
            (Some((_, start, index)), StopInclusion::Excluded) => (text[..start].to_string(), Some(index)),
            (Some((end, _, index)), StopInclusion::Included) => (text[..end].to_string(), Some(index)),
        }
    }

    fn run(deltas: &[&str], stops: &[&str], inclusion: StopInclusion) -> (String, Option<usize>) {
        let mut matcher = StopMatcher::new(stops, inclusion).expect("no empty stop");
        let (mut out, mut stopped) = (String::new(), None);
        for delta in deltas {
            stopped = stopped.or(matcher.push(delta, &mut out));
        }
        matcher.finish(&mut out);
        (out, stopped)
    }

    struct Random(u64);

    impl Random {
        fn below(&mut self, n: usize) -> usize {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 33) as usize % n
        }

        fn text(&mut self, len: usize) -> String {
            (0..len).map(|_| ['a', 'b', 'é', '猫'][self.below(4)]).collect()
        }
    }

    #[test]
    fn any_cutting_gives_what_a_naive_search_gives() {
        let mut random = Random(3);
        for _ in 0..4000 {
            let len = random.below(30);
            let text = random.text(len);
            let lengths: Vec<usize> = (0..random.below(4)).map(|_| 1 + random.below(4)).collect();
            let stops: Vec<String> = lengths.into_iter().map(|len| random.text(len)).collect();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let mut deltas = Vec::new();
            let mut rest = text.as_str();
            while !rest.is_empty() {
                let chars = random.below(5);
                let cut = rest.char_indices().nth(chars).map_or(rest.len(), |(at, _)| at);
                let (delta, after) = rest.split_at(cut);
                deltas.push(delta);
                rest = after;
            }
            for inclusion in [StopInclusion::Excluded, StopInclusion::Included] {
                assert_eq!(
                    run(&deltas, &stops, inclusion),
                    naive(&text, &stops, inclusion),
                    "{text:?} {stops:?}"
                );
            }
        }
    }

    #[test]
    fn holds_back_only_what_could_become_a_stop_string() {
        let mut matcher =
            StopMatcher::new(&["\n\nUser:", "STOP"], StopInclusion::Excluded).expect("no empty stop");
        let shown = |matcher: &mut StopMatcher, delta: &str| {
            let mut out = String::new();
            let stopped = matcher.push(delta, &mut out);
            (out, stopped)
        };
        assert_eq!(shown(&mut matcher, "Hi."), ("Hi.".into(), None));
        assert_eq!(shown(&mut matcher, " \n"), (" ".into(), None));
        assert_eq!(shown(&mut matcher, "\n"), ("".into(), None));
        assert_eq!(shown(&mut matcher, "\nU"), ("\n".into(), None));
        assert_eq!(shown(&mut matcher, "s S"), ("\n\nUs ".into(), None));
        assert_eq!(shown(&mut matcher, "TOP it"), ("".into(), Some(1)));
        assert_eq!(shown(&mut matcher, "more"), ("".into(), None));
        let mut out = String::new();
        matcher.finish(&mut out);
        assert_eq!(out, "");
    }

    #[test]
    fn an_empty_stop_string_is_an_error() {
        let error = StopMatcher::new(&["a", ""], StopInclusion::Excluded).err();
        assert_eq!(error, Some(EmptyStop { index: 1 }));
    }
}
