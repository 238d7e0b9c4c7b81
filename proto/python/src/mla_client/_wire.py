"""Messages as bytes: what proto/README.md says, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from typing import Any, NamedTuple

from mla_client import errors

MAGIC = 0x31414C4D
VERSION = 1
REPLY = 0x80

HELLO, OPEN, RUN, CLOSE, FORK, TRUNCATE, FREE, STATS, SHARE = range(1, 10)
NAMES = {
    HELLO: "HELLO", OPEN: "OPEN", RUN: "RUN", CLOSE: "CLOSE", FORK: "FORK", TRUNCATE: "TRUNCATE",
    FREE: "FREE", STATS: "STATS", SHARE: "SHARE",
}  # fmt: skip
F32, BF16 = 1, 2
COMMIT, ABORT = 1, 2
MODE_SHARED = 2
ALIGNMENT = 16  # of payloads in a region

# magic, version, type, request_id, epoch, status, index, count, body_bytes, payload_bytes
HEADER = Struct("<IHHQQIIIIQ")
# ... step, layer, dtype, reply_dtype, rows, hidden
RUN_INLINE = Struct("<IHHQQIIIIQ QIIIII")
# ... region, input_at, output_at
RUN_PLACED = Struct("<IHHQQIIIIQ QIIIII QQQ")
# after what is known: received_ns, replied_ns, queued_ns, compute_ns, collective_ns, gathered_ns
RUN_REPLY = Struct("<24x QQIIII")

_HELLO = Struct("<II")
_INFO = Struct("<22I")
_OPENED = Struct("<QIIII")
_CLOSE = Struct("<QI")
_CLOSED = Struct("<QI")
_BLOCKS_FREE = Struct("<I")
_SHARE = Struct("<Q")
_SHARED = Struct("<QQ16s")
_STATS = Struct("<18Q")
_ID = Struct("<Q")


class Entry(NamedTuple):
    """New tokens of a sequence in a step, at positions [start, start + tokens)."""

    sequence: int
    start: int
    tokens: int


class Fork(NamedTuple):
    """`target` is to share the first `length` tokens of `source`."""

    source: int
    target: int
    length: int


class Truncation(NamedTuple):
    """Only the first `length` tokens of `sequence` are to stay."""

    sequence: int
    length: int


@dataclass(frozen=True)
class Info:
    """What the service is, and its limits: HELLO's reply."""

    version: int
    payload_modes: int
    hidden: int
    heads: int
    q_lora: int
    latent: int
    nope: int
    rope: int
    v: int
    groups: int
    ranks: int
    block_tokens: int
    blocks_total: int
    blocks_free: int
    context_max: int
    step_tokens_max: int
    step_sequences_max: int
    steps_open_max: int
    runs_queued_max: int
    decode_tokens_max: int
    prefill_tokens_max: int
    decode_rows_max: int
    layers: tuple[int, ...]


class Opened(NamedTuple):
    """What OPEN made of a step."""

    step: int
    decode_rows: int
    prefill_rows: int
    microbatches: int
    blocks_free: int


class RunTimes(NamedTuple):
    """Where the time of a RUN went. The first two are CLOCK_MONOTONIC of the service's host."""

    received_ns: int
    replied_ns: int
    queued_ns: int
    compute_ns: int
    collective_ns: int
    gathered_ns: int


class Stats(NamedTuple):
    """Counters since the start of the service, and from `groups_ready` on gauges."""

    requests: int
    errors: int
    runs: int
    rows_decode: int
    rows_prefill: int
    microbatches: int
    bytes_in: int
    bytes_out: int
    bytes_copied: int
    groups_ready: int
    clients: int
    steps_open: int
    runs_in_flight: int
    sequences: int
    blocks_total: int
    blocks_used: int
    blocks_free: int
    heap_bytes: int


class Shared(NamedTuple):
    """A region of shared memory, and where it is given out."""

    region: int
    size: int
    token: bytes
    path: str


def head(kind: int, request_id: int, body: bytes, count: int) -> bytes:
    """A request of one frame."""
    return HEADER.pack(MAGIC, VERSION, kind, request_id, 0, 0, 0, count, len(body), 0) + body


@lru_cache(maxsize=256)
def _many(layout: str, count: int) -> Struct:
    return Struct("<" + layout * count)


def _entries(layout: str, entries: Iterable[tuple[int, ...]], count: int) -> bytes:
    return _many(layout, count).pack(*[value for entry in entries for value in entry])


def hello() -> bytes:
    return _HELLO.pack(VERSION, VERSION)


def open_step(step: int, entries: list[Entry]) -> bytes:
    return _ID.pack(step) + _entries("QII", entries, len(entries))


def close_step(step: int, action: int) -> bytes:
    return _CLOSE.pack(step, action)


def fork(forks: list[Fork]) -> bytes:
    return _entries("QQI", forks, len(forks))


def truncate(truncations: list[Truncation]) -> bytes:
    return _entries("QI", truncations, len(truncations))


def free(sequences: list[int]) -> bytes:
    return _many("Q", len(sequences)).pack(*sequences)


def share(size: int) -> bytes:
    return _SHARE.pack(size)


def _fixed(layout: Struct, body: bytes) -> tuple[int, ...]:
    if len(body) != layout.size:
        raise errors.ProtocolError(f"a reply's body has {len(body)} bytes, not {layout.size}")
    return layout.unpack(body)


def info(body: bytes, count: int) -> Info:
    if len(body) != _INFO.size + 4 * count:
        raise errors.ProtocolError(f"HELLO's reply has {len(body)} bytes for {count} layers")
    layers = _many("I", count).unpack_from(body, _INFO.size)
    fields: list[Any] = [*_INFO.unpack_from(body), layers]
    return Info(*fields)


def opened(body: bytes) -> Opened:
    return Opened(*_fixed(_OPENED, body))


def closed(body: bytes) -> int:
    """blocks_free"""
    return _fixed(_CLOSED, body)[1]


def blocks_free(body: bytes) -> int:
    return _fixed(_BLOCKS_FREE, body)[0]


def stats(body: bytes) -> Stats:
    return Stats(*_fixed(_STATS, body))


def shared(body: bytes, count: int) -> Shared:
    if len(body) != _SHARED.size + count:
        raise errors.ProtocolError(f"SHARE's reply has {len(body)} bytes for a path of {count}")
    region, size, token = _SHARED.unpack_from(body)
    return Shared(region, size, token, body[_SHARED.size :].decode("utf-8", "surrogateescape"))


def run_times(body: bytes) -> RunTimes:
    if len(body) != RUN_REPLY.size:
        raise errors.ProtocolError(f"RUN's reply has {len(body)} bytes, not {RUN_REPLY.size}")
    return RunTimes(*RUN_REPLY.unpack(body))
