"""A prepared data set: a folder of Parquet files and `dataset.json`, which says what the columns mean.

OUT/dataset.json            this description
OUT/encoder/                how raw values became ids (tesserec.dataio.encoder)
OUT/{train,valid,test}.parquet
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tesserec.dataio.config import did_you_mean

INFO_FILE = "dataset.json"
FORMAT_VERSION = 1


class DataError(ValueError):
    """Data that does not hold what it promises; the message names file, column and row."""


@dataclass(frozen=True, slots=True)
class SparseFeature:
    """An id column: ids in [0, num_embeddings), one per row, or a list of them per row when `is_list`."""

    name: str
    num_embeddings: int
    is_list: bool = False

    def __post_init__(self) -> None:
        if self.num_embeddings < 1:
            raise DataError(f"feature {self.name!r}: wanted num_embeddings ≥ 1, got {self.num_embeddings}")


@dataclass(frozen=True, slots=True)
class Split:
    """Parquet files, relative to the data set's folder, and the number of rows in all of them."""

    files: tuple[str, ...]
    rows: int


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What the columns of a data set are. A column has one role; `keep` columns ride along unread.

    Types in the files: labels, weight and dense float32; group int64; sparse int64 or list<int64>.
    """

    name: str
    labels: tuple[str, ...] = ()
    weight: str | None = None
    group: str | None = None
    dense: tuple[str, ...] = ()
    sparse: tuple[SparseFeature, ...] = ()
    keep: tuple[str, ...] = ()
    splits: Mapping[str, Split] = field(default_factory=dict)

    def __post_init__(self) -> None:
        twice = [name for name, count in Counter((*self.columns, *self.keep)).items() if count > 1]
        if twice:
            raise DataError(f"data set {self.name!r}: column {twice[0]!r} has two roles; give it one")

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column a model may read: labels, weight, group, dense, sparse."""
        single = tuple(name for name in (self.weight, self.group) if name is not None)
        return (*self.labels, *single, *self.dense, *(feature.name for feature in self.sparse))


@dataclass(frozen=True, slots=True)
class Dataset:
    """A folder and the meaning of what is in it. `Dataset(folder, info)` also serves Parquet files without a
    `dataset.json`; `Dataset.open(folder)` reads one."""

    path: Path
    info: DatasetInfo

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """Folder made by `tesserec data prepare` → Dataset. DataError when it is not one."""
        return cls(Path(path), read_dataset_info(path))

    @property
    def encoder_path(self) -> Path:
        """Where the fitted encoder is kept."""
        return self.path / "encoder"

    def split(self, name: str) -> Split:
        """The split of that name. DataError listing those that exist."""
        if name not in self.info.splits:
            have = ", ".join(self.info.splits) or "none"
            hint = did_you_mean(name, self.info.splits)
            raise DataError(f"{self.path}: no split {name!r}{hint} (splits: {have})")
        return self.info.splits[name]

    def files(self, split: str) -> tuple[Path, ...]:
        """Paths of the Parquet files of a split, in order."""
        return tuple(self.path / file for file in self.split(split).files)


def write_dataset_info(folder: str | Path, info: DatasetInfo) -> None:
    """Write `folder/dataset.json`. To be called inside `atomic_folder`."""
    values = {"format_version": FORMAT_VERSION, **TypeAdapter(DatasetInfo).dump_python(info)}
    (Path(folder) / INFO_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_dataset_info(folder: str | Path) -> DatasetInfo:
    """`folder/dataset.json` → DatasetInfo. DataError naming the file when absent, damaged or too new."""
    path = Path(folder) / INFO_FILE
    try:
        values = json.loads(path.read_bytes())
        version = values.pop("format_version")
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: no such file; make a data set with `tesserec data prepare`") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: damaged; prepare the data again") from None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path}: format version {version}; this release reads {FORMAT_VERSION}; prepare the data again"
        )
    try:
        return TypeAdapter(DatasetInfo).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where, what = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise DataError(f"{path}: damaged at {where}: {what}; prepare the data again") from None
