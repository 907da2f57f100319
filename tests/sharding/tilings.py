"""Random ways to cut a table into rectangles and hand them to ranks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from hypothesis import strategies as st

from tesserec.sharding.plan import Rectangle, Shape, Shard, ShardingPlan, Span


@dataclass(frozen=True)
class Tiling:
    """Rectangles that tile `shape`, each with the ranks that hold it."""

    shape: Shape
    held: tuple[tuple[Rectangle, tuple[int, ...]], ...]
    num_ranks: int

    def shards(self, table: str) -> tuple[Shard, ...]:
        """The rectangles, as shards of `table`."""
        return tuple(Shard(table, *rectangle, rank) for rectangle, ranks in self.held for rank in ranks)

    def plan(self, table: str) -> ShardingPlan:
        """A plan of one table."""
        return ShardingPlan(self.shards(table), self.num_ranks)


@st.composite
def tilings(
    draw: st.DrawFn, shape: Shape | None = None, num_ranks: int | None = None, max_cuts: int = 6
) -> Tiling:
    """Any rectangles: halves of halves, and windmills, which no straight cut makes."""
    extent = shape or (draw(st.integers(1, 12)), draw(st.integers(1, 6)))
    ranks = num_ranks or draw(st.integers(1, 4))
    pieces: list[Rectangle] = [((0, extent[0]), (0, extent[1]))]
    for _ in range(draw(st.integers(0, max_cuts))):
        rows, cols = pieces.pop(draw(st.integers(0, len(pieces) - 1)))
        pieces += draw(st.sampled_from(_WAYS))(draw, rows, cols)
    holders = st.lists(st.integers(0, ranks - 1), min_size=1, max_size=ranks, unique=True)
    return Tiling(extent, tuple((piece, tuple(sorted(draw(holders)))) for piece in pieces), ranks)


def _by_rows(draw: st.DrawFn, rows: Span, cols: Span) -> list[Rectangle]:
    return [(part, cols) for part in pairwise(_cuts(draw, rows, 1))]


def _by_cols(draw: st.DrawFn, rows: Span, cols: Span) -> list[Rectangle]:
    return [(rows, part) for part in pairwise(_cuts(draw, cols, 1))]


def _windmill(draw: st.DrawFn, rows: Span, cols: Span) -> list[Rectangle]:
    y, x = _cuts(draw, rows, 2), _cuts(draw, cols, 2)
    if len(x) < 4 or len(y) < 4:
        return [(rows, cols)]
    arms = [((0, 1), (0, 2)), ((0, 2), (2, 3)), ((2, 3), (1, 3)), ((1, 3), (0, 1)), ((1, 2), (1, 2))]
    return [((y[top], y[bottom]), (x[left], x[right])) for (top, bottom), (left, right) in arms]


_WAYS = (_by_rows, _by_cols, _windmill)


def _cuts(draw: st.DrawFn, span: Span, number: int) -> list[int]:
    """The ends of a span, and `number` different places between them, if there are as many."""
    between = st.integers(span[0] + 1, span[1] - 1)
    if span[1] - span[0] <= number:
        return list(span)
    inner = draw(st.lists(between, min_size=number, max_size=number, unique=True))
    return sorted((*span, *inner))
