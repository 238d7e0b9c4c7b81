"""A model in bf16 with its attention on the service: CPU ranks, and a GPU where there is one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from service import Service

torch: Any = pytest.importorskip("torch", reason="no torch here: attach() is NOT tested")
pytest.importorskip(
    "transformers", minversion="5.17", reason="no transformers 5.17 here: attach() is NOT tested"
)

from mla_client.transformers import attach  # noqa: E402
from models import VOCABULARY, load, make  # noqa: E402

RELATIVE_MAX = 2e-2


@pytest.mark.parametrize("name", ["v3", "v2-lite"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_bf16(name: str, device: str) -> None:
    """Logits of a prompt and of tokens after it. Without experts: they are chosen by comparing
    scores, and where two are nearly the same, rounding decides."""
    if device == "cuda" and not torch.cuda.is_available():
        assert not os.environ.get("MLA_EXPECT_GPU"), "torch finds no GPU"
        pytest.skip("no GPU here: attach() on a GPU is NOT tested")
    alone = make(name, first_k_dense_replace=8).to(torch.bfloat16)
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(3, VOCABULARY, (3, 90), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :30] = 0
    with tempfile.TemporaryDirectory(prefix="mla-transformers.") as folder:
        alone.save_pretrained(folder)
        alone = alone.to(device)
        model = load(Path(folder), torch.bfloat16).to(device)
        options = (
            "--backend", device, "--kv-blocks", "256",
            "--heartbeat-timeout-ms", "30000",
        )  # fmt: skip
        with Service(*options, checkpoint=Path(folder)) as service, torch.no_grad():
            attached = attach(model, service.endpoint, timeout=60)
            at = (mask.cumsum(1) - 1).clamp(min=0).to(device)
            ids, mask = ids.to(device), mask.to(device)
            expected = alone(ids, attention_mask=mask, position_ids=at).logits
            made = model(ids[:, :80], attention_mask=mask[:, :80], position_ids=at[:, :80])
            logits = [made.logits]
            for column in range(80, 90):
                made = model(ids[:, column : column + 1], attention_mask=mask[:, : column + 1],
                             position_ids=at[:, column : column + 1],
                             past_key_values=made.past_key_values)  # fmt: skip
                logits.append(made.logits)
            attached.close()
    difference = (torch.cat(logits, 1) - expected).float()[mask.bool()]
    relative = difference.norm() / expected.float()[mask.bool()].norm()
    print(f"{name} on {device}: logits differ by {relative:.1e} of their size")
    assert relative < RELATIVE_MAX
