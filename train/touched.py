"""What training has changed since it was last asked: the rows that were touched, and the dense parameters.

A row optimizer changes the rows that a gradient names, and no others; so the ids of the gradients say it all,
before anything is summed. A step costs a bit for each of its ids.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tesserec.autograd.module import Module
from tesserec.autograd.tensor import Gradients
from tesserec.embeddings.kernels import touched as kernels
from tesserec.embeddings.pool import Pool
from tesserec.embeddings.rowgrad import RowGrad
from tesserec.train.checkpoint import Array
from tesserec.train.tables import held_tables

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Some touched rows of a table, (n,) and increasing, and their values (n, w) from column `left` on."""

    rows: Rows
    left: int
    values: Array


Pieces = Mapping[str, Sequence[Piece]]


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """What is new in a model; all of it are copies.

    tables: {table, by its name in the model's state: (rows (U,) increasing, values (U, D))}, where any were
    touched. dense: every dense parameter and buffer. newest: when the last step ended, seconds since 1970.
    """

    tables: Mapping[str, tuple[Rows, Array]]
    dense: Mapping[str, Array]
    newest: float


class Touched:
    """The rows of this rank's pools that steps have changed since they were taken."""

    def __init__(self, model: Module):
        self.model, self.newest = model, time.time()
        pools = dict.fromkeys(held.pool for held in held_tables(model))
        self._bits = {pool: np.zeros(-(-len(pool) // 64), np.uint64) for pool in pools}

    def note(self, grads: Gradients) -> None:
        """Remember the rows that a step with these gradients has changed."""
        for leaf, grad in grads.items():
            if isinstance(leaf, Pool) and isinstance(grad, RowGrad):
                for part in grad.parts:
                    kernels.mark_rows(part.lanes, self._bits[leaf])
        self.newest = time.time()

    def take(self) -> dict[str, list[Piece]]:
        """{table: pieces} of all that this rank saves of what was touched, which is then forgotten."""
        rows = {pool: _taken(bits) for pool, bits in self._bits.items()}
        found: dict[str, list[Piece]] = {}
        for held in held_tables(self.model):
            first, stop = held.place.rows.start, held.place.rows.stop
            own = rows[held.pool][slice(*np.searchsorted(rows[held.pool], (first, stop)))]
            if held.first and len(own):
                origin = held.place.origin
                piece = Piece(own - first + origin.rows[0], origin.cols[0], held.pool.values(own))
                found.setdefault(held.table, []).append(piece)
        return found


def _taken(bits: npt.NDArray[np.uint64]) -> Rows:
    rows = np.empty(kernels.count_rows(bits), np.int64)
    kernels.take_rows(bits, rows)
    return rows


def joined(ranks: Sequence[Pieces]) -> dict[str, tuple[Rows, Array]]:
    """{table: (rows, values)} of the pieces of all ranks."""
    names = sorted({name for pieces in ranks for name in pieces})
    return {name: _join([piece for pieces in ranks for piece in pieces.get(name, ())]) for name in names}


def _join(pieces: Sequence[Piece]) -> tuple[Rows, Array]:
    """Rows with all their columns. Ranks that have columns of a row have touched it at the same steps."""
    if len(pieces) == 1:
        return pieces[0].rows, pieces[0].values
    rows = np.unique(np.concatenate([piece.rows for piece in pieces]))
    width = max(piece.left + piece.values.shape[1] for piece in pieces)
    values = np.full((len(rows), width), np.nan, pieces[0].values.dtype)
    for piece in pieces:
        columns = slice(piece.left, piece.left + piece.values.shape[1])
        values[np.searchsorted(rows, piece.rows), columns] = piece.values
    return rows, values
