"""A DeepSeek model whose experts are here and whose attention is on the service, with two
microbatches in flight: while one is in attention, the other is in its experts.

    python two_microbatches.py tcp://127.0.0.1:5755 MODEL_FOLDER

The service serves the same folder. Experts run on the first GPU, where there is one: give the
service the others (CUDA_VISIBLE_DEVICES).
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from mla_client import Client, Entry
from mla_client.transformers import without_attention


class Half:
    """A microbatch: sequences of one length, and where their tokens are on the way."""

    def __init__(self, sequences: range, tokens: torch.Tensor):
        self.sequences = sequences
        self.tokens = tokens  # [sequences, tokens]
        self.length = 0
        self.step: Any = None
        self.x: Any = None
        self.attention: Any = None  # of the next layer, under way


def forward(model: Any, client: Client, halves: list[Half]) -> None:
    """Adds a token to all sequences."""
    layers = model.model.layers
    with ExitStack() as steps:
        for half in halves:
            new = half.tokens[:, half.length :]
            entries = [Entry(s, half.length, new.shape[1]) for s in half.sequences]
            half.step = steps.enter_context(client.step(entries))
            half.x = model.model.embed_tokens(new)
            half.attention = half.step.submit(0, layers[0].input_layernorm(half.x))
        for index, layer in enumerate(layers):
            for half in halves:
                half.x = half.x + half.attention.result()
                half.x = half.x + layer.mlp(layer.post_attention_layernorm(half.x))
                if index + 1 < len(layers):
                    x = layers[index + 1].input_layernorm(half.x)
                    half.attention = half.step.submit(index + 1, x)
    for half in halves:
        half.length = half.tokens.shape[1]
        logits = model.lm_head(model.model.norm(half.x[:, -1]))
        half.tokens = torch.cat([half.tokens, logits.argmax(-1, keepdim=True)], 1)


def main(endpoint: str, folder: str) -> None:
    torch.set_grad_enabled(False)
    with without_attention():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    model.to("cuda:0" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, model.config.vocab_size, (8, 24), generator=generator)
    prompts = prompts.to(model.device)
    halves = [Half(range(4), prompts[:4]), Half(range(4, 8), prompts[4:])]
    with Client(endpoint) as client:
        forward(model, client, halves)  # the prompts
        began = time.perf_counter()
        for _ in range(15):
            forward(model, client, halves)
        rate = 15 * len(prompts) / (time.perf_counter() - began)
    for row in torch.cat([half.tokens for half in halves])[:, 24:].tolist():
        print(*row)
    print(f"{rate:.0f} tokens a second", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:3])
