"""Vectors of touched bags: where they lie in messages, how they join the output, and their gradients.

See `route.py` for wires. All wires are walked together, `BLOCK` bags at a time, so that the rows of the
output, or of its gradient, are met once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tesserec.embeddings.kernels.jit import inlined, kernel
from tesserec.embeddings.kernels.memory import int64_at, like_at

BLOCK = 64
SLAB = np.dtype(
    [
        ("first", np.int64),  # bags first … last-1 of a reader
        ("last", np.int64),
        ("grad", np.int64),  # address of the gradient of the first, where the reader's columns begin
        ("stride", np.int64),  # items from one bag to the next
    ]
)


@kernel
def lay_out_vectors(wires, itemsize):
    """Set `vectors` and `grads` of all wires with elements of `itemsize`, in items."""
    vectors, grads = 0, 0
    for k in range(wires.shape[0]):
        wire = wires[k]
        if wire.itemsize == itemsize:
            wire.vectors, wire.grads = vectors, grads
            vectors += 0 if wire.silent else wire.bags * wire.width
            grads += wire.bags * wire.width


@kernel
def add_vectors(wires, order, lanes, vectors, places, origins, lo, hi):
    """Add the vectors of wires order[lo:hi] to their bags of the output, at `grad` of their readers' lanes.

    Where every id is a bag of its own, its vector is not added to a bag but written to where `origins` says.
    """
    for j in range(lo, hi):
        wires[order[j]].bag = 0
    for end in range(BLOCK, _top(wires, order, places, lo, hi) + BLOCK, BLOCK):
        for j in range(lo, hi):
            wire = wires[order[j]]
            if wire.itemsize == vectors.itemsize and not wire.silent:
                _add_until(end, wire, lanes[wire.reader], vectors, places, origins)


@inlined
def _top(wires, order, places, lo, hi):
    """What is beyond all bags of wires order[lo:hi]."""
    top: Any = 0
    for j in range(lo, hi):
        wire = wires[order[j]]
        if wire.bags:
            top = max(top, np.int64(places[wire.place + wire.bags - 1]) + 1)
    return top


@inlined
def _add_until(end, wire, lane, vectors, places, origins):
    """The vectors of bags below `end` that have not been added."""
    size, width, i = vectors.itemsize, wire.width, wire.bag
    out, step, one = lane.grad + wire.left * size, lane.stride * size, vectors.dtype.type(1)
    source = vectors.ctypes.data + (wire.vectors + i * width) * size
    while i < wire.bags and places[wire.place + i] < end:
        b = np.int64(places[wire.place + i])
        if wire.apart:
            at = np.int64(origins[wire.origin + i])
            _copy(like_at(vectors, source), like_at(vectors, out + at * step), width)
        else:
            share = vectors.dtype.type(_share(lane, b)) if wire.cut else one
            _add(like_at(vectors, source), like_at(vectors, out + b * step), width, share)
        source += width * size
        i += 1
    wire.bag = i


@inlined
def _share(lane, b):
    """What the mean of bag b takes of what a shard has of it."""
    offsets = int64_at(lane.offsets)
    return 1 / max(offsets[b + 1] - offsets[b], 1)


@inlined
def _copy(source, target, width):
    for d in range(width):
        target[d] = source[d]


@inlined
def _add(source, target, width, share):
    for d in range(width):
        target[d] += source[d] * share


@kernel
def pack_grads(wires, order, slabs, firsts, places, out, lo, hi):
    """Write the gradients of the bags of wires order[lo:hi] to `out`.

    slabs: SLAB, those of reader k from firsts[k] on, by bag, which tile its bags.
    """
    for j in range(lo, hi):
        wires[order[j]].bag = 0
    for end in range(BLOCK, _top(wires, order, places, lo, hi) + BLOCK, BLOCK):
        for j in range(lo, hi):
            wire = wires[order[j]]
            if wire.itemsize == out.itemsize:
                _pack_until(end, wire, slabs, firsts[wire.reader], places, out)


@inlined
def _pack_until(end, wire, slabs, s, places, out):
    """The gradients of bags below `end` that have not been packed. s: the first slab of the reader."""
    size, width, i = out.itemsize, wire.width, wire.bag
    target = out.ctypes.data + (wire.grads + i * width) * size
    slab = slabs[s]
    while i < wire.bags and places[wire.place + i] < end:
        b = np.int64(places[wire.place + i])
        while b >= slab.last:
            s += 1
            slab = slabs[s]
        grad = slab.grad + ((b - slab.first) * slab.stride + wire.left) * size
        _copy(like_at(out, grad), like_at(out, target), width)
        target += width * size
        i += 1
    wire.bag = i
