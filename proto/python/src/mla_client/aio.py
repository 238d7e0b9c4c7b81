"""The asyncio client: the synchronous one with await. It belongs to one event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from mla_client import _wire
from mla_client._connection import Connection, Request
from mla_client._run import Run
from mla_client._run import Step as OpenStep
from mla_client._session import Session
from mla_client._views import ClientView, StepView
from mla_client.client import TIMEOUT_S

T = TypeVar("T")


class _Loop:
    """Waits in an event loop."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    def lock(self) -> asyncio.Lock:
        return self._lock

    def attach(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        descriptors = [connection.socket.fileno(), connection.monitor.fileno()]

        def replies() -> None:
            while connection.ended is None and connection.receive(0):
                pass

        def events() -> None:
            connection.look()

        def stop() -> None:
            for descriptor in descriptors:
                loop.remove_reader(descriptor)

        def sent() -> None:
            # ZeroMQ's descriptor tells of a change once. Whatever looks at the socket may have
            # taken that, so after each send there is one look more.
            if connection.ended is None and connection.readable():
                loop.call_soon(replies)

        loop.add_reader(descriptors[0], replies)
        loop.add_reader(descriptors[1], events)
        connection.on_end = stop
        connection.on_send = sent

    async def wait(self, _: Connection, request: Request, until: float) -> bool:
        if not request.done:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            def tell() -> None:
                if not done.done():
                    done.set_result(None)

            request.waiters.append(tell)
            await asyncio.wait([done], timeout=max(0.0, until - time.monotonic()))
        return request.done

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class AsyncStep(StepView):
    """As Step. `async with client.step(...) as step` opens it, or `step = await client.step(...)`
    for those who commit and abort by themselves."""

    def __init__(self, session: Session, entries: Iterable[tuple[int, int, int]]):
        self._session = session
        self._entries = entries
        self._opened: OpenStep | None = None

    async def _open(self) -> AsyncStep:
        if self._opened is None:
            self._opened = await self._session.open(self._entries)
        return self

    def __await__(self) -> Generator[Any, None, AsyncStep]:
        return self._open().__await__()

    def submit(
        self, layer: int, x: T, *, out: T | None = None, dtype: Any = None
    ) -> asyncio.Future[T]:
        """As Step.submit: the RUN is on its way when this returns."""
        run = Run(self._step, layer, x, out, dtype)
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def tell() -> None:
            if future.cancelled():
                return  # the step still waits for it
            run.known()
            try:
                future.set_result(run.result())
            except Exception as error:
                future.set_exception(error)

        run.request.waiters.append(tell)
        run.start()
        return future

    async def run(self, layer: int, x: T, *, out: T | None = None, dtype: Any = None) -> T:
        """As Step.run."""
        connection = self._step.connection
        future = self.submit(layer, x, out=out, dtype=dtype)
        try:
            return await asyncio.wait_for(future, self._session.timeout)
        except asyncio.TimeoutError:
            raise self._session.give_up(connection, "RUN") from None

    async def commit(self) -> int:
        """As Step.commit."""
        return await self._session.commit(self._step)

    async def abort(self) -> None:
        """As Step.abort."""
        await self._session.abort(self._step)

    async def __aenter__(self) -> AsyncStep:
        return await self._open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            await self.abort()
        elif not self._step.closed:
            await self.commit()


class AsyncClient(ClientView):
    """As Client. `async with AsyncClient(...) as client`, or connect() and close()."""

    def __init__(
        self,
        endpoint: str,
        *,
        timeout: float = TIMEOUT_S,
        curve_keys: str | Path | None = None,
        shared_memory: bool | int = True,
    ):
        self._session = Session(_Loop(), endpoint, timeout, curve_keys, shared_memory)

    async def connect(self) -> None:
        """Connects, and waits until the service is ready. Other calls do so by themselves."""
        await self._session.connected(self._session.until())

    async def hello(self) -> _wire.Info:
        """Asks for `info` again, and waits until the service is ready."""
        return await self._session.hello()

    wait_ready = hello

    def step(self, entries: Iterable[_wire.Entry | tuple[int, int, int]]) -> AsyncStep:
        """A step, which is opened by `async with` or `await`."""
        return AsyncStep(self._session, entries)

    async def run_layer(
        self,
        entries: Iterable[_wire.Entry | tuple[int, int, int]],
        layer: int,
        x: T,
        *,
        out: T | None = None,
        dtype: Any = None,
    ) -> T:
        """As Client.run_layer."""
        async with self.step(entries) as step:
            return await step.run(layer, x, out=out, dtype=dtype)

    async def fork(self, source: int, target: int, length: int) -> int:
        """As Client.fork."""
        return await self.fork_many([_wire.Fork(source, target, length)])

    async def fork_many(self, forks: Iterable[_wire.Fork | tuple[int, int, int]]) -> int:
        """As Client.fork_many."""
        return await self._session.fork(forks)

    async def truncate(self, sequence: int, length: int) -> int:
        """As Client.truncate."""
        return await self.truncate_many([_wire.Truncation(sequence, length)])

    async def truncate_many(self, truncations: Iterable[_wire.Truncation | tuple[int, int]]) -> int:
        """As Client.truncate_many."""
        return await self._session.truncate(truncations)

    async def free(self, *sequences: int) -> int:
        """As Client.free."""
        return await self._session.free(sequences)

    async def stats(self) -> _wire.Stats:
        """As Client.stats."""
        return await self._session.stats()

    async def close(self) -> None:
        """As Client.close."""
        self._session.close()

    async def __aenter__(self) -> AsyncClient:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
