"""Threads: the engine runs slices of a batch, or disjoint ranges of rows, on Python threads of its own.

Kernels and BLAS release the interpreter lock, so plain threads suffice. Results come in item order, and
none depends on the number of threads. Importing this module also settles the process's memory allocator
(`_keep_freed_memory`).
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Value = TypeVar("Value")


class _Here(threading.local):
    is_worker = False


_here = _Here()
_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_threads: int | None = None


def num_threads() -> int:
    """How many threads `parallel_map` uses: as set, or TESSEREC_NUM_THREADS, or the cores we may use."""
    if _threads is None:
        set_num_threads(int(os.environ.get("TESSEREC_NUM_THREADS") or _usable_cores()))
    return _threads or 1


def set_num_threads(n: int) -> None:
    """Use `n` ≥ 1 threads from now on. Changes speed, never results."""
    global _threads
    if n < 1:
        raise ValueError(f"number of threads (TESSEREC_NUM_THREADS): got {n}, wanted 1 or more")
    with _lock:
        _threads = n
    _forget_pool()


def parallel_map(fn: Callable[[Item], Value], items: Sequence[Item]) -> list[Value]:
    """[fn(item) for item in items], on `num_threads()` threads.

    The first exception in item order is raised again, after running items have ended and waiting ones were
    dropped. Runs inline for one item, for one thread, and inside another `parallel_map`. The caller's
    `no_grad` holds inside; a `random_stream` does not, because items would draw from it in no fixed order.
    """
    if len(items) < 2 or _here.is_worker or num_threads() == 1:
        return [fn(item) for item in items]
    pool = _executor()
    futures = [pool.submit(contextvars.copy_context().run, fn, item) for item in items]
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()
        wait(futures)


@contextlib.contextmanager
def one_thread_blas() -> Iterator[None]:
    """Matrix products inside use one thread each: the threads are ours, and two pools fight. Process-wide."""
    with _blas().limit(limits=1, user_api="blas"):
        yield


def _executor() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(num_threads(), "tesserec", initializer=_become_worker)
        return _pool


def _become_worker() -> None:
    _here.is_worker = True


def _usable_cores() -> int:
    """Cores that this process may run on; a job scheduler may have given it fewer than there are."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _forget_pool() -> None:
    """The next call starts new threads; the old ones end with their last item."""
    global _pool
    _pool = None


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def _keep_freed_memory() -> None:
    """Let glibc reuse freed temporaries up to 32 MiB instead of giving their pages back to the kernel.

    Fresh pages are dear: a DLRM step in slices of 1024 samples took 3,500 page faults and 8 ms for them,
    now none.
    """
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            libc = ctypes.CDLL(None)
            libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
            libc.mallopt(M_TRIM_THRESHOLD, 512 << 20)


_keep_freed_memory()
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_pool)
