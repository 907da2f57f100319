"""What each raw column means. One YAML file drives preparation, training and serving:

    name: clicks
    labels: click
    dense:
      - price                                              # the default: as it is
      - {column: I1..I13, fill: 0, transform: log1p}       # a range stands for thirteen entries
    sparse:
      - {column: C1..C26, min_count: 10}
      - {column: user_id, encoding: hash, buckets: 1_000_000}
      - {column: genres, delimiter: "|"}                   # a list of ids
    split: {by: ratio, train: 0.8, valid: 0.1, test: 0.1}

An entry may be a bare name, and anything may stand where a list of one is wanted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from datetime import date, datetime
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, model_validator

from tesserec.dataio.config import StrictModel, did_you_mean, parse_config, read_config

RawType = Literal["string", "int", "float", "timestamp"]


class SchemaError(ValueError):
    """Raw data that is not what the schema says; the message names file, column, row and value."""


def _name_defaults_to_column(value: Any) -> Any:
    return {"name": value["column"], **value} if isinstance(value, dict) and "column" in value else value


class Label(StrictModel):
    """A target of 0 and 1, or `value >= threshold`."""

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
    """A number: missing values filled, then transformed; statistics come from the training split.

    fill: a number, `mean`, or absent: a missing value is an error (a NaN is a missing value).
    transform: log1p is sign(x)·log(1 + |x|); minmax maps the training range to [0, 1]; standardize gives mean 0, deviation 1.
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
_MISSING: dict[str, tuple[Missing, ...]] = {  # the first is the default of single values
    "vocabulary": ("own", "oov", "error"),
    "hash": ("own", "error"),
    "integer": ("error",),
    "bucketize": ("own", "error"),
}


class Sparse(StrictModel):
    """An id, or a list of ids, and how it is encoded.

    vocabulary: ids 1, 2, … in order of falling count in the training split; 0 is any other value (OOV). Kept are
      values seen `min_count` times, at most `max_size` of them.
    hash: XXH64(value, seed) mod `buckets`, for ids without bound. No OOV id.
    integer: the value itself, in [0, size); `size` defaults to the largest value of all rows plus 1.
    bucketize: a number → 1 + how many of the sorted `boundaries` are at most it; instead of boundaries, `buckets` of equal count
      in the training split. 0 is a missing number.
    missing: `own`, a category of its own (default) · `oov`, id 0 · `error` · of lists `empty` (their default), `oov`, `error`.
      Null and empty elements inside a list are dropped.
    type: `int` or `string`; what keys are. By default `string` in text files, and as the file says in the others.
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
        for option in set().union(*_OPTIONS.values()) - _OPTIONS[self.encoding]:
            if option in self.model_fields_set:
                homes = " or ".join(e for e in _OPTIONS if option in _OPTIONS[e])
                raise ValueError(f"{self.name}: `{option}` is of encoding {homes}, not {self.encoding}")
        if self.encoding == "hash" and self.buckets is None:
            raise ValueError(f"{self.name}: encoding hash needs `buckets`")
        if self.encoding == "bucketize" and (self.buckets is None) == (self.boundaries is None):
            raise ValueError(f"{self.name}: encoding bucketize needs `boundaries` or `buckets`")
        if self.boundaries is not None and list(self.boundaries) != sorted(set(self.boundaries)):
            raise ValueError(f"{self.name}: boundaries must increase, got {list(self.boundaries)}")
        if self.missing is not None:
            self.missing_policy(is_list=self.delimiter is not None or self.missing == "empty")
        return self

    def missing_policy(self, *, is_list: bool) -> Missing:
        """What a missing value becomes. ValueError when the encoding has no such id."""
        allowed = _MISSING[self.encoding]
        if is_list:
            allowed = ("empty", "error", *(("oov",) if self.encoding == "vocabulary" else ()))
        if self.missing is not None and self.missing not in allowed:
            what = "lists with " if is_list else ""
            raise ValueError(
                f"{self.name}: {what}encoding {self.encoding} takes missing: {' or '.join(allowed)}"
            )
        return self.missing or allowed[0]


class RatioSplit(StrictModel):
    """Each row falls by itself, by a hash of (seed, row number): the shares are met on average, not exactly."""

    by: Literal["ratio"] = "ratio"
    train: float = Field(default=0.8, gt=0, le=1)
    valid: float = Field(default=0.1, ge=0, lt=1)
    test: float = Field(default=0.1, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> Self:
        return _checked_shares(self, self.train + self.valid + self.test)


Cut = float | datetime | date


class TimeSplit(StrictModel):
    """Training before validation before test: shares of the rows, or the first time of validation and of test.

    Rows of one time stay together. type: `float` for numbers, `timestamp` for ISO 8601 text.
    """

    by: Literal["time"]
    column: str
    type: Literal["float", "timestamp"] = "float"
    train: float = Field(default=0.8, gt=0, le=1)
    valid: float = Field(default=0.1, ge=0, lt=1)
    test: float = Field(default=0.1, ge=0, lt=1)
    valid_from: Cut | None = None
    test_from: Cut | None = None

    @model_validator(mode="after")
    def _shares_or_cuts(self) -> Self:
        if (self.valid_from is None) != (self.test_from is None):
            raise ValueError(
                "split by time: give both valid_from and test_from (equal: no validation), or shares"
            )
        return _checked_shares(self, self.train + self.valid + self.test)


class ColumnSplit(StrictModel):
    """A column says `train`, `valid` or `test` of every row."""

    by: Literal["column"]
    column: str


class LeaveOneOut(StrictModel):
    """The last row of each group is for test, the one before for validation; a group of one row trains.

    Order is by `time` (ties: as in the file), or without it as in the file. A group of two has no validation row.
    """

    by: Literal["leave_one_out"]
    group: str
    time: str | None = None


def _checked_shares[T](split: T, total: float) -> T:
    if abs(total - 1) > 1e-6:
        raise ValueError(f"split: train + valid + test must be 1, got {total:g}")
    return split


class Format(StrictModel):
    """How text files are written.

    delimiter: by default a tab when the first line has one, else a comma. columns: names for files without a header (ranges allowed);
    a first line that names every column the schema reads is taken as the header anyway. nulls: texts that mean missing.
    """

    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    columns: Annotated[tuple[str, ...], BeforeValidator(lambda v: _expand_names(v))] = ()
    nulls: tuple[str, ...] = ("",)


def _expand_names(names: str | Sequence[str]) -> list[str]:
    """`"a"` → [a]; `"C1..C3"` → [C1, C2, C3]; lists of both likewise."""
    if not isinstance(names, str):
        return [one for name in names for one in _expand_names(name)]
    found = re.fullmatch(r"(.*?)(\d+)\.\.(.*?)(\d+)", names)
    if found is None or found[1] != found[3]:
        return [names]
    return [f"{found[1]}{number}" for number in range(int(found[2]), int(found[4]) + 1)]


def _expand(entries: Any) -> list[Any]:
    """Bare names, ranges and single entries → a list with one mapping per column."""
    if not isinstance(entries, list | tuple):
        entries = [entries]
    expanded: list[Any] = []
    for entry in entries:
        entry = {"column": entry} if isinstance(entry, str) else entry
        if isinstance(entry, dict) and isinstance(entry.get("column"), str | list):
            expanded += [{**entry, "column": name} for name in _expand_names(entry["column"])]
        else:
            expanded.append(entry)
    return expanded


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
    split: Annotated[RatioSplit | TimeSplit | ColumnSplit | LeaveOneOut, Field(discriminator="by")] = (
        RatioSplit()
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [*self.target_names, *(entry.name for entry in (*self.dense, *self.sparse, *self.keep))]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(
                f"two columns of the prepared data would be called {twice[0]!r} (labels, `weight`, `group`, dense, sparse and keep "
                f"share one set of names); give one of them a `name`"
            )
        if not self.dense and not self.sparse:
            raise ValueError("a schema needs dense or sparse columns")
        return self

    @property
    def target_names(self) -> list[str]:
        """Names of what only training needs: labels, `weight`, `group`."""
        singles = [role for role in ("weight", "group") if getattr(self, role) is not None]
        return [label.name for label in self.labels] + singles

    def feature_columns(self) -> dict[str, RawType]:
        """Raw columns that encoding needs, and how text files are read for it."""
        uses: list[tuple[str, RawType]] = [(dense.column, "float") for dense in self.dense]
        uses += [(sparse.column, _raw_type(sparse)) for sparse in self.sparse]
        return _merge(uses)

    def target_columns(self) -> dict[str, RawType]:
        """Raw columns that only training needs: labels, weight, group, kept columns."""
        uses: list[tuple[str, RawType]] = [(label.column, "float") for label in self.labels]
        uses += [(self.weight, "float")] if self.weight else []
        uses += [(self.group, "string")] if self.group else []
        return _merge(uses + [(keep.column, keep.type) for keep in self.keep])

    def split_columns(self) -> dict[str, RawType]:
        """Raw columns that decide the split."""
        split = self.split
        if isinstance(split, TimeSplit):
            return {split.column: split.type}
        if isinstance(split, ColumnSplit):
            return {split.column: "string"}
        if isinstance(split, LeaveOneOut):
            return {split.group: "string"} | ({split.time: "float"} if split.time else {})
        return {}

    def columns(self) -> dict[str, RawType]:
        """All raw columns that preparation reads."""
        parts = (self.feature_columns(), self.target_columns(), self.split_columns())
        return _merge([use for part in parts for use in part.items()])

    def to_yaml(self) -> str:
        """The schema as text that `read_schema` takes; defaults are left out."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        for role in ("labels", "dense", "sparse", "keep"):
            values[role] = [_shortest(entry) for entry in values.get(role, [])]
        values["split"] = self.split.model_dump(mode="json", exclude_unset=True) | {"by": self.split.by}
        text = yaml.safe_dump(
            {k: v for k, v in values.items() if v}, sort_keys=False, width=110, default_flow_style=None
        )
        return text


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


def ready_schemas() -> list[str]:
    """Names of the schemas that come with the package."""
    folder = resources.files("tesserec.dataio") / "schemas"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def ready_schema_text(name: str) -> str:
    """The YAML text of a schema that comes with the package. SchemaError listing those there are."""
    if name not in ready_schemas():
        have = ", ".join(ready_schemas())
        raise SchemaError(f"no ready schema {name!r}{did_you_mean(name, ready_schemas())} (ready: {have})")
    return (resources.files("tesserec.dataio") / "schemas" / f"{name}.yaml").read_text(encoding="utf-8")


def read_schema(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Schema:
    """A ready schema's name, or a file, with `a.b=value` overrides applied → Schema. ConfigError, SchemaError."""
    text = str(name_or_path)
    if Path(text).suffix or Path(text).exists():
        return read_config(text, Schema, overrides)
    ready_schema_text(text)
    return read_config(
        str(resources.files("tesserec.dataio") / "schemas" / f"{text}.yaml"), Schema, overrides
    )


def schema_from(values: dict[str, Any], source: str = "schema") -> Schema:
    """Plain values → Schema. ConfigError."""
    return parse_config(values, Schema, source)
