"""How every kernel of this package is compiled: serial, without the interpreter lock, kept on disk.

Threads are the caller's (`autograd/workers.py`). No fast-math: sums keep the order they are written in, so a
result has the same bits whoever computes it.
"""

from __future__ import annotations

from typing import Any

from numba import njit

kernel: Any = njit(nogil=True, cache=True, error_model="numpy")
