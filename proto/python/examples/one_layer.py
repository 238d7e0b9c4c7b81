"""One attention layer by hand: a prompt, a token after it, and a second sequence that shares both.

python one_layer.py tcp://127.0.0.1:5755
"""

from __future__ import annotations

import sys

import numpy as np

from mla_client import Client, Entry


def main(endpoint: str) -> None:
    with Client(endpoint) as client:
        layer = client.info.layers[0]
        shape = (14, client.info.hidden)
        x = np.random.default_rng(0).standard_normal(shape, np.float32)

        with client.step([Entry(sequence=1, start=0, tokens=12)]) as step:
            prompt = step.run(layer, x[:12])
        with client.step([Entry(sequence=1, start=12, tokens=1)]) as step:
            token = step.run(layer, x[12:13])

        # The sequence goes on in two ways, and its KV is there once.
        client.fork(1, 2, length=13)
        with client.step([Entry(1, 13, 1), Entry(2, 13, 1)]) as step:
            both = step.run(layer, np.stack([x[13], -x[13]]))
        client.free(1, 2)

        # All at once it is the same.
        with client.step([Entry(3, 0, 14)]) as step:
            whole = step.run(layer, x)
        client.free(3)
        apart = np.abs(np.concatenate([prompt, token, both[:1]]) - whole).max()
        print(f"layer {layer}: rows of {client.info.hidden}, at most {apart:.1e} apart")


if __name__ == "__main__":
    main(sys.argv[1])
