"""Names and shapes of the tensors of the decoder families, as they are published.

Each function yields (name, shape, kind); `common.KINDS` gives the spread of a kind.
"""


def embeddings(vocab, hidden, tied=False, prefix=""):
    yield f"{prefix}model.embed_tokens.weight", (vocab, hidden), "tied_embed" if tied else "embed"
    yield f"{prefix}model.norm.weight", (hidden,), "norm"
    if not tied:
        yield f"{prefix}lm_head.weight", (vocab, hidden), "head"


def layer_norms(layer, hidden):
    yield f"{layer}.input_layernorm.weight", (hidden,), "norm"
    yield f"{layer}.post_attention_layernorm.weight", (hidden,), "norm"


def linear(name, rows, cols, bias=False):
    yield f"{name}.weight", (rows, cols), "linear"
    if bias:
        yield f"{name}.bias", (rows,), "bias"


def attention(layer, hidden, heads, kv_heads, head_dim, qkv_bias=False, qk_norm=False):
    attn = f"{layer}.self_attn"
    yield from linear(f"{attn}.q_proj", heads * head_dim, hidden, qkv_bias)
    yield from linear(f"{attn}.k_proj", kv_heads * head_dim, hidden, qkv_bias)
    yield from linear(f"{attn}.v_proj", kv_heads * head_dim, hidden, qkv_bias)
    yield from linear(f"{attn}.o_proj", hidden, heads * head_dim)
    if qk_norm:
        yield f"{attn}.q_norm.weight", (head_dim,), "norm"
        yield f"{attn}.k_norm.weight", (head_dim,), "norm"


def latent_attention(layer, c):
    """MLA; `c` is the text config."""
    attn, heads = f"{layer}.self_attn", c["num_attention_heads"]
    hidden, rank, rope = c["hidden_size"], c["kv_lora_rank"], c["qk_rope_head_dim"]
    nope, value = c["qk_nope_head_dim"], c["v_head_dim"]
    if c["q_lora_rank"] is None:
        yield from linear(f"{attn}.q_proj", heads * (nope + rope), hidden)
    else:
        yield from linear(f"{attn}.q_a_proj", c["q_lora_rank"], hidden)
        yield f"{attn}.q_a_layernorm.weight", (c["q_lora_rank"],), "norm"
        yield from linear(f"{attn}.q_b_proj", heads * (nope + rope), c["q_lora_rank"])
    # Rows of the latent are small, rows of the shared rotary key are not.
    yield f"{attn}.kv_a_proj_with_mqa.weight", (rank + rope, hidden), ("latent", rank, "linear")
    yield f"{attn}.kv_a_layernorm.weight", (rank,), "norm"
    yield from linear(f"{attn}.kv_b_proj", heads * (nope + value), rank)
    yield from linear(f"{attn}.o_proj", hidden, heads * value)


def swiglu(name, hidden, width, names=("gate_proj", "up_proj", "down_proj")):
    gate, up, down = names
    yield from linear(f"{name}.{gate}", width, hidden)
    yield from linear(f"{name}.{up}", width, hidden)
    yield from linear(f"{name}.{down}", hidden, width)


def deepseek_mlp(layer, index, c, bias_kind):
    """Dense below first_k_dense_replace; then router, experts and the shared expert."""
    hidden, width = c["hidden_size"], c["moe_intermediate_size"]
    if index < c["first_k_dense_replace"]:
        yield from swiglu(f"{layer}.mlp", hidden, c["intermediate_size"])
        return
    yield f"{layer}.mlp.gate.weight", (c["n_routed_experts"], hidden), "router"
    if bias_kind is not None:
        yield f"{layer}.mlp.gate.e_score_correction_bias", (c["n_routed_experts"],), bias_kind
    for expert in range(c["n_routed_experts"]):
        yield from swiglu(f"{layer}.mlp.experts.{expert}", hidden, width)
    yield from swiglu(f"{layer}.mlp.shared_experts", hidden, width * c["n_shared_experts"])


def deepseek(c, bias_kind=None, prefix=""):
    """A whole DeepSeek decoder. With num_nextn_predict_layers the layers after the last are the MTP modules."""
    yield from embeddings(c["vocab_size"], c["hidden_size"], prefix=prefix)
    num_layers = c["num_hidden_layers"]
    for index in range(num_layers + c.get("num_nextn_predict_layers", 0)):
        layer = f"{prefix}model.layers.{index}"
        yield from layer_norms(layer, c["hidden_size"])
        yield from latent_attention(layer, c)
        yield from deepseek_mlp(layer, index, c, bias_kind)
        if index >= num_layers:
            yield from mtp_extras(layer, c)


def mtp_extras(layer, c):
    hidden, vocab = c["hidden_size"], c["vocab_size"]
    yield f"{layer}.enorm.weight", (hidden,), "norm"
    yield f"{layer}.hnorm.weight", (hidden,), "norm"
    yield from linear(f"{layer}.eh_proj", hidden, 2 * hidden)
    yield f"{layer}.embed_tokens.weight", (vocab, hidden), "embed"
    yield f"{layer}.shared_head.norm.weight", (hidden,), "norm"
    yield f"{layer}.shared_head.head.weight", (vocab, hidden), "head"


def dense(c, head_dim, qkv_bias=False, qk_norm=False):
    """LLaMA, Qwen2, Qwen3 and Seed-OSS differ only in switches."""
    hidden, heads = c["hidden_size"], c["num_attention_heads"]
    yield from embeddings(c["vocab_size"], hidden, c["tie_word_embeddings"])
    for index in range(c["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        yield from layer_norms(layer, hidden)
        yield from attention(layer, hidden, heads, c.get("num_key_value_heads", heads), head_dim, qkv_bias, qk_norm)
        yield from swiglu(f"{layer}.mlp", hidden, c["intermediate_size"])


def qwen3_moe(c):
    hidden, head_dim = c["hidden_size"], c["head_dim"]
    yield from embeddings(c["vocab_size"], hidden, c["tie_word_embeddings"])
    for index in range(c["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        yield from layer_norms(layer, hidden)
        yield from attention(layer, hidden, c["num_attention_heads"], c["num_key_value_heads"], head_dim, qk_norm=True)
        if index in c["mlp_only_layers"] or (index + 1) % c["decoder_sparse_step"] != 0:
            yield from swiglu(f"{layer}.mlp", hidden, c["intermediate_size"])
            continue
        yield f"{layer}.mlp.gate.weight", (c["num_experts"], hidden), "router"
        for expert in range(c["num_experts"]):
            yield from swiglu(f"{layer}.mlp.experts.{expert}", hidden, c["moe_intermediate_size"])


def qwen2_moe(c):
    hidden, heads = c["hidden_size"], c["num_attention_heads"]
    yield from embeddings(c["vocab_size"], hidden)
    for index in range(c["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        yield from layer_norms(layer, hidden)
        yield from attention(layer, hidden, heads, c["num_key_value_heads"], hidden // heads, qkv_bias=True)
        if index in c["mlp_only_layers"] or (index + 1) % c["decoder_sparse_step"] != 0:
            yield from swiglu(f"{layer}.mlp", hidden, c["intermediate_size"])
            continue
        yield f"{layer}.mlp.gate.weight", (c["num_experts"], hidden), "router"
        for expert in range(c["num_experts"]):
            yield from swiglu(f"{layer}.mlp.experts.{expert}", hidden, c["moe_intermediate_size"])
        yield from swiglu(f"{layer}.mlp.shared_expert", hidden, c["shared_expert_intermediate_size"])
        yield f"{layer}.mlp.shared_expert_gate.weight", (1, hidden), "router"


def mixtral(c):
    hidden, heads = c["hidden_size"], c["num_attention_heads"]
    yield from embeddings(c["vocab_size"], hidden)
    for index in range(c["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        yield from layer_norms(layer, hidden)
        yield from attention(layer, hidden, heads, c["num_key_value_heads"], hidden // heads)
        yield f"{layer}.block_sparse_moe.gate.weight", (c["num_local_experts"], hidden), "router"
        for expert in range(c["num_local_experts"]):
            name = f"{layer}.block_sparse_moe.experts.{expert}"
            yield from swiglu(name, hidden, c["intermediate_size"], names=("w1", "w3", "w2"))


def moonvit(c):
    """Vision tower and projector of Kimi-VL; `c` is the whole config."""
    v, merge = c["vision_config"], c["vision_config"]["merge_kernel_size"]
    dim, patch, width = v["hidden_size"], v["patch_size"], v["intermediate_size"]
    tower, blocks = "vision_tower.patch_embed", "vision_tower.encoder.blocks"
    yield f"{tower}.proj.weight", (dim, 3, patch, patch), "patch"
    yield f"{tower}.proj.bias", (dim,), "small_bias"
    yield f"{tower}.pos_emb.weight", (v["init_pos_emb_height"], v["init_pos_emb_width"], dim), "small_position"
    for index in range(v["num_hidden_layers"]):
        for norm in ("norm0", "norm1"):
            yield from layer_norm(f"{blocks}.{index}.{norm}", dim)
        yield from linear(f"{blocks}.{index}.wqkv", 3 * dim, dim, True)
        yield from linear(f"{blocks}.{index}.wo", dim, dim, True)
        yield from linear(f"{blocks}.{index}.mlp.fc0", width, dim, True)
        yield from linear(f"{blocks}.{index}.mlp.fc1", dim, width, True)
    yield from layer_norm("vision_tower.encoder.final_layernorm", dim)
    merged = dim * merge[0] * merge[1]
    yield from layer_norm("multi_modal_projector.pre_norm", dim)
    yield from linear("multi_modal_projector.linear_1", merged, merged, True)
    yield from linear("multi_modal_projector.linear_2", c["text_config"]["hidden_size"], merged, True)


def layer_norm(name, dim):
    yield f"{name}.weight", (dim,), "norm"
    yield f"{name}.bias", (dim,), "bias"
