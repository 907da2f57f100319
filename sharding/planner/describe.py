"""What a plan does with a table, in a word and in a few: read off its rectangles, whoever made them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tesserec.sharding.plan import Rectangle, Shape, area

Held = Mapping[Rectangle, Sequence[int]]  # {rectangle: ranks that hold it}


@dataclass(frozen=True, slots=True)
class Placement:
    """kind: one of `placement.KINDS` but "auto", or "mixed". words: the same for people. ranks: rising."""

    kind: str
    words: str
    ranks: tuple[int, ...]


def placement_of(held: Held, shape: Shape, hosts: Sequence[int]) -> Placement:
    """How a table of `shape` (R, D) lies. hosts: the host of each rank."""
    ranks = tuple(sorted({rank for holders in held.values() for rank in holders}))
    kind = _kind(held, shape, ranks, hosts)
    return Placement(kind, _words(kind, held, ranks, hosts), ranks)


def ranks_in_words(ranks: Sequence[int], hosts: Sequence[int]) -> str:
    """`rank 3`, `ranks 0, 1`, `all 8 ranks`, `the 8 ranks of host 2`, `12 ranks`."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) == len(hosts):
        return f"all {len(hosts)} ranks" if len(hosts) > 2 else "both ranks"
    homes = {hosts[rank] for rank in ranks}
    if len(homes) == 1 and len(ranks) == list(hosts).count(hosts[ranks[0]]) and len(set(hosts)) > 1:
        return f"the {len(ranks)} ranks of host {homes.pop()}"
    return f"ranks {', '.join(map(str, ranks))}" if len(ranks) <= 4 else f"{len(ranks)} ranks"


def _kind(held: Held, shape: Shape, ranks: Sequence[int], hosts: Sequence[int]) -> str:
    rows, cols = {r for r, _ in held}, {c for _, c in held}
    copies = {len(holders) for holders in held.values()}
    if len(held) == 1:
        return "table_wise" if len(ranks) == 1 else "data_parallel"
    if copies == {1}:
        inside = len(set(hosts)) > 1 and len({hosts[rank] for rank in ranks}) == 1
        if len(cols) == 1:
            return "table_row_wise" if inside else "row_wise"
        if len(rows) == 1:
            return "table_column_wise" if inside else "column_wise"
        if len(rows) * len(cols) == len(held):
            return "grid_shard"
    whole_rows = len(cols) == 1
    return "hot_cold" if whole_rows and len(copies) > 1 and max(copies) == len(ranks) else "mixed"


def _words(kind: str, held: Held, ranks: Sequence[int], hosts: Sequence[int]) -> str:
    where = ranks_in_words(ranks, hosts)
    match kind:
        case "table_wise" | "data_parallel":
            return f"whole on {where}"
        case "row_wise" | "table_row_wise":
            return f"rows over {where}{_unevenness(held)}"
        case "column_wise" | "table_column_wise":
            return f"columns over {where}{_unevenness(held)}"
        case "grid_shard":
            counts = (len(set(spans)) for spans in zip(*held, strict=True))
            return f"{' × '.join(map(str, counts))} rows × columns over {where}"
        case "hot_cold":
            return _hot_words(held, where)
        case _:
            return f"{len(held)} pieces on {where}"


def _hot_words(held: Held, where: str) -> str:
    copies = max(map(len, held.values()))
    hot = _rows(rectangle for rectangle, holders in held.items() if len(holders) == copies)
    cold = [rectangle for rectangle, holders in held.items() if len(holders) < copies]
    homes = {rank for rectangle in cold for rank in held[rectangle]}
    rest = "the others in rows" if len(homes) > 1 else f"the others on rank {min(homes)}"
    return f"{hot:,} hot rows on {where}, {rest}"


def _unevenness(held: Held) -> str:
    """` (12 to 40 % of them)` where the pieces are not alike."""
    sizes = sorted(area(rectangle) for rectangle in held)
    if sizes[-1] <= 1.05 * sizes[0] + 1:
        return ""
    low, high = (100 * size / sum(sizes) for size in (sizes[0], sizes[-1]))
    return f" ({_share(low)} to {_share(high)} % of them)"


def _share(percent: float) -> str:
    return f"{percent:.3g}" if percent >= 0.1 else "less than 0.1"


def _rows(rectangles: Iterable[Rectangle]) -> int:
    return sum(rows[1] - rows[0] for rows, _ in rectangles)
