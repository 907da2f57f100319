"""A checkpoint under another plan is the same checkpoint; a table in a file of its own is that table."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from safetensors.numpy import load_file
from typer.testing import CliRunner, Result

from tesserec.cli import app
from tesserec.sharding.placement import make_plan
from tesserec.sharding.plan import PlanError, ShardingPlan, row_wise
from tesserec.train import parts
from tesserec.train.checkpoint import Checkpoint, CheckpointError, Content, Rect, save_checkpoint
from tesserec.train.reshard import export_table, find_table, reshard, table_shapes
from tests.sharding.tilings import Tiling, tilings

Arrays = dict[str, npt.NDArray[Any]]
RNG = np.random.default_rng(3)
ARRAYS: Arrays = {
    "tables/a.t": RNG.standard_normal((12, 6)).astype(np.float32),
    "tables/a.half": RNG.standard_normal((12, 6)).astype(np.float16),
    "tables/b.half": RNG.integers(0, 1 << 15, (12, 6), np.uint16),  # bfloat16
    "rows/a.t.total": RNG.standard_normal(12).astype(np.float32),
    "rows/a.half.sum": RNG.standard_normal((12, 6)).astype(np.float32),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "BLOCK", 100)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "step-000000007"
    state = {"progress": {"step": 7, "epoch": 1}}
    arrays = {name: [Rect.whole(array)] for name, array in ARRAYS.items()}
    save_checkpoint(path, Content(state, {"w": np.ones(3)}, arrays))
    return path


def read(path: Path) -> Arrays:
    found = {name: np.zeros_like(array) for name, array in ARRAYS.items()}
    Checkpoint(path).read_into({name: [Rect.whole(array)] for name, array in found.items()})
    return found


def plan_like(tiling: Tiling) -> ShardingPlan:
    shards = [shard for table in ("a.t", "a.half", "b.half") for shard in tiling.shards(table)]
    return ShardingPlan(tuple(shards), tiling.num_ranks)


@settings(max_examples=20, deadline=None)
@given(one=tilings((12, 6)), other=tilings((12, 6)))
def test_resharding_changes_files_and_nothing_else(
    one: Tiling, other: Tiling, saved: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("resharded")
    reshard(Checkpoint(saved), plan_like(one), folder / "1")
    reshard(Checkpoint(folder / "1"), plan_like(other), folder / "2")
    read_back = Checkpoint(folder / "2")
    assert read_back.state() == Checkpoint(saved).state() and read_back.problems() == []
    np.testing.assert_array_equal(read_back.dense()["w"], np.ones(3))
    for name, array in read(folder / "2").items():
        np.testing.assert_array_equal(array, ARRAYS[name])
    assert len(read_back.arrays["tables/a.t"].parts) == len(other.held)


def test_resharding_takes_the_memory_of_a_few_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "BLOCK", 1 << 20)
    table = np.zeros((1 << 18, 32), np.float32)  # 32 MiB
    save_checkpoint(tmp_path / "1", Content({}, {}, {"tables/t": [Rect.whole(table)]}))
    tracemalloc.start()
    source = tmp_path / "1"
    for kind in ("column_wise", "row_wise"):
        reshard(Checkpoint(source), make_plan({"t": (1 << 18, 32)}, 4, default=kind), tmp_path / kind)
        source = tmp_path / kind
    for name in ("t.npy", "t.parquet", "t.safetensors"):
        export_table(Checkpoint(tmp_path / "column_wise"), "t", tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_plan_of_other_tables_is_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"no shard of 'a\.t'"):
        reshard(Checkpoint(saved), ShardingPlan(row_wise("a.half", (12, 6), [0, 1]), 2), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_tables_are_found_by_their_own_names(saved: Path) -> None:
    checkpoint = Checkpoint(saved)
    assert table_shapes(checkpoint) == dict.fromkeys(["a.half", "a.t", "b.half"], (12, 6))
    assert find_table(checkpoint, "t") == find_table(checkpoint, "a.t") == "a.t"
    with pytest.raises(CheckpointError, match=r"table 'half' may be any of a\.half, b\.half"):
        find_table(checkpoint, "half")
    with pytest.raises(CheckpointError, match=r"no table 'a\.tt'.*did you mean 'a\.t'"):
        find_table(checkpoint, "a.tt")


def widened(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    wide: npt.NDArray[Any] = (array.astype(np.uint32) << 16).view(np.float32)
    return wide if array.dtype == np.uint16 else array


@pytest.mark.parametrize("table", ["a.t", "a.half", "b.half"])
def test_tables_come_out_as_npy_and_parquet(saved: Path, tmp_path: Path, table: str) -> None:
    want = widened(ARRAYS[f"tables/{table}"])
    assert export_table(Checkpoint(saved), table, tmp_path / "x.npy") == table
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), want, strict=True)
    export_table(Checkpoint(saved), table, tmp_path / "x.parquet")
    found = pq.read_table(tmp_path / "x.parquet")
    assert found["id"].to_pylist() == list(range(12))
    np.testing.assert_array_equal(np.array(found["vector"].to_pylist(), want.dtype), want)


def test_tables_come_out_as_safetensors(saved: Path, tmp_path: Path) -> None:
    for table in ("a.t", "a.half"):
        export_table(Checkpoint(saved), table, tmp_path / "x.safetensors")
        np.testing.assert_array_equal(load_file(tmp_path / "x.safetensors")[table], ARRAYS[f"tables/{table}"])
    export_table(Checkpoint(saved), "b.half", tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()
    assert b'"dtype": "BF16"' in data and data.endswith(ARRAYS["tables/b.half"].tobytes())


def test_other_formats_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"x\.csv: the name must end in one of \.npy, \.parquet, \.safet"
    ):
        export_table(Checkpoint(saved), "t", tmp_path / "x.csv")


def tesserec(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["checkpoint", *map(str, arguments)], catch_exceptions=True)


def test_commands_inspect_reshard_and_verify(saved: Path, tmp_path: Path) -> None:
    result = tesserec("inspect", saved)
    assert (
        result.exit_code == 0 and "12 × 6" in result.stdout and "step 7, 3 tables, 5 files" in result.stdout
    )
    make_plan(table_shapes(Checkpoint(saved)), 2, default="column_wise").save(tmp_path / "plan.json")
    assert tesserec("reshard", saved, "--plan", tmp_path / "plan.json", "-o", tmp_path / "2").exit_code == 0
    reading = tesserec(
        "reshard", tmp_path / "2", "--ranks", "3", "--kind", "row_wise", "-o", tmp_path / "3", "--json"
    )
    assert len(json.loads(reading.stdout)["tables"][0]["parts"]) == 3
    described = json.loads(tesserec("inspect", tmp_path / "2", "--json").stdout)
    assert described["step"] == 7 and described["dense"] == {"w": [3]}
    half = described["tables"][0]
    assert (
        half["table"] == "a.half"
        and half["shape"] == [12, 6]
        and half["state"][0]["parts"][1]
        == {
            "file": "rows/a.half.sum@cols3-6.npy",
            "rows": [0, 12],
            "cols": [3, 6],
        }
    )
    for path in (tmp_path / "2", tmp_path / "3"):
        assert json.loads(tesserec("verify", path, "--json").stdout) == {
            "sound": True,
            "problems": {str(path): []},
        }


def test_verify_names_the_damage(saved: Path, tmp_path: Path) -> None:
    reshard(Checkpoint(saved), make_plan(table_shapes(Checkpoint(saved)), 1), tmp_path / "1")
    file = tmp_path / "1" / "tables/a.t.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    result = tesserec("verify", tmp_path / "1")
    assert result.exit_code == 1
    assert re.search(r"damaged\n +.*a\.t\.npy: CRC-32 \w+, wanted", result.stdout)
    (tmp_path / "1/manifest.json").write_text("{}")
    assert "not a checkpoint's manifest" in tesserec("verify", tmp_path / "1").stdout


def test_mistakes_on_the_command_line(saved: Path, tmp_path: Path) -> None:
    assert tesserec("reshard", saved, "-o", tmp_path / "x").exit_code == 2
    assert tesserec("reshard", saved, "--ranks", "2", "-o", tmp_path).exit_code == 2
    result = tesserec("export-table", saved, "q", "-o", tmp_path / "q.npy")
    assert isinstance(result.exception, CheckpointError) and not list(tmp_path.iterdir())


def test_export_says_what_it_wrote(saved: Path, tmp_path: Path) -> None:
    result = tesserec("export-table", saved, "t", "-o", tmp_path / "t.npy", "--json")
    size = (tmp_path / "t.npy").stat().st_size
    assert json.loads(result.stdout) == {
        "table": "a.t",
        "shape": [12, 6],
        "output": str(tmp_path / "t.npy"),
        "bytes": size,
    }
    assert "a.t, 12 × 6" in tesserec("export-table", saved, "t", "-o", tmp_path / "t.npy").stdout
