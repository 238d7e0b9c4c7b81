"""A RUN: its rows on their way to the workers and back, in shared memory or as frames."""

from __future__ import annotations

from typing import Any

import numpy as np

from mla_client import _wire, errors
from mla_client._arrays import BITS, ITEM_BYTES, Rows, code_of
from mla_client._connection import Connection, Request
from mla_client._region import Place

# Workers that are late or cut off may still write to the output after these.
_LATE_WRITES = frozenset({errors.GroupLost.code, errors.Deadline.code})
_U32_MAX = 0xFFFFFFFF


class Step:
    """An open step, as the client knows it."""

    def __init__(self, connection: Connection, entries: list[_wire.Entry], opened: _wire.Opened):
        self.connection = connection
        self.entries = entries
        self.opened = opened
        self.id = opened.step
        self.closed = False
        self.times: _wire.RunTimes | None = None
        self.runs: set[Run] = set()  # of which nobody knows yet how they ended
        self.failed: dict[int, errors.MlaError] = {}  # layers whose KV is undefined


class Run:
    """Starts with what the caller has, ends with what the caller gets."""

    __slots__ = (
        "_in", "_input", "_layer", "_out", "_place", "_region", "_reply_dtype", "_step",
        "_x", "request", "times",
    )  # fmt: skip

    def __init__(self, step: Step, layer: int, x: Any, out: Any, dtype: Any):
        if step.closed:
            raise errors.Closed(f"step {step.id} was closed")
        if not 0 <= layer <= _U32_MAX:
            raise errors.Layer(f"there is no layer {layer}")
        self._step = step
        self._layer = layer
        self._x = Rows(x)
        self._out = None if out is None else Rows(out)
        if self._out is not None:
            if self._out.size != self._x.size:
                raise errors.Count(f"out is {self._out.shape}, and x is {self._x.shape}")
            self._reply_dtype = self._out.dtype
        else:
            self._reply_dtype = self._x.dtype if dtype is None else code_of(dtype)
        self._region = step.connection.region
        self._in: Place | None = None  # where the input is staged, and the output will be
        self._place: Place | None = None
        self._input: Any = None
        self.times: _wire.RunTimes | None = None
        self.request = Request(_wire.RUN)
        self.request.hook = self._replied

    def start(self) -> None:
        """Sends it, or has it wait until fewer are in flight."""
        connection = self._step.connection
        self._step.runs.add(self)
        if connection.ended is None and connection.runs >= connection.runs_max:
            connection.backlog.append(self._send)
        else:
            self._send()

    def _send(self) -> None:
        connection = self._step.connection
        if connection.ended is None:
            self.request.id = connection.next_id()
            self.request.frames = self._placed() or self._inline()
            if connection.send(self.request):
                return
            connection.look()
            connection.end(errors.ConnectionLost("the connection to the service ended"))
        self.request.lost = connection.ended
        self.request.finish()

    def _placed(self) -> list[Any] | None:
        """The request that names places in shared memory, if there are any to be had."""
        region, x, out = self._region, self._x, self._out
        if region is None:
            return None
        input_at = region.find(x)
        if input_at is None:
            self._in = region.take(x.size * ITEM_BYTES[x.dtype])
            if self._in is None:
                return None
            input_at = self._in.at
        output_at = region.find(out) if out is not None else None
        if output_at is None:
            self._place = region.take(x.size * ITEM_BYTES[self._reply_dtype])
            if self._place is None:
                self._in = None
                return None
            output_at = self._place.at
        if self._in is not None:
            self._input = self._in.bits(x.shape, BITS[x.dtype])
            x.copy_to(self._input)
        else:
            self._input = x.bits
        return [
            _wire.RUN_PLACED.pack(
                _wire.MAGIC, _wire.VERSION, _wire.RUN, self.request.id, 0, 0, 0, 1, 52, 0,
                self._step.id, self._layer, x.dtype, self._reply_dtype, x.rows, x.hidden,
                region.number, input_at, output_at,
            )
        ]  # fmt: skip

    def _inline(self) -> list[Any]:
        x = self._x
        if self._input is None:
            self._input = x.contiguous()
        self._place = None
        head = _wire.RUN_INLINE.pack(
            _wire.MAGIC, _wire.VERSION, _wire.RUN, self.request.id, 0, 0, 0, 0, 28,
            self._input.nbytes, self._step.id, self._layer, x.dtype, self._reply_dtype, x.rows,
            x.hidden,
        )  # fmt: skip
        if self._input.nbytes == 0:
            return [head]
        return [head, memoryview(self._input).cast("B")]

    def _replied(self, request: Request) -> bool:
        """The hook of the request."""
        connection = self._step.connection
        if request.status == errors.NotShared.code and connection.ended is None:
            # Its workers don't have the region, or don't have it yet.
            self._region = None
            request.status = 0
            self._send()
            return False
        if request.status in _LATE_WRITES and self._place is not None:
            assert self._region is not None
            step = self._step.id if request.status == errors.Deadline.code else None
            self._region.hold(self._place, connection.epoch, step)
        error = request.error()
        if error is None:
            try:
                self.times = self._step.times = _wire.run_times(request.body)
            except errors.ProtocolError as wrong:
                error = request.lost = wrong
        if error is None:
            self._step.failed.pop(self._layer, None)
        else:
            self._place = None
            if isinstance(error, (errors.Lost, errors.Internal)):
                self._step.failed[self._layer] = error
        self._in = self._input = None
        request.frames = []
        return True

    def known(self) -> None:
        """Somebody knows how it ended."""
        self._step.runs.discard(self)

    def result(self) -> Any:
        """The caller's output. To be called once, when the request is done."""
        self.request.raise_error()
        dtype = self._reply_dtype
        if self._place is not None:
            bits = self._place.bits(self._x.shape, BITS[dtype])
            self._place = None
        elif self._out is not None and self.request.payload is None:
            return self._out.source  # the workers have written it
        else:
            frame = self.request.payload
            payload = b"" if frame is None else frame.buffer
            self.request.payload = None
            if len(payload) != self._x.size * ITEM_BYTES[dtype]:
                raise errors.ProtocolError(f"a RUN's payload has {len(payload)} bytes")
            bits = np.frombuffer(payload, BITS[dtype]).reshape(self._x.shape)
        if self._out is not None:
            self._out.copy_from(bits)
            return self._out.source
        return self._x.like(dtype)(bits)
