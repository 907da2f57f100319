"""`tesserec plan` as it is typed: what comes out, where it is written, and what is said of mistakes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tesserec.cli import app
from tesserec.sharding.plan import ShardingPlan

CLUSTER = """\
name: two small ranks
devices:
  node:
    kind: cpu
    threads: 2
    flops: 200 GFLOP/s
    tiers: [{name: dram, bytes: 200 MB, bandwidth: 10 GB/s}]
hosts:
  - {ranks: 2, device: node, inside: {latency: 20 us, bandwidth: 2 GB/s}}
"""
WORKLOAD = """\
batch_size: 1024
tables:
  - {name: user, rows: 300_000, dim: 16, zipf: 1.2}
  - {name: item, rows: 20_000, dim: 16, length: 5, spread: poisson, zipf: 1.05, ordered: false}
  - {name: small, rows: 100, dim: 8, count: 3}
dense: {parameters: 10_000, flops: 20_000, activation_bytes: 1000, columns: 4}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a topology and a workload, and no calibrated machine."""
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    (tmp_path / "workload.yaml").write_text(WORKLOAD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def plan(*arguments: str) -> Result:
    """`tesserec plan …` in this process."""
    return CliRunner().invoke(app, ["plan", *arguments])


def made(*more: str) -> Result:
    """A plan of the workload on the cluster, in plan.json."""
    result = plan("workload.yaml", "--topology", "cluster.yaml", "--budget", "1", "-o", "plan.json", *more)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result


def refused(*arguments: str) -> str:
    """The message of a command that fails."""
    result = plan(*arguments)
    assert result.exception is not None and isinstance(result.exception, ValueError), result.output
    return str(result.exception)


@pytest.mark.parametrize(
    "name", ["make", "explain", "diff", "what-if", "check", "compare", "calibrate", "topology"]
)
def test_every_command_has_help(name: str) -> None:
    result = plan(name, "--help")
    assert result.exit_code == 0 and f"plan {name}" in result.output


def test_a_plan_is_written_with_its_page_and_says_what_comes_next(folder: Path) -> None:
    result = made()
    found = ShardingPlan.load("plan.json")
    assert found.num_ranks == 2 and set(found.tables) == {"user", "item", "small.0", "small.1", "small.2"}
    assert "<html" in (folder / "plan.html").read_text()[:200]
    assert re.search(r"step [\d.]+ [mµ]?s · [\d,]+ samples/s · bound by", result.output)
    for words in ("fullest rank", "user", "plan.json", "next:", "without a plan"):
        assert words in result.output


def test_json_holds_the_whole_document(folder: Path) -> None:
    document: dict[str, Any] = json.loads(made("--json").stdout)
    assert document["outcome"] == "planned" and document["workload"]["num_tables"] == 5
    assert sum(phase["seconds"] for phase in document["step"]["path"]) == pytest.approx(
        document["step"]["seconds"]
    )
    by_name = {table["name"]: table for table in document["tables"]}
    assert by_name["user"]["alternatives"][0]["chosen"]
    assert {variation["what"] for variation in document["sensitivity"]} <= {"batch", "ranks", "bandwidth"}
    assert all(s is None or s > 0 for s in document["search"]["best_of"].values())


def test_the_same_case_gives_the_same_plan(folder: Path) -> None:
    made()
    first = ShardingPlan.load("plan.json")
    made()
    assert ShardingPlan.load("plan.json") == first


def test_without_a_topology_there_are_two_ways_on(folder: Path) -> None:
    message = refused("workload.yaml")
    assert "tesserec plan calibrate" in message and "h100x8" in message


def test_the_machine_that_was_measured_is_planned_for(folder: Path) -> None:
    machine = folder / "config" / "tesserec" / "machine.yaml"
    machine.parent.mkdir(parents=True)
    machine.write_text(CLUSTER)
    result = plan("workload.yaml", "--budget", "1")
    assert result.exit_code == 0, repr(result.exception)
    assert "as calibrated less than a minute ago" in result.output


def test_a_plan_answers_for_itself(folder: Path) -> None:
    made()
    told = plan("explain", "user").output
    assert "300,000 rows × 16" in told and "●" in told and "slower" in told
    assert "the plan fits" in plan("check", "plan.json").output
    asked = json.loads(plan("what-if", "--batch", "4096", "--budget", "0.2", "--json").stdout)
    assert [round(v["factor"]) for v in asked] == [1, 0]
    assert (
        asked[1]["label"] == "batch 4,096" and asked[1]["step_seconds_same"] > asked[0]["step_seconds_same"]
    )


def test_what_if_with_other_ranks_has_no_same_plan(folder: Path) -> None:
    made()
    (_, other) = json.loads(
        plan("what-if", "--ranks", "1", "--bandwidth", "x2", "--budget", "0.2", "--json").stdout
    )
    assert other["step_seconds_same"] is None and other["step_seconds_new"] > 0
    assert other["note"] == "the plan is for 2 ranks" and other["label"] == "1 rank, links × 2"


def test_replanning_after_growth_lists_what_moves(folder: Path) -> None:
    made()
    (folder / "old.json").write_bytes((folder / "plan.json").read_bytes())
    (folder / "workload.yaml").write_text(WORKLOAD.replace("20_000", "30_000"))
    document = json.loads(made("--fix", "old.json", "--json").stdout)
    assert document["moves"]["bytes"] == sum(move["bytes"] for move in document["moves"]["moves"])
    assert document["moves"]["step_seconds_before"] is None  # it has fewer rows
    moved = json.loads(plan("diff", "old.json", "plan.json", "--json").stdout)
    assert moved["moves"]["bytes"] == document["moves"]["bytes"]


def test_a_plan_of_an_older_workload_is_noted(folder: Path) -> None:
    made()
    (folder / "workload.yaml").write_text(WORKLOAD.replace("1024", "2048"))
    assert "not what the plan was made for" in plan("check", "plan.json").output


def test_a_plan_that_does_not_fit_fails_the_check(folder: Path) -> None:
    made()
    (folder / "tiny.yaml").write_text(CLUSTER.replace("200 MB", "20 MB"))
    result = plan("check", "plan.json", "--topology", "tiny.yaml")
    assert result.exit_code == 1 and "does not fit" in result.output


def test_constraints_are_kept(folder: Path) -> None:
    (folder / "c.yaml").write_text("tables: {user: {kinds: [column_wise]}, 'small.*': {ranks: [1]}}\n")
    made("--constraints", "c.yaml")
    found = ShardingPlan.load("plan.json")
    assert {cols for _, cols in found.rectangles("user")} != {(0, 16)}
    assert all(ranks == [1] for ranks in found.rectangles("small.1").values())


def test_when_nothing_fits_it_says_who_lacks_what(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(CLUSTER.replace("200 MB", "14 MB"))
    (folder / "one.yaml").write_text("batch_size: 64\ntables:\n  - {name: user, rows: 300_000, dim: 16}\n")
    result = plan("one.yaml", "--topology", "tiny.yaml", "--budget", "0.5", "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["outcome"] == "infeasible"
    (lack, *_) = document["infeasible"]["witness"]
    assert lack["needs_bytes"] > lack["has_bytes"] and lack["tables"] == ["user"]
    assert "rows in float16" in [way["words"] for way in document["infeasible"]["ways_out"]]


def test_what_is_placed_stays_only_where_constraints_let_it(folder: Path) -> None:
    made()
    (folder / "old.json").write_bytes((folder / "plan.json").read_bytes())
    (folder / "c.yaml").write_text("tables: {user: {kinds: [column_wise]}}\n")
    made("--fix", "old.json", "--constraints", "c.yaml")
    old, new = ShardingPlan.load("old.json"), ShardingPlan.load("plan.json")
    assert {cols for _, cols in new.rectangles("user")} != {(0, 16)}
    assert all(new.rectangles(t) == old.rectangles(t) for t in new.tables if t != "user")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["workload.yaml", "--topology", "h100"], ["no such file, nor preset", "h100x8"]),
        (["nothing.yaml", "--topology", "cluster.yaml"], ["nothing.yaml: no such file"]),
        (["bad.yaml", "--topology", "cluster.yaml"], ["bad.yaml, line 3", "greater than 0", "-5"]),
        (["wide.yaml", "--topology", "cluster.yaml"], ["wide.yaml, line 3", "'wide'", "make it narrower"]),
        (["workload.yaml", "--topology", "slow.yaml"], ["slow.yaml, line 7", "bandwidth"]),
        (
            ["workload.yaml", "--topology", "cluster.yaml", "--constraints", "c.yaml"],
            ["c.yaml, line 3", "'usr'", "did you mean 'user'"],
        ),
        (["explain", "usr", "--plan", "plan.json"], ["no such table", "'user'"]),
        (["check", "plan.json", "other.yaml"], ["no plan for other.yaml"]),
        (["check", "plan.json", "--topology", "h100x8"], ["for 2 ranks", "h100x8 has 8"]),
        (["diff", "none.json", "plan.json"], ["none.json: no such file"]),
        (["explain", "user", "--plan", "bare.json"], ["does not say what it was made for"]),
    ],
)
def test_mistakes_name_the_file_the_line_and_the_cure(
    folder: Path, arguments: list[str], words: list[str]
) -> None:
    (folder / "bad.yaml").write_text("batch_size: 64\ntables:\n  - {name: a, rows: -5, dim: 4}\n")
    (folder / "wide.yaml").write_text("batch_size: 64\ntables:\n  - {name: wide, rows: 9, dim: 99_000_000}\n")
    (folder / "slow.yaml").write_text(CLUSTER.replace("bandwidth: 10", "bandwidth: -10"))
    (folder / "c.yaml").write_text("default: {}\ntables:\n  usr: {ranks: [0]}\n")
    (folder / "other.yaml").write_text("batch_size: 64\ntables:\n  - {name: a, rows: 5, dim: 4}\n")
    if "plan.json" in arguments:
        made()
    if "bare.json" in arguments:
        made()
        found = ShardingPlan.load("plan.json")
        ShardingPlan(found.shards, found.num_ranks).save("bare.json")
    message = refused(*arguments)
    assert all(word in message for word in words), message


def test_a_mistyped_command_is_not_taken_for_a_file(folder: Path) -> None:
    result = plan("explian", "user")
    assert result.exit_code == 2 and "did you mean 'explain'" in result.output


def test_ctrl_c_takes_the_best_plan_so_far(folder: Path) -> None:
    code = (
        "import signal, threading, os; from tesserec.sharding.planner import search as s\n"
        "real = s._Searching._improve\n"
        "def improve(self):\n"
        "    if self.budget.work > 1: os.kill(os.getpid(), signal.SIGINT)\n    real(self)\n"
        "s._Searching._improve = improve\n"
        "from tesserec.cli import main; import sys\n"
        "sys.argv = 'tesserec plan workload.yaml --topology cluster.yaml --budget 60 -o p.json'.split()\n"
        "main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=100
    )
    assert result.returncode == 0, result.stderr
    assert "interrupted" in result.stdout and ShardingPlan.load(folder / "p.json").num_ranks == 2
    assert "Taking the best plan so far" in result.stderr
