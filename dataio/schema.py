"""What each raw column means. One YAML file drives preparation, training and serving:

    name: clicks
    labels: click
    dense:
      - price                                              # as it is
      - {column: I1..I13, fill: 0, transform: log1p}       # a range stands for thirteen entries
    sparse:
      - {column: C1..C26, min_count: 10}
      - {column: user_id, encoding: hash, buckets: 1_000_000}
      - {column: genres, delimiter: "|"}                   # a list of ids
    split: {by: ratio, train: 0.8, valid: 0.1, test: 0.1}

An entry may be a bare name, and one entry may stand where a list is wanted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, model_validator

from tesserec.dataio.config import ConfigError, StrictModel, did_you_mean, read_config

RawType = Literal["string", "int", "float", "timestamp"]


class SchemaError(ValueError):
    """Raw data that is not what the schema says; the message names file, column, row and value."""


def _name_defaults_to_column(value: Any) -> Any:
    return {"name": value["column"], **value} if isinstance(value, dict) and "column" in value else value


class Label(StrictModel):
    """A target of 0 and 1; with a threshold, `value >= threshold`."""

    column: str
    name: str
    threshold: float | None = None

    _named = model_validator(mode="before")(_name_defaults_to_column)


class Keep(StrictModel):
    """A column carried along unchanged. `type` is how text files are read."""

    column: str
    name: str
    type: RawType = "string"

    _named = model_validator(mode="before")(_name_defaults_to_column)


class Dense(StrictModel):
    """A number: missing values (null, NaN) filled, then transformed; statistics are of the training split.

    fill: a number, `mean`, or absent: then a missing value is an error.
    transform: log1p is sign(x)·log(1 + |x|), so that -1 and 0 stay apart; minmax maps the training range to
      [0, 1]; standardize gives mean 0 and deviation 1. A constant column becomes 0 under both.
    """

    column: str
    name: str
    fill: float | Literal["mean"] | None = None
    transform: Literal["none", "log1p", "minmax", "standardize"] = "none"

    _named = model_validator(mode="before")(_name_defaults_to_column)


Missing = Literal["own", "oov", "empty", "error"]
_OPTIONS: dict[str, set[str]] = {
    "vocabulary": {"min_count", "max_size"},
    "hash": {"buckets", "seed"},
    "integer": {"size"},
    "bucketize": {"buckets", "boundaries"},
}
_MISSING_SINGLE: dict[str, tuple[Missing, ...]] = {  # the first is the default
    "vocabulary": ("own", "oov", "error"),
    "hash": ("own", "error"),
    "integer": ("error",),
    "bucketize": ("own", "error"),
}
_MISSING_LIST: dict[str, tuple[Missing, ...]] = {
    "vocabulary": ("empty", "oov", "error"),
    "hash": ("empty", "error"),
    "integer": ("empty", "error"),
    "bucketize": (),
}


class Sparse(StrictModel):
    """An id, or a list of ids, and how it is encoded.

    vocabulary: 1, 2, … in order of falling count in the training split, 0 for any other value (OOV). Known
      are values seen `min_count` times, the `max_size` most frequent of them.
    hash: XXH64(value, seed) mod `buckets`, for ids without bound. There is no OOV id.
    integer: the value itself, in [0, size); `size` is by default the largest value of all rows plus 1.
    bucketize: a number → 1 + how many of the increasing `boundaries` are at most it; `buckets` instead
      chooses boundaries that part the training split evenly. 0 is a missing number.
    missing: `own`, a category of its own (default); `oov`, id 0; `error`. Of lists: `empty` (default), `oov`,
      `error`; null and empty elements inside a list are dropped.
    type: whether keys are `int` or `string`. Default: `string` in text files; in others as the file says.
    delimiter: parts a text into a list. max_length: only the first so many of a list.
    """

    column: str
    name: str
    encoding: Literal["vocabulary", "hash", "integer", "bucketize"] = "vocabulary"
    type: Literal["string", "int"] | None = None
    delimiter: str | None = Field(default=None, min_length=1)
    max_length: int | None = Field(default=None, ge=1)
    missing: Missing | None = None
    min_count: int = Field(default=1, ge=1)
    max_size: int | None = Field(default=None, ge=1)
    buckets: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    size: int | None = Field(default=None, ge=1)
    boundaries: tuple[float, ...] | None = None

    _named = model_validator(mode="before")(_name_defaults_to_column)

    @model_validator(mode="after")
    def _options_fit_encoding(self) -> Self:
        for option in sorted(set().union(*_OPTIONS.values()) - _OPTIONS[self.encoding]):
            if option in self.model_fields_set:
                homes = " or ".join(name for name in _OPTIONS if option in _OPTIONS[name])
                raise ValueError(f"{self.name}: `{option}` belongs to encoding {homes}, not {self.encoding}")
        if self.encoding == "hash" and self.buckets is None:
            raise ValueError(f"{self.name}: encoding hash needs `buckets`")
        if self.encoding == "bucketize" and (self.buckets is None) == (self.boundaries is None):
            raise ValueError(f"{self.name}: encoding bucketize needs either `boundaries` or `buckets`")
        if self.boundaries is not None and list(self.boundaries) != sorted(set(self.boundaries)):
            raise ValueError(f"{self.name}: boundaries must increase, got {list(self.boundaries)}")
        self.missing_policy(is_list=self.delimiter is not None or self.missing == "empty")
        return self

    def missing_policy(self, *, is_list: bool) -> Missing:
        """What a missing value becomes. ValueError when the encoding has no id for that."""
        allowed = (_MISSING_LIST if is_list else _MISSING_SINGLE)[self.encoding]
        if not allowed:
            raise ValueError(f"{self.name}: encoding {self.encoding} takes single numbers, not lists")
        if self.missing is not None and self.missing not in allowed:
            what = f"{'lists' if is_list else 'single values'} with encoding {self.encoding}"
            raise ValueError(f"{self.name}: {what} take missing: {' or '.join(allowed)}, got {self.missing}")
        return self.missing or allowed[0]


class Format(StrictModel):
    """How text files are written.

    delimiter: by default a tab when the first line has one, else a comma.
    columns: names for files without a header (ranges allowed). A first line that names every column the
      schema reads is a header all the same.
    nulls: texts that mean missing.
    """

    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    columns: Annotated[tuple[str, ...], BeforeValidator(lambda names: _expand_names(names))] = ()
    nulls: tuple[str, ...] = ("",)


def _expand_names(names: str | Iterable[str]) -> list[str]:
    """`"a"` → [a]; `"C1..C3"` → [C1, C2, C3]; lists of both likewise."""
    if not isinstance(names, str):
        return [one for name in names for one in _expand_names(name)]
    found = re.fullmatch(r"(.*?)(\d+)\.\.(.*?)(\d+)", names)
    if found is None or found[1] != found[3]:
        return [names]
    return [f"{found[1]}{number}" for number in range(int(found[2]), int(found[4]) + 1)]


def _expand(entry: Any) -> list[Any]:
    """Bare names, ranges and nested lists → a list with one entry per column."""
    if isinstance(entry, list | tuple):
        return [one for inner in entry for one in _expand(inner)]
    if isinstance(entry, str):
        return [{"column": name} for name in _expand_names(entry)]
    if isinstance(entry, dict) and isinstance(entry.get("column"), str | list):
        return [{**entry, "column": name} for name in _expand_names(entry["column"])]
    return [entry]


class Shares(StrictModel):
    """Parts of the rows; they sum to 1."""

    train: float = Field(default=0.8, gt=0, le=1)
    valid: float = Field(default=0.1, ge=0, lt=1)
    test: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        if abs(self.train + self.valid + self.test - 1) > 1e-6:
            got = f"{self.train:g} + {self.valid:g} + {self.test:g}"
            raise ValueError(f"train + valid + test must be 1, got {got}")
        return self


class RatioSplit(Shares):
    """Each row falls by a hash of (seed, row number): shares are met on average, not to the row."""

    by: Literal["ratio"]
    seed: int = Field(default=0, ge=0)


Cut = float | datetime


class TimeSplit(Shares):
    """Training before validation before test, by shares or by the first time of validation and of test.

    Rows of one time stay together. type: `float` for numbers, `timestamp` for ISO 8601 text.
    """

    by: Literal["time"]
    column: str
    type: Literal["float", "timestamp"] = "float"
    valid_from: Cut | None = None
    test_from: Cut | None = None

    @model_validator(mode="after")
    def _both_cuts_or_none(self) -> Self:
        if (self.valid_from is None) != (self.test_from is None):
            raise ValueError("give both valid_from and test_from (the same: no validation), or shares")
        return self


class ColumnSplit(StrictModel):
    """A column that says `train`, `valid` or `test` of every row."""

    by: Literal["column"]
    column: str


class LeaveOneOut(StrictModel):
    """The last row of each group is for test, the one before it for validation.

    Order is that of `time` (ties, and without it: of the file). A group of two has no validation row; a group
    of one trains.
    """

    by: Literal["leave_one_out"]
    group: str
    time: str | None = None


AnySplit = RatioSplit | TimeSplit | ColumnSplit | LeaveOneOut


class Schema(StrictModel):
    """A data set as its user describes it."""

    name: str
    format: Format = Format()
    labels: Annotated[tuple[Label, ...], BeforeValidator(_expand)] = ()
    weight: str | None = None
    group: str | None = None
    dense: Annotated[tuple[Dense, ...], BeforeValidator(_expand)] = ()
    sparse: Annotated[tuple[Sparse, ...], BeforeValidator(_expand)] = ()
    keep: Annotated[tuple[Keep, ...], BeforeValidator(_expand)] = ()
    split: Annotated[AnySplit, Field(discriminator="by")] = RatioSplit(by="ratio")

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = self.target_names + [dense.name for dense in self.dense]
        names += [sparse.name for sparse in self.sparse] + [keep.name for keep in self.keep]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(
                f"two columns of the prepared data would be called {twice[0]!r} (the columns for `weight` "
                f"and `group` are called so); give one of them another `name`"
            )
        if not self.dense and not self.sparse:
            raise ValueError("a schema needs dense or sparse columns")
        return self

    @property
    def target_names(self) -> list[str]:
        """Names of what only training needs: labels, `weight`, `group`."""
        singles = [("weight", self.weight), ("group", self.group)]
        names = [label.name for label in self.labels]
        return names + [role for role, column in singles if column is not None]

    def feature_columns(self) -> dict[str, RawType]:
        """Raw columns that encoding needs, and how text files are read for it."""
        uses: list[tuple[str, RawType]] = [(dense.column, "float") for dense in self.dense]
        return _merge(uses + [(sparse.column, _raw_type(sparse)) for sparse in self.sparse])

    def target_columns(self) -> dict[str, RawType]:
        """Raw columns that only training needs: labels, weight, group, kept columns."""
        uses: list[tuple[str, RawType]] = [(label.column, "float") for label in self.labels]
        uses += [(self.weight, "float")] if self.weight else []
        uses += [(self.group, "string")] if self.group else []
        return _merge(uses + [(keep.column, keep.type) for keep in self.keep])

    def columns(self) -> dict[str, RawType]:
        """All raw columns that preparation reads."""
        parts = (self.feature_columns(), self.target_columns(), split_columns(self.split))
        return _merge([use for part in parts for use in part.items()])

    def to_yaml(self) -> str:
        """The schema as text that `read_schema` takes; defaults are left out."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        for role in {"labels", "dense", "sparse", "keep"} & values.keys():
            values[role] = [_shortest(entry) for entry in values[role]]
        values["split"] = {"by": self.split.by, **self.split.model_dump(mode="json", exclude_defaults=True)}
        return str(yaml.safe_dump(values, sort_keys=False, width=110, default_flow_style=None))


def split_columns(split: AnySplit) -> dict[str, RawType]:
    """Raw columns that decide the split."""
    if isinstance(split, TimeSplit):
        return {split.column: split.type}
    if isinstance(split, ColumnSplit):
        return {split.column: "string"}
    if isinstance(split, LeaveOneOut):
        return {split.group: "string", **({split.time: "float"} if split.time else {})}
    return {}


def _shortest(entry: dict[str, Any]) -> Any:
    short = {key: value for key, value in entry.items() if key != "name" or value != entry["column"]}
    return entry["column"] if len(short) == 1 else short


def _raw_type(sparse: Sparse) -> RawType:
    if sparse.delimiter is not None:
        return "string"
    if sparse.encoding == "bucketize":
        return "float"
    return "int" if sparse.encoding == "integer" or sparse.type == "int" else "string"


def _merge(uses: Sequence[tuple[str, RawType]]) -> dict[str, RawType]:
    """One type per column: text when its uses differ, since text loses nothing."""
    merged: dict[str, RawType] = {}
    for column, raw_type in uses:
        merged[column] = raw_type if merged.get(column, raw_type) == raw_type else "string"
    return merged


def ready_schemas() -> dict[str, Path]:
    """Name → file of each schema that comes with the package."""
    folder = Path(str(resources.files("tesserec.dataio"))) / "schemas"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_schema(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Schema:
    """A ready schema's name, or a file, with `a.b=value` overrides applied → Schema. Raises ConfigError."""
    return read_config(schema_path(name_or_path), Schema, overrides)


def schema_path(name_or_path: str | Path) -> Path:
    """The file of a ready schema's name, or of a path. ConfigError listing the ready ones."""
    path, ready = Path(name_or_path), ready_schemas()
    if path.suffix or path.exists():
        return path
    if str(name_or_path) not in ready:
        hint = did_you_mean(str(name_or_path), ready)
        raise ConfigError(f"no schema {str(name_or_path)!r}{hint} (a file, or one of {', '.join(ready)})")
    return ready[str(name_or_path)]
