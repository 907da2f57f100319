"""Oracles: what kernels and ops compute, as plainly as it can be said."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def positions(kjt: Any, key: str, sample: int) -> range:
    """Where the ids of one key in one sample stand."""
    f = list(kjt.keys).index(key)
    at = sum(kjt.num_bags[:f]) + (kjt.inverse[key][sample] if key in kjt.inverse else sample)
    return range(kjt.offsets[at], kjt.offsets[at + 1])


def bag(kjt: Any, key: str, sample: int) -> Array:
    """Ids of one key in one sample."""
    return np.asarray(kjt.values[positions(kjt, key, sample)])


def bag_weights(kjt: Any, key: str, sample: int) -> Array:
    """Weights of one key's ids in one sample."""
    at = positions(kjt, key, sample)
    return np.ones(len(at)) if kjt.weights is None else np.asarray(kjt.weights)[at]


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


def weights_gradient(total: Array, table: Array, kjt: Any, key: str, grads: Array, mean: bool) -> None:
    """Add to `total` (L,) the weights' gradient from the bags of `key`, of output gradients (B, D)."""
    for sample, g in enumerate(grads):
        at = positions(kjt, key, sample)
        for i in at:
            total[i] += table[kjt.values[i]] @ g / (len(at) if mean else 1)


def row_update(name: str, w: Array, g: Array, state: dict[str, Any], step: int, o: dict[str, Any]) -> None:
    """One step of a row optimizer on one row, in float64, in place. `state`: that of the row, zeros at first.

    o: all options. Formulas as in the papers, not rearranged.
    """
    own = {"rowwise_adagrad_counter": "decoupled", "lamb": "decoupled", "partial_rowwise_lamb": "decoupled"}
    own_decay = o["weight_decay"] if own.get(name, "l2" if name == "lars_sgd" else None) == o["decay"] else 0
    decay, before, lr = o["weight_decay"] - own_decay, w.copy(), o["lr"]
    g = np.clip(g, -o["clip"], o["clip"])
    if o["decay"] == "l2":
        g = g + decay * w
    w -= _row_change(name, w, g, state, step, o, own_decay)
    if o["decay"] == "decoupled":
        w -= lr * decay * before
    w *= min(1, o["max_norm"] / (np.linalg.norm(w) or 1))


def _row_change(
    name: str, w: Array, g: Array, s: dict[str, Any], step: int, o: dict[str, Any], decay: float
) -> Any:
    lr, square = o["lr"], np.mean(g**2) if "rowwise" in name else g**2
    if name == "sgd":
        s["velocity"] = o["momentum"] * s["velocity"] + g
        return lr * s["velocity"]
    if name in ("adagrad", "rowwise_adagrad"):
        s["total"] += square
        return lr * g / (np.sqrt(s["total"]) + o["eps"])
    if name == "rowwise_adagrad_counter":
        s["total"] += square
        gap = step - s["seen"] if s["seen"][0] else 1
        s["seen"][...] = step
        s["count"] = 1 + 0.5 ** (gap / o["half_life"]) * s["count"]
        tail = np.clip((o["most"] / (s["count"] + 1)) ** o["power"], *o["bounds"])
        scale = np.where(s["count"] > o["tail"], tail, 1)
        return (
            scale * lr * g / (np.sqrt(s["total"]) + o["eps"]) + lr * decay * o["half_life"] / s["count"] * w
        )
    if name == "ftrl":
        sigma = (np.sqrt(s["total"] + g**2) - np.sqrt(s["total"])) / lr
        s["linear"] += g - sigma * w
        s["total"] += g**2
        z = s["linear"]
        return w + np.where(abs(z) <= o["l1"], 0, z - np.sign(z) * o["l1"]) / (
            (o["beta"] + np.sqrt(s["total"])) / lr + o["l2"]
        )
    norm = np.linalg.norm
    if name == "lars_sgd":
        local = lr * o["trust"] * norm(w) / (norm(g) + decay * norm(w))
        s["velocity"] = o["momentum"] * s["velocity"] + local * (g + decay * w)
        return s["velocity"]
    s["mean"] += 0.1 * (g - s["mean"])
    s["square"] += 0.001 * (square - s["square"])
    u = s["mean"] / (1 - 0.9**step) / (np.sqrt(s["square"] / (1 - 0.999**step)) + o["eps"])
    if "lamb" in name:
        u += decay * w
        u *= norm(w) / norm(u)
    return lr * u


def dequantized(row: Array, width: int, bits: int) -> Array:
    """The float32 values of a quantized row of bytes: bfloat16 scale and bias, then fields of 16 columns."""
    scale, bias = (row[:4].view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    codes, size = np.append(row[4:], np.zeros(16, np.uint8)), 2 * bits
    at = [(d // 16 * size + d % 16 % size, d % 16 // size * bits) for d in range(width)]
    return np.array([scale * np.float32(codes[k] >> s & (1 << bits) - 1) + bias for k, s in at], np.float32)


def clipped(bags: Any, rows: tuple[int, int], apart: bool) -> list[tuple[list[tuple[int, float]], int]]:
    """What a rectangle sees of bags of (id, weight): those of `rows`, from 0 on; and how long each bag is."""
    kept = [([(i - rows[0], w) for i, w in bag if rows[0] <= i < rows[1]], len(bag)) for bag in bags]
    if apart:
        kept = [([item], size) for items, size in kept for item in items]
    return [(items, size) for items, size in kept if items]


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
