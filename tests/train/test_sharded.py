"""Several ranks train what one does: the same losses, metrics and tables, for any plan and across resumes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from tesserec.cli import app
from tesserec.dataio.config import ConfigError
from tesserec.dataio.dataset import Dataset
from tesserec.sharding.comm import Comm, LocalComm, world
from tesserec.sharding.placement import make_plan
from tesserec.sharding.plan import PlanError
from tesserec.sharding.threads import run_ranks
from tesserec.train.checkpoint import Content, checkpoint_steps
from tesserec.train.config import ShardingSection, TrainConfig, check_ranks, differences
from tesserec.train.evaluate import evaluate_run
from tesserec.train.learner import Learner
from tesserec.train.loop import Interrupted, State, Trainer
from tesserec.train.memory import run_memory
from tesserec.train.report import outcome
from tesserec.train.run import read_journal
from tests.train.conftest import GENRES, ITEMS, USERS

Stop = Callable[[Comm, State], bool]
Train = Callable[..., Trainer]
BITWISE = {"train__deterministic": "bitwise", "train__epochs": 2}


def train_in_ranks(
    config: TrainConfig, ranks: int, *, resume: bool = False, stop: Stop | None = None, **options: Any
) -> Trainer:
    """The Trainer of rank 0, finished or stopped; the others are threads."""

    def run(comm: Comm) -> Trainer:
        def should_stop() -> bool:
            return stop is not None and stop(comm, trainer.state)

        trainer = Trainer(config, resume=resume, should_stop=should_stop, comm=comm, **options)
        with suppress(Interrupted):
            trainer.fit()
        return trainer

    found: list[Trainer] = run_ranks(ranks, run)
    return found[0]


@pytest.fixture
def share(configure: Callable[..., TrainConfig]) -> Train:
    """`share(name, ranks, resume=…, stop=…, **changes)`: as the fixture `train`, in several ranks."""

    def run(
        name: str, ranks: int, *, resume: bool = False, stop: Stop | None = None, **changes: Any
    ) -> Trainer:
        return train_in_ranks(configure(name, **changes), ranks, resume=resume, stop=stop)

    return run


def loaded(trainer: Trainer) -> Content:
    """The last checkpoint of a run, in one process."""
    config = trainer.config.model_copy(update={"sharding": ShardingSection()})
    learner = Learner(config, trainer.dataset.info, trainer.total_steps)
    last = trainer.run.last()
    assert last is not None
    return learner.content(learner.restore(last))


def everything(trainer: Trainer) -> dict[str, Any]:
    """All that a run has come to, read from its folder."""
    content = loaded(trainer)
    progress = dict(content.state["progress"])
    arrays = {n: a.tobytes() for n, a in content.dense.items()}
    arrays |= {n: np.asarray(rects[0].array).tobytes() for n, rects in content.arrays.items()}
    progress.pop("seconds")
    return arrays | {
        "metrics": trainer.run.metrics.read_text(),
        "progress": progress,
        "checkpoints": checkpoint_steps(trainer.run.checkpoints),
    }


@pytest.fixture
def alone(train: Train) -> dict[str, Any]:
    return everything(train("alone", **BITWISE))


TABLES = {
    "inputs.sparse.user": (USERS, 4),
    "inputs.sparse.item": (ITEMS, 4),
    "inputs.sparse.genres": (GENRES, 4),
}
KINDS = ["data_parallel", "table_wise", "row_wise", "column_wise", "grid_shard", "hot_cold:5"]


@pytest.mark.parametrize(("ranks", "kind"), [*((2, kind) for kind in KINDS), (4, "auto"), (4, "grid_shard")])
def test_ranks_and_plan_change_no_bit(share: Train, alone: dict[str, Any], ranks: int, kind: str) -> None:
    assert everything(share("run", ranks, sharding={"default": kind}, **BITWISE)) == alone


def test_dense_parameters_in_parts_change_no_bit(share: Train, alone: dict[str, Any]) -> None:
    assert everything(share("run", 2, sharding={"dense": "sharded"}, **BITWISE)) == alone


def test_streams_are_shared_out_too(train: Train, share: Train, alone: dict[str, Any]) -> None:
    streams = {"data__streams": 4, **BITWISE}
    whole = everything(train("whole", **streams))
    assert whole["metrics"] != alone["metrics"]
    assert everything(share("run", 2, **streams)) == whole


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [2, 4])
def test_by_default_all_agrees_up_to_rounding(share: Train, train: Train, ranks: int, kind: str) -> None:
    changes = {"train__max_steps": 10, "train__log_every": 1}
    one, other = train("a", **changes), share("b", ranks, sharding={"default": kind}, **changes)
    losses = [
        [ln["loss"] for ln in read_journal(t.run.metrics) if ln["kind"] == "train"] for t in (one, other)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, rects in loaded(one).arrays.items():
        wanted, got = np.asarray(rects[0].array), np.asarray(loaded(other).arrays[name][0].array)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * abs(wanted).max())


def test_other_numbers_of_ranks_give_the_same_up_to_rounding(train: Train, share: Train) -> None:
    """Without dropout, which slices there are only changes the order of sums."""
    changes = {"model__dropout": 0.0, "data__batch_size": 60, "train__epochs": 1}
    lines = [read_journal(t.run.metrics) for t in (train("a", **changes), share("b", 3, **changes))]
    for one, other in zip(*lines, strict=True):
        kinds, others = one.pop("kind"), other.pop("kind")
        assert kinds == others and one == pytest.approx(other, rel=1e-4)


def test_a_run_goes_on_in_other_numbers_of_ranks(share: Train, train: Train, alone: dict[str, Any]) -> None:
    def at(step: int) -> Stop:
        return lambda comm, state: comm.rank == comm.size - 1 and state.step == step

    assert share("run", 2, stop=at(5), **BITWISE).state.step == 5
    assert train("run", resume=True, stop=lambda state: state.step == 11, **BITWISE).state.step == 11
    kinds = {"sharding": {"default": "row_wise", "tables": {"item": "column_wise"}, "dense": "sharded"}}
    assert share("run", 4, resume=True, stop=at(13), **kinds, **BITWISE).state.step == 13
    assert everything(share("run", 2, resume=True, **BITWISE)) == alone


def test_a_stop_inside_a_validation_leaves_no_trace(share: Train, alone: dict[str, Any]) -> None:
    def stop(comm: Comm, state: State) -> bool:
        return comm.rank == 1 and state.step == 6 and state.validated != 6

    assert share("run", 2, stop=stop, **BITWISE).state.validated == 0
    assert everything(share("run", 2, resume=True, **BITWISE)) == alone


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adam", "lamb"])
def test_half_precision_tables_train_the_same(share: Train, train: Train, optimizer: str) -> None:
    rows = {"name": optimizer, "lr": 0.1}
    changes = {"optimizer__rows": rows, "model__data_type": "float16", "train__max_steps": 6, **BITWISE}
    whole = everything(train("alone", **changes))
    assert everything(share("run", 2, sharding={"default": "row_wise"}, **changes)) == whole


@pytest.mark.parametrize("codec", ["fp16", "bf16", "int8"])
def test_vectors_in_few_bytes_train_nearly_the_same(share: Train, train: Train, codec: str) -> None:
    sharding = {"default": "row_wise", "forward": codec, "backward": codec}
    losses = [
        [line["loss"] for line in read_journal(trainer.run.metrics) if line["kind"] == "train"]
        for trainer in (train("a", train__epochs=1), share("b", 2, sharding=sharding, train__epochs=1))
    ]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.1)


def test_groups_of_replicas_train(share: Train) -> None:
    trainer = share("run", 4, sharding={"replica_groups": 2, "sync_every": 2}, train__epochs=1)
    losses = [line["loss"] for line in read_journal(trainer.run.metrics) if line["kind"] == "train"]
    assert trainer.state.finished and np.isfinite(losses).all()


def test_groups_of_replicas_resume_exactly(share: Train) -> None:
    groups: dict[str, Any] = {"sharding": {"replica_groups": 2}, "train__epochs": 2}
    whole = everything(share("whole", 4, **groups))
    share("run", 4, stop=lambda comm, state: state.step == 7, **groups)
    assert everything(share("run", 4, resume=True, **groups)) == whole


def test_the_report_is_of_the_whole_model(share: Train, train: Train) -> None:
    reports = [outcome(t) for t in (train("a", train__epochs=1), share("b", 2, train__epochs=1))]
    same = ("steps", "samples", "dense_parameters", "embedding_parameters")
    assert [reports[0][k] for k in same] == [reports[1][k] for k in same]
    assert [report["ranks"] for report in reports] == [1, 2]


def test_evaluation_in_ranks_gives_the_same_numbers(train: Train) -> None:
    run = train(train__epochs=1).run.path
    compare: dict[str, Any] = {"split": "test", "compare": ["p_true"]}
    alone = evaluate_run(run, **compare)
    for found in run_ranks(3, lambda comm: evaluate_run(run, **compare, comm=comm)):
        assert found == alone


def test_ranks_without_rows_wait_for_nobody(train: Train) -> None:
    """300 rows are three slices of 128 for four ranks."""
    run = train(train__epochs=1, train__slice_size=128).run.path
    alone = evaluate_run(run, split="valid")
    assert run_ranks(4, lambda comm: evaluate_run(run, split="valid", comm=comm)) == [alone] * 4


def test_unseen_ids_of_all_ranks_are_counted(share: Train, train: Train) -> None:
    changes = {"data__unseen": "drop", **BITWISE}
    assert everything(share("run", 2, **changes)) == everything(train("alone", **changes))


@pytest.mark.parametrize(
    ("ranks", "changes", "message"),
    [
        (3, {}, r"data\.batch_size: 64 is that of all ranks together; wanted a multiple of ranks, 3"),
        (1, {"data__streams": 3}, r"wanted a multiple of data\.streams, 3"),
        (2, {"data__batch_size": 60, "data__streams": 3}, r"data\.streams: 3 for 2 ranks"),
        (4, {"sharding": {"replica_groups": 3}}, r"sharding\.replica_groups: 3 for 4 ranks"),
        (3, {"data__batch_size": 48, **BITWISE}, "bitwise needs 1, 2, 4, … ranks, not 3"),
        (8, BITWISE, r"a multiple of train\.slice_size, 16, as a rank's share of the batch, not 8"),
        (2, {"sharding": {"forward": "int8"}, **BITWISE}, "to be fp32"),
    ],
)
def test_ranks_that_cannot_share_the_batch(
    configure: Any, ranks: int, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_ranks(configure(**changes), ranks)


def test_a_plan_that_does_not_fit_is_refused(configure: Any, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no such table"):
        train_in_ranks(configure(sharding={"tables": {"usr": "row_wise"}}), 2)
    make_plan(TABLES, 3).save(tmp_path / "plan.json")
    with pytest.raises(ConfigError, match=r"sharding\.plan: .*plan\.json is for 3 ranks, wanted 2"):
        train_in_ranks(configure(sharding={"plan": str(tmp_path / "plan.json")}), 2)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_plan_from_a_file_changes_no_bit(
    share: Train, alone: dict[str, Any], tmp_path: Path, ranks: int
) -> None:
    """One rank with a plan is sharded too, and all its rows are at home."""
    make_plan(TABLES, ranks, default="row_wise").save(tmp_path / "plan.json")
    trainer = share("run", ranks, sharding={"plan": str(tmp_path / "plan.json")}, **BITWISE)
    assert trainer.learner.sharded is not None and everything(trainer) == alone


def test_sharding_may_change_when_a_run_goes_on(configure: Any) -> None:
    new = {"default": "row_wise", "tables": {"user": "table_wise"}, "dense": "sharded", "timeout": 5.0}
    assert differences(configure(), configure(sharding=new)) == []
    changed = differences(configure(), configure(sharding={"forward": "fp16"}))
    assert changed == ["sharding.forward: fp32 → fp16"]


def test_each_rank_needs_memory_for_its_part(configure: Any) -> None:
    config = configure(sharding={"default": "row_wise"})
    dataset = Dataset.open(config.data.path)
    whole = run_memory(config, dataset)
    parts = [run_memory(config, dataset, (0, 0), rank) for rank in (0, 1)]
    assert sum(part.rows_bytes for part in parts) == pytest.approx(whole.rows_bytes, abs=4)
    assert parts[0].workspace_bytes < 0.6 * whole.workspace_bytes


def test_the_memory_command_shows_the_fullest_rank(configure: Any, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(configure(sharding={"default": "table_wise"}).model_dump(mode="json")))
    sizes = []
    for ranks in ("1", "2"):
        result = CliRunner().invoke(app, ["memory", str(path), "--ranks", ranks, "--json"])
        sizes.append(json.loads(result.stdout)["rows_bytes"])
    assert sizes[0] / 2 <= sizes[1] < sizes[0]


def check_timeline(events: list[dict[str, Any]]) -> None:
    """All stages of both ranks are there, and ids travel on a thread of their own."""
    assert {event["pid"] for event in events} == {0, 1}
    spans = [event for event in events if event["ph"] == "X"]
    assert min(event["ts"] for event in spans) == 0 and all(event["dur"] >= 0 for event in spans)
    threads: dict[str, set[int]] = {}
    for event in spans:
        threads.setdefault(event["name"], set()).add(event["tid"])
    assert {"read", "look_up", "compute", "reduce_dense", "row_grads", "update", "step"} <= threads.keys()
    assert threads["input_dist"] - threads["step"] and threads["reduce_dense"].isdisjoint(threads["step"])


@pytest.mark.ranks(2, timeout=90)
def test_real_ranks_train_the_same(configure: Any, data: Path, shared_path: Path) -> None:
    """The run of two MPI ranks against one of this process; the data of rank 0 serves both."""
    comm = world()
    path = comm.gather_objects(str(data))[0]
    config = configure(data__path=path, **BITWISE).model_copy(update={"output": shared_path / "run"})
    Trainer(config, comm=comm, timeline=shared_path / "timeline.json").fit()
    if comm.rank == 0:
        check_timeline(json.loads((shared_path / "timeline.json").read_text())["traceEvents"])
        alone = config.model_copy(update={"output": shared_path / "alone"})
        Trainer(alone, comm=LocalComm()).fit()
        texts = [(shared_path / name / "metrics.jsonl").read_text() for name in ("run", "alone")]
        assert texts[0] == texts[1]
    comm.barrier()


def start(config: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tesserec", "train", str(config), "--resume", "--ranks", "2", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def rank_processes(config: Path) -> dict[int, int]:
    """{rank: process id} of what trains `config`."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            variables = (folder / "environ").read_bytes().split(b"\0")
            rank = next((int(v[9:]) for v in variables if v.startswith(b"PMI_RANK=")), None)
            if rank is not None and str(config).encode() in (folder / "cmdline").read_bytes():
                found[rank] = int(folder.name)
    return found


def wait_for(path: Path, lines: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or len(path.read_bytes().splitlines()) < lines:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)


LONG = ["train.epochs=16", "train.checkpoint_every=10", "train.early_stopping=null"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
def test_a_signal_to_one_rank_stops_all_and_a_killed_rank_is_named(configure: Any, tmp_path: Path) -> None:
    """Then one rank goes on, and ends with the bits of a run that was never stopped."""
    config, journal = tmp_path / "config.yaml", tmp_path / "run" / "metrics.jsonl"
    config.write_text(yaml.safe_dump(configure(**BITWISE).model_dump(mode="json")))
    long = [part for key in LONG for part in ("--set", key)]
    cases = [(signal.SIGTERM, 3, 143, "add --resume to the same command")]
    cases += [(signal.SIGKILL, 12, 128 + 9, "rank 1: ")]
    for number, lines, code, message in cases:
        with start(config, *long) as process:
            wait_for(journal, lines, process)
            os.kill(rank_processes(config)[1], number)
            errors = process.communicate(timeout=60)[1]
        assert process.returncode == code and message in errors, errors
    assert read_journal(journal)[-1]["step"] < 160
    for output in ("whole", "run"):
        arguments = [str(config), *long, "--resume", "--set", f"output={tmp_path / output}"]
        assert CliRunner().invoke(app, ["train", *arguments]).exit_code == 0
    for file in (tmp_path / "whole" / "metrics.jsonl", *(tmp_path / "whole" / "checkpoints").rglob("*.npy")):
        assert file.read_bytes() == (tmp_path / "run" / file.relative_to(tmp_path / "whole")).read_bytes()


def test_a_mistake_is_said_once_by_all_ranks(configure: Any, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(configure(data__batch_size=63).model_dump(mode="json")))
    with start(config) as process:
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 2 and errors.count("wanted a multiple of ranks, 2") == 1
