"""Threads: the engine runs slices of a batch, or disjoint ranges of rows, on Python threads of its own.

Kernels and BLAS release the interpreter lock, so plain threads suffice. Results come in item order, and
none depends on the number of threads.

There is one pool of threads at a time. While ours work, BLAS is held to one thread each, and gets its own
back when the last of them is done: nobody has to set an environment variable. Numba's threads never start,
because no kernel is compiled for them. Importing this module also settles the process's memory allocator
(`_keep_freed_memory`).
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Generic, TypeVar

from threadpoolctl import ThreadpoolController

from tesserec.autograd.random import random_stream

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
    """[fn(item) for item in items], on `num_threads()` threads, of which the caller's is one.

    The first exception in item order is raised again, after running items have ended and waiting ones were
    dropped. Runs inline for one item, for one thread, and inside another `parallel_map`. The caller's
    `no_grad` holds inside; a `random_stream` does not, because items would draw from it in no fixed order.
    """
    with random_stream(None):
        if len(items) < 2 or _here.is_worker or num_threads() == 1:
            return [fn(item) for item in items]
        work = _Work(fn, items)
        with one_thread_blas():
            pool, others = _executor(), min(num_threads(), len(items)) - 1
            futures = [pool.submit(contextvars.copy_context().run, work.share) for _ in range(others)]
            try:
                work.share()
            finally:
                wait([future for future in futures if not future.cancel()])
        return work.results()


class _Work(Generic[Item, Value]):
    """Items that several threads take one by one, in their order."""

    def __init__(self, fn: Callable[[Item], Value], items: Sequence[Item]):
        self.fn, self.items, self.take = fn, items, itertools.count().__next__
        self.values: dict[int, Value] = {}
        self.errors: dict[int, BaseException] = {}

    def share(self) -> None:
        """Work on this thread until no item is left, or one has failed."""
        before, _here.is_worker = _here.is_worker, True
        try:
            while not self.errors and (i := self.take()) < len(self.items):
                try:
                    self.values[i] = self.fn(self.items[i])
                except BaseException as error:
                    self.errors[i] = error
        finally:
            _here.is_worker = before

    def results(self) -> list[Value]:
        for i in sorted(self.errors):
            raise self.errors[i]
        return [self.values[i] for i in range(len(self.items))]


class _Blas:
    """The BLAS libraries of the process, and who holds them to one thread. Changed under `_lock`."""

    def __init__(self) -> None:
        self.libraries = ThreadpoolController().select(user_api="blas").lib_controllers
        self.holders = 0
        self.before: list[int] = []

    def hold(self) -> None:
        self.holders += 1
        if self.holders == 1:
            self.before = [library.get_num_threads() for library in self.libraries]
            self._set([1] * len(self.libraries))

    def release(self) -> None:
        self.holders -= 1
        if self.holders == 0:
            self._set(self.before)

    def _set(self, numbers: list[int]) -> None:
        for library, number in zip(self.libraries, numbers, strict=True):
            library.set_num_threads(number)


@contextlib.contextmanager
def one_thread_blas() -> Iterator[None]:
    """Matrix products inside use one thread each, in the whole process. `parallel_map` sees to it itself.

    Around a loop it saves the switching, and keeps the threads of BLAS, which wait busily, from waking up in
    between. Contexts may overlap, on several threads too; the last to end gives BLAS its threads back. Counts
    for the libraries that are loaded when it is first used, numpy's among them.
    """
    with _lock:
        blas = _blas()
        blas.hold()
    try:
        yield
    finally:
        with _lock:
            blas.release()


def _executor() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(num_threads(), "tesserec")
        return _pool


def _usable_cores() -> int:
    """Cores that this process may run on; a job scheduler may have given it fewer than there are."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _forget_pool() -> None:
    """The next call starts new threads; the old ones end with their last item."""
    global _pool
    _pool = None


@functools.cache
def _blas() -> _Blas:
    return _Blas()


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
