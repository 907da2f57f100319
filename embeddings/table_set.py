"""TableSet: tables stacked in pools, the features that read them, and the lanes of a batch over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.embeddings.config import EmbeddingBagConfig, EmbeddingConfig, check_tables
from tesserec.embeddings.jagged import InvalidIdError, KeyedJaggedTensor
from tesserec.embeddings.kernels.lookup import LANE, first_invalid
from tesserec.embeddings.pool import Pool, PoolTable

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Reader:
    """A feature that reads a table: the `position`-th of pool `pool`. name: that of the output it makes."""

    feature: str
    name: str
    table: PoolTable
    pool: int
    position: int

    @property
    def width(self) -> int:
        return self.table.config.embedding_dim


class TableSet:
    """Tables in pools, one for each width.

    readers: all of one pool after the other. outputs: the same in the order of the tables and of their
    feature_names. A reader's output is named as its feature, or `feature@table` where several tables read it.
    """

    def __init__(self, tables: Sequence[EmbeddingConfig], *, seed: int):
        check_tables(tables)
        self.tables = tuple(tables)
        widths = dict.fromkeys(table.embedding_dim for table in tables)
        self.pools = [Pool([t for t in tables if t.embedding_dim == width], seed=seed) for width in widths]
        self.readers = _readers(self.pools, Counter(f for table in tables for f in table.feature_names))
        place = {table.name: i for i, table in enumerate(tables)}
        self.outputs = sorted(self.readers, key=lambda reader: place[reader.table.config.name])
        self._templates: dict[tuple[str, ...], tuple[Array, Array]] = {}

    def state(self) -> dict[str, Array]:
        """{table: (num_embeddings, D)}; views."""
        held = {t.config.name: pool.data[t.rows] for pool in self.pools for t in pool.tables}
        return {table.name: held[table.name] for table in self.tables}

    def bind(self, kjt: KeyedJaggedTensor) -> Array:
        """(readers,) LANE over the arrays of `kjt`, for pooled outputs side by side.

        KeyError for a feature that it lacks, InvalidIdError for an id outside a table. Its other keys are
        ignored.
        """
        template, keys = self._templates.get(kjt.keys) or self._learn(kjt.keys)
        lanes: Array = template.copy()
        batch, first = kjt.batch_size, keys * kjt.batch_size
        lanes["ids"] = kjt.values.ctypes.data
        lanes["offsets"] = kjt.offsets.ctypes.data + first * kjt.offsets.itemsize
        lanes["weights"] = 0 if kjt.weights is None else kjt.weights.ctypes.data
        lanes["bags"] = batch
        lanes["count"] = kjt.offsets[first + batch] - kjt.offsets[first]
        invalid, at = first_invalid(lanes)
        if invalid >= 0:
            raise _invalid_id(self.readers[invalid], kjt, at)
        return lanes

    def by_pool(self, lanes: Array) -> list[tuple[Pool, Array]]:
        """Each pool with its part of the readers' lanes."""
        ends = np.searchsorted([reader.pool for reader in self.readers], range(1, len(self.pools)))
        return list(zip(self.pools, np.split(lanes, ends), strict=True))

    def _learn(self, keys: tuple[str, ...]) -> tuple[Array, Array]:
        """For batches of these keys: lanes without addresses, and the position of each one's key."""
        missing = [reader.feature for reader in self.readers if reader.feature not in keys]
        if missing:
            raise KeyError(f"the batch has no key {missing[0]!r}; it has {list(keys)}")
        ends = accumulate((reader.width for reader in self.outputs), initial=0)
        columns = dict(zip(self.outputs, ends, strict=False))
        lanes = np.zeros(len(self.readers), LANE)
        for lane, reader in zip(lanes, self.readers, strict=True):
            config = reader.table.config
            lane["table"], lane["first_row"] = reader.position, reader.table.first_row
            lane["num_rows"], lane["column"] = config.num_embeddings, columns[reader]
            lane["mean"] = isinstance(config, EmbeddingBagConfig) and config.pooling == "mean"
        learnt = lanes, np.array([keys.index(reader.feature) for reader in self.readers])
        self._templates[keys] = learnt
        return learnt


def _readers(pools: Sequence[Pool], uses: Counter[str]) -> list[Reader]:
    """uses: how many tables read each feature."""
    return [
        Reader(feature, feature if uses[feature] == 1 else f"{feature}@{table.config.name}", table, p, i)
        for p, pool in enumerate(pools)
        for i, table in enumerate(pool.tables)
        for feature in table.config.feature_names
    ]


def _invalid_id(reader: Reader, kjt: KeyedJaggedTensor, at: int) -> InvalidIdError:
    """About the id at position `at` of `kjt.values`."""
    bag = int(np.searchsorted(kjt.offsets, at, side="right")) - 1
    config = reader.table.config
    return InvalidIdError(
        f"feature {reader.feature!r}, table {config.name!r}, sample {bag % kjt.batch_size}: "
        f"id {kjt.values[at]} at position {at - kjt.offsets[bag]} of its bag, "
        f"wanted 0 to {config.num_embeddings - 1}: "
        "encode the data with the encoder that the table was made for"
    )
