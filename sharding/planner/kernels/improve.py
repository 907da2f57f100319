"""Plans made better by moving a piece, swapping two, or giving a table another option."""

from __future__ import annotations

import numpy as np

from tesserec.embeddings.kernels.jit import inlined, kernel
from tesserec.sharding.planner.kernels.place import cheapest_option, forget_table, place_table
from tesserec.sharding.planner.kernels.state import (
    Problem,
    State,
    below,
    column_top,
    objective,
    put,
    put_table,
    take,
    take_table,
)

_TINY = 1e-12  # of the objective: what counts as better


@kernel
def better_options(p: Problem, s: State, order, weight, until):
    """Give each table of `order` the option and ranks that cost least while all else is kept.

    Stops when `until` places have been looked at. Returns how many tables it has done.
    """
    for i in range(order.shape[0]):
        if s.counters[0].work >= until:
            return i
        if p.tables[order[i]].movable:
            _better_option(p, s, order[i], weight)
    return order.shape[0]


@kernel
def _better_option(p, s, t, weight):
    ranks = np.empty(p.tables[t + 1].first_slot - p.tables[t].first_slot, np.int64)
    now = objective(p, s)
    kept = take_table(p, s, t, ranks)
    best, least = cheapest_option(p, s, t, weight, 0.0)
    if best >= 0 and least < now - abs(now) * _TINY:
        place_table(p, s, t, best, 0.0)
    else:
        put_table(p, s, t, kept, ranks)


@kernel
def wander(p: Problem, s: State, moves, slack, slack_after, most_pieces):
    """So many random moves; one is kept if the objective is at most a little worse than the best until then.

    slack, slack_after: how much worse, at first and at last (record-to-record travel: Dueck 1993).
    """
    ranks = np.empty(most_pieces, np.int64)
    best = objective(p, s)
    for i in range(moves):
        limit = best + slack + (slack_after - slack) * i / moves
        kind = below(s, 8)
        slot = _some_slot(p, s, kind % 2 == 0)
        t = below(s, s.choice.shape[0]) if slot < 0 else s.slots[slot].table
        if not p.tables[t].movable:
            continue
        if kind < 2 or slot < 0:
            _change_option(p, s, t, ranks, limit)
        elif kind < 5:
            _move(p, s, slot, limit)
        else:
            _swap(p, s, slot, limit)
        best = min(best, objective(p, s))


@kernel
def _some_slot(p, s, busiest):
    """A piece of the busiest place of some column, or of some rank; -1 where there is none."""
    r = below(s, s.head.shape[0])
    if busiest:
        k = below(s, s.tree.shape[0])
        r = _busiest_rank(p, s, k, r)
    slot = s.head[r]
    if slot >= 0:
        for _ in range(below(s, 8)):
            slot = s.slots[slot].after
        s.head[r] = slot
    return slot


@kernel
def _busiest_rank(p, s, k, r):
    """A rank of the busiest place of column k, the next one from r on."""
    top, leaves, n = column_top(s, k), s.tree.shape[2] // 2, s.head.shape[0]
    for _ in range(n):
        g = p.ranks[r].kind
        if s.tree[k, g, leaves + r] + s.every[g, k] >= top:
            break
        r = r + 1 if r + 1 < n else 0
    return r


@kernel
def _change_option(p, s, t, ranks, limit):
    """Another option, or the same placed anew."""
    count = p.tables[t + 1].first_option - p.tables[t].first_option
    option = p.tables[t].first_option + below(s, count)
    kept = take_table(p, s, t, ranks)
    if not place_table(p, s, t, option, 0.0) or objective(p, s) > limit:
        forget_table(p, s, t)
        put_table(p, s, t, kept, ranks)


@inlined
def _piece_at(p, s, slot):
    t = s.slots[slot].table
    return p.options[s.choice[t]].first_piece + slot - p.tables[t].first_slot


@kernel
def _may_go(p, s, slot, r, aside):
    """Whether the piece at `slot` may be on rank r, if that at `aside` is not there."""
    t = s.slots[slot].table
    if not p.masks[p.tables[t].mask, r]:
        return False
    option, first = s.choice[t], p.tables[t].first_slot
    if (
        p.pieces[p.options[option].first_piece].group >= 0
        and p.ranks[r].host != p.ranks[s.slots[slot].rank].host
    ):
        return False
    for i in range(p.options[option + 1].first_piece - p.options[option].first_piece):
        if s.slots[first + i].rank == r and first + i != aside:
            return False
    return True


@kernel
def _move(p, s, slot, limit):
    """A piece to another rank."""
    r, piece = below(s, s.head.shape[0]), _piece_at(p, s, slot)
    if _may_go(p, s, slot, r, -1):
        old = take(p, s, slot, piece, False)
        put(p, s, slot, piece, r, False)
        if objective(p, s) > limit:
            take(p, s, slot, piece, False)
            put(p, s, slot, piece, old, False)


@kernel
def _swap(p, s, slot, limit):
    """A piece for one of another rank."""
    other = _some_slot(p, s, False)
    if other < 0 or not p.tables[s.slots[other].table].movable:
        return
    a, b = s.slots[slot].rank, s.slots[other].rank
    if a != b and _may_go(p, s, slot, b, other) and _may_go(p, s, other, a, slot):
        one, two = _piece_at(p, s, slot), _piece_at(p, s, other)
        _exchange(p, s, slot, other, one, two)
        if objective(p, s) > limit:
            _exchange(p, s, slot, other, one, two)


@kernel
def _exchange(p, s, slot, other, one, two):
    a, b = take(p, s, slot, one, False), take(p, s, other, two, False)
    put(p, s, slot, one, b, False)
    put(p, s, other, two, a, False)
