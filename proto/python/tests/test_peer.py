"""Against a scripted peer: codes that a healthy service does not give, lost replies, replies that
are none, and what the client then does."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Iterator

import numpy as np
import pytest

import mla_client
from mla_client import AsyncClient, Client, Entry, _session, _wire, errors
from peer import HIDDEN, Answer, Asked, Peer, Script, hello, refuse, usual
from service import within

ENTRIES = [Entry(1, 0, 2)]
X = np.arange(2 * HIDDEN, dtype=np.float32).reshape(2, HIDDEN)


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as peer:
        yield peer


def kinds(peer: Peer) -> list[int]:
    return [asked.kind for asked in peer.asked]


def run_reply(run: Asked) -> Answer:
    """For a RUN that was asked for earlier."""
    payload = run.payload or b""
    head = _wire.HEADER.pack(_wire.MAGIC, 1, 0x83, run.id, 1, 0, 0, 0, 56, len(payload))
    return Answer(raw=[head + run.body[:12] + bytes(44), payload])


def refusing(kind: int, *answers: Answer | None) -> Script:
    """As usual, but for the first requests of that kind."""
    left = list(answers)

    def script(asked: Asked) -> Answer | None:
        return left.pop(0) if asked.kind == kind and left else usual(asked)

    return script


@pytest.mark.parametrize("code", sorted(set(errors.BY_CODE) - {10}))
def test_every_code(peer: Peer, code: int) -> None:
    with Client(peer.endpoint, timeout=5) as client:
        peer.script = refusing(_wire.OPEN, refuse(code, "so it is", 0))
        with pytest.raises(errors.BY_CODE[code], match="so it is") as caught:
            client.step(ENTRIES)
        assert caught.value.index == 0


def test_unknown_code(peer: Peer) -> None:
    with Client(peer.endpoint, timeout=5) as client:
        peer.script = refusing(_wire.STATS, refuse(99, "something new"))
        with pytest.raises(mla_client.MlaError, match="99: something new") as caught:
            client.stats()
        assert type(caught.value) is mla_client.MlaError
        assert caught.value.code == 99
        assert caught.value.index is None


def test_bytes_of_the_example(peer: Peer) -> None:
    """The OPEN that proto/README.md spells out, but for its ids."""
    with Client(peer.endpoint, timeout=5) as client:
        client.step([Entry(11, 128, 1), Entry(12, 0, 300)])
    body = peer.asked[-1].body
    assert body[8:].hex(" ", 8) == (
        "0b00000000000000 8000000001000000 0c00000000000000 000000002c010000"
    )


def test_not_ready_then_ready(peer: Peer) -> None:
    not_ready = refuse(11, "no group is ready")
    peer.script = refusing(_wire.HELLO, not_ready, not_ready)
    with Client(peer.endpoint, timeout=5):
        assert kinds(peer) == [_wire.HELLO] * 3
    peer.script = lambda _: not_ready
    with pytest.raises(mla_client.NotReady):
        Client(peer.endpoint, timeout=0.2)


def test_a_lost_reply_is_asked_for_again(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the same id, once; RUN, FORK and FREE never."""
    monkeypatch.setattr(_session, "REPEAT_S", 0.1)
    with Client(peer.endpoint, timeout=0.5) as client:
        for kind, call in (
            (_wire.OPEN, lambda: client.step(ENTRIES)),
            (_wire.TRUNCATE, lambda: client.truncate(1, 0)),
            (_wire.STATS, client.stats),
        ):
            peer.asked.clear()
            peer.script = refusing(kind, None)
            call()
            assert kinds(peer) == [kind, kind]
            assert peer.asked[0] == peer.asked[1]
        for kind, call in (
            (_wire.FREE, lambda: client.free(1)),
            (_wire.FORK, lambda: client.fork(1, 2, 1)),
        ):
            peer.asked.clear()
            peer.script = refusing(kind, None)
            with pytest.raises(mla_client.Timeout):
                call()
            assert kinds(peer)[-1] == kind


def test_a_second_reply_is_dropped(peer: Peer) -> None:
    with Client(peer.endpoint, timeout=5) as client:
        peer.script = lambda asked: [usual(asked), usual(asked)]
        for _ in range(3):
            client.stats()


def test_replies_overtake_each_other(peer: Peer) -> None:
    with Client(peer.endpoint, timeout=5) as client:
        step = client.step(ENTRIES)
        held: list[Asked] = []

        def reverse(asked: Asked) -> list[Answer] | Answer:
            if asked.kind != _wire.RUN:
                return usual(asked)
            held.append(asked)
            if len(held) < 3:
                return []
            return [run_reply(run) for run in reversed(held)]

        peer.script = reverse
        futures = [step.submit(0, X), step.submit(0, X + 1)]
        assert not futures[0].done()
        futures.append(step.submit(0, X + 2))
        assert client.first(futures) is futures[2]
        for i in (1, 0, 2):
            np.testing.assert_array_equal(futures[i].result(), X + i)
        assert all(future.done() for future in futures)


def test_no_more_runs_in_flight_than_allowed(peer: Peer) -> None:
    """Those beyond wait in the client, in their order."""
    peer.script = lambda asked: (
        hello(runs_queued_max=2) if asked.kind == _wire.HELLO else usual(asked)
    )
    with Client(peer.endpoint, timeout=5) as client:
        step = client.step(ENTRIES)
        peer.script = lambda asked: None if asked.kind == _wire.RUN else usual(asked)
        futures = [step.submit(0, X + i) for i in range(5)]
        client.stats()
        assert kinds(peer).count(_wire.RUN) == 2
        peer.stop()
        for future in futures:
            with pytest.raises(mla_client.ConnectionLost):
                future.result()


def test_a_run_without_a_reply(peer: Peer) -> None:
    """A timeout of its own leaves it alone; the client's ends the connection."""
    with Client(peer.endpoint, timeout=0.3) as client:
        step = client.step(ENTRIES)
        peer.script = refusing(_wire.RUN, None)
        future = step.submit(0, X)
        with pytest.raises(mla_client.Timeout):
            future.result(timeout=0.05)
        with pytest.raises(mla_client.Timeout):
            client.first([future], timeout=0.05)
        with pytest.raises(ValueError, match="no futures"):
            client.first([])
        np.testing.assert_array_equal(step.run(0, X), X)
        with pytest.raises(mla_client.Timeout):
            future.result()
        with pytest.raises(mla_client.ConnectionLost):
            step.run(0, X)
        with pytest.raises(mla_client.ConnectionLost):
            step.commit()
        with pytest.raises(mla_client.KvLost):
            peer.script = refusing(_wire.OPEN, refuse(20, "no such sequence", 0))
            client.step([Entry(1, 2, 1)])
        client.step(ENTRIES).commit()


def test_group_lost(peer: Peer) -> None:
    """The step is aborted, again while the service says that it is busy."""
    with Client(peer.endpoint, timeout=5) as client:
        busy = [refuse(15, "RUNs are in flight")] * 2

        def script(asked: Asked) -> Answer:
            if asked.kind == _wire.RUN:
                return refuse(33, "the workers died")
            return busy.pop() if asked.kind == _wire.CLOSE and busy else usual(asked)

        peer.script = script
        with pytest.raises(mla_client.GroupLost) as caught, client.step(ENTRIES) as step:
            step.run(0, X)
        assert isinstance(caught.value, mla_client.Lost)
        closes = [asked.body for asked in peer.asked if asked.kind == _wire.CLOSE]
        assert closes == [struct.pack("<QI", step.id, 2)] * 3


def test_commit_of_a_step_that_is_lost(peer: Peer) -> None:
    with Client(peer.endpoint, timeout=5) as client:
        peer.script = refusing(_wire.CLOSE, refuse(16, "it lost a group"))
        with pytest.raises(mla_client.StepLost), client.step(ENTRIES) as step:
            step.run(0, X)
        closes = [asked.body[8] for asked in peer.asked if asked.kind == _wire.CLOSE]
        assert closes == [1, 2]


def test_a_layer_that_failed_is_not_committed(peer: Peer) -> None:
    """After DEADLINE its KV is undefined, until the layer was run again."""
    with Client(peer.endpoint, timeout=5) as client:
        for again in (False, True):
            peer.asked.clear()
            peer.script = refusing(_wire.RUN, refuse(34, "too late"))
            step = client.step(ENTRIES)
            with pytest.raises(mla_client.Deadline):
                step.run(0, X)
            if again:
                step.run(0, X)
                step.commit()
            else:
                with pytest.raises(mla_client.Deadline):
                    step.commit()
            assert [asked.body[8] for asked in peer.asked if asked.kind == _wire.CLOSE] == (
                [1] if again else [2]
            )


@pytest.mark.parametrize(
    "raw",
    [
        [b"short"],
        [b"\0" * 48],
        [_wire.HEADER.pack(_wire.MAGIC, 2, 0x88, 0, 0, 0, 0, 0, 0, 0)],
        [_wire.HEADER.pack(_wire.MAGIC, 1, 0x88, 0, 0, 0, 0, 0, 5, 0)],
        [_wire.HEADER.pack(_wire.MAGIC, 1, 0x88, 0, 0, 0, 0, 0, 0, 9)],
        [_wire.HEADER.pack(_wire.MAGIC, 1, 0x88, 0, 0, 0, 0, 0, 0, 9), b"8 or 9?"],
        [_wire.HEADER.pack(_wire.MAGIC, 1, 0x80, 0, 0, 1, 0, 0, 5, 0) + b"wrong"],
        [_wire.HEADER.pack(_wire.MAGIC, 1, 0x88, 0, 0, 0, 0, 0, 0, 1), b"1", b"2"],
    ],
)
def test_what_is_no_reply_ends_the_connection(peer: Peer, raw: list[bytes]) -> None:
    with Client(peer.endpoint, timeout=5) as client:
        peer.script = lambda asked: Answer(raw=raw) if asked.kind == _wire.STATS else usual(asked)
        with pytest.raises(mla_client.ProtocolError):
            client.stats()
        peer.script = usual
        client.stats()
        assert kinds(peer).count(_wire.HELLO) == 2


def test_replies_of_a_wrong_type_or_length(peer: Peer) -> None:
    with Client(peer.endpoint, timeout=5) as client:
        for answer in (Answer(kind=0x84), Answer(b"12345")):
            peer.script = refusing(_wire.STATS, answer)
            with pytest.raises(mla_client.ProtocolError):
                client.stats()
        step = client.step(ENTRIES)
        for answer in (Answer(bytes(56), payload=b"few"), Answer(bytes(55)), Answer(bytes(56))):
            peer.script = refusing(_wire.RUN, answer)
            with pytest.raises(mla_client.ProtocolError):
                step.run(0, X)


def test_the_connection_ends_under_a_request(peer: Peer) -> None:
    """What belongs to no step is asked again on the next connection; RUNs are lost."""
    with Client(peer.endpoint, timeout=10) as client:
        step = client.step(ENTRIES)
        peer.script = lambda asked: None if asked.kind == _wire.RUN else usual(asked)
        future = step.submit(0, X)
        client.stats()
        peer.stop()
        peer.script = usual
        begin = time.monotonic()
        with pytest.raises(mla_client.ConnectionLost):
            future.result()
        assert time.monotonic() - begin < 5
        peer.start()
        client.free(1)  # it is no more already: nothing is sent
        assert kinds(peer)[-1] == _wire.HELLO
        client.step([Entry(2, 0, 2)]).commit()


def test_replies_that_came_before_the_end_count(peer: Peer) -> None:
    with Client(peer.endpoint, timeout=10) as client:
        step = client.step(ENTRIES)
        client.stats()
        future = step.submit(0, X)
        connection = client._session.connection
        assert connection is not None
        within(10, connection.readable)
        peer.stop()
        within(10, lambda: bool(connection.monitor.poll(0)))
        peer.start()
        client.stats()
        np.testing.assert_array_equal(future.result(), X)
        with pytest.raises(mla_client.ConnectionLost):
            step.commit()


def test_hello_required_is_a_lost_connection(peer: Peer) -> None:
    """The service was started again so fast that only ZeroMQ has noticed."""
    with Client(peer.endpoint, timeout=5) as client:
        step = client.step(ENTRIES)
        peer.script = refusing(_wire.RUN, refuse(10))
        with pytest.raises(mla_client.ConnectionLost):
            step.run(0, X)
        peer.script = refusing(_wire.STATS, refuse(10))
        client.stats()
        assert kinds(peer).count(_wire.HELLO) == 3


def test_closed(peer: Peer) -> None:
    client = Client(peer.endpoint, timeout=5)
    step = client.step(ENTRIES)
    future = step.submit(0, X)
    client.close()
    client.close()
    for call in (client.stats, future.result, lambda: step.run(0, X), step.commit):
        with pytest.raises(mla_client.Closed):
            call()
    step.abort()


def test_asyncio_open_that_is_cancelled_is_aborted(peer: Peer) -> None:
    async def main() -> None:
        async with AsyncClient(peer.endpoint, timeout=5) as client:
            peer.script = lambda asked: None if asked.kind == _wire.OPEN else usual(asked)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.step(ENTRIES), 0.2)
            await client.stats()

    asyncio.run(main())
    close = peer.asked[-2]
    assert (close.kind, close.body[8]) == (_wire.CLOSE, 2)
    assert close.body[:8] == peer.asked[-3].body[:8]


def test_asyncio_lost_connection_and_timeouts(peer: Peer) -> None:
    async def main() -> None:
        async with AsyncClient(peer.endpoint, timeout=0.5) as client:
            step = await client.step(ENTRIES)
            peer.script = lambda asked: None if asked.kind == _wire.RUN else usual(asked)
            with pytest.raises(mla_client.Timeout):
                await step.run(0, X)
            with pytest.raises(mla_client.ConnectionLost):
                await step.commit()
            async with client.step(ENTRIES) as step:
                peer.script = usual
                np.testing.assert_array_equal(await step.run(0, X), X)
            peer.script = lambda asked: None if asked.kind == _wire.RUN else usual(asked)
            step = await client.step(ENTRIES)
            futures = [step.submit(0, X) for _ in range(20)]
            await client.stats()
            await asyncio.to_thread(peer.stop)
            told = await asyncio.gather(*futures, return_exceptions=True)
            assert [type(error) for error in told] == [mla_client.ConnectionLost] * 20
            await step.abort()

    asyncio.run(main())


def test_asyncio_connection_that_ends_between_two_requests(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_session, "_AGAIN_S", 0.5)
    peer.script = lambda _: refuse(errors.NotReady.code)

    async def main() -> None:
        client = AsyncClient(peer.endpoint, timeout=20)
        connecting = asyncio.ensure_future(client.connect())
        while not peer.asked:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # the refusal is there, and the next HELLO is not due
        await asyncio.to_thread(peer.stop)
        peer.script = usual
        peer.start()
        await connecting
        assert (await client.stats()).blocks_total == 0
        await client.close()

    asyncio.run(main())


def test_asyncio_run_that_is_cancelled(peer: Peer) -> None:
    """The step waits for its reply all the same, and then closes."""
    runs: list[Asked] = []

    def script(asked: Asked) -> Answer | list[Answer]:
        if asked.kind == _wire.RUN:
            runs.append(asked)
            return []
        if asked.kind == _wire.STATS:
            return [*[run_reply(run) for run in runs], usual(asked)]
        return usual(asked)

    async def main() -> None:
        async with AsyncClient(peer.endpoint, timeout=5) as client:
            peer.script = script

            async def cancelled() -> None:
                async with client.step(ENTRIES) as step:
                    await asyncio.wait_for(step.run(0, X), 0.1)

            lane = asyncio.ensure_future(cancelled())
            await asyncio.sleep(0.3)
            assert not lane.done()
            assert kinds(peer)[-1] == _wire.RUN
            await client.stats()
            with pytest.raises(asyncio.TimeoutError):
                await lane
            assert (kinds(peer)[-1], peer.asked[-1].body[8]) == (_wire.CLOSE, 2)

    asyncio.run(main())
