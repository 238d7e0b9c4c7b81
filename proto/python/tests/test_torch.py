"""Tensors in, tensors out."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import mla_client
from golden import Case, error
from mla_client import AsyncClient, Client, Entry
from service import Service
from test_golden import BF16_TOLERANCE, TOLERANCE

torch: Any = pytest.importorskip("torch", reason="torch is not installed: tensors are not tested")

ENTRIES = [Entry(1, 0, 64)]


def test_f32(client: Client, case: Case) -> None:
    x = torch.from_numpy(case.inputs[0, 2])
    with client.step(ENTRIES) as step:
        y = step.run(0, x)
        assert y.dtype == torch.float32
        assert y.shape == x.shape
        assert error(y.numpy(), case.outputs[0, 2]) < TOLERANCE
        out = torch.empty_like(x)
        assert step.run(0, x, out=out) is out
        assert torch.equal(out, y)
        wide = torch.zeros(64, 512)
        step.run(0, x, out=wide[:, 256:])
        assert torch.equal(wide[:, 256:], y)
        assert torch.equal(step.run(0, x.t().contiguous().t()), y)
        assert torch.equal(step.run(0, x[None])[0], y)
        x.requires_grad_()
        assert torch.equal(step.run(0, x), y)
    client.free(1)


def test_bf16(client: Client, case: Case) -> None:
    x = torch.from_numpy(case.inputs[0, 2]).to(torch.bfloat16)
    with client.step(ENTRIES) as step:
        y = step.run(0, x)
        assert y.dtype == torch.bfloat16
        assert error(y.float().numpy(), case.outputs[0, 2]) < BF16_TOLERANCE
        out = torch.empty(64, 256, dtype=torch.bfloat16)
        step.run(0, x, out=out)
        assert torch.equal(out, y)
        assert step.run(0, x, dtype=torch.float32).dtype == torch.float32
        with pytest.raises(mla_client.Dtype):
            step.run(0, x.to(torch.float16))
        with pytest.raises(mla_client.Dtype):
            step.run(0, x, dtype=torch.float64)
    client.free(1)


def test_buffers(service: Service, case: Case) -> None:
    """Tensors in shared memory are neither copied on the way in nor on the way out."""
    with Client(service.endpoint, timeout=20) as client, client.step(ENTRIES) as step:
        assert client._session.connection is not None
        region = client._session.connection.region
        assert region is not None
        for dtype in (torch.float32, torch.bfloat16):
            x = client.buffer((64, 256), dtype)
            out = client.buffer((64, 256), dtype)
            assert isinstance(x, torch.Tensor)
            assert x.dtype == dtype
            assert 0 <= x.data_ptr() - region.base < region.size
            x.copy_(torch.from_numpy(case.inputs[0, 2]))
            step.run(0, x, out=out)
            y = step.run(0, x)
            assert 0 <= y.data_ptr() - region.base < region.size
            assert torch.equal(y, out)
            assert error(y.float().numpy(), case.outputs[0, 2]) < BF16_TOLERANCE
    assert error(y.float().numpy(), case.outputs[0, 2]) < BF16_TOLERANCE


def test_asyncio(service: Service, case: Case) -> None:
    async def main() -> None:
        async with AsyncClient(service.endpoint, timeout=20) as client:
            y = await client.run_layer(ENTRIES, 0, torch.from_numpy(case.inputs[0, 2]))
            assert error(y.numpy(), case.outputs[0, 2]) < TOLERANCE

    asyncio.run(main())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_tensors_of_a_gpu(client: Client, case: Case) -> None:
    x = torch.from_numpy(case.inputs[0, 2]).cuda()
    with client.step(ENTRIES) as step:
        y = step.run(0, x)
        assert y.device == x.device
        out = torch.empty_like(x)
        step.run(0, x, out=out)
        assert torch.equal(out, y)
    assert error(y.cpu().numpy(), case.outputs[0, 2]) < TOLERANCE
    client.free(1)
