"""How every kernel of this package is compiled: serial, without the interpreter lock, kept on disk.

Threads are the caller's (`autograd/workers.py`). No fast-math: sums keep the order they are written in, so a
result has the same bits whoever computes it.
"""

from __future__ import annotations

from typing import Any

from numba import njit

kernel: Any = njit(nogil=True, cache=True, error_model="numpy")

# For the parts of a kernel that LLVM is to put where they are called.
inlined: Any = njit(nogil=True, cache=True, error_model="numpy", forceinline=True)

# Dot products are summed in vector lanes, which are settled when the kernel is compiled: the bits depend on
# the processor, as those of BLAS do, but never on threads or on other samples.
dot_kernel: Any = njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})
