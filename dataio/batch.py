"""What a model is trained on: the columns of B samples as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tesserec.embeddings.jagged import KeyedJaggedTensor


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """B samples.

    dense:   (B, num_dense) float32.
    sparse:  F keys by B samples, ids int64.
    labels:  (B, num_labels) float32.
    weights: (B,) float32 weight of each sample, or None for all ones.
    groups:  (B,) int64 code of the user or query of each sample, or None.
    kept:    Arrow table of the columns carried along unchanged, when asked for.
    """

    dense: npt.NDArray[np.float32]
    sparse: KeyedJaggedTensor
    labels: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32] | None = None
    groups: npt.NDArray[np.int64] | None = None
    kept: Any = None

    @property
    def batch_size(self) -> int:
        return len(self.dense)

    def select(self, lo: int, hi: int) -> Batch:
        """Samples lo … hi-1. Views, but for the ids."""
        return Batch(
            self.dense[lo:hi],
            self.sparse.select(lo, hi) if self.sparse.keys else self.sparse,
            self.labels[lo:hi],
            None if self.weights is None else self.weights[lo:hi],
            None if self.groups is None else self.groups[lo:hi],
            None if self.kept is None else self.kept.slice(lo, hi - lo),
        )

    @classmethod
    def concat(cls, parts: Sequence[Batch]) -> Batch:
        """The samples of all parts, one part after the other."""
        if len(parts) == 1:
            return parts[0]
        dense, sparse, labels, weights, groups, kept = zip(*map(_fields, parts), strict=True)
        return cls(
            np.concatenate(dense),
            KeyedJaggedTensor.concat_batches(sparse),
            np.concatenate(labels),
            None if weights[0] is None else np.concatenate(weights),
            None if groups[0] is None else np.concatenate(groups),
            None if kept[0] is None else pa.concat_tables(kept),
        )


def _fields(batch: Batch) -> tuple[Any, ...]:
    return batch.dense, batch.sparse, batch.labels, batch.weights, batch.groups, batch.kept
