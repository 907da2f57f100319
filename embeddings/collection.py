"""Collections: id features in, vectors out, through one lookup over all tables.

`EmbeddingBagCollection` pools the ids of each bag into one vector. `EmbeddingCollection` keeps one vector per
id, which is the same lookup with every id a bag of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.compiler.capture import opaque
from tesserec.autograd.module import Module
from tesserec.autograd.tensor import Tensor
from tesserec.embeddings.config import EmbeddingBagConfig, EmbeddingConfig, TableError
from tesserec.embeddings.jagged import JaggedTensor, KeyedJaggedTensor
from tesserec.embeddings.kernels.rows import compute_dtype
from tesserec.embeddings.keyed_tensor import KeyedTensor
from tesserec.embeddings.lookup import Block, Bound, lookup
from tesserec.embeddings.table_set import Reader, TableSet

Array = npt.NDArray[Any]


class EmbeddingBagCollection(Module):
    """KeyedJaggedTensor -> KeyedTensor: for each feature and sample, the sum or mean of its ids' rows.

    Keys of the output: the features, in the order of the tables and of their feature_names; `feature@table`
    for a feature that several tables read. Weights that are a Tensor get a gradient. Bags that samples share
    (`inverse`) are pooled once. The state has one array per table, under the table's name. processor: what is
    done to a batch first, KeyedJaggedTensor -> KeyedJaggedTensor, such as `PositionWeighted`. around: entered
    while rows are looked up, on the thread that does.
    """

    around: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __init__(self, tables: Sequence[EmbeddingBagConfig], *, seed: int, processor: Module | None = None):
        for table in tables:
            if not isinstance(table, EmbeddingBagConfig):
                raise TableError(f"table {table.name!r} is an EmbeddingConfig, wanted an EmbeddingBagConfig")
        self.table_set = TableSet(tables, seed=seed)
        self.pools = self.table_set.pools
        self.processor = processor
        self.keys = tuple(reader.name for reader in self.table_set.outputs)
        self.lengths = tuple(reader.width for reader in self.table_set.outputs)

    def local_state(self) -> dict[str, Array]:
        """{table: (num_embeddings, D)}; views."""
        return self.table_set.state()

    def unseen_ids(self, *, reset: bool = False) -> dict[str, int]:
        """{output key: ids outside its table so far}, of those that had any. reset: count from 0 again."""
        return self.table_set.unseen_ids(reset=reset)

    def forward(self, kjt: KeyedJaggedTensor) -> KeyedTensor:
        shape, dtype = (kjt.batch_size, sum(self.lengths)), compute_dtype(self.pools[0].dtype)
        leaves = [*self.pools, *(self.processor.parameters() if self.processor else ())]
        pooled = opaque(self._pooled, kjt, shape=shape, dtype=dtype, leaves=leaves)
        return KeyedTensor(self.keys, self.lengths, pooled)

    def _pooled(self, kjt: KeyedJaggedTensor, out: Array | None = None) -> Tensor:
        """(B, ΣD), in `out` if given."""
        processed = kjt if self.processor is None else self.processor(kjt)
        with self.around():
            return lookup(self.pools, self.table_set.bind(processed), out)


class EmbeddingCollection(Module):
    """KeyedJaggedTensor -> {feature: JaggedTensor of (L, D) rows, one per id}, B bags each.

    Weights are passed on, not applied. Keys, state, around: as those of `EmbeddingBagCollection`.
    """

    around: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __init__(self, tables: Sequence[EmbeddingConfig], *, seed: int):
        self.table_set = TableSet(tables, seed=seed)
        self.pools = self.table_set.pools

    def local_state(self) -> dict[str, Array]:
        """{table: (num_embeddings, D)}; views."""
        return self.table_set.state()

    def unseen_ids(self, *, reset: bool = False) -> dict[str, int]:
        """{output key: ids outside its table so far}, of those that had any. reset: count from 0 again."""
        return self.table_set.unseen_ids(reset=reset)

    def forward(self, kjt: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        kjt = kjt.expand()
        bound, place = self.table_set.bind(kjt), {r: k for k, r in enumerate(self.table_set.readers)}
        return {
            reader.name: self._rows(
                reader, bound.lanes[k : k + 1], bound.replaced.get(k, kjt[reader.feature])
            )
            for reader, k in ((reader, place[reader]) for reader in self.table_set.outputs)
        }

    def _rows(self, reader: Reader, lane: Any, bags: JaggedTensor) -> JaggedTensor:
        """The rows of one reader's ids: every id a bag of its own. lane: (1,) its lane over `bags`."""
        size, offsets = len(bags.values), np.arange(len(bags.values) + 1)
        lanes = lane.copy()
        lanes["ids"], lanes["offsets"] = bags.values.ctypes.data, offsets.ctypes.data
        lanes["weights"], lanes["bags"], lanes["column"], lanes["mean"] = 0, size, 0, 0
        bound = Bound(lanes, [Block(0, 1, reader.width)], (size, reader.width), (bags, offsets))
        with self.around():
            return JaggedTensor(lookup([self.pools[reader.pool]], bound), bags.offsets, bags.weights)


def named_collections(model: Module) -> Iterator[tuple[str, EmbeddingBagCollection | EmbeddingCollection]]:
    """Every collection in `model`, under what the names of its tables begin with in the model's state."""
    for path, module in model.named_modules():
        if isinstance(module, EmbeddingBagCollection | EmbeddingCollection):
            yield f"{path}." if path else "", module


def dense_state(model: Module) -> dict[str, Array]:
    """Dense parameters and buffers: what is no table."""
    tables = {prefix + name for prefix, c in named_collections(model) for name in c.local_state()}
    return {name: array for name, array in model.state_dict().items() if name not in tables}


def unseen_ids(model: Module, *, reset: bool = False) -> dict[str, int]:
    """{feature: ids outside its table so far} of all collections in `model`, those that had any.

    Of several collections that read a feature, the one with the most counts: they see the same ids.
    """
    found: dict[str, int] = {}
    for _, collection in named_collections(model):
        for name, count in collection.unseen_ids(reset=reset).items():
            found[name] = max(count, found.get(name, 0))
    return found
