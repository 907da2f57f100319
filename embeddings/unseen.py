"""What becomes of unseen ids: bags with ids outside their table, made to be looked up in it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tesserec.embeddings.bags import JaggedTensor, taken
from tesserec.embeddings.config import Clamp, Drop, Hash, Unseen
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


def parse_unseen(text: str) -> Unseen:
    """The policy that a text names: "error", "hash", "drop" or "clamp:ROW". ValueError."""
    kind, _, row = text.partition(":")
    policies: dict[str, Unseen] = {"error": "error", "hash": Hash(), "drop": Drop()}
    if kind == "clamp" and row.isdecimal():
        return Clamp(int(row))
    if text not in policies:
        raise ValueError(f"policy for unseen ids: got {text!r}, wanted error, hash, drop or clamp:ROW")
    return policies[text]


def unseen_text(policy: Unseen) -> str:
    """The text that `parse_unseen` reads as `policy`."""
    if isinstance(policy, Clamp):
        return f"clamp:{policy.row}"
    return policy if isinstance(policy, str) else type(policy).__name__.lower()
