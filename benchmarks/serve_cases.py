"""What all sides of the serving benchmarks agree on: the columns of a request, its bodies. Needs numpy only.

A request is about one sample's context, 13 numbers and 20 ids, and 100 candidates of 6 ids each, of
Criteo-Kaggle's tables; `benchmarks.cases` has their sizes and the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import KAGGLE, draw

DENSE = tuple(f"I{i}" for i in range(1, 14))
KEYS = tuple(f"C{i}" for i in range(1, 27))
SHARED = KEYS[:20]
OWN = KEYS[20:]
CANDIDATES = 100
MODEL = "dlrm"
PATH = f"/v1/models/{MODEL}:rank"


def sizes(limit: int | None = None) -> list[int]:
    """Rows of each table: those of Criteo-Kaggle, or at most `limit`."""
    return [min(rows, limit or rows) for rows in KAGGLE]


def requests(count: int, limit: int | None = None) -> list[dict[str, Any]]:
    """`count` requests with log-uniform ids of tables of at most `limit` rows."""
    rng = np.random.default_rng(5)
    return [_request(dict(zip(KEYS, sizes(limit), strict=True)), rng) for _ in range(count)]


def write_bodies(path: Path, count: int, limit: int | None = None) -> None:
    """A file with a request in each line, as `benchmarks.load` takes it: JSON without spaces."""
    lines = (json.dumps(request, separators=(",", ":")) for request in requests(count, limit))
    path.write_text("\n".join(lines))


def _request(sizes: Mapping[str, int], rng: np.random.Generator) -> dict[str, Any]:
    dense = dict(zip(DENSE, rng.random(13).round(4).tolist(), strict=True))
    shared = {key: int(draw("log", sizes[key], 1, rng)[0]) for key in SHARED}
    own = [draw("log", sizes[key], CANDIDATES, rng).tolist() for key in OWN]
    rows = [dict(zip(OWN, ids, strict=True)) for ids in zip(*own, strict=True)]
    return {"context": {**dense, **shared}, "candidates": rows}
