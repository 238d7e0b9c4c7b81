"""The golden cases of tests/golden, with numpy alone. Weights and inputs are formulas of their
names: tests/lib/formula.h says which."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service import GOLDEN

F32 = NDArray[np.float32]
_MASK = (1 << 64) - 1


def bits_of(x: F32) -> NDArray[np.uint16]:
    """bf16, rounded to nearest even."""
    raw = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded: NDArray[np.uint16] = ((raw + 0x7FFF + ((raw >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


def floats_of(bits: NDArray[np.uint16]) -> F32:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def formula(name: str, shape: tuple[int, ...]) -> F32:
    """A tensor that is no weight."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & _MASK
    with np.errstate(over="ignore"):
        x = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(seed)
        x += np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    uniform = (x >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    return floats_of(bits_of(uniform)).reshape(shape)


def safetensors(path: Any) -> dict[str, NDArray[Any]]:
    raw = path.read_bytes()
    begin = 8 + int.from_bytes(raw[:8], "little")
    tensors = {}
    for name, what in json.loads(raw[8:begin]).items():
        if name != "__metadata__":
            first, end = what["data_offsets"]
            dtype = {"F32": "<f4", "I32": "<i4"}[what["dtype"]]
            data = np.frombuffer(raw[begin + first : begin + end], dtype)
            tensors[name] = data.reshape(what["shape"])
    return tensors


class Case:
    """Sequences, and for each layer their inputs and what their outputs must be."""

    def __init__(self, name: str):
        folder = GOLDEN / name
        case = json.loads((folder / "case.json").read_text())
        hidden = json.loads((folder / "config.json").read_text())["hidden_size"]
        tensors = safetensors(folder / "golden.safetensors")
        self.layers: list[int] = case["layers"]
        self.lengths: list[int] = case["lengths"]
        self.hidden: int = hidden
        self.inputs: dict[tuple[int, int], F32] = {}
        self.outputs: dict[tuple[int, int], F32] = {}
        for layer in self.layers:
            for i, length in enumerate(self.lengths):
                rows = tensors[f"rows.{layer}.{i}"]
                assert len(rows) == length, "a case that keeps some rows only"
                self.inputs[layer, i] = formula(f"input.{layer}.{i}", (length, hidden))
                self.outputs[layer, i] = tensors[f"output.{layer}.{i}"]

    def wrong(self, layer: int, i: int) -> F32:
        """Inputs that are just as random, and not those."""
        return formula(f"wrong.{layer}.{i}", (self.lengths[i], self.hidden))


def error(y: F32, expected: F32) -> float:
    """The norm of the difference, relative to that of what is expected."""
    return float(np.linalg.norm(y - expected) / np.linalg.norm(expected))
