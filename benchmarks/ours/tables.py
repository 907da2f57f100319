"""Our side of the embedding benchmarks."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, cast

import numpy as np

from benchmarks.cases import BATCH, EPS, LR, fill, gradient, lookups
from benchmarks.harness import serve
from benchmarks.random_read import read_rows
from tesserec.autograd import no_grad, num_threads, parallel_map, set_num_threads
from tesserec.autograd.tensor import accumulate, backpropagate
from tesserec.embeddings import (
    Constant,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    KeyedJaggedTensor,
    RowSGD,
    RowWiseAdagrad,
)
from tesserec.embeddings.quantize import QuantizedType, quantize

ROW_OPTIMIZERS: dict[str, Any] = {
    "sgd": partial(RowSGD, lr=LR),
    "rowwise_adagrad": partial(RowWiseAdagrad, lr=LR, eps=EPS),
}


class Tables:
    """Tables of one width, and batches to look up in them."""

    def build(self, sizes: list[int], dim: int, data_type: str, optimizer: str) -> None:
        """Make and fill the tables. data_type: also int8, int4, for lookups only."""
        stored: Any = data_type if data_type.startswith("float") else "float32"
        configs = [
            EmbeddingBagConfig(f"t{i}", rows, dim, (f"t{i}",), data_type=stored, init=Constant(0.0))
            for i, rows in enumerate(sizes)
        ]
        self.sizes, collection = sizes, EmbeddingBagCollection(configs, seed=0)
        for rows in collection.local_state().values():
            fill(rows)
        self.pool = collection.pools[0]
        self.collection: Any = collection
        if stored != data_type:
            self.collection = quantize(self.collection, cast(QuantizedType, data_type))
            del self.pool
        if optimizer:
            self.optimizer = ROW_OPTIMIZERS[optimizer]([("pool", self.pool)])
            self.gradient = gradient(len(sizes) * dim)

    def load(self, length: int, ids: str, batches: int) -> None:
        """Make the batches."""
        keys = tuple(f"t{i}" for i in range(len(self.sizes)))
        offsets = np.arange(0, len(keys) * BATCH * length + 1, length)
        made = lookups(self.sizes, length, ids, batches)
        self.batches = [KeyedJaggedTensor(keys, values, offsets) for values in made]
        first_rows = np.repeat(np.cumsum([0, *self.sizes[:-1]]), BATCH * length)
        self.pool_rows = [values + first_rows for values in made]

    def threads(self, n: int) -> None:
        set_num_threads(n)

    def forward(self) -> float:
        """Seconds for one lookup of every batch."""
        start = time.perf_counter()
        with no_grad():
            for batch in self.batches:
                self.collection(batch)
        return time.perf_counter() - start

    def train(self) -> float:
        """Seconds for forward, backward and update with every batch.

        The gradient is handed over as a compiled model does it; `backward` would copy it first.
        """
        start = time.perf_counter()
        for batch in self.batches:
            accumulate(backpropagate(self.collection(batch).values, self.gradient))
            self.optimizer.step()
            self.optimizer.zero_grad()
        return time.perf_counter() - start

    def read(self) -> float:
        """Seconds for only reading the same rows: the limit of the machine."""
        start = time.perf_counter()
        for rows in self.pool_rows:
            pieces = np.array_split(rows, num_threads())
            parallel_map(lambda piece: read_rows(self.pool.data, piece), pieces)
        return time.perf_counter() - start

    def output(self) -> list[list[float]]:
        """A few samples' outputs for the first batch."""
        with no_grad():
            values = self.collection(self.batches[0]).values.data
        few: list[list[float]] = values[::256].astype(float).tolist()
        return few

    def rows(self) -> list[list[float]]:
        """A few rows that the first batch touches."""
        few: list[list[float]] = self.pool.data[self.batches[0].values[:64]].astype(float).tolist()
        return few


if __name__ == "__main__":
    serve(Tables())
