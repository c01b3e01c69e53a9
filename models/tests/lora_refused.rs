//! Adapters that are not taken: each with the file, the key or the tensor, and what would be.

mod common;

use common::adapters::{Random, Stored, floats, folder, id, modules, tensors, write, write_adapter};
use common::{files, load, options};
use models::lora::{Adapter, AdapterError, AdapterSpec, merge};
use models::{LoadOptions, ModelFiles};
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const WEIGHTS: &str = "adapter_model.safetensors";
const RANK: usize = 4;
const Q: &str = "base_model.model.model.layers.0.self_attn.q_proj";

fn all(family: &str) -> BTreeMap<String, Stored> {
    tensors(&modules(family), Random { seed: 3, rank: RANK, b: 0.3 })
}

fn spec(family: &str) -> AdapterSpec {
    AdapterSpec::of_model(&files(family), 8).unwrap()
}

/// What is said of an adapter, without the folder's path.
fn message(folder: &Path, spec: &AdapterSpec) -> String {
    let error = Adapter::read(folder, spec).expect_err("it is refused").to_string();
    error.replace(&format!("{}/", folder.display()), "")
}

/// One whose tensors were changed.
fn changed(family: &str, name: &str, change: impl FnOnce(&mut BTreeMap<String, Stored>)) -> String {
    let folder = folder(&format!("refused-{family}-{name}"));
    let mut tensors = all(family);
    change(&mut tensors);
    write_adapter(&folder, RANK, &tensors);
    message(&folder, &spec(family))
}

fn good(name: &str) -> PathBuf {
    let folder = folder(name);
    write_adapter(&folder, RANK, &all("llama"));
    folder
}

#[test]
fn files_that_are_not_there_or_not_what_they_say() {
    let spec = spec("llama");
    let folder = good("refused-files");
    assert!(Adapter::read(&folder, &spec).is_ok());
    fs::write(folder.join(WEIGHTS), b"short").unwrap();
    assert_eq!(
        message(&folder, &spec),
        "adapter_model.safetensors is not a valid safetensors file: it has 5 bytes, too few for a header"
    );
    let huge = fs::File::create(folder.join(WEIGHTS)).unwrap();
    huge.set_len(1 << 40).unwrap();
    let found = message(&folder, &spec);
    assert!(
        found.contains(
            "it has 1099511627776 bytes, and an adapter of this model with max_lora_rank = 8 has at most"
        ),
        "{found}"
    );
    fs::remove_file(folder.join(WEIGHTS)).unwrap();
    assert_eq!(message(&folder, &spec), "adapter_model.safetensors is missing");
    write(&folder.join(WEIGHTS), &BTreeMap::new());
    assert_eq!(message(&folder, &spec), "adapter_model.safetensors holds no tensors of an adapter");
    fs::write(folder.join("adapter_config.json"), "{").unwrap();
    assert!(message(&folder, &spec).starts_with("adapter_config.json is not valid JSON: "));
    fs::write(
        folder.join("adapter_config.json"),
        r#"{"peft_type": "LORA", "r": 4, "lora_alpha": 4, "use_dora": true}"#,
    )
    .unwrap();
    assert_eq!(
        message(&folder, &spec),
        "adapter_config.json: use_dora: DoRA is not supported, only false is"
    );
    fs::remove_file(folder.join("adapter_config.json")).unwrap();
    assert_eq!(message(&folder, &spec), "adapter_config.json is missing");
}

#[test]
fn tensors_of_no_module() {
    let matrix = || floats(&[RANK, 40], &[0.5; 160]);
    for (family, tensor, expected) in [
        (
            "llama",
            "base_model.model.model.embed_tokens.lora_embedding_A",
            "an adapter of the embedding is not supported",
        ),
        ("llama", "base_model.model.model.norm.lora_A.weight", "a norm has no adapter"),
        (
            "llama",
            "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight",
            "the model has 2 layers, counted from 0",
        ),
        (
            "llama",
            "base_model.model.model.layers.1.mlp.experts.3.gate_proj.lora_A.weight",
            "the model has no experts",
        ),
        (
            "qwen3_moe",
            "base_model.model.model.layers.1.mlp.experts.lora_A.weight",
            "experts in one parameter (target_parameters) are not supported, only a module for each expert is",
        ),
        (
            "qwen3_moe",
            "base_model.model.model.layers.1.mlp.experts.base_layer.lora_B.weight",
            "experts in one parameter (target_parameters) are not supported, only a module for each expert is",
        ),
        (
            "moonlight",
            "base_model.model.model.layers.1.mlp.gate.lora_A.weight",
            "an adapter of the router is not supported",
        ),
        (
            "kimi_vl",
            "base_model.model.vision_tower.encoder.blocks.0.wqkv.lora_A.weight",
            "an adapter of the vision tower is not supported",
        ),
        (
            "kimi_vl",
            "base_model.model.multi_modal_projector.linear_1.lora_A.weight",
            "an adapter of the vision projector is not supported",
        ),
    ] {
        let found = changed(family, "module", |tensors| {
            tensors.insert(tensor.to_string(), matrix());
        });
        assert_eq!(found, format!("{WEIGHTS}: tensor {tensor}: {expected}"));
    }
    for tensor in [
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.qkv_proj.lora_A.weight",
        "base_model.model.model.layers.x.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "base_model.model.model.layers.0.self_attn.q_proj.weight",
        "base_model.model.model.lm_head.lora_A.weight",
        "base_model.model.lm_head.weight",
    ] {
        let found = changed("llama", "unknown", |tensors| {
            tensors.insert(tensor.to_string(), matrix());
        });
        let expected = format!(
            "{WEIGHTS}: tensor {tensor}: it belongs to no module that may have an adapter: names are \
             base_model.model.model.layers.N.MODULE.lora_A.weight and …lora_B.weight, and a MODULE of a layer is one of \
             self_attn.q_proj, self_attn.k_proj, self_attn.v_proj, self_attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj; and that of the output head is lm_head"
        );
        assert_eq!(found, expected);
    }
}

#[test]
fn experts_that_are_none_or_not_like_the_others() {
    for module in [
        // The first layer is dense, and there are eight in the others.
        "layers.0.mlp.experts.0.gate_proj",
        "layers.1.mlp.experts.8.gate_proj",
        "layers.1.mlp.experts.03.gate_proj",
        "layers.1.mlp.experts.3.w1",
        "layers.1.mlp.experts.x.gate_proj",
        "layers.1.mlp.experts.gate_proj",
    ] {
        let tensor = format!("base_model.model.model.{module}.lora_A.weight");
        let found = changed("moonlight", "expert", |tensors| {
            tensors.insert(tensor.clone(), floats(&[RANK, 40], &[0.5; 160]));
        });
        assert!(
            found.starts_with(&format!("{WEIGHTS}: tensor {tensor}: it belongs to no module")),
            "{found}"
        );
        assert!(
            found.ends_with(
                "mlp.experts.E.gate_proj, mlp.experts.E.up_proj, mlp.experts.E.down_proj; and that of the output head is lm_head"
            ),
            "{found}"
        );
    }
    let half = "base_model.model.model.layers.1.mlp.experts.3.up_proj.lora_B.weight";
    let found = changed("moonlight", "expert", |tensors| assert!(tensors.remove(half).is_some()));
    assert_eq!(found, format!("{WEIGHTS}: tensor {half}: is missing"));
    let folder = folder("refused-expert-scale");
    write_adapter(&folder, RANK, &all("moonlight"));
    let mut config: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("adapter_config.json")).unwrap()).unwrap();
    config["alpha_pattern"] = serde_json::json!({"layers.2.mlp.experts.5.down_proj": 2.0});
    fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    assert_eq!(
        message(&folder, &spec("moonlight")),
        format!(
            "{WEIGHTS}: tensor base_model.model.model.layers.2.mlp.experts.5.down_proj.lora_A.weight: its rank 4 and scale 0.5 \
             are not those of expert 0, 4 and 1.5: experts of a layer share them"
        )
    );
    // Without memory for them they are not taken, and what was read where there was some finds none.
    let folder = with_experts();
    let with = |lora_experts| LoadOptions { max_loras: 1, max_lora_rank: 8, lora_experts, ..options() };
    let mut loaded = load("moonlight", &with(false));
    let found = message(&folder, loaded.adapters.as_ref().unwrap());
    assert!(
        found.ends_with("an adapter of single experts needs lora_experts, which sets memory aside for it"),
        "{found}"
    );
    let adapter = Adapter::read(&folder, &spec("moonlight")).unwrap();
    assert!(matches!(loaded.runner.add_adapter(id(1), adapter), Err(AdapterError::OtherModel)));
    let adapter = Adapter::read(&folder, &spec("moonlight")).unwrap();
    load("moonlight", &with(true)).runner.add_adapter(id(1), adapter).unwrap();
}

fn with_experts() -> PathBuf {
    let folder = folder("refused-expert-room");
    write_adapter(&folder, RANK, &all("moonlight"));
    folder
}

#[test]
fn tensors_of_another_form() {
    let (a, b) = (format!("{Q}.lora_A.weight"), format!("{Q}.lora_B.weight"));
    for (gone, kept) in [(&a, &b), (&b, &a)] {
        let found = changed("llama", "half", |tensors| {
            assert!(tensors.remove(gone).is_some() && tensors.contains_key(kept));
        });
        assert_eq!(found, format!("{WEIGHTS}: tensor {gone}: is missing"));
    }
    let [n, k] = modules("llama")["model.layers.0.self_attn.q_proj"];
    for (tensor, shape, expected) in [
        (&a, vec![RANK + 1, k], vec![RANK, k]),
        (&a, vec![RANK, k + 1], vec![RANK, k]),
        (&a, vec![RANK * k], vec![RANK, k]),
        (&b, vec![RANK, n], vec![n, RANK]),
    ] {
        let found = changed("llama", "shape", |tensors| {
            tensors.insert(tensor.clone(), floats(&shape, &vec![0.5; shape.iter().product()]));
        });
        let expected = format!(
            "{WEIGHTS}: tensor {tensor}: expected shape {expected:?} by r of adapter_config.json, found {shape:?}"
        );
        assert_eq!(found, expected);
    }
    let found = changed("llama", "type", |tensors| {
        tensors.insert(a.clone(), (Dtype::U8, vec![RANK, k], vec![1; RANK * k]));
    });
    let expected = format!("{WEIGHTS}: tensor {a}: type U8 is not supported, only F32, BF16 and F16 are");
    assert_eq!(found, expected);
    let found = changed("llama", "number", |tensors| {
        let mut values = vec![0.5; RANK * k];
        values[2 * k + 1] = f32::NAN;
        tensors.insert(a.clone(), floats(&[RANK, k], &values));
    });
    assert_eq!(found, format!("{WEIGHTS}: tensor {a}: row 2 holds a number that is not finite"));
    let small = AdapterSpec::of_model(&files("llama"), RANK - 1).unwrap();
    let found = message(&good("refused-rank"), &small);
    assert!(found.starts_with(&format!("{WEIGHTS}: tensor base_model.model.model.layers.0.")), "{found}");
    assert!(found.ends_with("its rank 4 is above max_lora_rank = 3"), "{found}");
}

#[test]
fn latent_attention_with_an_expanded_form() {
    let tensors = all("moonlight");
    let folder = folder("refused-expanded");
    write_adapter(&folder, RANK, &tensors);
    let with = |mla_expand_from| LoadOptions {
        max_loras: 1,
        max_lora_rank: 8,
        lora_experts: true,
        mla_expand_from,
        ..options()
    };
    let loaded = load("moonlight", &with(Some(30)));
    let found = message(&folder, loaded.adapters.as_ref().unwrap());
    assert!(
        found.ends_with("an adapter of kv_b_proj is not supported together with mla_expand_from"),
        "{found}"
    );
    // Without it the others are taken.
    let others = tensors.into_iter().filter(|(name, _)| !name.contains("kv_b_proj")).collect();
    write_adapter(&folder, RANK, &others);
    assert!(Adapter::read(&folder, loaded.adapters.as_ref().unwrap()).is_ok());
}

#[test]
fn models_without_room() {
    let folder = good("refused-room");
    let read = || Adapter::read(&folder, &spec("llama")).unwrap();
    let mut loaded = load("llama", &LoadOptions { max_loras: 0, ..options() });
    assert!(loaded.adapters.is_none());
    let found = loaded.runner.add_adapter(id(1), read()).unwrap_err();
    assert!(matches!(found, AdapterError::Off));
    loaded.runner.remove_adapter(id(1));

    let mut loaded = load("llama", &LoadOptions { max_loras: 2, max_lora_rank: 8, ..options() });
    loaded.runner.add_adapter(id(1), read()).unwrap();
    loaded.runner.add_adapter(id(2), read()).unwrap();
    let found = loaded.runner.add_adapter(id(3), read()).unwrap_err();
    assert!(matches!(found, AdapterError::NoRoom { max_loras: 2 }), "{found}");
    loaded.runner.remove_adapter(id(1));
    loaded.runner.add_adapter(id(3), read()).unwrap();

    for (family, max_lora_rank) in [("moonlight", 8), ("llama", 2)] {
        let mut other = load(family, &LoadOptions { max_loras: 1, max_lora_rank, ..options() });
        let found = other.runner.add_adapter(id(1), read()).unwrap_err();
        assert!(matches!(found, AdapterError::OtherModel), "{found}");
    }
}

#[test]
fn merging_into_what_is_quantised_or_into_a_full_folder() {
    let adapter = good("refused-merge");
    let output = folder("refused-merge-output");
    let mut progress = |_, _| {};
    let quantised = ModelFiles::Directory(common::fixture("quantised").join(quantised_llama()));
    let found = merge(&quantised, &adapter, &output, &mut progress).unwrap_err().to_string();
    assert!(
        found.ends_with("an adapter is merged into weights in floats only, and the checkpoint is quantised"),
        "{found}"
    );
    // Merged into the one matrix, what is for the head would change the embedding as well.
    let head = folder("refused-merge-head");
    let tensors =
        tensors(&BTreeMap::from([("lm_head".to_string(), [128, 48])]), Random { seed: 1, rank: 2, b: 0.3 });
    write_adapter(&head, 2, &tensors);
    let found = merge(&files("llama31"), &head, &output, &mut progress).unwrap_err().to_string();
    assert!(
        found.ends_with("config.json: tie_word_embeddings: the adapter changes the output head, which is the embedding of this model as well: merged it would change both"),
        "{found}"
    );
    assert_eq!(fs::read_dir(&output).unwrap().count(), 0, "nothing was written");
    fs::write(output.join("x"), "x").unwrap();
    let found = merge(&files("llama"), &adapter, &output, &mut progress).unwrap_err().to_string();
    assert!(found.ends_with("the folder is not empty"), "{found}");
}

/// Some checkpoint that says in its configuration that it is quantised.
fn quantised_llama() -> PathBuf {
    let folders = fs::read_dir(common::fixture("quantised")).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = folders.filter(|path| path.join("config.json").is_file()).collect();
    folders.sort();
    folders.into_iter().next().expect("a quantised checkpoint")
}
