"""A picture of an inspection: cardinalities, skew, numbers, missing values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from tesserec.dataio.inspect import ColumnReport, Inspection
from tesserec.dataio.statistics import NumberStats

INK, SOFT, GRID = "#22303c", "#7a8896", "#e4e9ee"
BLUE, TEAL, AMBER = "#2f6fb0", "#2a9d8f", "#e9a23b"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": SOFT,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


def plot_inspection(inspection: Inspection, path: str | Path) -> None:
    """Write a picture (format by the suffix: .png, .svg, .pdf) of what `inspect_data` found."""
    ids = [c for c in inspection.columns if c.ids and c.role not in ("label", "kept")]
    numbers = {c.name: c.numbers for c in inspection.columns if c.numbers and c.role in ("dense", "integer")}
    numbers |= {f"length of {c.name}": c.lengths for c in inspection.columns if c.lengths}
    heights = [1.3 + 0.21 * max(len(ids), 12), 1.3 + 0.21 * max(len(numbers), 8)]
    with matplotlib.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15)
        figure = Figure(figsize=(12, sum(heights)), layout=layout, facecolor="white")
        panels: Any = figure.subplots(2, 2, height_ratios=heights)
        figure.suptitle(_title(inspection), x=0.012, ha="left", fontsize=13, fontweight="bold")
        _cardinalities(panels[0, 0], ids)
        _skew(panels[0, 1], ids)
        _quantiles(panels[1, 0], numbers)
        _missing(panels[1, 1], inspection.columns)
        figure.savefig(path, dpi=130)


def _title(inspection: Inspection) -> str:
    rates = [f"{c.name} {c.numbers.mean:.1%}" for c in inspection.columns if c.role == "label" and c.numbers]
    return " · ".join([Path(inspection.path).name, f"{inspection.rows:,} rows", *rates])


def _rows(axes: Any, names: Sequence[str]) -> Any:
    """One line of the panel per name, the first at the top; their positions."""
    places = np.arange(len(names))
    axes.set_yticks(places, names)
    axes.set_ylim(max(len(names), 4) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    return places


def _cardinalities(axes: Any, columns: Sequence[ColumnReport]) -> None:
    axes.set_title("Distinct ids")
    distinct = [column.ids.distinct for column in columns if column.ids]
    places = _rows(axes, [column.name for column in columns])
    axes.barh(places, distinct, color=BLUE, height=0.68)
    axes.set_xscale("log")
    axes.set_xlim(0.8, 8 * max(distinct, default=1))
    for place, column in zip(places, columns, strict=True):
        if column.ids:
            text = f" {'' if column.ids.exact else '≈ '}{column.ids.distinct:,}"
            axes.text(column.ids.distinct, place, text, va="center", fontsize=7.5, color=SOFT)


def _skew(axes: Any, columns: Sequence[ColumnReport]) -> None:
    axes.set_title("Skew: share of the ids by rank")
    shades = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.85, max(len(columns), 1)))
    order = sorted((c for c in columns if c.ids), key=lambda c: c.ids.distinct if c.ids else 0)
    for column, shade in zip(order, shades, strict=False):
        if column.ids and column.ids.top:
            share = column.ids.top[0][1] / max(column.ids.counts[0], 1)
            counts = np.array(column.ids.counts) * share
            axes.plot(np.arange(1, len(counts) + 1), counts, color=shade, lw=1.3, alpha=0.85)
    exponents = [column.ids.zipf for column in columns if column.ids and column.ids.zipf is not None]
    if exponents:
        note = (
            f"Zipf exponent: median {np.median(exponents):.2f}, {min(exponents):.2f} to {max(exponents):.2f}"
        )
        axes.text(0.98, 0.97, note, transform=axes.transAxes, ha="right", va="top", color=SOFT)
    axes.set(xscale="log", yscale="log", xlabel="rank of the id (dark: few ids, light: many)")
    axes.grid(color=GRID)


def _quantiles(axes: Any, numbers: Mapping[str, NumberStats]) -> None:
    axes.set_title("Numbers: 1 % to 99 %, quartiles, median")
    places = _rows(axes, list(numbers))
    for place, stats in zip(places, numbers.values(), strict=True):
        low, first, median, third, high = stats.quantiles
        axes.plot([low, high], [place, place], color=TEAL, lw=1.2, alpha=0.6)
        axes.plot([first, third], [place, place], color=TEAL, lw=6, alpha=0.75, solid_capstyle="butt")
        axes.plot(median, place, "o", color="white", markeredgecolor=INK, markersize=4.5)
    axes.set_xscale("symlog", linthresh=1)


def _missing(axes: Any, columns: Sequence[ColumnReport]) -> None:
    axes.set_title("Missing values")
    some = sorted((column for column in columns if column.missing > 0), key=lambda column: -column.missing)[
        :40
    ]
    if not some:
        axes.text(0.5, 0.5, "none in any column", ha="center", va="center", color=SOFT)
        axes.set_axis_off()
        return
    places = _rows(axes, [column.name for column in some])
    axes.barh(places, [100 * column.missing for column in some], color=AMBER, height=0.68)
    axes.xaxis.set_major_formatter("{x:g} %")
    for place, column in zip(places, some, strict=True):
        axes.text(
            100 * column.missing, place, f" {column.missing:.1%}", va="center", fontsize=7.5, color=SOFT
        )
    axes.set_xlim(0, min(115, 125 * some[0].missing))
