"""The examples run, and their output is right."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mla_client
from service import Service

PATIENT = ("--heartbeat-timeout-ms", "30000")  # on a machine with other work
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module")
def crowded() -> Iterator[Service]:
    """So few blocks that eight requests don't fit."""
    with Service("--kv-blocks", "10", "--prefill-tokens-max", "48", *PATIENT) as running:
        yield running


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_layer(service: Service) -> None:
    said = run("one_layer.py", service.endpoint)
    assert float(said.split()[-2]) < 1e-4


def test_continuous_batching(service: Service, crowded: Service) -> None:
    """Whatever shares a step with a request, and however often it begins again, its tokens are the
    same."""
    alone = run("continuous_batching.py", service.endpoint, "1")
    assert len(alone.splitlines()) == 12
    assert run("continuous_batching.py", service.endpoint) == alone
    assert run("continuous_batching.py", crowded.endpoint) == alone
    with mla_client.Client(crowded.endpoint) as client:
        assert client.stats().errors > 0  # else it was not that crowded


def test_two_microbatches_and_generate() -> None:
    """The tokens are those of the model alone; what a token's time is made of adds up."""
    torch: Any = pytest.importorskip("torch", reason="no torch here: examples are NOT tested")
    reason = "no transformers 5.17 here: examples are NOT tested"
    pytest.importorskip("transformers", minversion="5.17", reason=reason)
    from models import VOCABULARY, make

    model = make("v3")
    prompts = torch.randint(3, VOCABULARY, (8, 24), generator=torch.Generator().manual_seed(0))
    expected = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=16,
        min_new_tokens=16, eos_token_id=None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="mla-transformers.") as folder:
        model.save_pretrained(folder)
        with Service(*PATIENT, checkpoint=Path(folder)) as running:
            said = run("two_microbatches.py", running.endpoint, folder)
            times = ("--tokens", "6", "--dtype", "float32")
            attached = run("generate.py", folder, *times, "--endpoint", running.endpoint)
        alone = run("generate.py", folder, *times)
    made = [[int(token) for token in line.split()] for line in said.splitlines()]
    assert made == expected[:, 24:].tolist()
    for told, parts in ((alone, 2), (attached, 4)):
        name, *ms = zip(
            *(line.rsplit(maxsplit=2)[:2] for line in told.splitlines()[1:]), strict=True
        )
        took = dict(zip(name, map(float, ms[0]), strict=True))
        whole = took.pop("a token of all sequences")
        assert len(took) == parts
        took.pop("  of it workers computing", None)
        assert sum(took.values()) == pytest.approx(whole, abs=0.05)
