"""A picture of statistics: frequency curves, lengths of bags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from tesserec.dataio.inspect_plot import GRID, SOFT, STYLE
from tesserec.dataio.stats import DataStats, FeatureStats

_NAMED = 12  # curves with a name of their own


def plot_stats(stats: DataStats, path: str | Path) -> None:
    """Write a picture (format by the suffix: .png, .svg, .pdf): shares by rank, cache hits, lengths."""
    order = sorted(stats.features.items(), key=lambda item: item[1].rows)
    features = {name: feature for name, feature in order if feature.ids}
    lists = {name: feature for name, feature in features.items() if feature.lengths.longest > 1}
    with matplotlib.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15)
        panels = 3 if lists else 2
        figure = Figure(figsize=(5.6 * panels, 4.6), layout=layout, facecolor="white")
        axes: Any = figure.subplots(1, panels)
        title = f"{'; '.join(stats.data)} · {stats.rows:,} rows"
        figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold")
        _frequencies(axes[0], features)
        _caches(axes[1], features)
        if lists:
            _lengths(axes[2], lists)
        figure.savefig(path, dpi=130)


def _shades(features: Mapping[str, FeatureStats]) -> Any:
    """(name, feature, colour, label) of each; small tables dark, large ones light."""
    shades = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.85, max(len(features), 1)))
    every = max(1, -(-len(features) // _NAMED))
    for place, ((name, feature), shade) in enumerate(zip(features.items(), shades, strict=True)):
        yield feature, shade, name if place % every == 0 else None


def _frequencies(axes: Any, features: Mapping[str, FeatureStats]) -> None:
    axes.set_title("Share of the ids that one row gets, by rank")
    for feature, shade, label in _shades(features):
        counts, shares = np.array(feature.curve.counts), np.array(feature.curve.shares)
        order = np.argsort(-shares / counts)
        read = order[shares[order] > 0]
        middle = np.cumsum(counts[read]) - counts[read] / 2 + 0.5
        axes.plot(middle, shares[read] / counts[read], color=shade, lw=1.3, alpha=0.85, label=label)
    axes.set(xscale="log", yscale="log", xlabel="rank of the row")
    axes.grid(color=GRID)
    axes.legend(fontsize=7, frameon=False, labelcolor=SOFT)


def _caches(axes: Any, features: Mapping[str, FeatureStats]) -> None:
    axes.set_title("Share of the ids that go to the hottest rows")
    parts = np.geomspace(1e-5, 1, 101)
    for feature, shade, _ in _shades(features):
        some = parts[parts * feature.rows >= 1]
        axes.plot(
            100 * some, 100 * feature.curve.hottest(some * feature.rows), color=shade, lw=1.3, alpha=0.85
        )
    axes.set(xscale="log", ylim=(0, 102), xlabel="hottest rows, % of the table (dark: small tables)")
    axes.yaxis.set_major_formatter("{x:g} %")
    axes.grid(color=GRID)


def _lengths(axes: Any, features: Mapping[str, FeatureStats]) -> None:
    axes.set_title("Ids in a bag: share of the bags with at most so many")
    for feature, shade, label in _shades(features):
        bags, ids = np.array(feature.lengths.bags), np.array(feature.lengths.ids)
        some = bags > 0
        shares = 100 * np.cumsum(bags[some]) / bags.sum()
        axes.step(ids[some] / bags[some], shares, where="post", color=shade, lw=1.3, label=label)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_ylim(0, 102)
    axes.yaxis.set_major_formatter("{x:g} %")
    axes.grid(color=GRID)
    axes.legend(fontsize=7, frameon=False, labelcolor=SOFT, loc="lower right")
