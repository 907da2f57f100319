"""train, evaluate and predict as a user runs them, and what kill, Ctrl-C and SIGTERM do to them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner, Result

from tesserec.cli import app
from tesserec.cli.train import noting_signals
from tesserec.dataio.prepare import prepare
from tesserec.dataio.schema import Schema
from tesserec.train.predict import predict_files
from tesserec.train.run import read_journal


def tesserec(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)


@pytest.fixture
def config(configure: Any, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(configure().model_dump(mode="json")))
    return path


def test_train_evaluate_predict(config: Path, data: Path, tmp_path: Path) -> None:
    run, scores = tmp_path / "run", tmp_path / "scores.parquet"
    assert tesserec("train", config, "--set", "train.epochs=2").exit_code == 0
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.yaml",
        "dataset.json",
        "checkpoints",
        "metrics.jsonl",
        "measured.json",
        "curve.png",
        "report.json",
        "report.md",
    }
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((run / "report.json").read_text())["steps"] == 20

    result = tesserec("evaluate", run, "--compare-column", "p_true", "--json")
    metrics = json.loads(result.stdout)
    assert 0.5 < metrics["model"]["auc"] < metrics["p_true"]["auc"] and metrics["model"]["rows"] == 200
    assert "calibration" in tesserec("evaluate", run, "--split", "valid", "--checkpoint", "last").stdout

    assert tesserec("predict", run, data / "test.parquet", "-o", scores).exit_code == 0
    table = pq.read_table(scores)
    assert table.column_names == ["p_true", "label", "group", "score"] and table.num_rows == 200
    assert tesserec("predict", run, data / "test.parquet", "-o", scores, "--columns", "none").exit_code == 0
    np.testing.assert_array_equal(pq.read_table(scores)["score"], table["score"])


def test_validation_in_training_equals_evaluate(config: Path, tmp_path: Path) -> None:
    """The best checkpoint, read back, gives the very numbers that made it the best."""
    tesserec("train", config)
    best = json.loads((tmp_path / "run/report.json").read_text())["best_validation"]
    found = json.loads(tesserec("evaluate", tmp_path / "run", "--split", "valid", "--json").stdout)["model"]
    assert found == {name: best[name] for name in found}


def test_raw_rows_score_as_their_prepared_selves(tmp_path: Path, configure: Any) -> None:
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "click": rng.integers(0, 2, 500),
            "price": rng.random(500),
            "user": [f"u{i}" for i in rng.integers(0, 40, 500)],
            "tags": [" ".join(f"t{i}" for i in rng.integers(0, 9, rng.integers(0, 3))) for _ in range(500)],
        }
    )
    pq.write_table(table, tmp_path / "raw.parquet")
    schema = Schema.model_validate(
        {
            "name": "raw",
            "labels": "click",
            "dense": "price",
            "sparse": ["user", {"column": "tags", "delimiter": " "}],
            "split": {"by": "ratio", "train": 0.6, "valid": 0.2, "test": 0.2},
        }
    )
    prepare([tmp_path / "raw.parquet"], schema, tmp_path / "prepared")
    config = tmp_path / "raw.yaml"
    values = configure(data__path=str(tmp_path / "prepared"), train__max_steps=3).model_dump(mode="json")
    config.write_text(yaml.safe_dump(values))
    assert tesserec("train", config).exit_code == 0

    run, out = tmp_path / "run", tmp_path / "scores.parquet"
    assert tesserec("predict", run, tmp_path / "raw.parquet", "-o", out, "--columns", "all").exit_code == 0
    from_raw = pq.read_table(out)
    unlabelled = tmp_path / "unlabelled.parquet"
    pq.write_table(table.set_column(0, "click", pa.nulls(500, pa.int64())), unlabelled)
    assert tesserec("predict", run, unlabelled, "-o", out).exit_code == 0
    assert pq.read_table(out)["score"].equals(from_raw["score"])
    assert from_raw.num_rows == 500 and {"user", "tags", "score"} <= set(from_raw.column_names)
    test = tmp_path / "prepared/test.parquet"
    predict_files(run, [test], out, raw=False, name="p")
    want = dict.fromkeys(pq.read_table(out)["p"].to_pylist())
    got = set(from_raw["score"].to_pylist())
    assert set(want) <= got


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "{config}", "--set", "train.epoch=3"], "did you mean 'epochs'"),
        (["train", "{config}", "--set", "data.path=/nowhere"], "/nowhere/dataset.json: no such file"),
        (["evaluate", "{run}"], "no training run here"),
        (["predict", "{run}", "x.parquet", "-o", "y.parquet"], "no training run here"),
    ],
)
def test_errors_say_what_is_wrong(
    config: Path, tmp_path: Path, arguments: Sequence[str], message: str
) -> None:
    result = tesserec(*(part.format(config=config, run=tmp_path / "run") for part in arguments))
    assert message in str(result.exception)


def test_predict_leaves_nothing_behind_when_it_fails(config: Path, data: Path, tmp_path: Path) -> None:
    tesserec("train", config, "--set", "train.max_steps=2")
    table = pq.read_table(data / "test.parquet")
    bad = table.set_column(table.column_names.index("user"), "user", pa.array([10**6] * len(table)))
    pq.write_table(bad, tmp_path / "bad.parquet")
    result = tesserec(
        "predict",
        tmp_path / "run",
        tmp_path / "bad.parquet",
        "-o",
        tmp_path / "y.parquet",
        "--input",
        "prepared",
    )
    assert "feature 'user'" in str(result.exception) and "1000000" in str(result.exception)
    assert not [path for path in tmp_path.iterdir() if "y.parquet" in path.name]


def start(config: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tesserec", "train", str(config), "--resume", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for(path: Path, lines: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or len(path.read_bytes().splitlines()) < lines:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)


def test_interrupted_and_killed_processes_resume_exactly(config: Path, tmp_path: Path) -> None:
    long = [
        "--set",
        "train.epochs=16",
        "--set",
        "train.checkpoint_every=10",
        "--set",
        "train.early_stopping=null",
    ]
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert tesserec("train", config, *long, "--set", f"output={whole}").exit_code == 0
    for number, lines, code in ((signal.SIGINT, 3, 130), (signal.SIGKILL, 12, -signal.SIGKILL)):
        with start(config, *long) as process:
            wait_for(run / "metrics.jsonl", lines, process)
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
        assert process.returncode == code
        assert ("To go on, add --resume to the same command" in errors) == (code == 130)
    assert read_journal(run / "metrics.jsonl")[-1]["step"] < 160
    assert tesserec("train", config, *long, "--resume").exit_code == 0
    for file in (whole / "metrics.jsonl", *(whole / "checkpoints").rglob("*.npy")):
        assert file.read_bytes() == (run / file.relative_to(whole)).read_bytes()


def test_first_signal_is_noted_and_the_second_leaves() -> None:
    seen: list[int] = []
    with pytest.raises(SystemExit) as left, noting_signals(seen):
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGTERM)
    assert left.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
