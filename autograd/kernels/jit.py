"""How every kernel of this package is compiled: serial, without the interpreter lock, kept on disk.

Threads are the caller's (`autograd/workers.py`), so no kernel ever starts a threading layer of Numba's own.
"""

from __future__ import annotations

from typing import Any

from numba import njit

# Sums keep the order they are written in.
kernel: Any = njit(nogil=True, cache=True, error_model="numpy")

# Dot products are summed in vector lanes, which are settled when the kernel is compiled: the bits depend on
# the processor, as those of BLAS do, but never on threads or on other samples.
dot_kernel: Any = njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})

# A line or two that become part of their caller.
inlined: Any = njit(nogil=True, error_model="numpy", inline="always")
