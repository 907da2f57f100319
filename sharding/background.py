"""A thread for one channel: what it is given is done in order, while the thread that gave it goes on."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Value = TypeVar("Value")
Task = tuple[Callable[[], Any], "Future[Any]"]


class Background:
    """Calls on a thread of their own, one after the other; the end of the process does not wait for it."""

    def __init__(self, name: str):
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        weakref.finalize(self, self._tasks.put, None)
        threading.Thread(target=_work, args=(self._tasks,), name=name, daemon=True).start()

    def submit(self, call: Callable[[], Value]) -> Future[Value]:
        """What `call()` will return; its exception is raised where the result is asked for."""
        future: Future[Value] = Future()
        self._tasks.put((call, future))
        return future


def _work(tasks: queue.SimpleQueue[Task | None]) -> None:
    while task := tasks.get():
        call, future = task
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
        del task, call, future  # what they hold is not kept while waiting
