"""The asyncio client against the service."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import mla_client
from golden import Case, error
from mla_client import AsyncClient, Entry
from service import Service
from test_golden import TOLERANCE


@pytest.mark.parametrize("shared", [True, False])
def test_32_runs_in_flight(service: Service, case: Case, shared: bool) -> None:
    """Four steps of all sequences, their RUNs at once, twice what the service takes at a time."""

    async def main() -> None:
        async with AsyncClient(service.endpoint, timeout=20, shared_memory=shared) as client:
            assert client.shared == shared
            assert client.info.runs_queued_max == 16

            async def forward(lane: int) -> None:
                sequences = [lane * 10 + i for i in range(len(case.lengths))]
                order = np.random.default_rng(lane).permutation(len(sequences))
                prompt = [order[0], order[1]]
                entries = [Entry(sequences[i], 0, case.lengths[i]) for i in prompt]
                async with client.step(entries) as step:
                    x = {
                        layer: np.concatenate([case.inputs[layer, i] for i in prompt])
                        for layer in case.layers
                    }
                    wanted = {
                        layer: np.concatenate([case.outputs[layer, i] for i in prompt])
                        for layer in case.layers
                    }
                    asked = [layer for layer in case.layers for _ in range(4)]
                    runs = [step.submit(layer, x[layer]) for layer in asked]
                    for layer, y in zip(asked, await asyncio.gather(*runs), strict=True):
                        assert error(y, wanted[layer]) < TOLERANCE
                await client.free(*[sequences[i] for i in prompt])

            await asyncio.gather(*[forward(lane) for lane in range(4)])
            assert (await client.stats()).runs_in_flight == 0

    asyncio.run(main())


def test_all_calls(service: Service, case: Case) -> None:
    async def main() -> None:
        client = AsyncClient(service.endpoint, timeout=20)
        with pytest.raises(mla_client.Closed):
            _ = client.info
        await client.connect()
        assert (await client.hello()).hidden == case.hidden
        assert client.epoch > 0
        y = await client.run_layer([Entry(1, 0, 64)], 0, case.inputs[0, 2])
        assert error(y, case.outputs[0, 2]) < TOLERANCE
        await client.fork(1, 2, 32)
        await client.truncate(1, 63)
        step = await client.step([Entry(1, 63, 1), Entry(2, 32, 1)])
        assert step.opened.decode_rows == 2
        assert [entry.sequence for entry in step.entries] == [1, 2]
        x = client.buffer((2, case.hidden))
        x[...] = case.inputs[0, 2][[63, 32]]
        out = client.buffer((2, case.hidden))
        assert await step.run(0, x, out=out) is out
        assert error(out, case.outputs[0, 2][[63, 32]]) < TOLERANCE
        assert step.times is not None
        assert step.times.compute_ns > 0
        await step.abort()
        with pytest.raises(KeyError):
            async with client.step([Entry(1, 63, 1)]) as step:
                raise KeyError
        with pytest.raises(mla_client.Layer):
            async with client.step([Entry(1, 63, 1)]) as step:
                await step.run(9, x[:1])
        with pytest.raises(mla_client.Closed):
            _ = client.step([Entry(1, 63, 1)]).id
        await client.free(1, 2)
        await client.close()
        with pytest.raises(mla_client.Closed):
            await client.stats()

    asyncio.run(main())
