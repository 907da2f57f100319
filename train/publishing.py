"""Publishing while training: the whole model at the start and now and then, else what steps changed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tesserec.autograd.module import Module
from tesserec.sharding.comm import Comm
from tesserec.sharding.timeline import span
from tesserec.sharding.watchdog import patience
from tesserec.train.learner import Learner
from tesserec.train.ranks import on_first_rank
from tesserec.train.touched import Changes


@dataclass(frozen=True)
class Publishing:
    """Functions that are told the model, on rank 0, and when.

    whole(the model, steps done): to be read at once, and left as it is. changed(what has changed since it was
    told last, steps done, whether no more will come). every: seconds between changes, at least. whole_every:
    after how many changes the whole model is told anew; None: only at the start.
    """

    whole: Callable[[Module, int], None]
    changed: Callable[[Changes, int, bool], None]
    every: float = 1.0
    whole_every: int | None = None


class Publisher:
    """Keeps track of what has been told. Methods are collective but for `is_due`."""

    def __init__(self, publishing: Publishing, learner: Learner, comm: Comm):
        """ConfigError where changes cannot be noted."""
        self.publishing, self.learner, self.comm = publishing, learner, comm
        learner.watch()  # which says early what cannot be
        self._count, self._told_at = 0, time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time to tell changes, by the clock of this rank."""
        return time.monotonic() - self._told_at >= self.publishing.every

    @property
    def wants_whole(self) -> bool:
        """Whether so many changes were told that the whole model is due."""
        return self._count == self.publishing.whole_every

    def tell_whole(self, step: int, model: Callable[[], Module]) -> None:
        """All of the model, which `model` gives on rank 0."""
        with patience("publishing the model"), span("publish"):
            self.learner.watch()  # what has changed is in it
            on_first_rank(self.comm, lambda: self.publishing.whole(model(), step))
        self._count, self._told_at = 0, time.monotonic()

    def tell_changes(self, step: int, *, last: bool = False) -> None:
        """What steps have changed, up to now; with `last`, nothing follows."""
        with span("publish"):
            changes = self.learner.changes()
            on_first_rank(self.comm, lambda: self.publishing.changed(changes, step, last))
        self._count, self._told_at = self._count + 1, time.monotonic()
