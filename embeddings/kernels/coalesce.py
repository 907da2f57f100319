"""From lanes with gradients to one summed gradient per touched row, in two passes.

`sort_lanes` lists every id of a table with its place in the gradients, sorts by row and bounds the runs of
equal rows; `sum_runs` adds up each run. Sorting is stable and a run is added in its order, so a sum depends
neither on how many threads there are nor on which of them does it. An entry is one id of one lane; entries of
all tables lie one table after the other in arrays of the caller's.
"""

from __future__ import annotations

import numpy as np

from tesserec.embeddings.kernels.jit import kernel
from tesserec.embeddings.kernels.memory import float32_at, int64_at, like_at, prefetch

DIGIT = 11  # bits of a row that one pass of the radix sort looks at, at most
AHEAD = 8  # entries between the gradient that is asked for and the one that is read
LINE = 64  # bytes


@kernel
def sort_lanes(lanes, first, last, keys, entries, grads, scales, runs, run_rows):
    """Entries of the tables of lanes first … last-1, sorted by row, and their runs.

    lanes: (S,) LANE, by table. keys, entries: (2, N) u4, work space. grads: (2, N) i8, where each entry's
    gradient lies, and scales: (2, N), its factor; sorted in [0], as they came in [1]. runs, run_rows: (N,)
    i8; from the table's first entry on, the first entry of each run and its row of the pool, then -1.
    """
    while first < last:
        stop = first + 1
        while stop < last and lanes[stop].table == lanes[first].table:
            stop += 1
        lo, hi = lanes[first].start, lanes[stop - 1].start + lanes[stop - 1].count
        bits = 1
        while lanes[first].num_rows >> bits:
            bits += 1
        passes = (bits + DIGIT - 1) // DIGIT
        source = passes & 1  # so that the last pass ends in 0
        for k in range(first, stop):
            _list_entries(lanes[k], keys[source], entries[source], grads[1], scales[1])
        shift = 0
        for done in range(passes):
            width = (bits - shift + passes - done - 1) // (passes - done)
            a, b = (source + done) & 1, (source + done + 1) & 1
            _sort_by_digit(keys[a, lo:hi], entries[a, lo:hi], keys[b, lo:hi], entries[b, lo:hi], shift, width)
            shift += width
        for i in range(lo, hi):  # now, while they are in cache
            grads[0, i], scales[0, i] = grads[1, entries[0, i]], scales[1, entries[0, i]]
        _bound_runs(keys[0], lo, hi, lanes[first].first_row, runs, run_rows)
        first = stop


@kernel
def _list_entries(lane, keys, entries, grads, scales):
    """Entries of one lane, in the order of its ids."""
    at = lane.start
    ids, offsets = int64_at(lane.ids), int64_at(lane.offsets)
    one, size = scales.dtype.type(1), scales.itemsize
    for b in range(lane.bags):
        start, stop = offsets[b], offsets[b + 1]
        share = one / scales.dtype.type(stop - start) if lane.mean and stop - start > 1 else one
        for i in range(start, stop):
            keys[at] = ids[i]
            entries[at] = at
            grads[at] = lane.grad + b * lane.stride * size
            scales[at] = share
            if lane.weights != 0:
                scales[at] = float32_at(lane.weights)[i] * share
            at += 1


@kernel
def _sort_by_digit(keys, entries, out_keys, out_entries, shift, width):
    """One stable pass: out sorted by `width` bits of the keys from bit `shift` on."""
    digits = np.uint32((1 << width) - 1)
    ends = np.zeros((1 << width) + 1, np.uint32)
    for i in range(keys.shape[0]):
        ends[((keys[i] >> np.uint32(shift)) & digits) + np.uint32(1)] += np.uint32(1)
    for d in range(1 << width):
        ends[d + 1] += ends[d]
    for i in range(keys.shape[0]):
        digit = (keys[i] >> np.uint32(shift)) & digits
        at = ends[digit]
        ends[digit] = at + np.uint32(1)
        out_keys[at] = keys[i]
        out_entries[at] = entries[i]


@kernel
def _bound_runs(keys, lo, hi, first_row, runs, run_rows):
    """First entry and row of each run of equal keys in keys[lo:hi]."""
    at = lo
    for i in range(lo, hi):
        if i == lo or keys[i] != keys[i - 1]:
            runs[at] = i
            run_rows[at] = first_row + np.int64(keys[i])
            at += 1
    for i in range(at, hi):
        run_rows[i] = -1


@kernel
def compact_runs(runs, run_rows, starts, rows):
    """Close up the runs that `sort_lanes` left -> U, their number. rows: (N,); starts: (N + 1,)."""
    u = 0
    for i in range(run_rows.shape[0]):
        if run_rows[i] >= 0:
            starts[u] = runs[i]
            rows[u] = run_rows[i]
            u += 1
    starts[u] = run_rows.shape[0]
    return u


@kernel
def sum_runs(grads, scales, starts, lo, hi, out):
    """out[u] = Σ scale·gradient over entries starts[u] … starts[u + 1] - 1, for runs lo … hi-1."""
    width = out.shape[1]
    last = starts[hi] - 1
    for u in range(lo, hi):
        total = out[np.uint64(u)]
        for i in range(starts[u], starts[u + 1]):
            ahead = grads[min(i + AHEAD, last)]
            for line in range(0, width * out.itemsize, LINE):
                prefetch(ahead + line)
            grad, scale = like_at(out, grads[i]), scales[i]
            if i == starts[u]:
                for d in range(width):
                    total[d] = scale * grad[d]
            else:
                for d in range(width):
                    total[d] += scale * grad[d]
