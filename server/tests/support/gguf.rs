//! Writes small GGUF files.

use std::path::PathBuf;

#[derive(Debug, Default)]
pub struct GgufWriter {
    keys: Vec<u8>,
    num_keys: u64,
    tensors: Vec<(String, Vec<usize>)>,
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl GgufWriter {
    fn key(&mut self, key: &str, kind: u32) -> &mut Vec<u8> {
        self.num_keys += 1;
        text(&mut self.keys, key);
        self.keys.extend(kind.to_le_bytes());
        &mut self.keys
    }

    fn list(&mut self, key: &str, kind: u32, len: usize) -> &mut Vec<u8> {
        let out = self.key(key, 9);
        out.extend(kind.to_le_bytes());
        out.extend((len as u64).to_le_bytes());
        out
    }

    pub fn int(&mut self, key: &str, value: u32) {
        self.key(key, 4).extend(value.to_le_bytes());
    }

    pub fn float(&mut self, key: &str, value: f32) {
        self.key(key, 6).extend(value.to_le_bytes());
    }

    pub fn bool(&mut self, key: &str, value: bool) {
        self.key(key, 7).push(value.into());
    }

    pub fn text(&mut self, key: &str, value: &str) {
        text(self.key(key, 8), value);
    }

    pub fn texts<T: AsRef<str>>(&mut self, key: &str, values: &[T]) {
        let out = self.list(key, 8, values.len());
        values.iter().for_each(|value| text(out, value.as_ref()));
    }

    pub fn ints(&mut self, key: &str, values: &[i32]) {
        let out = self.list(key, 5, values.len());
        values.iter().for_each(|value| out.extend(value.to_le_bytes()));
    }

    pub fn floats(&mut self, key: &str, values: &[f32]) {
        let out = self.list(key, 6, values.len());
        values.iter().for_each(|value| out.extend(value.to_le_bytes()));
    }

    /// A tensor of zeros in f32; the shape is outermost first.
    pub fn zeros(&mut self, name: &str, shape: &[usize]) {
        self.tensors.push((name.to_string(), shape.to_vec()));
    }

    /// The keys that every LLaMA has, for a vocabulary of so many tokens.
    pub fn llama(vocab_size: usize) -> Self {
        let mut writer = Self::default();
        writer.text("general.architecture", "llama");
        let sizes =
            [("block_count", 1), ("embedding_length", 8), ("feed_forward_length", 8), ("context_length", 64)];
        for (key, size) in
            sizes.into_iter().chain([("attention.head_count", 2), ("attention.head_count_kv", 2)])
        {
            writer.int(&format!("llama.{key}"), size);
        }
        writer.float("llama.attention.layer_norm_rms_epsilon", 1e-5);
        writer.zeros("token_embd.weight", &[vocab_size, 8]);
        writer
    }

    pub fn write(&self, name: &str) -> PathBuf {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend(self.num_keys.to_le_bytes());
        file.extend(&self.keys);
        let mut offset = 0;
        for (name, shape) in &self.tensors {
            text(&mut file, name);
            file.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|&n| file.extend((n as u64).to_le_bytes()));
            file.extend(0u32.to_le_bytes());
            file.extend((offset as u64).to_le_bytes());
            offset += (4 * shape.iter().product::<usize>()).next_multiple_of(32);
        }
        file.resize(file.len().next_multiple_of(32) + offset, 0);
        let path = std::env::temp_dir().join(format!("perilune-{}-{name}.gguf", std::process::id()));
        std::fs::write(&path, file).expect("a temporary file");
        path
    }
}
