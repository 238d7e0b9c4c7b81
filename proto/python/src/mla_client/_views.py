"""What the synchronous and the asyncio client tell alike, without waiting for anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mla_client import _wire, errors
from mla_client._run import Step as OpenStep
from mla_client._session import Session


class StepView:
    """Of a step."""

    _opened: OpenStep | None

    @property
    def _step(self) -> OpenStep:
        if self._opened is None:
            raise errors.Closed("the step was not opened: use it with `async with` or `await`")
        return self._opened

    @property
    def id(self) -> int:
        return self._step.id

    @property
    def entries(self) -> list[_wire.Entry]:
        return self._step.entries

    @property
    def opened(self) -> _wire.Opened:
        """What the service made of it: rows of decode and prefill, microbatches, free blocks."""
        return self._step.opened

    @property
    def times(self) -> _wire.RunTimes | None:
        """Where the time of the RUN went that has ended last."""
        return self._step.times


class ClientView:
    """Of a client."""

    _session: Session

    @property
    def info(self) -> _wire.Info:
        """What HELLO told when it was last asked: the model, the layers, the limits."""
        if self._session.info is None:
            raise errors.Closed("the client did not connect yet")
        return self._session.info

    @property
    def epoch(self) -> int:
        """The newest epoch that a reply of this connection had."""
        return self._session.epoch

    @property
    def shared(self) -> bool:
        """Whether there is memory that is shared with the workers."""
        return self._session.shared

    def buffer(self, shape: int | Sequence[int], dtype: Any = "float32") -> Any:
        """An array, or for one of torch's dtypes a tensor, in shared memory: RUNs take it as x and
        as out without a copy. Where there is no shared memory (left), it is an ordinary one. Its
        content is arbitrary. After a connection was lost buffers are ordinary arrays, too. A
        client of asyncio has to be connected before."""
        return self._session.buffer(shape, dtype)
