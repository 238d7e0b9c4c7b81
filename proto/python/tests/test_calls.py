"""Every call of the synchronous client, and what it tells."""

from __future__ import annotations

import numpy as np
import pytest

import mla_client
from golden import Case, error
from mla_client import Client, Entry, Fork, Truncation, _wire
from mla_client._connection import Request
from service import ROOT, Service
from test_golden import TOLERANCE

CORPUS = ROOT / "tests/fuzz/corpus/message"


def test_info(one: Client, case: Case) -> None:
    info = one.info
    assert (info.hidden, info.heads, info.q_lora, info.latent) == (256, 8, 96, 64)
    assert (info.nope, info.rope, info.v) == (32, 16, 32)
    assert info.layers == tuple(case.layers)
    assert (info.groups, info.ranks, info.block_tokens) == (1, 1, 64)
    assert (info.blocks_total, info.context_max, info.step_tokens_max) == (64, 1024, 600)
    assert (info.steps_open_max, info.runs_queued_max, info.prefill_tokens_max) == (4, 16, 96)
    assert (info.decode_tokens_max, info.decode_rows_max) == (1, 256)
    assert one.hello() == one.info
    assert one.hello() is one.info


def test_steps_and_sequences(client: Client, case: Case) -> None:
    total = client.info.blocks_total
    with client.step([Entry(1, 0, 64), (2, 0, 1)]) as step:
        assert step.opened == (step.id, 1, 64, 2, total - 2)
        assert step.entries == [Entry(1, 0, 64), Entry(2, 0, 1)]
        assert step.times is None
        x = np.concatenate([case.inputs[0, 2], case.inputs[0, 0]])
        expected = np.concatenate([case.outputs[0, 2], case.outputs[0, 0]])
        y = step.run(0, x)
        assert error(y, expected) < TOLERANCE
        assert step.times is not None
        assert step.times.replied_ns > step.times.received_ns > 0
        future = step.submit(0, x.reshape(5, 13, 256))  # any shape that ends in hidden
        np.testing.assert_array_equal(future.result().reshape(65, 256), y)
        assert future.done()
        assert future.times is not None
        assert future.times.compute_ns > 0
        out = np.empty_like(x)
        assert step.run(0, x, out=out) is out
        np.testing.assert_array_equal(out, y)
        odd = np.empty((256, 65), np.float32).T  # an output that is not contiguous
        assert step.run(0, x, out=odd) is odd
        np.testing.assert_array_equal(odd, y)
        np.testing.assert_array_equal(step.run(0, np.asfortranarray(x)), y)
        half = step.run(0, x, dtype="bfloat16")
        assert half.itemsize == 2
        assert step.commit() == total - 2
    assert client.fork(1, 3, 10) == total - 2
    assert client.fork_many([Fork(1, 4, 64), (4, 5, 64)]) == total - 2
    assert client.truncate(1, 10) == total - 2
    assert client.truncate_many([Truncation(4, 3), (5, 2)]) == total - 2
    assert client.stats().sequences == 5
    assert client.stats().blocks_used == 2
    assert client.free(1, 3, 4) == total - 2
    assert client.free(5) == total - 1
    step = client.step([Entry(2, 1, 1)])
    step.abort()
    step.abort()
    assert client.free(2) == total
    assert client.epoch > 0


def test_stats(one: Client) -> None:
    before = one.stats()
    one.run_layer([Entry(1, 0, 3)], 0, np.zeros((3, 256), np.float32))
    one.free(1)
    after = one.stats()
    assert after.requests - before.requests == 5
    assert after.runs - before.runs == 1
    assert after.rows_prefill - before.rows_prefill == 3
    assert after.clients == 1
    assert after.blocks_total == one.info.blocks_total


def test_decode_of_many(client: Client) -> None:
    """An OPEN with more entries than a step's usual few."""
    entries = [Entry(100 + i, 0, 1) for i in range(40)]
    x = np.random.default_rng(1).standard_normal((40, 256)).astype(np.float32)
    with client.step(entries) as step:
        y = step.run(0, x)
        assert step.opened.decode_rows == 40
    with client.step([Entry(entry.sequence, 1, 1) for entry in entries]):
        pass
    client.free(*[entry.sequence for entry in entries])
    for i in (0, 39):
        alone = client.run_layer([Entry(7, 0, 1)], 0, x[i])
        assert alone.shape == (256,)
        assert error(alone, y[i]) < TOLERANCE
        client.free(7)


def test_two_clients_do_not_see_each_other(service: Service, case: Case) -> None:
    with Client(service.endpoint, timeout=20) as a, Client(service.endpoint, timeout=20) as b:
        a.step([Entry(1, 0, 5)]).commit()
        with pytest.raises(mla_client.SequenceUnknown):
            b.step([Entry(1, 5, 1)])
        b.step([Entry(1, 0, 3)]).commit()
        a.free(1)
        b.truncate(1, 2)


def corpus(name: str) -> tuple[tuple[int, ...], bytes]:
    head = (CORPUS / name).read_bytes()
    return _wire.HEADER.unpack_from(head), head[_wire.HEADER.size :]


def test_requests_are_those_of_the_corpus() -> None:
    """The files that the specification names, one head of each kind."""
    bodies = {
        "hello": _wire.hello(),
        "open": _wire.open_step(100, [Entry(11, 128, 1), Entry(12, 0, 300)]),
        "close": _wire.close_step(100, 1),
        "fork": _wire.fork([Fork(11, 13, 100)]),
        "truncate": _wire.truncate([Truncation(11, 100)]),
        "free": _wire.free([11, 12]),
        "stats": b"",
    }
    for name, body in bodies.items():
        _, _, kind, id_, *_, count, _, _ = corpus(name)[0]
        assert _wire.head(kind, id_, body, count) == (CORPUS / name).read_bytes()


def test_replies_of_the_corpus() -> None:
    fields, body = corpus("open-reply")
    assert _wire.opened(body) == (100, 1, 300, 2, 890)
    fields, body = corpus("hello-reply")
    assert len(_wire.info(body, fields[7]).layers) == fields[7]
    fields, body = corpus("stats-reply")
    assert len(_wire.stats(body)) == 18
    fields, body = corpus("share-reply")
    assert _wire.shared(body, fields[7]).path.startswith("/")
    fields, body = corpus("run-reply")
    assert _wire.run_times(body).replied_ns >= _wire.run_times(body).received_ns
    fields, body = corpus("error")
    request = Request(_wire.OPEN)
    request.status, request.index, request.body = fields[5], fields[6], body
    with pytest.raises(mla_client.KvFull, match="12 blocks are free, sequence 12 needs more"):
        request.raise_error()
