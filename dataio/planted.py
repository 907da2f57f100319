"""The law of synthetic click logs: ids that follow Zipf, and a planted model that draws the clicks.

    logit = bias + Σ effects of the counts + Σ effect of each id + Σ ⟨u, v⟩ over some pairs of columns

An effect shrinks with the rarity of its id, as n / (n + 10,000) where n is how often a million rows show it:
what no model could learn is not there to be learned. The pairs need a model that multiplies embeddings. Rows
come in blocks, each a function of (seed, number of the block).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tesserec.dataio.dataset import DataError

BLOCK_ROWS = 65_536
NUM_DENSE = 13
# distinct values of C1 … C26 in Criteo's Kaggle data
KAGGLE_CARDINALITIES = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
MULTI_HOT_CARDINALITY = 20_000
PAIRS = ((5, 13), (16, 21), (22, 24), (4, 7))  # columns whose embeddings interact
NUM_SINGLE = len(KAGGLE_CARDINALITIES)
DELIMITER = "|"
RANK = 2
EFFECT_IDS = 1 << 17  # rarer ids than these have no effect, whatever the cardinality
LOGIT_DEVIATION = 1.36
SHARES = {"dense": 0.48, "first": 0.5, "pairs": 0.02}  # of the variance of the logit
CLICK_RATE = 0.25

F4 = npt.NDArray[np.float32]
I8 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SynthOptions:
    """What to draw. max_ids: cap on the cardinality of a column (Criteo's own go to 10 million)."""

    rows: int
    seed: int = 0
    max_ids: int = 100_000
    multi_hot: int = 0
    mean_length: float = 5.0
    p_true: bool = True

    def __post_init__(self) -> None:
        if self.rows < 1 or self.seed < 0 or self.max_ids < 2 or self.multi_hot < 0 or self.mean_length < 0:
            raise DataError(
                f"wanted rows ≥ 1, seed ≥ 0, max_ids ≥ 2, multi_hot ≥ 0, mean_length ≥ 0; got {self}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class IdColumn:
    """Ids 0 … cardinality-1 by falling frequency: P(id < k) = F(k), F(k) ∝ 1 - (k + 1)^(1 - exponent).

    effect: (min(cardinality, EFFECT_IDS) + 1,) float32, 0 for the last: that of all rarer ids.
    """

    cardinality: int
    exponent: float
    effect: F4
    salt: int

    def draw(self, uniform: npt.NDArray[np.float64]) -> I8:
        """Uniform numbers → ids, of the same shape."""
        power = 1 - self.exponent
        uniform = uniform * ((self.cardinality + 1) ** power - 1) + 1
        return np.minimum((uniform ** (1 / power)).astype(np.int64) - 1, self.cardinality - 1)

    def effects(self, ids: I8) -> F4:
        return self.effect[np.minimum(ids, len(self.effect) - 1)]

    def tokens(self, ids: I8) -> Any:
        """Ids (n,) → Arrow strings of eight hexadecimal digits, a different one for each id."""
        mixed = ids.astype(np.uint32) * np.uint32(0x9E3779B1) + np.uint32(self.salt)
        mixed = (mixed ^ mixed >> np.uint32(15)) * np.uint32(0x85EBCA77)
        digits = _HEX[np.stack([mixed >> np.uint32(16), mixed & np.uint32(0xFFFF)], axis=1)]
        offsets = np.arange(0, 8 * len(ids) + 1, 8, dtype=np.int32)
        return pa.StringArray.from_buffers(len(ids), pa.py_buffer(offsets), pa.py_buffer(digits))


_HEX = np.frombuffer(b"".join(b"%04x" % i for i in range(1 << 16)), np.uint32)  # four digits per entry


def _id_column(cardinality: int, exponent: float, rng: np.random.Generator) -> IdColumn:
    count = min(cardinality, EFFECT_IDS)
    effect = rng.standard_normal(count, np.float32) * _shrinkage(cardinality, exponent)[:count]
    return IdColumn(cardinality, exponent, np.append(effect, np.float32(0)), int(rng.integers(1 << 32)))


def _shrinkage(cardinality: int, exponent: float) -> F4:
    """(min(cardinality, EFFECT_IDS),): n / (n + 10,000) for ids that a million rows show n times."""
    edges = (np.arange(min(cardinality, EFFECT_IDS) + 1) + 1.0) ** (1 - exponent)
    shown = 1e6 * np.diff(edges) / ((cardinality + 1.0) ** (1 - exponent) - 1)
    return np.asarray(shown / (shown + 10_000), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """n rows without labels.

    dense: (13, n) counts, NaN where missing. ids: (n,) per column. bags: lengths (n,), ids (L,) per column.
    """

    dense: F4
    ids: list[I8]
    bags: list[tuple[I8, I8]]


def _factor(column: IdColumn, rng: np.random.Generator) -> F4:
    """(cardinality, RANK): what the ids of a paired column are multiplied by."""
    shrinkage = _shrinkage(column.cardinality, column.exponent)
    return rng.standard_normal((len(shrinkage), RANK), np.float32) * shrinkage[:, None]


def _sigmoid(logits: F4) -> F4:
    return np.asarray(1 / (1 + np.exp(-logits)), np.float32)


def _bias_for(logits: F4, rate: float) -> np.float32:
    """The bias under which the mean probability is `rate`, by bisection."""
    low, high = -20.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if _sigmoid(logits + middle).mean() > rate else (middle, high)
    return np.float32(middle)


class PlantedModel:
    """The law of the data: a function of the options, `rows` excepted."""

    def __init__(self, options: SynthOptions) -> None:
        self.options = options
        rng = np.random.default_rng([options.seed, 0])
        cards = [min(c, options.max_ids) for c in KAGGLE_CARDINALITIES]
        cards += [min(MULTI_HOT_CARDINALITY, options.max_ids)] * options.multi_hot
        self.columns = [_id_column(card, rng.uniform(1.25, 1.55), rng) for card in cards]
        self.factors = [[_factor(self.columns[column], rng) for column in pair] for pair in PAIRS]
        self.level = rng.uniform(0.5, 4, (NUM_DENSE, 1)).astype(np.float32)
        self.spread = rng.uniform(0.7, 1.4, (NUM_DENSE, 1)).astype(np.float32)
        self.missing = rng.choice([0, 0, 0.05, 0.2, 0.45], (NUM_DENSE, 1)).astype(np.float32)
        self.slope, self.bend = rng.standard_normal((2, NUM_DENSE, 1), np.float32)
        sample = self._parts(self._draw(rng, BLOCK_ROWS))
        self.scales = {
            k: float(np.sqrt(SHARES[k]) * LOGIT_DEVIATION / part.std()) for k, part in sample.items()
        }
        self.bias = _bias_for(self._weighted(sample), CLICK_RATE)

    def block(self, number: int) -> pa.Table:
        """BLOCK_ROWS rows: label, I1 … I13, C1 … C26, M1 …, and always p_true."""
        rng = np.random.default_rng([self.options.seed, 1, number])
        rows = self._draw(rng, BLOCK_ROWS)
        p_true = _sigmoid(self._weighted(self._parts(rows)) + self.bias)
        arrays = {"label": pa.array((rng.random(BLOCK_ROWS, np.float32) < p_true).astype(np.int8))}
        for number, counts in enumerate(rows.dense, 1):
            arrays[f"I{number}"] = pa.array(np.nan_to_num(counts).astype(np.int64), mask=np.isnan(counts))
        for number, (column, ids) in enumerate(zip(self.columns[:NUM_SINGLE], rows.ids, strict=True), 1):
            arrays[f"C{number}"] = column.tokens(ids)
        for number, (column, bag) in enumerate(zip(self.columns[NUM_SINGLE:], rows.bags, strict=True), 1):
            offsets = np.concatenate([[0], bag[0]]).cumsum(dtype=np.int32)
            lists = pa.ListArray.from_arrays(pa.array(offsets), column.tokens(bag[1]))
            arrays[f"M{number}"] = pc.binary_join(lists, DELIMITER)
        return pa.table({**arrays, "p_true": pa.array(p_true)})

    def _draw(self, rng: np.random.Generator, rows: int) -> Rows:
        logs = self.level + self.spread * rng.standard_normal((NUM_DENSE, rows), np.float32)
        dense = np.floor(np.exp(logs))
        dense[rng.random((NUM_DENSE, rows), np.float32) < self.missing] = np.nan
        ids = [column.draw(rng.random(rows)) for column in self.columns[:NUM_SINGLE]]
        bags = []
        for column in self.columns[NUM_SINGLE:]:
            lengths = rng.poisson(self.options.mean_length, rows)
            bags.append((lengths, column.draw(rng.random(lengths.sum()))))
        return Rows(dense, ids, bags)

    def _parts(self, rows: Rows) -> dict[str, F4]:
        """The three sums of the logit, (n,) each, before scaling. A missing count acts as 0 does."""
        logs = np.log1p(np.nan_to_num(rows.dense))
        dense = (self.slope * logs + 0.15 * self.bend * np.abs(logs - self.level)).sum(axis=0)
        first = sum(column.effects(ids) for column, ids in zip(self.columns, rows.ids, strict=False))
        for column, (lengths, ids) in zip(self.columns[NUM_SINGLE:], rows.bags, strict=True):
            bag = np.repeat(np.arange(len(lengths)), lengths)
            sums = np.bincount(bag, column.effects(ids), len(lengths))
            first = first + (2 * sums / np.maximum(lengths, 1)).astype(np.float32)
        pairs = sum(
            (u[rows.ids[a]] * v[rows.ids[b]]).sum(axis=1)
            for (a, b), (u, v) in zip(PAIRS, self.factors, strict=True)
        )
        return {"dense": dense, "first": first, "pairs": pairs}

    def _weighted(self, parts: dict[str, F4]) -> F4:
        """The logit without its bias, (n,)."""
        logit = np.zeros_like(parts["dense"])
        for name, part in parts.items():
            logit += part * self.scales[name]
        return logit
