"""The synchronous client. One client is one connection, and belongs to one thread at a time."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from mla_client import _wire, errors
from mla_client._connection import Connection, Request
from mla_client._run import Run
from mla_client._run import Step as OpenStep
from mla_client._session import Session, finish
from mla_client._views import ClientView, StepView

T = TypeVar("T")

TIMEOUT_S = 75.0  # more than the 60 s after which the service itself gives a RUN up
_LOOK_MS = 50  # how often a client that waits looks whether the connection is still there


class _Blocking:
    """Waits by blocking the thread."""

    def lock(self) -> nullcontext[None]:
        return nullcontext()

    def attach(self, connection: Connection) -> None:
        pass

    def listen(self, connection: Connection, until: float) -> bool:
        """Takes one reply, or notices that the connection has ended. False: it is too late."""
        wait_ms = _LOOK_MS
        while connection.ended is None and not connection.receive(wait_ms):
            if connection.look():
                left_s = until - time.monotonic()
                if left_s <= 0:
                    return False
                wait_ms = min(_LOOK_MS, int(left_s * 1000) + 1)
        return True

    def wait_now(self, connection: Connection, request: Request, until: float) -> bool:
        while not request.done:
            if not self.listen(connection, until):
                return False
        return True

    async def wait(self, connection: Connection, request: Request, until: float) -> bool:
        return self.wait_now(connection, request, until)

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Future(Generic[T]):
    """The output of a RUN that is under way."""

    def __init__(self, client: Client, step: OpenStep, run: Run):
        self._client = client
        self._step = step
        self._run = run
        self._value: T | None = None
        self._told = False

    def done(self) -> bool:
        """Whether the reply is there. Takes what has come, and does not wait."""
        connection = self._step.connection
        while not self._run.request.done and connection.receive(0):
            pass
        if not self._run.request.done:
            connection.look()
        return self._run.request.done

    def result(self, timeout: float | None = None) -> T:
        """The output, as soon as it is there. Timeout after so many seconds, and the RUN goes on;
        without `timeout` it has the client's, after which the connection is given up."""
        if not self._told:
            self._client._wait(self._step, self._run, timeout)
            self._run.known()
            self._value = self._run.result()
            self._told = True
        return self._value  # type: ignore[return-value]

    @property
    def times(self) -> _wire.RunTimes | None:
        """Where the time went, once it is done."""
        return self._run.times


class Step(StepView):
    """An open step: one forward pass over some sequences. As a context manager it commits at the
    end, and aborts when an exception leaves it."""

    def __init__(self, client: Client, step: OpenStep):
        self._client = client
        self._opened = step

    def run(self, layer: int, x: T, *, out: T | None = None, dtype: Any = None) -> T:
        """The layer's attention: submit(), then result()."""
        run = Run(self._step, layer, x, out, dtype)
        run.start()
        self._client._wait(self._step, run, None)
        run.known()
        y: T = run.result()
        return y

    def submit(self, layer: int, x: T, *, out: T | None = None, dtype: Any = None) -> Future[T]:
        """Sends rows [..., hidden] to a layer: those of all entries, in their order, and within an
        entry by position. The output has the kind and the shape of x, or is written to `out`; its
        dtype is that of `out`, or `dtype`, or that of x. Leave x and out alone until then."""
        run = Run(self._step, layer, x, out, dtype)
        run.start()
        return Future(self._client, self._step, run)

    def commit(self) -> int:
        """Makes the new tokens part of their sequences, when all RUNs have ended; blocks_free.
        Where one of them failed the step is aborted, and its error is raised."""
        return finish(self._client._session.commit(self._step))

    def abort(self) -> None:
        """Gives the new tokens' blocks back, and leaves the lengths as they were."""
        finish(self._client._session.abort(self._step))

    def __enter__(self) -> Step:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.abort()
        elif not self._step.closed:
            self.commit()


class Client(ClientView):
    """A client of the service at `tcp://host:port` or `ipc:///path`. Making one connects it, and
    waits until the service is ready.

    timeout: seconds that a call may take. curve_keys: a folder of mla-keys, for services on tcp
    that have keys. shared_memory: whether payloads may travel in memory that is shared with the
    workers, where these are on this host; a number says how many bytes of it.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        timeout: float = TIMEOUT_S,
        curve_keys: str | Path | None = None,
        shared_memory: bool | int = True,
    ):
        self._waiter = _Blocking()
        self._session = Session(self._waiter, endpoint, timeout, curve_keys, shared_memory)
        finish(self._session.connected(self._session.until()))

    def _wait(self, step: OpenStep, run: Run, timeout: float | None) -> None:
        session = self._session
        if not self._waiter.wait_now(step.connection, run.request, session.until(timeout)):
            if timeout is not None:
                raise errors.Timeout(f"RUN had no reply in {timeout} s")
            raise session.give_up(step.connection, "RUN")

    def hello(self) -> _wire.Info:
        """Asks for `info` again, and waits until the service is ready."""
        return finish(self._session.hello())

    wait_ready = hello

    def step(self, entries: Iterable[_wire.Entry | tuple[int, int, int]]) -> Step:
        """OPEN. Each entry: a sequence, its committed length, and how many new tokens it has."""
        return Step(self, finish(self._session.open(entries)))

    def run_layer(
        self,
        entries: Iterable[_wire.Entry | tuple[int, int, int]],
        layer: int,
        x: T,
        *,
        out: T | None = None,
        dtype: Any = None,
    ) -> T:
        """One layer alone: a step with one RUN. The sequences then have KV of this layer only."""
        with self.step(entries) as step:
            return step.run(layer, x, out=out, dtype=dtype)

    def fork(self, source: int, target: int, length: int) -> int:
        """A new sequence `target` that shares the first `length` tokens of `source`; blocks_free"""
        return self.fork_many([_wire.Fork(source, target, length)])

    def fork_many(self, forks: Iterable[_wire.Fork | tuple[int, int, int]]) -> int:
        """All of them, or none. A sequence that an earlier one of them made may be forked again."""
        return finish(self._session.fork(forks))

    def truncate(self, sequence: int, length: int) -> int:
        """Only the first `length` tokens stay; blocks_free"""
        return self.truncate_many([_wire.Truncation(sequence, length)])

    def truncate_many(self, truncations: Iterable[_wire.Truncation | tuple[int, int]]) -> int:
        """All of them, or none."""
        return finish(self._session.truncate(truncations))

    def free(self, *sequences: int) -> int:
        """The sequences are no more: all of them, or none is freed; blocks_free"""
        return finish(self._session.free(sequences))

    def stats(self) -> _wire.Stats:
        """Counters and gauges of the whole service."""
        return finish(self._session.stats())

    def first(self, futures: Iterable[Future[T]], timeout: float | None = None) -> Future[T]:
        """The first of these that is done, waiting for one if none is. For a scheduler that goes on
        with whichever step has its rows."""
        wanted = list(futures)
        until = self._session.until(timeout)
        while True:
            for future in wanted:
                if future._run.request.done:
                    return future
            if not wanted:
                raise ValueError("there are no futures to wait for")
            if not self._waiter.listen(wanted[0]._step.connection, until):
                raise errors.Timeout("no RUN had a reply in time")

    def close(self) -> None:
        """Ends the connection: open steps are aborted and sequences freed. Arrays stay valid."""
        self._session.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
