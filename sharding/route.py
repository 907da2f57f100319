"""Who sends what to whom: the wires between the ranks, from a plan alone. Nothing here communicates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.embeddings.spans import Span, weighted_spans
from tesserec.sharding.kernels.route import ROUTE, WIRE
from tesserec.sharding.plan import server

Array = npt.NDArray[Any]

_LEAST = 1 << 13  # vectors that are worth a task of their own


@dataclass(frozen=True, slots=True)
class Holding:
    """A rectangle, rows by cols of table `table`, and the ranks that hold it. whole: it has all the rows."""

    table: str
    rows: Span
    cols: Span
    ranks: tuple[int, ...]
    whole: bool

    @property
    def height(self) -> int:
        return self.rows[1] - self.rows[0]

    @property
    def width(self) -> int:
        return self.cols[1] - self.cols[0]

    def server(self, rank: int) -> int:
        """Whom `rank` asks for these rows: itself if it can."""
        return server(self.ranks, rank)


@dataclass(frozen=True, slots=True)
class Piece:
    """What a reader, a feature that reads a table, has to do with one rectangle of the table.

    reader:   its position among those of all collections.
    mean:     whether its bags become means.
    apart:    every id is sent as a bag of its own, and pooled where it came from.
    raw:      all that hold the rectangle are told of every bag's gradient; else of sums.
    itemsize: of an element of its vectors.
    """

    reader: int
    rectangle: Holding
    mean: bool
    apart: bool
    raw: bool
    itemsize: int

    @property
    def cut(self) -> bool:
        """Whether the rectangle may see less of a bag than its mean is taken over."""
        return self.mean and (self.apart or not self.rectangle.whole)

    @property
    def is_summed(self) -> bool:
        """Whether each rank that holds the rectangle sums gradients before it tells the others."""
        return len(self.rectangle.ranks) > 1 and not self.raw

    def is_direct(self, rank: int) -> bool:
        """Whether `rank` looks these rows up where they are, as it would without shards."""
        return self.rectangle.whole and not self.apart and rank in self.rectangle.ranks

    def targets(self, source: int) -> Sequence[int]:
        """The ranks that `source` has a wire to."""
        ranks = self.rectangle.ranks if self.raw else (self.rectangle.server(source),)
        return [rank for rank in ranks if rank != source] if self.is_direct(source) else ranks

    def is_shared(self, num_ranks: int) -> bool:
        """Whether any rank has a wire, also one to itself."""
        return any(self.targets(rank) for rank in range(num_ranks))


class Wiring:
    """All wires that begin or end at `rank`, as kernels see them.

    direct:     the pieces that need no wire.
    sent, got:  WIRE, by peer; sent_pieces, got_pieces: what each is.
    routes, bands: which wire an id of each reader takes; see `kernels.route.count_wires`.
    order:      of `sent`, by reader and then as rectangles are summed.
    is_needed:  whether any rank has a wire: the same on every rank.
    """

    def __init__(self, pieces: Sequence[Piece], rank: int, num_ranks: int, sizes: Sequence[int]):
        """sizes: rows of the table of each reader."""
        out = sorted((peer, i) for i, piece in enumerate(pieces) for peer in piece.targets(rank))
        held = [i for i, piece in enumerate(pieces) if rank in piece.rectangle.ranks]
        back = [(peer, i) for peer in range(num_ranks) for i in held if rank in pieces[i].targets(peer)]
        self.direct = [piece for piece in pieces if piece.is_direct(rank)]
        self.sent_pieces, self.got_pieces = [pieces[i] for _, i in out], [pieces[i] for _, i in back]
        self.sent = _as_wires(
            [(peer, pieces[i], pieces[i].rectangle.server(rank) != peer) for peer, i in out]
        )
        self.got = _as_wires(
            [(peer, pieces[i], pieces[i].rectangle.server(peer) != rank) for peer, i in back]
        )
        self.routes, self.bands = _bands(self.sent_pieces, sizes)
        self.order = np.argsort([i for _, i in out], kind="stable").astype(np.int64)
        self.is_needed = any(piece.is_shared(num_ranks) for piece in pieces)

    def order_spans(self, bags: Array) -> list[Span]:
        """Parts of `order` to be added up side by side: no reader is in two. bags: of each of `sent`."""
        if not len(bags):
            return []
        ends = np.cumsum((bags + 1)[self.order])
        changes = np.flatnonzero(np.diff(self.sent["reader"][self.order])) + 1
        marks = np.array([end for _, end in weighted_spans(ends, _LEAST)])
        cuts = np.unique(np.append(changes, len(bags))[np.searchsorted(changes, marks)])
        return list(pairwise([0, *cuts.tolist()]))


def _as_wires(rows: Sequence[tuple[int, Piece, bool]]) -> Array:
    """rows: (peer, what, whether only for gradients)."""
    wires = np.zeros(len(rows), WIRE)
    for wire, (peer, piece, silent) in zip(wires, rows, strict=True):
        top, bottom = piece.rectangle.rows
        wire["peer"], wire["silent"], wire["reader"] = peer, silent, piece.reader
        wire["first_row"], wire["id_bytes"] = top, bytes_for(bottom - top - 1)
        wire["left"], wire["width"] = piece.rectangle.cols[0], piece.rectangle.width
        wire["itemsize"], wire["cut"], wire["apart"] = piece.itemsize, piece.cut, piece.apart
        wire["last"] = -1
    return wires


def bytes_for(number: int) -> int:
    """The fewest of 1, 2 and 4 that hold it."""
    return 1 if number < 1 << 8 else 2 if number < 1 << 16 else 4


def _bands(pieces: Sequence[Piece], sizes: Sequence[int]) -> tuple[Array, tuple[Array, Array, Array]]:
    """(routes, (ends, starts, targets)) of `kernels.route.count_wires`."""
    routes, ends, targets = np.zeros(len(sizes), ROUTE), list[int](), list[list[int]]()
    of_reader: list[list[tuple[int, Span]]] = [[] for _ in sizes]
    for at, piece in enumerate(pieces):
        of_reader[piece.reader].append((at, piece.rectangle.rows))
    for k, held in enumerate(of_reader):
        routes[k]["first"] = len(ends)
        for end, wires in _bands_of(held, sizes[k]):
            ends.append(end)
            targets.append(wires)
        routes[k]["last"] = len(ends)
    starts = np.cumsum([0, *map(len, targets)])
    flat = np.array([wire for wires in targets for wire in wires], np.int64)
    return routes, (np.array(ends, np.int64), starts, flat)


def _bands_of(held: Sequence[tuple[int, Span]], size: int) -> Iterator[tuple[int, list[int]]]:
    """(where it ends, the wires that it goes to) of each band of rows; none where nothing is sent."""
    cuts = sorted({0, size, *(cut for _, rows in held for cut in rows)})
    for top, bottom in pairwise(cuts) if held else ():
        yield bottom, [at for at, rows in held if rows[0] <= top and bottom <= rows[1]]
