"""A drawing of a table cut into its rectangles: rows downwards, columns to the right, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from tesserec.sharding.planner.report.figures import PALETTE
from tesserec.sharding.planner.report.markup import Markup, join, tag
from tesserec.sharding.planner.report.treemap import piece_words
from tesserec.sharding.planner.report.words import of_bytes, of_ranks, plural
from tesserec.sharding.planner.result import Piece, TablePart

WIDTH, HEIGHT = 240.0, 168.0
THIN, LINE = 17.0, 15.0  # how high the thinnest band is drawn where there is room; what a line of text takes
DRAWN = 64  # rectangles of a drawing that can still be told apart


def drawing(table: TablePart, name: str, num_ranks: int) -> Markup:
    """The table as a box of its rectangles: same colour, same rank; grey where several ranks hold it."""
    pieces = table.get("pieces", [])
    bands = _bands(table, pieces)
    cells = join(_cell(table, piece, bands, num_ranks) for piece in pieces)
    says = f"{name}: {table.get('words', '')}"
    view = {"viewBox": f"0 0 {WIDTH:g} {HEIGHT:g}", "role": "img", "aria-label": says}
    size = f"{table['rows']:,} × {table['dim']} · {of_bytes(table['table_bytes'])}"
    words = tag("figcaption", tag("strong", name), tag("span", size), tag("span", table.get("words", "")))
    return tag("figure", tag("svg", cells, more=view), words, cls="cut")


def drawable(table: TablePart) -> bool:
    """Whether it is cut, and into few enough."""
    return 1 < len(table.get("pieces", [])) <= DRAWN


def _bands(table: TablePart, pieces: Sequence[Piece]) -> dict[int, float]:
    """{row where something ends: how far down}. Thin bands are widened, the others pay for it."""
    cuts = sorted({0, table["rows"], *(row for piece in pieces for row in piece["rows"])})
    least = min(THIN, HEIGHT / (len(cuts) - 1))
    heights = [max(least, HEIGHT * (b - a) / table["rows"]) for a, b in pairwise(cuts)]
    spare, wanted = HEIGHT - least * len(heights), sum(height - least for height in heights)
    factor = spare / wanted if wanted else 0.0
    at, places = 0.0, {cuts[0]: 0.0}
    for cut, height in zip(cuts[1:], heights, strict=True):
        at += least + (height - least) * factor
        places[cut] = at
    return places


def _cell(table: TablePart, piece: Piece, bands: dict[int, float], num_ranks: int) -> Markup:
    (top, bottom), (left, right) = (bands[row] for row in piece["rows"]), piece["cols"]
    x, width = WIDTH * left / table["dim"], WIDTH * (right - left) / table["dim"]
    box = {"x": f"{x:.1f}", "y": f"{top:.1f}", "width": f"{width:.1f}", "height": f"{bottom - top:.1f}"}
    fill = "var(--all)" if len(piece["ranks"]) > 1 else PALETTE[piece["ranks"][0] % len(PALETTE)]
    holders = of_ranks(piece["ranks"], num_ranks)
    words = tag("title", f"{piece_words(table, piece)}: {holders}")
    drawn = tag("rect", words, more=box | {"fill": fill})
    return join([drawn, _label(holders, x + width / 2, (top + bottom) / 2, width, bottom - top)])


def _label(words: str, x: float, y: float, width: float, height: float) -> Markup:
    """The holders' names where they fit, else only their numbers, else nothing."""
    if height < LINE - 3:
        return Markup()
    fitting = [said for said in (words, words.rpartition(" ")[2]) if 8 * len(said) + 4 <= width]
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}"}
    return tag("text", fitting[0], more=place) if fitting else Markup()


def rest_in_words(tables: Sequence[TablePart], drawn: int) -> str:
    """What is not drawn, and why."""
    whole = sum(len(table.get("pieces", [])) == 1 for table in tables)
    others = len(tables) - drawn - whole
    said = [f"{plural(whole, 'table')} {'is' if whole == 1 else 'are'} not cut"] * bool(whole)
    said += [f"{others} more {'is' if others == 1 else 'are'} not drawn"] * bool(others)
    return f"{', '.join(said)}." if said else ""
