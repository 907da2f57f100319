"""Steps: a stretch of a program that one call of compiled code walks through, and the lanes of a lookup."""

from __future__ import annotations

import numpy as np

from tesserec.autograd.kernels.jit import kernel
from tesserec.autograd.kernels.vector import address
from tesserec.embeddings.kernels.memory import LINE, int64_at, prefetch, uint32_at
from tesserec.serve.kernels.fields import add_up, meet, moments, pairs, products, put, sigmoid, spread
from tesserec.serve.kernels.layer import layer

MOST = 512  # ids of a lane that are asked for ahead of time

LAYER, PAIRS, MEET, PUT, SPREAD, ADD_UP, MOMENTS, PRODUCTS, SIGMOID = range(9)

STEP = np.dtype(
    [
        ("kind", np.int64),
        ("x", np.int64),  # address of what it reads, a row for each row that it writes
        ("x_bytes", np.int64),  # from row to row
        ("y", np.int64),  # address of what it reads for each request
        ("y_bytes", np.int64),  # from row to row; 0 where all have the same
        ("out", np.int64),  # address of what it writes
        ("out_bytes", np.int64),
        ("fixed", np.int64),  # address of weights or of runs
        ("width", np.int64),  # numbers in a row of x, or in each of its fields
        ("count", np.int64),  # numbers in a row of out, fields of x, or runs
        ("others", np.int64),  # fields of y
        ("activation", np.int64),
        ("skip", np.int64),  # 1: what is 0 is left out
    ]
)


@kernel
def play(steps, starts, requests):
    """Do steps (S,) STEP one after the other, for the candidates of so many requests, or the requests.

    starts: (≥ requests + 1,) int64, the first row of each request, and the number of rows.
    """
    rows = starts[requests]
    for i in range(len(steps)):
        s = steps[i]
        x, y, out = (s.x, s.x_bytes), (s.y, s.y_bytes), (s.out, s.out_bytes)
        if s.kind == LAYER:
            layer(x, s.fixed, y, out, rows, starts, (s.width, s.count), s.activation, s.skip != 0)
        elif s.kind == PAIRS:
            pairs(x, out, rows, s.count, s.width)
        elif s.kind == MEET:
            meet(x, y, out, starts, requests, s.count, s.others, s.width)
        elif s.kind == PUT:
            put(x, out, rows, s.fixed, s.count)
        elif s.kind == SPREAD:
            spread(y, out, starts, requests, s.fixed, s.count)
        elif s.kind == ADD_UP:
            add_up(x, y, out, starts, requests, s.count, s.width)
        elif s.kind == MOMENTS:
            moments(x, y, out, starts, requests, s.count, s.width)
        elif s.kind == PRODUCTS:
            products(x, out, rows, s.width)
        elif s.kind == SIGMOID:
            sigmoid(x, out, rows)


@kernel
def places(ids, offsets):
    """Their addresses. Compiled for each kind of array, in next to no time."""
    return address(ids), address(offsets)


@kernel
def aim(lanes, keys, first, bags, narrow, weights, ids, offsets):
    """Point lanes at bags `first` … of their keys, which have `bags` each.

    keys: (S,) int64, the key of each lane. narrow: 1 if ids are int32. weights, ids, offsets: addresses.
    """
    for k in range(len(lanes)):
        lanes[k].ids, lanes[k].narrow, lanes[k].weights = ids, narrow, weights
        lanes[k].offsets = offsets + (keys[k] * bags + first) * 8


@kernel
def ask(lanes, bags, rows, row_bytes):
    """Prefetch what the first bags of each lane read, or a good part. rows: address of a pool's rows."""
    for k in range(len(lanes)):
        lane = lanes[k]
        offsets, ids, step = int64_at(lane.offsets), uint32_at(lane.ids), 2 - lane.narrow
        for i in range(offsets[0], min(offsets[bags], offsets[0] + MOST)):
            row = rows + (lane.first_row + np.int64(ids[i * step])) * row_bytes
            for begin in range(0, row_bytes, LINE):
                prefetch(row + begin)
