"""What a client sees when workers die, hang, or the whole service is started again under it."""

from __future__ import annotations

import asyncio
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import mla_client
from golden import Case, error
from mla_client import AsyncClient, Client, Entry
from service import Service, within
from test_golden import TOLERANCE


def check(client: Client, case: Case, sequence: int) -> None:
    """The whole sequence from its start."""
    x, expected = case.inputs[0, 4], case.outputs[0, 4]
    with client.step([Entry(sequence, 0, 199)]) as step:
        assert error(step.run(0, x[:199]), expected[:199]) < TOLERANCE
    with client.step([Entry(sequence, 199, 1)]) as step:
        assert error(step.run(0, x[199:]), expected[199:]) < 10 * TOLERANCE


def open_again(client: Client, entries: list[Entry]) -> None:
    """OPEN, as soon as there is a group again."""
    deadline = time.monotonic() + 30
    while True:
        try:
            client.step(entries).abort()
        except mla_client.NotReady:
            assert time.monotonic() < deadline
            client.wait_ready()
        else:
            return


@pytest.mark.parametrize("shared", [True, False])
def test_workers_die(case: Case, shared: bool) -> None:
    """GROUP_LOST or STEP_LOST, then KV_LOST until the sequence is opened from 0."""
    with (
        Service() as service,
        Client(service.endpoint, timeout=30, shared_memory=shared) as client,
    ):
        check(client, case, 1)
        epoch = client.epoch
        with pytest.raises(mla_client.Lost) as caught, client.step([Entry(1, 200, 1)]) as step:
            service.signal("mla-worker", signal.SIGSTOP)
            future = step.submit(0, case.inputs[0, 0])
            assert client.stats().runs_in_flight == 1
            assert not future.done()
            service.signal("mla-worker", signal.SIGKILL)
            future.result()
        assert isinstance(caught.value, mla_client.GroupLost)
        with pytest.raises(mla_client.KvLost) as lost:
            open_again(client, [Entry(2, 0, 1), Entry(1, 200, 1)])
        assert lost.value.index == 1
        with pytest.raises(mla_client.KvLost):
            client.fork(1, 3, 5)
        with pytest.raises(mla_client.KvLost):
            client.truncate(1, 5)
        assert client.epoch > epoch
        check(client, case, 1)
        client.free(1)
        assert client.stats().sequences == 0
        assert client.stats().blocks_used == 0


def test_a_run_takes_too_long(case: Case) -> None:
    """DEADLINE; the workers that hang are replaced."""
    with (
        Service("--run-timeout-ms", "1500") as service,
        Client(service.endpoint, timeout=30) as client,
    ):
        with pytest.raises(mla_client.Deadline), client.step([Entry(1, 0, 1)]) as step:
            service.signal("mla-worker", signal.SIGSTOP)
            step.run(0, case.inputs[0, 0])
        open_again(client, [Entry(2, 0, 1)])
        check(client, case, 1)


def test_the_service_is_started_again(case: Case) -> None:
    """A lost connection looks like a lost group: KV_LOST, and then everything from the start."""
    with Service() as service, Client(service.endpoint, timeout=30) as client:
        check(client, case, 1)
        client.fork(1, 2, 64)
        buffer = client.buffer((1, case.hidden))
        buffer[...] = case.inputs[0, 0]
        step = client.step([Entry(1, 200, 1)])
        future = step.submit(0, buffer)
        future.result()
        service.signal("mla-coordinator", signal.SIGKILL)
        with pytest.raises(mla_client.ConnectionLost):
            while True:
                step.run(0, buffer)
        with pytest.raises(mla_client.KvLost) as caught:
            client.step([Entry(5, 0, 1), Entry(1, 200, 1)])
        assert caught.value.index == 1
        with pytest.raises(mla_client.KvLost):
            client.fork(1, 3, 5)
        with pytest.raises(mla_client.KvLost):
            client.truncate(2, 5)
        with pytest.raises(mla_client.SequenceUnknown):
            client.truncate(9, 5)
        with pytest.raises(mla_client.SequenceUnknown) as unknown:
            client.free(2, 9)
        assert unknown.value.index == 1
        client.free(2)
        with pytest.raises(mla_client.SequenceUnknown):
            client.step([Entry(2, 5, 1)])
        check(client, case, 1)
        assert client.shared
        # A buffer of the first connection is an array like any other now.
        with client.step([Entry(6, 0, 1)]) as step:
            assert error(step.run(0, buffer), case.outputs[0, 0]) < TOLERANCE
        # Started again while the client is idle, and this time from the outside.
        service.stop()
        service.start()
        assert client.stats().sequences == 0
        check(client, case, 1)


def test_asyncio_goes_on_after_a_restart(case: Case) -> None:
    """Several lanes, each of which begins again when something of it is lost."""

    async def lane(
        client: AsyncClient, sequence: int, ends: list[int], stop: asyncio.Event
    ) -> None:
        done = 0
        while not stop.is_set() or ends[sequence] == 0:
            try:
                async with client.step([Entry(sequence, done, 1 if done else 199)]) as step:
                    x = case.inputs[0, 4][done : done + 199 if not done else done + 1]
                    y = await step.run(0, x)
                expected = case.outputs[0, 4][done : done + len(x)]
                assert error(y, expected) < 10 * TOLERANCE
                done += len(x)
                if done == 200:
                    await client.free(sequence)
                    done = 0
                    ends[sequence] += 1
            except mla_client.NotReady:
                await client.wait_ready()
            except mla_client.Lost:
                done = 0

    async def main(service: Service) -> None:
        async with AsyncClient(service.endpoint, timeout=30) as client:
            ends = [0] * 4
            stop = asyncio.Event()
            lanes = [asyncio.ensure_future(lane(client, i, ends, stop)) for i in range(4)]
            for program in ("mla-worker", "mla-coordinator"):
                while min(ends) == 0:
                    await asyncio.sleep(0.01)
                service.signal(program, signal.SIGKILL)
                await asyncio.sleep(0.05)
                ends[:] = [0] * 4
            stop.set()
            await asyncio.gather(*lanes)

    with Service() as service:
        asyncio.run(main(service))
        within(5, lambda: bool(service.pids("mla-worker")))


def test_a_client_that_waits_for_the_service(case: Case) -> None:
    """Connecting takes as long as the service needs to be there."""
    with Service() as service, ThreadPoolExecutor(1) as other:
        service.stop()

        def rows() -> int:
            with Client(service.endpoint, timeout=60) as client:
                return len(client.run_layer([Entry(1, 0, 1)], 0, case.inputs[0, 0]))

        waiting = other.submit(rows)
        time.sleep(0.2)
        assert not waiting.done()
        service.start()
        assert waiting.result() == 1
