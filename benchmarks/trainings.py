"""Training runs of the command line, for the benchmarks that compare their outcomes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def tesserec(folder: Path, *arguments: str) -> None:
    """The command, run in `folder`; RuntimeError with what it wrote if it fails."""
    command = [sys.executable, "-m", "tesserec", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def train(
    folder: Path, run: str, settings: Mapping[str, Any], ranks: int = 1, timeline: Path | None = None
) -> Line:
    """Train folder/config.yaml with changed keys, from the start, into folder/run -> its report."""
    options = [option for key, value in settings.items() for option in ("--set", f"{key}={value}")]
    options += ["--ranks", str(ranks), *(["--timeline", str(timeline)] if timeline else [])]
    tesserec(folder, "train", "config.yaml", "--overwrite", "--set", f"output={run}", *options)
    report: Line = json.loads((folder / run / "report.json").read_text())
    return report
