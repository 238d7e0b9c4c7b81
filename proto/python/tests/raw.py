"""Requests that the client itself never makes."""

from __future__ import annotations

import struct
from typing import Any

import zmq

from mla_client import _wire, errors
from service import Service


class Raw:
    """A DEALER that sends what it is told, and reads one reply."""

    def __init__(self, service: Service, hello: bool = True):
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, 20000)
        self.socket.connect(service.endpoint)
        if hello:
            assert self.call(_wire.HELLO, _wire.hello()) is None

    def send(self, kind: int, body: bytes = b"", count: int = 0, payload: bytes = b"",
             **changed: Any) -> None:  # fmt: skip
        """`changed` replaces fields of the header: magic, version, payload_bytes; frames adds."""
        frames: list[bytes] = [
            _wire.HEADER.pack(
                changed.get("magic", _wire.MAGIC), changed.get("version", _wire.VERSION), kind, 7,
                changed.get("epoch", 0), 0, 0, count, len(body),
                changed.get("payload_bytes", len(payload)),
            )
            + body
        ]  # fmt: skip
        if payload:
            frames.append(payload)
        self.socket.send_multipart(frames + changed.get("frames", []))

    def read(self) -> errors.MlaError | None:
        head = self.socket.recv_multipart()[0]
        fields = _wire.HEADER.unpack_from(head)
        if not fields[5]:
            return None
        return errors.of_reply(fields[5], fields[6], head[_wire.HEADER.size :].decode())

    def call(self, kind: int, body: bytes = b"", count: int = 0, payload: bytes = b"",
             **changed: Any) -> errors.MlaError | None:  # fmt: skip
        """The error that came back, if one did."""
        self.send(kind, body, count, payload, **changed)
        return self.read()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def run_body(
    step: int, layer: int, rows: int, hidden: int, dtype: int = 1, reply: int = 1
) -> bytes:
    return struct.pack("<QIIIII", step, layer, dtype, reply, rows, hidden)
