"""Pictures as data: traces and layouts for plotly.js, which page.js gives the page's fonts and inks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from tesserec.sharding.planner.report.markup import Figure
from tesserec.sharding.planner.report.words import Unit, of_bytes

Trace = dict[str, Any]
Layout = dict[str, Any]
Line = tuple[Sequence[float], Sequence[float]]  # xs, ys
Stack = Mapping[str, Sequence[float]]  # {part: one number by rank}

ACCENT, PALE = "#2f6fde", "#a9c3f0"
# told apart by lightness too, so that no colour vision is needed
PALETTE = (
    "#2f6fde",
    "#f2b134",
    "#5bb8a6",
    "#d5503f",
    "#7c5fd3",
    "#9bb7e8",
    "#47824a",
    "#c58f6a",
    "#9aa5b1",
    "#c678a9",
    "#3f7f93",
    "#b5a642",
)
FEW = 16  # ranks that get a bar of their own with a name; of more the outline is drawn


def colours(names: Iterable[str]) -> dict[str, str]:
    """{name: its colour}; they come round again where there are many."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(dict.fromkeys(names))}


def stacked(name: str, says: str, parts: Stack, unit: Unit, limits: Sequence[float], limit: str) -> Figure:
    """What each rank has of each part, one upon the other, and a line at `limits`: by rank, [] for none.

    limit: what the line is.
    """
    num_ranks = len(next(iter(parts.values())))
    draw = _bars if num_ranks <= FEW else _outlines
    return draw(name, says, _scaled(parts, unit), unit[1], rounded(limits, unit), limit)


def _bars(name: str, says: str, parts: Stack, unit: str, limits: Sequence[float], limit: str) -> Figure:
    ranks = [f"rank {i} " for i in range(len(next(iter(parts.values()))))]
    traces: list[Trace] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": part,
            "y": ranks,
            "x": values,
            "marker": {"color": colour},
            "hovertemplate": f"%{{y}}: {part} %{{x}} {unit}<extra></extra>",
        }
        for (part, values), colour in zip(parts.items(), colours(parts).values(), strict=True)
    ]
    layout: Layout = {
        "barmode": "stack",
        "bargap": 0.35,
        "xaxis": {"title": {"text": unit}, "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "showgrid": False},
        "shapes": [_limit(i, at) for i, at in enumerate(limits)],
    }
    if limits:
        layout["annotations"] = [_note(limit, limits[0])]
        layout["margin"] = {"t": 26}
    return Figure(name, says, 90 + 34 * len(ranks) + 20 * bool(limits), traces, layout)


def _limit(rank: int, at: float) -> Mapping[str, Any]:
    """A dashed line beside the bar of one rank; those of equal ranks join."""
    line = {"color": "var(--ink)", "width": 1.5, "dash": "4px,3px"}
    return {"type": "line", "x0": at, "x1": at, "y0": rank - 0.5, "y1": rank + 0.5, "line": line}


def _note(words: str, at: float) -> Mapping[str, Any]:
    """Above the bars, where the line starts; it reaches to the left, where there is room."""
    place = {"x": at, "y": 1, "yref": "paper", "xanchor": "right", "yanchor": "bottom"}
    return place | {"text": words, "showarrow": False}


def _outlines(name: str, says: str, parts: Stack, unit: str, limits: Sequence[float], limit: str) -> Figure:
    traces: list[Trace] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": part,
            "x0": 0,
            "dx": 1,
            "y": values,
            "stackgroup": "parts",
            "line": {"width": 0, "shape": "hvh"},
            "fillcolor": colour,
            "hovertemplate": f"%{{y}} {unit}",
        }
        for (part, values), colour in zip(parts.items(), colours(parts).values(), strict=True)
    ]
    if limits:
        line = {"color": "var(--ink)", "width": 1.5, "dash": "4px,3px", "shape": "hvh"}
        common = {"type": "scatter", "mode": "lines", "name": limit, "x0": 0, "dx": 1, "line": line}
        traces.append(common | {"y": limits, "hovertemplate": f"%{{y}} {unit}"})
    layout: Layout = {
        "hovermode": "x unified",
        "xaxis": {"title": {"text": "rank"}, "showgrid": False},
        "yaxis": {"title": {"text": unit}, "rangemode": "tozero"},
    }
    return Figure(name, says, 340, traces, layout)


def matrix(name: str, says: str, values: Sequence[Sequence[float]], unit: Unit, of: str) -> Figure:
    """What each row sends to each column. of: "rank" or "host". Nothing is drawn for what sends nothing."""
    scaled = [rounded(line, unit) for line in values]
    cells = [[value or None for value in line] for line in scaled]
    trace: Trace = {
        "type": "heatmap",
        "z": cells,
        "zmin": 0,
        "zmax": max((max(line, default=0.0) for line in scaled), default=0.0) or 1.0,
        "colorscale": "accent",
        "xgap": 1 if len(cells) <= 64 else 0,
        "ygap": 1 if len(cells) <= 64 else 0,
        "hoverongaps": False,
        "hovertemplate": f"{of} %{{y}} → {of} %{{x}}: %{{z}} {unit[1]}<extra></extra>",
        "showscale": False,
    }
    if len(cells) <= 8:
        said = [[of_bytes(value) if value else "" for value in line] for line in values]
        trace |= {"text": said, "texttemplate": "%{text}"}
    ticks: Layout = {"dtick": 1} if len(cells) <= 16 else {}
    ticks |= {"constrain": "domain", "showgrid": False, "zeroline": False}
    layout: Layout = {
        "xaxis": ticks | {"title": {"text": f"to {of}"}, "constraintoward": "left"},
        "yaxis": ticks | {"title": {"text": f"from {of}"}, "constraintoward": "top"},
    }
    layout["yaxis"] |= {"autorange": "reversed", "scaleanchor": "x"}
    return Figure(name, says, 320 if len(cells) <= 4 else 560, [trace], layout, square=True)


def curves(name: str, says: str, lines: Mapping[str, Line], others: int) -> Figure:
    """Share of the ids over so many hottest rows; all but the first lines in grey. others: how many are."""
    named = dict(list(lines.items())[: len(lines) - others])
    grey = list(lines.items())[len(named) :]
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "other tables",
            "x": [x for _, (rows, _) in grey for x in (*rounded(rows[1:]), None)],
            "y": [y for _, (_, shares) in grey for y in (*rounded(shares[1:]), None)],
            "line": {"color": "var(--rule)", "width": 1},
            "hoverinfo": "skip",
        }
    ] * bool(grey)
    traces += [
        {
            "type": "scatter",
            "mode": "lines",
            "name": escape(table),
            "x": rounded(rows[1:]),
            "y": rounded(shares[1:]),
            "line": {"color": colour, "width": 2},
            "hovertemplate": "%{x:,.3~s} hottest rows get %{y:.0%}<extra>" + escape(table) + "</extra>",
        }
        for (table, (rows, shares)), colour in zip(named.items(), colours(named).values(), strict=True)
    ]
    layout: Layout = {
        "xaxis": {"title": {"text": "hottest rows"}, "type": "log", "tickformat": "~s", "dtick": 1},
        "yaxis": {"title": {"text": "share of ids"}, "tickformat": ".0%", "range": [0, 1.02]},
    }
    return Figure(name, says, 360, traces, layout)


def pairs(
    name: str, says: str, labels: Sequence[str], series: Mapping[str, Sequence[float | None]], unit: Unit
) -> Figure:
    """For each label the two bars of `series` side by side, the first one pale."""
    traces = [
        {
            "type": "bar",
            "name": what,
            "x": [escape(label) for label in labels],
            "y": [None if value is None else value / unit[0] for value in values],
            "marker": {"color": colour},
            "hovertemplate": f"%{{x}}: {what} %{{y:.4~g}} {unit[1]}<extra></extra>",
        }
        for (what, values), colour in zip(series.items(), (PALE, ACCENT), strict=True)
    ]
    layout: Layout = {
        "barmode": "group",
        "bargap": 0.3,
        "xaxis": {"type": "category", "showgrid": False, "range": [-0.5, max(len(labels), 3) - 0.5]},
        "yaxis": {"title": {"text": unit[1]}, "rangemode": "tozero"},
    }
    return Figure(name, says, 260, traces, layout)


def against(
    name: str, says: str, points: Mapping[str, tuple[float, float]], words: Callable[[float], str]
) -> Figure:
    """A dot for each of {what: (estimated, measured)}, and the line on which these are equal; logarithmic."""
    xs, ys = [rounded(values) for values in zip(*points.values(), strict=True)]
    ends = [0.8 * min(*xs, *ys), 1.25 * max(*xs, *ys)]
    said = [f"{escape(what)}: estimated {words(x)}, measured {words(y)}" for what, (x, y) in points.items()]
    diagonal: Trace = {"type": "scatter", "mode": "lines", "x": ends, "y": ends, "hoverinfo": "skip"}
    dots: Trace = {
        "type": "scatter",
        "mode": "markers",
        "x": xs,
        "y": ys,
        "text": said,
        "marker": {"color": ACCENT, "size": 7, "opacity": 0.75},
        "hovertemplate": "%{text}<extra></extra>",
    }
    ticks = _ticks(*ends)
    axis = {
        "type": "log",
        "tickvals": ticks,
        "ticktext": [re.sub(r"\.0+ ", " ", words(tick)) for tick in ticks],
    }
    layout: Layout = {
        "xaxis": axis | {"title": {"text": "estimated"}},
        "yaxis": axis | {"title": {"text": "measured"}},
    }
    return Figure(name, says, 300, [diagonal | {"line": {"color": "var(--rule)", "width": 2}}, dots], layout)


def _ticks(low: float, high: float) -> list[float]:
    """At most about six between `low` and `high`: every few powers of ten, or 1, 2, 5 in each."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 2 else (1,)
    every = max(1, (last - first) // 5)
    ticks = [step * 10.0**power for power in range(first, last + 1, every) for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


def rounded(values: Iterable[float], unit: Unit = (1.0, "")) -> list[float]:
    """In `unit`, with the four digits that a picture can show."""
    return [float(f"{value / unit[0]:.4g}") for value in values]


def _scaled(parts: Stack, unit: Unit) -> dict[str, list[float]]:
    return {part: rounded(values, unit) for part, values in parts.items()}
