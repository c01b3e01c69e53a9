"""Adapters that PEFT itself wrote, and log-probabilities of the models that it put them into: python tools/golden/adapters.py

They are of the tiny models of models/tests/fixtures, in bfloat16; what PEFT computes with is float32 of the same numbers.
Needs peft beside requirements.txt.
"""

import json
import shutil

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from common import MODEL_FIXTURES, write_json

PROMPT = [3, 17, 42, 5, 5, 60, 1, 33, 20, 9, 51, 2, 44]

# Whole lists of layers would be the same again: one or two are enough, and files stay small.
CASES = {
    "llama": dict(r=2, lora_alpha=5, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
                  layers_to_transform=[1], rank_pattern={"q_proj": 3}, alpha_pattern={"model.layers.1.mlp.down_proj": 1}),
    "deepseek_v3": dict(r=2, lora_alpha=4, use_rslora=True, layers_to_transform=[0, 2],
                        target_modules=["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]),
}


def main():
    for name, settings in CASES.items():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_pretrained(MODEL_FIXTURES / name, dtype=torch.float32, attn_implementation="eager").eval()
        # B is not zeros: the adapter changes something before it was trained.
        model = get_peft_model(model, LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **settings)).eval()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.copy_((0.2 * torch.randn(parameter.shape)).bfloat16().float())
        ids = torch.tensor([PROMPT])
        with torch.no_grad():
            log_probs = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0, -1].double(), -1).float()
            with model.disable_adapter():
                base = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0, -1].double(), -1).float()
        folder = MODEL_FIXTURES / "adapters" / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        tensors = {key: value.bfloat16() for key, value in load_file(folder / "adapter_model.safetensors").items()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = name
        write_json(folder / "adapter_config.json", config)
        write_json(folder / "golden.json", {"prompt_token_ids": PROMPT})
        save_file({"log_probs": log_probs, "base_log_probs": base}, folder / "golden.safetensors")
        print(name, len(tensors), "tensors, moved by", float((log_probs - base).abs().max()))


if __name__ == "__main__":
    main()
