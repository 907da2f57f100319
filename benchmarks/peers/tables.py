"""The peers' side of the embedding benchmarks: FBGEMM's table-batched embeddings, torch `embedding_bag`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (
    IntNBitTableBatchedEmbeddingBagsCodegen,
)
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from benchmarks.cases import BATCH, EPS, LR, fill, gradient, lookups
from benchmarks.harness import serve

OPTIMIZERS = {"sgd": EmbOptimType.EXACT_SGD, "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD}
TYPES = {"float32": SparseType.FP32, "float16": SparseType.FP16}
BITS = {"int8": SparseType.INT8, "int4": SparseType.INT4}
HOST = EmbeddingLocation.HOST


class Tables:
    """Tables of one width, and batches to look up in them. torch reads the rows that FBGEMM holds."""

    def build(self, sizes: list[int], dim: int, data_type: str, optimizer: str) -> None:
        """Make and fill the tables."""
        self.sizes = sizes
        if data_type in BITS:
            self.fbgemm: Any = quantized(sizes, dim, data_type)
            return
        self.fbgemm = SplitTableBatchedEmbeddingBagsCodegen(
            [(rows, dim, HOST, ComputeDevice.CPU) for rows in sizes],
            optimizer=OPTIMIZERS[optimizer or "sgd"],
            learning_rate=LR,
            eps=EPS,
            weights_precision=TYPES[data_type],
            pooling_mode=PoolingMode.SUM,
        )
        self.weights = self.fbgemm.split_embedding_weights()
        for weight in self.weights:
            fill(weight.detach().numpy())
        self.gradient = torch.from_numpy(gradient(len(sizes) * dim))

    def load(self, length: int, ids: str, batches: int) -> None:
        """Make the batches."""
        self.batches = [torch.from_numpy(values) for values in lookups(self.sizes, length, ids, batches)]
        self.offsets = torch.arange(0, len(self.sizes) * BATCH * length + 1, length)
        self.bags = self.offsets[:BATCH]
        self.by_table = [batch.view(len(self.sizes), -1).unbind() for batch in self.batches]

    def threads(self, n: int) -> None:
        torch.set_num_threads(n)

    def forward(self) -> float:
        """Seconds for one lookup of every batch by FBGEMM."""
        return self._timed(lambda k: self.fbgemm(self.batches[k], self.offsets))

    def torch_forward(self) -> float:
        """The same by torch, a call for each table, joined into one output as the others give it."""
        return self._timed(lambda k: torch.cat(self._bags(self.by_table[k]), 1))

    def torch_apart(self) -> float:
        """The same, one output for each table."""
        return self._timed(lambda k: self._bags(self.by_table[k]))

    def train(self) -> float:
        """Seconds for forward, backward and update with every batch by FBGEMM."""
        start = time.perf_counter()
        for batch in self.batches:
            self.fbgemm(batch, self.offsets).backward(self.gradient)
        return time.perf_counter() - start

    def output(self) -> list[list[float]]:
        """A few samples' outputs for the first batch."""
        with torch.no_grad():
            few: list[list[float]] = self.fbgemm(self.batches[0], self.offsets)[::256].float().tolist()
        return few

    def rows(self) -> list[list[float]]:
        """A few rows that the first batch touches."""
        few: list[list[float]] = self.weights[0].detach()[self.batches[0][:64]].float().tolist()
        return few

    def _timed(self, lookup: Callable[[int], object]) -> float:
        start = time.perf_counter()
        with torch.no_grad():
            for k in range(len(self.batches)):
                lookup(k)
        return time.perf_counter() - start

    def _bags(self, ids: Any) -> list[torch.Tensor]:
        bag = torch.nn.functional.embedding_bag
        return [bag(i, w, self.bags, mode="sum") for i, w in zip(ids, self.weights, strict=True)]


def quantized(sizes: list[int], dim: int, data_type: str) -> IntNBitTableBatchedEmbeddingBagsCodegen:
    """Inference tables whose rows are quantized from the same numbers."""
    specs = [("", rows, dim, BITS[data_type], HOST) for rows in sizes]
    tables = IntNBitTableBatchedEmbeddingBagsCodegen(specs, device="cpu", output_dtype=SparseType.FP32)
    tables.initialize_weights()
    block = torch.empty(4093, dim)
    fill(block.numpy())
    if data_type == "int8":
        rows = torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized(block)
        scale_bias = rows[:, dim:].contiguous().view(torch.float32).to(torch.float16).view(torch.uint8)
        rows = torch.cat([scale_bias, rows[:, :dim]], 1)
    else:
        rows = torch.ops.fbgemm.FloatToFusedNBitRowwiseQuantizedSBHalf(block, int(data_type[3:]))
        rows = torch.cat([rows[:, -4:], rows[:, :-4]], 1)
    for weight, _ in tables.split_embedding_weights(split_scale_shifts=False):
        for lo in range(0, len(weight), len(rows)):
            weight[lo : lo + len(rows), : rows.shape[1]] = rows[: len(weight) - lo]
    return tables


if __name__ == "__main__":
    serve(Tables())
