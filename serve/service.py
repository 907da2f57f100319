"""What the routes share: the repository, the queue, the counts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from tesserec.autograd.workers import one_thread_blas
from tesserec.serve.access import Tokens
from tesserec.serve.batcher import Batcher, Scorer
from tesserec.serve.counts import WorkerCounts
from tesserec.serve.metrics import INTERVAL, Metrics
from tesserec.serve.repository import Repository
from tesserec.serve.settings import ServeSettings
from tesserec.serve.version import Version

_log = logging.getLogger("tesserec.serve")


class Service:
    """One worker's."""

    def __init__(self, repository: Repository, settings: ServeSettings, counts: Path | None):
        """counts: the folder in which workers share theirs; None when there is only one."""
        self.repository, self.settings = repository, settings
        self.tokens = None if settings.tokens is None else Tokens(settings.tokens)
        self.metrics = Metrics(counts)
        self.batcher = Batcher(settings.queue, self._batch_scored)
        self.draining = False

    @property
    def unready(self) -> dict[str, str]:
        """Why requests should go elsewhere: {model, or "service": reason}."""
        return {"service": "it is shutting down"} if self.draining else self.repository.not_ready()

    def counts(self) -> WorkerCounts:
        """This worker's, up to date. Call it on the event loop."""
        ready = not self.unready
        return self.metrics.here(ready=ready, requests=self.batcher.requests, rows=self.batcher.rows)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While inside, models are loaded and followed, and counts are folded."""
        with one_thread_blas():
            await asyncio.to_thread(self.repository.start)
            ticking = asyncio.create_task(self._tick())
            try:
                yield
            finally:
                ticking.cancel()
                await asyncio.to_thread(self.repository.stop)

    async def _tick(self) -> None:
        """At the end of every interval: fold the counts, share them, look whether the tokens changed."""
        while True:
            await asyncio.sleep(INTERVAL - time.time() % INTERVAL)
            try:
                self.metrics.fold(round(time.time() / INTERVAL) - 1)
                self.metrics.share(self.counts())
                if self.tokens is not None:
                    self.tokens.follow()
            except Exception:
                _log.exception("counting")

    def _batch_scored(self, scorer: Scorer, requests: int, scores: npt.NDArray[np.float32]) -> None:
        self.metrics.of(cast(Version, scorer)).batch(requests, scores)
