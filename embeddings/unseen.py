"""What becomes of unseen ids: bags with ids outside their table, made to be looked up in it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tesserec.embeddings.bags import JaggedTensor, taken
from tesserec.embeddings.config import Clamp, Drop, Unseen
from tesserec.embeddings.kernels.unseen import hash_ids


def without_unseen(bags: JaggedTensor, num_rows: int, policy: Unseen) -> JaggedTensor:
    """`bags` with every id outside [0, num_rows) treated as `policy` says; the others stay as they are."""
    ids = bags.values.astype(np.int64, copy=False)
    outside = (ids < 0) | (ids >= num_rows)
    if isinstance(policy, Drop):
        kept = np.flatnonzero(~outside)
        offsets = np.searchsorted(kept, bags.offsets)
        return JaggedTensor(ids[kept], offsets, taken(bags.weights, kept))
    rows = policy.row if isinstance(policy, Clamp) else hashed(ids, num_rows)
    return JaggedTensor(np.where(outside, rows, ids), bags.offsets, bags.weights)


def hashed(ids: npt.NDArray[np.int64], num_rows: int) -> npt.NDArray[np.int64]:
    """Rows in [0, num_rows) that are a function of the ids: SplitMix64 (Steele, Lea & Flood 2014)."""
    rows = np.empty_like(ids)
    hash_ids(ids, num_rows, rows)
    return rows
