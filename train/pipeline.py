"""What several ranks do ahead: they read batch i + 2 and send out the ids of batch i + 1 while i computes.

And the timeline that shows it, as a file for Perfetto (ui.perfetto.dev) or chrome://tracing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tesserec.dataio.atomic import atomic_file
from tesserec.sharding.comm import Comm
from tesserec.sharding.timeline import Event, Timeline
from tesserec.train.ranks import to_first_rank

T = TypeVar("T")


def one_ahead(make: Callable[[], T | None]) -> Generator[T, None, None]:
    """What `make()` gives until it gives None, each made on a thread while the one before is in use.

    Where making is collective, ranks that leave after the same value have made the same ones: what has begun
    is always finished.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="tesserec-input_dist") as thread:
        making = thread.submit(make)
        while (made := making.result()) is not None:
            making = thread.submit(make)
            yield made


class Recording:
    """The timeline of `steps` steps of all ranks, written to `path`. The first step of all is left out.

    It may compile kernels. The methods are collective.
    """

    def __init__(self, path: Path, comm: Comm, steps: int = 50):
        self.path, self.comm, self.steps = path, comm, steps
        self.timeline = Timeline()
        self.stepped, self.written = 0, False

    def step(self) -> None:
        """To be called after each step."""
        self.stepped += 1
        if self.stepped == 1:
            self.timeline.start()
        elif self.stepped > self.steps:
            self.finish()

    def finish(self) -> None:
        """Write what was recorded, once."""
        if not self.written:
            self.written = True
            self.timeline.stop()
            write_timeline(self.path, to_first_rank(self.comm, self.timeline.events(self.comm.rank)))


def write_timeline(path: Path, ranks: list[list[Event]]) -> None:
    """The events of all ranks as one file, with the first at time 0; nothing where there are no ranks."""
    events = [event for rank in ranks for event in rank]
    start = min((event["ts"] for event in events if "ts" in event), default=0)
    moved = [event | {"ts": round(event["ts"] - start, 3)} if "ts" in event else event for event in events]
    if ranks:
        with atomic_file(path) as file:
            file.write_text(json.dumps({"traceEvents": moved, "displayTimeUnit": "ms"}))
