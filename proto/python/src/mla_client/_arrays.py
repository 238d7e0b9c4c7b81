"""numpy arrays and torch tensors as rows of f32 or bf16, without copies where their memory allows.

numpy has no bf16 of its own. Arrays of ml_dtypes.bfloat16 are bf16; so are arrays of uint16, which
are taken for the bits of bf16. torch is never imported here: who has a tensor has torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from mla_client import errors
from mla_client._wire import BF16, F32

try:
    import ml_dtypes

    BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
except ImportError:
    BFLOAT16 = np.dtype(np.uint16)

Bits = np.ndarray[Any, np.dtype[Any]]  # float32, or uint16 that is bf16

FLOAT32 = np.dtype(np.float32)
UINT16 = np.dtype(np.uint16)
ITEM_BYTES = {F32: 4, BF16: 2}
BITS: dict[int, np.dtype[Any]] = {F32: FLOAT32, BF16: UINT16}
_NUMPY = {FLOAT32: F32, UINT16: BF16, BFLOAT16: BF16}


def _torch() -> Any:
    return sys.modules.get("torch")


class Rows:
    """One side of a RUN: the caller's array, and its bits where they can be used as they are."""

    __slots__ = ("bits", "dtype", "shape", "size", "source", "tensor")

    def __init__(self, source: Any):
        self.source = source
        self.tensor = False
        self.bits: Bits | None = None  # None: not contiguous, or the memory of another device
        if isinstance(source, np.ndarray):
            self.dtype = F32 if source.dtype is FLOAT32 else _NUMPY.get(source.dtype, 0)
            self.size = source.size
            if source.flags.c_contiguous and self.dtype:
                self.bits = source if self.dtype == F32 else source.view(UINT16)
        elif (torch := _torch()) is not None and isinstance(source, torch.Tensor):
            self.tensor = True
            self.size = source.numel()
            self.dtype = {torch.float32: F32, torch.bfloat16: BF16}.get(source.dtype, 0)
            if source.device.type == "cpu" and source.is_contiguous() and self.dtype:
                self.bits = _tensor_bits(source)
        else:
            raise TypeError(f"rows are a numpy array or a torch tensor, not {type(source)}")
        if not self.dtype:
            raise errors.Dtype(f"{source.dtype} can't be sent")
        self.shape: tuple[int, ...] = tuple(source.shape)
        if not self.shape:
            raise errors.Count("a scalar has no rows")

    @property
    def hidden(self) -> int:
        return self.shape[-1]

    @property
    def rows(self) -> int:
        return self.size // self.shape[-1] if self.size else 0

    def place(self) -> Any:
        """What the memory of an array belongs to, if that is no array, and of a tensor None."""
        owner = self.bits
        while type(owner) is np.ndarray:
            owner = owner.base
        return owner

    def address(self) -> int:
        """Of the bits, where there are any."""
        if self.tensor:
            return int(self.source.data_ptr())
        assert self.bits is not None
        return int(self.bits.__array_interface__["data"][0])

    def copy_to(self, bits: Bits) -> None:
        """Fills bits, which have the dtype and shape of these rows."""
        if self.tensor:
            _tensor(bits, self.dtype).copy_(self.source.detach())
        else:
            bits[...] = self.source if self.dtype == F32 else self.source.view(UINT16)

    def copy_from(self, bits: Bits) -> None:
        """Fills the caller's array."""
        if self.tensor:
            self.source.detach().copy_(_tensor(bits.reshape(self.shape), self.dtype))
        elif self.dtype == F32:
            self.source[...] = bits.reshape(self.shape)
        else:
            self.source.view(UINT16)[...] = bits.reshape(self.shape)

    def contiguous(self) -> Bits:
        """The bits, copied if they have to be."""
        if self.bits is not None:
            return self.bits
        bits: Bits = np.empty(self.shape, BITS[self.dtype])
        self.copy_to(bits)
        return bits

    def like(self, dtype: int) -> Callable[[Bits], Any]:
        """What makes an array of this kind, and on this device, of bits of that dtype."""
        if self.tensor:
            device = self.source.device
            if device.type == "cpu":
                return lambda bits: _tensor(bits, dtype)
            # The copy is complete when `to` returns, as its source is ordinary memory.
            return lambda bits: _tensor(bits, dtype).to(device)
        if dtype == F32:
            return lambda bits: bits
        if self.source.dtype == UINT16:
            return lambda bits: bits
        return lambda bits: bits.view(BFLOAT16)


def _tensor(bits: Bits, dtype: int) -> Any:
    torch = _torch()
    if dtype == F32:
        return torch.from_numpy(bits)
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)


def _tensor_bits(tensor: Any) -> Bits:
    torch = _torch()
    detached = tensor.detach()
    bits: Bits
    if detached.dtype == torch.float32:
        bits = detached.numpy()
    else:
        bits = detached.view(torch.int16).numpy().view(UINT16)
    return bits


def code_of(dtype: Any) -> int:
    """f32 or bf16, from what numpy or torch call it; "float32" and "bfloat16" will do, too."""
    torch = _torch()
    if torch is not None and isinstance(dtype, torch.dtype):
        code = {torch.float32: F32, torch.bfloat16: BF16}.get(dtype, 0)
    elif isinstance(dtype, str) and dtype in {"bfloat16", "bf16"}:
        code = BF16
    else:
        code = _NUMPY.get(np.dtype(dtype), 0)
    if not code:
        raise errors.Dtype(f"{dtype} can't be sent")
    return code


def wrapper_of(dtype: Any) -> Callable[[Bits], Any]:
    """What makes an array, or tensor, of that dtype of bits."""
    code = code_of(dtype)
    torch = _torch()
    if torch is not None and isinstance(dtype, torch.dtype):
        return lambda bits: _tensor(bits, code)
    if code == F32 or (not isinstance(dtype, str) and np.dtype(dtype) == UINT16):
        return lambda bits: bits
    return lambda bits: bits.view(BFLOAT16)
