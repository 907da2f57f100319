"""A run that was stopped anywhere ends with the bits of one that was not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tesserec.autograd.workers import num_threads, set_num_threads
from tesserec.train.checkpoint import CheckpointError, checkpoint_folder, checkpoint_steps
from tesserec.train.loop import State, Trainer, Watcher
from tesserec.train.run import RunError

Train = Callable[..., Trainer]


def everything(trainer: Trainer) -> dict[str, Any]:
    """All that a run has come to, but for the time it took."""
    content = trainer.learner.content({})
    large = {
        f"{name}{r.rectangle}": np.asarray(r.array) for name, some in content.arrays.items() for r in some
    }
    arrays = {**content.dense, **large}
    state = trainer.state
    return {name: array.tobytes() for name, array in arrays.items()} | {
        "state": content.state,
        "metrics": trainer.run.metrics.read_text(),
        "progress": (state.step, state.epoch, state.batch, state.best, state.to_beat, state.unbeaten),
        "checkpoints": checkpoint_steps(trainer.run.checkpoints),
    }


@pytest.fixture
def whole(train: Train) -> dict[str, Any]:
    return everything(train("whole"))


def at(step: int) -> Callable[[State], bool]:
    return lambda state: state.step == step


def while_validating(step: int) -> Callable[[State], bool]:
    return lambda state: state.step == step and state.validated != step


def test_the_run_exercises_all_state(train: Train) -> None:
    """Else the tests below prove little: it learns, gets worse again, and the plateau has acted."""
    trainer = train()
    assert 0 < trainer.state.best["step"] < trainer.state.step  # type: ignore[index]
    assert trainer.state.unbeaten > 0 and trainer.learner.plateau.factor < 1


STOPS = {
    "first": [at(1)],
    "inside an epoch": [at(7)],
    "end of an epoch": [at(10)],
    "after a validation": [at(12)],
    "last": [at(30)],
    "inside a validation": [while_validating(12)],
    "inside the last validation": [while_validating(30)],
    "often": [at(5), while_validating(10), at(13), at(14), while_validating(18), at(29)],
}


@pytest.mark.parametrize("stops", STOPS.values(), ids=STOPS.keys())
def test_stopped_run_ends_as_if_it_was_not(train: Train, whole: dict[str, Any], stops: list[Any]) -> None:
    for stop in stops:
        assert not train("run", resume=True, stop=stop).state.finished or stop(State(step=30))
    assert everything(train("run", resume=True)) == whole


@pytest.mark.parametrize("data_type", ["float16", "bfloat16"])
def test_random_rounding_resumes_too(train: Train, data_type: str) -> None:
    whole = everything(train("half", model__data_type=data_type))
    train("run", stop=at(7), model__data_type=data_type)
    assert everything(train("run", resume=True, model__data_type=data_type)) == whole


class Killed(Exception):
    pass


@pytest.mark.parametrize("step", [2, 8, 17, 29])
def test_killed_run_ends_as_if_it_was_not(train: Train, whole: dict[str, Any], step: int) -> None:
    """It is thrown back to an earlier checkpoint, and its log with it."""

    def kill(state: State) -> bool:
        if state.step == step:
            raise Killed
        return False

    with pytest.raises(Killed):
        train("run", stop=kill, train__checkpoint_every=4)
    assert everything(train("run", resume=True, train__checkpoint_every=4)) == whole


def test_early_stopping_survives_a_resume(train: Train) -> None:
    early = {"train__early_stopping": {"patience": 2}, "train__epochs": 6, "optimizer__dense__lr": 0.2}
    whole = train("whole", **early)
    assert whole.state.step < 60 and "early" in whole.state.finished
    last = whole.state.step
    train("run", stop=at(last - 1), **early)
    assert everything(train("run", resume=True, **early)) == everything(whole)


def test_number_of_threads_changes_no_bit(train: Train, whole: dict[str, Any]) -> None:
    before = num_threads()
    try:
        for threads in (1, 3):
            assert everything(train(f"threads{threads}", train__threads=threads)) == whole
    finally:
        set_num_threads(before)


def test_last_and_best_checkpoints_are_kept(train: Train) -> None:
    trainer = train(train__checkpoint_every=5, train__checkpoint_seconds=None)
    assert trainer.state.best is not None
    assert checkpoint_steps(trainer.run.checkpoints) == sorted({trainer.state.best["step"], 30})
    assert not list(trainer.run.checkpoints.glob(".*"))


def test_a_longer_run_may_follow_a_finished_one(train: Train) -> None:
    assert train("run", schedule__name="constant").state.finished == "all 30 steps done"
    assert train("run", schedule__name="constant", resume=True, train__epochs=4).state.step == 40


def test_a_finished_run_does_nothing_when_resumed(train: Train) -> None:
    first = train()
    manifest = sorted(first.run.checkpoints.rglob("manifest.json"))[-1]
    before = manifest.stat().st_mtime_ns
    assert everything(train(resume=True)) == everything(first)
    assert manifest.stat().st_mtime_ns == before


def test_an_existing_run_is_not_touched_unasked(train: Train) -> None:
    train(stop=at(3))
    with pytest.raises(RunError, match="a run stands here at step 3; --resume continues it, --overwrite"):
        train()
    train(resume=True)
    with pytest.raises(RunError, match="a run is finished here"):
        train()


def test_a_bad_configuration_does_not_cost_the_old_run(train: Train, configure: Any) -> None:
    trainer = train(stop=at(3))
    with pytest.raises(ValueError, match="did you mean 'bottom'"):
        Trainer(configure(model__botom=[4]), overwrite=True)
    assert trainer.run.last() is not None
    Trainer(configure(), overwrite=True).fit()


def test_a_folder_that_is_no_run_is_never_overwritten(configure: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match="no training run here"):
        Trainer(configure(), overwrite=True)


def test_another_configuration_or_data_set_is_refused(train: Train, data: Path) -> None:
    train(stop=at(3))
    with pytest.raises(RunError, match=r"optimizer\.dense\.lr: 0\.05 → 0\.1"):
        train(resume=True, optimizer__dense={"name": "adam", "lr": 0.1})


def test_two_processes_cannot_train_one_run(train: Train) -> None:
    def stop(state: State) -> bool:
        with pytest.raises(RunError, match="another process is training here"):
            train(resume=True)
        return True

    train(stop=stop)


def test_damaged_checkpoint_stops_a_resume(train: Train) -> None:
    run = train(stop=at(3)).run
    table = next(run.checkpoints.rglob("*user.npy"))
    table.write_bytes(table.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"user\.npy: CRC-32"):
        train(resume=True)


@pytest.mark.parametrize("stop", [3, 30])
def test_leftovers_of_a_killed_save_are_swept(train: Train, stop: int) -> None:
    """A temporary of one killed while writing; a checkpoint too many of one killed before removing it."""
    run = train(stop=at(stop)).run
    (run.checkpoints / ".step-000000002.abc.tmp").mkdir()
    shutil.copytree(checkpoint_folder(run.checkpoints, stop), checkpoint_folder(run.checkpoints, 1))
    trainer = train(resume=True)
    assert trainer.state.best is not None
    assert {path.name for path in run.checkpoints.iterdir()} == {
        checkpoint_folder(run.checkpoints, step).name for step in (trainer.state.best["step"], 30)
    }


def test_watcher_hears_of_everything(train: Train, data: Path, tmp_path: Path) -> None:
    heard = dict.fromkeys(("started", "stepped", "validating", "validated", "saved"), 0)

    def hear(name: str) -> Callable[..., None]:
        def count(*_: Any) -> None:
            heard[name] += 1

        return count

    trainer = train(stop=at(1))
    Trainer(trainer.config, resume=True, watcher=Watcher(**{name: hear(name) for name in heard})).fit()
    assert heard["stepped"] == 29 and heard["validated"] == 7 and min(heard.values()) > 0
