"""What README.md shows of the client can be run."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np

import mla_client
from service import Service

README = Path(__file__).resolve().parents[1] / "README.md"


def test_examples(service: Service) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    # Those with a model are tested in test_transformers.py.
    blocks = [block for block in blocks if "model" not in block]
    assert len(blocks) == 4
    ran: list[int] = []

    def norm(layer: int, hidden: Any) -> Any:
        ran.append(layer)
        return hidden

    rows = np.ones((301, 256), np.float32)
    with mla_client.Client(service.endpoint, timeout=20) as client:
        names = {
            "mla_client": mla_client,
            "client": client,
            "endpoint": service.endpoint,
            "hidden": rows[:12],
            "norm": norm,
            "mlp": lambda _, hidden: hidden,
            "microbatches": [[(21, 0, 5)], [(22, 0, 1), (23, 0, 2)]],
            "entries": [mla_client.Entry(31, 0, 1)],
            "layer": 0,
        }
        # Each block has a client of its own: steps 1 and 2, and no sequence yet.
        inputs = [None, {1: rows[:5], 2: rows[:3]}, rows, None]
        for block, x in zip(blocks, inputs, strict=True):
            text = block.replace("tcp://127.0.0.1:5755", service.endpoint)
            text = text.replace("Entry(1, 12, 1)", "Entry(1, 0, 1)")
            code = compile(text, "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            result = eval(code, {**names, "x": x})
            if inspect.iscoroutine(result):
                asyncio.run(result)
        assert ran == list(client.info.layers)
