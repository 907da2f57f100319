"""Oracles: what kernels and ops compute, as plainly as it can be said."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def bag(kjt: Any, key: str, sample: int) -> Array:
    """Ids of one key in one sample."""
    at = list(kjt.keys).index(key) * kjt.batch_size + sample
    return np.asarray(kjt.values[kjt.offsets[at] : kjt.offsets[at + 1]])


def bag_weights(kjt: Any, key: str, sample: int) -> Array:
    """Weights of one key's ids in one sample."""
    at = list(kjt.keys).index(key) * kjt.batch_size + sample
    lo, hi = kjt.offsets[at], kjt.offsets[at + 1]
    return np.ones(hi - lo) if kjt.weights is None else np.asarray(kjt.weights[lo:hi])


def pooled(table: Array, ids: Array, weights: Array, mean: bool) -> Array:
    """Σ w·row over the ids of one bag, over their number if `mean`."""
    total = np.zeros(table.shape[1])
    for i, w in zip(ids, weights, strict=True):
        total += w * table[i].astype(np.float64)
    return total / max(len(ids), 1) if mean else total


def pooled_gradient(
    shape: tuple[int, int], bags: list[tuple[Array, Array]], grads: Array, mean: bool
) -> Array:
    """Gradient of a table whose bags of (ids, weights) had output gradients `grads` (bags, D)."""
    total = np.zeros(shape)
    for (ids, weights), g in zip(bags, grads, strict=True):
        for i, w in zip(ids, weights, strict=True):
            total[i] += w * g / (len(ids) if mean else 1)
    return total


def row_update(name: str, w: Array, g: Array, state: dict[str, Any], step: int, o: dict[str, float]) -> None:
    """One step of a row optimizer on one row, in float64, in place. `state`: that of this row."""
    g = g + o["weight_decay"] * w
    if name == "sgd":
        w -= o["lr"] * g
    elif name in ("adagrad", "rowwise_adagrad"):
        state["total"] += g**2 if name == "adagrad" else np.mean(g**2)
        w -= o["lr"] * g / (np.sqrt(state["total"]) + o["eps"])
    else:
        state["mean"] += 0.1 * (g - state["mean"])
        state["square"] += 0.001 * (g**2 - state["square"])
        m, s = state["mean"] / (1 - 0.9**step), state["square"] / (1 - 0.999**step)
        w -= o["lr"] * m / (np.sqrt(s) + o["eps"])


# a model as a user would write it in a file of their own (docs/models.md)
FIRST_MODEL = """
import numpy as np
from tesserec.autograd import MLP, Module
from tesserec.embeddings import EmbeddingBagCollection


class Mine(Module):
    def __init__(self, features, *, seed: int, embedding_dim: int = 8):
        self.embeddings = EmbeddingBagCollection(features.tables(embedding_dim), seed=seed)
        width = len(features.sparse) * embedding_dim
        self.mlp = MLP((width, 64, 1), rng=np.random.default_rng(seed))

    def forward(self, dense, sparse):
        return self.mlp(self.embeddings(sparse).values).reshape(-1)
"""
