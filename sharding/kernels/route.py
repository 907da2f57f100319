"""Routing: which ids of a batch go to which shard, packed for the wire, and unpacked where they arrive.

A wire is the ids of one reader in one rectangle of its table, on their way from one rank to another. Only
bags with an id there go along. Both ends know the wires, and so the way each is packed follows from three
numbers that are sent ahead: bags, ids, and `flags`. In the message of a rank to another all items of 4 bytes
come first, then those of 2, then those of 1, so that each lies where its size wants it:

weights  float32, one for each id, where the batch has any
sizes    one for each bag, its ids in all shards, where the mean of a cut bag is wanted
lengths  one for each bag, its ids here; not where all are 1
ids      one for each id, from the rectangle's first row on
"""

from __future__ import annotations

import numpy as np

from tesserec.embeddings.kernels.jit import inlined, kernel
from tesserec.embeddings.kernels.memory import (
    float32_at,
    int64_at,
    uint8_at,
    uint16_at,
    uint32_at,
)

WIRE = np.dtype(
    [
        ("peer", np.int64),  # the rank at the other end
        ("reader", np.int64),  # position of its lane among those of the batch
        ("first_row", np.int64),  # of the table, that the rectangle begins with
        ("id_bytes", np.int64),  # 1, 2 or 4: what its ids need
        ("left", np.int64),  # the first column of the rectangle
        ("width", np.int64),  # its columns
        ("itemsize", np.int64),  # bytes of an element of its vectors
        ("cut", np.int64),  # 1: the mean of bags that the rectangle may have only some ids of is wanted
        ("apart", np.int64),  # 1: every id is a bag of its own
        ("silent", np.int64),  # 1: no vectors are sent back, there are only gradients
        ("bags", np.int64),  # touched bags, and so vectors
        ("ids", np.int64),
        ("flags", np.int64),  # bytes of a length, 16 · bytes of a size, 256 if there are weights
        ("weights", np.int64),  # where in the message the weights begin,
        ("sizes", np.int64),
        ("lengths", np.int64),
        ("rows", np.int64),  # and the ids
        ("vectors", np.int64),  # where its vectors begin among those of all wires of one itemsize,
        ("grads", np.int64),  # and their gradients
        ("place", np.int64),  # at the sender: where the bags' numbers begin among those of all wires,
        ("origin", np.int64),  # and the ids' positions
        ("last", np.int64),  # work space: the newest bag, and its first id here
        ("begin", np.int64),
        ("bag", np.int64),  # bags and ids that are packed
        ("id", np.int64),
    ]
)
ROUTE = np.dtype(
    [
        ("first", np.int64),  # bands first … last-1 are those of a reader's table
        ("last", np.int64),
    ]
)
WEIGHTED = 256


@kernel
def count_wires(lanes, routes, bands, wires, lo, hi):
    """Set bags, ids and flags of the wires of readers lo … hi-1.

    lanes: (S,) LANE of the batch; routes: (S,) ROUTE. bands: (ends, starts, targets): band i has the rows
    below ends[i] that the one before has not, and goes to wires targets[starts[i]:starts[i + 1]].
    """
    ends, starts, targets = bands
    for k in range(lo, hi):
        lane, route = lanes[k], routes[k]
        offsets, largest = int64_at(lane.offsets), np.int64(0)
        for b in range(lane.bags if route.first < route.last else 0):
            largest = max(largest, offsets[b + 1] - offsets[b])
            for i in range(offsets[b], offsets[b + 1]):
                band = _band(ends, route, _id(lane, i))
                for t in range(starts[band], starts[band + 1]):
                    wire = wires[targets[t]]
                    wire.ids += 1
                    wire.bags += wire.last != b
                    wire.last = b
        for t in range(starts[route.first], starts[route.last]):
            _set_flags(wires[targets[t]], largest, lane.weights != 0)


@inlined
def _band(ends, route, row):
    """The first band that ends beyond `row`. No branch depends on it: it would be guessed wrong."""
    band, left = route.first, route.last - route.first
    while left > 1:
        half = left >> 1
        band += half * (row >= ends[band + half - 1])
        left -= half
    return band


@inlined
def _id(lane, i):
    return np.int64(uint32_at(lane.ids)[i]) if lane.narrow else int64_at(lane.ids)[i]


@inlined
def _set_flags(wire, largest, weighted):
    """largest: number of ids of the largest bag, in all shards."""
    if wire.apart:
        wire.bags = wire.ids
    lengths = _bytes_for(largest) if wire.bags < wire.ids else 0
    sizes = _bytes_for(largest) if wire.cut else 0
    wire.flags = lengths + 16 * sizes + WEIGHTED * weighted
    wire.last = -1


@inlined
def _bytes_for(number):
    return 1 if number < 1 << 8 else (2 if number < 1 << 16 else 4)


@kernel
def lay_out(wires, sizes):
    """Set where in the messages everything lies. wires: by peer; sizes: (W,) i8, bytes for each peer."""
    begin, first = 0, 0
    for peer in range(sizes.shape[0]):
        last, at = first, begin
        while last < wires.shape[0] and wires[last].peer == peer:
            last += 1
        for item in (4, 2, 1):
            for k in range(first, last):
                at = _lay_out_items(wires[k], item, at)
        sizes[peer] = (at - begin + 3) & ~3  # so that the next one's items lie right as well
        begin, first = begin + sizes[peer], last


@inlined
def _lay_out_items(wire, item, at):
    """Those of `item` bytes -> where they end."""
    if item == 4 and wire.flags & WEIGHTED:
        wire.weights = at
        at += item * wire.ids
    if wire.flags >> 4 & 15 == item:
        wire.sizes = at
        at += item * wire.bags
    if wire.flags & 15 == item:
        wire.lengths = at
        at += item * wire.bags
    if wire.id_bytes == item:
        wire.rows = at
        at += item * wire.ids
    return at


@kernel
def pack_wires(lanes, routes, bands, wires, message, places, origins, lo, hi):
    """Write the wires of readers lo … hi-1 to the message; see `count_wires`.

    message: (bytes,) u1. places: (bags,) u4, which bag of the lane each is. origins: (ids,) u4, which id of
    the lane each is, or (0,) if nobody wants to know.
    """
    ends, starts, targets = bands
    base = message.ctypes.data
    for k in range(lo, hi):
        lane, route = lanes[k], routes[k]
        offsets, weights = int64_at(lane.offsets), float32_at(lane.weights)
        for b in range(lane.bags if route.first < route.last else 0):
            for i in range(offsets[b], offsets[b + 1]):
                row = _id(lane, i)
                band = _band(ends, route, row)
                for t in range(starts[band], starts[band + 1]):
                    wire = wires[targets[t]]
                    if wire.apart or wire.last != b:
                        places[wire.place + wire.bag] = b
                        _begin_bag(wire, b, offsets[b + 1] - offsets[b], base)
                    if origins.shape[0]:
                        origins[wire.origin + wire.id] = i - offsets[0]
                    if wire.flags & WEIGHTED:
                        float32_at(base + wire.weights)[wire.id] = weights[i]
                    _put(base + wire.rows, wire.id_bytes, wire.id, row - wire.first_row)
                    wire.id += 1
        for t in range(starts[route.first], starts[route.last]):
            _end_bag(wires[targets[t]], base)


@inlined
def _begin_bag(wire, b, size, base):
    """Bag b, which has `size` ids in all shards, after the one before has ended."""
    _end_bag(wire, base)
    _put(base + wire.sizes, wire.flags >> 4 & 15, wire.bag, size)
    wire.last, wire.begin = b, wire.id
    wire.bag += 1


@inlined
def _end_bag(wire, base):
    if wire.bag:
        _put(base + wire.lengths, wire.flags & 15, wire.bag - 1, wire.id - wire.begin)


@inlined
def _put(address, item, i, number):
    """Write `number` as the i-th of items of `item` bytes; none has 0."""
    if item == 1:
        uint8_at(address)[i] = np.uint8(number)
    elif item == 2:
        uint16_at(address)[i] = np.uint16(number)
    elif item == 4:
        uint32_at(address)[i] = np.uint32(number)


@inlined
def _get(address, item, i):
    if item == 1:
        return np.uint32(uint8_at(address)[i])
    if item == 2:
        return np.uint32(uint16_at(address)[i])
    return uint32_at(address)[i]


@kernel
def unpack_wires(wires, message, counting, offsets, numbers, lanes, lo, hi):
    """Make wires lo … hi-1 that have arrived lanes: ids, offsets, weights, sizes, bags, count.

    message: (bytes,) u1. counting: (N + 1,) i8, 0, 1, …, where N is the most bags. What cannot be read where
    it lies goes to `offsets` i8 and `numbers` u4, for each wire from where `place` and `origin` say.
    """
    base = message.ctypes.data
    for k in range(lo, hi):
        wire, lane = wires[k], lanes[k]
        lane.bags, lane.count, lane.narrow = wire.bags, wire.ids, 1
        lane.weights = base + wire.weights if wire.flags & WEIGHTED else 0
        lane.offsets, at = counting.ctypes.data, wire.origin
        if wire.flags & 15:
            lane.offsets = offsets.ctypes.data + 8 * wire.place
            _sum_lengths(wire, base, offsets)
        lane.ids, at = _read(base + wire.rows, wire.id_bytes, wire.ids, numbers, at)
        lane.sizes, at = _read(base + wire.sizes, wire.flags >> 4 & 15, wire.bags, numbers, at)


@inlined
def _sum_lengths(wire, base, offsets):
    total = np.int64(0)
    for b in range(wire.bags):
        offsets[wire.place + b] = total
        total += np.int64(_get(base + wire.lengths, wire.flags & 15, b))
    offsets[wire.place + wire.bags] = total


@inlined
def _read(address, item, count, numbers, at):
    """(where `count` items lie as u4, where in `numbers` to go on); 0 for items of 0 bytes."""
    if item == 0 or item == 4:
        return address if item else 0, at
    for i in range(count):
        numbers[at + i] = _get(address, item, i)
    return numbers.ctypes.data + 4 * at, at + count


@kernel
def count_ids(lanes):
    """Set `count` of lanes whose bags are some of those that they had."""
    for k in range(lanes.shape[0]):
        offsets = int64_at(lanes[k].offsets)
        lanes[k].count = offsets[lanes[k].bags] - offsets[0]


@kernel
def first_id(lanes):
    """The position of the first id of the first of `lanes`."""
    return int64_at(lanes[0].offsets)[0]
