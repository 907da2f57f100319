"""What a plan under search costs, kept up to date while pieces move.

Seconds are columns 0 … K-1: what a rank, or a link of it, does in a part of the step is the sum of what lies
there, and everybody waits for the busiest. Each column has a tree of maxima over the ranks, one for each kind
of ranks, so that a move costs a few steps up the tree. Bytes are columns K …, one for each memory tier.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tesserec.embeddings.kernels.jit import inlined, kernel

NOTHING = 1e-13  # seconds: what rounding leaves where pieces came and went
MANY = 16  # pieces of an option, from which on all maxima are made anew at once
TABLE = np.dtype(
    [
        ("first_option", np.int64),
        ("first_slot", np.int64),  # room for the ranks of its pieces, whichever option it has
        ("mask", np.int64),  # which of `masks` says where it may be
        ("movable", np.bool_),
    ]
)
OPTION = np.dtype(
    [
        ("first_piece", np.int64),
        ("price", np.float64),  # what it costs to choose it
    ]
)
PIECE = np.dtype(
    [
        ("load", np.int64),  # which of `own` it is
        (
            "group",
            np.int64,
        ),  # pieces of one group share a host, those of different groups do not; -1: anywhere
        ("home", np.int64),  # the rank where it is now, or -1
        ("leave", np.float64),  # what it costs to be elsewhere
    ]
)
RANK = np.dtype([("kind", np.int64), ("host", np.int64)])
COLUMN = np.dtype(
    [
        (
            "phase",
            np.int64,
        ),  # phases follow each other, the columns of one go side by side; -1: beside them all
        ("offset", np.float64),  # seconds that come to such a column
    ]
)
PHASE = np.dtype(
    [
        ("fixed", np.float64),  # what it takes besides, if it takes anything
        ("hides", np.bool_),  # whether other work goes on meanwhile: `late` of the rule
    ]
)
RULE = np.dtype([("late", np.float64), ("penalty", np.float64)])  # seconds; cost of a byte too much
SLOT = np.dtype(
    [
        ("rank", np.int64),  # of the piece, -1 for none
        ("after", np.int64),  # the next slot on the same rank, round and round
        ("before", np.int64),
        ("table", np.int64),
    ]
)
COUNTERS = np.dtype([("random", np.uint64), ("work", np.int64)])  # work: places looked at


class Problem(NamedTuple):
    """T tables, O options, P pieces of options, L distinct loads, W ranks of G kinds, K + M = C columns."""

    tables: Any  # (T+1,) TABLE
    options: Any  # (O+1,) OPTION
    pieces: Any  # (P,) PIECE
    own: Any  # (G, L, C) on the holder of a piece
    every: Any  # (G, O, C) on every rank
    masks: Any  # (n, W) ranks that a table may be on
    ranks: Any  # (W,) RANK
    first_rank: Any  # (H+1,) of each host
    first_of_kind: Any  # (G+1,) the ranks of a kind follow each other
    columns: Any  # (K,) COLUMN
    phases: Any  # (phases,) PHASE
    caps: Any  # (W, M)
    rule: Any  # (1,) RULE


class State(NamedTuple):
    """One plan."""

    choice: Any  # (T,) option of each table
    slots: Any  # (slots,) SLOT
    tree: Any  # (K, G, 2S)
    memory: Any  # (W, M)
    every: Any  # (G, C)
    head: Any  # (W,) a slot on the rank, or -1
    sums: Any  # (2,) prices; bytes too much
    counters: Any  # (1,) COUNTERS
    tops: Any  # (K,) scratch: the busiest of each column
    phases: Any  # (phases,) scratch
    costs: Any  # (W,) scratch: of each rank, for a piece
    used: Any  # (W,) scratch: whether it has a piece of the table
    grown: Any  # (phases, W) scratch: of a phase, if a piece goes to the rank
    beside: Any  # (W,) scratch: the same of what goes on beside


@inlined
def set_leaf(tree, i, value):
    """tree[i] = value, and the maxima above it."""
    tree[i] = value
    i >>= 1
    while i >= 1:
        top = max(tree[2 * i], tree[2 * i + 1])
        if tree[i] == top:
            break
        tree[i] = top
        i >>= 1


@kernel
def over(p, s, r):
    """Bytes that rank r has too much."""
    total, g, columns = 0.0, p.ranks[r].kind, s.tree.shape[0]
    for m in range(p.caps.shape[1]):
        total += max(0.0, s.memory[r, m] + s.every[g, columns + m] - p.caps[r, m])
    return total


@inlined
def add_to_rank(p, s, r, load, sign, many):
    """The seconds and bytes `load` (C,) come to rank r, or go. many: more will come; then `raise_maxima`."""
    g, columns, leaves = p.ranks[r].kind, s.tree.shape[0], s.tree.shape[2] // 2
    for k in range(columns):
        if load[k] != 0.0:
            tree = s.tree[k, g]
            if many:
                tree[leaves + r] += sign * load[k]
            else:
                set_leaf(tree, leaves + r, tree[leaves + r] + sign * load[k])
    s.sums[1] -= over(p, s, r)
    for m in range(p.caps.shape[1]):
        s.memory[r, m] += sign * load[columns + m]
    s.sums[1] += over(p, s, r)


@kernel
def add_piece(p, s, piece, r, sign, many):
    """A piece comes to rank r (sign 1), or goes (-1)."""
    add_to_rank(p, s, r, p.own[p.ranks[r].kind, p.pieces[piece].load], sign, many)
    if p.pieces[piece].home >= 0 and p.pieces[piece].home != r:
        s.sums[0] += sign * p.pieces[piece].leave
    s.counters[0].work += 1


@kernel
def raise_maxima(s):
    """Make the trees right after many leaves were changed."""
    for k in range(s.tree.shape[0]):
        for g in range(s.tree.shape[1]):
            tree = s.tree[k, g]
            for i in range(tree.shape[0] // 2 - 1, 0, -1):
                tree[i] = max(tree[2 * i], tree[2 * i + 1])


@kernel
def add_everywhere(p, s, option, sign):
    """What an option puts on every rank comes, or goes."""
    columns, grew = s.tree.shape[0], False
    for g in range(s.every.shape[0]):
        for c in range(s.every.shape[1]):
            s.every[g, c] += sign * p.every[g, option, c]
            grew = grew or (c >= columns and p.every[g, option, c] != 0.0)
    if grew:
        s.sums[1] = 0.0
        for r in range(p.caps.shape[0]):
            s.sums[1] += over(p, s, r)
    s.sums[0] += sign * p.options[option].price


@kernel
def link(s, slot, r):
    """The piece at `slot` is among those of rank r."""
    s.slots[slot].rank = r
    first = s.head[r]
    if first < 0:
        s.slots[slot].after, s.slots[slot].before = slot, slot
    else:
        last = s.slots[first].before
        s.slots[last].after, s.slots[slot].before = slot, last
        s.slots[slot].after, s.slots[first].before = first, slot
    s.head[r] = slot


@kernel
def unlink(s, slot):
    """It no longer is."""
    r, after, before = s.slots[slot].rank, s.slots[slot].after, s.slots[slot].before
    if after == slot:
        s.head[r] = -1
    else:
        s.slots[before].after, s.slots[after].before = after, before
        if s.head[r] == slot:
            s.head[r] = after
    s.slots[slot].rank = -1


@kernel
def put(p, s, slot, piece, r, many):
    """A piece on rank r."""
    link(s, slot, r)
    add_piece(p, s, piece, r, 1.0, many)


@kernel
def take(p, s, slot, piece, many):
    """The rank that a piece was on."""
    r = s.slots[slot].rank
    unlink(s, slot)
    add_piece(p, s, piece, r, -1.0, many)
    return r


@kernel
def take_table(p, s, t, ranks):
    """A table leaves the plan; `ranks` gets where its pieces were. Returns its option."""
    option, slot = s.choice[t], p.tables[t].first_slot
    first, last = p.options[option].first_piece, p.options[option + 1].first_piece
    for i in range(last - first):
        ranks[i] = take(p, s, slot + i, first + i, last - first > MANY)
    if last - first > MANY:
        raise_maxima(s)
    add_everywhere(p, s, option, -1.0)
    s.choice[t] = -1
    return option


@kernel
def put_table(p, s, t, option, ranks):
    """A table comes back, its pieces on `ranks`."""
    slot, first, last = (
        p.tables[t].first_slot,
        p.options[option].first_piece,
        p.options[option + 1].first_piece,
    )
    s.choice[t] = option
    add_everywhere(p, s, option, 1.0)
    for i in range(last - first):
        put(p, s, slot + i, first + i, ranks[i], last - first > MANY)
    if last - first > MANY:
        raise_maxima(s)


@inlined
def column_top(s, k):
    """Seconds of the busiest place of column k."""
    top = -np.inf
    for g in range(s.tree.shape[1]):
        top = max(top, s.tree[k, g, 1] + s.every[g, k])
    return top


@kernel
def total_of(p, tops, phases):
    """Seconds of a step, of the busiest (K,) of each column. phases: scratch.

    The phases one after the other and what is late then, or what goes on beside if that takes longer.
    """
    beside = 0.0
    phases[:] = 0.0
    for k in range(tops.shape[0]):
        i = p.columns[k].phase
        if i < 0:
            beside = max(beside, tops[k] + p.columns[k].offset)
        else:
            phases[i] = max(phases[i], tops[k])
    total, late = 0.0, p.rule[0].late
    for i in range(phases.shape[0]):
        if phases[i] > NOTHING:
            phases[i] += p.phases[i].fixed
        total += phases[i]
        if p.phases[i].hides:
            late -= phases[i]
    return max(total + max(0.0, late), beside)


@kernel
def step_seconds(p, s):
    """Seconds of a step."""
    for k in range(s.tree.shape[0]):
        s.tops[k] = column_top(s, k)
    return total_of(p, s.tops, s.phases)


@kernel
def objective(p, s):
    """What search makes small: seconds, prices, and bytes too much at their penalty."""
    return step_seconds(p, s) + s.sums[0] + p.rule[0].penalty * s.sums[1]


@inlined
def random(s):
    """A number of 64 bits (splitmix64: Steele, Lea, Flood, OOPSLA 2014)."""
    s.counters[0].random += np.uint64(0x9E3779B97F4A7C15)
    z = s.counters[0].random
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@inlined
def below(s, n):
    """A number of 0 … n-1."""
    return np.int64((random(s) >> np.uint64(33)) % np.uint64(n))
