//! Which modules of a crate import each other, read from their code: from `use` lines, and from paths that begin with `crate` or
//! `super`. A name that a module re-exports is an import of the module that defines it, not of the one that lists it.

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
            // A crate with a library and a program has two files at its root.
            *sources.entry(parts.join("::")).or_default() += read(&path).as_str();
        }
        Self::between(&sources)
    }

    /// Of modules by their paths, each with its code.
    pub fn between(sources: &BTreeMap<String, String>) -> Self {
        let modules = Modules(
            sources.iter().map(|(module, code)| (module.clone(), names(sources, module, code))).collect(),
        );
        let targets = |(module, names): (&String, &Vec<Name>)| {
            let targets = names.iter().map(|name| modules.defining(&name.path, MOST_EXPORTS));
            (module.clone(), targets.filter(|target| target != module).collect())
        };
        Self(modules.0.iter().map(targets).collect())
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

/// Something of the crate that a module names.
struct Name {
    /// From the crate's root.
    path: Vec<String>,
    /// What others may call it as if it were the module's own: of `pub use`.
    exported_as: Option<String>,
}

/// What each module names.
struct Modules(BTreeMap<String, Vec<Name>>);

/// Exports of exports that are followed.
const MOST_EXPORTS: usize = 8;

impl Modules {
    /// The module that defines what a path leads to.
    fn defining(&self, path: &[String], most_exports: usize) -> String {
        let mut prefixes = (0..=path.len()).rev().map(|len| path.split_at(len));
        let found = prefixes.find_map(|(module, rest)| Some((module, rest, self.0.get(&module.join("::"))?)));
        let (module, rest, names) = found.expect("the root is a module");
        let is_export =
            |name: &&Name| name.exported_as.is_some() && name.exported_as.as_ref() == rest.first();
        match names.iter().find(is_export) {
            Some(export) if most_exports > 0 => {
                self.defining(&[&export.path, &rest[1..]].concat(), most_exports - 1)
            }
            _ => module.join("::"),
        }
    }
}

/// What a module's code names of the crate, without its tests.
fn names(sources: &BTreeMap<String, String>, module: &str, code: &str) -> Vec<Name> {
    let mut names = Vec::new();
    for (inner, code) in inner_modules(code).iter().filter(|(inner, _)| inner != "tests") {
        let parts = [module, inner].into_iter().flat_map(|path| path.split("::"));
        let base: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
        let (imports, rest) = use_trees(code);
        for (is_public, tree) in imports {
            for path in expanded(&tree) {
                let (path, own) =
                    path.split_once(" as ").unwrap_or((&path, path.rsplit("::").next().unwrap_or("")));
                let exported_as = (is_public && inner.is_empty()).then(|| own.to_string());
                names.extend(absolute(sources, &base, path).map(|path| Name { path, exported_as }));
            }
        }
        // Who may use something is not what it uses.
        let rest = rest.replace("pub(in crate::", "");
        let paths = rest.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
        let paths = paths.filter(|path| path.starts_with("crate::") || path.starts_with("super::"));
        let paths = paths.filter_map(|path| absolute(sources, &base, path.trim_end_matches(':')));
        names.extend(paths.map(|path| Name { path, exported_as: None }));
    }
    names
}

/// A file's code without comments: what is its own, under an empty name, and that of modules that are written in it.
fn inner_modules(code: &str) -> Vec<(String, String)> {
    let mut parts = vec![(String::new(), String::new())];
    let mut inner = None;
    for line in code.lines() {
        let line = line.split("//").next().unwrap_or_default();
        let header = line.strip_suffix(" {").and_then(|line| line.rsplit_once("mod "));
        if let Some((before, name)) = header
            && !line.starts_with(' ')
            && (before.is_empty() || before.starts_with("pub"))
        {
            inner = Some(parts.len());
            parts.push((name.to_string(), String::new()));
        } else if line == "}" && inner.is_some() {
            inner = None;
        } else {
            let (_, code) = &mut parts[inner.unwrap_or(0)];
            *code += line;
            code.push('\n');
        }
    }
    parts
}

/// What stands between `use` and `;`, for each use at the beginning of a line, and whether others may use it as well; and the code
/// without these.
fn use_trees(code: &str) -> (Vec<(bool, String)>, String) {
    let (mut trees, mut others, mut rest) = (Vec::new(), String::new(), code);
    while let Some(at) = rest.find("use ") {
        let line = rest[..at].rsplit('\n').next().unwrap_or_default().trim();
        let is_public = line == "pub" || (line.starts_with("pub(") && line.ends_with(')'));
        others += &rest[..at];
        rest = &rest[at + 4..];
        if let (true, Some(end)) = (line.is_empty() || is_public, rest.find(';')) {
            trees.push((is_public, rest[..end].split_whitespace().collect::<Vec<_>>().join(" ")));
            rest = &rest[end..];
        }
    }
    others += rest;
    (trees, others)
}

/// `a::{b, c::d as e}` as `a::b` and `a::c::d as e`.
fn expanded(tree: &str) -> Vec<String> {
    let Some(open) = tree.find('{') else { return vec![tree.trim().to_string()] };
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

/// A path that stands in the module `base`, from the crate's root; `None`: it leads to another crate.
fn absolute(sources: &BTreeMap<String, String>, base: &[&str], path: &str) -> Option<Vec<String>> {
    let (mut base, mut parts) = (base.to_vec(), path.split("::").collect::<Vec<_>>());
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
    if parts.last() == Some(&"self") {
        parts.pop();
    }
    Some(base.into_iter().chain(parts).map(str::to_string).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(modules: &[(&str, &str)]) -> Imports {
        Imports::between(&modules.iter().map(|(m, code)| (m.to_string(), code.to_string())).collect())
    }

    #[test]
    fn circles_are_found_and_lines_are_not() {
        let line = of(&[("", "use a::A;"), ("a", "use crate::b::{B, c::{C, D}};"), ("b", ""), ("b::c", "")]);
        assert_eq!(line.circles(), Vec::<Vec<&str>>::new());
        let circle = of(&[
            ("", ""),
            ("a", "// use crate::a::X is a comment\npub(super) use crate::b::{\n    c::C,\n};"),
            ("b", "use super::a::A as Other;"),
            ("b::c", "use super::B;"),
            ("d", "use crate::a::A;"),
        ]);
        assert_eq!(circle.circles(), [["a", "b", "b::c"]]);
    }

    #[test]
    fn exports_lead_to_what_they_name() {
        let line = of(&[
            ("", "mod a;\npub use a::{A, Inner as Other};\npub use b::B;"),
            ("a", "pub use inner::Inner;\npub struct A;"),
            ("a::inner", "pub struct Inner;"),
            ("b", "use crate::{A, Other};"),
        ]);
        assert_eq!(line.circles(), Vec::<Vec<&str>>::new());
        let circle = of(&[
            ("", "mod a;\nmod b;\npub use a::A;\npub use b::B as Other;"),
            ("a", "use crate::Other;"),
            ("b", "use crate::A;"),
        ]);
        assert_eq!(circle.circles(), [["a", "b"]]);
    }

    #[test]
    fn paths_in_code_count_and_those_of_tests_do_not() {
        let circle = of(&[
            ("", ""),
            ("a", "fn f() { crate::b::g(); }"),
            ("b", "mod plain {\n    use super::super::a::f;\n}\n"),
        ]);
        assert_eq!(circle.circles(), [["a", "b"]]);
        let line = of(&[
            ("", ""),
            ("a", "fn f() { crate::b::g(); }"),
            (
                "b",
                "mod plain {\n    use super::g;\n}\n#[cfg(all(test, unix))]\nmod tests {\n    use crate::a::f;\n}\n",
            ),
        ]);
        assert_eq!(line.circles(), Vec::<Vec<&str>>::new());
    }
}
