"""Estimate beside measurement, of what `tesserec plan compare` read from a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from tesserec.sharding.planner.report.figures import against, pairs
from tesserec.sharding.planner.report.markup import (
    Figure,
    Markup,
    Section,
    folded,
    join,
    legend,
    plot,
    table,
    tag,
)
from tesserec.sharding.planner.report.words import (
    BYTES,
    SECONDS,
    of_bytes,
    of_change,
    of_count,
    of_seconds,
    spoken,
    unit_of,
)
from tesserec.sharding.planner.result import Beside, Comparison, Document

FAR = 0.15  # relative error from which a number is marked
LISTED = 64  # ranks in a table
PAIR = [("estimated", "var(--pale)"), ("measured", "var(--bar)")]


def stages(document: Document) -> Section | None:
    """Seconds of each stage."""
    says = "Seconds of the busiest rank in each stage of a step; bars of a pair should be equally high."
    return _by_part(document, "stages", "Time by stage", says)


def memory(document: Document) -> Section | None:
    """Bytes of each part."""
    says = "Bytes of the fullest rank by part; too low an estimate is the dangerous side."
    return _by_part(document, "memory", "Memory by part", says)


def sent(document: Document) -> Section | None:
    """Bytes sent in each stage."""
    says = "Bytes of a step that the busiest rank sends in each stage."
    return _by_part(document, "sent_bytes", "Bytes sent", says)


def _by_part(document: Document, what: str, title: str, says: str) -> Section | None:
    if (comparison := document.get("comparison")) is None or not (parts := _parts(comparison, what)):
        return None
    highest = {part: _highest(ranks) for part, ranks in parts.items()}
    numbers = [n for pair in highest.values() for n in (pair["estimated"], pair["measured"]) if n is not None]
    in_seconds = what == "stages"
    unit = unit_of(max(numbers, default=0.0), SECONDS if in_seconds else BYTES)
    series = {
        "estimated": [pair["estimated"] for pair in highest.values()],
        "measured": [pair["measured"] for pair in highest.values()],
    }
    figure = pairs(f"compare-{what}", says, [spoken(part) for part in parts], series, unit)
    words = of_seconds if in_seconds else of_bytes
    rows = [
        (spoken(part), f"rank {rank}", words(pair["estimated"]), words(pair["measured"]), error(pair))
        for part, ranks in parts.items()
        for rank, pair in enumerate(ranks[:LISTED])
    ]
    listed = table(("part", "rank", "estimated", "measured", "error"), rows, words=(0, 1))
    body = [legend(PAIR), plot(figure), folded("Numbers of every rank", listed)]
    return Section(title, says, join(body), [figure])


def _parts(comparison: Comparison, what: str) -> Mapping[str, Sequence[Beside]]:
    """Those that are not nothing on both sides."""
    parts = {
        "stages": comparison["stages"],
        "memory": comparison["memory"],
        "sent_bytes": comparison["sent_bytes"],
    }[what]
    return {part: ranks for part, ranks in parts.items() if any(any(pair.values()) for pair in ranks)}


def _highest(ranks: Sequence[Beside]) -> Beside:
    """The highest estimate and the highest measurement of all ranks."""
    estimates = [pair["estimated"] for pair in ranks if pair["estimated"] is not None]
    measurements = [pair["measured"] for pair in ranks if pair["measured"] is not None]
    return {"estimated": max(estimates, default=None), "measured": max(measurements, default=None)}


def tables(document: Document) -> Section | None:
    """Every quantity of every table."""
    if (comparison := document.get("comparison")) is None or not comparison["tables"]:
        return None
    says = "A dot for each table; on the grey line both are equal, below it less was measured."
    quantities = list(dict.fromkeys(q for found in comparison["tables"].values() for q in found))
    figures = [figure for q in quantities if (figure := _dots(comparison, q))]
    panels = join(
        tag("div", tag("h3", spoken(figure.name.removeprefix("tables-"))), plot(figure)) for figure in figures
    )
    rows = [
        (
            name,
            spoken(quantity),
            _number(quantity, pair["estimated"]),
            _number(quantity, pair["measured"]),
            error(pair),
        )
        for name, found in comparison["tables"].items()
        for quantity, pair in found.items()
    ]
    head = ("table", "what", "estimated", "measured", "error")
    listed = folded("Numbers of every table", table(head, rows, words=(0, 1)))
    return Section("Tables", says, join([tag("div", panels, cls="panels"), listed]), figures)


def _dots(comparison: Comparison, quantity: str) -> Figure | None:
    """Of the tables that have both numbers."""
    points = {
        name: (pair["estimated"], pair["measured"])
        for name, found in comparison["tables"].items()
        if (pair := found.get(quantity)) and pair["estimated"] and pair["measured"]
    }
    if not points:
        return None
    says = f"Estimated against measured {spoken(quantity)}."
    return against(f"tables-{quantity}", says, points, partial(_number, quantity))


def _number(quantity: str, value: float | None) -> str:
    if quantity.endswith("seconds"):
        return of_seconds(value)
    return of_bytes(value) if quantity.endswith("bytes") else of_count(value)


def error(pair: Beside) -> Markup:
    """Estimate over measurement less one; marked where it is far off."""
    estimated, measured = pair["estimated"], pair["measured"]
    if estimated is None or not measured:
        return Markup("–")
    off = estimated / measured - 1
    return tag("span", of_change(off), cls="far" if abs(off) > FAR else "")
