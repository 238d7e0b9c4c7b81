"""What a client does, for the synchronous and the asynchronous one alike.

It is written with `await`, over a `Waiter` that knows how to wait. That of the synchronous client
never suspends, so its coroutines run from begin to end when they are started (`finish`).
"""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from math import prod
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np
import zmq

from mla_client import _region, _wire, errors
from mla_client._arrays import BITS, ITEM_BYTES, Bits, code_of, wrapper_of
from mla_client._connection import Connection, Keys, Request
from mla_client._run import Step

T = TypeVar("T")

REPEAT_S = 5.0  # a request that has no reply then is sent again
# Those of which a second copy has the same answer. RUN is too expensive to be sent on suspicion.
_REPEATED = frozenset({_wire.HELLO, _wire.OPEN, _wire.CLOSE, _wire.TRUNCATE, _wire.STATS})
_CONNECTIONS_MAX = 3  # that one call tries, when they end under it
_REFUSED_MAX = 3
_AGAIN_S = 0.05
_SEND_AGAIN_S = 0.002
_MIB = 1 << 20
_REGION_BYTES_MAX = 512 * _MIB  # that are asked for without being told how many


class Waiter(Protocol):
    """How a client waits."""

    def lock(self) -> AbstractAsyncContextManager[Any]:
        """The same lock each time: one at a time connects."""

    def attach(self, connection: Connection) -> None:
        """It is to be listened to until it ends."""

    async def wait(self, connection: Connection, request: Request, until: float, /) -> bool:
        """Until the request is done, or it is so late. Whether it is done."""

    async def sleep(self, seconds: float) -> None: ...


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("a synchronous client has suspended")


class Session:
    """A client: one connection after the other, and what is known of its sequences."""

    def __init__(
        self,
        waiter: Waiter,
        endpoint: str,
        timeout: float,
        curve_keys: str | Path | None,
        shared_memory: bool | int,
    ):
        self.endpoint = endpoint
        self.timeout = timeout
        self.connection: Connection | None = None
        self.info: _wire.Info | None = None
        self._waiter = waiter
        self._context: zmq.Context[Any] = zmq.Context.instance()
        # On ipc there are no keys.
        tcp = endpoint.startswith("tcp:")
        self._keys = Keys(curve_keys) if curve_keys is not None and tcp else None
        self._shared_memory = shared_memory
        self._steps = itertools.count(1)
        self._closed = False
        self._blocks_free = 0
        self._sequences: set[int] = set()  # of this connection
        self._lost: set[int] = set()  # of earlier ones, not opened again or freed since

    @property
    def epoch(self) -> int:
        return self.connection.epoch if self.connection is not None else 0

    @property
    def shared(self) -> bool:
        return self.connection is not None and self.connection.region is not None

    def buffer(self, shape: int | Sequence[int], dtype: Any) -> Any:
        """An array in shared memory, where there is some left."""
        code = code_of(dtype)
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        region = self.connection.region if self.connection is not None else None
        place = region.take(prod(sizes) * ITEM_BYTES[code]) if region is not None else None
        bits: Bits = np.empty(sizes, BITS[code]) if place is None else place.bits(sizes, BITS[code])
        return wrapper_of(dtype)(bits)

    def until(self, timeout: float | None = None) -> float:
        return time.monotonic() + (self.timeout if timeout is None else timeout)

    # Connections

    async def connected(self, until: float) -> Connection:
        """The connection, a new one where the last one has ended."""
        async with self._waiter.lock():
            if self._closed:
                raise errors.Closed("the client was closed")
            if self.connection is not None:
                if self.connection.look():
                    return self.connection
                self._lost |= self._sequences
                self._sequences.clear()
                self.connection = None
            self.connection = await self._connect(until)
            return self.connection

    async def _connect(self, until: float) -> Connection:
        refused = 0
        while True:
            connection = Connection(self._context, self.endpoint, self._keys)
            try:
                self._waiter.attach(connection)
                self.info = await self._hello(connection, until)
                connection.runs_max = self.info.runs_queued_max
                await self._share(connection, self.info, until)
            except (errors.ConnectionLost, errors.AccessDenied) as error:
                # The service is just about to end, or to begin. But who is refused again and again
                # has the wrong key: a wrong one of the service's looks like that.
                connection.end(error)
                refused += isinstance(error, errors.AccessDenied)
                if time.monotonic() >= until or refused == _REFUSED_MAX:
                    raise
                await self._waiter.sleep(_AGAIN_S)
            except BaseException:
                connection.end(errors.ConnectionLost("it was given up"))
                raise
            else:
                return connection

    async def _hello(self, connection: Connection, until: float) -> _wire.Info:
        while True:
            try:
                reply = await self._exchange(connection, _wire.HELLO, _wire.hello(), 0, until)
            except errors.NotReady:
                if time.monotonic() >= until:
                    raise
                await self._waiter.sleep(_AGAIN_S)
            else:
                info = _wire.info(reply.body, reply.count)
                self._blocks_free = info.blocks_free
                return info

    async def _share(self, connection: Connection, info: _wire.Info, until: float) -> None:
        """Shared memory, if it can be had; else payloads are sent as frames."""
        if not self._shared_memory or not info.payload_modes & _wire.MODE_SHARED:
            return
        size = int(self._shared_memory)
        if self._shared_memory is True:
            # Four steps of the largest size on their way, with their results.
            size = min(8 * info.step_tokens_max * info.hidden * 4, _REGION_BYTES_MAX)
        while size >= _MIB:
            try:
                body = _wire.share(size)
                reply = await self._exchange(connection, _wire.SHARE, body, 0, until)
                shared = _wire.shared(reply.body, reply.count)
                connection.region = _region.Region(shared.region, _region.fetch(shared))
                return
            except (errors.Busy, errors.Limit):
                size //= 2
            except OSError:
                await self._exchange(connection, _wire.SHARE, _wire.share(0), 0, until)
                return
            except errors.MlaError:
                if connection.ended is not None:
                    raise
                return

    def close(self) -> None:
        self._closed = True
        if self.connection is not None:
            self.connection.end(errors.Closed("the client was closed"))

    # Requests

    async def _exchange(
        self, connection: Connection, kind: int, body: bytes, count: int, until: float
    ) -> Request:
        request = Request(kind)
        request.id = connection.next_id()
        request.frames = [_wire.head(kind, request.id, body, count)]
        while not connection.send(request):
            if not connection.look():
                raise connection.ended or AssertionError
            if time.monotonic() >= until:
                raise errors.Timeout(f"nothing answers at {self.endpoint}")
            await self._waiter.sleep(_SEND_AGAIN_S)
        repeat_at = time.monotonic() + REPEAT_S if kind in _REPEATED else until
        while not await self._waiter.wait(connection, request, min(until, repeat_at)):
            if time.monotonic() >= until:
                raise self.give_up(connection, _wire.NAMES[kind])
            connection.send(request)
            repeat_at = until
        request.raise_error()
        return request

    def give_up(self, connection: Connection, name: str) -> errors.Timeout:
        """Ends a connection on which a reply is missing: what the service does is not known. The
        error to be raised."""
        connection.end(errors.ConnectionLost(f"it was given up: {name} had no reply in time"))
        return errors.Timeout(f"{name} had no reply in time")

    async def _call(self, until: float, attempt: Callable[[Connection], Awaitable[T]]) -> T:
        """A request that belongs to no step outlives its connection: nothing of what it may have
        done is left, so it is sent again on the next one."""
        for last in (*[False] * (_CONNECTIONS_MAX - 1), True):
            connection = await self.connected(until)
            try:
                return await attempt(connection)
            except errors.ConnectionLost:
                if last or self._closed:
                    raise
            except struct.error as error:
                raise ValueError(f"a number is out of range: {error}") from error
        raise AssertionError

    def _raise_unknown(self, error: errors.SequenceUnknown, sequences: list[int]) -> NoReturn:
        """A sequence that ended with an earlier connection is lost like those of a group."""
        if error.index is not None and sequences[error.index] in self._lost:
            sentence = f"sequence {sequences[error.index]} ended with an earlier connection"
            raise errors.KvLost(sentence, error.index) from None
        raise error

    async def hello(self) -> _wire.Info:
        until = self.until()

        async def attempt(connection: Connection) -> _wire.Info:
            return await self._hello(connection, until)

        self.info = await self._call(until, attempt)
        return self.info

    async def stats(self) -> _wire.Stats:
        until = self.until()

        async def attempt(connection: Connection) -> _wire.Stats:
            reply = await self._exchange(connection, _wire.STATS, b"", 0, until)
            return _wire.stats(reply.body)

        return await self._call(until, attempt)

    async def fork(self, forks: Iterable[tuple[int, int, int]]) -> int:
        entries = [_wire.Fork(*fork) for fork in forks]
        until = self.until()

        async def attempt(connection: Connection) -> int:
            body = _wire.fork(entries)
            try:
                reply = await self._exchange(connection, _wire.FORK, body, len(entries), until)
            except errors.SequenceUnknown as error:
                self._raise_unknown(error, [entry.source for entry in entries])
            self._exist(entry.target for entry in entries)
            return self._told(_wire.blocks_free(reply.body))

        return await self._call(until, attempt)

    async def truncate(self, truncations: Iterable[tuple[int, int]]) -> int:
        entries = [_wire.Truncation(*truncation) for truncation in truncations]
        until = self.until()

        async def attempt(connection: Connection) -> int:
            body = _wire.truncate(entries)
            try:
                reply = await self._exchange(connection, _wire.TRUNCATE, body, len(entries), until)
            except errors.SequenceUnknown as error:
                self._raise_unknown(error, [entry.sequence for entry in entries])
            return self._told(_wire.blocks_free(reply.body))

        return await self._call(until, attempt)

    async def free(self, sequences: Iterable[int]) -> int:
        wanted = list(sequences)
        until = self.until()

        async def attempt(connection: Connection) -> int:
            # Those that ended with an earlier connection are free already.
            entries = [sequence for sequence in wanted if sequence not in self._lost]
            if entries or not wanted:
                body = _wire.free(entries)
                try:
                    reply = await self._exchange(connection, _wire.FREE, body, len(entries), until)
                except errors.SequenceUnknown as error:
                    if error.index is not None:
                        error = errors.SequenceUnknown(
                            error.sentence, wanted.index(entries[error.index])
                        )
                    raise error from None
                self._told(_wire.blocks_free(reply.body))
            self._sequences.difference_update(wanted)
            self._lost.difference_update(wanted)
            return self._blocks_free

        return await self._call(until, attempt)

    def _exist(self, sequences: Iterable[int]) -> None:
        known = set(sequences)
        self._sequences |= known
        if self._lost:
            self._lost -= known

    def _told(self, blocks_free: int) -> int:
        self._blocks_free = blocks_free
        return blocks_free

    # Steps

    async def open(self, entries: Iterable[tuple[int, int, int]]) -> Step:
        wanted = [_wire.Entry(*entry) for entry in entries]
        until = self.until()

        async def attempt(connection: Connection) -> Step:
            step = next(self._steps)
            body = _wire.open_step(step, wanted)
            try:
                reply = await self._exchange(connection, _wire.OPEN, body, len(wanted), until)
            except errors.SequenceUnknown as error:
                self._raise_unknown(error, [entry.sequence for entry in wanted])
            except errors.MlaError:
                raise
            except BaseException:
                self._abandon(connection, step)
                raise
            opened = _wire.opened(reply.body)
            self._exist(entry.sequence for entry in wanted)
            self._told(opened.blocks_free)
            return Step(connection, wanted, opened)

        return await self._call(until, attempt)

    @staticmethod
    def _abandon(connection: Connection, step: int) -> None:
        """The caller was interrupted while the step was opened, and will never close it."""
        if connection.ended is None:
            request = Request(_wire.CLOSE)
            request.id = connection.next_id()
            body = _wire.close_step(step, _wire.ABORT)
            request.frames = [_wire.head(_wire.CLOSE, request.id, body, 0)]
            connection.send(request)

    async def commit(self, step: Step) -> int:
        if step.closed:
            raise errors.Closed(f"step {step.id} was closed")
        error = await self._settled(step)
        try:
            if error is None:
                return await self._close(step, _wire.COMMIT)
        except errors.StepLost as lost:
            error = lost
        await self.abort(step)
        raise error

    async def abort(self, step: Step) -> None:
        """Never fails: a step that can't be closed ended with its connection, or the connection is
        ended because of it."""
        if step.closed:
            return
        try:
            await self._settled(step)
            await self._close(step, _wire.ABORT)
        except errors.StepBusy:
            self.give_up(step.connection, "CLOSE")
        except (errors.Lost, errors.Timeout, errors.Closed):
            pass
        finally:
            step.closed = True

    async def _settled(self, step: Step) -> errors.MlaError | None:
        """Waits for the step's RUNs. Why it can't be committed, if it can't."""
        until = self.until()
        error: errors.MlaError | None = None
        for run in list(step.runs):
            if not await self._waiter.wait(step.connection, run.request, until):
                raise self.give_up(step.connection, "RUN")
            run.known()
            error = error or run.request.error()
        return error or next(iter(step.failed.values()), None)

    async def _close(self, step: Step, action: int) -> int:
        until = self.until()
        body = _wire.close_step(step.id, action)
        while True:
            try:
                if step.connection.ended is not None:
                    raise step.connection.ended
                reply = await self._exchange(step.connection, _wire.CLOSE, body, 0, until)
            except errors.StepBusy:
                # Workers are still with a RUN that was given up.
                if time.monotonic() >= until:
                    raise
                await self._waiter.sleep(_AGAIN_S)
            else:
                step.closed = True
                if step.connection.region is not None:
                    step.connection.region.release(step.connection.epoch, step.id)
                return self._told(_wire.closed(reply.body))
