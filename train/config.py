"""What a training run is, as one frozen, validated file: data, model, optimizer, schedule, train, output.

Sections that name something (`model`, an optimizer, a schedule) hold its options as further keys; these are
checked against what they name, with the same care, when it is built.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from tesserec.dataio.config import ConfigError, StrictModel, did_you_mean


class Named(StrictModel):
    """A name and the options of what it names."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The keys beside those that the section itself has."""
        return dict(self.model_extra or {})


class ModelSection(Named):
    """A model and its options. pooling: how several ids of one feature become one vector.

    data_type: how the rows of tables are stored; the half types are rounded at random, with the right mean.
    """

    pooling: Literal["mean", "sum"] = "mean"
    data_type: Literal["float32", "float16", "bfloat16"] = "float32"


UnseenPolicy = Annotated[str, Field(pattern=r"^(error|hash|drop|clamp:\d+)$")]


class DataSection(StrictModel):
    """Which prepared data set, which of its splits and labels, and how it is cut into batches.

    streams: each rank decodes only its own, so as many as ranks is fastest. What a batch holds depends on it.
    unseen: {feature: what becomes of an id that its table has no row for}: "error"; "clamp:ROW", read as that
    row; "hash", read as the row that a hash names; "drop", taken out of its bag. "*" is every other feature;
    a word alone is that of all.
    """

    path: Path
    batch_size: PositiveInt = 2048  # of all ranks together
    streams: PositiveInt = 1  # parts of an epoch that are shuffled and decoded apart; ranks share them out
    shuffle: bool = True
    train: str = "train"
    valid: str | None = "valid"  # null: never validate
    label: str | None = None  # may be left out when the data set has one
    unseen: dict[str, UnseenPolicy] = Field(default_factory=dict)

    @field_validator("unseen", mode="before")
    @classmethod
    def _for_all(cls, given: Any) -> Any:
        return given if isinstance(given, Mapping) else {"*": given}


class OptimizerSection(Named):
    """One optimizer; the key `lr` is the base that the schedule scales."""

    lr: PositiveFloat


class OptimizerPair(StrictModel):
    """One optimizer for the dense parameters, one for the rows of the embedding tables."""

    dense: OptimizerSection = OptimizerSection(name="adam", lr=1e-3)
    rows: OptimizerSection = OptimizerSection(name="rowwise_adagrad", lr=0.02)


class ScheduleSection(Named):
    """A factor of every learning rate by step; it rises linearly over the first `warmup` steps."""

    name: str = "constant"
    warmup: NonNegativeInt = 0


class PlateauSection(StrictModel):
    """Multiply the learning rate by `gamma` after more than `patience` validations without progress."""

    gamma: float = Field(0.1, gt=0, le=1)
    patience: NonNegativeInt = 1
    threshold: NonNegativeFloat = 0.0
    floor: NonNegativeFloat = 0.0


class StoppingSection(StrictModel):
    """Stop after `patience` validations in a row that do not beat the best by more than `min_delta`."""

    patience: PositiveInt = 2
    min_delta: NonNegativeFloat = 0.0


class TrainSection(StrictModel):
    """How long, how often, how careful. Everything `_every` is in steps; null means never, or see there."""

    epochs: PositiveInt = 1
    max_steps: PositiveInt | None = None
    seed: NonNegativeInt = 0
    slice_size: PositiveInt = 512
    compile: bool = True  # replay the captured model (tesserec.compile) where that can be done
    threads: PositiveInt | None = None  # null: all of the machine's; never changes a result
    log_every: PositiveInt = 20
    validate_every: PositiveInt | None = None  # null: at the end of each epoch
    checkpoint_every: PositiveInt | None = None
    checkpoint_seconds: PositiveFloat | None = 600.0
    deterministic: Literal["bitwise"] | None = None  # the same bits for any plan and 1, 2, 4, … ranks
    monitor: Literal["auc", "gauc", "log_loss", "ne"] = "auc"  # what "best" means
    auc: Literal["exact", "histogram"] = "exact"
    early_stopping: StoppingSection | None = None
    clip_norm: PositiveFloat | None = None
    clip_value: PositiveFloat | None = None

    @property
    def monitored(self) -> str:
        """Key of the monitored value among the computed metrics."""
        return "auc_histogram" if (self.monitor, self.auc) == ("auc", "histogram") else self.monitor

    @property
    def higher_is_better(self) -> bool:
        """Whether the monitored metric grows as the model gets better."""
        return self.monitor in ("auc", "gauc")


Codec = Literal["fp32", "fp16", "bf16", "int8"]


class ShardingSection(StrictModel):
    """How the model lies on the ranks, where there are several.

    plan: a file that says it all. Else each table is sharded by its kind in `tables`, {name or pattern:
    kind}, or by `default`; see `tesserec.sharding.placement.make_plan`. forward, backward: how vectors and
    their gradients travel. dense: "sharded" keeps gradients and optimizer state of dense parameters in parts.
    replica_groups: the ranks in so many groups, each with all tables; averaged every `sync_every` steps.
    """

    plan: Path | None = None
    default: str = "auto"
    tables: dict[str, str] = Field(default_factory=dict)
    forward: Codec = "fp32"
    backward: Codec = "fp32"
    dense: Literal["replicated", "sharded"] = "replicated"
    replica_groups: PositiveInt = 1
    sync_every: PositiveInt = 1
    timeout: PositiveFloat = 10.0  # seconds after which a rank that does not answer ends the run


class TrainConfig(StrictModel):
    """One training run."""

    data: DataSection
    model: ModelSection
    optimizer: OptimizerPair = OptimizerPair()
    schedule: ScheduleSection = ScheduleSection()
    plateau: PlateauSection | None = None
    train: TrainSection = TrainSection()
    sharding: ShardingSection = ShardingSection()
    output: Path | None = None  # the run folder; null: runs/<name of the config file>

    @model_validator(mode="after")
    def _validation_is_there(self) -> Self:
        if self.data.valid is None and (self.train.early_stopping or self.plateau):
            raise ValueError("early_stopping and plateau need a validation split, but data.valid is null")
        return self

    def anchored(self, output: Path) -> TrainConfig:
        """The same with absolute paths, and with `output` as the run folder where none is named."""
        data = self.data.model_copy(update={"path": self.data.path.resolve()})
        plan = self.sharding.plan and self.sharding.plan.resolve()
        sharding = self.sharding.model_copy(update={"plan": plan})
        changes = {"data": data, "sharding": sharding, "output": (self.output or output).resolve()}
        return self.model_copy(update=changes)


# what may differ between a run and its continuation: how long, where, and what leaves no trace
MAY_CHANGE = {"train.epochs", "train.max_steps", "data.path", "output"}
MAY_CHANGE |= {"train.threads", "train.checkpoint_every", "train.checkpoint_seconds"}
MAY_CHANGE |= {f"sharding.{key}" for key in ("plan", "default", "dense", "timeout")}


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """`a.b: old → new` for each key in which a continued run may not differ but does."""
    before, after = (_flat(config.model_dump(mode="json")) for config in (old, new))
    keys = sorted((before.keys() | after.keys()) - MAY_CHANGE)
    keys = [key for key in keys if not key.startswith("sharding.tables.")]
    return [f"{k}: {before.get(k)} → {after.get(k)}" for k in keys if before.get(k) != after.get(k)]


def check_ranks(config: TrainConfig, ranks: int) -> None:
    """ConfigError unless so many ranks can share the batches, and what else the config asks of them."""
    batch_size, streams, groups = config.data.batch_size, config.data.streams, config.sharding.replica_groups
    for number, what in ((ranks, "ranks"), (streams, "data.streams")):
        if batch_size % number:
            raise ConfigError(
                f"key data.batch_size: {batch_size} is that of all ranks together; "
                f"wanted a multiple of {what}, {number}"
            )
    if max(streams, ranks) % min(streams, ranks):
        raise ConfigError(f"key data.streams: {streams} for {ranks} ranks; wanted a divisor or a multiple")
    if ranks % groups:
        raise ConfigError(f"key sharding.replica_groups: {groups} for {ranks} ranks; wanted a divisor")
    if config.train.deterministic:
        _check_bitwise(config, ranks)


def _check_bitwise(config: TrainConfig, ranks: int) -> None:
    """ConfigError where the sums of several ranks would not be those of one."""
    share, slice_size, sharding = config.data.batch_size // ranks, config.train.slice_size, config.sharding
    wanted = ""
    if ranks.bit_count() != 1:
        wanted = f"1, 2, 4, … ranks, not {ranks}"
    elif share % slice_size:
        wanted = f"a multiple of train.slice_size, {slice_size}, as a rank's share of the batch, not {share}"
    elif (sharding.forward, sharding.backward) != ("fp32", "fp32"):
        wanted = "sharding.forward and sharding.backward to be fp32"
    elif sharding.replica_groups > 1:
        wanted = "sharding.replica_groups to be 1"
    if wanted:
        raise ConfigError(f"key train.deterministic: bitwise needs {wanted}")


def checked_options(where: str, function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` in the types of `function`'s keywords. ConfigError for one it has not, or of a wrong type.

    where: path of the section in the config, for the message.
    """
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    known = {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}
    checked = {}
    for key, value in options.items():
        if key not in known:
            near = did_you_mean(key, known)
            raise ConfigError(f"key {where}.{key}: unknown key{near} (known: {', '.join(known)})")
        try:
            checked[key] = TypeAdapter(known[key]).validate_python(value)
        except ValidationError as error:
            raise ConfigError(f"key {where}.{key}: {error.errors()[0]['msg']}, got {value!r}") from None
    return checked


def chosen(where: str, name: str, table: Mapping[str, Any]) -> Any:
    """`table[name]`, else ConfigError with the nearest match."""
    if name not in table:
        raise ConfigError(f"key {where}: no {name!r}{did_you_mean(name, table)} (known: {', '.join(table)})")
    return table[name]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
