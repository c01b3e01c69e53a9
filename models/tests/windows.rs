//! Families whose layers see the last tokens only: prompts that are longer than the window, against log-probabilities by transformers
//! (tools/golden/windows.py), in chunks and in company, on the processor and by the GPU's code.

mod common;

use common::feed::{Feed, Numbers, check, is_near};
use common::{made, options};
use models::{ActivationsChoice, DTypeChoice, LoadOptions};
use serde_json::{Value, json};

const TOLERANCE: f32 = 1e-3;

struct Case {
    name: &'static str,
    changes: Value,
    numbers: Numbers,
}

fn cases() -> [Case; 4] {
    let [full, sliding] = ["full_attention", "sliding_attention"];
    [
        Case {
            name: "mistral",
            changes: json!({"architectures": ["MistralForCausalLM"], "num_hidden_layers": 2}),
            numbers: [
                [-5.39664, -3.90592, -7.94294, -8.4317],
                [-9.42829, -6.742, -7.24022, -8.68437],
                [-9.70472, -5.57351, -4.69447, -6.09727],
            ],
        },
        Case {
            name: "ministral",
            changes: json!({
                "architectures": ["MinistralForCausalLM"], "num_hidden_layers": 3,
                "layer_types": [sliding, full, sliding],
            }),
            numbers: [
                [-4.26276, -3.13187, -9.1629, -9.2069],
                [-7.40911, -4.1718, -8.54999, -8.83385],
                [-8.42622, -4.62721, -5.99374, -5.22613],
            ],
        },
        Case {
            name: "qwen2",
            changes: json!({
                "architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 3, "use_sliding_window": true,
                "max_window_layers": 1, "head_dim": null, "hidden_size": 64,
            }),
            numbers: [
                [-5.41634, -4.81553, -5.53691, -9.33447],
                [-4.81094, -5.47926, -7.25924, -9.59137],
                [-5.26598, -5.19429, -8.43171, -7.08896],
            ],
        },
        Case {
            name: "mixtral",
            changes: json!({
                "architectures": ["MixtralForCausalLM"], "num_hidden_layers": 2, "num_local_experts": 4,
                "num_experts_per_tok": 2,
            }),
            numbers: [
                [-7.05839, -6.79133, -7.12676, -8.02128],
                [-12.95672, -7.90324, -6.18036, -7.97805],
                [-9.99673, -7.255, -6.72036, -5.98095],
            ],
        },
    ]
}

impl Case {
    fn config(&self, window: usize) -> Value {
        let mut config = json!({
            "model_type": self.name, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 16, "hidden_act": "silu",
            "hidden_size": 40, "intermediate_size": 56, "max_position_embeddings": 512, "num_attention_heads": 4,
            "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": window,
            "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 128,
        });
        for (key, value) in self.changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        config.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        config
    }

    /// Another window than that of the numbers is another model.
    fn load(&self, window: usize, options: &LoadOptions) -> Feed {
        let config = self.config(window);
        Feed::of(&format!("windows-{}-{window}", self.name), &config, &made::tensors(&config), options)
    }
}

/// Of the numbers.
const WINDOW: usize = 13;

#[test]
fn prompts_are_longer_than_the_window() {
    for case in cases() {
        let mut feed = case.load(WINDOW, &options());
        for chunk in [1, 7, 1000] {
            check(&feed.run(chunk), &case.numbers, TOLERANCE, &format!("{} in chunks of {chunk}", case.name));
        }
        // The numbers tell windows apart.
        let other = case.load(WINDOW + 1, &options()).run(1000);
        assert_eq!(is_near(&other, &case.numbers, TOLERANCE), [false; 3], "{}", case.name);
    }
}

#[test]
fn company_changes_no_bit() {
    for activations in [ActivationsChoice::F32, ActivationsChoice::Auto] {
        let options = LoadOptions { dtype: DTypeChoice::Auto, activations, ..options() };
        for case in &cases()[1..] {
            let mut feed = case.load(WINDOW, &options);
            let whole = feed.run(1000).pop().unwrap();
            feed.check_company(&whole, case.name);
        }
    }
}

#[test]
fn on_a_gpu() {
    for case in &cases()[1..3] {
        let mut feed = case.load(WINDOW, &common::on_gpu());
        let whole = feed.run(64);
        check(&whole, &case.numbers, 2e-3, case.name);
        assert!(feed.run(1).pop() == whole.last().cloned(), "{}", case.name);
    }
}
