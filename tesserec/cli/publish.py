"""The option `--publish` of `tesserec train`: a model repository that follows the training."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from tesserec.cli.console import console
from tesserec.cli.export import content_of

if TYPE_CHECKING:
    from tesserec.autograd.module import Module
    from tesserec.serve.publish import DeltaWriter
    from tesserec.train.export import ExportOptions
    from tesserec.train.touched import Changes

OVERLAP = 10.0  # seconds: so long the version before a new one gets deltas too, while services load that


class PublishedModel:
    """Where training publishes: a model's folder, which gets a version for each whole model, and its deltas.

    Deltas are written on a thread of their own, one at a time; what fails there is raised by the next call.
    """

    def __init__(self, folder: Path, run: Path, options: ExportOptions):
        """folder: REPOSITORY/MODEL. run: the run folder, which is there when the first model comes."""
        self.folder, self.run, self.options = folder, run, options
        self._writer: DeltaWriter | None = None
        self._before: tuple[DeltaWriter, float] | None = None  # and until when it is written
        self._thread = ThreadPoolExecutor(1, "publish")
        self._written: Future[None] = self._thread.submit(lambda: None)

    def whole(self, model: Module, step: int) -> None:
        """Write the next version."""
        from tesserec.serve.artefact import write_artefact
        from tesserec.serve.publish import DeltaWriter, next_version
        from tesserec.train.export import gather_model
        from tesserec.train.run import RunFolder

        self._written.result()
        found = gather_model(RunFolder.open(self.run), model, {"step": step}, self.options)
        version = next_version(self.folder)
        write_artefact(version, content_of(found, self.folder.resolve().name, self.options.candidate_id))
        if self._writer is not None:
            self._before = self._writer, time.monotonic() + OVERLAP
        self._writer = DeltaWriter(version)
        console.print(f"step {step:,}: published as {version}", highlight=False, soft_wrap=True)

    def changed(self, changes: Changes, step: int, last: bool) -> None:
        """Write the next delta of the newest version, durable when the next call returns, or the last."""
        self._written.result()
        self._written = self._thread.submit(self._write, changes, step, last)
        if last:
            self._written.result()

    def _write(self, changes: Changes, step: int, last: bool) -> None:
        if self._before is not None and time.monotonic() > self._before[1]:
            self._before = None
        for writer in filter(None, (self._writer, self._before and self._before[0])):
            writer.write(changes.tables, changes.dense, step=step, newest=changes.newest, last=last)
