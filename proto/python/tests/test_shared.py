"""Shared memory: what travels in it, what is copied, and what is left of it."""

from __future__ import annotations

import gc
import mmap
import socket
import struct
import threading
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import mla_client
from golden import Case, bits_of, error
from mla_client import Client, Entry, _wire
from mla_client._arrays import Rows
from mla_client._region import Region
from peer import HIDDEN, Answer, Asked, Peer, hello, refuse, usual
from service import Service, within
from test_golden import TOLERANCE

ENTRIES = [Entry(1, 0, 64)]


def memfds() -> int:
    """Mappings of memfds in this process."""
    return Path("/proc/self/maps").read_text().count("/memfd:")


def test_payloads_do_not_travel_as_frames(service: Service, case: Case) -> None:
    for shared in (True, False):
        with (
            Client(service.endpoint, timeout=20, shared_memory=shared) as client,
            client.step([Entry(1, 0, 200)]) as step,
        ):
            before = client.stats().bytes_copied
            assert step.opened.microbatches > 1  # whose rows are put together, if they are frames
            step.run(0, case.inputs[0, 4])
            assert (client.stats().bytes_copied == before) == shared


def test_buffers_are_used_as_they_are(service: Service, case: Case) -> None:
    with Client(service.endpoint, timeout=20) as client, client.step(ENTRIES) as step:
        assert client._session.connection is not None
        region = client._session.connection.region
        assert region is not None
        x, out = client.buffer((64, 256)), client.buffer((64, 256))
        places = {region.find(Rows(x)), region.find(Rows(out))}
        assert None not in places
        x[...] = case.inputs[0, 2]
        taken = []
        take = region.take
        region.take = lambda size: taken.append(size) or take(size)  # type: ignore
        assert step.run(0, x, out=out) is out
        assert taken == []  # neither was staged
        assert error(out, case.outputs[0, 2]) < TOLERANCE
        y = step.run(0, x)  # the output is in the region, too
        assert taken == [64 * 256 * 4]
        assert region.find(Rows(y)) is not None
        np.testing.assert_array_equal(y, out)
        assert step.run(0, x[::1]).base is not None
        # Rows in the middle of a buffer, and views that are not contiguous.
        wide = client.buffer((64, 512))
        wide[:, :256] = x
        np.testing.assert_array_equal(step.run(0, wide[:, :256]), out)
        other = client.buffer((64, 512))
        assert step.run(0, x, out=other[:, 256:]).base is not None
        np.testing.assert_array_equal(other[:, 256:], out)


def test_arrays_outlive_the_client(service: Service, case: Case) -> None:
    gc.collect()
    before = memfds()
    with Client(service.endpoint, timeout=20) as client:
        assert memfds() == before + 1
        y = client.run_layer(ENTRIES, 0, case.inputs[0, 2])
    client = None  # type: ignore[assignment]
    assert error(y, case.outputs[0, 2]) < TOLERANCE
    del y
    assert memfds() == before  # without the garbage collector's help


def test_a_region_that_is_full(service: Service, case: Case) -> None:
    """Then buffers are ordinary arrays, and RUNs send frames."""
    with Client(service.endpoint, timeout=20, shared_memory=1 << 20) as client:
        with client.step(ENTRIES) as step:
            held = [step.run(0, case.inputs[0, 2]) for _ in range(40)]
            for y in held:
                np.testing.assert_array_equal(y, held[0])
            last = client.buffer((64, 256))
            assert not last.flags.owndata
            assert client.buffer((64, 256)).flags.owndata
            del held, y, last
            assert not client.buffer((64, 256)).flags.owndata
        assert error(step_free(client, case), case.outputs[0, 2]) < TOLERANCE


def step_free(client: Client, case: Case) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    client.free(1)
    return client.run_layer(ENTRIES, 0, case.inputs[0, 2])


def test_more_than_the_service_has(service: Service) -> None:
    """The region is then a smaller one."""
    with Client(service.endpoint, timeout=20, shared_memory=1 << 34) as client:
        assert client._session.connection is not None
        region = client._session.connection.region
        assert region is not None
        assert 1 << 29 < region.size < 1 << 34


def test_a_hundred_clients_leave_nothing(service: Service) -> None:
    gc.collect()
    before = memfds()
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(100):
        with Client(service.endpoint, timeout=20, shared_memory=1 << 20) as client:
            client.buffer(1000)[...] = 1
    client = None  # type: ignore[assignment]
    gc.collect()
    assert memfds() == before
    within(10, lambda: len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 4)


def test_places() -> None:
    region = Region(1, mmap.mmap(-1, 1 << 16))
    places = [region.take(1000) for _ in range(64)]
    assert all(place is not None for place in places)
    assert region.take(1) is None
    ranges = sorted((place.at, place.at + place.size) for place in places if place)
    assert all(a[1] <= b[0] for a, b in pairwise(ranges))
    assert all(begin % 64 == 0 for begin, _ in ranges)
    random = np.random.default_rng(1)
    random.shuffle(places)
    while places:
        places.pop()
        assert region.take(1000) is not None
    whole = region.take(1 << 16)  # all is one again
    assert whole is not None
    assert whole.at == 0
    region.hold(whole, epoch=3, step=None)
    del whole
    assert region.take(1) is None
    region.release(epoch=3)
    region.release(epoch=3, step=9)
    assert region.take(1) is None
    region.release(epoch=4)
    late = region.take(1 << 16)
    assert late is not None
    region.hold(late, epoch=4, step=9)
    del late
    assert region.take(1) is None
    region.release(epoch=4, step=9)
    assert region.take(1 << 16) is not None


class Giver:
    """A peer that gives out memory which it can't be trusted with."""

    def __init__(self, folder: Path, kind: str):
        self.path = str(folder / "regions")
        self.kind = kind
        self._link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link.bind(self.path)
        self._link.listen()
        self._thread = threading.Thread(target=self._give, daemon=True)
        self._thread.start()

    def _give(self) -> None:
        import fcntl
        import os

        link, _ = self._link.accept()
        with link:
            region, token = struct.unpack("<Q16s", link.recv(100))
            assert (region, token) == (5, b"t" * 16)
            if self.kind == "nothing":
                return
            memory = os.memfd_create("mla-test", os.MFD_ALLOW_SEALING)
            os.ftruncate(memory, 100 if self.kind == "size" else 1 << 20)
            if self.kind != "seals":
                fcntl.fcntl(memory, fcntl.F_ADD_SEALS, 1 | 2 | 4)
            if self.kind == "file":
                memory = os.open(self.path + ".file", os.O_CREAT | os.O_RDWR)
                os.ftruncate(memory, 1 << 20)
            socket.send_fds(link, [b"\0"], [memory])

    def script(self, asked: Asked) -> Answer:
        if asked.kind == _wire.HELLO:
            return hello(payload_modes=3)
        if asked.kind == _wire.SHARE:
            (size,) = struct.unpack("<Q", asked.body)
            if not size:
                return Answer(bytes(32))
            path = self.path.encode()
            return Answer(struct.pack("<QQ16s", 5, size, b"t" * 16) + path, count=len(path))
        if asked.kind == _wire.RUN and asked.count:
            return refuse(36, "the workers don't have the region")
        return usual(asked)


@pytest.mark.parametrize("kind", ["nothing", "size", "seals", "file", "good"])
def test_memory_that_is_not_to_be_trusted(tmp_path: Path, kind: str) -> None:
    """It is given back, and payloads are frames."""
    giver = Giver(tmp_path, kind)
    with (
        Peer(giver.script) as peer,
        Client(peer.endpoint, timeout=5, shared_memory=1 << 20) as client,
    ):
        assert client.shared == (kind == "good")
        shares = [asked.body for asked in peer.asked if asked.kind == _wire.SHARE]
        assert shares[1:] == ([] if kind == "good" else [bytes(8)])


def test_workers_without_the_region(tmp_path: Path) -> None:
    """NOT_SHARED: the same RUN is sent again with a frame, from wherever its input is."""
    giver = Giver(tmp_path, "good")
    with (
        Peer(giver.script) as peer,
        Client(peer.endpoint, timeout=5, shared_memory=1 << 20) as client,
    ):
        step = client.step([Entry(1, 0, 2)])
        plain = np.arange(2 * HIDDEN, dtype=np.float32).reshape(2, HIDDEN)
        buffer = client.buffer(plain.shape)
        buffer[...] = plain
        out = client.buffer(plain.shape)
        for x in (plain, buffer):
            peer.asked.clear()
            np.testing.assert_array_equal(step.run(0, x), plain)
            assert [asked.count for asked in peer.asked] == [1, 0]
            assert peer.asked[0].id != peer.asked[1].id
        assert step.run(0, buffer, out=out) is out
        np.testing.assert_array_equal(out, plain)


def test_share_that_fails(tmp_path: Path) -> None:
    """With any code: payloads are frames."""
    for code in (36, 40, 12):
        with (
            Peer(
                lambda asked: hello(payload_modes=3) if asked.kind == _wire.HELLO else
                refuse(code) if asked.kind == _wire.SHARE else usual(asked)  # noqa: B023
            ) as peer,
            Client(peer.endpoint, timeout=5) as client,
        ):  # fmt: skip
            assert not client.shared
            assert client.buffer(3, "bfloat16").shape == (3,)


def test_late_writers(tmp_path: Path) -> None:
    """After GROUP_LOST and DEADLINE no other RUN is given the place of that output."""
    giver = Giver(tmp_path, "good")
    epoch = 1
    code = 33

    def script(asked: Asked) -> Answer:
        answer = giver.script(asked)
        if asked.kind == _wire.RUN:
            answer = refuse(code) if code else Answer(asked.body[:12] + bytes(44))
        answer.epoch = epoch
        return answer

    with Peer(script) as peer, Client(peer.endpoint, timeout=5, shared_memory=1 << 20) as client:
        x = client.buffer((2, HIDDEN))

        def places(step: mla_client.Step) -> tuple[int, ...]:
            with suppress(mla_client.Lost):
                step.run(0, x)
            return struct.unpack_from("<QQQ", peer.asked[-1].body, 28)

        with pytest.raises(mla_client.GroupLost), client.step([Entry(1, 0, 2)]) as step:
            lost = [places(step), places(step)]
        assert lost[0] != lost[1]
        code = 0
        with client.step([Entry(1, 0, 2)]) as step:
            assert places(step) not in lost
            epoch = 2
            client.stats()
            assert places(step) == lost[0]
        code = 34
        with pytest.raises(mla_client.Deadline), client.step([Entry(1, 0, 2)]) as step:
            lost = [places(step), places(step)]
        assert lost[0] != lost[1]
        code = 0
        with client.step([Entry(1, 0, 2)]) as step:
            assert places(step) == lost[0]


def test_uint16_and_bf16_are_the_same_bits(service: Service, case: Case) -> None:
    with Client(service.endpoint, timeout=20) as client, client.step(ENTRIES) as step:
        bits = bits_of(case.inputs[0, 2])
        y = step.run(0, bits)
        np.testing.assert_array_equal(step.run(0, bits, dtype="float32").shape, y.shape)
        np.testing.assert_array_equal(
            np.asarray(step.run(0, case.inputs[0, 2], dtype="bfloat16")).view(np.uint16), y
        )
