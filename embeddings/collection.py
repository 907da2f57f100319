"""Collections: id features in, vectors out, through one lookup over all tables.

`EmbeddingBagCollection` pools the ids of each bag into one vector. `EmbeddingCollection` keeps one vector per
id, which is the same lookup with every id a bag of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.module import Module
from tesserec.embeddings.config import EmbeddingBagConfig, EmbeddingConfig, TableError
from tesserec.embeddings.jagged import JaggedTensor, KeyedJaggedTensor
from tesserec.embeddings.kernels.lookup import LANE
from tesserec.embeddings.keyed_tensor import KeyedTensor
from tesserec.embeddings.lookup import Bags, lookup
from tesserec.embeddings.table_set import Reader, TableSet

Array = npt.NDArray[Any]


class EmbeddingBagCollection(Module):
    """KeyedJaggedTensor -> KeyedTensor: for each feature and sample, the sum or mean of its ids' rows.

    Keys of the output: the features, in the order of the tables and of their feature_names; `feature@table`
    for a feature that several tables read. The state has one array per table, under the table's name.
    """

    def __init__(self, tables: Sequence[EmbeddingBagConfig], *, seed: int):
        for table in tables:
            if not isinstance(table, EmbeddingBagConfig):
                raise TableError(f"table {table.name!r} is an EmbeddingConfig, wanted an EmbeddingBagConfig")
        self.table_set = TableSet(tables, seed=seed)
        self.pools = self.table_set.pools
        self.keys = tuple(reader.name for reader in self.table_set.outputs)
        self.lengths = tuple(reader.width for reader in self.table_set.outputs)

    def local_state(self) -> dict[str, Array]:
        """{table: (num_embeddings, D)}; views."""
        return self.table_set.state()

    def forward(self, kjt: KeyedJaggedTensor) -> KeyedTensor:
        lanes = self.table_set.bind(kjt)
        bags = [Bags(pool, part, (kjt,)) for pool, part in self.table_set.by_pool(lanes)]
        return KeyedTensor(self.keys, self.lengths, lookup(bags, (kjt.batch_size, sum(self.lengths))))


class EmbeddingCollection(Module):
    """KeyedJaggedTensor -> {feature: JaggedTensor of (L, D) rows, one per id}.

    Weights are passed on, not applied. Keys and state: as those of `EmbeddingBagCollection`.
    """

    def __init__(self, tables: Sequence[EmbeddingConfig], *, seed: int):
        self.table_set = TableSet(tables, seed=seed)
        self.pools = self.table_set.pools

    def local_state(self) -> dict[str, Array]:
        """{table: (num_embeddings, D)}; views."""
        return self.table_set.state()

    def forward(self, kjt: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        lanes = dict(zip(self.table_set.readers, self.table_set.bind(kjt), strict=True))
        return {
            reader.name: self._rows(reader, lanes[reader], kjt[reader.feature])
            for reader in self.table_set.outputs
        }

    def _rows(self, reader: Reader, lane: Any, bags: JaggedTensor) -> JaggedTensor:
        """The rows of one reader's ids: every id a bag of its own."""
        size, offsets = len(bags.values), np.arange(len(bags.values) + 1)
        lanes = np.array([lane], LANE)
        lanes["ids"], lanes["offsets"] = bags.values.ctypes.data, offsets.ctypes.data
        lanes["weights"], lanes["bags"], lanes["column"] = 0, size, 0
        rows = lookup([Bags(self.pools[reader.pool], lanes, (bags, offsets))], (size, reader.width))
        return JaggedTensor(rows, bags.offsets, bags.weights)
