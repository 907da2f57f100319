"""Shared rows: the gradients of rectangles that several ranks hold, summed over these.

Each rank sums what it has, row by row, and only rows that it touched travel. Where ranks touched few rows in
common, each tells all others, and all add up. Where they touched many, each row has one of them that adds up,
and tells all the sum: about 2 messages of each row for every rank, however many there are. Sums are made in
the order of the ranks, so replicas stay the same, to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.embeddings.kernels.lookup import LANE
from tesserec.embeddings.pool import Pool
from tesserec.embeddings.rowgrad import Part, RowGrad
from tesserec.sharding.codecs import Codec
from tesserec.sharding.comm import Comm
from tesserec.sharding.dist import Blocks, firsts, send_vectors
from tesserec.sharding.route import Holding, bytes_for

Array = npt.NDArray[Any]
Rows = tuple[Array, Array]  # ids (n,) in a rectangle, gradients (n, width)

_SKEW = 1.15


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rectangle is on this rank: the `position`-th table of pool `pool`."""

    rectangle: Holding
    pool: int
    position: int


class SharedRows:
    """The rectangles that this rank shares with others, of one type of gradient.

    places: in an order that is the same on all ranks that have them. A share is a place and one of its ranks:
    what is sent to that rank, or comes from it.
    """

    def __init__(
        self,
        places: Sequence[Place],
        pools: Sequence[Pool],
        num_ranks: int,
        dtype: np.dtype[Any],
        *,
        most: int,
    ):
        """most: how many ranks share a rectangle, at most, anywhere: it is the same on every rank."""
        self.places, self.pools, self.may_meet = list(places), list(pools), most > 2
        self.dtype = dtype
        pairs = [(r, i) for r in range(num_ranks) for i, q in enumerate(places) if r in q.rectangle.ranks]
        self.peers, self.place_of = np.array(pairs, np.int64).reshape(-1, 2).T
        holders = [places[i].rectangle.ranks for _, i in pairs]
        self.shares = [(i, (held.index(r), len(held))) for (r, i), held in zip(pairs, holders, strict=True)]
        self.id_types = [np.dtype(f"u{bytes_for(q.rectangle.height - 1)}") for q in places]
        self.lanes = np.zeros(len(pairs), LANE)
        for lane, i in zip(self.lanes, self.place_of, strict=True):
            q = places[i]
            lane["table"], lane["first_row"] = q.position, pools[q.pool].bounds[q.position]
            lane["num_rows"], lane["narrow"], lane["stride"] = q.rectangle.height, 1, q.rectangle.width
        self.pool_of = np.array([places[i].pool for i in self.place_of], np.int64)

    def sum(self, grads: Sequence[RowGrad], codec: Codec, comm: Comm) -> list[list[Part]]:
        """For each pool, what all ranks have for the tables that it shares. Collective.

        grads: what this rank has for them.
        """
        touched = self._touched(grads)
        if not self.may_meet:
            return self._parts(*self._told([touched[i] for i in self.place_of], codec, comm))
        meets = self._meets([len(ids) for ids, _ in touched], comm)
        mine = [touched[i] if not meets[i] else _every(*touched[i], *turn) for i, turn in self.shares]
        lanes, held = self._told(mine, codec, comm)
        met = meets[self.place_of]
        found = self._parts(lanes, held, ~met)
        sums = self._touched(
            [self._row_grad(p, parts) for p, parts in enumerate(self._parts(lanes, held, met))]
        )
        told = self._parts(*self._told([sums[i] for i in self.place_of], codec, comm))
        return [before + after for before, after in zip(found, told, strict=True)]

    def _row_grad(self, p: int, parts: list[Part]) -> RowGrad:
        pool = self.pools[p]
        return RowGrad(pool.bounds, pool.shape[1], pool.compute_dtype, parts)

    def _touched(self, grads: Sequence[RowGrad]) -> list[Rows]:
        """For each place, the ids and the gradients of the rows that have one."""
        cuts = [np.searchsorted(grad.rows, grad.bounds) for grad in grads]
        found = []
        for q in self.places:
            grad = grads[q.pool]
            span = slice(*cuts[q.pool][q.position : q.position + 2])
            found.append((grad.rows[span] - grad.bounds[q.position], grad.values[span]))
        return found

    def _meets(self, counts: Sequence[int], comm: Comm) -> Array:
        """Of each place, whether its rows are to be added up by one rank each. counts: rows touched here.

        That is so where less would travel if ranks had touched rows independently of each other; or a little
        more, because some ids are more frequent than others, and those ranks have in common.
        """
        ones = np.ones(len(self.place_of), np.int64)
        mine = np.array(counts, np.uint32)[self.place_of]
        touched = self._sent(mine, ones, ones, comm).astype(np.float64)
        heights = np.array([q.rectangle.height for q in self.places], np.float64)
        ranks = np.array([len(q.rectangle.ranks) for q in self.places])
        missed = np.ones(len(self.places))
        np.multiply.at(missed, self.place_of, 1 - touched / heights[self.place_of])
        total = np.bincount(self.place_of, touched, len(self.places))
        met: Array = heights * (1 - missed) < _SKEW * total * (1 - 1 / ranks)
        return met

    def _told(self, mine: Sequence[Rows], codec: Codec, comm: Comm) -> tuple[Array, tuple[Any, ...]]:
        """(LANE for each share that comes, what they give addresses of). mine: of each share that is sent."""
        counts = np.array([len(ids) for ids, _ in mine], np.int64)
        ones = np.ones_like(counts)
        arriving = self._sent(counts.astype(np.uint32), ones, ones, comm).astype(np.int64)
        ids = self._sent_ids([ids for ids, _ in mine], counts, arriving, comm)
        there, back = (Blocks(n, self.lanes["stride"], self.peers) for n in (counts, arriving))
        values = np.concatenate([np.empty(0, self.dtype), *(values.reshape(-1) for _, values in mine)])
        found = send_vectors(_own_as_sent(values, there, codec, comm.rank), there, back, codec, comm)
        lanes, counting = self.lanes.copy(), np.arange(arriving.max(initial=0) + 1)
        lanes["bags"], lanes["count"], lanes["offsets"] = arriving, arriving, counting.ctypes.data
        lanes["ids"] = ids.ctypes.data + ids.itemsize * firsts(arriving)
        lanes["grad"] = found.ctypes.data + found.itemsize * firsts(arriving * lanes["stride"])
        return lanes, (counting, ids, found)

    def _sent(self, items: Array, there: Array, back: Array, comm: Comm) -> Array:
        """there, back: how many items of each share."""
        sizes = (np.bincount(self.peers, n, comm.size).astype(int).tolist() for n in (there, back))
        return comm.all_to_all(items, *sizes)[0]

    def _sent_ids(self, ids: Sequence[Array], counts: Array, arriving: Array, comm: Comm) -> Array:
        """The ids of all shares that come, one share after the other; they travel in the fewest bytes."""
        kinds = [self.id_types[i] for i in self.place_of]
        widths = np.array([kind.itemsize for kind in kinds], np.int64)
        parts = [part.astype(kind).view(np.uint8) for part, kind in zip(ids, kinds, strict=True)]
        joined = np.concatenate([np.empty(0, np.uint8), *parts])
        data = self._sent(joined, counts * widths, arriving * widths, comm)
        spans = pairwise([0, *np.cumsum(arriving * widths).tolist()])
        found = [data[lo:hi].view(kind) for (lo, hi), kind in zip(spans, kinds, strict=True)]
        return np.concatenate([np.empty(0, np.uint32), *found])

    def _parts(self, lanes: Array, held: tuple[Any, ...], which: Array | None = None) -> list[list[Part]]:
        """For each pool, its lanes; of `which`, if given."""
        kept = np.ones(len(lanes), bool) if which is None else which
        return [[Part(lanes[kept & (self.pool_of == p)], held)] for p in range(len(self.pools))]


def _every(ids: Array, values: Array, place: int, of: int) -> Rows:
    """Those with ids that are `place` modulo `of`."""
    mine = ids % of == place
    return ids[mine], values[mine]


def _own_as_sent(values: Array, blocks: Blocks, codec: Codec, rank: int) -> Array:
    """`values`, those that stay here as others will read them, so that all add up the same."""
    if codec.is_exact or values.dtype != np.float32:
        return values
    own = blocks.where(blocks.peers == rank)
    first = int((blocks.rows * blocks.widths)[blocks.peers < rank].sum())
    mine = values[first : first + int(own.rows @ own.widths)]
    codec.decode(codec.encode(mine, own.rows, own.widths), own.rows, own.widths, mine)
    return values
