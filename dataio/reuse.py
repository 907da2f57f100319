"""Large arrays whose memory is used again once nobody holds them, nor any view of them.

The first touch of fresh memory costs the system more than filling it: without this, a third of the time that
batches take goes there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

_SMALL = 1 << 20  # bytes; what the allocator keeps at hand anyway


class Reuse:
    """Makes arrays. Memory it holds: as much as was ever in use at one time."""

    def __init__(self) -> None:
        self._free: list[npt.NDArray[np.uint8]] = []

    def empty(self, shape: tuple[int, ...], dtype: type[np.generic]) -> npt.NDArray[Any]:
        """An array with arbitrary contents, like np.empty."""
        count = math.prod(shape)
        size = count * np.dtype(dtype).itemsize
        if size < _SMALL:
            return np.empty(shape, dtype)
        lease = np.asarray(_Lease(self._block(size), self._free))
        return lease[:size].view(dtype).reshape(shape)

    def _block(self, size: int) -> npt.NDArray[np.uint8]:
        for i, block in enumerate(self._free):
            if size <= len(block) <= 2 * size:
                return self._free.pop(i)
        del self._free[:1]  # of another size than what is asked for now
        return np.empty(size + size // 8, np.uint8)


class _Lease:
    """Owner of a block on loan. Every view of the block keeps it alive; then it gives it back."""

    def __init__(self, block: npt.NDArray[np.uint8], free: list[npt.NDArray[np.uint8]]) -> None:
        self._block, self._free = block, free
        self.__array_interface__ = block.__array_interface__

    def __del__(self) -> None:
        self._free.append(self._block)
