//! The examples of a document, run as a reader would run them: in order, in one shell, against the embedded model.
//!
//! A fenced block marked `sh` that calls `curl` or `perilune` is run; blocks that start servers (`perilune serve`, `cargo`) and blocks
//! with another mark are only shown. A block marked `text` or `json` right after one that is run is what it prints: white space does
//! not matter, and `…` stands for anything. `<!-- serve: FLAGS -->` at the top of a page gives the flags of its server.
//! The folder in which a page's examples run is its own and empty but for `docs`; `perilune` is in the path; shell variables last
//! until the end of the page.

use crate::tree::{read, root};
use crate::{Server, binary};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The address that documents use; a test's server is on another port.
pub const PRINTED: &str = "http://127.0.0.1:8000";

/// A document with its examples.
pub struct Page {
    pub name: String,
    pub text: String,
    pub examples: Vec<Example>,
    /// Of its server.
    pub flags: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Example {
    pub command: String,
    /// What the page says that it prints, where it says so.
    pub shown: Option<String>,
}

impl Page {
    pub fn load(path: &Path) -> Self {
        Self::parse(crate::tree::short(path), read(path))
    }

    fn parse(name: String, text: String) -> Self {
        let mut examples: Vec<Example> = Vec::new();
        let mut runs_before = false;
        for (mark, content) in fenced(&text) {
            match mark {
                "sh" if runs(content) => {
                    examples.push(Example { command: content.to_owned(), shown: None });
                    runs_before = true;
                    continue;
                }
                "text" | "json" if runs_before => {
                    let example = examples.last_mut().expect("an example came before");
                    example.shown = Some(content.to_owned());
                }
                _ => {}
            }
            runs_before = false;
        }
        let flags = text.split_once("<!-- serve:").and_then(|(_, rest)| rest.split_once("-->"));
        let flags =
            flags.map_or(Vec::new(), |(flags, _)| flags.split_whitespace().map(str::to_owned).collect());
        Self { name, text, examples, flags }
    }
}

/// Marks and contents of the fenced blocks.
fn fenced(text: &str) -> Vec<(&str, &str)> {
    let mut blocks = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("```") {
        let Some((mark, after)) = rest[at + 3..].split_once('\n') else { break };
        let Some((content, after)) = after.split_once("```") else { break };
        blocks.push((mark.trim(), content.trim_end()));
        rest = after;
    }
    blocks
}

fn runs(block: &str) -> bool {
    let starts_a_server = ["perilune serve", "cargo "].iter().any(|words| block.contains(words));
    !starts_a_server && ["curl ", "perilune "].iter().any(|words| block.contains(words))
}

/// Whether `found` is what a page shows, in which `…` stands for anything.
pub fn is_shown(shown: &str, found: &str) -> bool {
    let squeeze = |text: &str| text.split_whitespace().collect::<String>();
    let (shown, found) = (squeeze(shown), squeeze(found));
    let mut pieces = shown.split('…');
    let Some(mut rest) = found.strip_prefix(pieces.next().unwrap_or_default()) else { return false };
    let mut pieces: Vec<&str> = pieces.collect();
    let Some(last) = pieces.pop() else { return rest.is_empty() };
    for piece in pieces {
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last)
}

/// Runs all examples of a page and gives back what each printed.
pub fn run(page: &Page) -> Vec<String> {
    if page.examples.is_empty() {
        return Vec::new();
    }
    let folder = Folder::new(&page.name);
    let flags: Vec<&str> = page.flags.iter().map(String::as_str).collect();
    let server = Server::start_in(&folder.0, &flags);
    let mut shell = Shell::start(&folder.0);
    page.examples.iter().map(|example| shell.check(page, example, server.url())).collect()
}

/// A temporary folder with the repository's pictures in it.
struct Folder(PathBuf);

impl Folder {
    fn new(page: &str) -> Self {
        let name: String = page.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let path = std::env::temp_dir().join(format!("perilune-examples-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a temporary folder");
        std::os::unix::fs::symlink(root().join("docs"), path.join("docs")).expect("a link");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One bash for all examples of a page.
struct Shell {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// Comes after each example's output, before its exit status.
const END: &str = "--- end of the example: ";

impl Shell {
    fn start(folder: &Path) -> Self {
        let programs = binary().parent().expect("the binary is in a folder").to_owned();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(std::iter::once(programs).chain(std::env::split_paths(&path)));
        let mut child = Command::new("bash")
            .arg("-s")
            .current_dir(folder)
            .env("PATH", path.expect("a path without separators in it"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash runs");
        let input = child.stdin.take().expect("stdin is piped");
        let output = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Self { child, input, output }
    }

    fn check(&mut self, page: &Page, example: &Example, url: &str) -> String {
        let command = example.command.replace(PRINTED, url);
        let (status, printed) = self.run(&command);
        let name = &page.name;
        assert_eq!(status, "0", "{name}:\n{command}\n{printed}");
        match &example.shown {
            Some(shown) => {
                assert!(is_shown(shown, &printed), "{name}:\n{command}\nprints\n{printed}\nand not\n{shown}");
            }
            None => assert!(!printed.contains("\"error\":{"), "{name}:\n{command}\n{printed}"),
        }
        printed
    }

    /// Exit status and standard output. The braces keep the example from reading what comes after it.
    fn run(&mut self, command: &str) -> (String, String) {
        let script = format!("{{\n{command}\n}} </dev/null\nprintf '\\n{END}%s\\n' $?\n");
        self.input.write_all(script.as_bytes()).expect("bash reads");
        let mut printed = String::new();
        loop {
            let mut line = String::new();
            let len = self.output.read_line(&mut line).expect("UTF-8");
            assert!(len > 0, "the shell ended in\n{command}\n{printed}");
            if let Some(status) = line.strip_prefix(END) {
                // The line break before the end mark is ours.
                printed.pop();
                return (status.trim().to_owned(), printed);
            }
            printed.push_str(&line);
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_run_or_shown() {
        let text = "<!-- serve: --a b -->\n```sh\nperilune serve\n```\n```\ncurl x\n```\n```sh\ncurl y\n```\n\nprints\n\n```text\nz\n```\n```text\nlater\n```\n```sh\nls\n```\n```text\nnot run\n```\n```sh\nperilune plan\n```\n";
        let page = Page::parse("page".into(), text.into());
        let example = |command: &str, shown: Option<&str>| Example {
            command: command.into(),
            shown: shown.map(Into::into),
        };
        assert_eq!(page.examples, [example("curl y", Some("z")), example("perilune plan", None)]);
        assert_eq!(page.flags, ["--a", "b"]);
    }

    #[test]
    fn what_is_shown_may_leave_things_out() {
        for (shown, found) in [
            ("a b", "a\nb\n"),
            ("{\"id\": \"…\", \"n\": 1}", "{\"id\":\"xyz\",\"n\":1}"),
            ("…", ""),
            ("a…a", "aa"),
            ("a…b…c", "a1b2b3c"),
        ] {
            assert!(is_shown(shown, found), "{shown} {found}");
        }
        for (shown, found) in [("a", "b"), ("a", "ab"), ("a…a", "a"), ("…b", "bc"), ("a…b…c", "acb")]
        {
            assert!(!is_shown(shown, found), "{shown} {found}");
        }
    }
}
