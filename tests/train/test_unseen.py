"""Ids that the tables do not have, from the configuration to the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tesserec.dataio.dataset import (
    DataError,
    DatasetInfo,
    SparseFeature,
    read_dataset_info,
    write_dataset_info,
)
from tesserec.train.config import TrainConfig, differences
from tesserec.train.evaluate import evaluate_run
from tesserec.train.loop import State, Trainer
from tesserec.train.report import write_outcome
from tests.train.conftest import GENRES, ITEMS, USERS, write_dataset

FEW = 3  # genres that have a row
Train = Callable[..., Trainer]


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of `conftest.py`, which claims to have fewer genres than it has."""
    folder = write_dataset(tmp_path_factory.mktemp("unseen") / "data")
    info = read_dataset_info(folder)
    features = (
        SparseFeature("user", USERS),
        SparseFeature("item", ITEMS),
        SparseFeature("genres", FEW, True),
    )
    values: dict[str, Any] = {name: getattr(info, name) for name in DatasetInfo.__dataclass_fields__}
    write_dataset_info(folder, DatasetInfo(**values | {"sparse": features}))
    return folder


@pytest.fixture
def run(narrow: Path, train: Train) -> Train:
    """`train`, on that data."""
    return lambda name="run", **changes: train(name, data__path=str(narrow), **changes)


def test_an_unseen_id_is_an_error_unless_told(run: Train) -> None:
    for name, policies in (("none", {}), ("other", {"user": "drop"})):
        with pytest.raises(DataError, match=rf"column 'genres': wanted an id in \[0, {FEW}\), got"):
            run(name, data__unseen=policies)


@pytest.mark.parametrize("unseen", ["drop", "hash", {"*": "clamp:1"}, {"genres": "clamp:0"}], ids=str)
def test_unseen_ids_are_counted_and_reported(run: Train, unseen: Any) -> None:
    trainer = run(data__unseen=unseen, train__epochs=2)
    report = write_outcome(trainer)
    assert report["unseen_ids"].keys() == {"genres"}
    share = report["unseen_ids"]["genres"] / (1.5 * report["samples"])  # 1.5 genres a sample
    assert abs(share - (GENRES - FEW) / GENRES) < 0.1
    validated = report["best_validation"]["unseen_ids"]
    assert evaluate_run(trainer.run.path, split="valid")["model"]["unseen_ids"] == validated > 0
    assert "| genres |" in (trainer.run.path / "report.md").read_text()
    assert json.loads((trainer.run.path / "report.json").read_text())["unseen_ids"] == report["unseen_ids"]


def test_counts_of_a_resumed_run_are_those_of_a_whole_one(run: Train) -> None:
    whole = run("whole", data__unseen="drop").state
    stops: list[Callable[[State], bool]] = [
        lambda state: state.step == 7,
        lambda state: state.step == 12 and state.validated != 12,  # inside a validation
    ]
    for stop in stops:
        run("run", data__unseen="drop", resume=True, stop=stop)
    resumed = run("run", data__unseen="drop", resume=True).state
    assert resumed.unseen == whole.unseen and resumed.best == whole.best


def test_policies_are_part_of_what_a_run_is(configure: Callable[..., TrainConfig]) -> None:
    assert differences(configure(), configure(data__unseen="drop")) == ["data.unseen.*: None → drop"]
