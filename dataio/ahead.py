"""Work done ahead of its reader, on threads, with results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def ahead(tasks: Iterable[Callable[[], T]], *, workers: int, depth: int) -> Generator[T, None, None]:
    """Results of the tasks, in order, up to `depth` of them computed ahead on `workers` threads.

    An exception in a task is raised at its turn. Whatever ends this generator, no thread outlives it.
    """
    waiting = iter(tasks)
    with ThreadPoolExecutor(workers, thread_name_prefix="tesserec-ahead") as pool:
        pending: deque[Future[T]] = deque(pool.submit(task) for task in islice(waiting, depth))
        try:
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(task) for task in islice(waiting, 1))
                yield result
        finally:
            for future in pending:
                future.cancel()
