"""What `tesserec.compile` saves: training steps of three models, eager and compiled, in one process.

Four ways to train the same parameters on the same batches, in turns:
  loop      as one would write it: the whole batch at once, BLAS with its own threads, two optimizers
  compiled  the same loop around the compiled model
  sliced    the step of `tesserec train`, which cuts the batch for its threads, on the eager model
  step      that step on the compiled model, as `tesserec train` does it
Criteo-Kaggle tables, D 16, batch 2048, log-uniform ids, SGD for everything; with 1 thread, BLAS has 1 too.
python_share: the part of a compiled step, on one thread, that is spent outside of compiled
kernels and of what the program calls: Python, numpy outside of the model, dispatch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import cycle
from statistics import median
from typing import Any

import numpy as np
from numba.core.dispatcher import Dispatcher

import tesserec
from benchmarks.cases import BATCH, KAGGLE, LR, dlrm_batches
from benchmarks.harness import Report, arguments, milliseconds, ratio, take_turns
from tesserec.autograd import SGD, Module, gradients, num_threads, one_thread_blas, set_num_threads
from tesserec.autograd.losses import bce_with_logits
from tesserec.dataio.batch import Batch
from tesserec.embeddings import KeyedJaggedTensor, Pool
from tesserec.embeddings.row_optim import RowSGD
from tesserec.models import Features, build_model
from tesserec.train.step import StepOptions, apply_gradients, loss_and_gradients

OPTIONS: dict[str, dict[str, Any]] = {
    "dlrm": {"bottom": (512, 256), "top": (512, 256)},
    "dcnv2": {},
    "deepfm": {},
}
KEYS = tuple(f"C{i}" for i in range(1, 27))
STEPS = 4  # in a turn


class Trained:
    """A model, its compiled form and its optimizers; each way to train takes one step."""

    def __init__(self, name: str, largest: int, slice_size: int):
        sizes = dict(zip(KEYS, (min(n, largest) for n in KAGGLE), strict=True))
        self.model = build_model(name, Features(13, sizes, pooling="sum"), seed=0, options=OPTIONS[name])
        self.compiled = tesserec.compile(self.model, slice_size=slice_size)
        named = dict(self.model.named_parameters())
        dense = [(n, p) for n, p in named.items() if not isinstance(p, Pool)]
        pools = [(n, p) for n, p in named.items() if isinstance(p, Pool)]
        self.optimizers = SGD(dense, lr=LR), RowSGD(pools, lr=LR)
        self.options = StepOptions(seed=0, slice_size=slice_size)
        offsets = np.arange(26 * BATCH + 1)
        limits = np.array(list(sizes.values()))[:, None]
        made = [
            Batch(x, KeyedJaggedTensor(KEYS, (ids % limits).ravel(), offsets), labels[:, None])
            for x, ids, labels in dlrm_batches(3)
        ]
        self.batches: Iterator[Batch] = cycle(made)

    def by_hand(self, model: Module) -> None:
        batch = next(self.batches)
        bce_with_logits(model(batch.dense, batch.sparse), batch.labels[:, 0]).backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def in_slices(self, model: Module) -> None:
        _, grads = loss_and_gradients(model, next(self.batches), 0, self.options)
        apply_gradients(grads, self.optimizers, self.options)

    def check(self) -> None:
        """Both give the same gradients."""
        batch = next(self.batches)
        grads = [
            gradients(bce_with_logits(model(batch.dense, batch.sparse), batch.labels[:, 0]))
            for model in (self.model, self.compiled)
        ]
        for parameter in grads[0]:
            rows = isinstance(parameter, Pool)
            a, b = (g[parameter].values if rows else g[parameter] for g in grads)
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6 * float(np.abs(a).max()))


def clocked(step: Callable[[], None], steps: int) -> Callable[[], float]:
    """Seconds that `steps` steps take, after one more, while threads of the turn before go to sleep."""

    def turn() -> float:
        step()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        return time.perf_counter() - start

    return turn


class KernelClock:
    """Counts the time in compiled kernels and in what programs call; what is opaque to them is Python."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            start = time.perf_counter()
            result = fn(*args)
            self.seconds += time.perf_counter() - start
            return result

        return call

    @contextmanager
    def attached(self, trained: Trained) -> Iterator[None]:
        """Kernels must have been compiled before."""
        lists = [calls for _, p in trained.compiled.programs for calls in (p.forward_calls, p.backward_calls)]
        places = [
            (vars(module), name, value)
            for path, module in sys.modules.items()
            if path.startswith("tesserec.")
            for name, value in vars(module).items()
            if isinstance(value, Dispatcher)
        ]
        before = [calls[:] for calls in lists]
        for calls in lists:
            calls[:] = [(fn if "opaque" in str(fn) else self.timed(fn), get) for fn, get in calls]
        for names, name, value in places:
            names[name] = self.timed(value)
        yield
        for names, name, value in places:
            names[name] = value
        for calls, untouched in zip(lists, before, strict=True):
            calls[:] = untouched


def python_share(trained: Trained, turns: int) -> float:
    """The part of a compiled step on one thread that is not spent in kernels: the median of `turns`."""
    clock, shares = KernelClock(), []
    trained.by_hand(trained.compiled)
    with clock.attached(trained):
        for _ in range(turns * STEPS):
            clock.seconds, start = 0.0, time.perf_counter()
            trained.by_hand(trained.compiled)
            shares.append(1 - clock.seconds / (time.perf_counter() - start))
    return round(median(shares), 4)


def measure(trained: Trained, turns: int) -> dict[str, Any]:
    """Milliseconds of each way, and how many times as fast the compiled model is."""
    ways: dict[str, Callable[[], None]] = {
        "loop": lambda: trained.by_hand(trained.model),
        "compiled": lambda: trained.by_hand(trained.compiled),
        "sliced": lambda: trained.in_slices(trained.model),
        "step": lambda: trained.in_slices(trained.compiled),
    }
    with one_thread_blas() if num_threads() == 1 else nullcontext():
        seconds = take_turns({name: clocked(step, STEPS) for name, step in ways.items()}, turns)
    return {
        "threads": num_threads(),
        **{f"{name}_ms": milliseconds(times, STEPS) for name, times in seconds.items()},
        "loop_ratio": ratio(seconds["loop"], seconds["compiled"]),
        "step_ratio": ratio(seconds["sliced"], seconds["step"]),
        "step_by_loop_ratio": ratio(seconds["loop"], seconds["step"]),
    }


def main() -> None:
    args = arguments(__doc__, model=list(OPTIONS), threads=[2, 1], slice=[512])
    with Report("compiled_step") as report:
        for name in args.model:
            for slice_size in args.slice:
                trained = Trained(name, 10**5 if args.quick else max(KAGGLE), slice_size)
                trained.check()
                for threads in args.threads:
                    set_num_threads(threads)
                    report.add({"model": name, "slice": slice_size, **measure(trained, args.turns)})
                set_num_threads(1)
                with one_thread_blas():
                    share = python_share(trained, args.turns)
                report.add({"model": name, "slice": slice_size, "threads": 1, "python_share": share})
                del trained
        for key in ("loop_ratio", "step_ratio", "step_by_loop_ratio"):
            report.summarise(key, threads=args.threads[0])


if __name__ == "__main__":
    main()
