"""What a training run measures of itself: seconds, bytes, ids and memory of a step, by rank and by table.

It is always on, and changes no number: spans add up what they took (`sharding.timeline`), a few steps look up
and update table by table with a clock beside (`sampled.TableSamples`), and the kernel tells the memory. Rank
0 writes it to `measured.json` of the run folder with every checkpoint; `tesserec plan compare` reads it. The
first steps, which may compile kernels, are left out, and so are validation and checkpoints. A run that goes
on with the same ranks and plan adds to what it measured before, weighted by steps.

Ranks that are threads of one process (`run_ranks`) share their spans: each tells those of all.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np

from tesserec.autograd.workers import num_threads
from tesserec.dataio.atomic import atomic_file
from tesserec.embeddings.collection import named_collections
from tesserec.sharding.comm import Comm
from tesserec.sharding.timeline import Sum, span, sums
from tesserec.train.learner import Learner, Share
from tesserec.train.ranks import to_first_rank
from tesserec.train.run import RunFolder
from tesserec.train.sampled import Memory, TableSamples, joined

FORMAT, VERSION = "tesserec measured", 1
WARM = 4  # steps that are left out: kernels are compiled, memory is touched for the first time
SAMPLED = (8, 24, 56)  # steps of a process in which tables are timed one by one
WINDOWS = 64  # of equal numbers of steps; the median of them is told
UNEVEN = ("read",)  # some steps have all of it: several batches are decoded at once; the mean is told

Totals = dict[str, Sum]
Numbers = dict[str, dict[str, Any]]  # {stage or table: {quantity: a number, or one for each rank}}


class MeasuredError(ValueError):
    """A run that has measured nothing, or a file that is no measurement; the message says what to do."""


@dataclass(frozen=True)
class Measured:
    """What a run has measured, a step's worth of everything. By rank where a value is a list.

    steps: that were measured. plan: what names the run's plan, see `ShardingPlan`; "" without one.
    stages: {span: {"seconds", of the median window; "mean_seconds"; "busy_seconds": in which its thread had a
    core; "waiting_seconds": in which it had none, because it waited for other ranks or for bytes from them;
    "sent_bytes"; "abroad_bytes": of these, to other hosts}}. "step" is all of it, with waiting for the batch.
    Stages of other threads ("read", "input_dist", "reduce_dense") go on beside.
    tables: {table: see `sampled.TableSamples.told`}. memory: {"baseline": bytes before the model, …}.
    """

    ranks: int
    hosts: list[int]
    threads: int
    batch_size: int
    sharded: bool
    plan: str
    steps: int
    stages: Numbers = field(default_factory=dict)
    tables: Numbers = field(default_factory=dict)
    memory: dict[str, list[float]] = field(default_factory=dict)

    @property
    def setting(self) -> tuple[Any, ...]:
        """What has to be the same for two measurements to be of one thing."""
        return self.ranks, self.hosts, self.threads, self.batch_size, self.sharded, self.plan

    def plus(self, other: Measured) -> Measured:
        """Both together, weighted by their steps."""
        shares = self.steps / (total := max(1, self.steps + other.steps)), other.steps / total
        stages = _mixed(self.stages, other.stages, *shares)
        tables = _mixed(self.tables, other.tables, *shares)
        memory = {
            name: [max(a, b) for a, b in zip(self.memory.get(name, mine), mine, strict=True)]
            for name, mine in other.memory.items()
        }
        return replace(self, steps=self.steps + other.steps, stages=stages, tables=tables, memory=memory)

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        with atomic_file(path) as file:
            file.write_text(json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1))

    @classmethod
    def read(cls, path: Path) -> Measured:
        """What `write` wrote. MeasuredError where there is nothing, or something else."""
        if not path.is_file():
            raise MeasuredError(
                f"{path}: this run has measured nothing; it was trained by an older version, or is shorter "
                f"than the {WARM + 1} steps that it takes: train it again, or go on with --resume"
            )
        try:
            return cls.parsed(json.loads(path.read_text()))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise MeasuredError(f"{path}: not a measurement of a run ({error}); train it again") from None

    @classmethod
    def parsed(cls, read: dict[str, Any]) -> Measured:
        """What was written as JSON values. MeasuredError if it is of another version."""
        if (read.pop("format"), read.pop("version")) != (FORMAT, VERSION):
            raise MeasuredError(f"no {FORMAT!r} of version {VERSION}: train with this version")
        return cls(**read)


def _mixed(old: Numbers, new: Numbers, a: float, b: float) -> Numbers:
    """a · old + b · new; what only one has stays as it is there."""
    found: Numbers = {}
    for name in dict.fromkeys((*old, *new)):
        before, after = old.get(name, {}), new.get(name, {})
        found[name] = {
            key: _mean(before[key], after[key], a, b)
            if key in before and key in after
            else after.get(key, before.get(key))
            for key in dict.fromkeys((*before, *after))
        }
    return found


def _mean(old: Any, new: Any, a: float, b: float) -> Any:
    if isinstance(new, list):
        return [_mean(x, y, a, b) for x, y in zip(old, new, strict=True)]
    return a * old + b * new


class Windows:
    """What steps took, in windows of equal numbers of steps: fewer than 2 · `WINDOWS`, which get longer."""

    def __init__(self) -> None:
        self.stride, self.steps = 1, 0
        self.closed: list[Totals] = []
        self.open: Totals = {}
        self.open_steps = 0

    def add(self, steps: int, totals: Totals) -> None:
        """So many steps, and what was summed in them; or what else belongs to the open window."""
        self.open, self.open_steps = _sum(self.open, totals), self.open_steps + steps
        self.steps += steps
        if self.open_steps >= self.stride:
            self.closed.append(self.open)
            self.open, self.open_steps = {}, 0
        if len(self.closed) == 2 * WINDOWS:
            pairs = zip(self.closed[::2], self.closed[1::2], strict=True)
            self.closed, self.stride = [_sum(a, b) for a, b in pairs], 2 * self.stride

    def stages(self) -> dict[str, dict[str, float]]:
        """{span: {quantity: of a step}}."""
        every = reduce(_sum, self.closed, self.open)
        return {name: self._stage(name, total) for name, total in sorted(every.items()) if name}

    def _stage(self, name: str, total: Sum) -> dict[str, float]:
        windows = [window.get(name, Sum()) for window in self.closed]

        def usual(quantity: str) -> float:
            each = [getattr(window, quantity) / self.stride for window in windows]
            found = np.median(each) if each and name not in UNEVEN else getattr(total, quantity) / self.steps
            return float(found) / 1e9

        return {
            "seconds": usual("nanoseconds"),
            "mean_seconds": total.nanoseconds / self.steps / 1e9,
            "busy_seconds": usual("busy"),
            "waiting_seconds": usual("waiting"),
            "sent_bytes": total.sent / self.steps,
            "abroad_bytes": total.abroad / self.steps,
        }


def _sum(a: Totals, b: Totals) -> Totals:
    return {name: a.get(name, Sum()) + b.get(name, Sum()) for name in a.keys() | b.keys()}


class Measuring:
    """The measuring of one process of a run: a few calls a step, at most one of which looks at sums."""

    def __init__(self, comm: Comm):
        """To be made before the model."""
        self.comm, self.memory = comm, Memory()
        self.windows, self.seen, self._pending = Windows(), 0, 0
        self._mark: Totals | None = None  # the sums when the open stretch began; None while paused
        self._earlier: Measured | None = None
        self._plan: str | None = None

    def built(self, learner: Learner, batch_size: int) -> None:
        """The model is there, with its optimizers."""
        self.learner, self.batch_size = learner, batch_size
        self.memory.built()
        self.tables = TableSamples(learner)
        if learner.sharded is None:  # the lookup is in the midst of each slice
            for _, collection in named_collections(learner.model):
                collection.around = partial(span, "look_up")

    @contextmanager
    def step(self, share: Share) -> Iterator[None]:
        """Around each step."""
        self.seen += 1
        if self.seen in SAMPLED:
            with self.paused(), self.tables.timed(share):
                yield
            return
        yield
        self.tables.count(self.seen, share)
        if self._mark is not None:
            self._pending += 1
            if self._pending + self.windows.open_steps >= self.windows.stride:
                self._flush()
        elif self.seen == WARM:
            self.memory.forget_peak()
            self._begin()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no training: it is left out."""
        begun = self._mark is not None
        if begun:
            self._flush()
            self._mark = None
        self.memory.note()
        yield
        self.memory.forget_peak()
        if begun:
            self._begin()

    def _begin(self) -> None:
        self._mark = sums()

    def _flush(self) -> None:
        """Bring what was summed since the last time to the windows."""
        now, before = sums(), self._mark or {}
        spent = {name: now[name] - before.get(name, Sum()) for name in now}
        self.windows.add(self._pending, {name: some for name, some in spent.items() if some != Sum()})
        self._mark, self._pending = now, 0

    def restore(self, run: RunFolder) -> None:
        """Add to what was measured before, if that was in the same setting."""
        with suppress(MeasuredError):
            self._earlier = Measured.read(run.measured) if self.comm.rank == 0 else None

    def save(self, run: RunFolder) -> None:
        """Write what is measured so far, if there were enough steps. Collective, and while `paused`."""
        memory = self.memory.told(self.learner)
        every = to_first_rank(self.comm, (self.windows.steps, self._stages(), self.tables.told(), memory))
        if not every or not all(steps for steps, *_ in every):
            return
        measured = Measured(
            self.comm.size,
            list(self.comm.hosts),
            num_threads(),
            self.batch_size,
            self.learner.sharded is not None,
            self._save_plan(run),
            self.windows.steps,
            _by_rank([stages for _, stages, _, _ in every]),
            joined([tables for _, _, tables, _ in every]),
            {name: [float(memory[name]) for *_, memory in every] for name in memory},
        )
        if self._earlier is not None and self._earlier.setting == measured.setting:
            measured = self._earlier.plus(measured)
        measured.write(run.measured)

    def _save_plan(self, run: RunFolder) -> str:
        """Write the plan, once -> what names it; "" where nothing is sharded."""
        if self._plan is None:
            sharded = self.learner.sharded
            text = "" if sharded is None else sharded.plan.to_json()
            self._plan = f"{zlib.crc32(text.encode()):08x}" if text else ""
            if text:
                with atomic_file(run.plan) as file:
                    file.write_text(text)
        return self._plan

    def _stages(self) -> dict[str, dict[str, float]]:
        """Those of this rank; without shards, the lookup is taken out of the slices that it is part of."""
        if not self.windows.steps:
            return {}
        found = self.windows.stages()
        whole = [found[name] for name in ("await", "step", "decide") if name in found]
        found["step"] = {key: sum(each[key] for each in whole) for key in found["step"]}
        if self.learner.sharded is None and "look_up" in found and "compute" in found:
            slices = -(-self.batch_size // self.learner.options.slice_size)
            threads = max(1, min(num_threads(), slices))  # that look up side by side
            for key in ("seconds", "mean_seconds", "busy_seconds"):
                found["look_up"][key] /= threads
                found["compute"][key] -= found["look_up"][key]
        return found


def _by_rank(ranks: Sequence[Mapping[str, Mapping[str, float]]]) -> Numbers:
    """{stage: {quantity: [of each rank]}}; 0 where a rank has no such stage."""
    names = dict.fromkeys(name for stages in ranks for name in stages)
    keys = dict.fromkeys(key for stages in ranks for stage in stages.values() for key in stage)
    return {
        name: {key: [float(stages.get(name, {}).get(key, 0.0)) for stages in ranks] for key in keys}
        for name in names
    }
