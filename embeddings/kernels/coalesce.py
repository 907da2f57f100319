"""From lanes with gradients to one summed gradient per touched row: sort the ids, then add up equal ones.

An entry is one id of one lane, as a 64-bit number: the id above, the number of its source below. A source
says where a gradient lies and what multiplies it: a bag is a source, and where ids have weights, each id is.
Entries lie table after table. Sorting is stable, and a run of equal ids is added in its order, so a sum
depends neither on the number of threads nor on which of them does it.
"""

from __future__ import annotations

import numpy as np

from tesserec.embeddings.kernels.blocks import (
    add_scaled,
    block_1,
    block_2,
    block_4,
    block_8,
    block_16,
    save,
    span,
    tail,
)
from tesserec.embeddings.kernels.jit import inlined, kernel
from tesserec.embeddings.kernels.memory import (
    LINE,
    float32_at,
    float64_at,
    int64_at,
    like_at,
    prefetch,
    uint32_at,
    uint64_at,
)
from tesserec.embeddings.kernels.rows import real
from tesserec.embeddings.kernels.vectors import itemsize

SOURCE = np.dtype(
    [
        ("grad", np.int64),  # address of a gradient
        ("scale", np.float64),  # its factor
    ]
)
RANGE = np.dtype(
    [
        ("lane", np.int64),  # the ids of lanes lane … stop_lane-1, all of one table,
        ("stop_lane", np.int64),
        ("start", np.int64),  # are entries start … stop-1
        ("stop", np.int64),
        ("table", np.int64),  # position of the table in its pool
        ("first_row", np.int64),  # row of the pool that holds id 0
        ("num_rows", np.int64),  # ids are below it
    ]
)
DIGIT = 11  # bits of an id that one pass of the radix sort looks at, at most
NEAREST, FARTHEST = 12, 32  # entries between the rows that are asked for and those that are read,
AHEAD = 4096  # by as many bytes of rows
ID = np.uint64(32)  # where an entry's id begins
SOURCE_BITS = np.uint64(0xFFFFFFFF)


@kernel
def plan_lanes(lanes, ranges):
    """Set each lane's `start` and fill `ranges`, one for each table -> numbers of tables, entries, sources.

    lanes: (S,) LANE, by table; ranges: (S,) RANGE.
    """
    tables, entries, sources = 0, 0, 0
    for k in range(lanes.shape[0]):
        lane = lanes[k]
        if k == 0 or lane.table != lanes[k - 1].table:
            part = ranges[tables]
            part.lane, part.start, part.table = k, entries, lane.table
            part.first_row, part.num_rows = lane.first_row, lane.num_rows
            tables += 1
        lanes[k].start = sources
        entries += lane.count
        sources += lane.bags if lane.weights == 0 else lane.count
        ranges[tables - 1].stop_lane, ranges[tables - 1].stop = k + 1, entries
    return tables, entries, sources


@kernel
def sort_ranges(lanes, ranges, first, last, size, sources, entries):
    """Entries of ranges first … last-1, sorted by id, in entries[0], and their sources.

    size: bytes of a gradient's element; sources: SOURCE, filled at each lane's `start`; entries: (2, N) u8.
    """
    for r in range(first, last):
        part, bits, at = ranges[r], 1, 0
        while (part.num_rows - 1) >> bits:
            bits += 1
        passes = (bits + DIGIT - 1) // DIGIT
        width = (bits + passes - 1) // passes
        starts = np.empty(1 << width, np.uint32)
        a, b = entries[passes & 1, part.start : part.stop], entries[~passes & 1, part.start : part.stop]
        for k in range(part.lane, part.stop_lane):
            at = _list_bags(lanes[k], size, sources, a, at)
        for done in range(passes):  # the last pass ends in entries[0]
            _sort_by_digit(a, ID + np.uint64(done * width), starts, b)
            a, b = b, a


@kernel
def _list_bags(lane, size, sources, entries, at):
    """The sources of a lane, and its entries from `at` on -> where they end."""
    offsets, weighted, source = int64_at(lane.offsets), lane.weights != 0, lane.start
    for b in range(lane.bags):
        start, stop, grad = offsets[b], offsets[b + 1], lane.grad + b * lane.stride * size
        length = np.int64(uint32_at(lane.sizes)[b]) if lane.sizes else stop - start
        share = 1 / length if lane.mean and length > 1 else 1.0
        if not weighted:
            sources[source].grad, sources[source].scale = grad, share
        for i in range(start, stop):
            if weighted:
                sources[source].grad, sources[source].scale = grad, share * float32_at(lane.weights)[i]
            row = np.uint64(uint32_at(lane.ids)[i]) if lane.narrow else np.uint64(int64_at(lane.ids)[i])
            entries[at] = (row << ID) | np.uint64(source)
            at += 1
            source += weighted
        source += not weighted
    return at


@kernel
def _sort_by_digit(entries, shift, starts, out):
    """One stable pass: out sorted by k bits of the entries from `shift` on. starts: (2ᵏ,), work space."""
    digits, total = np.uint64(starts.shape[0] - 1), np.uint32(0)
    starts[:] = 0
    for i in range(entries.shape[0]):
        starts[(entries[i] >> shift) & digits] += np.uint32(1)
    for d in range(starts.shape[0]):
        count = starts[d]
        starts[d] = total
        total += count
    for i in range(entries.shape[0]):
        digit = (entries[i] >> shift) & digits
        out[starts[digit]] = entries[i]
        starts[digit] += np.uint32(1)


@kernel
def cut_runs(entries, ranges, marks):
    """`marks`, increasing positions, each moved on to where the next run begins."""
    r = 0
    for k in range(marks.shape[0]):
        at = marks[k]
        while r < ranges.shape[0] and ranges[r].stop <= at:
            r += 1
        if r < ranges.shape[0] and at > ranges[r].start:
            while at < ranges[r].stop and entries[at] >> ID == entries[at - 1] >> ID:
                at += 1
        marks[k] = at
    return marks


@kernel
def count_runs(entries, ranges, lo, hi):
    """How many runs begin in entries lo … hi-1."""
    count = 0
    for r in range(ranges.shape[0]):
        start, stop = max(lo, ranges[r].start), min(hi, ranges[r].stop)
        if start < stop:
            count += 1
        for i in range(start + 1, stop):
            count += entries[i] >> ID != entries[i - 1] >> ID
    return count


@inlined
def run_end(entries, at, stop):
    """Where the run that begins at `at` ends, `stop` at most."""
    row = entries[at] >> ID
    at += 1
    while at < stop and entries[at] >> ID == row:
        at += 1
    return at


@inlined
def look_ahead(row_bytes):
    """How many entries ahead to ask for rows."""
    return min(max(AHEAD // row_bytes, NEAREST), FARTHEST)


@inlined
def ask(address, size):
    """Prefetch `size` bytes."""
    for line in range(0, size, LINE):
        prefetch(address + line)


@inlined
def gradient_of(sources, entry):
    """Address of an entry's gradient. sources: address of SOURCE."""
    return int64_at(sources)[np.int64(entry & SOURCE_BITS) * 2]


@inlined
def _scale_of(sources, entry):
    return float64_at(sources)[np.int64(entry & SOURCE_BITS) * 2 + 1]


@inlined
def sum_run(entries, sources, at, stop, like, out, width):
    """Σ scale·gradient over entries `at` … stop-1, `width` numbers like those of `like`, to address `out`."""
    column = 0
    while column < width:
        left = width - column
        if left >= span(block_16(like)):
            column += _sum_block(block_16(like), entries, sources, at, stop, like, out, column, left)
        elif left >= span(block_8(like)):
            column += _sum_block(block_8(like), entries, sources, at, stop, like, out, column, left)
        elif left >= span(block_4(like)):
            column += _sum_block(block_4(like), entries, sources, at, stop, like, out, column, left)
        elif left >= span(block_2(like)):
            column += _sum_block(block_2(like), entries, sources, at, stop, like, out, column, left)
        elif left >= span(block_1(like)):
            column += _sum_block(block_1(like), entries, sources, at, stop, like, out, column, left)
        else:
            column += _sum_block(tail(like), entries, sources, at, stop, like, out, column, left)


@inlined
def _sum_block(block, entries, sources, at, stop, like, out, column, left):
    """The part of `sum_run` from `column` on that fits in `block` -> the columns that it has."""
    begin = column * itemsize(like)
    for i in range(at, stop):
        gradient, scale = gradient_of(sources, entries[i]), real(like, _scale_of(sources, entries[i]))
        block = add_scaled(block, gradient + begin, left, scale)
    save(block, out + begin, left, real(like, 1.0))
    return span(block)


@kernel
def sum_rows(entries, sources, ranges, lo, hi, rows, values, u):
    """Row and sum of each run of entries lo … hi-1, from rows[u], values[u] on. values: (U, D)."""
    like, width, size = like_at(values, 0), values.shape[1], values.strides[0]
    entries, sources = uint64_at(entries.ctypes.data), sources.ctypes.data
    ahead = look_ahead(size)
    for r in range(ranges.shape[0]):
        at, stop = max(lo, ranges[r].start), min(hi, ranges[r].stop)
        asked = at
        while at < stop:
            while asked < min(at + ahead, stop):
                ask(gradient_of(sources, entries[asked]), size)
                asked += 1
            rows[u] = ranges[r].first_row + np.int64(entries[at] >> ID)
            end = run_end(entries, at, stop)
            sum_run(entries, sources, at, end, like, values.ctypes.data + u * size, width)
            at = end
            u += 1
