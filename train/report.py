"""What a run leaves for people: the learning curve as a picture, the outcome as markdown and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tesserec.autograd.workers import num_threads
from tesserec.dataio.atomic import atomic_file
from tesserec.embeddings.pool import Pool
from tesserec.sharding.model import table_shapes
from tesserec.train.loop import Trainer
from tesserec.train.run import read_journal

INK, MUTED, BLUE, ORANGE = "#1f2933", "#7b8794", "#2f6fde", "#e8702a"
TITLES = {
    "auc": "AUC",
    "auc_histogram": "AUC (histogram)",
    "gauc": "GAUC",
    "log_loss": "log loss",
    "ne": "normalized entropy",
    "calibration": "calibration",
    "label_rate": "label rate",
    "rows": "rows",
    "unseen_ids": "ids that the tables do not have",
    "gauc_groups": "groups with both labels",
    "auc_histogram_error": "AUC error bound",
}


def write_curve(path: Path, journal: Path, *, title: str, monitored: str) -> None:
    """Draw training and validation loss, and the monitored metric, over steps: a PNG at `path`."""
    import matplotlib

    lines = read_journal(journal)
    training = [line for line in lines if line["kind"] == "train"]
    validation = [line for line in lines if line["kind"] == "valid"]
    with matplotlib.rc_context(_STYLE):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
        loss, metric = figure.subplots(1, 2)
        _draw_loss(loss, training, validation)
        _draw_metric(metric, validation, monitored)
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png")


_STYLE: Any = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": "#cbd2d9",
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}


def _draw_loss(axes: Any, training: Sequence[Any], validation: Sequence[Any]) -> None:
    axes.set(title="log loss", xlabel="step")
    steps, loss = _series(training, "loss")
    axes.plot(steps, loss, color=BLUE, alpha=0.25, linewidth=1)
    axes.plot(steps, _smooth(loss), color=BLUE, linewidth=1.8, label="training")
    axes.plot(*_series(validation, "log_loss"), color=ORANGE, marker="o", markersize=4, label="validation")
    seen = np.concatenate([_smooth(loss), _series(validation, "log_loss")[1]])
    if np.isfinite(seen).any():  # the first few steps must not flatten the rest
        low, high = np.nanmin(seen), np.nanquantile(seen, 0.98)
        axes.set_ylim(low - 0.08 * (high - low) - 1e-6, high + 0.12 * (high - low) + 1e-6)
    axes.set_xlim(left=0)
    axes.legend(loc="upper right")


def _draw_metric(axes: Any, validation: Sequence[Any], monitored: str) -> None:
    axes.set(title=f"validation {TITLES[monitored]}", xlabel="step")
    axes.plot(*_series(validation, monitored), color=ORANGE, marker="o", markersize=4)
    for best in [line for line in validation if line["best"]][-1:]:
        step, value = best["step"], best[monitored]
        axes.plot(step, value, marker="o", markersize=11, fillstyle="none", color=INK)
        axes.set_title(f"validation {TITLES[monitored]}: best {value:.5f} at step {step:,}")
    axes.margins(y=0.15)
    axes.set_xlim(left=0)
    axes.ticklabel_format(useOffset=False)


def _series(lines: Sequence[Any], key: str) -> tuple[Any, Any]:
    """Steps and values of `key`, as arrays; null is NaN."""
    return np.array([line["step"] for line in lines]), np.array([line[key] for line in lines], float)


def _smooth(values: Any, share: float = 0.05) -> Any:
    """Centred moving mean over `share` of the points."""
    half = int(len(values) * share / 2)
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def write_outcome(trainer: Trainer) -> dict[str, Any]:
    """Draw the curve and write report.json and report.md of the run, as far as it is -> the report."""
    run, config, report = trainer.run, trainer.config, outcome(trainer)
    title = f"{report['model']} on {report['data']}"
    write_curve(run.path / "curve.png", run.metrics, title=title, monitored=config.train.monitored)
    with atomic_file(run.path / "report.json") as path:
        path.write_text(json.dumps(report, indent=2) + "\n")
    with atomic_file(run.path / "report.md") as path:
        path.write_text(_markdown(report))
    return report


def outcome(trainer: Trainer) -> dict[str, Any]:
    """What a run came to, as JSON values."""
    state, model, sharded = trainer.state, trainer.learner.model, trainer.learner.sharded
    whole = model if sharded is None else sharded.model
    return {
        "model": trainer.config.model.name,
        "data": trainer.dataset.info.name,
        "outcome": trainer.finished() or "stopped; it can be resumed",
        "steps": state.step,
        "epochs": state.step / trainer.batches_per_epoch,
        "samples": state.samples,
        "training_seconds": state.seconds,
        "samples_per_second": state.samples / state.seconds if state.seconds else None,
        "dense_parameters": sum(p.size for p in whole.parameters() if not isinstance(p, Pool)),
        "embedding_parameters": sum(math.prod(shape) for shape in table_shapes(model).values()),
        "ranks": trainer.comm.size,
        "threads": num_threads(),
        "monitored": trainer.settings.monitored,
        "unseen_ids": state.unseen,
        "best_validation": state.best,
        "run": str(trainer.run.path),
    }


def _markdown(report: Mapping[str, Any]) -> str:
    facts = [("", ""), *((k.replace("_", " "), shown(v)) for k, v in report.items() if k not in _TABLES)]
    parts = [f"# {report['model']} on {report['data']}", _table(facts)]
    for name in _TABLES:
        if report.get(name):
            rows = [
                (TITLES.get(k, k), shown(v)) for k, v in report[name].items() if k not in ("kind", "best")
            ]
            parts += [f"## {name.replace('_', ' ').capitalize()}", _table([("", ""), *rows])]
    return "\n\n".join([*parts, "![learning curve](curve.png)"]) + "\n"


_TABLES = ("unseen_ids", "best_validation")


def _table(rows: Sequence[tuple[str, str]]) -> str:
    head, *body = [f"| {name} | {value} |" for name, value in rows]
    return "\n".join([head, "|---|---:|", *body])


def shown(value: Any) -> str:
    """A value as people read it."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.5f}" if abs(value) < 100 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
