"""Lookup: rows of a pool gathered into bags, one lane after the other.

A lane is the bags of one feature in one table. It says where ids, offsets and weights lie (addresses), which
rows of the pool the table has, and which columns of the output are its own. The backward pass walks the same
lanes (`coalesce.py`). Nothing is checked here: ids have passed `unseen.py`, so they are below 2³² and their
low 32 bits say it all; that is how one loop reads int32 and int64 (little-endian, as all our machines are).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tesserec.embeddings.kernels import blocks
from tesserec.embeddings.kernels.jit import kernel
from tesserec.embeddings.kernels.memory import LINE, float32_at, int64_at, prefetch, uint32_at
from tesserec.embeddings.kernels.rows import real

LANE = np.dtype(
    [
        ("table", np.int64),  # position of the table in its pool
        ("first_row", np.int64),  # row of the pool that holds id 0
        ("num_rows", np.int64),  # ids are below it
        ("ids", np.int64),  # address of the ids; a bag is ids[offsets[b]:offsets[b + 1]]
        ("narrow", np.int64),  # 1: ids are int32, else int64
        ("offsets", np.int64),  # address of int64 offsets of the first bag
        ("weights", np.int64),  # address of float32 weights, beside the ids; 0 for none
        ("bags", np.int64),  # number of bags
        ("count", np.int64),  # number of ids
        ("mean", np.int64),  # 1: divide by the number of ids
        ("column", np.int64),  # where the D columns of this lane begin in the output
        ("grad", np.int64),  # address of the output's gradient at bag 0, `column`; set on the way back
        ("stride", np.int64),  # items from one bag's gradient to the next
        ("start", np.int64),  # position of its first id among those of all lanes that are summed
        ("turn", np.int64),  # lanes of a table are summed in the order of their turns
        ("sizes", np.int64),  # address of uint32, what `mean` divides the gradient of a cut bag by; or 0
    ]
)
AHEAD = 32  # ids between the row that is asked for and the row that is read
GROUP = 64  # bags whose columns are summed block after block


def pool_bags(pool: Any, lanes: Any, lo: int, hi: int, out: Any) -> None:
    """out[b, column:column + D] = Σ w·pool[first_row + id] over bag b, for samples lo … hi-1 of every lane.

    pool: (R, D) as `stored`; out: (B, ΣD) real, rows may be apart, the lanes' columns overwritten. An empty
    bag gives zeros. Rows are added in the order of the ids.
    """
    _pool_bags(pool, lanes, lo, hi, out.ctypes.data, out.strides[0])  # compiled once, however `out` lies


@kernel
def _pool_bags(pool, lanes, lo, hi, out, stride):
    """out, stride: where the output of sample 0 lies, and how far that of the next one."""
    for k in range(lanes.shape[0]):
        lane = lanes[k]
        if k == 0:
            _ask_first(pool, lane, lo, hi)
        for b in range(lo, hi, GROUP):
            if b + GROUP >= hi and k + 1 < lanes.shape[0]:
                _ask_first(pool, lanes[k + 1], lo, hi)
            _pool_group(pool, lane, b, min(b + GROUP, hi), hi, out, stride)


def pool_lanes(pool: Any, lanes: Any, lo: int, hi: int) -> None:
    """The same for lanes with outputs of their own, at `grad`, `stride` apart, and any number of bags each.

    Of the bags of all lanes, counted through, lo … hi-1.
    """
    _pool_lanes(pool, lanes, lo, hi)


@kernel
def _pool_lanes(pool, lanes, lo, hi):
    size, first = LINE // blocks.span(blocks.block_1(pool)), 0
    for k in range(lanes.shape[0]):
        lane = lanes[k]
        start, stop = max(lo - first, 0), min(hi - first, lane.bags)
        first += lane.bags
        if start < stop:
            _ask_first(pool, lane, start, stop)
        for b in range(start, stop, GROUP):
            out = lane.grad - lane.column * size
            _pool_group(pool, lane, b, min(b + GROUP, stop), stop, out, lane.stride * size)


@kernel
def _ask_first(pool, lane, lo, hi):
    """Prefetch the first rows of a lane's bags lo … hi-1."""
    start, stop = int64_at(lane.offsets)[lo], int64_at(lane.offsets)[hi]
    source = _source(pool, lane, 0, stop - 1)
    for i in range(start, min(start + AHEAD, stop)):
        for begin in range(0, pool.shape[1] * pool.itemsize, LINE):
            prefetch(_row(source, i) + begin)


@kernel
def _source(pool, lane, d, last):
    """Where a lane's rows lie, from column d on, for `_row`; `last` is the last id that may be asked for."""
    row_bytes = pool.shape[1] * pool.itemsize
    rows = pool.ctypes.data + lane.first_row * row_bytes + d * pool.itemsize
    return rows, row_bytes, uint32_at(lane.ids), 2 - lane.narrow, last


@kernel
def _row(source, i):
    """Address of the row of the id at position i."""
    rows, row_bytes, ids, step, _ = source
    return rows + np.int64(ids[i * step]) * row_bytes


@kernel
def _row_ahead(source, i):
    """Address of the row that is due AHEAD ids later."""
    return _row(source, min(i + AHEAD, source[4]))


@kernel
def _pool_group(pool, lane, lo, hi, end, out, stride):
    """All columns of bags lo … hi-1 of one lane, the widest blocks first."""
    d, vector = 0, blocks.span(blocks.block_1(pool))
    while d < pool.shape[1]:
        left = (pool.shape[1] - d) // vector
        if left >= 16:
            d += _pool_block(blocks.block_16(pool), pool, lane, d, lo, hi, end, out, stride)
        elif left >= 8:
            d += _pool_block(blocks.block_8(pool), pool, lane, d, lo, hi, end, out, stride)
        elif left >= 4:
            d += _pool_block(blocks.block_4(pool), pool, lane, d, lo, hi, end, out, stride)
        elif left >= 2:
            d += _pool_block(blocks.block_2(pool), pool, lane, d, lo, hi, end, out, stride)
        elif left >= 1:
            d += _pool_block(blocks.block_1(pool), pool, lane, d, lo, hi, end, out, stride)
        else:
            d += _pool_block(blocks.tail(pool), pool, lane, d, lo, hi, end, out, stride)


@kernel
def _pool_block(zeros, pool, lane, d, lo, hi, end, out, stride):
    """Columns of bags lo … hi-1 from column d on, as many as `zeros` has -> their number."""
    offsets, weights = int64_at(lane.offsets), float32_at(lane.weights)
    source, columns = _source(pool, lane, d, offsets[end] - 1), pool.shape[1] - d
    target = out + (lane.column + d) * (LINE // blocks.span(blocks.block_1(pool)))
    one, first = real(pool, 1), offsets[lo] - lo
    if lane.weights == 0 and _all_single(offsets, lo, hi):
        for b in range(lo, hi):
            blocks.ask(zeros, _row_ahead(source, first + b), columns)
            row = blocks.add(zeros, _row(source, first + b), columns)
            blocks.save(row, target + b * stride, columns, one)
        return blocks.span(zeros)
    for b in range(lo, hi):
        start, stop, total = offsets[b], offsets[b + 1], zeros
        if lane.weights == 0:
            for i in range(start, stop):
                blocks.ask(zeros, _row_ahead(source, i), columns)
                total = blocks.add(total, _row(source, i), columns)
        else:
            for i in range(start, stop):
                blocks.ask(zeros, _row_ahead(source, i), columns)
                total = blocks.add_scaled(total, _row(source, i), columns, weights[i])
        share = one / real(pool, stop - start) if lane.mean and stop - start > 1 else one
        blocks.save(total, target + b * stride, columns, share)
    return blocks.span(zeros)


@kernel
def _all_single(offsets, lo, hi):
    """Whether each of bags lo … hi-1 has one id."""
    single: Any = True
    for b in range(lo, hi):
        single &= offsets[b + 1] - offsets[b] == 1
    return single
