"""Ids outside their tables: counted, before anything reads a row, and hashed into them."""

from __future__ import annotations

import numpy as np

from tesserec.embeddings.kernels.init import splitmix
from tesserec.embeddings.kernels.jit import kernel
from tesserec.embeddings.kernels.memory import int64_at, uint32_at


@kernel
def count_unseen(lanes, counts):
    """counts[k] = number of ids of lane k that are no row of its table -> their sum. counts: (S,) i8."""
    total = 0
    for k in range(lanes.shape[0]):
        lane = lanes[k]
        offsets = int64_at(lane.offsets)
        lo, hi = offsets[0], offsets[lane.bags]
        if lane.narrow:
            counts[k] = _outside32(uint32_at(lane.ids), lo, hi, lane.num_rows)
        else:
            counts[k] = _outside64(int64_at(lane.ids), lo, hi, lane.num_rows)
        total += counts[k]
    return total


@kernel
def _outside32(ids, lo, hi, limit):
    """A negative id is a huge one, and those from 2³¹ on are negative."""
    least, count = np.uint32(min(limit, 1 << 31)), np.int64(0)
    for i in range(lo, hi):
        count += ids[i] >= least
    return count


@kernel
def _outside64(ids, lo, hi, limit):
    least, count = np.uint64(limit), np.int64(0)
    for i in range(lo, hi):
        count += np.uint64(ids[i]) >= least
    return count


@kernel
def hash_ids(ids, num_rows, out):
    """out = rows in [0, num_rows) that are a function of the ids: (L,) i8 twice."""
    for i in range(ids.shape[0]):
        out[i] = splitmix(np.uint64(ids[i]), np.uint64(0)) % np.uint64(num_rows)
