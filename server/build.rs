//! Lists the files of the embedded model, `demo/`, for `source::embedded`.

use std::fmt::Write;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=demo");
    let folder = Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("demo");
    let entries = std::fs::read_dir(&folder).into_iter().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| is_model_file(name))
        .collect();
    names.sort();
    let mut list = "&[\n".to_string();
    for name in names {
        let path = folder.join(&name);
        // Aligned, so that weights can be used where they lie.
        let aligned = format!("const FILE: &Aligned<[u8]> = &Aligned(*include_bytes!({path:?})); &FILE.0");
        writeln!(list, "    ({name:?}, {{ {aligned} }}),").expect("a string takes all");
    }
    list.push(']');
    let out = Path::new(&std::env::var("OUT_DIR").expect("cargo sets it")).join("embedded.rs");
    std::fs::write(out, list).expect("OUT_DIR is writable");
}

/// What a server reads; the folder also explains itself to people.
fn is_model_file(name: &str) -> bool {
    [".json", ".safetensors", ".jinja"].iter().any(|end| name.ends_with(end)) || name == "tiktoken.model"
}
