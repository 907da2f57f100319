"""A buffer of decoded rows and their final order → the batches of it.

Column by column for all batches at once (`kernels/gather.py` says why), so that the batches of one buffer are
views of the same few arrays.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tesserec.dataio.batch import Batch
from tesserec.dataio.dataset import DataError, DatasetInfo, SparseFeature
from tesserec.dataio.kernels import gather as kernels
from tesserec.dataio.reuse import Reuse
from tesserec.dataio.row_groups import DecodedRows
from tesserec.embeddings.jagged import KeyedJaggedTensor


@dataclass(frozen=True, slots=True, eq=False)
class DecodedBuffer:
    """Rows of `pieces`, numbered through, in their final order (n,), cut into batches at `cuts` (K + 1,).

    memory: where the large arrays come from. unseen: features whose ids may be outside their tables.
    """

    pieces: Sequence[DecodedRows]
    order: npt.NDArray[np.int32]
    cuts: npt.NDArray[np.int64]
    memory: Reuse
    unseen: Collection[str] = ()

    def batches(self, info: DatasetInfo, *, keep: bool) -> list[Batch]:
        """K batches; batch k has rows cuts[k] … cuts[k+1]-1. DataError: not finite, or no id of its table."""
        dense, labels = self._floats(info.dense), self._floats(info.labels)
        weights = self._floats((info.weight,))[:, 0] if info.weight else None
        groups = self._joined(info.group)[self.order] if info.group else None
        sparse = (self._bags if any(feature.is_list for feature in info.sparse) else self._ids)(info.sparse)
        kept = self._kept(info.keep) if keep else None
        return [
            Batch(
                dense[lo:hi],
                ids,
                labels[lo:hi],
                None if weights is None else weights[lo:hi],
                None if groups is None else groups[lo:hi],
                None if kept is None else kept.slice(lo, hi - lo),
            )
            for (lo, hi), ids in zip(pairwise(self.cuts.tolist()), sparse, strict=True)
        ]

    def _floats(self, names: Sequence[str]) -> npt.NDArray[np.float32]:
        """(n, C): the columns `names`."""
        out = self.memory.empty((len(self.order), len(names)), np.float32)
        scratch = self.memory.empty((sum(piece.rows for piece in self.pieces),), np.float32)
        for c, name in enumerate(names):
            end = 0
            for piece in self.pieces:
                values = piece.columns[name].to_numpy()
                start, end = end, end + len(values)
                if not kernels.join_floats(values, scratch[start:end]):
                    bad = int(np.flatnonzero(~np.isfinite(values))[0])
                    _refuse(piece, bad, name, values[bad], "a finite number")
            kernels.pick_floats(scratch, self.order, c, out)
        return out

    def _joined(self, name: str) -> npt.NDArray[np.int64]:
        return np.concatenate([piece.columns[name].to_numpy() for piece in self.pieces])

    def _ids(self, features: Sequence[SparseFeature]) -> Iterator[KeyedJaggedTensor]:
        """The ids of each batch: one per bag, so that bag b of all has place b."""
        out = self.memory.empty((len(features) * len(self.order),), np.int64)
        for feature, places in zip(features, self._first_bags(len(features)), strict=True):
            kernels.pick_ids(self._narrowed(feature), self.order, self.cuts, places, out)
        keys = tuple(feature.name for feature in features)
        for lo, hi in pairwise((self.cuts * len(features)).tolist()):
            yield KeyedJaggedTensor(keys, out[lo:hi], _one_per_bag(hi - lo))

    def _bags(self, features: Sequence[SparseFeature]) -> Iterator[KeyedJaggedTensor]:
        """The ids of each batch: any number per bag; bag b of all is out[ends[b] : ends[b + 1]]."""
        first_bags = self._first_bags(len(features))
        lengths = [self._lengths(feature) for feature in features]
        ends = self.memory.empty((len(features) * len(self.order) + 1,), np.int64)
        ends[0] = 0
        for length, places in zip(lengths, first_bags, strict=True):
            kernels.pick_ids(length, self.order, self.cuts, places, ends[1:])
        np.cumsum(ends, out=ends)
        out = self.memory.empty((int(ends[-1]),), np.int64)
        for feature, length, bags in zip(features, lengths, first_bags, strict=True):
            ids, places = self._narrowed(feature), ends[bags]
            if feature.is_list:
                starts = np.concatenate([[0], length]).cumsum()
                kernels.pick_bags(ids, starts, self.order, self.cuts, places, out)
            else:
                kernels.pick_ids(ids, self.order, self.cuts, places, out)
        keys = tuple(feature.name for feature in features)
        for lo, hi in pairwise((self.cuts * len(features)).tolist()):
            yield KeyedJaggedTensor(keys, out[ends[lo] : ends[hi]], ends[lo : hi + 1] - ends[lo])

    def _first_bags(self, num_features: int) -> npt.NDArray[np.int64]:
        """(F, K): the number of the first bag of feature f in batch k, over all batches."""
        return self.cuts[:-1] * num_features + np.arange(num_features)[:, None] * np.diff(self.cuts)

    def _lengths(self, feature: SparseFeature) -> npt.NDArray[np.int32]:
        """(n,): how many ids each row of the pieces has."""
        if not feature.is_list:
            return np.ones(sum(piece.rows for piece in self.pieces), np.int32)
        columns = [piece.columns[feature.name] for piece in self.pieces]
        return np.concatenate([np.diff(column.offsets.to_numpy()) for column in columns])

    def _narrowed(self, feature: SparseFeature) -> npt.NDArray[Any]:
        """The checked ids of one feature, of all pieces."""
        columns = [piece.columns[feature.name] for piece in self.pieces]
        parts = [(column.flatten() if feature.is_list else column).to_numpy() for column in columns]
        if feature.name in self.unseen:
            return np.concatenate(parts)
        limit = feature.num_embeddings
        out = self.memory.empty((sum(map(len, parts)),), np.int32 if limit <= 1 << 31 else np.int64)
        end = 0
        for piece, ids in zip(self.pieces, parts, strict=True):
            start, end = end, end + len(ids)
            if not kernels.join_ids(ids, limit, out[start:end]):
                bad = int(np.flatnonzero((ids < 0) | (ids >= limit))[0])
                column = piece.columns[feature.name]
                row = int(pc.list_parent_indices(column)[bad].as_py()) if feature.is_list else bad
                _refuse(piece, row, feature.name, ids[bad], f"an id in [0, {limit})")
        return out

    def _kept(self, names: Sequence[str]) -> Any:
        table = pa.concat_tables([piece.table.select(names) for piece in self.pieces])
        return table.take(pa.array(self.order))


@functools.lru_cache(maxsize=4)
def _one_per_bag(bags: int) -> npt.NDArray[np.int64]:
    """Offsets 0 … bags, the same array for every batch of a size: a batch is never written to."""
    return np.arange(bags + 1)


def _refuse(piece: DecodedRows, row: int, column: str, value: Any, wanted: str) -> NoReturn:
    raise DataError(
        f"{piece.place(row)}, column {column!r}: wanted {wanted}, got {value}; prepare the data again"
    )
