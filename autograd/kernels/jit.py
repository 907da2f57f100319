"""How every kernel of this package is compiled: serial, without the interpreter lock, kept on disk.

Threads are the caller's (`autograd/workers.py`), so no kernel ever starts a threading layer of Numba's own.
No fast-math: sums keep the order they are written in.
"""

from __future__ import annotations

from numba import njit

kernel = njit(nogil=True, cache=True, error_model="numpy")
