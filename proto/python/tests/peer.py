"""A service made of a script: what the real one hardly ever answers."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from mla_client import _wire

HIDDEN = 16


@dataclass
class Asked:
    """A request, as it came."""

    kind: int
    id: int
    count: int
    body: bytes
    payload: bytes | None


@dataclass
class Answer:
    """A reply. Without `kind` it is the one to the request."""

    body: bytes = b""
    count: int = 0
    status: int = 0
    index: int = 0
    payload: bytes | None = None
    kind: int | None = None
    epoch: int = 1
    raw: list[bytes] | None = None


def refuse(code: int, sentence: str = "no", index: int = 0xFFFFFFFF) -> Answer:
    return Answer(sentence.encode(), status=code, index=index)


def hello(payload_modes: int = 1, runs_queued_max: int = 8) -> Answer:
    numbers = [1, payload_modes, HIDDEN, 2, 0, 8, 4, 4, 4, 1, 1, 64, 100, 90, 4096, 512, 64, 4,
               runs_queued_max, 1, 128, 16]  # fmt: skip
    return Answer(b"".join(n.to_bytes(4, "little") for n in [*numbers, 0, 1]), count=2)


def usual(asked: Asked) -> Answer:
    """What a service that is well would answer; RUN returns its input."""
    if asked.kind == _wire.HELLO:
        return hello()
    if asked.kind == _wire.OPEN:
        rows = sum(int.from_bytes(asked.body[i + 12 : i + 16], "little")
                   for i in range(8, len(asked.body), 16))  # fmt: skip
        return Answer(asked.body[:8] + b"".join(n.to_bytes(4, "little") for n in (0, rows, 1, 80)))
    if asked.kind == _wire.RUN:
        return Answer(asked.body[:12] + bytes(44), payload=asked.payload)
    if asked.kind == _wire.CLOSE:
        return Answer(asked.body[:8] + (90).to_bytes(4, "little"))
    if asked.kind == _wire.STATS:
        return Answer(bytes(144))
    return Answer((90).to_bytes(4, "little"))


# None: no answer. A list: several, or later ones as well.
Script = Callable[[Asked], "Answer | list[Answer] | None"]


@dataclass
class Peer:
    """Binds a ROUTER in a thread. `script` may be replaced at any time."""

    script: Script = usual
    asked: list[Asked] = field(default_factory=list)
    failure: BaseException | None = None

    def __post_init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mla-peer.")
        self.endpoint = f"ipc://{Path(self._folder.name)}/clients"
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        router: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        router.linger = 0
        router.rcvtimeo = 20
        router.bind(self.endpoint)
        self._stop.clear()
        self._thread = threading.Thread(target=self._serve, args=(router,))
        self._thread.start()

    def stop(self) -> None:
        """As if it were killed: all connections end."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = None

    def _serve(self, router: zmq.Socket[bytes]) -> None:
        with router:
            while not self._stop.is_set():
                try:
                    client, head, *payload = router.recv_multipart()
                except zmq.Again:
                    continue
                try:
                    self._answer(router, client, head, payload)
                except BaseException as error:
                    self.failure = error
                    raise

    def _answer(
        self, router: zmq.Socket[bytes], client: bytes, head: bytes, payload: list[bytes]
    ) -> None:
        magic, version, kind, id_, epoch, status, index, count, body_bytes, payload_bytes = (
            _wire.HEADER.unpack_from(head)
        )
        # What every request must be.
        assert (magic, version, epoch, status, index) == (_wire.MAGIC, 1, 0, 0, 0)
        assert body_bytes == len(head) - 48
        assert payload_bytes == sum(map(len, payload))
        asked = Asked(kind, id_, count, head[48:], payload[0] if payload else None)
        self.asked.append(asked)
        answers = self.script(asked)
        for answer in answers if isinstance(answers, list) else [answers]:
            if answer is None:
                continue
            if answer.raw is not None:
                router.send_multipart([client, *answer.raw])
                continue
            reply = _wire.HEADER.pack(
                _wire.MAGIC, 1, asked.kind + 0x80 if answer.kind is None else answer.kind, id_,
                answer.epoch, answer.status, answer.index, answer.count, len(answer.body),
                len(answer.payload or b""),
            )  # fmt: skip
            frames = [answer.payload] if answer.payload else []
            router.send_multipart([client, reply + answer.body, *frames])

    def __enter__(self) -> Peer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._context.term()
        self._folder.cleanup()
        assert self.failure is None
