"""The peer of `dlrm_parquet.py`: the same DLRM in torch, from the same files, in an environment of its own.

A line server: reads `run STEPS` lines, trains that many steps, answers with one JSON line each, so that the
benchmark can take turns with it. Parquet is decoded a row group ahead on a thread, as a careful user would.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn

Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def row_group(path: str, group: int, seed: int) -> Rows:
    """One row group, its rows permuted: dense (N, 13) f4, ids (26, N) i8, labels (N,) f4."""
    table = pq.ParquetFile(path).read_row_group(group)
    order = np.random.default_rng([seed, group]).permutation(len(table))

    def column(name: str) -> Any:
        return table.column(name).to_numpy()[order]

    dense = np.stack([column(f"I{i}") for i in range(1, 14)], axis=1)
    ids = np.stack([column(f"C{i}") for i in range(1, 27)])
    return torch.from_numpy(dense), torch.from_numpy(ids), torch.from_numpy(column("label"))


def batches(path: str, size: int) -> Iterator[Rows]:
    """Shuffled batches of exactly `size` rows, for ever; the next row group is decoded on a thread."""
    groups = pq.ParquetFile(path).num_row_groups
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(row_group, path, 0, 0)
        for turn in range(1, sys.maxsize):
            dense, ids, labels = ahead.result()
            ahead = pool.submit(row_group, path, turn % groups, turn // groups)
            for lo in range(0, len(labels) - size + 1, size):
                yield dense[lo : lo + size], ids[:, lo : lo + size], labels[lo : lo + size]


def mlp(sizes: list[int], last_relu: bool) -> nn.Sequential:
    layers: list[Any] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*(layers if last_relu else layers[:-1]))


class DLRM:
    """Bottom 512-256-D, one `nn.EmbeddingBag(sparse=True)` per table, dots, top 512-256-1."""

    def __init__(self, tables: list[int], dim: int, lr: float):
        self.bags = []
        for rows in tables:
            weight = torch.empty(rows, dim).uniform_(-(rows**-0.5), rows**-0.5)
            self.bags.append(nn.EmbeddingBag(rows, dim, mode="sum", sparse=True, _weight=weight))
        fields = len(tables) + 1
        self.pairs = torch.tril_indices(fields, fields, -1)
        self.bottom = mlp([13, 512, 256, dim], last_relu=True)
        self.top = mlp([dim + fields * (fields - 1) // 2, 512, 256, 1], last_relu=False)
        modules = [*self.bags, self.bottom, self.top]
        self.optimizer = torch.optim.SGD([p for m in modules for p in m.parameters()], lr=lr)
        self.loss = nn.BCEWithLogitsLoss()

    def step(self, dense: torch.Tensor, ids: torch.Tensor, labels: torch.Tensor) -> float:
        x = self.bottom(dense)
        offsets = torch.arange(len(labels))
        fields = torch.stack([x, *(bag(ids[i], offsets) for i, bag in enumerate(self.bags))], dim=1)
        dots = torch.bmm(fields, fields.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        loss = self.loss(self.top(torch.cat([x, dots], dim=1))[:, 0], labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.item())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    parser.add_argument("--tables", type=json.loads, required=True)
    parser.add_argument("--dim", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    args = parser.parse_args()
    torch.set_num_threads(2)
    model, stream = DLRM(args.tables, args.dim, args.lr), batches(args.path, args.batch_size)
    print(json.dumps({"ready": torch.__version__}), flush=True)
    for line in sys.stdin:
        start, steps, loss = time.perf_counter(), int(line.split()[1]), 0.0
        for _ in range(steps):
            loss = model.step(*next(stream))
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "loss": loss, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
