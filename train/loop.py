"""The training loop: epochs, validation, early stopping, checkpoints; stopping and resuming without a trace.

All that the loop remembers is a `State` of numbers. With the arrays of the `Learner` it is the whole truth: a
run that continues from a checkpoint computes the same bits as one that was never interrupted.

Several ranks run the same loop, each on its part of every batch. What one of them sees alone (a signal, the
clock) becomes a decision of all; rank 0 writes the run folder.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from tesserec.autograd.workers import one_thread_blas, set_num_threads
from tesserec.dataio.config import ConfigError
from tesserec.dataio.dataset import DataError, Dataset
from tesserec.dataio.stream import num_batches, read_batches
from tesserec.embeddings.collection import unseen_ids
from tesserec.sharding.comm import Comm, LocalComm
from tesserec.sharding.timeline import span
from tesserec.sharding.watchdog import patience
from tesserec.train.checkpoint import (
    checkpoint_folder,
    checkpoint_steps,
    remove_checkpoint,
    save_checkpoint,
)
from tesserec.train.config import TrainConfig, check_ranks
from tesserec.train.evaluate import evaluate_split
from tesserec.train.learner import Learner, Share, load_model, tolerant_features
from tesserec.train.measured import Measuring
from tesserec.train.memory import run_memory
from tesserec.train.pipeline import Recording
from tesserec.train.publishing import Publisher, Publishing
from tesserec.train.ranks import on_first_rank
from tesserec.train.run import Journal, find_run, without_nan
from tesserec.train.step import TrainingError


class Interrupted(Exception):
    """The loop was asked to stop, and has saved."""


@dataclass
class State:
    """Where a training run stands. `epoch` and `batch` are the position of the next batch."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    samples: int = 0
    seconds: float = 0.0  # in steps, with waiting for their data
    loss_sum: float = 0.0  # of the steps since the last logged line
    loss_steps: int = 0
    validated: int = 0  # step of the last validation
    best: dict[str, Any] | None = None  # metrics of the best validation, with its step
    to_beat: float | None = None  # by more than early_stopping.min_delta
    unbeaten: int = 0  # validations in a row that did not
    unseen: dict[str, int] = field(default_factory=dict)  # unseen ids by feature, in steps
    journal: int = 0  # bytes of metrics.jsonl
    finished: str = ""  # why the run is at its end


def _ignore(*_: Any) -> None:
    pass


@dataclass(frozen=True)
class Watcher:
    """Functions that are told how training goes.

    started(state, steps in all), stepped(state, loss of the step, steps in all), validating(rows seen),
    validated(line of the journal), saved(step, seconds it took).
    """

    started: Callable[[State, int], None] = _ignore
    stepped: Callable[[State, float, int], None] = _ignore
    validating: Callable[[int], None] = _ignore
    validated: Callable[[dict[str, Any]], None] = _ignore
    saved: Callable[[int, float], None] = _ignore


class Trainer:
    """One training run: `Trainer(config).fit()`."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        resume: bool = False,
        overwrite: bool = False,
        watcher: Watcher | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        comm: Comm | None = None,
        timeline: Path | None = None,
        publishing: Publishing | None = None,
    ):
        """Checks everything and builds the model; writes nothing. MemoryLimitError if its tables cannot fit.

        resume: go on with the run in `config.output`, if there is one. overwrite: replace it. should_stop:
        asked after each step and each batch of a validation; when True on any rank, `fit` saves and raises
        Interrupted. comm: the ranks that train together; each makes a Trainer of the same config and calls
        `fit`. timeline: a file for what they do when in some of the first steps; see `Recording`. publishing:
        who is told the model while it is trained.
        """
        self.config, self.settings, self.comm = config, config.train, comm or LocalComm()
        check_ranks(config, self.comm.size)
        self.dataset = Dataset.open(config.data.path)
        self.run, self.resuming = on_first_rank(
            self.comm, lambda: find_run(config, self.dataset, resume=resume, overwrite=overwrite)
        )
        _check_validation(self.dataset, config)
        self.watcher, self.should_stop = watcher or Watcher(), should_stop
        self.recording = Recording(timeline, self.comm) if timeline else None
        self.batches_per_epoch = _batches_per_epoch(self.dataset, config)
        self.total_steps = _total_steps(config, self.batches_per_epoch)
        if self.settings.threads:
            set_num_threads(self.settings.threads)
        run_memory(config, self.dataset, self.comm.hosts, self.comm.rank).check()
        self.measuring = Measuring(self.comm)
        with patience("making the model"):
            self.learner = Learner(config, self.dataset.info, self.total_steps, self.comm)
        self.measuring.built(self.learner, config.data.batch_size)
        self.publisher = Publisher(publishing, self.learner, self.comm) if publishing else None
        self.state = State()
        self._beginning = ExitStack()  # until the first step is done, which may compile kernels
        self._unsaved, self._saved_at = True, time.monotonic()

    def fit(self) -> State:
        """Train to the end, from the start or the last checkpoint. Raises Interrupted, TrainingError."""
        if not self.resuming:
            self._on_first_rank(lambda: self.run.begin(self.config, self.dataset))
        with ExitStack() as stack:
            self._on_first_rank(lambda: stack.enter_context(self.run.locked()))
            stack.enter_context(one_thread_blas())
            if self.resuming:
                self._restore()
            self.watcher.started(self.state, self.total_steps)
            self.journal = Journal(self.run.metrics if self.comm.rank == 0 else None, self.state.journal)
            stack.enter_context(closing(self.journal))
            self._publish_whole()
            stack.enter_context(self._beginning).enter_context(patience("the first step"))
            if self.state.step:
                self._duties()  # a run that was stopped while validating does so now
            while not self.finished():
                self._epoch()
            if self._unsaved or self.state.finished != self.finished():
                self._save()
            self._publish_last()
            if self.recording:
                self.recording.finish()
        return self.state

    def finished(self) -> str:
        """Why the run is at its end, or "" when it is not."""
        state, settings = self.state, self.settings
        if state.step >= self.total_steps:
            return f"all {state.step} steps done"
        if settings.early_stopping and state.unbeaten >= settings.early_stopping.patience:
            return f"stopped early: {state.unbeaten} validations without progress"
        return ""

    def _epoch(self) -> None:
        """The rest of the current epoch."""
        with closing(self._batches()) as batches, closing(self.learner.shares(batches)) as shares:
            start = time.perf_counter()
            for share in _awaited(shares):
                with span("step"), self.measuring.step(share):
                    self._learn(share)
                self._beginning.close()
                self.state.seconds += time.perf_counter() - start
                if self.recording:
                    self.recording.step()
                self._duties()
                if self.finished():
                    break
                start = time.perf_counter()

    def _batches(self) -> Any:
        data = self.config.data
        return read_batches(
            self.dataset,
            data.train,
            data.batch_size,
            seed=self.settings.seed,
            epoch=self.state.epoch,
            shuffle=data.shuffle,
            skip=self.state.batch,
            rank=self.comm.rank,
            size=self.comm.size,
            streams=data.streams,
            unseen=tolerant_features(self.dataset.info, self.config),
            around=partial(span, "read"),
        )

    def _learn(self, share: Share) -> None:
        """One step and its place in the log."""
        state = self.state
        try:
            loss = self.learner.learn(share, state.step)
        except TrainingError as error:
            raise TrainingError(f"epoch {state.epoch}, batch {state.batch}, {error}") from None
        self._unsaved = True
        state.step += 1
        state.batch += 1
        if state.batch == self.batches_per_epoch:
            state.epoch, state.batch = state.epoch + 1, 0
        state.samples += self.config.data.batch_size
        state.loss_sum += loss
        state.loss_steps += 1
        if state.step % self.settings.log_every == 0:
            self._log_training()
        self.watcher.stepped(state, loss, self.total_steps)

    def _log_training(self) -> None:
        state = self.state
        self.journal.append(
            {
                "kind": "train",
                "step": state.step,
                "epoch": state.epoch,
                "loss": state.loss_sum / state.loss_steps,
                "lr_factor": self.learner.factor(state.step - 1),
            }
        )
        state.loss_sum, state.loss_steps = 0.0, 0

    def _duties(self) -> None:
        """What is due at this step besides learning. Saving is last, so that it includes the rest."""
        split = self.config.data.valid
        improved = split is not None and self._validation_is_due() and self._validate(split)
        publisher = self.publisher
        asked, overdue = self.should_stop(), self._saving_is_late()
        with span("decide"):
            stop, late, due = self._anywhere(asked, overdue, publisher is not None and publisher.is_due())
        if stop:
            self._stop()
        if publisher is not None and due:
            publisher.tell_changes(self.state.step)
            if publisher.wants_whole:
                self._publish_whole()
        if improved or late or self._checkpoint_is_due():
            self._save()

    def _stop(self) -> NoReturn:
        """Save and leave, on all ranks."""
        self._save()
        self._publish_last()
        if self.recording:
            self.recording.finish()
        raise Interrupted

    def _validation_is_due(self) -> bool:
        state, every = self.state, self.settings.validate_every
        if state.validated == state.step:
            return False
        in_steps = every is not None and state.step % every == 0
        return in_steps or state.batch == 0 or bool(self.finished())

    def _checkpoint_is_due(self) -> bool:
        every = self.settings.checkpoint_every
        return self._unsaved and every is not None and self.state.step % every == 0

    def _saving_is_late(self) -> bool:
        """Whether it is time to save, by the clock of this rank."""
        seconds = self.settings.checkpoint_seconds
        return self._unsaved and seconds is not None and time.monotonic() - self._saved_at >= seconds

    def _anywhere(self, *flags: bool) -> list[bool]:
        """Which of the flags are set on any rank. Collective."""
        return [bool(flag) for flag in self.comm.all_reduce(np.array(flags, np.int64), "max")]

    def _on_first_rank(self, call: Callable[[], None]) -> None:
        on_first_rank(self.comm, call)

    def _while_validating(self, rows: int) -> None:
        self.watcher.validating(rows * self.comm.size)
        if any(self._anywhere(self.should_stop())):
            unseen_ids(self.learner.model, reset=True)  # this validation will begin anew
            self._stop()

    def _validate(self, split: str) -> bool:
        """Measure the model on the validation split -> whether it is the best so far."""
        state, name = self.state, self.settings.monitored
        self._note_unseen()
        self.learner.synchronize()
        with self.measuring.paused(), span("validation"):
            metrics = evaluate_split(
                self.learner.model,
                self.dataset,
                split,
                self.config,
                each=self._while_validating,
                comm=self.comm,
            )["model"]
        value = metrics[name]
        if math.isnan(value):
            raise DataError(
                f"{name} of split {split!r} is not defined, its labels are all equal; "
                "choose another data.valid or train.monitor"
            )
        improved = self._judge(value)
        state.validated, self._unsaved = state.step, True
        line = {"kind": "valid", "step": state.step, "epoch": state.epoch, "best": improved, **metrics}
        if improved:
            state.best = without_nan(line)
        self.journal.append(line)
        self.watcher.validated(line)
        return improved

    def _judge(self, value: float) -> bool:
        """Count progress for early stopping, tell the plateau -> whether `value` is the best so far."""
        state, sign = self.state, 1 if self.settings.higher_is_better else -1
        stopping = self.settings.early_stopping
        margin = stopping.min_delta if stopping else 0.0
        if state.to_beat is None or sign * (value - state.to_beat) > margin:
            state.to_beat, state.unbeaten = value, 0
        else:
            state.unbeaten += 1
        self.learner.plateau.update(value)
        return state.best is None or sign * (value - state.best[self.settings.monitored]) > 0

    def _save(self) -> None:
        """Write a checkpoint; only then remove older ones."""
        state, start = self.state, time.monotonic()
        self._note_unseen()
        state.journal, state.finished = self.journal.sync(), self.finished()
        folder = checkpoint_folder(self.run.checkpoints, state.step)
        with self.measuring.paused(), span("checkpoint"):
            save_checkpoint(folder, self.learner.content(asdict(state)), self.comm)
            self.measuring.save(self.run)
        self._on_first_rank(self._prune)
        self._unsaved, self._saved_at = False, time.monotonic()
        self.watcher.saved(state.step, self._saved_at - start)

    def _publish_whole(self) -> None:
        """Where the model is published, all of it; of one that is on several ranks, what is saved."""
        if self.publisher is None:
            return
        self._note_unseen()
        if self.learner.sharded is None:
            self.publisher.tell_whole(self.state.step, lambda: self.learner.model)
            unseen_ids(self.learner.model, reset=True)  # of rows that were scored
            return
        if self._unsaved:
            self._save()
        self.publisher.tell_whole(self.state.step, lambda: load_model(self.run, "last"))

    def _publish_last(self) -> None:
        """Where the model is published, say what is new, and that no more will come."""
        if self.publisher is not None:
            self.publisher.tell_changes(self.state.step, last=True)

    def _note_unseen(self) -> None:
        """Move the model's counts of unseen ids to the state."""
        for counts in self.comm.gather_objects(unseen_ids(self.learner.model, reset=True)):
            for feature, count in counts.items():
                self.state.unseen[feature] = self.state.unseen.get(feature, 0) + count

    def _prune(self) -> None:
        """Remove all checkpoints but the last and the best."""
        keep = {self.state.step, self.state.best["step"] if self.state.best else self.state.step}
        for step in set(checkpoint_steps(self.run.checkpoints)) - keep:
            remove_checkpoint(checkpoint_folder(self.run.checkpoints, step))

    def _restore(self) -> None:
        """Continue from the last checkpoint, if there is one."""
        self._on_first_rank(lambda: self.run.begin_again(self.config))
        self.measuring.restore(self.run)
        last = self.run.last()
        if last is not None:
            self.state = State(**self.learner.restore(last))
            self._on_first_rank(self._prune)  # a process that was killed after saving did not
            self._unsaved = False


def _awaited(shares: Iterator[Share]) -> Iterator[Share]:
    """The same; to wait for one is a span of its own."""
    while True:
        with span("await"):
            share = next(shares, None)
        if share is None:
            return
        yield share


def _check_validation(dataset: Dataset, config: TrainConfig) -> None:
    """What would fail only after the first epoch."""
    if config.data.valid is not None:
        dataset.split(config.data.valid)
    if config.train.monitor == "gauc" and dataset.info.group is None:
        raise ConfigError("key train.monitor: gauc needs a group key, and the data set has none")


def _batches_per_epoch(dataset: Dataset, config: TrainConfig) -> int:
    data = config.data
    count = num_batches(dataset, data.train, data.batch_size, streams=data.streams)
    if not count:
        rows = dataset.split(data.train).rows
        raise ConfigError(
            f"key data.batch_size: is {data.batch_size}, but split {data.train!r} has only {rows} rows"
        )
    return count


def _total_steps(config: TrainConfig, batches_per_epoch: int) -> int:
    steps = config.train.epochs * batches_per_epoch
    return steps if config.train.max_steps is None else min(steps, config.train.max_steps)
