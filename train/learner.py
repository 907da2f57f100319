"""A model with its optimizers and schedule: what a step changes, and what a checkpoint holds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tesserec.autograd import optim, schedules
from tesserec.autograd.compiler.model import compile
from tesserec.autograd.module import Module, copy_state
from tesserec.autograd.tensor import Tensor
from tesserec.dataio.batch import Batch
from tesserec.dataio.config import ConfigError
from tesserec.dataio.dataset import DatasetInfo
from tesserec.embeddings.config import Clamp, Drop, Hash, Unseen
from tesserec.embeddings.pool import Pool
from tesserec.embeddings.row_optim import ROW_OPTIMIZERS, RowOptimizer
from tesserec.models.features import Features
from tesserec.models.registry import build_model
from tesserec.train.checkpoint import Array, Checkpoint, Content, array_path
from tesserec.train.config import (
    OptimizerSection,
    PlateauSection,
    ScheduleSection,
    TrainConfig,
    checked_options,
    chosen,
)
from tesserec.train.run import RunFolder
from tesserec.train.step import StepOptions, apply_gradients, check_finite, loss_and_gradients

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


class Learner:
    """A model, one optimizer for its dense parameters and one for its tables, and their learning rates."""

    def __init__(self, config: TrainConfig, info: DatasetInfo, total_steps: int):
        """Everything as it is at step 0. ConfigError, ModelError for options that do not exist."""
        self.model = new_model(config, info)
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

    def step(self, batch: Batch, step: int) -> float:
        """Learn from one batch -> its mean loss before that. TrainingError, and no update, if not finite."""
        loss, grads = loss_and_gradients(self.fast, batch, step, self.options)
        check_finite(loss, grads, step)
        for optimizer, base in zip(self.optimizers, self.base_lr, strict=True):
            optimizer.lr = base * self.factor(step)
        apply_gradients(grads, self.optimizers, self.options)
        return loss

    def content(self, progress: Mapping[str, Any]) -> Content:
        """All that a checkpoint holds, as views of live memory."""
        state = {
            "progress": progress,
            "optimizer_steps": [optimizer.steps for optimizer in self.optimizers],
            "plateau": self.plateau.state_dict(),
        }
        return Content(state, self._dense(), self._arrays())

    def restore(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Everything as it was when `checkpoint` was saved -> the `progress` it was saved with."""
        state = checkpoint.state()
        copy_state(checkpoint.dense(), self._dense(), str(checkpoint.path))
        checkpoint.read_into(self._arrays())
        for optimizer, steps in zip(self.optimizers, state["optimizer_steps"], strict=True):
            optimizer.steps = steps
        self.plateau.load_state_dict(state["plateau"])
        progress: dict[str, Any] = state["progress"]
        return progress

    def _dense(self) -> dict[str, Array]:
        """Dense parameters, buffers, and what the optimizer keeps about them."""
        kept = {n: a for n, a in self.dense_optimizer.state_dict().items() if n != "steps"}
        return _dense_state(self.model) | {f"{OPTIMIZER}{name}": array for name, array in kept.items()}

    def _arrays(self) -> dict[str, Array]:
        """Tables, and what the row optimizer keeps about them."""
        return _table_arrays(self.model) | {
            array_path("rows", f"{table.name}.{slot}"): array[table.rows]
            for table in _tables(self.model)
            for slot, array in self.row_optimizer.state[table.pool].items()
        }


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
    return {name: _policy(given.get(name, every)) for name in features}


def _policy(text: str) -> Unseen:
    kind, _, row = text.partition(":")
    policies: dict[str, Unseen] = {"error": "error", "hash": Hash(), "drop": Drop()}
    return Clamp(int(row)) if kind == "clamp" else policies[kind]


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


def load_model(run: RunFolder, which: str = "best") -> Module:
    """The model of a run, with the weights of its "best" or "last" checkpoint."""
    checkpoint, model = run.checkpoint(which), new_model(run.config(), run.dataset())
    dense = {n: a for n, a in checkpoint.dense().items() if not n.startswith(OPTIMIZER)}
    copy_state(dense, _dense_state(model), str(checkpoint.path))
    checkpoint.read_into(_table_arrays(model))
    return model


@dataclass(frozen=True, slots=True)
class Table:
    """An embedding table: its name in the model's state, its array, the name of its pool, its rows there."""

    name: str
    array: Array
    pool: str
    rows: slice


def _tables(model: Module) -> list[Table]:
    """Every table: the entries of the model's state that are rows of a pool."""
    pools = {name: p.data for name, p in model.named_parameters() if isinstance(p, Pool)}
    found = []
    for name, array in model.state_dict().items():
        for pool, stack in pools.items():
            if np.may_share_memory(array, stack):
                first = (array.ctypes.data - stack.ctypes.data) // stack.strides[0]
                found.append(Table(name, array, pool, slice(first, first + len(array))))
    return found


def _table_arrays(model: Module) -> dict[str, Array]:
    return {array_path("tables", table.name): table.array for table in _tables(model)}


def _dense_state(model: Module) -> dict[str, Array]:
    """Dense parameters and buffers: what is no table."""
    tables = {table.name for table in _tables(model)}
    return {name: array for name, array in model.state_dict().items() if name not in tables}


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
