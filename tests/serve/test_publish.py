"""What `tesserec train --publish` leaves in a repository is what training has come to."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pytest
import yaml
from typer.testing import CliRunner, Result

from tesserec.autograd.module import Module
from tesserec.cli import app
from tesserec.dataio.encoder import Encoder
from tesserec.embeddings.collection import dense_state, named_collections
from tesserec.serve.artefact import Artefact
from tesserec.serve.deltas import Follower, read_delta
from tesserec.serve.golden import score_rows

ROWS, EPOCHS = 900, 2
SCHEMA = {
    "name": "clicks",
    "labels": "click",
    "dense": [{"column": "price"}],
    "sparse": [{"column": "user"}, {"column": "item", "min_count": 40}],
    "split": {"by": "ratio", "train": 0.8, "valid": 0.1, "test": 0.1},
}
CONFIG: dict[str, Any] = {
    "data": {"batch_size": 64},
    "model": {"name": "dlrm", "embedding_dim": 16, "bottom": [8], "top": [8], "dropout": 0.1},
    "optimizer": {"dense": {"name": "adam", "lr": 0.01}, "rows": {"name": "rowwise_adagrad", "lr": 0.1}},
    "train": {"epochs": EPOCHS},
}
Train = Callable[..., Result]


def tesserec(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("publish"), np.random.default_rng(0)
    columns = {
        "click": rng.integers(0, 2, ROWS),
        "price": rng.random(ROWS),
        "user": [f"u{user}" for user in rng.integers(0, 200, ROWS)],
        "item": [f"i{item}" for item in rng.integers(0, 30, ROWS)],
    }
    pa.csv.write_csv(pa.table(columns), folder / "logs.csv")
    (folder / "schema.yaml").write_text(yaml.safe_dump(SCHEMA))
    result = tesserec(
        "data", "prepare", folder / "logs.csv", "--schema", folder / "schema.yaml", "-o", folder / "data"
    )
    assert result.exit_code == 0, result.output
    return folder / "data"


@pytest.fixture
def train(prepared: Path, tmp_path: Path) -> Train:
    """`train(*arguments)`: `tesserec train --publish repository/model`, of the run in tmp_path/run."""
    config = CONFIG | {"data": CONFIG["data"] | {"path": str(prepared)}, "output": str(tmp_path / "run")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))

    def run(*arguments: object) -> Result:
        publish = "--publish", tmp_path / "repository" / "model", "--publish-every", 0
        return tesserec("train", tmp_path / "config.yaml", *publish, *arguments)

    return run


class Idle:
    def refresh(self) -> None:
        pass


def served(version: Path) -> tuple[Module, Follower]:
    """The model of a version with all its deltas."""
    model = Artefact.open(version).model()
    follower = Follower(version, model, Idle(), threading.Lock())
    follower.poll()
    assert not follower.problem
    return model, follower


def stored(model: Module) -> list[bytes]:
    """All that a model knows, as it is stored."""
    pools = [pool.data.tobytes() for _, collection in named_collections(model) for pool in collection.pools]
    return pools + [array.tobytes() for array in dense_state(model).values()]


def scores(model: Module, version: Path) -> npt.NDArray[np.float32]:
    """Of the golden rows of a version."""
    return score_rows(model, Encoder.load(version / "encoder"), Artefact.open(version).golden()[0])


@pytest.mark.parametrize("tables", [None, "fp16", "int8", "int4"])
def test_what_is_served_is_what_training_has(train: Train, tmp_path: Path, tables: str | None) -> None:
    kind = () if tables is None else ("--publish-tables", tables)
    assert train(*kind).exit_code == 0
    version, fresh = tmp_path / "repository" / "model" / "1", tmp_path / "fresh"
    kind = () if tables is None else ("--tables", tables)
    assert tesserec("export", tmp_path / "run", "-o", fresh, "--checkpoint", "last", *kind).exit_code == 0

    followed, follower = served(version)
    exported = Artefact.open(fresh).model()
    assert stored(followed) == stored(exported)
    np.testing.assert_array_equal(scores(followed, fresh), scores(exported, fresh))
    assert (scores(followed, fresh) != scores(Artefact.open(version).model(), fresh)).any()
    assert follower.staleness() == 0
    steps = [read_delta(path)[0].header.step for path in sorted((version / "deltas").iterdir())]
    assert steps == [*range(1, steps[-1] + 1), steps[-1]]


def test_a_run_that_goes_on_begins_a_version(train: Train, tmp_path: Path) -> None:
    assert train("--set", "train.max_steps=4").exit_code == 0
    assert train("--resume").exit_code == 0
    first, second = (tmp_path / "repository" / "model" / number for number in "12")
    assert scores(served(first)[0], second).tolist() == Artefact.open(second).golden()[1].tolist()
    assert Artefact.open(second).metrics == {"step": 4}
    assert read_delta(max((second / "deltas").iterdir()))[0].header.last


def test_so_many_deltas_end_a_version(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tesserec.cli.publish.OVERLAP", 0.0)
    assert train("--full-every", 5, "--set", "train.max_steps=12").exit_code == 0
    versions = sorted((tmp_path / "repository" / "model").iterdir())
    assert [path.name for path in versions] == ["1", "2", "3"]
    assert [len(list((path / "deltas").iterdir())) for path in versions] == [5, 5, 3]
    for version, after in pairwise(versions):
        assert stored(served(version)[0]) == stored(Artefact.open(after).model())


def test_the_version_before_goes_on_for_a_while(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tesserec.cli.publish.OVERLAP", 1e9)
    assert train("--full-every", 5, "--set", "train.max_steps=12").exit_code == 0
    first, second, third = sorted((tmp_path / "repository" / "model").iterdir())
    assert stored(served(first)[0]) == stored(Artefact.open(third).model())
    assert stored(served(second)[0]) == stored(served(third)[0])


def test_publishing_leaves_the_run_as_it_is(train: Train, tmp_path: Path) -> None:
    assert train("--full-every", 5).exit_code == 0
    tesserec("train", tmp_path / "config.yaml", "--set", f"output={tmp_path / 'plain'}")
    for file in ("metrics.jsonl", "report.md"):
        assert (tmp_path / "run" / file).exists()
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (tmp_path / "plain/metrics.jsonl").read_bytes()


def test_a_candidate_id_that_is_no_column_is_refused(train: Train, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no raw column 'itm'"):
        train("--candidate-id", "itm")
    assert not list((tmp_path / "repository").glob("*/*"))


def test_ranks_publish_together(train: Train, tmp_path: Path) -> None:
    train("--set", "train.max_steps=1")  # writes the config, and the first version
    command = [
        sys.executable,
        "-m",
        "tesserec",
        "train",
        str(tmp_path / "config.yaml"),
        "--ranks",
        "2",
        "--resume",
    ]
    publish = ["--publish", str(tmp_path / "repository" / "model"), "--publish-every", "0"]
    subprocess.run([*command, *publish, "--set", "train.max_steps=8"], check=True, capture_output=True)
    fresh = tmp_path / "fresh"
    assert tesserec("export", tmp_path / "run", "-o", fresh, "--checkpoint", "last").exit_code == 0
    version = tmp_path / "repository" / "model" / "2"
    assert stored(served(version)[0]) == stored(Artefact.open(fresh).model())
    assert read_delta(max((version / "deltas").iterdir()))[0].header.step == 8
