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

/// In Kimi K2's manner, with a switch for thinking.
pub const KIMI: Scripted = Scripted {
    template: "{%- if tools -%}<|im_system|>tool_declare<|im_middle|>{{ tools | tojson(separators=(',', ':')) }}<|im_end|>{%- endif -%}\
{%- for m in messages -%}<|im_{{ m.role }}|>{{ m.role }}<|im_middle|>\
{%- if m.reasoning_content -%}[[{{ m.reasoning_content }}]]{%- endif -%}\
{%- if m.role == 'tool' -%}## Return of {{ m.tool_call_id }}\n{% endif -%}{%- if m.content -%}{{ m.content }}{%- endif -%}\
{%- if m.tool_calls -%}<|tool_calls_section_begin|>{%- for c in m.tool_calls -%}<|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>\
{{ c.function.arguments | tojson }}<|tool_call_end|>{%- endfor -%}<|tool_calls_section_end|>{%- endif -%}<|im_end|>{%- endfor -%}\
{%- if add_generation_prompt -%}<|im_assistant|>assistant<|im_middle|>{%- if thinking -%}◁think▷{%- endif -%}{%- endif -%}",
    controls: &[
        special("<|im_user|>"),
        special("<|im_assistant|>"),
        special("<|im_system|>"),
        special("<|im_tool|>"),
        special("<|im_middle|>"),
        special("<|tool_calls_section_begin|>"),
        special("<|tool_calls_section_end|>"),
        special("<|tool_call_begin|>"),
        special("<|tool_call_argument_begin|>"),
        special("<|tool_call_end|>"),
    ],
};

pub fn kimi_call(id: &str, arguments: &str) -> String {
    format!("<|tool_call_begin|>{id}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>")
}

/// What the model says next: shared with the test.
#[derive(Clone, Default)]
pub struct Script(Arc<Mutex<Say>>);

enum Say {
    /// These tokens, and then the end.
    Tokens(Vec<TokenId>),
    /// Anything that it may.
    Anything(u64),
}

impl Default for Say {
    fn default() -> Self {
        Self::Tokens(Vec::new())
    }
}

impl Script {
    pub fn set(&self, tokens: Vec<TokenId>) {
        *self.0.lock().expect("no panic under the lock") = Say::Tokens(tokens);
    }

    /// From now on the model draws, like random weights.
    pub fn draw(&self, seed: u64) {
        *self.0.lock().expect("no panic under the lock") =
            Say::Anything(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    }
}

/// One of the tokens that are allowed. Ends of strings, brackets and answers are likelier, or few answers would end.
fn draw(state: &mut u64, num_tokens: usize, allowed: impl Fn(TokenId) -> bool, eos: TokenId) -> TokenId {
    let mut next = || {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*state >> 33) as usize
    };
    let likely: Vec<TokenId> = [eos, u32::from(b'"'), u32::from(b'}'), u32::from(b']')]
        .into_iter()
        .filter(|&token| allowed(token))
        .collect();
    if !likely.is_empty() && next() % 4 == 0 {
        return likely[next() % likely.len()];
    }
    let tokens: Vec<TokenId> = (0..num_tokens as TokenId).filter(|&token| allowed(token)).collect();
    tokens[next() % tokens.len()]
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
            device: "scripted".into(),
            kv_block_bytes: 64,
            device_bytes: 0,
            adapters: None,
            runner: ScriptedRunner { script, eos: self.eos(), num_tokens: self.vocab_size() },
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
    num_tokens: usize,
}

impl ModelRunner for ScriptedRunner {
    type Error = String;

    fn execute(&mut self, batch: &Batch) -> Result<StepOutput, String> {
        let mut script = self.script.0.lock().expect("no panic under the lock");
        let sampled = batch
            .items
            .iter()
            .flat_map(|item| item.sample.iter().flat_map(|sample| sample.rows()))
            .map(|row| {
                let mask = row.sample.mask.as_ref().map(|mask| mask.allowed().expect("a mask"));
                let allowed = |token: TokenId| {
                    mask.is_none_or(|mask| {
                        mask.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
                    })
                };
                let token = match &mut *script {
                    Say::Tokens(tokens) => {
                        let token = tokens.get(row.num_generated()).copied().unwrap_or(self.eos);
                        assert!(allowed(token), "token {} of the script is not allowed", row.num_generated());
                        token
                    }
                    Say::Anything(state) => draw(state, self.num_tokens, allowed, self.eos),
                };
                let logprob = row.params().logprobs.map(|_| -0.5);
                Sampled::Token(SampledToken { token, logprob, top: Vec::new() })
            })
            .collect();
        Ok(StepOutput { sampled, ..StepOutput::default() })
    }
}
