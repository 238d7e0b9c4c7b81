"""DeepSeek models of transformers with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from mla_client.transformers import without_attention

VOCABULARY = 307
# Random weights of this size make tokens that depend on what came before them.
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "max_position_embeddings": 1024, "first_k_dense_replace": 1, "n_routed_experts": 8,
    "n_shared_experts": 1, "num_experts_per_tok": 2,
}  # fmt: skip
SMALL: dict[str, Any] = {
    "initializer_range": 0.06, "num_hidden_layers": 3, "hidden_size": 128,
    "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 48, "kv_lora_rank": 64,
    "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "intermediate_size": 256,
    "moe_intermediate_size": 64, "n_group": 2, "topk_group": 1,
}  # fmt: skip
LITE: dict[str, Any] = {
    "initializer_range": 0.022, "num_hidden_layers": 2, "hidden_size": 2048,
    "num_attention_heads": 16, "num_key_value_heads": 16, "q_lora_rank": None,
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "intermediate_size": 512, "moe_intermediate_size": 128,
    "rope_parameters": {
        "rope_type": "yarn", "factor": 40, "rope_theta": 10000.0, "beta_fast": 32, "beta_slow": 1,
        "mscale": 0.707, "mscale_all_dim": 0.707, "original_max_position_embeddings": 4096,
    },
}  # fmt: skip


def make(name: str, **options: Any) -> Any:
    """A model with random weights: V3's layout in small, or V2-Lite's layers."""
    torch.manual_seed(5)
    if name == "v3":
        config = transformers.DeepseekV3Config(**{**COMMON, **SMALL, **options})
        return transformers.DeepseekV3ForCausalLM(config).eval()
    config = transformers.DeepseekV2Config(**{**COMMON, **LITE, **options})
    return transformers.DeepseekV2ForCausalLM(config).eval()


def load(folder: Path, dtype: Any) -> Any:
    """Its other half, which never had attention weights."""
    with without_attention():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    assert not any("self_attn" in name for name, _ in model.named_parameters())
    return model
