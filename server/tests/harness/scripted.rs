//! A model that says what a test tells it to, token by token; its tokenizer is one token a byte, and control tokens. Under a mask it
//! says the first of its tokens that is allowed, or draws one at random.

use super::fake;
use models::{ModelFiles, ModelInfo};
use perilune::serve::LoadedModel;
use scheduler::{Batch, ModelRunner, Sampled, SampledToken, StepOutput, TokenId};
use std::sync::{Arc, Mutex};

/// Control tokens, some of them hidden from clients, after 256 bytes.
pub struct Control {
    pub text: &'static str,
    pub is_special: bool,
}

pub const fn special(text: &'static str) -> Control {
    Control { text, is_special: true }
}

pub const fn plain(text: &'static str) -> Control {
    Control { text, is_special: false }
}

const EOS: Control = special("<|im_end|>");

/// A model's template and control tokens.
pub struct Scripted {
    pub template: &'static str,
    pub controls: &'static [Control],
}

/// What the model says next: shared with the test.
#[derive(Clone, Default)]
pub struct Script(Arc<Mutex<Vec<TokenId>>>);

impl Script {
    pub fn set(&self, tokens: Vec<TokenId>) {
        *self.0.lock().expect("no panic under the lock") = tokens;
    }
}

impl Scripted {
    fn all(&self) -> impl Iterator<Item = &Control> {
        std::iter::once(&EOS).chain(self.controls)
    }

    pub fn eos(&self) -> TokenId {
        256
    }

    /// The text as the model writes it: control tokens as such, everything else in bytes; then the end.
    pub fn encode(&self, text: &str) -> Vec<TokenId> {
        let mut tokens = Vec::new();
        let mut rest = text;
        while let Some(first) = rest.bytes().next() {
            let control = self.all().enumerate().filter(|(_, control)| rest.starts_with(control.text));
            match control.max_by_key(|(_, control)| control.text.len()) {
                Some((index, control)) => {
                    tokens.push(256 + index as TokenId);
                    rest = &rest[control.text.len()..];
                }
                None => {
                    tokens.push(TokenId::from(first));
                    let len = rest.chars().next().map_or(1, char::len_utf8);
                    tokens.extend(rest.as_bytes()[1..len].iter().map(|&byte| TokenId::from(byte)));
                    rest = &rest[len..];
                }
            }
        }
        tokens
    }

    pub fn vocab_size(&self) -> usize {
        256 + self.all().count()
    }

    pub fn files(&self) -> ModelFiles {
        let vocab: serde_json::Map<_, _> =
            (0..=255u8).map(|byte| (fake::byte_char(byte).to_string(), u32::from(byte).into())).collect();
        let added: Vec<_> = self
            .all()
            .enumerate()
            .map(|(i, Control { text, is_special })| {
                serde_json::json!({"id": 256 + i, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                                   "normalized": false, "special": is_special})
            })
            .collect();
        let tokenizer = serde_json::json!({
            "version": "1.0", "added_tokens": added,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false, "byte_fallback": false,
                      "vocab": vocab, "merges": []},
        });
        let config = serde_json::json!({"chat_template": self.template, "eos_token": EOS.text});
        let leak = |text: String| -> &'static [u8] { text.leak().as_bytes() };
        let files = vec![
            ("tokenizer.json", leak(tokenizer.to_string())),
            ("tokenizer_config.json", leak(config.to_string())),
        ];
        ModelFiles::Embedded(files.leak())
    }

    pub fn model(&self, script: Script) -> LoadedModel<ScriptedRunner> {
        let config = scheduler::SchedulerConfig { max_model_len: 16_384, ..fake::config(4000) };
        LoadedModel {
            device_bytes: 0,
            runner: ScriptedRunner { script, eos: self.eos() },
            info: ModelInfo {
                vocab_size: self.vocab_size(),
                max_model_len: config.max_model_len,
                eos_token_ids: vec![self.eos()],
                image_token_id: None,
                ..fake::info()
            },
            image_processor: None,
            scheduler_config: config,
            generation: Default::default(),
        }
    }
}

pub struct ScriptedRunner {
    script: Script,
    eos: TokenId,
}

impl ModelRunner for ScriptedRunner {
    type Error = String;

    fn execute(&mut self, batch: &Batch) -> Result<StepOutput, String> {
        let script = self.script.0.lock().expect("no panic under the lock");
        let sampled = batch
            .items
            .iter()
            .filter_map(|item| item.sample.as_ref())
            .map(|sample| {
                let token = script.get(sample.num_generated).copied().unwrap_or(self.eos);
                let logprob = sample.params.logprobs.map(|_| -0.5);
                Sampled::Token(SampledToken { token, logprob, top: Vec::new() })
            })
            .collect();
        Ok(StepOutput { sampled })
    }
}
