"""TableSet: tables stacked in pools, the features that read them, and the lanes of a batch over them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.tensor import Tensor
from tesserec.embeddings.bags import numbers_of
from tesserec.embeddings.config import EmbeddingBagConfig, EmbeddingConfig, Unseen, check_tables
from tesserec.embeddings.jagged import InvalidIdError, JaggedTensor, KeyedJaggedTensor
from tesserec.embeddings.kernels.lookup import LANE
from tesserec.embeddings.kernels.unseen import count_unseen
from tesserec.embeddings.lookup import Block, Bound
from tesserec.embeddings.pool import Pool, PoolTable
from tesserec.embeddings.unseen import without_unseen

Array = npt.NDArray[Any]

_counting = threading.Lock()  # slices of a batch count at the same time


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

    @property
    def unseen(self) -> Unseen:
        return self.table.config.unseen_policy(self.feature)


class TableSet:
    """Tables in pools, one for each width and data type.

    readers: all of one pool after the other. outputs: the same in the order of the tables and of their
    feature_names. A reader's output is named as its feature, or `feature@table` where several tables read it.
    """

    def __init__(self, tables: Sequence[EmbeddingConfig], *, seed: int):
        check_tables(tables)
        self.tables, self.seed = tuple(tables), seed
        kinds: dict[tuple[int, str], list[EmbeddingConfig]] = {}
        for table in tables:
            kinds.setdefault((table.embedding_dim, table.data_type), []).append(table)
        self.pools = [Pool(alike, seed=seed) for alike in kinds.values()]
        self.readers = _readers(self.pools, Counter(f for table in tables for f in table.feature_names))
        self.blocks = _blocks(self.pools)
        place = {table.name: i for i, table in enumerate(tables)}
        self.outputs = sorted(self.readers, key=lambda reader: place[reader.table.config.name])
        self.width = sum(reader.width for reader in self.readers)
        self._templates: dict[tuple[str, ...], tuple[Array, Array]] = {}
        self._unseen: Counter[str] = Counter()

    def state(self) -> dict[str, Array]:
        """{table: (num_embeddings, D)}; views."""
        held = {t.config.name: pool.data[t.rows] for pool in self.pools for t in pool.tables}
        return {table.name: held[table.name] for table in self.tables}

    def unseen_ids(self, *, reset: bool = False) -> dict[str, int]:
        """{output: ids outside its table so far}, of those that had any. reset: count from 0 again."""
        with _counting:
            found = dict(sorted(self._unseen.items()))
            if reset:
                self._unseen.clear()
        return found

    def bind(self, kjt: KeyedJaggedTensor) -> Bound:
        """The bags of `kjt` that the readers look up, for pooled outputs side by side.

        KeyError for a feature that it lacks, InvalidIdError for an unseen id where the table allows none. Its
        other keys are ignored.
        """
        kjt = kjt.compact()
        template, keys = self._templates.get(kjt.keys) or self._learn(kjt.keys)
        lanes: Array = template.copy()
        weights = None if kjt.weights is None else numbers_of(kjt.weights)
        starts = kjt.starts
        first, last = starts[keys], starts[keys + 1]
        lanes["ids"], lanes["narrow"] = kjt.values.ctypes.data, kjt.values.itemsize == 4
        lanes["offsets"] = kjt.offsets.ctypes.data + first * kjt.offsets.itemsize
        lanes["weights"] = 0 if weights is None else weights.ctypes.data
        lanes["bags"] = last - first
        lanes["count"] = kjt.offsets[last] - kjt.offsets[first]
        replaced = self._replace_unseen(kjt, lanes)
        return Bound(
            lanes,
            self.blocks,
            (kjt.batch_size, self.width),
            (kjt, weights, replaced),
            inverse=self._inverse(kjt),
            weights=self._learned_weights(kjt, replaced),
            replaced=replaced,
        )

    def _replace_unseen(self, kjt: KeyedJaggedTensor, lanes: Array) -> dict[int, JaggedTensor]:
        """{reader: bags without unseen ids} where there are any. Counts them; points `lanes` at the bags."""
        counts = np.empty(len(lanes), np.int64)
        if not count_unseen(lanes, counts):
            return {}
        found = [(int(k), self.readers[k]) for k in np.flatnonzero(counts)]
        for _, reader in found:
            if reader.unseen == "error":
                raise _invalid_id(reader, kjt)
        replaced = {
            k: without_unseen(kjt[reader.feature], reader.table.config.num_embeddings, reader.unseen)
            for k, reader in found
        }
        for k, bags in replaced.items():
            lanes["ids"][k], lanes["narrow"][k] = bags.values.ctypes.data, bags.values.itemsize == 4
            lanes["offsets"][k], lanes["count"][k] = bags.offsets.ctypes.data, len(bags.values)
            lanes["weights"][k] = 0 if bags.weights is None else numbers_of(bags.weights).ctypes.data
        with _counting:
            self._unseen.update({reader.name: int(counts[k]) for k, reader in found})
        return replaced

    def _inverse(self, kjt: KeyedJaggedTensor) -> dict[int, Array]:
        if not kjt.inverse:
            return {}
        features = enumerate(reader.feature for reader in self.readers)
        return {k: kjt.inverse[feature] for k, feature in features if feature in kjt.inverse}

    def _learned_weights(
        self, kjt: KeyedJaggedTensor, replaced: Mapping[int, JaggedTensor]
    ) -> dict[int, Tensor]:
        """{reader: its weights}, if these get a gradient."""
        if not (isinstance(kjt.weights, Tensor) and kjt.weights.requires_grad):
            return {}
        sources: Any = [replaced.get(k, kjt) for k in range(len(self.readers))]
        return {k: source.weights for k, source in enumerate(sources)}

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
            lane["num_rows"] = config.num_embeddings
            lane["column"] = lane["turn"] = columns[reader]
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


def _blocks(pools: Sequence[Pool]) -> list[Block]:
    """Where the readers of each pool stand."""
    sizes = [sum(len(table.config.feature_names) for table in pool.tables) for pool in pools]
    ends = list(accumulate(sizes))
    return [Block(end - n, end, pool.shape[1]) for pool, end, n in zip(pools, ends, sizes, strict=True)]


def _invalid_id(reader: Reader, kjt: KeyedJaggedTensor) -> InvalidIdError:
    """About the first id of the reader's feature that is outside its table."""
    bags, config = kjt[reader.feature], reader.table.config
    at = int(np.argmax((bags.values < 0) | (bags.values >= config.num_embeddings)))
    bag = int(np.searchsorted(bags.offsets, at, side="right")) - 1
    place = "shared bag" if reader.feature in kjt.inverse else "sample"
    return InvalidIdError(
        f"feature {reader.feature!r}, table {config.name!r}, {place} {bag}: "
        f"id {bags.values[at]} at position {at - bags.offsets[bag]} of its bag, "
        f"wanted 0 to {config.num_embeddings - 1}: "
        "encode the data with the encoder that the table was made for, or give the table a policy, `unseen`"
    )
