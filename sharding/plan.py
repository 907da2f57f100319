"""Where every piece of every table lives: a list of rectangles. Plain data; nothing here communicates.

Every way to shard a table is a function that returns such a list. Row spans sum, column spans concatenate, a
rectangle that several ranks hold is a replica; anything else that tiles the table is as good.
"""

from __future__ import annotations

import gc
import json
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

FORMAT = "tesserec sharding plan"
VERSION = 2  # 1 had a list of shards for each table and no more; it is still read

Span = tuple[int, int]  # half-open: (first, past the last)
Shape = tuple[int, int]  # (num_embeddings, embedding_dim)
Rectangle = tuple[Span, Span]  # rows, columns


class PlanError(ValueError):
    """A plan that does not fit its tables or ranks; the message names the table, and what to do."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The rectangle `rows` x `cols` of one table, and the rank that holds it.

    table: its name in the model's state, such as "inputs.vectors.C1"; in a bare collection just "C1".
    """

    table: str
    rows: Span
    cols: Span
    rank: int

    @property
    def rectangle(self) -> Rectangle:
        """(rows, cols)."""
        return self.rows, self.cols

    @property
    def size(self) -> int:
        """Number of elements."""
        return area(self.rectangle)

    def __str__(self) -> str:
        return f"{in_words(self.rectangle)} of rank {self.rank}"


@dataclass(frozen=True)
class ShardingPlan:
    """All shards of all tables over `num_ranks` ranks, the same on every rank.

    Whatever order they are given in, they are kept by table, in order of first mention, then by rows, columns
    and rank: that is the order on the wire, and the order of summation.

    tiers: {table: the name of the memory that its rows are to lie in}, of those that are not in ranks' usual
    memory. planner: what is known of how the plan was made, JSON values; it changes nothing.
    """

    shards: tuple[Shard, ...]
    num_ranks: int
    tiers: Mapping[str, str] = field(default_factory=dict, hash=False)
    planner: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        place = {table: i for i, table in enumerate(dict.fromkeys(s.table for s in self.shards))}
        ordered = sorted(self.shards, key=lambda s: (place[s.table], s.rows, s.cols, s.rank))
        object.__setattr__(self, "shards", tuple(ordered))

    @cached_property
    def tables(self) -> dict[str, dict[Rectangle, list[int]]]:
        """{table: {distinct rectangle: ranks that hold it}}, all in plan order."""
        found: dict[str, dict[Rectangle, list[int]]] = {}
        for shard in self.shards:
            found.setdefault(shard.table, {}).setdefault(shard.rectangle, []).append(shard.rank)
        return found

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """{table: (rows, columns) that its rectangles reach to}."""
        return {
            table: (max(rows[1] for rows, _ in held), max(cols[1] for _, cols in held))
            for table, held in self.tables.items()
        }

    def of(self, table: str) -> list[Shard]:
        """The shards of `table`."""
        held = self.rectangles(table)
        return [Shard(table, *rectangle, rank) for rectangle, ranks in held.items() for rank in ranks]

    def on(self, rank: int) -> list[Shard]:
        """The shards that `rank` holds."""
        return [shard for shard in self.shards if shard.rank == rank]

    def rectangles(self, table: str) -> dict[Rectangle, list[int]]:
        """{distinct rectangle of `table`: ranks that hold it, rising}."""
        if table not in self.tables:
            raise PlanError(f"table {table!r}: not in the plan, which has {_listed(self.tables)}")
        return self.tables[table]

    def replicas(self, shard: Shard) -> list[int]:
        """The ranks that hold this rectangle, rising; its own among them."""
        return self.rectangles(shard.table)[shard.rectangle]

    def bytes_per_rank(self, itemsize: Mapping[str, int] | None = None) -> list[int]:
        """What each rank holds, without optimizer state. itemsize: {table: bytes of an element}, else 4."""
        held, sizes = [0] * self.num_ranks, itemsize or {}
        for shard in self.shards:
            held[shard.rank] += shard.size * sizes.get(shard.table, 4)
        return held

    def check(self, tables: Mapping[str, Shape]) -> None:
        """PlanError unless the rectangles of each of {table: (R, D)} tile it exactly, on ranks that exist."""
        lacking = [table for table in tables if table not in self.tables]
        if lacking:
            raise PlanError(f"no shard of {_listed(lacking)}: add shards that tile them, or use make_plan")
        unknown = [table for table in self.tables if table not in tables]
        if unknown:
            raise PlanError(f"the plan has {_listed(unknown)}; the model has {_listed(tables)}")
        for table, shape in tables.items():
            held = self.tables[table]
            for rectangle, ranks in held.items():
                _check_rectangle(table, shape, rectangle, ranks, self.num_ranks)
            if not _is_row_wise(shape, held):
                check_tiling(table, shape, held)
        homeless = [table for table in self.tiers if table not in tables]
        if homeless:
            raise PlanError(f"tiers of {_listed(homeless)}; the model has {_listed(tables)}")

    def diff(self, other: ShardingPlan) -> list[Move]:
        """What changes from this plan to `other`: the pieces that other ranks will hold, in order."""
        tables = dict.fromkeys((*self.tables, *other.tables))
        moves = (_moves(table, self.tables.get(table, {}), other.tables.get(table, {})) for table in tables)
        return [move for per_table in moves for move in per_table]

    def to_json(self) -> str:
        """The plan as readable JSON: a line for each rectangle."""
        head: dict[str, Any] = {"format": FORMAT, "version": VERSION, "num_ranks": self.num_ranks}
        if self.planner:
            head["planner"] = dict(self.planner)
        tables = ",\n".join(f"  {json.dumps(t)}: {self._as_text(t, held)}" for t, held in self.tables.items())
        return f'{json.dumps(head, indent=1)[:-2]},\n "tables": {{\n{tables}\n }}\n}}\n'

    @classmethod
    def from_json(cls, text: str | bytes) -> ShardingPlan:
        """The plan that `to_json` wrote, of this version or an older one. PlanError if it is none."""
        try:
            with _without_collection():
                read = json.loads(text)
                found = read["format"], read["version"]
                if found[0] != FORMAT or found[1] not in range(1, VERSION + 1):
                    raise PlanError(
                        f"{found[0]!r} version {found[1]}, wanted {FORMAT!r} version 1 to {VERSION}"
                    )
                return cls._from_tables(read, {t: _newest(one) for t, one in read["tables"].items()})
        except PlanError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"not a sharding plan: {type(error).__name__}: {error}") from None

    @classmethod
    def _from_tables(cls, read: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]]) -> ShardingPlan:
        tiers = {table: str(one["tier"]) for table, one in tables.items() if "tier" in one}
        shards = tuple(shard for table, one in tables.items() for shard in _shards_in(table, one["shards"]))
        return cls(shards, int(read["num_ranks"]), tiers, dict(read.get("planner", {})))

    def _as_text(self, table: str, held: Mapping[Rectangle, list[int]]) -> str:
        rows, cols = self.shapes[table]
        tier = f'"tier": {json.dumps(self.tiers[table])}, ' if table in self.tiers else ""
        return f'{{"rows": {rows}, "cols": {cols}, {tier}"shards": [\n{_lines(held)}\n  ]}}'

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON; a file that stands there is replaced as a whole."""
        temporary = Path(f"{path}.{os.getpid()}.tmp")
        temporary.write_text(self.to_json())
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | Path) -> ShardingPlan:
        """The plan in the file `path`. PlanError if it holds none."""
        try:
            return cls.from_json(Path(path).read_bytes())
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from None


@dataclass(frozen=True, slots=True)
class Move:
    """A piece of a table, and the ranks that hold it before and after; none where a plan lacks the table."""

    table: str
    rows: Span
    cols: Span
    before: tuple[int, ...]
    after: tuple[int, ...]

    def __str__(self) -> str:
        ways = " → ".join(_ranks_in_words(ranks) for ranks in (self.before, self.after))
        return f"{self.table}: {in_words((self.rows, self.cols))}: {ways}"


def overlap(a: Span, b: Span) -> Span | None:
    """What two spans share, None for nothing."""
    lo, hi = max(a[0], b[0]), min(a[1], b[1])
    return (lo, hi) if lo < hi else None


def intersection(a: Rectangle, b: Rectangle) -> Rectangle | None:
    """What two rectangles share, None for nothing."""
    rows, cols = overlap(a[0], b[0]), overlap(a[1], b[1])
    return (rows, cols) if rows and cols else None


def area(rectangle: Rectangle) -> int:
    """Number of elements."""
    rows, cols = rectangle
    return (rows[1] - rows[0]) * (cols[1] - cols[0])


def in_words(rectangle: Rectangle) -> str:
    """`rows [0, 10) × columns [0, 4)`."""
    rows, cols = rectangle
    return f"rows [{rows[0]}, {rows[1]}) × columns [{cols[0]}, {cols[1]})"


def server(holders: Sequence[int], rank: int) -> int:
    """Which of the ranks that hold a rectangle `rank` asks for it: itself if it can."""
    return rank if rank in holders else holders[rank % len(holders)]


def even_cut(extent: int, parts: int) -> list[Span]:
    """[0, extent) as `parts` spans whose sizes differ by at most one; some are empty where parts > extent."""
    return list(pairwise(extent * p // parts for p in range(parts + 1)))


def data_parallel(table: str, shape: Shape, ranks: Iterable[int]) -> tuple[Shard, ...]:
    """The whole table on every one of `ranks`."""
    return tuple(shard for rank in ranks for shard in table_wise(table, shape, rank))


def table_wise(table: str, shape: Shape, rank: int) -> tuple[Shard, ...]:
    """The whole table on one rank."""
    return grid_shard(table, shape, [[rank]])


def row_wise(
    table: str, shape: Shape, ranks: Sequence[int], cuts: Sequence[int] | None = None
) -> tuple[Shard, ...]:
    """Spans of rows, one for each of `ranks`: even ones, or between the len(ranks) - 1 rising rows `cuts`."""
    cols = (0, shape[1])
    spans = _spans(table, "rows", shape[0], len(ranks), cuts)
    return tuple(Shard(table, rows, cols, rank) for rows, rank in _not_empty(spans, ranks))


def column_wise(
    table: str, shape: Shape, ranks: Sequence[int], cuts: Sequence[int] | None = None
) -> tuple[Shard, ...]:
    """Spans of columns, one for each of `ranks`: even ones, or between the len(ranks) - 1 columns `cuts`."""
    rows = (0, shape[0])
    spans = _spans(table, "columns", shape[1], len(ranks), cuts)
    return tuple(Shard(table, rows, cols, rank) for cols, rank in _not_empty(spans, ranks))


def table_row_wise(table: str, shape: Shape, host: int, hosts: Sequence[int]) -> tuple[Shard, ...]:
    """Spans of rows over the ranks of one host. hosts: the host of each rank, `Comm.hosts`."""
    return row_wise(table, shape, _ranks_of(host, hosts))


def table_column_wise(table: str, shape: Shape, host: int, hosts: Sequence[int]) -> tuple[Shard, ...]:
    """Spans of columns over the ranks of one host. hosts: the host of each rank, `Comm.hosts`."""
    return column_wise(table, shape, _ranks_of(host, hosts))


def grid_shard(table: str, shape: Shape, ranks: Sequence[Sequence[int]]) -> tuple[Shard, ...]:
    """ranks[i][j] holds row span i, column span j; all spans even."""
    return tuple(
        Shard(table, rows, cols, rank)
        for rows, line in _not_empty(even_cut(shape[0], len(ranks)), ranks)
        for cols, rank in _not_empty(even_cut(shape[1], len(line)), line)
    )


def hot_cold(table: str, shape: Shape, hot: int | Sequence[Span], ranks: Sequence[int]) -> tuple[Shard, ...]:
    """The hot rows on every one of `ranks`, the cold ones between them in even spans of rows.

    hot: the first so many rows, as vocabularies that are sorted by frequency have it, or rising row spans.
    """
    spans = sorted([(0, hot)] if isinstance(hot, int) else hot)
    cols = (0, shape[1])
    kept = [rows for rows in spans if rows[0] < rows[1]]
    shards = [Shard(table, rows, cols, rank) for rows in kept for rank in ranks]
    cold = list(_between(kept, shape[0]))
    parts = even_cut(sum(hi - lo for lo, hi in cold), len(ranks))
    for part, rank in zip(parts, ranks, strict=True):
        shards += [Shard(table, rows, cols, rank) for rows in _slice_of(cold, part)]
    return tuple(shards)


def check_tiling(table: str, shape: Shape, held: Mapping[Rectangle, list[int]]) -> None:
    """PlanError unless the rectangles of {rectangle: ranks} tile a table of `shape` (R, D).

    A sweep over the rows: in each band between two cuts the columns must follow each other.
    """
    for rectangle, ranks in held.items():
        if len(set(ranks)) < len(ranks):
            raise PlanError(f"table {table!r}: {in_words(rectangle)}: twice on one rank, of ranks {ranks}")
    starting: dict[int, list[Rectangle]] = {}
    for rectangle in held:
        starting.setdefault(rectangle[0][0], []).append(rectangle)
    cuts = sorted({0, shape[0], *(bound for rows, _ in held for bound in rows)})
    active: list[Rectangle] = []
    for band in pairwise(cuts):
        active = [r for r in active if r[0][1] > band[0]] + starting.get(band[0], [])
        active.sort(key=lambda r: r[1])
        end = 0
        for before, (rows, cols) in zip((None, *active), active, strict=False):
            if before is not None and cols[0] < end:
                _refuse_overlap(table, before, (rows, cols), held)
            if cols[0] > end:
                _refuse_gap(table, (band, (end, cols[0])))
            end = cols[1]
        if end < shape[1]:
            _refuse_gap(table, (band, (end, shape[1])))


def _spans(table: str, what: str, extent: int, parts: int, cuts: Sequence[int] | None) -> list[Span]:
    if cuts is None:
        return even_cut(extent, parts)
    spans = list(pairwise((0, *cuts, extent)))
    if len(spans) != parts or any(lo > hi for lo, hi in spans):
        raise PlanError(
            f"table {table!r}: cuts {list(cuts)} of {extent} {what} over {parts} ranks: "
            f"wanted {parts - 1} rising numbers from 0 to {extent}"
        )
    return spans


def _not_empty(spans: Sequence[Span], holders: Sequence[Any]) -> Iterator[tuple[Span, Any]]:
    return ((span, holder) for span, holder in zip(spans, holders, strict=True) if span[0] < span[1])


def _ranks_of(host: int, hosts: Sequence[int]) -> list[int]:
    ranks = [rank for rank, where in enumerate(hosts) if where == host]
    if not ranks:
        raise PlanError(f"host {host}: no rank is there; the ranks are on hosts {list(hosts)}")
    return ranks


def _between(spans: Sequence[Span], extent: int) -> Iterator[Span]:
    """What rising `spans` leave of [0, extent)."""
    bounds = (0, *(bound for span in spans for bound in span), extent)
    return ((lo, hi) for lo, hi in zip(bounds[::2], bounds[1::2], strict=True) if lo < hi)


def _slice_of(spans: Sequence[Span], part: Span) -> Iterator[Span]:
    """The spans of what `part` is of all `spans` laid end to end."""
    at = 0
    for lo, hi in spans:
        if shared := overlap((at, at + hi - lo), part):
            yield lo + shared[0] - at, lo + shared[1] - at
        at += hi - lo


def _check_rectangle(
    table: str, shape: Shape, rectangle: Rectangle, ranks: Sequence[int], num_ranks: int
) -> None:
    (top, bottom), (left, right) = rectangle
    if min(ranks) < 0 or max(ranks) >= num_ranks:
        wrong = next(rank for rank in ranks if not 0 <= rank < num_ranks)
        raise PlanError(
            f"table {table!r}: {in_words(rectangle)} of rank {wrong}: ranks are 0 to {num_ranks - 1}"
        )
    if not (0 <= top < bottom <= shape[0] and 0 <= left < right <= shape[1]):
        empty = top == bottom or left == right
        raise PlanError(
            f"table {table!r}: {in_words(rectangle)} of {_ranks_in_words(ranks)} is "
            f"{'empty' if empty else 'not inside the table'}, "
            f"which has {shape[0]} rows and {shape[1]} columns"
        )


def _is_row_wise(shape: Shape, held: Mapping[Rectangle, list[int]]) -> bool:
    """Whether rising spans of whole rows follow each other, each once on its ranks: quickly seen."""
    end, cols = 0, (0, shape[1])
    for (rows, found), ranks in held.items():
        if rows[0] != end or found != cols or (len(ranks) > 1 and len(set(ranks)) < len(ranks)):
            return False
        end = rows[1]
    return end == shape[0]


def _refuse_overlap(table: str, a: Rectangle, b: Rectangle, held: Mapping[Rectangle, list[int]]) -> None:
    one, two = (f"{in_words(r)} of {_ranks_in_words(held[r])}" for r in (a, b))
    shared = intersection(a, b)
    raise PlanError(
        f"table {table!r}: {one} and {two} overlap in {in_words(shared or a)}: "
        "cut them apart, or give both ranks the same rectangle, which is then a replica"
    )


def _refuse_gap(table: str, rectangle: Rectangle) -> None:
    raise PlanError(f"table {table!r}: no rank holds {in_words(rectangle)}: add a shard that does")


def _moves(
    table: str, before: Mapping[Rectangle, list[int]], after: Mapping[Rectangle, list[int]]
) -> Iterator[Move]:
    if not before or not after:
        for (rows, cols), ranks in (before or after).items():
            yield Move(table, rows, cols, tuple(ranks if before else ()), tuple(ranks if after else ()))
        return
    following = list(after.items())
    tops = [rows[0] for (rows, _), _ in following]
    reach = list(accumulate((rows[1] for (rows, _), _ in following), max))  # of all rectangles up to each
    for old, held in before.items():
        first, last = bisect_right(reach, old[0][0]), bisect_left(tops, old[0][1])
        for new, wanted in following[first:last]:
            if held != wanted and (shared := intersection(old, new)):
                yield Move(table, *shared, tuple(held), tuple(wanted))


def _lines(held: Mapping[Rectangle, list[int]]) -> str:
    return ",\n".join(
        f'   {{"rows": [{top}, {bottom}], "cols": [{left}, {right}], "ranks": {ranks}}}'
        for ((top, bottom), (left, right)), ranks in held.items()
    )


def _newest(table: Any) -> Mapping[str, Any]:
    """What version 2 has of a table, from any version: version 1 had only the list of its shards."""
    found: Mapping[str, Any] = {"shards": table} if isinstance(table, list) else table
    return found


def _shards_in(table: str, rectangles: Sequence[Mapping[str, Any]]) -> Iterator[Shard]:
    for one in rectangles:
        (top, bottom), (left, right) = one["rows"], one["cols"]
        rows, cols = (int(top), int(bottom)), (int(left), int(right))
        for rank in one["ranks"]:
            yield Shard(table, rows, cols, int(rank))


@contextmanager
def _without_collection() -> Iterator[None]:
    """Inside, nothing looks for garbage: it would walk over all of a large plan again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _ranks_in_words(ranks: Sequence[int]) -> str:
    if not ranks:
        return "nobody"
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _listed(names: Iterable[str]) -> str:
    some = list(names)
    return ", ".join(map(repr, some[:5])) + (f" and {len(some) - 5} more" if len(some) > 5 else "") or "none"
