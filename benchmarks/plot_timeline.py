"""A picture of a few steps of a file of `tesserec train --timeline`, for pages that cannot open Perfetto.

python -m benchmarks.plot_timeline steps.json steps.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.patches import Patch

COLORS = {
    "look_up": "#ffb703",
    "compute": "#8ecae6",
    "row_grads": "#fb8500",
    "update": "#8338ec",
    "input_dist": "#06d6a0",
    "reduce_dense": "#ef476f",
    "read": "#555555",
}
SHOWN = 3.5  # steps
Thread = tuple[int, int]  # process, thread


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("timeline", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    events = json.loads(args.timeline.read_text())["traceEvents"]
    named = [e for e in events if e["name"] == "thread_name"]
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in named}
    plot([e for e in events if e["ph"] == "X"], threads, args.picture)


def plot(events: list[Any], threads: dict[Thread, str], path: Path) -> None:
    """A line for each thread, from the middle of the timeline on."""
    steps = sorted((e for e in events if e["name"] == "step"), key=lambda e: e["ts"])
    middle = steps[len(steps) // 2]
    start, shown = middle["ts"], SHOWN * middle["dur"]
    lines = sorted(threads, key=lambda key: (key[0], threads[key] != "MainThread", threads[key]))
    figure, axes = plt.subplots(figsize=(12, 0.45 * len(lines) + 1.2))
    for event in events:
        if event["name"] in COLORS and start <= event["ts"] + event["dur"] and event["ts"] <= start + shown:
            line = lines.index((event["pid"], event["tid"]))
            axes.barh(line, event["dur"] / 1e3, 0.6, (event["ts"] - start) / 1e3, color=COLORS[event["name"]])
    labels = [f"rank {rank}, {_short(threads[rank, thread])}" for rank, thread in lines]
    axes.set_yticks(range(len(lines)), labels)
    axes.invert_yaxis()
    axes.set(xlim=(0, shown / 1e3), xlabel="ms")
    handles = [Patch(color=color, label=name) for name, color in COLORS.items()]
    figure.legend(handles=handles, ncols=len(handles), loc="upper center", frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    figure.savefig(path, dpi=110)


def _short(thread: str) -> str:
    return {"MainThread": "main", "tesserec-ahead_0": "reader"}.get(
        thread, thread.removeprefix("tesserec-").removesuffix("_0")
    )


if __name__ == "__main__":
    main()
