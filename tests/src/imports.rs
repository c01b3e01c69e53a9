//! Which modules of a crate import each other, read from their `use` lines.

use crate::tree::{files, read};
use std::collections::{BTreeMap, BTreeSet};

/// The modules of a crate by their paths, each with those that it imports.
pub struct Imports(BTreeMap<String, BTreeSet<String>>);

impl Imports {
    /// Of the files in `folder`, a crate's `src`; tests are left out.
    pub fn of(folder: &str) -> Self {
        let mut sources = BTreeMap::new();
        let root = crate::tree::root().join(folder);
        for path in files(folder, &[".rs"]) {
            let inside = path.strip_prefix(&root).expect("a file of this folder").with_extension("");
            let mut parts: Vec<&str> = inside.iter().filter_map(|part| part.to_str()).collect();
            if parts.contains(&"tests") {
                continue;
            }
            if let Some("mod" | "lib" | "main") = parts.last().copied() {
                parts.pop();
            }
            let source = read(&path);
            let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            sources.insert(parts.join("::"), code.to_string());
        }
        Self::between(&sources)
    }

    /// Of modules by their paths, each with its code.
    pub fn between(sources: &BTreeMap<String, String>) -> Self {
        let targets = |module: &String, code: &String| {
            let paths = use_trees(code).into_iter().flat_map(|tree| expanded(&tree));
            let found = paths.filter_map(|path| target(sources, module, &path));
            found.filter(|target| target != module && !target.is_empty()).collect()
        };
        Self(sources.iter().map(|(module, code)| (module.clone(), targets(module, code))).collect())
    }

    /// Modules that lead back to themselves, in groups that lead to each other.
    pub fn circles(&self) -> Vec<Vec<&str>> {
        let reached: BTreeMap<&str, BTreeSet<&str>> =
            self.0.keys().map(|module| (module.as_str(), self.reached_from(module))).collect();
        let mut circles = Vec::new();
        for (module, from_here) in &reached {
            let circle: Vec<&str> =
                from_here.iter().copied().filter(|other| reached[other].contains(module)).collect();
            if circle.first() == Some(module) {
                circles.push(circle);
            }
        }
        circles
    }

    fn reached_from(&self, start: &str) -> BTreeSet<&str> {
        let mut reached = BTreeSet::new();
        let mut next: Vec<&str> = self.0[start].iter().map(String::as_str).collect();
        while let Some(module) = next.pop() {
            if reached.insert(module) {
                next.extend(self.0[module].iter().map(String::as_str));
            }
        }
        reached
    }
}

/// What stands between `use` and `;`, for each use at the beginning of a line.
fn use_trees(code: &str) -> Vec<String> {
    let mut trees = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find("use ") {
        let line = rest[..at].rsplit('\n').next().unwrap_or_default().trim();
        rest = &rest[at + 4..];
        let is_use = line.is_empty() || line == "pub" || (line.starts_with("pub(") && line.ends_with(')'));
        if let (true, Some(end)) = (is_use, rest.find(';')) {
            trees.push(rest[..end].split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    trees
}

/// `a::{b, c::d}` as `a::b` and `a::c::d`.
fn expanded(tree: &str) -> Vec<String> {
    let Some(open) = tree.find('{') else {
        return vec![tree.split(" as ").next().unwrap_or_default().trim().to_string()];
    };
    let (before, inside) = (tree[..open].trim(), &tree[open + 1..tree.rfind('}').unwrap_or(tree.len())]);
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, letter) in inside.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inside[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&inside[start..]);
    let parts = parts.into_iter().map(str::trim).filter(|part| !part.is_empty());
    parts.flat_map(expanded).map(|path| format!("{before}{path}")).collect()
}

/// The module of this crate that a path in `module` names something of.
fn target(sources: &BTreeMap<String, String>, module: &str, path: &str) -> Option<String> {
    let mut base: Vec<&str> = if module.is_empty() { vec![] } else { module.split("::").collect() };
    let mut parts: Vec<&str> = path.split("::").collect();
    match parts[0] {
        "crate" => {
            base.clear();
            parts.remove(0);
        }
        "self" => {
            parts.remove(0);
        }
        "super" => {
            while parts.first() == Some(&"super") {
                base.pop();
                parts.remove(0);
            }
        }
        first => {
            let child = base.iter().copied().chain([first]).collect::<Vec<_>>().join("::");
            sources.get(&child)?;
        }
    }
    base.extend(parts);
    (0..=base.len()).rev().map(|len| base[..len].join("::")).find(|path| sources.contains_key(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circles_are_found_and_lines_are_not() {
        let of = |modules: &[(&str, &str)]| {
            Imports::between(&modules.iter().map(|(m, code)| (m.to_string(), code.to_string())).collect())
        };
        let line = of(&[("", "use a::A;"), ("a", "use crate::b::{B, c::{C, D}};"), ("b", ""), ("b::c", "")]);
        assert_eq!(line.circles(), Vec::<Vec<&str>>::new());
        let circle = of(&[
            ("a", "// use crate::a::X is a comment\npub(super) use crate::b::{\n    c::C,\n};"),
            ("b", "use super::a::A as Other;"),
            ("b::c", "use super::B;"),
            ("d", "use crate::a::A;"),
        ]);
        assert_eq!(circle.circles(), [["a", "b", "b::c"]]);
    }
}
