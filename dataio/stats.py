"""What a planner asks of data: per id feature how long its bags are and how often each row is read.

A few thousand numbers per feature, whatever the size of the data, that add up: the merged statistics of parts
are those of the whole. Exact are bags, ids, lengths, reads by span of rows, and empty bags; `RowSketch` says
what else is, and how well the rest is estimated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from tesserec.dataio.atomic import atomic_file
from tesserec.dataio.curve import Curve, curve_of
from tesserec.dataio.dataset import DataError
from tesserec.dataio.row_counts import Counts, RowSketch
from tesserec.dataio.statistics import zipf_exponent

FORMAT, VERSION = "tesserec data statistics", 1


@dataclass(frozen=True, slots=True)
class LengthCounts:
    """Bags by their length: bags[k] of them have BOUNDS[k] … BOUNDS[k+1]-1 ids, ids[k] together. Exact."""

    bags: tuple[int, ...]
    ids: tuple[int, ...]
    longest: int

    @property
    def empty(self) -> float:
        """Share of the bags without ids."""
        return self.bags[0] / max(sum(self.bags), 1) if self.bags else 0.0

    @property
    def mean(self) -> float:
        """Ids in a bag."""
        return sum(self.ids) / max(sum(self.bags), 1)

    def merged(self, other: LengthCounts) -> LengthCounts:
        """Of both parts."""
        longest = max(self.longest, other.longest)
        return LengthCounts(_sum(self.bags, other.bags), _sum(self.ids, other.ids), longest)


@dataclass(frozen=True)
class FeatureStats:
    """One id feature. table: rows of its table, None where only a bare file is known; largest: id seen."""

    table: int | None
    largest: int
    lengths: LengthCounts
    reads: RowSketch

    def __post_init__(self) -> None:
        reads, ids = sum(self.reads.spans), sum(self.lengths.ids)
        if reads != ids:
            raise DataError(f"{reads} reads of rows, but {ids} ids in bags")

    @property
    def rows(self) -> int:
        """Of the table, or as many as the largest id needs."""
        return self.table or self.largest + 1

    @property
    def ids(self) -> int:
        """In all bags."""
        return sum(self.lengths.ids)

    @cached_property
    def curve(self) -> Curve:
        """How often the rows are read."""
        return curve_of(self.reads, self.rows)

    @property
    def zipf(self) -> float | None:
        """Exponent s of reads ∝ rank^-s, over the hottest rows; None for fewer than four."""
        return zipf_exponent(np.array(self.reads.hot_counts))

    def merged(self, other: FeatureStats) -> FeatureStats:
        """Of both parts. DataError when their tables differ."""
        if self.table != other.table:
            raise DataError(f"a table of {self.table} rows here, of {other.table} there")
        lengths = self.lengths.merged(other.lengths)
        largest = max(self.largest, other.largest)
        return FeatureStats(self.table, largest, lengths, self.reads.merged(other.reads))

    def to_dict(self) -> dict[str, Any]:
        """What a planner reads, and under `sketch` what merging needs."""
        some = [k for k, bags in enumerate(self.lengths.bags) if bags]
        return {
            "rows": self.rows,
            "ids": self.ids,
            "distinct": self.reads.distinct,
            "distinct_exact": self.reads.exact,
            "lengths": {
                "values": [self.lengths.ids[k] / self.lengths.bags[k] for k in some],
                "counts": [self.lengths.bags[k] for k in some],
                "mean": self.lengths.mean,
                "empty": self.lengths.empty,
                "longest": self.lengths.longest,
            },
            "curve": asdict(self.curve),
            "hottest": {str(share): float(self.curve.hottest(share * self.rows)) for share in (0.01, 0.1)},
            "zipf": self.zipf,
            "sketch": asdict(self),
        }


@dataclass(frozen=True, slots=True)
class Empties:
    """both[i][j]: samples in which the bags of features[i] and of features[j] are empty. Exact."""

    features: tuple[str, ...]
    both: tuple[tuple[int, ...], ...]

    def merged(self, other: Empties) -> Empties:
        """Of both parts."""
        both = np.array(self.both, np.int64) + np.array(other.both, np.int64)
        return Empties(self.features, rows_of(both))


@dataclass(frozen=True, slots=True)
class DataStats:
    """All id features of some data: `rows` samples that were read of the `of_rows` that there are."""

    data: tuple[str, ...]
    rows: int
    of_rows: int
    features: dict[str, FeatureStats]
    empties: Empties = field(default_factory=lambda: Empties((), ()))

    def merged(self, other: DataStats) -> DataStats:
        """Of both parts, which share no samples. DataError when they are not of like data."""
        if self.features.keys() != other.features.keys() or self.empties.features != other.empties.features:
            odd = sorted(self.features.keys() ^ other.features.keys()) or "which are lists"
            raise DataError(f"{self.data[0]} and {other.data[0]} have different features: {odd}")
        features = {}
        for name, stats in self.features.items():
            try:
                features[name] = stats.merged(other.features[name])
            except DataError as error:
                where = f"{self.data[0]} and {other.data[0]}, feature {name!r}"
                raise DataError(f"{where}: {error}; merge parts of one data set") from None
        rows, of_rows = self.rows + other.rows, self.of_rows + other.of_rows
        return DataStats(self.data + other.data, rows, of_rows, features, self.empties.merged(other.empties))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "data": list(self.data),
            "rows": self.rows,
            "of_rows": self.of_rows,
            "features": {name: stats.to_dict() for name, stats in self.features.items()},
            "empties": asdict(self.empties),
        }

    def write(self, path: str | Path) -> None:
        """Write JSON that `read_stats` reads; there whole or not at all."""
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8")


def merge_stats(parts: Sequence[DataStats]) -> DataStats:
    """The statistics of all parts together. DataError."""
    return reduce(DataStats.merged, parts)


def read_stats(path: str | Path) -> DataStats:
    """A file that `tesserec data stats` wrote. DataError when it is none, damaged or too new."""
    try:
        values = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; make one with `tesserec data stats DATA -o {path}`") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise DataError(f"{path}: no statistics of data; make some with `tesserec data stats DATA -o FILE`")
    if values.get("version") != VERSION:
        raise DataError(
            f"{path}: version {values.get('version')}; this release reads {VERSION}; make it again"
        )
    try:
        features = {name: feature["sketch"] for name, feature in values["features"].items()}
        stats = {name: values[name] for name in ("data", "rows", "of_rows", "empties")}
        return TypeAdapter(DataStats).validate_python({**stats, "features": features})
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged: {type(error).__name__} {error}; make it again") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{path}: damaged at {where}: {first['msg']}; make it again") from None


def rows_of(matrix: Counts) -> tuple[tuple[int, ...], ...]:
    """A matrix as tuples."""
    return tuple(tuple(row) for row in matrix.tolist())


def _sum(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    """Their sum, the shorter filled with zeros."""
    short, long = sorted((one, other), key=len)
    return tuple(a + b for a, b in zip((*short, *[0] * (len(long) - len(short))), long, strict=True))
