"""Golden rows: raw inputs with the scores that the trainer gives them, by which an artefact proves itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tesserec.autograd.module import Module
from tesserec.autograd.ops.elementwise import expit
from tesserec.autograd.tensor import no_grad
from tesserec.dataio.encoder import Encoder
from tesserec.embeddings.jagged import KeyedJaggedTensor
from tesserec.serve.manifest import ArtefactError

TOLERANCE = 1e-5  # of a probability: what another order of float32 sums may change
FILE = "golden.arrow"

Scores = npt.NDArray[np.float32]


def write_golden(folder: Path, rows: pa.RecordBatch, scores: Scores) -> None:
    """Write the raw rows, and their scores as the last column."""
    arrays = [*rows.columns, pa.array(scores, pa.float32())]
    batch = pa.RecordBatch.from_arrays(arrays, names=[*rows.schema.names, "score"])
    with pa.ipc.new_file(str(folder / FILE), batch.schema) as writer:
        writer.write_batch(batch)


def read_golden(data: bytes) -> tuple[pa.RecordBatch, Scores]:
    """(the raw rows, their scores) of what `write_golden` wrote."""
    batch = pa.ipc.open_file(pa.BufferReader(data)).get_batch(0)
    last = batch.num_columns - 1
    return batch.select(list(range(last))), batch.column(last).to_numpy()


def score_rows(model: Module, encoder: Encoder, rows: pa.RecordBatch) -> Scores:
    """(n,) probabilities of raw rows, by the model itself as one batch. BadValue, SchemaError."""
    with no_grad():
        logits = model(*model_inputs(encoder, rows)).numpy()
    return expit(np.asarray(logits, np.float64)).astype(np.float32)


def model_inputs(encoder: Encoder, rows: pa.RecordBatch) -> tuple[Scores, KeyedJaggedTensor]:
    """((n, num_dense) float32, F keys by n samples) of raw rows. BadValue, SchemaError."""
    encoded = encoder.encode(rows)
    dense = np.empty((rows.num_rows, len(encoder.dense)), np.float32)
    for column, feature in enumerate(encoder.dense):
        dense[:, column] = encoded.column(feature.spec.name)
    return dense, KeyedJaggedTensor.from_arrow(encoded, [feature.spec.name for feature in encoder.sparse])


def check_scores(path: Path, got: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> None:
    """ArtefactError, with the row and the difference, unless the golden rows got the scores they should."""
    off = np.abs(np.asarray(got, np.float64) - wanted)
    bad = ~(off <= TOLERANCE)
    if bad.any():
        row = int(np.argmax(np.where(np.isnan(off), np.inf, off)))
        raise ArtefactError(
            f"{path}: golden row {row} scores {got[row]:.7f}, by the trainer {wanted[row]:.7f}: off by "
            f"{off[row]:.2e}, allowed are {TOLERANCE:.0e}; {bad.sum()} of {len(off)} rows are off. Its code, "
            f"encoder or tables are not those of the export: export it again"
        )
