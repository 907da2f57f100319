"""Our side of `dlrm_step`: one DLRM, trained in five ways, and the matrix products of its step alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, count, cycle, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

import tesserec
from benchmarks.cases import BATCH, KAGGLE, LR, TABLE_SCALE, dlrm_batches, dlrm_layers, dlrm_weights, fill
from benchmarks.harness import serve
from benchmarks.ours.tables import ROW_OPTIMIZERS
from tesserec.autograd import SGD, Module, one_thread_blas, parallel_map, set_num_threads
from tesserec.autograd.kernels.gemm import gemm
from tesserec.autograd.losses import bce_with_logits
from tesserec.dataio.batch import Batch
from tesserec.dataio.dataset import Dataset, DatasetInfo, SparseFeature, Split
from tesserec.dataio.stream import read_batches
from tesserec.embeddings import KeyedJaggedTensor, Pool
from tesserec.models import Features, build_model
from tesserec.train.step import StepOptions, apply_gradients, loss_and_gradients

KEYS = tuple(f"C{i}" for i in range(1, 27))


class DLRM:
    """A method trains so many steps -> (seconds, the last loss). All train the same parameters."""

    def build(self, dim: int, optimizer: str) -> None:
        """Bottom 512-256-D, top 512-256-1, the Kaggle tables; SGD for what is dense."""
        layers = {"embedding_dim": dim, "bottom": (512, 256), "top": (512, 256)}
        features = Features(13, dict(zip(KEYS, KAGGLE, strict=True)), pooling="sum")
        self.model = build_model("dlrm", features, seed=0, options=layers)
        self.compiled = tesserec.compile(self.model)
        self.wide_compiled = tesserec.compile(self.model, slice_size=1024)
        named = dict(self.model.named_parameters())
        pools = [(name, p) for name, p in named.items() if isinstance(p, Pool)]
        dense = [(name, p) for name, p in named.items() if not isinstance(p, Pool)]
        for pool in (pool for _, pool in pools):
            for table in pool.tables:
                fill(pool.data[table.rows], TABLE_SCALE)
        for (_, tensor), array in zip(dense, chain(*dlrm_weights(dim)), strict=True):
            tensor.data[...] = array
        self.optimizers = SGD(dense, lr=LR), ROW_OPTIMIZERS[optimizer](pools)
        self.options, self.wide_options = StepOptions(seed=0), StepOptions(seed=0, slice_size=1024)
        self.products = matrix_products(dim, self.options.slice_size)

    def load(self, batches: int) -> None:
        """Make the batches, which all methods go on with in turn."""
        offsets = np.arange(len(KEYS) * BATCH + 1)
        made = [
            Batch(dense, KeyedJaggedTensor(KEYS, ids.ravel(), offsets), labels[:, None])
            for dense, ids, labels in dlrm_batches(batches)
        ]
        self.batches: Iterator[tuple[int, Batch]] = cycle(enumerate(made))

    def read(self, folder: str, rows: int) -> None:
        """Take shuffled batches from folder/train.parquet instead, epoch after epoch."""
        sparse = tuple(map(SparseFeature, KEYS, KAGGLE))
        dense = tuple(f"I{i}" for i in range(1, 14))
        splits = {"train": Split(("train.parquet",), rows)}
        info = DatasetInfo("kaggle", labels=("label",), dense=dense, sparse=sparse, splits=splits)
        read = partial(read_batches, Dataset(Path(folder), info), "train", BATCH)
        self.batches = enumerate(chain.from_iterable(read(epoch=epoch) for epoch in count()))

    def threads(self, n: int) -> None:
        set_num_threads(n)

    def ours(self, steps: int) -> tuple[float, float]:
        """The compiled model, in slices: what `tesserec train` does."""
        return self._sliced(self.compiled, steps, self.options)

    def wide(self, steps: int) -> tuple[float, float]:
        """The same in slices of 1,024: two of them, which is enough for two threads."""
        return self._sliced(self.wide_compiled, steps, self.wide_options)

    def eager(self, steps: int) -> tuple[float, float]:
        """The first, not compiled."""
        return self._sliced(self.model, steps, self.options)

    def loop(self, steps: int) -> tuple[float, float]:
        """The compiled model in the loop that one would write by hand."""
        return self._by_hand(self.compiled, steps)

    def eager_loop(self, steps: int) -> tuple[float, float]:
        """That, not compiled: the whole batch at once, BLAS with its own threads."""
        return self._by_hand(self.model, steps)

    def gemm(self, steps: int) -> tuple[float, float]:
        """Only the matrix products of the step, of all slices, on our threads."""
        start = time.perf_counter()
        for _ in range(steps):
            parallel_map(_multiply, self.products)
        return time.perf_counter() - start, 0.0

    def _sliced(self, model: Module, steps: int, options: StepOptions) -> tuple[float, float]:
        def step(number: int, batch: Batch) -> float:
            loss, grads = loss_and_gradients(model, batch, number, options)
            apply_gradients(grads, self.optimizers, options)
            return loss

        with one_thread_blas():
            return self._timed(step, steps)

    def _by_hand(self, model: Module, steps: int) -> tuple[float, float]:
        def step(_: int, batch: Batch) -> float:
            loss = bce_with_logits(model(batch.dense, batch.sparse), batch.labels[:, 0])
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            return loss.item()

        return self._timed(step, steps)

    def _timed(self, step: Callable[[int, Batch], float], steps: int) -> tuple[float, float]:
        start, loss = time.perf_counter(), 0.0
        for number, batch in islice(self.batches, steps):
            loss = step(number, batch)
        return time.perf_counter() - start, loss


Array = npt.NDArray[np.float32]
Products = list[tuple[Array, Array, Array]]


def matrix_products(dim: int, size: int) -> list[Products]:
    """For each slice of `size` samples, (a, b, out) of forward, weight gradient and input gradient."""
    bottom, top = dlrm_layers(dim)
    rng = np.random.default_rng(0)

    def array(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32)

    weights = [array(o, i) for i, o in [*bottom, *top]]

    def products() -> Products:
        made = []
        for k, w in enumerate(weights):
            x, g = array(size, w.shape[1]), array(size, w.shape[0])
            made += [(x, w.T, np.empty_like(g)), (g.T, x, np.empty_like(w))]
            made += [(g, w, np.empty_like(x))] if k else []  # nobody wants the gradient of the dense input
        return made

    return [products() for _ in range(BATCH // size)]


def _multiply(products: Products) -> None:
    for a, b, out in products:
        gemm(a, b, out, False)


if __name__ == "__main__":
    serve(DLRM())
