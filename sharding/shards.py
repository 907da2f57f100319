"""Shards: the rectangles of a collection's tables that one rank holds, and how batches are bound to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.tensor import Tensor
from tesserec.embeddings.allocation import planning
from tesserec.embeddings.collection import EmbeddingBagCollection, EmbeddingCollection
from tesserec.embeddings.config import EmbeddingBagConfig
from tesserec.embeddings.jagged import KeyedJaggedTensor
from tesserec.embeddings.lookup import Bound
from tesserec.embeddings.pool import Origin, Pool
from tesserec.embeddings.table_set import Reader, TableSet
from tesserec.sharding.plan import ShardingPlan
from tesserec.sharding.route import Holding, Piece

Array = npt.NDArray[Any]


class Shards:
    """What rank `rank` holds of a collection.

    table_set: the collection's tables without memory; it binds batches. pools: the rectangles that are here.
    outlets: leaves that stand for the outputs, and whose gradients are Slabs: one for all pooled outputs, or
    one for each sequence. columns: where each reader's columns begin in its output.
    """

    def __init__(
        self,
        collection: EmbeddingBagCollection | EmbeddingCollection,
        plan: ShardingPlan,
        rank: int,
        *,
        prefix: str = "",
        bitwise: bool = False,
    ):
        given = collection.table_set
        with planning():
            self.table_set = TableSet(given.tables, seed=given.seed)
        self.rank, self.prefix, self.bitwise = rank, prefix, bitwise
        self.processor = collection.processor if isinstance(collection, EmbeddingBagCollection) else None
        self.is_pooled = isinstance(collection, EmbeddingBagCollection)
        self.dtype = given.tables[0].compute_dtype
        self.rectangles = {table.name: _rectangles(plan, prefix, table) for table in given.tables}
        self.pools, self.place = _pools(given, self.rectangles, rank)
        place = {reader: i for i, reader in enumerate(self.table_set.outputs)}
        self.output = [0 if self.is_pooled else place[reader] for reader in self.readers]
        ends = np.cumsum([0, *(reader.width for reader in self.table_set.outputs)]).tolist()
        self.order = [ends[place[reader]] for reader in self.readers]
        self.columns = self.order if self.is_pooled else [0] * len(self.readers)
        widths = [ends[-1]] if self.is_pooled else [reader.width for reader in self.table_set.outputs]
        self.widths = widths
        self.outlets = [Tensor(np.zeros(0, self.dtype), requires_grad=True) for _ in widths]

    @property
    def readers(self) -> Sequence[Reader]:
        return self.table_set.readers

    def held(self) -> list[tuple[Holding, Array]]:
        """(which rectangle, its rows) of all that is here; views."""
        return [
            (rectangle, self.pools[p].data[self.pools[p].tables[i].rows])
            for rectangle, (p, i) in self.place.items()
        ]

    def state(self) -> dict[str, Array]:
        """{table, or "table[rows, cols]" for a part of one: its rows}, of all that is here; views."""
        return {table.config.name: pool.data[table.rows] for pool in self.pools for table in pool.tables}

    def pieces(self, first: int) -> list[Piece]:
        """What the readers, the first of which is number `first`, have to do with each rectangle."""
        return [
            Piece(first + k, rectangle, self._mean(reader), apart, self.bitwise, self.dtype.itemsize)
            for k, reader in enumerate(self.readers)
            for held in (self.rectangles[reader.table.config.name],)
            for apart in (self.bitwise and self.is_pooled and not all(r.whole for r in held),)
            for rectangle in held
        ]

    def _mean(self, reader: Reader) -> bool:
        config = reader.table.config
        return self.is_pooled and isinstance(config, EmbeddingBagConfig) and config.pooling == "mean"

    def bind(self, kjt: KeyedJaggedTensor) -> Bound:
        """The bags of `kjt`, a lane for each reader; those of sequences have one id each."""
        if self.is_pooled:
            return self.table_set.bind(kjt if self.processor is None else self.processor(kjt))
        kjt = kjt.expand()
        bound = self.table_set.bind(kjt)
        lanes, starts = bound.lanes, kjt.starts
        counting = np.arange(lanes["count"].max(initial=0) + 1)
        firsts = [
            0 if k in bound.replaced else kjt.offsets[starts[kjt.keys.index(reader.feature)]]
            for k, reader in enumerate(self.readers)
        ]
        lanes["ids"] += np.array(firsts) * np.where(lanes["narrow"], 4, 8)
        lanes["offsets"], lanes["bags"] = counting.ctypes.data, lanes["count"]
        lanes["weights"], lanes["mean"] = 0, 0
        return replace(bound, held=(*bound.held, counting), weights={})


def _rectangles(plan: ShardingPlan, prefix: str, table: Any) -> list[Holding]:
    held = plan.rectangles(prefix + table.name)
    everything = 0, table.num_embeddings
    return [
        Holding(table.name, rows, cols, tuple(ranks), rows == everything)
        for (rows, cols), ranks in held.items()
    ]


def _pools(
    given: TableSet, rectangles: Mapping[str, Sequence[Holding]], rank: int
) -> tuple[list[Pool], dict[Holding, tuple[int, int]]]:
    """(the pools of what `rank` holds, {rectangle: (pool, position in it)})."""
    kinds: dict[tuple[int, str], list[tuple[Holding, Origin]]] = {}
    for table in given.tables:
        for rectangle in rectangles[table.name]:
            if rank in rectangle.ranks:
                kind = kinds.setdefault((rectangle.width, table.data_type), [])
                kind.append((rectangle, Origin(table, rectangle.rows, rectangle.cols)))
    pools, place = list[Pool](), dict[Holding, tuple[int, int]]()
    for p, held in enumerate(kinds.values()):
        pools.append(_pool(given, [origin for _, origin in held]))
        place |= {rectangle: (p, i) for i, (rectangle, _) in enumerate(held)}
    return pools, place


def _pool(given: TableSet, origins: Sequence[Origin]) -> Pool:
    """Filled as tables are, or from the tables of `given` where these are in memory."""
    configs, planned = [origin.config for origin in origins], not given.pools[0].data.strides[0]
    pool = Pool(configs, seed=given.seed if planned else None, origins=origins)
    if not planned:
        rows = given.state()
        for table in pool.tables:
            origin = table.origin
            pool.data[table.rows] = rows[origin.table.name][slice(*origin.rows), slice(*origin.cols)]
    return pool
