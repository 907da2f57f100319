"""Traffic: what the pieces of a table have to do in a step, in ids, bags, rows and bytes. No seconds here.

A piece is a rectangle of a table and the ranks that hold it. Of W ranks, each with b samples, all ask for
the bags that touch its rows; a rank that holds the piece asks itself, others one of the n holders each
(`plan.server`). Ids are independent draws from the features' frequencies. For a feature with bags of L ids,
of which a share s goes to the rows of the piece, a rank asks for

    ids   b · E[L] · s
    bags  b · (1 - E[(1 - s)^L])        pooled; else, and where ids travel one by one, a bag for every id

The formats are those of `kernels.route`, `exchange`, `shared_rows` and `columns`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tesserec.sharding.codecs import CODECS, Codec
from tesserec.sharding.planner.workload import Feature, Table, Workload

Numbers = npt.NDArray[np.float64]

WIRE_COUNTS = 12  # bytes that are sent ahead about each wire: bags, ids and flags
_SKEW = 1.15  # of `shared_rows`: how much more replicas let travel before they sum a row in one place


@dataclass(frozen=True, eq=False)
class Pieces:
    """n pieces of a table. rows, cols: (n, 2); holders: (n,) how many ranks hold each.

    beside: (n,) of the others that hold the piece, or other columns of its rows, the share in the same host.
    """

    table: Table
    rows: Numbers
    cols: Numbers
    holders: Numbers
    beside: Numbers

    @cached_property
    def height(self) -> Numbers:
        return self.rows[:, 1] - self.rows[:, 0]

    @cached_property
    def width(self) -> Numbers:
        return self.cols[:, 1] - self.cols[:, 0]

    @cached_property
    def whole(self) -> npt.NDArray[np.bool_]:
        """Whether it has all rows: then its holders read it where it is, without a wire."""
        found: npt.NDArray[np.bool_] = self.height == self.table.rows
        return found

    @cached_property
    def is_split(self) -> npt.NDArray[np.bool_]:
        """Whether other pieces have other columns of its rows."""
        found: npt.NDArray[np.bool_] = self.width < self.table.dim
        return found


@dataclass(frozen=True, eq=False)
class Asked:
    """What one rank asks of each piece in a step, (n,) each. id_bytes: of the message, with bags' lengths."""

    ids: Numbers
    bags: Numbers
    id_bytes: Numbers
    wires: int


class Traffic:
    """What `pieces` do in a step of `workload` over `ranks` ranks; (n,) arrays, per rank unless said."""

    def __init__(self, pieces: Pieces, workload: Workload, ranks: int):
        self.pieces, self.workload, self.ranks = pieces, workload, ranks
        self.batch = workload.batch_size / workload.replica_groups
        self.samples = self.batch / ranks
        self.raw = workload.bitwise & (pieces.holders > 1)
        self.apart = workload.bitwise & ~pieces.whole & pieces.table.pooled
        self.forward, self.backward = (
            _codec(name, pieces.table) for name in (workload.forward, workload.backward)
        )

    @cached_property
    def asked(self) -> Asked:
        found = np.array([self._asked_of(feature) for feature in self.pieces.table.features])
        ids, bags, size = found.sum(axis=0)
        return Asked(ids, bags, size, len(found))

    @cached_property
    def answered(self) -> Numbers:
        """Ranks whose bags a holder answers, itself among them."""
        return self.ranks / self.pieces.holders

    @cached_property
    def heard(self) -> Numbers:
        """Ranks whose ids and gradients a holder gets, itself among them: all, where sums depend on order."""
        return np.where(self.raw, float(self.ranks), self.answered)

    @cached_property
    def rows_read(self) -> Numbers:
        """Ids that a holder looks up."""
        return self.answered * self.asked.ids

    @cached_property
    def rows_updated(self) -> Numbers:
        """Distinct rows that the whole batch touches: what a holder updates."""
        ids = self.batch * self.pieces.table.mean_length
        return self._distinct(np.full(len(self.pieces.rows), ids))

    @cached_property
    def rows_touched(self) -> Numbers:
        """Distinct rows among the ids that a holder hears of itself, before replicas tell each other."""
        ids = self.batch * self.pieces.table.mean_length
        found = self.rows_updated.copy()
        for n in np.unique(self.pieces.holders[self.summed]):
            which = self.summed & (self.pieces.holders == n)
            found[which] = self._distinct(np.full(int(which.sum()), ids / n), which)
        return found

    @cached_property
    def summed(self) -> npt.NDArray[np.bool_]:
        """Whether replicas sum what they have before they tell it."""
        found: npt.NDArray[np.bool_] = (self.pieces.holders > 1) & ~self.raw
        return found

    @cached_property
    def met(self) -> npt.NDArray[np.bool_]:
        """Whether each row of replicas is summed by one of them: as `SharedRows._meets` decides."""
        n, height = self.pieces.holders, self.pieces.height
        missed = np.clip(1 - self.rows_touched / height, 0, 1) ** n
        few = height * (1 - missed) < _SKEW * n * self.rows_touched * (1 - 1 / n)
        found: npt.NDArray[np.bool_] = self.summed & (n > 2) & few
        return found

    @cached_property
    def rows_told(self) -> Numbers:
        """Rows whose gradients a holder sends to other replicas, and gets from them: all, or in turns."""
        n, mine, every = self.pieces.holders, self.rows_touched, self.rows_updated
        turns = (1 - 1 / n) * (mine + every)
        return np.where(self.met, turns, (n - 1) * mine) * self.summed

    @cached_property
    def entries(self) -> Numbers:
        """(row, gradient) pairs that a holder's update sums: ids, or what replicas told."""
        n = self.pieces.holders
        told = np.where(self.met, self.rows_updated, n * self.rows_touched)
        return np.where(self.summed, told, self.heard * self.asked.ids)

    @cached_property
    def told_bytes(self) -> Numbers:
        """Bytes of `rows_told`: an id and a row of gradients each."""
        row = self.pieces.width * self.backward.item_bytes * (self.pieces.table.compute_bytes // 4)
        each = bytes_for(self.pieces.height - 1) + row + self.backward.row_bytes
        return self.rows_told * each

    @cached_property
    def column_bytes(self) -> Numbers:
        """Bytes that a holder of some columns gets about others, if the optimizer looks at whole rows."""
        told = self.workload.optimizer.told_slots * self.pieces.table.compute_bytes
        others = (self.pieces.table.dim - self.pieces.width) * (self.ranks > 1)
        return self.rows_updated * others * told

    @cached_property
    def vector_bytes(self) -> Numbers:
        """Of the vectors that a holder sends to a rank that asks."""
        return self._encoded(self.forward)

    @cached_property
    def grad_bytes(self) -> Numbers:
        """Of their gradients, on the way back."""
        return self._encoded(self.backward)

    def askers(self, host_ranks: int) -> tuple[Numbers, Numbers]:
        """(ranks of the holder's host, ranks of others) that a holder answers beside itself, as a mean.

        Those that hold a piece ask nobody else, the others are shared out evenly.
        """
        n, beside = self.pieces.holders, self.pieces.beside
        every = (self.ranks - n) / n
        inside = np.clip((host_ranks - 1 - beside * (n - 1)) / n, 0, every)
        return inside, every - inside

    def siblings(self) -> tuple[Numbers, Numbers]:
        """(inside the host, over the network): share of the ranks that hold a replica, or other columns."""
        return self.pieces.beside, 1 - self.pieces.beside

    def _asked_of(self, feature: Feature) -> tuple[Numbers, Numbers, Numbers]:
        """(ids, bags, bytes of the message) of one feature."""
        pieces, lengths = self.pieces, feature.lengths
        share = feature.frequencies.share(pieces.rows[:, 0], pieces.rows[:, 1])
        ids = self.samples * lengths.mean * share
        alone = self.apart | (not pieces.table.pooled)
        bags = np.where(alone, ids, self.samples * lengths.touched(share))
        several = -np.expm1(-np.maximum(ids - bags, 0))  # the chance that any bag has a second id here
        count = bytes_for(np.array(lengths.values[-1]))
        cut = pieces.table.mean & pieces.table.pooled & (self.apart | ~pieces.whole)
        size = ids * bytes_for(pieces.height - 1) + bags * count * (several + cut)
        return ids, bags, size

    def _distinct(self, ids: Numbers, which: npt.NDArray[np.bool_] | slice = slice(None)) -> Numbers:
        lo, hi = self.pieces.rows[which].T
        several = ids if len(np.unique(ids)) > 1 else ids[:1].sum()  # of one number: once for all spans
        found: Numbers = np.asarray(self.pieces.table.frequencies.distinct(several, lo, hi))
        return found

    def _encoded(self, codec: Codec) -> Numbers:
        if codec.is_exact:
            found: Numbers = self.asked.bags * self.pieces.width * self.pieces.table.compute_bytes
            return found
        blocks: Numbers = self.asked.wires * codec.block_bytes * -np.expm1(-self.asked.bags)
        blocks += self.asked.bags * (self.pieces.width * codec.item_bytes + codec.row_bytes)
        return blocks


def bytes_for(number: Numbers) -> Numbers:
    """The fewest of 1, 2 and 4 that hold each."""
    return np.where(number < 1 << 8, 1.0, np.where(number < 1 << 16, 2.0, 4.0))


def _codec(name: str, table: Table) -> Codec:
    """Only float32 numbers are encoded."""
    return CODECS["fp32" if table.compute_bytes != 4 else name]
