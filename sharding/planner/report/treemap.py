"""What lies where: hosts, their ranks and the rectangles on each, every area as large as its bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape

from tesserec.sharding.planner.report.figures import Trace
from tesserec.sharding.planner.report.markup import Figure
from tesserec.sharding.planner.report.words import of_bytes, of_ranks, of_seconds, plural
from tesserec.sharding.planner.result import Document, Piece, TablePart

LISTED = 24  # pieces of a rank that are drawn one by one; the others are one area
DEEP = 64  # ranks up to which all levels are seen at once
PAD = {"t": 20, "l": 2, "r": 2, "b": 2}  # pixels around what is inside of a host or rank
Node = tuple[str, str, str, int, str, str]  # id, parent, label, bytes, colour, what is said of it


def treemap(document: Document, short: Mapping[str, str], kinds: Mapping[str, str], says: str) -> Figure:
    """short: {table: the name it is shown by}; kinds: {kind: colour}. Of plans too large: the tables."""
    tables = document["tables"]
    if any(table.get("pieces") for table in tables):
        nodes = list(_places(document, short, kinds))
    else:
        nodes = list(_tables(tables, short, kinds))
    depth = 4 if document["topology"]["num_ranks"] <= DEEP else 3
    layout = {"margin": {"t": 4, "l": 0, "r": 0, "b": 4}, "uniformtext": {"minsize": 10, "mode": "hide"}}
    return Figure("treemap", says, 520, [_trace(nodes, depth)], layout)


def _trace(nodes: Sequence[Node], depth: int) -> Trace:
    ids, parents, labels, sizes, colours, words = (list(column) for column in zip(*nodes, strict=True))
    return {
        "type": "treemap",
        "ids": ids,
        "parents": parents,
        "labels": labels,
        "values": sizes,
        "text": [of_bytes(size) for size in sizes],
        "customdata": words,
        "branchvalues": "total",
        "sort": False,  # ranks by number; pieces are sorted
        "maxdepth": depth,
        "marker": {
            "colors": colours,
            "line": {"width": 1, "color": "var(--paper)"},
            "pad": PAD,
        },
        "tiling": {"pad": 1},
        "texttemplate": "%{label}<br>%{text}",
        "hovertemplate": "%{label}: %{text}<br>%{customdata}<extra></extra>",
        "pathbar": {"thickness": 22},
    }


def _places(document: Document, short: Mapping[str, str], kinds: Mapping[str, str]) -> Iterator[Node]:
    """From all of it down to the pieces; the level of hosts is left out where there is one."""
    hosts = document["topology"]["hosts"]
    busy = [sum(times) for times in zip(*document["ranks"]["stages"].values(), strict=True)]
    held = _held(document["tables"])
    sizes = [sum(size for _, _, size in held[rank]) for rank in range(len(hosts))]
    yield (
        "all",
        "",
        plural(len(hosts), "rank"),
        sum(sizes),
        "var(--base)",
        f"on {plural(len(set(hosts)), 'host')}",
    )
    several = len(set(hosts)) > 1
    if several:
        yield from _hosts(hosts, sizes)
    for rank, size in enumerate(sizes):
        if size:
            parent = f"h{hosts[rank]}" if several else "all"
            words = f"{plural(len(held[rank]), 'rectangle')}, busy for {of_seconds(busy[rank])}"
            colour = _shade(busy[rank] / (max(busy) or 1.0)) if len(hosts) > DEEP else "var(--branch)"
            yield f"r{rank}", parent, f"rank {rank}", size, colour, words
            yield from _pieces(rank, held[rank], short, kinds, len(hosts))


def _shade(share: float) -> str:
    """Between the palest and the accent, for page.js; its power parts what is nearly as busy."""
    return f"shade {share**3:.2f}"


def _hosts(hosts: Sequence[int], sizes: Sequence[int]) -> Iterator[Node]:
    of_host: dict[int, list[int]] = defaultdict(list)
    for rank, host in enumerate(hosts):
        of_host[host].append(rank)
    for host, ranks in of_host.items():
        if size := sum(sizes[rank] for rank in ranks):
            yield f"h{host}", "all", f"host {host}", size, "var(--base)", of_ranks(ranks, len(hosts))


def _held(tables: Iterable[TablePart]) -> dict[int, list[tuple[TablePart, Piece, int]]]:
    """{rank: (table, piece, bytes) of all that it holds, largest first}."""
    held: dict[int, list[tuple[TablePart, Piece, int]]] = defaultdict(list)
    for table in tables:
        for piece in table.get("pieces", ()):
            size = piece_bytes(table, piece)
            for rank in piece["ranks"]:
                held[rank].append((table, piece, size))
    for of_rank in held.values():
        of_rank.sort(key=lambda entry: -entry[2])
    return held


def piece_bytes(table: TablePart, piece: Piece) -> int:
    """What the rows of one copy of `piece` take."""
    (top, bottom), (left, right) = piece["rows"], piece["cols"]
    share = (bottom - top) / table["rows"] * (right - left) / table["dim"]
    return max(1, round(table["table_bytes"] * share))


def _pieces(
    rank: int,
    held: Sequence[tuple[TablePart, Piece, int]],
    short: Mapping[str, str],
    kinds: Mapping[str, str],
    num_ranks: int,
) -> Iterator[Node]:
    for i, (table, piece, size) in enumerate(held[:LISTED]):
        words = f"{piece_words(table, piece)}, {of_ranks(piece['ranks'], num_ranks)}"
        name = escape(short[table["name"]])
        yield f"r{rank}p{i}", f"r{rank}", name, size, kinds[table.get("kind", "")], words
    if others := held[LISTED:]:
        size = sum(size for _, _, size in others)
        yield f"r{rank}+", f"r{rank}", f"{len(others)} smaller", size, "var(--branch)", "rectangles"


def piece_words(table: TablePart, piece: Piece) -> str:
    """`rows 0 to 5,000 of 1,000,000, columns 0 to 64 of 128`; what is whole is said so."""
    (top, bottom), (left, right) = piece["rows"], piece["cols"]
    rows = f"rows {top:,} to {bottom:,} of {table['rows']:,}" if bottom - top < table["rows"] else "all rows"
    columns = f", columns {left} to {right} of {table['dim']}" if right - left < table["dim"] else ""
    return rows + columns


def _tables(
    tables: Sequence[TablePart], short: Mapping[str, str], kinds: Mapping[str, str]
) -> Iterator[Node]:
    total = sum(table["table_bytes"] for table in tables)
    yield "all", "", plural(len(tables), "table"), total, "var(--base)", "each once"
    for i, table in enumerate(tables):
        name, colour = escape(short[table["name"]]), kinds[table.get("kind", "")]
        yield f"t{i}", "all", name, table["table_bytes"], colour, escape(table.get("words", ""))
