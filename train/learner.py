"""A model with its optimizers and schedule: what a step changes, and what a checkpoint holds."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

from tesserec.autograd import optim, schedules
from tesserec.autograd.compiler.model import compile
from tesserec.autograd.module import Module, copy_state
from tesserec.autograd.slices import sum_of_slices
from tesserec.autograd.tensor import Gradients, Tensor
from tesserec.dataio.batch import Batch
from tesserec.dataio.config import ConfigError
from tesserec.dataio.dataset import DatasetInfo
from tesserec.embeddings.allocation import planning
from tesserec.embeddings.collection import dense_state
from tesserec.embeddings.config import Unseen
from tesserec.embeddings.pool import Pool
from tesserec.embeddings.row_optim import ROW_OPTIMIZERS, RowOptimizer
from tesserec.embeddings.unseen import parse_unseen
from tesserec.models.features import Features
from tesserec.models.registry import build_model
from tesserec.sharding.codecs import Codecs
from tesserec.sharding.comm import Comm, LocalComm
from tesserec.sharding.dist import Dist
from tesserec.sharding.model import ShardedModel, shard
from tesserec.sharding.replicas import Replicas
from tesserec.sharding.timeline import span
from tesserec.train.checkpoint import Array, Checkpoint, Content, Rect
from tesserec.train.config import (
    OptimizerSection,
    PlateauSection,
    ScheduleSection,
    ShardingSection,
    TrainConfig,
    checked_options,
    chosen,
)
from tesserec.train.pipeline import one_ahead
from tesserec.train.ranks import all_numbers, to_first_rank
from tesserec.train.run import RunFolder
from tesserec.train.step import (
    StepOptions,
    apply_gradients,
    are_finite,
    check_finite,
    losses_and_gradients,
    slice_weights,
    slices,
    total_weight,
)
from tesserec.train.tables import plan_for, state_rects, table_rects
from tesserec.train.touched import Changes, Touched, joined

OPTIMIZERS: Mapping[str, Callable[..., optim.Optimizer]] = {
    "sgd": optim.SGD,
    "adagrad": optim.Adagrad,
    "adam": optim.Adam,
    "adamw": optim.AdamW,
    "rmsprop": optim.RMSprop,
}
SCHEDULES: Mapping[str, Callable[..., float]] = {
    "constant": schedules.constant,
    "cosine": schedules.cosine,
    "step_decay": schedules.step_decay,
    "poly": schedules.poly,
}
OPTIMIZER = "optimizer."  # what the names of the dense optimizer's arrays begin with


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """What a rank has of a batch.

    weights: the sum of the sample weights of each slice of the whole batch. dist: the batch with its ids sent
    to where their rows are; None where the model is not sharded.
    """

    batch: Batch
    weights: Sequence[float]
    dist: Dist | None = None


class Learner:
    """A model, one optimizer for its dense parameters and one for its tables, and their learning rates."""

    def __init__(self, config: TrainConfig, info: DatasetInfo, total_steps: int, comm: Comm | None = None):
        """Everything as it is at step 0. ConfigError, ModelError for options that do not exist.

        comm: the ranks that learn together; where there are several, methods are collective.
        """
        self.comm = comm or LocalComm()
        self.model = placed_model(config, info, self.comm)
        self.sharded = self.model if isinstance(self.model, ShardedModel) else None
        self.channel = self.comm.duplicate()  # for shares, which are made ahead
        self.touched: Touched | None = None  # where steps note what `changes` is to tell
        slice_size = config.train.slice_size
        self.fast = compile(self.model, slice_size=slice_size) if config.train.compile else self.model
        self.dense_optimizer, self.row_optimizer = _optimizers(self.model, config)
        self.optimizers: list[optim.Optimizer | RowOptimizer] = [self.dense_optimizer, self.row_optimizer]
        self.base_lr = [optimizer.lr for optimizer in self.optimizers]
        self.schedule = _schedule(config.schedule, total_steps)
        plateau = config.plateau or PlateauSection(gamma=1.0)  # which changes nothing
        mode = "max" if config.train.higher_is_better else "min"
        self.plateau = schedules.ReduceOnPlateau(mode=mode, **plateau.model_dump())
        self.options = StepOptions(
            config.train.seed,
            slice_size,
            label_index(info, config.data.label),
            config.train.clip_norm,
            config.train.clip_value,
        )

    def factor(self, step: int) -> float:
        """What multiplies the base learning rates at `step`."""
        return self.schedule(step) * self.plateau.factor

    def shares(self, batches: Iterator[Batch]) -> Generator[Share, None, None]:
        """Of each batch the share to learn from, made one ahead where ranks have to talk about it."""
        if self.comm.size == 1 or (self.sharded is not None and not self.sharded.may_run_ahead):
            return (self.share(batch) for batch in batches)

        def make() -> Share | None:
            batch = next(batches, None)
            return None if batch is None else self.share(batch)

        return one_ahead(make)

    def share(self, batch: Batch) -> Share:
        """The rank's part of a batch as the share to learn from."""
        weights = slice_weights(batch, self._slice_size(batch))
        if self.sharded is None:
            return Share(batch, weights)
        dist = self.sharded.input_dist(batch.sparse)
        if batch.weights is None:  # the same on all ranks
            return Share(batch, weights * self.comm.size, dist)
        return Share(batch, list(chain(*all_numbers(self.channel, weights))), dist)

    def step(self, batch: Batch, step: int) -> float:
        """Learn from one batch -> its mean loss before that. TrainingError, and no update, if not finite."""
        return self.learn(self.share(batch), step)

    def learn(self, share: Share, step: int) -> float:
        """Learn from one batch -> its mean loss before that. TrainingError, and no update, if not finite."""
        total = total_weight(share.weights, step)
        losses, grads = self._losses_and_gradients(share, step, total)
        with span("agree"):
            found = all_numbers(self.comm, [are_finite(grads), *losses])
        loss = math.fsum(chain(*(losses for _, *losses in found))) / total
        check_finite(loss, all(finite for finite, *_ in found), step)
        with span("update"):
            for optimizer, base in zip(self.optimizers, self.base_lr, strict=True):
                optimizer.lr = base * self.factor(step)
            apply_gradients(grads, self.optimizers, self.options, self.sharded)
            if self.touched is not None:
                self.touched.note(grads)
        return loss

    def _losses_and_gradients(self, share: Share, step: int, total: float) -> tuple[list[float], Gradients]:
        """(summed loss of each of this rank's slices, gradient of the whole batch's mean loss)."""
        batch, takes = share.batch, None
        if self.sharded is not None and share.dist is not None:
            batch = looked_up(batch, self.sharded, share.dist)
        parts = slices(batch, self._slice_size(batch))
        if self.sharded is not None and (reduction := self.sharded.reduction(len(parts))):
            takes = reduction.take
        first = self.comm.rank * len(parts)
        with span("compute"):
            losses, found = losses_and_gradients(
                self.fast, parts, step, self.options, total, first=first, takes=takes
            )
            grads = sum_of_slices(found)
        return losses, grads if self.sharded is None else self.sharded.exchange(grads)

    def _slice_size(self, batch: Batch) -> int:
        """Samples of a slice; a model that couples samples gets the batch as one."""
        return batch.batch_size if self.fast.needs_whole_batch else self.options.slice_size

    def synchronize(self) -> None:
        """Make groups of replicas equal, where there are any."""
        if self.sharded is not None:
            self.sharded.synchronize(self.optimizers)

    def watch(self) -> None:
        """From now on, note what `changes` is to tell. ConfigError where groups of replicas train apart."""
        if self.sharded is not None and self.sharded.groups.count > 1:
            raise ConfigError(
                f"key sharding.replica_groups: is {self.sharded.groups.count}, wanted 1 to publish what "
                "training changes: rows that groups average are not noted"
            )
        self.touched = Touched(self.model)

    def changes(self) -> Changes:
        """What has changed since `watch`, or since the last call; on rank 0, others get no tables."""
        assert self.touched is not None
        pieces = to_first_rank(self.comm, self.touched.take())
        return Changes(joined(pieces), self._dense(), self.touched.newest)

    def _dense(self) -> dict[str, Array]:
        """Copies of the dense parameters and buffers."""
        with self._whole():
            return {name: array.copy() for name, array in dense_state(self.model).items()}

    def content(self, progress: Mapping[str, Any]) -> Content:
        """All that a checkpoint holds, as views of live memory."""
        self.synchronize()
        state = {
            "progress": progress,
            "optimizer_steps": [optimizer.steps for optimizer in self.optimizers],
            "plateau": self.plateau.state_dict(),
        }
        dense = self._dense()
        kept = {f"{OPTIMIZER}{name}": array for name, array in self._dense_optimizer_state().items()}
        return Content(state, dense | kept, self._arrays())

    def restore(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Everything as it was when `checkpoint` was saved -> the `progress` it was saved with."""
        state, dense = checkpoint.state(), checkpoint.dense()
        kept = {n.removeprefix(OPTIMIZER): a for n, a in dense.items() if n.startswith(OPTIMIZER)}
        with self._whole():
            _copy_dense(dense, self.model, str(checkpoint.path))
        if self.sharded is not None:
            self.sharded.dense.load_optimizer_state(self.dense_optimizer, kept)
        else:
            copy_state(kept, self._dense_optimizer_state(), str(checkpoint.path))
        checkpoint.read_into(self._arrays())
        for optimizer, steps in zip(self.optimizers, state["optimizer_steps"], strict=True):
            optimizer.steps = steps
        self.plateau.load_state_dict(state["plateau"])
        progress: dict[str, Any] = state["progress"]
        return progress

    def _whole(self) -> AbstractContextManager[None]:
        """Inside, the dense parameters have all their numbers."""
        return nullcontext() if self.sharded is None else self.sharded.whole()

    def _dense_optimizer_state(self) -> dict[str, Array]:
        """What the dense optimizer keeps, in the shapes of the parameters."""
        if self.sharded is not None:
            return self.sharded.dense.optimizer_state(self.dense_optimizer)
        return {n: a for n, a in self.dense_optimizer.state_dict().items() if n != "steps"}

    def _arrays(self) -> dict[str, list[Rect]]:
        """Tables, and what the row optimizer keeps about them."""
        arrays = table_rects(self.model) | state_rects(self.model, self.row_optimizer)
        if self.sharded is None or self.sharded.groups.number == 0:
            return arrays
        return {path: [replace(rect, writes=False) for rect in rects] for path, rects in arrays.items()}


def features_of(info: DatasetInfo, config: TrainConfig) -> Features:
    """The features of a data set, as models take them."""
    sparse = {feature.name: feature.num_embeddings for feature in info.sparse}
    unseen = _unseen(config.data.unseen, sparse)
    return Features(len(info.dense), sparse, config.model.pooling, unseen, config.model.data_type)


def tolerant_features(info: DatasetInfo, config: TrainConfig) -> list[str]:
    """The sparse features whose ids may be outside their tables."""
    return [name for name, policy in features_of(info, config).unseen.items() if policy != "error"]


def _unseen(given: Mapping[str, str], features: Iterable[str]) -> dict[str, Unseen]:
    """The policy of each feature for unseen ids; see `DataSection`."""
    known = ("*", *features)
    for name in given:
        chosen("data.unseen", name, dict.fromkeys(known))
    every = given.get("*", "error")
    return {name: parse_unseen(given.get(name, every)) for name in features}


def label_index(info: DatasetInfo, label: str | None) -> int:
    """Which column of `Batch.labels` is learned. ConfigError when that is left open, or wrong."""
    if label is None and len(info.labels) != 1:
        raise ConfigError(
            f"key data.label: name the one to learn: {', '.join(info.labels) or 'there is none'}"
        )
    places = {name: i for i, name in enumerate(info.labels)}
    return int(chosen("data.label", label or info.labels[0], places))


def new_model(config: TrainConfig, info: DatasetInfo) -> Module:
    """The model that the config describes, with its initial weights."""
    features, section = features_of(info, config), config.model
    return build_model(section.name, features, seed=config.train.seed, options=section.options)


def placed_model(config: TrainConfig, info: DatasetInfo, comm: Comm) -> Module:
    """`new_model` on the ranks of `comm`: sharded where there are several, or a plan is given. Collective."""
    section = config.sharding
    if comm.size == 1 and section.plan is None:
        return new_model(config, info)
    with planning():
        model = new_model(config, info)
    return shard(
        model,
        plan_for(section, model, comm.hosts),
        comm,
        bitwise=config.train.deterministic == "bitwise",
        codecs=Codecs(section.forward, section.backward),
        dense=section.dense,
        replicas=Replicas(section.replica_groups, section.sync_every),
    )


def looked_up(batch: Batch, model: ShardedModel, dist: Dist) -> Batch:
    """The batch with its vectors in place of its ids. Collective."""
    looked: Any = model.look_up(dist)
    return replace(batch, sparse=looked)


def load_model(run: RunFolder, which: str = "best", comm: Comm | None = None) -> Module:
    """The model of a run, with the weights of its "best" or "last" checkpoint.

    comm: the ranks that share its tables; by the kinds of its config, since a plan is for one number of them.
    """
    checkpoint, config = run.checkpoint(which), run.config()
    section = ShardingSection(default=config.sharding.default, tables=config.sharding.tables)
    placed = config.model_copy(update={"sharding": section})
    model = placed_model(placed, run.dataset(), comm or LocalComm())
    _copy_dense(checkpoint.dense(), model, str(checkpoint.path))
    checkpoint.read_into(table_rects(model))
    return model


def _copy_dense(saved: Mapping[str, Array], model: Module, where: str) -> None:
    """The dense parameters and buffers of a checkpoint into the model."""
    dense = {name: array for name, array in saved.items() if not name.startswith(OPTIMIZER)}
    copy_state(dense, dense_state(model), where)


def _optimizers(model: Module, config: TrainConfig) -> tuple[optim.Optimizer, RowOptimizer]:
    """One for the dense parameters, one for the tables."""
    dense: list[tuple[str, Tensor]] = []
    pools: list[tuple[str, Pool]] = []
    for name, parameter in model.named_parameters():
        if isinstance(parameter, Pool):
            pools.append((name, parameter))
        else:
            dense.append((name, parameter))
    sections = config.optimizer
    return (
        _optimizer("optimizer.dense", sections.dense, OPTIMIZERS, dense),
        _optimizer("optimizer.rows", sections.rows, ROW_OPTIMIZERS, pools),
    )


def _schedule(section: ScheduleSection, total_steps: int) -> Callable[[int], float]:
    """The factor by step. `total`, where the schedule wants it, is the length of the run unless given."""
    function = chosen("schedule.name", section.name, SCHEDULES)
    wants_total = "total" in inspect.signature(function).parameters
    options = {"total": total_steps, **section.options} if wants_total else section.options
    shape = partial(function, **checked_options("schedule", function, options))
    return lambda step: shape(step) * schedules.linear_warmup(step, warmup=section.warmup)


def _optimizer(
    where: str, section: OptimizerSection, table: Mapping[str, Callable[..., Any]], parameters: Sequence[Any]
) -> Any:
    """What a section names, with its options. ConfigError for a name, an option or a value that is wrong."""
    function = chosen(f"{where}.name", section.name, table)
    options = checked_options(where, function, section.options)
    try:
        return function(parameters, lr=section.lr, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"key {where}: {error}") from error
