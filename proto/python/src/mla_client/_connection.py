"""One connection: requests go out, and every reply finds its request. It ends once and for all: who
connects again is a new client to the service."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from mla_client import _wire, errors
from mla_client._region import Region

_RECONNECT_MS = 20  # of ZeroMQ, until there is a service to connect to
# A payload that is sent without a copy is given back by a thread of pyzmq, which wakes up for it:
# smaller ones are copied sooner than that.
_COPIED_BYTES = 256 << 10
_KEY_CHARACTERS = 40
_DENIED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_WATCHED = zmq.EVENT_DISCONNECTED | _DENIED
_HEADER_BYTES = _wire.HEADER.size

_request_ids = itertools.count(1)  # of all connections: one that was used once never comes again


class Keys:
    """A client's keys for a service on tcp: a folder with client.key and server.pub."""

    def __init__(self, folder: str | Path):
        secret = Path(folder) / "client.key"
        if secret.stat().st_mode & 0o077:
            raise PermissionError(f"{secret} can be read by others: chmod 600 it")
        self.secret = _read_key(secret)
        self.server = _read_key(Path(folder) / "server.pub")
        self.public = zmq.curve_public(self.secret)


def _read_key(path: Path) -> bytes:
    key = path.read_text("ascii").strip()
    if len(key) != _KEY_CHARACTERS:
        raise ValueError(f"{path} is no key: {len(key)} characters, not {_KEY_CHARACTERS}")
    return key.encode()


class Request:
    """What was sent, and what came back."""

    __slots__ = (
        "body", "count", "done", "frames", "hook", "id", "index", "is_run", "kind", "lost",
        "payload", "status", "waiters",
    )  # fmt: skip

    def __init__(self, kind: int):
        self.kind = kind
        self.is_run = kind == _wire.RUN
        self.id = 0
        self.frames: list[Any] = []
        self.done = False
        self.lost: errors.MlaError | None = None  # the connection ended before the reply
        self.status = 0
        self.index = 0
        self.count = 0
        self.body = b""
        self.payload: zmq.Frame | None = None
        # Called with the request when it is done. Returns whether that is the end of it: where not,
        # it was sent again.
        self.hook: Callable[[Request], bool] | None = None
        self.waiters: list[Callable[[], None]] = []  # called when that was the end of it

    def finish(self) -> None:
        if self.hook is None or self.hook(self):
            self.done = True
            self.hook = None  # it may know the request: nothing may wait for the garbage collector
            waiters, self.waiters = self.waiters, []
            for tell in waiters:
                tell()

    def error(self) -> errors.MlaError | None:
        if self.lost is not None:
            return type(self.lost)(self.lost.sentence)
        if self.status:
            sentence = self.body.decode("utf-8", "replace")
            return errors.of_reply(self.status, self.index, sentence)
        return None

    def raise_error(self) -> None:
        if (error := self.error()) is not None:
            raise error


class Connection:
    """A DEALER, and the requests that wait for their replies. Nothing here waits but `receive`."""

    def __init__(self, context: zmq.Context[Any], endpoint: str, keys: Keys | None):
        self.pending: dict[int, Request] = {}
        self.runs = 0  # RUNs that were sent and not answered
        self.runs_max = 1
        self.backlog: deque[Callable[[], None]] = deque()  # starts of RUNs beyond that
        self.epoch = 0
        self.ended: errors.MlaError | None = None
        self.on_end: Callable[[], None] | None = None  # before the sockets are closed
        self.on_send: Callable[[], None] | None = None
        self.region: Region | None = None
        self.socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.immediate = 1
        self.socket.reconnect_ivl = _RECONNECT_MS
        self.socket.copy_threshold = _COPIED_BYTES
        self._wait_ms = -1
        if keys is not None:
            self.socket.curve_secretkey = keys.secret
            self.socket.curve_publickey = keys.public
            self.socket.curve_serverkey = keys.server
        self.monitor = self.socket.get_monitor_socket(_WATCHED)
        self.monitor.linger = 0
        try:
            self.socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.end(errors.ConnectionLost("the client was closed"))
            raise ValueError(f"{endpoint!r} is no endpoint: {error}") from error

    def send(self, request: Request) -> bool:
        """Sends a request's frames under its id; again if it was sent before. False when there is
        no connection to send it on yet. Raises why the connection ended, if it has: with asyncio
        that may happen whenever something waits."""
        if self.ended is not None:
            raise type(self.ended)(self.ended.sentence)
        try:
            if len(request.frames) == 1:
                self.socket.send(request.frames[0], zmq.DONTWAIT)
            else:
                self.socket.send(request.frames[0], zmq.DONTWAIT | zmq.SNDMORE)
                # pyzmq copies what is small, and keeps what is not until it is sent.
                self.socket.send(request.frames[1], zmq.DONTWAIT, copy=False)
        except zmq.Again:
            return False
        if request.id not in self.pending:
            self.pending[request.id] = request
            self.runs += request.is_run
        if self.on_send is not None:
            self.on_send()
        return True

    @staticmethod
    def next_id() -> int:
        return next(_request_ids)

    def readable(self) -> bool:
        """Whether there is a reply to take."""
        return bool(int(self.socket.get(zmq.EVENTS)) & zmq.POLLIN)

    def receive(self, wait_ms: int) -> bool:
        """Takes one reply, and waits for it at most so long. Whether there was one."""
        if wait_ms == 0:
            return self._take(zmq.DONTWAIT)
        if wait_ms != self._wait_ms:
            self.socket.rcvtimeo = self._wait_ms = wait_ms
        return self._take(0)

    def _take(self, flags: int) -> bool:
        try:
            head = self.socket.recv(flags)
        except zmq.Again:
            return False
        try:
            self._complete(head)
        except errors.ProtocolError as error:
            self.end(error)
        return True

    def _payload(self, size: int) -> zmq.Frame:
        """The second frame, which is here when the first one is. A third one would be taken for a
        reply, and is none."""
        try:
            payload = self.socket.recv(zmq.DONTWAIT, copy=False)
        except zmq.Again:
            raise errors.ProtocolError("a reply lacks its payload") from None
        if len(payload) != size:
            raise errors.ProtocolError(f"a payload has {len(payload)} bytes, not {size}")
        return payload

    def _complete(self, head: bytes) -> None:
        if len(head) < _HEADER_BYTES:
            raise errors.ProtocolError(f"a reply of {len(head)} bytes has no header")
        magic, version, kind, id_, epoch, status, index, count, body_bytes, payload_bytes = (
            _wire.HEADER.unpack_from(head)
        )
        if magic != _wire.MAGIC:
            raise errors.ProtocolError(f"a reply begins with {head[:4]!r}")
        if version != _wire.VERSION and not status:
            raise errors.ProtocolError(f"a reply of version {version}")
        if body_bytes != len(head) - _HEADER_BYTES:
            raise errors.ProtocolError("a reply's lengths disagree")
        payload = self._payload(payload_bytes) if payload_bytes else None
        if epoch > self.epoch:
            self.epoch = epoch
            if self.region is not None:
                self.region.release(epoch)
        request = self.pending.get(id_)
        if request is None:
            if kind == _wire.REPLY:
                raise errors.ProtocolError(head[_HEADER_BYTES:].decode("utf-8", "replace"))
            return  # the second reply to what was sent twice
        if kind != request.kind + _wire.REPLY and not (kind == _wire.REPLY and status):
            raise errors.ProtocolError(f"{_wire.NAMES[request.kind]} has a reply of type {kind}")
        del self.pending[id_]
        request.status = status
        request.index = index
        request.count = count
        request.body = head[_HEADER_BYTES:]
        request.payload = payload
        self.runs -= request.is_run
        if status == errors.HelloRequired.code and request.kind != _wire.HELLO:
            # ZeroMQ has connected again before we knew that the connection had ended.
            request.lost = errors.ConnectionLost("the service was started again")
            request.finish()
            self.end(request.lost)
            return
        request.finish()
        if self.backlog:
            self.start_waiting()

    def start_waiting(self) -> None:
        """Sends RUNs that had to wait for others to end."""
        while self.backlog and self.ended is None and self.runs < self.runs_max:
            self.backlog.popleft()()

    def look(self) -> bool:
        """Whether the connection is still there. If not it is ended, after the replies that came
        before that were taken."""
        while self.ended is None:
            try:
                frames = self.monitor.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return True
            event = parse_monitor_message(frames)["event"]
            if event & _DENIED:
                self.end(errors.AccessDenied("the service refused the connection"))
            elif event == zmq.EVENT_DISCONNECTED:
                while self.ended is None and self._take(zmq.DONTWAIT):
                    pass
                self.end(errors.ConnectionLost("the connection to the service ended"))
        return False

    def end(self, why: errors.MlaError) -> None:
        """Closes the connection. What is pending is done, and failed."""
        if self.ended is not None:
            return
        self.ended = why
        if self.on_end is not None:
            self.on_end()
        self.socket.disable_monitor()
        self.monitor.close()
        self.socket.close()
        pending = list(self.pending.values())
        self.pending.clear()
        waiting, self.backlog = self.backlog, deque()
        for request in pending:
            request.lost = why
            request.finish()
        for start in waiting:
            start()
