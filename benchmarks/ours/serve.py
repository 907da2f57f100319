"""Artefacts for the serving benchmarks: a DLRM of Criteo-Kaggle's tables that nobody trained.

    python -m benchmarks.ours.serve FOLDER --dim 16

writes FOLDER/dlrm/1, a repository of one model; `tesserec serve FOLDER` serves it. Raw ids are the rows
themselves (`encoding: integer`). The weights are those of `benchmarks.peers.serve`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.cases import TABLE_SCALE, dlrm_weights, fill
from benchmarks.serve_cases import DENSE, KEYS, MODEL, OWN, requests, sizes
from tesserec.autograd import Module
from tesserec.dataio.dense import DenseEncoder
from tesserec.dataio.encoder import Encoder
from tesserec.dataio.schema import Dense, Schema, Sparse
from tesserec.dataio.sparse import SparseEncoder
from tesserec.embeddings.allocation import planning
from tesserec.embeddings.pool import Pool
from tesserec.models import Features
from tesserec.serve.artefact import Content, Histogram, write_artefact
from tesserec.serve.spec import ModelSpec

GOLDEN = 16
EVEN = Histogram(tuple(i / 10 for i in range(11)), (100,) * 10)


class FilledRows:
    """The rows of a pool whose tables `fill` has filled, made when they are asked for."""

    def __init__(self, pool: Pool):
        self.shape, self.dtype, self.bounds = pool.shape, pool.dtype, pool.bounds
        self.block = np.empty((4093, pool.shape[1]), np.float32)
        fill(self.block, TABLE_SCALE)

    def __getitem__(self, rows: slice) -> npt.NDArray[np.float32]:
        numbers = np.arange(*rows.indices(self.shape[0]))
        first = self.bounds[np.searchsorted(self.bounds, numbers, side="right") - 1]
        found: npt.NDArray[np.float32] = self.block[(numbers - first) % len(self.block)]
        return found


def spec(dim: int, limit: int | None = None) -> ModelSpec:
    """Bottom 512-256-D, top 512-256-1."""
    features = Features(13, dict(zip(KEYS, sizes(limit), strict=True)), pooling="sum")
    layers = {"embedding_dim": dim, "bottom": [512, 256], "top": [512, 256]}
    return ModelSpec("dlrm", 0, layers, features)


def planned(spec: ModelSpec) -> Module:
    """The model, its tables not there, with the weights that all sides have."""
    with planning():
        model = spec.build().eval()
    dense = [p for p in model.parameters() if not isinstance(p, Pool)]
    for tensor, array in zip(dense, chain(*dlrm_weights(spec.options["embedding_dim"])), strict=True):
        tensor.data[...] = array
    return model


def encoder(features: Mapping[str, int]) -> Encoder:
    """Numbers and ids as they are."""
    dense = tuple(Dense(column=name, name=name) for name in DENSE)
    sparse = tuple(
        Sparse(column=name, name=name, encoding="integer", size=rows) for name, rows in features.items()
    )
    schema = Schema(name="kaggle", dense=dense, sparse=sparse)
    ids = (SparseEncoder(one, False, "int", one.size or 0) for one in sparse)
    return Encoder(schema, tuple(map(DenseEncoder, dense)), tuple(ids))


def golden(limit: int | None) -> pa.RecordBatch:
    """Raw rows: the first candidate of some requests."""
    rows: list[dict[str, Any]] = [{**r["context"], **r["candidates"][0]} for r in requests(GOLDEN, limit)]
    return pa.RecordBatch.from_pylist(rows)


def write(path: Path, dim: int, limit: int | None = None) -> Module:
    """Write the artefact `path` -> the model, without its tables."""
    made = spec(dim, limit)
    model = planned(made)
    with tempfile.TemporaryDirectory() as folder:
        encoder(made.features.sparse).save(Path(folder) / "encoder")
        content = Content(
            MODEL,
            made,
            model,
            Path(folder) / "encoder",
            golden(limit),
            histogram=EVEN,
            candidate_columns=OWN,
            rows=FilledRows,
        )
        write_artefact(path, content)
    return model


def main() -> None:
    """Make what is not there yet."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dim", type=int, default=16)
    args = parser.parse_args()
    path = args.folder / MODEL / "1"
    if not path.exists():
        write(path, args.dim)


if __name__ == "__main__":
    main()
