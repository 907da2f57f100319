"""Ranks for the pieces of an option: each goes where the step grows least, and where it fits.

Where two ranks are equal in that, the piece goes to the one that has less of what it has much of; `pack`
weighs how full the rank is then, for plans that hardly fit.
"""

from __future__ import annotations

import numpy as np

from tesserec.embeddings.kernels.jit import inlined, kernel
from tesserec.sharding.planner.kernels.state import (
    MANY,
    NOTHING,
    Problem,
    State,
    add_everywhere,
    objective,
    put,
    put_table,
    raise_maxima,
    step_seconds,
    take,
)

IN_TURN = 8  # pieces of an option, that many at most, each look at the ranks anew
FEW = 64  # if these are not more
_BALANCE = 1e-2  # of a second of the step, what a second on a rank with much to do counts


@kernel
def rank_costs(p: Problem, s: State, t, piece, pack, lo, hi):
    """Set costs[r] for ranks lo … hi-1: what the objective grows if `piece` goes there; inf where it may not.

    Column by column, so that a processor looks at several ranks at once.
    """
    load, now = p.pieces[piece].load, step_seconds(p, s)
    s.costs[lo:hi] = 0.0
    for i in range(s.phases.shape[0]):
        s.grown[i, lo:hi] = 0.0
    s.beside[lo:hi] = 0.0
    for k in range(s.tree.shape[0]):
        for g in range(s.tree.shape[1]):
            first, last = max(lo, p.first_of_kind[g]), min(hi, p.first_of_kind[g + 1])
            _grow(p, s, k, g, p.own[g, load, k], first, last)
    _total(p, s, lo, hi)
    home, leave = p.pieces[piece].home, p.pieces[piece].leave
    for r in range(lo, hi):
        if s.used[r] or not p.masks[p.tables[t].mask, r]:
            s.costs[r] = np.inf
        else:
            s.costs[r] += _crowding(p, s, load, r, pack) - now
            if home >= 0 and home != r:
                s.costs[r] += leave
    s.counters[0].work += hi - lo


@inlined
def _grow(p, s, k, g, own, first, last):
    """Seconds of column k on each of the ranks, with `own` more, in their phase; and the cost of balance."""
    leaves, top, every = s.tree.shape[2] // 2, s.tops[k], s.every[g, k]
    found = s.tree[k, g, leaves + first : leaves + last]
    phase, n = p.columns[k].phase, last - first
    grown = s.beside[first:last] if phase < 0 else s.grown[phase, first:last]
    more = own + every + (p.columns[k].offset if phase < 0 else 0.0)
    if phase < 0:
        top += p.columns[k].offset
    for i in range(n):
        grown[i] = max(grown[i], max(top, found[i] + more))
    if own != 0.0:
        costs, weight = s.costs[first:last], _BALANCE * own / max(top, 1e-30)
        for i in range(n):
            costs[i] += weight * (found[i] + every)


@inlined
def _total(p, s, lo, hi):
    """Add to the costs of ranks lo … hi-1 what a step takes then: as `total_of`."""
    for i in range(s.phases.shape[0]):
        if p.phases[i].fixed > 0.0:
            for r in range(lo, hi):
                s.grown[i, r] += p.phases[i].fixed if s.grown[i, r] > NOTHING else 0.0
    for r in range(lo, hi):
        total, late = 0.0, p.rule[0].late
        for i in range(s.phases.shape[0]):
            total += s.grown[i, r]
            late -= s.grown[i, r] if p.phases[i].hides else 0.0
        s.costs[r] += max(total + max(0.0, late), s.beside[r])


@kernel
def _crowding(p, s, load, r, pack):
    """What it costs that rank r is full: the penalty of bytes too much, and `pack` of the room left."""
    g, columns, lacking, cost = p.ranks[r].kind, s.tree.shape[0], 0.0, 0.0
    for m in range(p.caps.shape[1]):
        need = p.own[g, load, columns + m]
        if need != 0.0:
            left = p.caps[r, m] - s.memory[r, m] - s.every[g, columns + m] - need
            lacking += max(0.0, -left) - max(0.0, -left - need)
            cost += pack * left / max(p.caps[r, m], 1.0)
    return p.rule[0].penalty * lacking + cost


@kernel
def place_table(p: Problem, s: State, t, option, pack):
    """Give a table without a place the option, and its pieces the cheapest ranks. False if it cannot."""
    piece, last = p.options[option].first_piece, p.options[option + 1].first_piece
    first, hosts = p.tables[t].first_slot - piece, p.first_rank.shape[0] - 1
    taken = np.zeros(hosts, np.bool_)
    s.choice[t] = option
    add_everywhere(p, s, option, 1.0)
    s.used[:] = False
    while piece < last:
        end, lo, hi = last, 0, p.caps.shape[0]
        if p.pieces[piece].group >= 0:
            end = _end_of_group(p, piece, last)
            host = _host_for(p, s, t, piece, end - piece, pack, taken)
            if host == hosts:
                return False
            taken[host] = True
            lo, hi = p.first_rank[host], p.first_rank[host + 1]
        if not _place_pieces(p, s, t, first, piece, end, lo, hi, pack):
            return False
        piece = end
    return True


@kernel
def _place_pieces(p, s, t, first, piece, end, lo, hi, pack):
    """Pieces `piece` … end-1, at slots `first` and their number, on ranks lo … hi-1. False if it cannot.

    On many ranks, or of many pieces, all are placed by one look at the ranks.
    """
    count = end - piece
    in_turn, sorting = count <= IN_TURN and hi - lo <= FEW, count > IN_TURN
    order = np.arange(lo, hi if sorting else lo)
    for i in range(count):
        if in_turn or i == 0:
            rank_costs(p, s, t, piece + i, pack, lo, hi)
            if sorting:
                _sort(order, s.costs)
        r = order[i] if sorting else lo + np.argmin(s.costs[lo:hi])
        if s.costs[r] == np.inf:
            raise_maxima(s)
            return False
        s.costs[r] = np.inf
        s.used[r] = True
        put(p, s, first + piece + i, piece + i, r, count > MANY)
    if count > MANY:
        raise_maxima(s)
    return True


@kernel
def _sort(order, costs):
    """Sort `order` by costs[order], equal ones by number (Shell 1959; gaps of powers of 2 less 1)."""
    n, gap = order.shape[0], 1
    while gap < n // 2:
        gap = 2 * gap + 1
    while gap > 0:
        for i in range(gap, n):
            r, j = order[i], i
            while j >= gap and _after(order[j - gap], r, costs):
                order[j] = order[j - gap]
                j -= gap
            order[j] = r
        gap //= 2


@inlined
def _after(a, b, costs):
    return costs[a] > costs[b] or (costs[a] == costs[b] and a > b)


@inlined
def _end_of_group(p, piece, last):
    end = piece + 1
    while end < last and p.pieces[end].group == p.pieces[piece].group:
        end += 1
    return end


@kernel
def _host_for(p, s, t, piece, count, pack, taken):
    """The host whose `count` cheapest ranks for a piece are cheapest, by the last; else the number of all."""
    rank_costs(p, s, t, piece, pack, 0, p.caps.shape[0])
    best, least = taken.shape[0], np.inf
    for host in range(taken.shape[0]):
        lo, hi = p.first_rank[host], p.first_rank[host + 1]
        if not taken[host] and hi - lo >= count:
            order = np.arange(lo, hi)
            _sort(order, s.costs)
            cost = s.costs[order[count - 1]]
            if cost < least:
                best, least = host, cost
    return best


@kernel
def forget_table(p: Problem, s: State, t):
    """Take what there is of a table out of the plan, however much of it had been placed."""
    option, slot = s.choice[t], p.tables[t].first_slot
    first, last = p.options[option].first_piece, p.options[option + 1].first_piece
    for i in range(last - first):
        if s.slots[slot + i].rank >= 0:
            take(p, s, slot + i, first + i, last - first > MANY)
    if last - first > MANY:
        raise_maxima(s)
    add_everywhere(p, s, option, -1.0)
    s.choice[t] = -1


@kernel
def cheapest_option(p: Problem, s: State, t, weight, pack):
    """(the option with which a table without a place makes the objective least, the objective); -1 for none.

    weight: (O,) what an option costs besides.
    """
    best, least = -1, np.inf
    for option in range(p.tables[t].first_option, p.tables[t + 1].first_option):
        if place_table(p, s, t, option, pack):
            cost = objective(p, s) + weight[option]
            if cost < least:
                best, least = option, cost
        forget_table(p, s, t)
    return best, least


@kernel
def build(p: Problem, s: State, order, choice, weight, pack):
    """Place the tables of `order`: with options `choice` (T,), or the cheapest for -1. False if it cannot."""
    for i in range(order.shape[0]):
        t, option = order[i], choice[order[i]]
        if option < 0:
            option, _ = cheapest_option(p, s, t, weight, pack)
        if option < 0 or not place_table(p, s, t, option, pack):
            return False
    return True


@kernel
def restore(p: Problem, s: State, choice, where):
    """Place all tables as a snapshot has them."""
    for t in range(choice.shape[0]):
        put_table(p, s, t, choice[t], where[p.tables[t].first_slot : p.tables[t + 1].first_slot])
