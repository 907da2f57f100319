"""Codecs: what vectors and gradients look like while they travel between ranks.

A buffer is blocks, one after the other; a block is rows of one width. Every codec gives a block a number of
bytes that depends on its shape alone, so that receivers know what comes.

All round to the nearest, also bfloat16. Rows that are stored are rounded at random instead, because there
the same number is rounded again and again and the errors of small steps would add up; here each is rounded
once, and the nearest has half the error. Numbers that are not finite arrive as such (with "int8" the whole
row does, as NaN), and `check_finite` finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from tesserec.autograd.workers import parallel_map
from tesserec.embeddings.kernels.rows import load_rows, store_rows
from tesserec.embeddings.spans import weighted_spans
from tesserec.sharding.kernels import codecs as kernels

Array = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]
Name = Literal["fp32", "fp16", "bf16", "int8"]
Kernel = Callable[[Array, Counts, int, int, Array], None]  # (from, blocks, first block, last + 1, to)

_LEAST = 1 << 16  # numbers that are worth a task of their own


@dataclass(frozen=True, slots=True)
class Codec:
    """float32 numbers to bytes and back: `row_bytes` beside `item_bytes` for each number, `block_bytes` too.

    unit: of what its kernels read and write; None for numbers that travel as they are.
    """

    name: Name
    item_bytes: int
    unit: type[np.generic] | None = None
    row_bytes: int = 0
    block_bytes: int = 0
    into: Kernel | None = None
    back: Kernel | None = None

    @property
    def is_exact(self) -> bool:
        """Whether what arrives is what was sent."""
        return self.unit is None

    def bytes(self, rows: Any, width: Any) -> Any:
        """Size of a block of `rows` by `width`; of each block for arrays."""
        return rows * (width * self.item_bytes + self.row_bytes) + np.sign(rows) * self.block_bytes

    def encode(self, values: Array, rows: Counts, widths: Counts, out: Array | None = None) -> Array:
        """values: (N,) float32, blocks of `rows` (K,) by `widths` (K,) -> (S,) uint8.

        Written to `out`, which is that long, if given; else `values` itself may be what comes back.
        """
        self._check(values)
        if self.unit is None:
            return _moved(values.view(np.uint8), out)
        sizes = self.bytes(rows, widths)
        out = np.empty(int(sizes.sum()), np.uint8) if out is None else out
        self._run(self.into, values, _blocks(rows, widths, sizes, self.unit), out.view(self.unit))
        return out

    def decode(self, data: Array, rows: Counts, widths: Counts, out: Array | None = None) -> Array:
        """data: (S,) uint8 that `encode` made of such blocks -> (N,) float32, in `out` if given."""
        if self.unit is None:
            return _moved(data.view(np.float32), out)
        out = np.empty(int(rows @ widths), np.float32) if out is None else out
        self._check(out)
        blocks = _blocks(rows, widths, self.bytes(rows, widths), self.unit)
        self._run(self.back, data.view(self.unit), blocks, out)
        return out

    def error(self, values: Array) -> float:
        """Root of Σ(error)² / Σ(value)² of `values` (n, D) on one way."""
        shape, flat = np.array(values.shape)[:, None], values.reshape(-1)
        exact = flat.astype(np.float64)
        back = self.decode(self.encode(flat, *shape), *shape)
        return float(np.linalg.norm(back - exact) / (np.linalg.norm(exact) or 1.0))

    def _check(self, values: Array) -> None:
        if values.dtype != np.float32:
            raise ValueError(
                f"codec {self.name!r} got {values.dtype}, wanted float32: float64 tables travel as they are"
            )

    def _run(self, kernel: Any, source: Array, blocks: Counts, target: Array) -> None:
        ends = blocks[:, 0] + blocks[:, 2] * blocks[:, 3]
        parallel_map(lambda span: kernel(source, blocks, *span, target), weighted_spans(ends, _LEAST))


def _moved(data: Array, out: Array | None) -> Array:
    if out is None:
        return data
    out[:] = data
    return out


def _blocks(rows: Counts, widths: Counts, sizes: Counts, unit: type[np.generic]) -> Counts:
    """As `kernels.codecs` wants them; sizes: bytes of each."""
    numbers, units = rows * widths, sizes // np.dtype(unit).itemsize
    starts = (np.cumsum(counts) - counts for counts in (numbers, units))
    return np.stack([*starts, rows, widths], axis=1)


def _encode_bf16(values: Array, blocks: Counts, lo: int, hi: int, out: Array) -> None:
    part = _part(blocks, lo, hi)
    store_rows(values[None, part], out[None, part])


def _decode_bf16(data: Array, blocks: Counts, lo: int, hi: int, out: Array) -> None:
    part = _part(blocks, lo, hi)
    load_rows(data[None, part], out[None, part])


def _part(blocks: Counts, lo: int, hi: int) -> slice:
    """Where blocks lo … hi-1 are, in numbers, and in units of one number."""
    at, _, rows, width = blocks[hi - 1].tolist()
    return slice(int(blocks[lo, 0]), at + rows * width)


CODECS: Mapping[str, Codec] = {
    codec.name: codec
    for codec in (
        Codec("fp32", 4),
        Codec("fp16", 2, np.int16, 0, 2, kernels.encode_fp16, kernels.decode_fp16),
        Codec("bf16", 2, np.uint16, 0, 0, _encode_bf16, _decode_bf16),
        Codec("int8", 1, np.uint8, 2, 0, kernels.encode_int8, kernels.decode_int8),
    )
}


@dataclass(frozen=True, slots=True)
class Codecs:
    """How vectors travel home (`forward`) and gradients back to their rows (`backward`).

    "fp32": as they are. "fp16": 11 bits of precision, over a range that is fitted to each block; fit for
    gradients too. "bf16": 8 bits. "int8": 256 even steps from -greatest to greatest of each row.
    """

    forward: Name = "fp32"
    backward: Name = "fp32"

    def __post_init__(self) -> None:
        for way, name in (("forward", self.forward), ("backward", self.backward)):
            if name not in CODECS:
                raise ValueError(f"{way} codec: got {name!r}, wanted one of {', '.join(get_args(Name))}")

    @property
    def are_exact(self) -> bool:
        """Whether both leave numbers as they are."""
        return self.for_values.is_exact and self.for_gradients.is_exact

    @property
    def for_values(self) -> Codec:
        return CODECS[self.forward]

    @property
    def for_gradients(self) -> Codec:
        return CODECS[self.backward]
