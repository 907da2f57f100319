"""The random stream of the work in hand: thread-local, so that a step is a function of (seed, step, slice).

with random_stream(np.random.default_rng([seed, step, slice])):
    model(...)
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import numpy as np


class _Current(threading.local):
    rng: np.random.Generator | None = None


_current = _Current()


@contextlib.contextmanager
def random_stream(rng: np.random.Generator | None) -> Iterator[None]:
    """Layers that draw (Dropout) draw from `rng` inside, on this thread only; None: they may not."""
    before, _current.rng = _current.rng, rng
    try:
        yield
    finally:
        _current.rng = before


def open_stream() -> np.random.Generator | None:
    """The generator of the innermost `random_stream` on this thread, if there is one."""
    return _current.rng


def current_stream() -> np.random.Generator:
    """The generator of the innermost `random_stream` on this thread. RuntimeError without one."""
    if _current.rng is None:
        raise RuntimeError(
            "a layer draws random numbers but no stream is open on this thread: wrap the forward pass in "
            "`with random_stream(np.random.default_rng([seed, step])):`, or call model.eval()"
        )
    return _current.rng
