"""Shared memory: a region that the workers have mapped as well, and the places in it."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
import struct
from bisect import bisect_left
from collections import deque
from typing import Any

import numpy as np

from mla_client._arrays import Bits, Rows
from mla_client._wire import ALIGNMENT, Shared

_SEALS = 0x2 | 0x4 | 0x1  # F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_SEAL
_REQUEST = struct.Struct("<Q16s")
_PEER = struct.Struct("iII")  # pid, uid, gid
_WAIT_S = 5.0
_UNIT = 64  # of places: a cache line, and more than the protocol asks


def fetch(shared: Shared) -> mmap.mmap:
    """Gets the region's memory from the service. OSError where it is not to be had, or not to be
    trusted: another user gave it, or somebody could still change its size."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        link.settimeout(_WAIT_S)
        link.connect(shared.path)
        peer = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        if _PEER.unpack(peer)[1] != os.geteuid():
            raise PermissionError("the memory is another user's")
        link.send(_REQUEST.pack(shared.region, shared.token))
        _, descriptors, _, _ = socket.recv_fds(link, 1, 1)
    if not descriptors:
        raise ConnectionRefusedError("the service did not give the memory")
    try:
        # Only a memfd has seals.
        if fcntl.fcntl(descriptors[0], fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise PermissionError("the memory is not sealed")
        if os.fstat(descriptors[0]).st_size != shared.size:
            raise PermissionError("the memory has another size")
        return mmap.mmap(descriptors[0], shared.size)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


class Place:
    """Some bytes of the region. They are free again when nobody has them any more: an array made
    of a place keeps it, and the place keeps the region mapped."""

    __slots__ = ("__array_interface__", "at", "region", "size", "used")

    def __init__(self, region: Region, at: int, size: int, used: int):
        self.region = region
        self.at = at
        self.size = size
        self.used = used  # of the size, which is rounded up

    def bits(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Bits:
        self.__array_interface__ = {
            "version": 3,
            "data": (self.region.base + self.at, False),
            "typestr": dtype.str,
            "shape": shape,
        }
        return np.asarray(self)

    def __del__(self) -> None:
        self.region.freed.append((self.at, self.size))


class Region:
    """Gives out places, the lowest first, so that no more memory is touched than has to be."""

    def __init__(self, number: int, memory: mmap.mmap):
        self.number = number
        self.size = len(memory)
        self._memory = np.frombuffer(memory, np.uint8)
        self.base: int = self._memory.__array_interface__["data"][0]
        self._free = [(0, self.size // _UNIT * _UNIT)]  # by address, none beside another
        # From any thread, at any moment: that is when the garbage collector runs.
        self.freed: deque[tuple[int, int]] = deque()
        self._held: list[tuple[Place, int, int | None]] = []

    def find(self, rows: Rows) -> int | None:
        """Where rows are in the region, if they are and the workers can use them there."""
        bits = rows.bits
        if bits is None:
            return None
        if not rows.tensor:
            # To ask for the address of an array takes longer than all of this.
            place = rows.place()
            if type(place) is not Place or place.region is not self:
                return None
            if bits.nbytes == place.used:
                return place.at
        at = rows.address() - self.base
        inside = 0 <= at <= self.size - bits.nbytes and at % ALIGNMENT == 0
        return at if inside else None

    def take(self, used: int) -> Place | None:
        """A place for so many bytes, if there is one."""
        size = max(1, (used + _UNIT - 1) // _UNIT) * _UNIT
        while self.freed:
            self._put(*self.freed.popleft())
        for i, (at, length) in enumerate(self._free):
            if length >= size:
                if length == size:
                    del self._free[i]
                else:
                    self._free[i] = (at + size, length - size)
                return Place(self, at, size, used)
        return None

    def _put(self, at: int, length: int) -> None:
        free = self._free
        i = bisect_left(free, (at, 0))
        if i < len(free) and at + length == free[i][0]:
            length += free.pop(i)[1]
        if i > 0 and free[i - 1][0] + free[i - 1][1] == at:
            free[i - 1] = (free[i - 1][0], free[i - 1][1] + length)
        else:
            free.insert(i, (at, length))

    def hold(self, place: Place, epoch: int, step: int | None) -> None:
        """Keeps a place that workers may yet write to, until there is a newer epoch or, where one
        is given, the step is closed."""
        self._held.append((place, epoch, step))

    def release(self, epoch: int, step: int | None = None) -> None:
        """There is such an epoch, or this step is closed."""
        if self._held:
            self._held = [
                held for held in self._held
                if held[1] >= epoch and (step is None or held[2] != step)
            ]  # fmt: skip
