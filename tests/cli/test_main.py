"""The command line as a process: what a person types, sees, and gets back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.naive import FIRST_MODEL


def tesserec(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tesserec", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)


def test_help_starts_without_the_engine() -> None:
    heavy = "{'numba', 'numpy', 'pyarrow', 'pydantic'}"
    code = f"import sys, tesserec.cli; assert not {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("command", [[], ["data"], ["train"], ["evaluate"], ["predict"], ["data", "prepare"]])
def test_every_command_has_help(tmp_path: Path, command: list[str]) -> None:
    result = tesserec(tmp_path, *command, "--help")
    assert result.returncode == 0 and "Usage" in result.stdout


def test_a_mistake_is_one_line_and_status_2(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("data: {path: nowhere}\nmodel: {name: lr}\n")
    result = tesserec(tmp_path, "train", "run.yaml")
    assert result.returncode == 2
    assert "nowhere/dataset.json: no such file" in result.stderr and "Traceback" not in result.stderr


def test_from_nothing_to_scores_with_a_model_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FIRST_MODEL)
    (tmp_path / "run.yaml").write_text(
        'data: {path: data, batch_size: 256}\nmodel: {name: "mine:Mine", embedding_dim: 4}\noutput: run\n'
    )
    for arguments in (
        ["data", "synth", "clicks.csv", "--rows", "3000"],
        ["data", "prepare", "clicks.csv", "--schema", "clicks.schema.yaml", "-o", "data"],
        ["train", "run.yaml"],
        ["predict", "run", "clicks.csv", "-o", "scores.parquet"],
    ):
        result = tesserec(tmp_path, *arguments)
        assert result.returncode == 0, result.stderr
    inspected = tesserec(tmp_path, "data", "inspect", "data", "--json", "--plot", "data.png")
    assert json.loads(inspected.stdout)["rows"] == 3000
    assert (tmp_path / "data.png").stat().st_size > 10_000
    metrics = json.loads(tesserec(tmp_path, "evaluate", "run", "--json").stdout)
    assert 0 < metrics["model"]["auc"] < 1
