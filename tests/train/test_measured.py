"""What a run measures of itself is what it did, and changes nothing of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tesserec.sharding.comm import world
from tesserec.sharding.plan import ShardingPlan
from tesserec.sharding.timeline import Sum
from tesserec.train.config import TrainConfig
from tesserec.train.loop import Trainer
from tesserec.train.measured import SAMPLED, WARM, WINDOWS, Measured, MeasuredError, Windows
from tests.train.conftest import BATCH, GENRES, ITEMS, USERS, settings, write_dataset

Train = Callable[..., Trainer]
STEPS = 30  # of a run: all of it
TIMED = sum(step <= STEPS for step in SAMPLED)  # they are not measured


def measured(trainer: Trainer) -> Measured:
    return Measured.read(trainer.run.measured)


def test_a_run_tells_its_steps_stage_by_stage(train: Train) -> None:
    found = measured(train())
    assert (found.ranks, found.batch_size, found.sharded, found.plan) == (1, BATCH, False, "")
    assert found.steps == STEPS - WARM - TIMED
    assert {"read", "look_up", "compute", "update", "step"} <= found.stages.keys()
    for name in ("look_up", "compute", "update"):
        (seconds,) = found.stages[name]["seconds"]
        assert 0 < seconds < found.stages["step"]["seconds"][0]
    assert "validation" not in found.stages and "checkpoint" not in found.stages


def test_tables_tell_ids_rows_and_time(train: Train) -> None:
    tables = measured(train()).tables
    assert set(tables) == {"inputs.sparse.user", "inputs.sparse.item", "inputs.sparse.genres"}
    for name, rows in (("user", USERS), ("item", ITEMS)):
        found = tables[f"inputs.sparse.{name}"]
        assert found["ids"] == found["ids_here"] == found["vectors"] == BATCH
        assert 0 < found["rows"] <= rows
        assert found["lookup_seconds"] > 0 and found["update_seconds"] > 0
    assert tables["inputs.sparse.genres"]["ids"] == pytest.approx(1.5 * BATCH, rel=0.2)


def test_memory_is_told_by_part(train: Train) -> None:
    trainer = train()
    (rows,) = measured(trainer).memory["rows"]
    assert rows == 4 * 4 * (USERS + ITEMS + GENRES)
    memory = measured(trainer).memory
    assert 0 < memory["baseline"][0] <= memory["peak"][0]
    assert memory["state"][0] == rows / 4  # row-wise Adagrad, 4 columns


def test_a_run_that_goes_on_adds_to_what_it_measured(train: Train) -> None:
    whole = train("run", stop=lambda state: state.step == 20)
    before = measured(whole).steps
    after = measured(train("run", resume=True)).steps
    assert before == 20 - WARM - 1
    assert after == before + 10 - WARM - 1


def test_another_setting_begins_anew(train: Train) -> None:
    first = train("run", stop=lambda state: state.step == 20)
    found = json.loads(first.run.measured.read_text())
    first.run.measured.write_text(json.dumps(found | {"threads": 99}))
    assert measured(train("run", resume=True)).steps == 10 - WARM - 1


def test_too_few_steps_measure_nothing(train: Train) -> None:
    trainer = train(train__max_steps=WARM)
    with pytest.raises(MeasuredError, match="measured nothing"):
        measured(trainer)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "tesserec measured", "version": 9}'])
def test_what_is_no_measurement_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    path.write_text(text)
    with pytest.raises(MeasuredError, match=r"measured\.json"):
        Measured.read(path)


def test_windows_stay_few_and_lose_nothing() -> None:
    windows, steps = Windows(), 10 * WINDOWS + 3
    for step in range(steps):
        windows.add(1, {"look_up": Sum(1, 1000 + step % 2, 500, 0, 8, 0)})
    assert len(windows.closed) < 2 * WINDOWS and windows.steps == steps
    stage = windows.stages()["look_up"]
    assert stage["seconds"] == pytest.approx(1000.5e-9) and stage["busy_seconds"] == 500e-9
    assert stage["mean_seconds"] == pytest.approx(1000.5e-9, rel=1e-3) and stage["sent_bytes"] == 8


def test_measurements_add_up_by_their_steps() -> None:
    def of(steps: int, seconds: float, peak: float) -> Measured:
        stages = {"step": {"seconds": [seconds]}}
        return Measured(1, [0], 1, 8, False, "", steps, stages, {"t": {"ids": 8.0}}, {"peak": [peak]})

    both = of(10, 1.0, 5.0).plus(of(30, 2.0, 4.0))
    assert both.steps == 40 and both.stages["step"]["seconds"] == [1.75]
    assert both.tables == {"t": {"ids": 8.0}} and both.memory == {"peak": [5.0]}


@pytest.mark.ranks(2)
def test_bytes_of_tables_are_those_of_stages(shared_path: Path) -> None:
    comm = world()
    if comm.rank == 0:
        write_dataset(shared_path / "data")
    comm.barrier()
    changes = {"sharding": {"default": "row_wise"}, "plateau": None}
    given = settings(shared_path / "data", shared_path / "run") | changes
    trainer = Trainer(TrainConfig.model_validate(given), comm=comm)
    trainer.fit()
    comm.barrier()
    found = measured(trainer)
    assert found.ranks == 2 and found.sharded and found.steps == STEPS - WARM - TIMED
    assert ShardingPlan.load(trainer.run.plan) == trainer.learner.sharded.plan  # type: ignore[union-attr]
    for stage, quantity in (("look_up", "vector_bytes"), ("row_grads", "gradient_bytes")):
        of_tables = sum(table[quantity] for table in found.tables.values())
        assert of_tables == pytest.approx(sum(found.stages[stage]["sent_bytes"]), rel=0.1) and of_tables
    ids = sum(table["id_bytes"] for table in found.tables.values())
    assert 0 < ids < sum(found.stages["input_dist"]["sent_bytes"])  # which also has counts
    assert np.all(np.array(found.stages["look_up"]["abroad_bytes"]) == 0)
    looked_up = sum(table["ids_here"] for table in found.tables.values())
    assert looked_up == pytest.approx(sum(table["ids"] for table in found.tables.values()))


def test_the_timeline_file_is_as_before(train: Train, tmp_path: Path, configure: Any) -> None:
    path = tmp_path / "steps.json"
    trainer = Trainer(configure("timeline"), timeline=path)
    trainer.fit()
    names = {event["name"] for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == "X"}
    assert {"step", "compute", "update", "await", "read"} <= names
    assert trainer.state.step == STEPS
