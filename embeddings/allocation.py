"""Memory of tables and of their optimizer state; in `planning`, only how much it would be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LINE = 64  # bytes: rows that begin where a cache line does cost one miss less

_planning = ContextVar("planning", default=False)


@contextmanager
def planning() -> Iterator[None]:
    """Inside, models and optimizers are made in full but for their tables, which take no memory.

    The arrays of rows and their state have all their shape, hold one zero again and again, and are read-only.
    """
    token = _planning.set(True)
    try:
        yield
    finally:
        _planning.reset(token)


def is_planning() -> bool:
    """Whether in `planning`, where rows and state are not to be filled."""
    return _planning.get()


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any], allocate: Callable[..., Array]) -> Array:
    """`allocate(shape, dtype)`, beginning at a cache line. allocate: np.empty or np.zeros."""
    if is_planning():
        return np.broadcast_to(np.zeros((), dtype), shape)
    size, spare = math.prod(shape), LINE // dtype.itemsize
    memory = allocate(size + spare, dtype)
    skip = -memory.ctypes.data % LINE // dtype.itemsize
    return memory[skip : skip + size].reshape(shape)
