"""One training step: slices of a batch through the model on worker threads, one update of every parameter.

The batch is cut into slices of a fixed size. Each runs its whole forward and backward on one thread, with
one-thread BLAS; losses and gradients are summed in slice order. So the result has the same bits for any
number of threads. A slice draws its randomness from (seed, step, slice): a step is a function of the
parameters, the batch and its number. Ranks that share a batch have some of its slices each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tesserec.autograd.losses import bce_with_logits
from tesserec.autograd.module import Module
from tesserec.autograd.optim import clip_grad_norm, clip_grad_value
from tesserec.autograd.random import random_stream
from tesserec.autograd.slices import sum_of_slices
from tesserec.autograd.tensor import Gradients, Take, accumulate, gradients
from tesserec.autograd.workers import parallel_map
from tesserec.dataio.batch import Batch
from tesserec.sharding.model import ShardedModel


class TrainingError(ValueError):
    """Training cannot go on; the message says at which step and what to try."""


@dataclass(frozen=True, slots=True)
class StepOptions:
    """What a step needs to know beside the model. label: column of `Batch.labels`."""

    seed: int
    slice_size: int = 512
    label: int = 0
    clip_norm: float | None = None
    clip_value: float | None = None


def slices(batch: Batch, size: int) -> list[Batch]:
    """The batch in pieces of `size` samples, the last one shorter where it must be."""
    if batch.batch_size <= size:
        return [batch]
    return [batch.select(lo, min(lo + size, batch.batch_size)) for lo in range(0, batch.batch_size, size)]


def loss_and_gradients(
    model: Module, batch: Batch, step: int, options: StepOptions
) -> tuple[float, Gradients]:
    """(mean loss of the batch, its gradient by parameter); no parameter is touched.

    The mean is weighted where the batch has weights. A model that couples samples gets it as one slice.
    """
    size = batch.batch_size if model.needs_whole_batch else options.slice_size
    total = total_weight(slice_weights(batch, size), step)
    losses, grads = losses_and_gradients(model, slices(batch, size), step, options, total)
    return math.fsum(losses) / total, sum_of_slices(grads)


def slice_weights(batch: Batch, size: int) -> list[float]:
    """The sum of the sample weights of each slice."""
    weights = np.ones(batch.batch_size) if batch.weights is None else batch.weights
    return [float(weights[lo : lo + size].sum(dtype=np.float64)) for lo in range(0, len(weights), size)]


def total_weight(weights: Iterable[float], step: int) -> float:
    """The sum of all slices' weights, exactly. TrainingError unless it is more than 0."""
    total = math.fsum(weights)
    if not total > 0:
        raise TrainingError(
            f"step {step}: the sample weights of the batch sum to {total}, wanted more than 0"
        )
    return total


def losses_and_gradients(
    model: Module,
    parts: Sequence[Batch],
    step: int,
    options: StepOptions,
    total: float,
    *,
    first: int = 0,
    takes: Callable[[int], Take] | None = None,
) -> tuple[list[float], list[Gradients]]:
    """(summed loss, gradient of that / total by parameter) of each slice, as two lists.

    first: the number of the first slice in the whole batch. takes: by place in `parts`, who is offered the
    gradients of that slice as soon as they are final.
    """

    def work(item: tuple[int, Batch]) -> tuple[float, Gradients]:
        index, part = item
        with random_stream(np.random.default_rng([options.seed, step, first + index])):
            logits = model(part.dense, part.sparse)
        labels = part.labels[:, options.label]
        loss = bce_with_logits(logits, labels, part.weights, reduction="sum")
        take = takes(index) if takes else None
        return loss.item(), gradients(loss, np.float32(1 / total), take=take)

    found = parallel_map(work, list(enumerate(parts)))
    return [loss for loss, _ in found], [grads for _, grads in found]


def are_finite(grads: Gradients) -> bool:
    """Whether every dense gradient is."""
    return all(math.isfinite(grad.sum()) for grad in grads.values() if isinstance(grad, np.ndarray))


def check_finite(loss: float, gradients_are: bool, step: int) -> None:
    """TrainingError unless the loss and the gradients are finite."""
    bad = "loss" if not math.isfinite(loss) else "" if gradients_are else "gradient"
    if bad:
        raise TrainingError(
            f"step {step}: the {bad} is not finite (loss {loss}); nothing was updated. "
            "Lower the learning rates, set train.clip_norm, or look for extreme values in the dense columns"
        )


def apply_gradients(
    grads: Gradients, optimizers: Sequence[Any], options: StepOptions, sharded: ShardedModel | None = None
) -> None:
    """Clip, then let each optimizer take its step. TrainingError, and no step, if the norm is not finite.

    sharded: the model, if its parameters are on several ranks. Then collective.
    """
    accumulate(grads)
    if options.clip_value is not None:
        clip_grad_value(list(grads), options.clip_value)
    if options.clip_norm is not None:
        try:
            if sharded is None:
                clip_grad_norm(list(grads), options.clip_norm)
            else:
                sharded.clip_grad_norm(options.clip_norm)
        except ValueError as error:  # the norm is not finite
            raise TrainingError(f"{error}; nothing was updated") from None
    if sharded is not None:
        sharded.step(optimizers)
        return
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
