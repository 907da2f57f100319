"""The peers' side of `dlrm_step`: TorchRec's fused path, and plain torch on the same rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, cycle, islice
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn
from torchrec.models.dlrm import DLRM as TorchRecDLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim import RowWiseAdagrad
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from benchmarks.cases import (
    BATCH,
    EPS,
    KAGGLE,
    LR,
    TABLE_SCALE,
    dlrm_batches,
    dlrm_layers,
    dlrm_weights,
    fill,
)
from benchmarks.harness import serve

KEYS = [f"C{i}" for i in range(1, 27)]
ROW_OPTIMIZERS: dict[str, tuple[Any, dict[str, float]]] = {
    "sgd": (torch.optim.SGD, {"lr": LR}),
    "rowwise_adagrad": (RowWiseAdagrad, {"lr": LR, "eps": EPS}),
}


class DLRM:
    """A method trains so many steps -> (seconds, the last loss). Tables are the same memory for both."""

    def build(self, dim: int, optimizer: str) -> None:
        """Bottom 512-256-D, top 512-256-1, the Kaggle tables; SGD for what is dense."""
        kind, options = ROW_OPTIMIZERS[optimizer]
        configs = [
            EmbeddingBagConfig(name=key, embedding_dim=dim, num_embeddings=rows, feature_names=[key])
            for key, rows in zip(KEYS, KAGGLE, strict=True)
        ]
        rows = FusedEmbeddingBagCollection(configs, kind, options)
        tables = [bag.weight.detach() for bag in rows.embedding_bags.values()]
        for table in tables:
            fill(table.numpy(), TABLE_SCALE)
        self.fused = TorchRecDLRM(rows, 13, [512, 256, dim], [512, 256, 1])
        set_weights(self.fused, dim)
        dense = [*self.fused.dense_arch.parameters(), *self.fused.over_arch.parameters()]
        self.dense_optimizer = torch.optim.SGD(dense, lr=LR)
        self.plain = PlainDLRM(tables, dim)
        set_weights(self.plain, dim)
        self.plain_optimizer = torch.optim.SGD(self.plain.parameters(), lr=LR)
        self.loss = nn.BCEWithLogitsLoss()

    def load(self, batches: int) -> None:
        """Make the batches, which all methods go on with in turn."""
        lengths = torch.ones(len(KEYS) * BATCH, dtype=torch.int64)
        offsets = torch.arange(len(KEYS) * BATCH + 1)

        def batch(dense: Any, ids: Any, labels: Any) -> tuple[Any, ...]:
            values = torch.from_numpy(ids)
            kjt = KeyedJaggedTensor(KEYS, values.view(-1), lengths=lengths, offsets=offsets)
            return torch.from_numpy(dense), kjt, values, torch.from_numpy(labels)

        self.batches: Iterator[Any] = cycle([batch(*arrays) for arrays in dlrm_batches(batches)])

    def read(self, folder: str, rows: int) -> None:
        """Take shuffled batches from folder/train.parquet instead; for plain torch only."""
        self.batches = ((dense, None, ids, labels) for dense, ids, labels in file_batches(folder))

    def threads(self, n: int) -> None:
        torch.set_num_threads(n)

    def torchrec(self, steps: int) -> tuple[float, float]:
        """`FusedEmbeddingBagCollection`: rows are updated in the backward pass."""

        def step(dense: Any, kjt: Any, ids: Any, labels: Any) -> float:
            self.dense_optimizer.zero_grad()
            loss = self.loss(self.fused(dense, kjt)[:, 0], labels)
            loss.backward()
            self.dense_optimizer.step()
            return float(loss.item())

        return self._timed(step, steps)

    def torch(self, steps: int) -> tuple[float, float]:
        """`nn.EmbeddingBag(sparse=True)` for each table, and SGD."""

        def step(dense: Any, kjt: Any, ids: Any, labels: Any) -> float:
            self.plain_optimizer.zero_grad()
            loss = self.loss(self.plain(dense, ids), labels)
            loss.backward()
            self.plain_optimizer.step()
            return float(loss.item())

        return self._timed(step, steps)

    def _timed(self, step: Callable[..., float], steps: int) -> tuple[float, float]:
        start, loss = time.perf_counter(), 0.0
        for batch in islice(self.batches, steps):
            loss = step(*batch)
        return time.perf_counter() - start, loss


class PlainDLRM(nn.Module):  # type: ignore[misc, unused-ignore]
    """The model as one would write it in torch."""

    def __init__(self, tables: list[torch.Tensor], dim: int):
        super().__init__()
        bottom, top = dlrm_layers(dim)
        make = nn.EmbeddingBag.from_pretrained
        self.bags = nn.ModuleList(make(table, freeze=False, mode="sum", sparse=True) for table in tables)
        self.bottom = nn.Sequential(*(m for i, o in bottom for m in (nn.Linear(i, o), nn.ReLU())))
        self.top = nn.Sequential(*[m for i, o in top for m in (nn.Linear(i, o), nn.ReLU())][:-1])
        self.pairs = torch.triu_indices(len(tables) + 1, len(tables) + 1, 1)
        self.offsets = torch.arange(BATCH)

    def forward(self, dense: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        x = self.bottom(dense)
        fields = torch.stack([x, *(bag(i, self.offsets) for bag, i in zip(self.bags, ids, strict=True))], 1)
        dots = torch.bmm(fields, fields.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        logits: torch.Tensor = self.top(torch.cat([x, dots], 1))[:, 0]
        return logits


def row_group(path: str, group: int, seed: int) -> tuple[torch.Tensor, ...]:
    """One row group, its rows permuted: dense (N, 13) f4, ids (26, N) i8, labels (N,) f4."""
    table = pq.ParquetFile(path).read_row_group(group)
    order = np.random.default_rng([seed, group]).permutation(len(table))

    def column(name: str) -> Any:
        return table.column(name).to_numpy()[order]

    dense = np.stack([column(f"I{i}") for i in range(1, 14)], axis=1)
    return tuple(map(torch.from_numpy, (dense, np.stack([column(key) for key in KEYS]), column("label"))))


def file_batches(folder: str) -> Iterator[tuple[torch.Tensor, ...]]:
    """Shuffled batches of BATCH rows, for ever.

    The next row group is decoded on a thread meanwhile, as a careful user would.
    """
    path = f"{folder}/train.parquet"
    groups = pq.ParquetFile(path).num_row_groups
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(row_group, path, 0, 0)
        for turn in count(1):
            dense, ids, labels = ahead.result()
            ahead = pool.submit(row_group, path, turn % groups, turn // groups)
            for lo in range(0, len(labels) - BATCH + 1, BATCH):
                yield dense[lo : lo + BATCH], ids[:, lo : lo + BATCH], labels[lo : lo + BATCH]


def set_weights(model: nn.Module, dim: int) -> None:
    """The weights that all sides start with."""
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for linear, (weight, bias) in zip(linears, dlrm_weights(dim), strict=True):
        linear.weight.data.copy_(torch.from_numpy(weight))
        linear.bias.data.copy_(torch.from_numpy(bias))


if __name__ == "__main__":
    serve(DLRM())
