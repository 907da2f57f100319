"""Collections: id features in, vectors out, through one lookup over all tables.

`EmbeddingBagCollection` pools the ids of each bag into one vector. `EmbeddingCollection` keeps one vector per id,
which is the same lookup with every id a bag of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.module import Module
from tesserec.embeddings.config import EmbeddingBagConfig, EmbeddingConfig, TableError, check_tables
from tesserec.embeddings.jagged import InvalidIdError, JaggedTensor, KeyedJaggedTensor
from tesserec.embeddings.kernels.lookup import LANE, first_invalid
from tesserec.embeddings.keyed_tensor import KeyedTensor
from tesserec.embeddings.lookup import Bags, lookup
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


class TableCollection(Module):
    """Tables stacked in pools, one for each width, and their readers, those of one pool after the other.

    The base of both collections. Its state has one array per table, under the table's name.
    """

    def __init__(self, tables: Sequence[EmbeddingConfig], *, seed: int):
        check_tables(tables)
        self.tables = tuple(tables)
        widths = dict.fromkeys(table.embedding_dim for table in tables)
        self.pools = [Pool([t for t in tables if t.embedding_dim == width], seed=seed) for width in widths]
        self.readers = _readers(self.pools, Counter(f for table in tables for f in table.feature_names))
        self._templates: dict[tuple[str, ...], tuple[Array, Array]] = {}

    def local_state(self) -> dict[str, Array]:
        """{table: (num_embeddings, D)}; views."""
        held = {t.config.name: pool.data[t.rows] for pool in self.pools for t in pool.tables}
        return {table.name: held[table.name] for table in self.tables}

    def bind(self, kjt: KeyedJaggedTensor) -> Array:
        """(readers,) LANE over the arrays of `kjt`.

        KeyError for a feature that it lacks, InvalidIdError for an id outside a table; its other keys are ignored.
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

    def _learn(self, keys: tuple[str, ...]) -> tuple[Array, Array]:
        """What `bind` needs for batches of these keys: lanes without addresses, and the position of each one's key."""
        missing = [reader.feature for reader in self.readers if reader.feature not in keys]
        if missing:
            raise KeyError(f"the batch has no key {missing[0]!r}; it has {list(keys)}")
        lanes = np.zeros(len(self.readers), LANE)
        for lane, reader in zip(lanes, self.readers, strict=True):
            lane["table"], lane["first_row"] = reader.position, reader.table.first_row
            lane["num_rows"] = reader.table.config.num_embeddings
        learnt = lanes, np.array([keys.index(reader.feature) for reader in self.readers])
        self._templates[keys] = learnt
        return learnt


class EmbeddingBagCollection(TableCollection):
    """KeyedJaggedTensor -> KeyedTensor: for each feature and sample, the sum or mean of its ids' rows.

    Keys of the output: the features, in the order of the tables and of their feature_names; `feature@table` for
    a feature that several tables read.
    """

    def __init__(self, tables: Sequence[EmbeddingBagConfig], *, seed: int):
        super().__init__(tables, seed=seed)
        for table in tables:
            if not isinstance(table, EmbeddingBagConfig):
                raise TableError(f"table {table.name!r} is an EmbeddingConfig, wanted an EmbeddingBagConfig")
        order = {table.name: i for i, table in enumerate(tables)}
        out = sorted(self.readers, key=lambda reader: order[reader.table.config.name])
        self.keys = tuple(reader.name for reader in out)
        self.lengths = tuple(reader.table.config.embedding_dim for reader in out)

    def forward(self, kjt: KeyedJaggedTensor) -> KeyedTensor:
        lanes = self.bind(kjt)
        ends = np.searchsorted([reader.pool for reader in self.readers], range(len(self.pools) + 1))
        bags = [Bags(pool, lanes[ends[p] : ends[p + 1]], (kjt,)) for p, pool in enumerate(self.pools)]
        return KeyedTensor(self.keys, self.lengths, lookup(bags, (kjt.batch_size, sum(self.lengths))))

    def _learn(self, keys: tuple[str, ...]) -> tuple[Array, Array]:
        lanes, positions = super()._learn(keys)
        columns = dict(zip(self.keys, accumulate(self.lengths, initial=0), strict=False))
        for lane, reader in zip(lanes, self.readers, strict=True):
            config = reader.table.config
            lane["mean"] = isinstance(config, EmbeddingBagConfig) and config.pooling == "mean"
            lane["column"] = columns[reader.name]
        return lanes, positions


class EmbeddingCollection(TableCollection):
    """KeyedJaggedTensor -> {feature: JaggedTensor of (L, D) rows, one per id}; weights are passed on, not applied.

    Keys of the output: as of `EmbeddingBagCollection`.
    """

    def forward(self, kjt: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        lanes = self.bind(kjt)
        out = {reader.name: self._rows(reader, lanes[i], kjt[reader.feature]) for i, reader in enumerate(self.readers)}
        return out

    def _rows(self, reader: Reader, lane: Array, bags: JaggedTensor) -> JaggedTensor:
        """The rows of one reader's ids."""
        size, offsets = len(bags.values), np.arange(len(bags.values) + 1)
        lanes = lane.reshape(1).copy()
        lanes["ids"], lanes["offsets"] = bags.values.ctypes.data, offsets.ctypes.data
        lanes["weights"], lanes["bags"] = 0, size
        part = Bags(self.pools[reader.pool], lanes, (bags, offsets))
        rows = lookup([part], (size, reader.table.config.embedding_dim))
        return JaggedTensor(rows, bags.offsets, bags.weights)


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
        f"feature {reader.feature!r}, table {config.name!r}, sample {bag % kjt.batch_size}: id {kjt.values[at]}, "
        f"wanted 0 to {config.num_embeddings - 1}: encode the data with the encoder that the table was made for"
    )
