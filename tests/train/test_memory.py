"""The memory of a run, told before it is taken, and runs measured with smaller tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from tesserec.cli import app
from tesserec.dataio.dataset import Dataset
from tesserec.embeddings import memory
from tesserec.embeddings.memory import MemoryLimitError
from tesserec.train.loop import Trainer
from tesserec.train.memory import bag_lengths, run_memory


def tesserec(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def config(configure: Any, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(configure().model_dump(mode="json")))
    return path


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)


def test_report_is_what_training_allocates(configure: Any) -> None:
    settings = configure()
    found = run_memory(settings, Dataset.open(settings.data.path))
    learner = Trainer(settings).learner
    state = sum(a.nbytes for slots in learner.row_optimizer.state.values() for a in slots.values())
    rows = sum(pool.data.nbytes for pool in learner.row_optimizer.pools.values())
    assert (found.rows_bytes, found.state_bytes) == (rows, state)


def test_bag_lengths(data: Path) -> None:
    found = bag_lengths(Dataset.open(data), "train")
    assert found.keys() == {"genres"} and 1 < found["genres"] < 3


def test_memory_command(config: Path) -> None:
    result = tesserec("memory", config, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    assert found["total_bytes"] == found["dense_bytes"] + sum(t["total_bytes"] for t in found["tables"])
    shown = tesserec("memory", config).stdout
    assert all(table["table"] in shown for table in found["tables"]) and "this machine can give" in shown


def test_what_cannot_fit_is_not_begun(configure: Any, config: Path, little_memory: None) -> None:
    settings = configure()
    with pytest.raises(MemoryLimitError, match=r"but there are 1\.0 KiB\. The largest: '"):
        Trainer(settings)
    assert not settings.output.exists()
    assert tesserec("memory", config).exit_code == 1


@pytest.mark.parametrize("data_type", ["int8", "bfloat16"])
def test_evaluate_with_smaller_tables(configure: Any, data_type: str) -> None:
    settings = configure()
    Trainer(settings).fit()
    plain = json.loads(tesserec("evaluate", settings.output, "--json").stdout)
    found = json.loads(tesserec("evaluate", settings.output, "--tables", data_type, "--json").stdout)
    tables = found.pop("tables")
    assert found.keys() == plain.keys() == {"model"}
    assert found["model"]["log_loss"] == pytest.approx(plain["model"]["log_loss"], abs=0.02)
    assert {table["data_type"] for table in tables} <= {data_type, "float32"}
    assert all(table["relative"] < 0.02 for table in tables)
    shown = tesserec("evaluate", settings.output, "--tables", data_type).stdout
    assert "AUC" in shown and tables[0]["table"] in shown
