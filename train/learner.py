"""A model with its optimizers and schedule: what a step changes, and what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from tesserec.autograd import optim, schedules
from tesserec.autograd.module import Module
from tesserec.dataio.batch import Batch
from tesserec.dataio.config import ConfigError
from tesserec.dataio.dataset import DatasetInfo
from tesserec.embeddings.pool import Pool
from tesserec.embeddings.row_optim import ROW_OPTIMIZERS
from tesserec.models.features import Features
from tesserec.models.registry import build_model
from tesserec.train.checkpoint import Array, Checkpoint, Content, array_path
from tesserec.train.config import OptimizerSection, ScheduleSection, TrainConfig, checked_options, chosen
from tesserec.train.run import RunFolder
from tesserec.train.step import StepOptions, apply_gradients, loss_and_gradients

DENSE_OPTIMIZERS: Mapping[str, Callable[..., optim.Optimizer]] = {
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


def features_of(info: DatasetInfo, config: TrainConfig) -> Features:
    """The features of a data set, as models take them."""
    sparse = {feature.name: feature.num_embeddings for feature in info.sparse}
    return Features(len(info.dense), sparse, config.model.pooling)


def label_index(info: DatasetInfo, label: str | None) -> int:
    """Which column of `Batch.labels` is learned. ConfigError when the config leaves it open, or names another."""
    if label is None and len(info.labels) != 1:
        raise ConfigError(f"key data.label: name the one to learn: {', '.join(info.labels) or 'there is none'}")
    return chosen("data.label", label or info.labels[0], {name: i for i, name in enumerate(info.labels)})


def new_model(config: TrainConfig, info: DatasetInfo) -> Module:
    """The model that the config describes, with its initial weights."""
    return build_model(
        config.model.name, features_of(info, config), seed=config.train.seed, options=config.model.options
    )


class Learner:
    """A model, its two optimizers, and how their learning rates change."""

    def __init__(self, config: TrainConfig, info: DatasetInfo, total_steps: int):
        settings = config.train
        self.model = new_model(config, info)
        self.dense, self.rows = _optimizers(self.model, config)
        self.base_lr = (self.dense.lr, self.rows.lr)
        self.schedule = _schedule(config.schedule, total_steps)
        mode = "max" if settings.higher_is_better else "min"
        self.plateau = config.plateau and ReduceOnPlateau(mode=mode, **config.plateau.model_dump())
        self.options = StepOptions(
            settings.seed,
            settings.slice_size,
            label_index(info, config.data.label),
            settings.clip_norm,
            settings.clip_value,
        )

    def factor(self, step: int) -> float:
        """What the base learning rates are multiplied with at `step`."""
        return self.schedule(step) * (self.plateau.factor if self.plateau else 1.0)

    def step(self, batch: Batch, step: int) -> float:
        """Learn from one batch -> its mean loss before the update. TrainingError, and no update, if that is not finite."""
        loss, grads = loss_and_gradients(self.model, batch, step, self.options)
        check_finite(loss, grads, step)
        factor = self.factor(step)
        for optimizer, base in zip((self.dense, self.rows), self.base_lr, strict=True):
            optimizer.lr = base * factor
        apply_gradients(grads, (self.dense, self.rows), self.options)
        return loss

    def judge(self, value: float) -> None:
        """Tell the plateau schedule, if there is one, the monitored metric."""
        if self.plateau:
            self.plateau.update(value)
