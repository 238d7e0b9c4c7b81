"""Continuous batching with chunked prompts; while KV is full the newest request steps aside.

python continuous_batching.py tcp://127.0.0.1:5755 [requests at a time]
"""

import sys
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from mla_client import Client, Entry, KvFull, KvLost, Lost, Step

VOCABULARY, STEP_TOKENS, OUTPUT = 1000, 64, 12


@dataclass
class Request:
    sequence: int
    tokens: list[int]  # the prompt, then what was made of it
    wanted: int
    computed: int = 0  # tokens that are in the KV cache


def forward(client: Client, step: Step, embeddings: Any, tokens: list[int]) -> Any:
    """The simplest model around attention: embeddings, and a norm after each layer."""
    x = embeddings[tokens]
    for layer in client.info.layers:
        x = x + step.run(layer, x)
        x /= np.sqrt((x * x).mean(1, keepdims=True))
    return x


def serve(client: Client, requests: list[Request], embeddings: Any, at_a_time: int) -> None:
    waiting, running, most = deque(requests), list[Request](), at_a_time
    while waiting or running:
        while waiting and len(running) < most:
            running.append(waiting.popleft())
        batch, left = list[tuple[Request, int]](), STEP_TOKENS
        for request in running:
            if (count := min(len(request.tokens) - request.computed, left)) > 0:
                batch.append((request, count))
                left -= count
        tokens = [token for r, n in batch for token in r.tokens[r.computed : r.computed + n]]
        try:
            with client.step([Entry(r.sequence, r.computed, n) for r, n in batch]) as step:
                x = forward(client, step, embeddings, tokens)
        except KvFull:
            if len(running) == 1:
                raise
            most = len(running) - 1  # nobody comes until somebody has gone
            waiting.appendleft(running.pop())
            if waiting[0].computed > 0:
                client.free(waiting[0].sequence)
            waiting[0].computed = 0
        except KvLost as error:  # workers died: its tokens are computed again
            batch[error.index or 0][0].computed = 0
        except Lost:  # under this step, which was aborted
            pass
        else:
            for (request, count), end in zip(batch, np.cumsum([n for _, n in batch]), strict=True):
                request.computed += count
                if request.computed == len(request.tokens):
                    request.tokens.append(int((embeddings @ x[end - 1]).argmax()))
                if len(request.tokens) == request.wanted:
                    client.free(request.sequence)
                    running.remove(request)
                    most = at_a_time


if __name__ == "__main__":
    random = np.random.default_rng(0)
    prompts = [random.integers(VOCABULARY, size=n).tolist() for n in random.integers(5, 150, 12)]
    requests = [Request(i + 1, list(p), len(p) + OUTPUT) for i, p in enumerate(prompts)]
    with Client(sys.argv[1]) as client:
        embeddings = random.standard_normal((VOCABULARY, client.info.hidden), np.float32)
        serve(client, requests, embeddings, int(sys.argv[2]) if len(sys.argv) > 2 else 8)
    for request in requests:
        print(request.sequence, *request.tokens[-OUTPUT:])
