//! Flags of vLLM and llama-server that this server does not have, and what is done here instead: whoever comes from there types them first.

/// What to do in place of a flag, by its name as it was typed (`--ctx-size`, `-ngl`); `None`: it is none of theirs.
pub fn instead_of(flag: &str) -> Option<&'static str> {
    let flag = flag.split('=').next().unwrap_or(flag).replace('_', "-");
    FLAGS.iter().find(|(names, _)| names.contains(&flag.as_str())).map(|(_, instead)| *instead)
}

/// Whether it is written with one dash and several letters, which would be read as several flags.
pub fn is_clustered(flag: &str) -> bool {
    flag.len() > 2 && !flag.starts_with("--") && instead_of(flag).is_some()
}

/// Names, and what is instead.
pub const FLAGS: &[(&[&str], &str)] = &[
    (&["--model", "-m"], "the model is named without a flag, as in `perilune serve MODEL`"),
    (
        &["-hf", "-hfr", "--hf-repo"],
        "a name on the hub is given as the model, as in `perilune serve org/name`",
    ),
    (
        &[
            "--tensor-parallel-size",
            "-tp",
            "--pipeline-parallel-size",
            "-pp",
            "--data-parallel-size",
            "-dp",
            "--enable-expert-parallel",
            "--distributed-executor-backend",
            "--tensor-split",
            "-ts",
            "--split-mode",
            "-sm",
        ],
        "a server computes on one device, which --device names; for more devices start more servers",
    ),
    (
        &["--n-gpu-layers", "--gpu-layers", "-ngl"],
        "--device cuda computes all layers on the GPU, --device cpu none",
    ),
    (
        &["--swap-space", "--cpu-offload-gb"],
        "weights stay on the device, and what sequences lose is computed again, or kept in the host's memory by --kv-offloading-size; leave it out",
    ),
    (&["--ctx-size", "-c"], "use --max-model-len, which counts for each sequence and not for all"),
    (&["--parallel", "-np"], "use --max-num-seqs"),
    (&["--batch-size", "-b", "--ubatch-size", "-ub"], "use --max-num-batched-tokens"),
    (&["--cache-type-k", "-ctk", "--cache-type-v", "-ctv"], "use --kv-cache-dtype"),
    (&["-t", "--threads-batch", "-tb"], "use --threads"),
    (&["--alias", "-a"], "use --served-model-name"),
    (&["--chat-template-file"], "use --chat-template, which takes a file"),
    (&["--jinja"], "chat templates are always rendered; leave it out"),
    (&["--flash-attn", "-fa"], "there is one kind of attention; leave it out"),
    (&["--mlock", "--no-mmap"], "leave it out; --weights-cache off reads weights without mapping them"),
    (&["--metrics", "--slots", "--props"], "/metrics is always there; leave it out"),
    (&["--enable-server-load-tracking"], "/load is always there; leave it out"),
    (
        &["--embedding", "--embeddings", "--reranking", "--task", "--runner", "--convert"],
        "every model answers and embeds; leave it out",
    ),
    (&["--lora", "--lora-scaled"], "use --enable-lora and --lora-modules NAME=PATH"),
    (&["--mmproj", "-mm"], "the vision tower is part of the model's directory; leave it out"),
    (
        &["--draft-model", "--model-draft", "-md", "--draft-max", "--draft"],
        "use --speculative-config with the method ngram",
    ),
    (&["--limit-mm-per-prompt"], "use --max-images"),
    (&["--mm-processor-kwargs", "--image-max-tokens"], "use --image-resize-pixels"),
    (
        &["--allowed-local-media-path", "--media-path"],
        "requests name no files of the server; they carry pictures as data: URLs",
    ),
    (
        &["--tokenizer", "--tokenizer-mode", "--hf-config-path"],
        "the tokenizer and the configuration are the model's own; leave it out",
    ),
    (&["--revision", "--tokenizer-revision", "--code-revision"], "name it with the model: org/name@revision"),
    (&["--download-dir"], "set HF_HUB_CACHE"),
    (&["--hf-token"], "set HF_TOKEN"),
    (&["--hf-overrides", "--rope-scaling", "--rope-theta"], "change the model's config.json"),
    (
        &["--override-generation-config"],
        "change the model's generation_config.json, or send the fields with requests",
    ),
    (&["--scheduling-policy"], "the `priority` of requests always counts; leave it out"),
    (&["--max-logprobs"], "a request may ask for 20; leave it out"),
    (&["--api-prefix"], "use --root-path"),
    (
        &["--allow-credentials", "--allowed-methods", "--allowed-headers"],
        "--allowed-origins is all that CORS needs here",
    ),
    (
        &["--uvicorn-log-level", "--log-level", "--verbose", "-v", "--log-verbosity", "-lv"],
        "set RUST_LOG, such as RUST_LOG=debug",
    ),
    (
        &["--enable-log-requests", "--max-log-len"],
        "prompts are never logged; each request has a line without its content",
    ),
    (&["--enable-request-id-headers"], "x-request-id is always answered; leave it out"),
    (&["--enable-reasoning"], "leave it out; --reasoning-parser none turns it off"),
    (
        &["--guided-decoding-backend", "--structured-outputs-config"],
        "there is one engine for grammars; leave it out",
    ),
    (
        &["--compilation-config", "-O", "-O0", "-O1", "-O2", "-O3", "--max-seq-len-to-capture"],
        "nothing is compiled while a model is served; leave it out",
    ),
    (&["--no-enable-chunked-prefill"], "long prompts are always computed in pieces"),
    (&["--sleep-idle-seconds", "--enable-sleep-mode"], "there is no sleep mode"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_known_as_they_are_typed() {
        for flag in ["--ctx-size", "--ctx_size", "--ctx-size=4096", "-c"] {
            assert!(instead_of(flag).is_some_and(|text| text.contains("--max-model-len")), "{flag}");
        }
        assert_eq!(instead_of("--nonsense"), None);
        assert!(
            is_clustered("-ngl")
                && !is_clustered("-c")
                && !is_clustered("--ctx-size")
                && !is_clustered("-xyz")
        );
    }
}
