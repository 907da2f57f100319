"""The tables: where they lie, how they are cut, how skewed they are read, and what else could be done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from tesserec.sharding.planner.report.cuts import drawable, drawing, rest_in_words
from tesserec.sharding.planner.report.figures import Line, colours, curves
from tesserec.sharding.planner.report.markup import (
    Markup,
    Section,
    folded,
    join,
    legend,
    plot,
    swatch,
    table,
    tag,
)
from tesserec.sharding.planner.report.treemap import DEEP, treemap
from tesserec.sharding.planner.report.words import (
    common_prefix,
    of_bytes,
    of_change,
    of_count,
    of_kind,
    of_ranks,
    of_seconds,
    of_share,
    plural,
    significant,
    spoken,
)
from tesserec.sharding.planner.result import Alternative, Document, TablePart

LISTED = 16  # tables beside the curves
CURVES, GREY = 8, 100  # tables with a curve of their own colour, and those in grey
CUTS, ALIKE = 12, 4  # tables that are drawn, and those of one kind
MANY = 200  # tables of which only the best alternatives are shown
BEST = 6


def short_names(document: Document) -> dict[str, str]:
    """{table: its name without what all names start with}."""
    names = [part["name"] for part in document["tables"]]
    prefix = common_prefix(names)
    return {name: name.removeprefix(prefix) for name in names}


def kind_colours(document: Document) -> dict[str, str]:
    """{kind: colour}, most tables first."""
    kinds = [part.get("kind", "") for part in document["tables"]]
    return colours(sorted(set(kinds), key=lambda kind: (-kinds.count(kind), kind)))


def places(document: Document) -> Section | None:
    """Hosts, ranks and their rectangles; and how the large tables are cut."""
    if "ranks" not in document:
        return None
    says = "Areas are bytes, replicas included. A click goes into a host or rank, one on the bar above back."
    if document["topology"]["num_ranks"] > DEEP:
        says += " The stronger its blue, the busier a rank."
    short, kinds = short_names(document), kind_colours(document)
    figure = treemap(document, short, kinds, says)
    entries = [(_counted(kind, document["tables"]), colour) for kind, colour in kinds.items()]
    body = [legend(entries), plot(figure), _cuts(document, short)]
    return Section("Where tables lie", says, join(body), [figure])


def _counted(kind: str, tables: Sequence[TablePart]) -> str:
    """`row-wise (3 tables, 1.2 GB)`."""
    sizes = [part["table_bytes"] for part in tables if part.get("kind", "") == kind]
    return f"{of_kind(kind)} ({plural(len(sizes), 'table')}, {of_bytes(sum(sizes))})"


def _cuts(document: Document, short: Mapping[str, str]) -> Markup:
    """The largest tables that are cut."""
    num_ranks = document["topology"]["num_ranks"]
    cut = _unlike([part for part in document["tables"] if drawable(part)])
    if not cut:
        return Markup()
    drawings = join(drawing(part, short[part["name"]], num_ranks) for part in cut)
    rest = rest_in_words(document["tables"], len(cut))
    says = f"Rows go down, columns to the right; grey is on several ranks; thin bands are widened. {rest}"
    return join([tag("h3", "Tables that are cut"), tag("p", says), tag("div", drawings, cls="cuts")])


def _unlike(tables: Sequence[TablePart]) -> Sequence[TablePart]:
    """The first few of each kind: more of the same show nothing new."""
    seen: Counter[str] = Counter()
    kept = []
    for part in tables:
        seen[part.get("kind", "")] += 1
        if seen[part.get("kind", "")] <= ALIKE:
            kept.append(part)
    return kept[:CUTS]


def skew(document: Document) -> Section | None:
    """How many rows get most of the reads."""
    tables = [part for part in document["tables"] if len(part["curve"]["rows"]) > 2]
    if not tables:
        return None
    busiest = sorted(tables, key=lambda part: -part["ids"])[: CURVES + GREY]
    short = short_names(document)
    lines = _curves(busiest, short)
    says = (
        "A curve that rises early has few hot rows, which caches and replicas can take; "
        "one that rises only at the end is read evenly."
    )
    figure = curves("skew", says, lines, max(0, len(lines) - CURVES))
    entries = list(colours(list(lines)[:CURVES]).items())
    entries += [("other tables", "var(--rule)")] * (len(lines) > CURVES)
    rows = [_skew(part, short[part["name"]]) for part in busiest[:LISTED]]
    head = ("table", "rows", "rows with 50 % of ids", "80 %", "95 %", "80 %, of its rows")
    title = f"The {len(rows)} most read" if len(rows) < len(tables) else "Every table"
    body = [legend(entries), plot(figure), folded(title, table(head, rows))]
    return Section("Hot rows", says, join(body), [figure])


def _curves(tables: Sequence[TablePart], short: Mapping[str, str]) -> dict[str, Line]:
    """{name: (rows, share)}; tables with the same curve have one."""
    alike: dict[tuple[tuple[float, ...], ...], list[str]] = {}
    for part in tables:
        line = (tuple(part["curve"]["rows"]), tuple(part["curve"]["share"]))
        alike.setdefault(line, []).append(short[part["name"]])
    return {
        names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} alike": (rows, share)
        for (rows, share), names in alike.items()
    }


def _skew(part: TablePart, name: str) -> Sequence[str]:
    half, most, nearly_all = (_rows_for(part, share) for share in (0.5, 0.8, 0.95))
    counts = map(of_count, map(round, (part["rows"], half, most, nearly_all)))
    return name, *counts, of_share(most / part["rows"])


def _rows_for(part: TablePart, share: float) -> float:
    """How many hottest rows get `share` of the ids, between the points of the curve."""
    rows, shares = part["curve"]["rows"], part["curve"]["share"]
    for i in range(1, len(rows)):
        if shares[i] >= share:
            rise = shares[i] - shares[i - 1]
            return rows[i - 1] + (rows[i] - rows[i - 1]) * ((share - shares[i - 1]) / rise if rise else 1.0)
    return rows[-1]


def choices(document: Document) -> Section | None:
    """Every table with what else could be done with it, to be searched."""
    if not any(part.get("alternatives") for part in document["tables"]):
        return None
    says = "Open a table to see what else could be done with it and why that lost."
    short, inks = short_names(document), kind_colours(document)
    most = BEST if len(document["tables"]) > MANY else None
    num_ranks = document["topology"]["num_ranks"]
    entries = join(
        _choice(part, short[part["name"]], inks[part.get("kind", "")], num_ranks, most)
        for part in document["tables"]
    )
    hint = "Find a table or a placement"
    find = {"type": "search", "id": "find", "placeholder": hint, "aria-label": hint}
    counted = tag("output", plural(len(document["tables"]), "table"), more={"id": "found", "for": "find"})
    bar = tag("div", tag("input", more=find), counted, cls="find")
    listed = tag("div", entries, cls="choices", more={"id": "choices"})
    return Section("Alternatives", says, join([bar, COLUMNS, listed]))


COLUMNS = tag(
    "div",
    tag("span", "table"),
    tag("span", "placement", cls="words"),
    tag("span", "memory", cls="number"),
    tag("span", "busiest rank", cls="number"),
    cls="columns",
)


def _choice(part: TablePart, name: str, ink: str, num_ranks: int, most: int | None) -> Markup:
    words = part.get("words", "")
    seconds = part.get("seconds")
    head = tag(
        "summary",
        tag("span", name, cls="name"),
        tag("span", swatch(ink), words, cls="words"),
        tag("span", of_bytes(part.get("memory_bytes", part["table_bytes"])), cls="number"),
        tag("span", of_seconds(seconds), cls="number"),
    )
    found = f"{part['name']} {part.get('kind', '')} {words} {part.get('tier', '')}".lower()
    body = [tag("p", _facts(part, num_ranks), cls="facts"), _alternatives(part.get("alternatives", []), most)]
    return tag("details", head, *body, more={"data-find": found})


def _facts(part: TablePart, num_ranks: int) -> str:
    """What the table is and what is estimated of it, in a line."""
    sent, imbalance, hits = part.get("sent_bytes"), part.get("imbalance"), part.get("hits")
    facts = [
        f"{part['rows']:,} rows × {part['dim']} {part['data_type']}",
        f"{of_count(part['ids'])} ids a sample",
        of_ranks(part["ranks"], num_ranks) if "ranks" in part else "",
        f"{part['num_pieces']:,} rectangles" if part.get("num_pieces", 1) > 1 else "",
        f"in {part['tier']}" if part.get("tier") else "",
        f"{of_bytes(sent)} sent a step" if sent else "",
        f"busiest rank × {significant(imbalance)} of the mean" if imbalance and imbalance > 1.005 else "",
        f"{of_share(hits)} of reads from the fastest memory" if hits is not None else "",
        "features " + ", ".join(part["features"]) if len(part["features"]) > 1 else "",
        *(f"{spoken(stage)} {of_seconds(time)}" for stage, time in part.get("stages", {}).items() if time),
    ]
    return " · ".join(fact for fact in facts if fact)


def _alternatives(alternatives: Sequence[Alternative], most: int | None) -> Markup:
    chosen = next((a["step_seconds"] for a in alternatives if a["chosen"]), None)
    rows = [
        (
            tag("strong", a["words"]) if a["chosen"] else a["words"],
            of_seconds(a["step_seconds"]),
            _difference(a, chosen),
            of_bytes(a["memory_bytes"]),
            tag("span", "chosen" if a["chosen"] else a["why"], cls="why" if a["fits"] else "why lacks"),
        )
        for a in alternatives[:most]
    ]
    head = ("placement", "step", "slower", "memory", "why it lost")
    listed = table(head, rows, words=(0, 4), cls="flowing alternatives")
    left = len(alternatives) - len(rows)
    return join([listed, tag("p", f"{left} more in the JSON.", cls="facts") if left else Markup()])


def _difference(alternative: Alternative, chosen: float | None) -> str:
    seconds = alternative["step_seconds"]
    if alternative["chosen"] or seconds is None or not chosen:
        return "–"
    return of_change(seconds / chosen - 1)
