"""Errors that the service itself gives; each is its own class, and tells the entry at fault."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import mla_client
from mla_client import Client, Entry, _wire, errors
from raw import Raw, run_body
from service import ROOT, Service


@pytest.fixture
def raw(service: Service) -> Iterator[Raw]:
    with Raw(service) as peer:
        yield peer


def zeros(client: Client, rows: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.zeros((rows, client.info.hidden), np.float32)


def test_every_code_of_the_specification_is_a_class() -> None:
    text = (ROOT / "proto/README.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \| ", text, re.M)
    assert len(rows) == len(errors.BY_CODE) == 31
    for code, name in rows:
        camel = "".join(word.capitalize() for word in name.split("_"))
        error = errors.BY_CODE[int(code)]
        assert error.__name__ == camel
        assert getattr(mla_client, camel) is error
        assert error.advice != errors.MlaError.advice


def test_text_tells_what_happened_where_and_what_to_do(one: Client) -> None:
    with pytest.raises(mla_client.SequenceUnknown) as caught:
        one.step([Entry(1, 0, 1), Entry(99, 5, 1)])
    assert caught.value.index == 1
    assert caught.value.code == 20
    assert re.match(
        r"SequenceUnknown 20: .*99.* \(entry 1\)\. Open the sequence from start 0 first\.",
        str(caught.value),
    )


def test_messages(raw: Raw, service: Service) -> None:
    assert isinstance(raw.call(_wire.STATS, b"\0"), errors.Malformed)
    assert isinstance(raw.call(_wire.STATS, epoch=1), errors.Malformed)
    assert isinstance(raw.call(_wire.STATS, version=9), errors.Version)
    assert isinstance(raw.call(_wire.HELLO, b"\7\0\0\0\7\0\0\0"), errors.Version)
    assert isinstance(raw.call(77), errors.Type)
    assert isinstance(raw.call(_wire.STATS, frames=[b"one more"]), errors.Frames)
    assert isinstance(raw.call(_wire.CLOSE, _wire.close_step(1, 9)), errors.Field)
    with Raw(service, hello=False) as silent:
        assert isinstance(silent.call(_wire.STATS), errors.HelloRequired)


def test_steps(raw: Raw) -> None:
    entry = _wire.Entry(1, 0, 2)
    assert isinstance(raw.call(_wire.CLOSE, _wire.close_step(5, 1)), errors.StepUnknown)
    assert raw.call(_wire.OPEN, _wire.open_step(5, [entry]), 1) is None
    other = _wire.open_step(5, [_wire.Entry(1, 0, 3)])
    assert isinstance(raw.call(_wire.OPEN, other, 1), errors.StepExists)
    assert raw.call(_wire.CLOSE, _wire.close_step(5, 2)) is None


def test_step_busy(raw: Raw) -> None:
    assert raw.call(_wire.OPEN, _wire.open_step(5, [_wire.Entry(1, 0, 500)]), 1) is None
    for _ in range(4):
        raw.send(_wire.RUN, run_body(5, 0, 500, 256), payload=b"\0" * (500 * 256 * 4))
    raw.send(_wire.CLOSE, _wire.close_step(5, 2))
    told = [raw.read() for _ in range(5)]
    assert [type(error) for error in told if error] == [errors.StepBusy]
    assert raw.call(_wire.CLOSE, _wire.close_step(5, 2)) is None


def test_rows(raw: Raw) -> None:
    assert raw.call(_wire.OPEN, _wire.open_step(5, [_wire.Entry(1, 0, 1)]), 1) is None
    row = b"\0" * 1024
    short = run_body(5, 0, 1, 256)
    assert isinstance(raw.call(_wire.RUN, short, payload=row[:-4]), errors.Length)
    odd = run_body(5, 0, 1, 256, dtype=3)
    assert isinstance(raw.call(_wire.RUN, odd, payload=row), errors.Dtype)
    wide = run_body(5, 0, 1, 128)
    assert isinstance(raw.call(_wire.RUN, wide, payload=row[:512]), errors.Count)
    assert raw.call(_wire.RUN, short, payload=row) is None
    assert raw.call(_wire.CLOSE, _wire.close_step(5, 2)) is None


def test_runs(client: Client) -> None:
    with client.step([Entry(1, 0, 2)]) as step:
        with pytest.raises(mla_client.Layer):
            step.run(9, zeros(client, 2))
        with pytest.raises(mla_client.Layer):
            step.run(-1, zeros(client, 2))
        with pytest.raises(mla_client.Count):
            step.run(0, zeros(client, 3))
        with pytest.raises(mla_client.Count):
            step.run(0, zeros(client, 2)[:, :128])
        with pytest.raises(mla_client.Count):
            step.run(0, zeros(client, 2), out=zeros(client, 3))
        with pytest.raises(mla_client.Count):
            step.run(0, np.zeros((), np.float32))
        with pytest.raises(mla_client.Dtype):
            step.run(0, zeros(client, 2).astype(np.float64))
        with pytest.raises(mla_client.Dtype):
            step.run(0, zeros(client, 2), dtype="float16")
        with pytest.raises(TypeError):
            step.run(0, [[1.0]])
        assert step.run(0, zeros(client, 2)).shape == (2, client.info.hidden)
    with pytest.raises(mla_client.Closed):
        step.run(0, zeros(client, 2))
    with pytest.raises(mla_client.Closed):
        step.commit()
    step.abort()
    client.free(1)


def test_sequences(one: Client) -> None:
    one.step([Entry(1, 0, 10)]).commit()
    with pytest.raises(mla_client.OutOfOrder):
        one.step([Entry(1, 9, 1)])
    with pytest.raises(mla_client.SequenceRepeated) as caught:
        one.step([Entry(2, 0, 1), Entry(3, 0, 1), Entry(2, 1, 1)])
    assert caught.value.index == 2
    with pytest.raises(mla_client.SequenceExists):
        one.fork(1, 1, 5)
    with pytest.raises(mla_client.OutOfOrder):
        one.fork(1, 2, 11)
    with pytest.raises(mla_client.OutOfOrder):
        one.truncate(1, 11)
    with pytest.raises(mla_client.Count):
        one.fork(1, 2, 0)
    with pytest.raises(mla_client.Count):
        one.step([])
    with pytest.raises(mla_client.Count):
        one.step([Entry(2, 0, 0)])
    unknown: list[Callable[[], object]] = [
        lambda: one.fork(7, 8, 1),
        lambda: one.truncate(7, 1),
        lambda: one.free(1, 7),
    ]
    for call in unknown:
        with pytest.raises(mla_client.SequenceUnknown):
            call()
    busy: list[Callable[[], object]] = [
        lambda: one.step([Entry(1, 10, 1)]),
        lambda: one.fork(1, 2, 3),
        lambda: one.truncate(1, 3),
        lambda: one.free(1),
    ]
    with one.step([Entry(1, 10, 1)]):
        for call in busy:
            with pytest.raises(mla_client.SequenceBusy):
                call()
    with pytest.raises(ValueError, match="out of range"):
        one.free(-1)
    with pytest.raises(ValueError, match="out of range"):
        one.step([Entry(1, 11, 1 << 32)])
    one.free(1)


def test_what_runs_out(one: Client) -> None:
    total = one.stats().blocks_free
    with pytest.raises(mla_client.Limit):
        one.step([Entry(1, 0, 601)])
    one.step([Entry(1, 0, 600)]).commit()
    with pytest.raises(mla_client.Context):
        one.step([Entry(1, 600, 425)])
    one.free(1)
    for sequence in range(8):
        one.step([Entry(sequence, 0, 512)]).commit()
    with pytest.raises(mla_client.KvFull) as full:
        one.step([Entry(8, 0, 1)])
    assert isinstance(full.value, mla_client.TryAgain)
    one.free(*range(8))
    with pytest.raises(mla_client.SequencesFull):
        one.step([Entry(sequence, 0, 1) for sequence in range(41)])
    steps = [one.step([Entry(sequence, 0, 1)]) for sequence in range(4)]
    with pytest.raises(mla_client.Busy):
        one.step([Entry(4, 0, 1)])
    for step in steps:
        step.abort()
    one.free(*range(4))
    assert one.stats().blocks_free == total


def test_overlapping_places(service: Service) -> None:
    with Client(service.endpoint, timeout=20) as client, client.step([Entry(1, 0, 2)]) as step:
        x = client.buffer((3, client.info.hidden))
        with pytest.raises(mla_client.Region):
            step.run(0, x[:2], out=x[1:])
        step.run(0, x[:2], out=client.buffer((2, client.info.hidden)))


def test_a_step_with_an_exception_is_aborted(one: Client) -> None:
    with pytest.raises(KeyError), one.step([Entry(1, 0, 5)]) as step:
        step.run(0, zeros(one, 5))
        raise KeyError
    with one.step([Entry(1, 0, 5)]) as step:
        step.run(0, zeros(one, 5))
    assert one.truncate(1, 5) > 0
    one.free(1)


def test_a_failed_run_is_not_committed(one: Client) -> None:
    with pytest.raises(mla_client.Layer), one.step([Entry(1, 0, 5)]) as step:
        step.submit(9, zeros(one, 5))
    with one.step([Entry(1, 0, 5)]):
        pass
    one.free(1)


def test_endpoints() -> None:
    with pytest.raises(ValueError, match="no endpoint"):
        Client("nonsense://here", timeout=1)
    with pytest.raises(mla_client.Timeout, match="nothing answers"):
        Client("ipc:///tmp/mla-python-nobody-is-here", timeout=0.2)


def test_keys_are_looked_at(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Client("tcp://127.0.0.1:1", curve_keys=tmp_path, timeout=1)
    (tmp_path / "client.key").write_text("0" * 40)
    (tmp_path / "client.key").chmod(0o644)
    with pytest.raises(PermissionError):
        Client("tcp://127.0.0.1:1", curve_keys=tmp_path, timeout=1)
    (tmp_path / "client.key").chmod(0o600)
    (tmp_path / "server.pub").write_text("short")
    with pytest.raises(ValueError, match="no key"):
        Client("tcp://127.0.0.1:1", curve_keys=tmp_path, timeout=1)
