"""What all sides of a benchmark agree on: table sizes, first values, ids, gradients. Needs numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

BATCH = 2048
TABLE_SCALE = 0.03  # DLRM: rows start in ± this
LR = 0.01
EPS = 1e-8
ZIPF = 1.05

# rows per table of the Criteo Display Advertising (Kaggle) data set, as DLRM's reference code counts them
KAGGLE = [1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194]
KAGGLE += [27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572]


def draw(kind: str, rows: int, count: int, rng: np.random.Generator) -> Ids:
    """(count,) ids below `rows`.

    "uniform"; "zipf": the k-th most frequent id about as often as k^-1.05, frequent ones scattered over the
    table; "log": log-uniform, frequent ones first; "falling:1.2": id k-1 as often as k^-1.2.
    """
    if kind.startswith("falling:"):
        chances = falling_chances(rows, float(kind.partition(":")[2]))
        return np.searchsorted(np.cumsum(chances[:-1]), rng.random(count), side="right")
    if kind == "uniform":
        return rng.integers(0, rows, count)
    if kind == "log":
        return np.minimum(rows ** rng.random(count) - 1, rows - 1).astype(np.int64)
    power = 1 - ZIPF
    rank = (1 + rng.random(count) * ((rows + 1) ** power - 1)) ** (1 / power) - 1
    scattered: Ids = np.minimum(rank.astype(np.int64), rows - 1) * 2654435761 % rows  # by a prime: one to one
    return scattered


def zipf_chances(rows: int) -> npt.NDArray[np.float64]:
    """(rows,) how likely each id of a "zipf" draw is, most frequent first."""
    reached = np.arange(1.0, rows + 2) ** (1 - ZIPF)
    chances: npt.NDArray[np.float64] = np.diff(reached) / (reached[-1] - 1)
    return chances


def falling_chances(rows: int, exponent: float) -> npt.NDArray[np.float64]:
    """(rows,) how likely each id of a "falling:…" draw is."""
    weights = np.arange(1.0, rows + 1) ** -exponent
    found: npt.NDArray[np.float64] = weights / weights.sum()
    return found


def lookups(sizes: list[int], length: int, ids: str, batches: int) -> list[Ids]:
    """`batches` times the ids of BATCH bags of `length` for each table, one table after the other."""
    rng = np.random.default_rng([0, length])
    return [np.concatenate([draw(ids, n, BATCH * length, rng) for n in sizes]) for _ in range(batches)]


def fill(rows: Array, scale: float = 1.0, first: int = 0) -> None:
    """Numbers in [-scale, scale); quick to make, the same for everybody. Rows repeat after 4,093.

    first: which row of its table the first of `rows` is.
    """
    block = np.random.default_rng(1).uniform(-scale, scale, (4093, rows.shape[1])).astype(rows.dtype)
    block = np.roll(block, -first, axis=0)
    for lo in range(0, len(rows), len(block)):
        rows[lo : lo + len(block)] = block[: len(rows) - lo]


def gradient(width: int) -> Array:
    """(BATCH, width) gradient of pooled outputs."""
    return np.random.default_rng(2).normal(0, 1e-3, (BATCH, width)).astype(np.float32)


def dlrm_batches(
    count: int, size: int = BATCH, sizes: Sequence[int] = KAGGLE, length: int = 1, ids: str = "log"
) -> list[tuple[Array, Ids, Array]]:
    """`count` times dense (size, 13) float32, ids (tables, size * length) as in `draw`, labels (size,)."""
    rng = np.random.default_rng(3)
    return [
        (
            rng.random((size, 13), dtype=np.float32),
            np.stack([draw(ids, rows, size * length, rng) for rows in sizes]),
            (rng.random(size) < 0.25).astype(np.float32),
        )
        for _ in range(count)
    ]


def owners(ranks: int) -> list[int]:
    """The rank of each Kaggle table where tables stay whole: largest first, to the rank with fewest rows.

    No rank gets more than its share of the number of tables: that is what a step costs at one id in a bag.
    """
    held, count, place = [0] * ranks, [0] * ranks, [0] * len(KAGGLE)
    for table in sorted(range(len(KAGGLE)), key=lambda t: -KAGGLE[t]):
        free = [r for r in range(ranks) if count[r] < -(-len(KAGGLE) // ranks)]
        rank = place[table] = min(free, key=lambda r: held[r])
        held[rank], count[rank] = held[rank] + KAGGLE[table], count[rank] + 1
    return place


def dlrm_layers(dim: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(fan-in, fan-out) of the layers of the bottom MLP, 512-256-D, and of the top one, 512-256-1."""
    fields = len(KAGGLE) + 1
    top = [dim + fields * (fields - 1) // 2, 512, 256, 1]
    return list(pairwise([13, 512, 256, dim])), list(pairwise(top))


def dlrm_weights(dim: int) -> list[tuple[Array, Array]]:
    """(fan-out, fan-in) weight and (fan-out,) bias of each of these layers, bottom first."""
    rng, (bottom, top) = np.random.default_rng(4), dlrm_layers(dim)
    return [
        (rng.normal(0, (2 / i) ** 0.5, (o, i)).astype(np.float32), rng.normal(0, 0.1, o).astype(np.float32))
        for i, o in [*bottom, *top]
    ]
