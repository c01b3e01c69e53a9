//! Fixtures whose choice of experts is changed, or their sizes.

use crate::common::fixture;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

pub struct Changed {
    folder: PathBuf,
}

impl Changed {
    /// With so many experts for each token, and weights of the router of `[layer, expert]` that are smaller by one part in 128.
    pub fn new(name: &str, num_experts: usize, nudged: Option<[usize; 2]>) -> Self {
        let changed = Self::copy(name);
        let mut config: Value = serde_json::from_slice(&changed.read("config.json")).unwrap();
        config["num_experts_per_tok"] = num_experts.into();
        changed.write("config.json", config.to_string().as_bytes());
        if let Some([layer, expert]) = nudged {
            let mut bytes = changed.read("model.safetensors");
            nudge(&mut bytes, &format!("model.layers.{layer}.mlp.gate.weight"), expert);
            changed.write("model.safetensors", &bytes);
        }
        changed
    }

    /// With other sizes of its decoder, for random weights.
    pub fn with(name: &str, sizes: &[(&str, u64)]) -> Self {
        Self::with_part(name, "text_config", sizes)
    }

    /// With other sizes of one part of its configuration, and with its larger picture, of 80 patches, in place of the small one.
    pub fn with_larger_picture(name: &str, part: &str, sizes: &[(&str, u64)]) -> Self {
        let changed = Self::with_part(name, part, sizes);
        changed.write("images/dot.png", &changed.read("images/large.png"));
        changed
    }

    fn with_part(name: &str, part: &str, sizes: &[(&str, u64)]) -> Self {
        let changed = Self::copy(name);
        let mut config: Value = serde_json::from_slice(&changed.read("config.json")).unwrap();
        for (key, value) in sizes {
            config[part][key] = (*value).into();
        }
        changed.write("config.json", config.to_string().as_bytes());
        changed
    }

    fn copy(name: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("perilune-{name}-{}-{number}", std::process::id()));
        copy_into(&folder, &fixture(name));
        Self { folder }
    }

    pub fn path(&self) -> &str {
        self.folder.to_str().unwrap()
    }

    fn read(&self, file: &str) -> Vec<u8> {
        std::fs::read(Path::new(&self.folder).join(file)).unwrap()
    }

    fn write(&self, file: &str, bytes: &[u8]) {
        std::fs::write(Path::new(&self.folder).join(file), bytes).unwrap();
    }
}

fn copy_into(folder: &Path, from: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let path = file.unwrap().path();
        let to = folder.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_into(&to, &path);
        } else {
            std::fs::copy(&path, to).unwrap();
        }
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn nudge(file: &mut [u8], name: &str, row: usize) {
    let start = 8 + u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[8..start]).unwrap();
    let tensor = &header[name];
    assert_eq!(tensor["dtype"], "BF16");
    let [offset, rows, columns] = [&tensor["data_offsets"][0], &tensor["shape"][0], &tensor["shape"][1]]
        .map(|n| n.as_u64().unwrap() as usize);
    assert!(row < rows);
    let first = start + offset + 2 * row * columns;
    for weight in file[first..first + 2 * columns].as_chunks_mut::<2>().0 {
        let value = f32::from_bits(u32::from(u16::from_le_bytes(*weight)) << 16);
        let nudged = (value * (1.0 - 1.0 / 128.0)).to_bits() + 0x8000;
        *weight = ((nudged >> 16) as u16).to_le_bytes();
    }
}
