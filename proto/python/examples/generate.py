"""Tokens per second of generate(), and where the time goes: alone, or attached to a service.

python generate.py MODEL_FOLDER [--endpoint tcp://127.0.0.1:5755] [--batch 8 ...]
python generate.py MODEL_FOLDER --make      writes one there: V2-Lite's layers, random weights
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DeepseekV2Config, DeepseekV2ForCausalLM

from mla_client import Client, Step
from mla_client.transformers import attach, without_attention

COMPUTING = "of it workers computing"


class Clock:
    """Seconds by name. A GPU is waited for, so that what was started before does not count."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            synchronize()
            began = time.perf_counter()
            result = call(*args, **kwargs)
            synchronize()
            self.add(name, time.perf_counter() - began)
            return result

        return timed


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class TimedClient(Client):
    """A client that tells the clock what its steps take."""

    clock = Clock()

    def step(self, entries: Any) -> Step:
        step: Step = self.clock.timed("OPEN and CLOSE", super().step)(entries)
        run = self.clock.timed("RUN", step.run)

        def run_and_look(*args: Any, **kwargs: Any) -> Any:
            result = run(*args, **kwargs)
            if (times := step.times) is not None:
                self.clock.add(COMPUTING, (times.compute_ns + times.collective_ns) / 1e9)
            return result

        step.run = run_and_look  # type: ignore[method-assign]
        step.commit = self.clock.timed("OPEN and CLOSE", step.commit)  # type: ignore[method-assign]
        return step


def load(options: argparse.Namespace, stack: ExitStack) -> tuple[Any, Clock]:
    dtype = getattr(torch, options.dtype)
    if options.endpoint is None:
        model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=dtype)
        clock = Clock()
        for layer in model.model.layers:
            layer.self_attn.forward = clock.timed("attention", layer.self_attn.forward)
    else:
        with without_attention():
            model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=dtype)
        clock = TimedClient.clock
        attach(model, stack.enter_context(TimedClient(options.endpoint)))
    return model.eval().to(options.device), clock


def measure(options: argparse.Namespace, stack: ExitStack) -> None:
    model, clock = load(options, stack)
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch, options.prompt)
    ids = torch.randint(3, model.config.vocab_size, shape, generator=generator)
    ids = ids.to(options.device)

    def generate(count: int) -> float:
        """Seconds for so many tokens."""
        clock.seconds.clear()
        synchronize()
        began = time.perf_counter()
        model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count,
            min_new_tokens=count, pad_token_id=0,
        )  # fmt: skip
        synchronize()
        return time.perf_counter() - began

    generate(2)
    first = generate(1)
    prompt, tokens = dict(clock.seconds), options.tokens
    seconds = generate(1 + tokens) - first
    rate = options.batch * tokens / seconds
    print(f"prompts {first * 1e3:.0f} ms, then {rate:.1f} tokens a second")
    print(f"{'a token of all sequences':<28} {seconds / tokens * 1e3:8.2f} ms")
    parts = {name: spent - prompt.get(name, 0.0) for name, spent in clock.seconds.items()}
    parts["experts and the rest"] = seconds - sum(
        spent for name, spent in parts.items() if name != COMPUTING
    )
    for name, spent in parts.items():
        print(f"  {name:<26} {spent / tokens * 1e3:8.2f} ms")


def make(folder: str) -> None:
    config = DeepseekV2Config(
        num_hidden_layers=2, hidden_size=2048, num_attention_heads=16, num_key_value_heads=16,
        q_lora_rank=None, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64,
        v_head_dim=128, intermediate_size=10944, moe_intermediate_size=1408, n_routed_experts=64,
        n_shared_experts=2, num_experts_per_tok=6, first_k_dense_replace=1, vocab_size=102400,
        max_position_embeddings=163840, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    DeepseekV2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokens per second, alone or on a service.")
    parser.add_argument("folder", help="a DeepSeek checkpoint")
    parser.add_argument("--make", action="store_true", help="writes one: 2 layers of V2-Lite")
    parser.add_argument("--endpoint", help="of a service with this checkpoint; without: alone")
    parser.add_argument("--batch", type=int, default=8, help="prompts")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each")
    parser.add_argument("--tokens", type=int, default=64, help="to be made of each")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.make:
        make(options.folder)
        return
    with torch.inference_mode(), ExitStack() as stack:
        measure(options, stack)


if __name__ == "__main__":
    main()
