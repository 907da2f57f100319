"""A checkpoint comes back as it was, into any rectangles, or not at all."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from safetensors.numpy import save

from tesserec.sharding.comm import Comm, world
from tesserec.sharding.plan import Rectangle, ShardingPlan, row_wise
from tesserec.sharding.threads import run_ranks
from tesserec.train import checkpoint as module
from tesserec.train import manifest, parts
from tesserec.train.checkpoint import (
    Checkpoint,
    CheckpointError,
    Content,
    Rect,
    array_path,
    checkpoint_folder,
    checkpoint_steps,
    remove_checkpoint,
    save_checkpoint,
    table_of,
)
from tests.sharding.tilings import Tiling, tilings

Arrays = dict[str, npt.NDArray[Any]]
SHAPE = (12, 6)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows, so that small arrays have several."""
    monkeypatch.setattr(parts, "BLOCK", 48)
    monkeypatch.setattr(parts, "_PIECE", 20)


def arrays(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        array_path("tables", "user"): rng.standard_normal((7, 3)).astype(np.float32),
        array_path("tables", "odd/n@me [ü]"): rng.standard_normal((2, 5)),
        array_path("rows", "user.sum"): np.zeros((0, 3), np.float32),
        array_path("rows", "user.total"): rng.standard_normal(70).astype(np.float32),
    }


def content(seed: int = 0) -> Content:
    rng = np.random.default_rng(seed)
    dense: Arrays = {"w": rng.standard_normal((4, 2)).astype(np.float32).T, "steps": np.array(3)}
    return Content({"step": 12, "loss": 0.1 + 0.2, "best": None}, dense, whole(arrays(seed)))


def whole(some: Arrays) -> dict[str, list[Rect]]:
    return {name: [Rect.whole(array)] for name, array in some.items()}


def empty_like(some: Arrays) -> Arrays:
    return {name: np.full_like(array, 9) for name, array in some.items()}


def read_all(path: Path) -> Arrays:
    """Everything in a checkpoint of `content`, read and checked."""
    read, found = Checkpoint(path), empty_like(arrays())
    read.read_into(whole(found))
    return found | read.dense() | {"state": np.array(json.dumps(read.state()))}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = checkpoint_folder(tmp_path, 12)
    save_checkpoint(path, content())
    return path


def test_round_trip_keeps_every_bit(saved: Path) -> None:
    want, found = content(), read_all(saved)
    assert json.loads(str(found["state"])) == want.state
    for name, array in {**arrays(), **want.dense}.items():
        np.testing.assert_array_equal(found[name], array)
    assert Checkpoint(saved).problems() == []


def test_tables_can_be_mapped_into_memory(saved: Path) -> None:
    table = np.load(saved / "tables/user.npy", mmap_mode="r")
    np.testing.assert_array_equal(table, arrays()["tables/user"])


def test_paths_lead_back_to_tables() -> None:
    for table in ("user", "odd/n@me [ü]", "inputs.vectors.C1"):
        assert table_of(array_path("tables", table)) == table_of(array_path("rows", f"{table}.sum")) == table


def flipped(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x15
    path.write_bytes(data)


def problems(path: Path) -> list[str]:
    try:
        return Checkpoint(path).problems()
    except CheckpointError as error:
        return [str(error)]


def test_flipped_bytes_of_every_file_are_noticed(saved: Path) -> None:
    for file in [path for path in saved.rglob("*") if path.is_file()]:
        for at in range(0, file.stat().st_size, 3):
            flipped(file, at)
            assert [file.name in problem for problem in problems(saved)] == [True]
            flipped(file, at)
    assert problems(saved) == []


def test_all_damage_is_listed(saved: Path) -> None:
    flipped(saved / "tables/user.npy", 150)
    flipped(saved / "rows/user.total.npy", -1)
    (saved / "state.json").unlink()
    (saved / "tables/stranger.npy").touch()
    found = Checkpoint(saved).problems()
    named = (
        "rows/user.total.npy: CRC",
        "tables/user.npy: CRC",
        "state.json: cannot",
        "stranger.npy: not listed",
    )
    assert [any(text in problem for problem in found) for text in named] == [True] * 4 and len(found) == 4


def test_reading_a_part_checks_that_part(saved: Path) -> None:
    """A damaged block is found by who reads it; a reader of other rows does not pay for it."""
    path, array = array_path("rows", "user.total"), arrays()["rows/user.total"]
    flipped(saved / f"{path}.npy", -1)
    first, last = np.zeros(12, np.float32), np.zeros(12, np.float32)
    Checkpoint(saved).fill([(path, Rect(first, (30, 42), None, (70,)))])
    np.testing.assert_array_equal(first, array[30:42])
    with pytest.raises(CheckpointError, match=r"user\.total\.npy: CRC-32"):
        Checkpoint(saved).fill([(path, Rect(last, (58, 70), None, (70,)))])


@pytest.mark.parametrize("name", ["tables/user.npy", "dense.safetensors", "state.json", "manifest.json"])
def test_truncated_and_missing_files_are_named(saved: Path, name: str) -> None:
    file = saved / name
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=file.name):
        read_all(saved)
    file.unlink()
    with pytest.raises(CheckpointError, match=f"{file.name}: cannot be read"):
        read_all(saved)


def test_another_model_is_refused(saved: Path) -> None:
    wanted = whole(empty_like(arrays()))
    wanted["tables/item"] = wanted.pop("tables/user")
    with pytest.raises(CheckpointError, match=r"lacks \['tables/item'\], has in excess \['tables/user'\]"):
        Checkpoint(saved).read_into(wanted)
    wanted = whole(empty_like(arrays()) | {"tables/user": np.zeros((8, 3), np.float32)})
    with pytest.raises(CheckpointError, match=r"tables/user is float32 \(7, 3\), wanted float32 \(8, 3\)"):
        Checkpoint(saved).read_into(wanted)


def test_another_version_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "VERSION", 99)
    with pytest.raises(CheckpointError, match="version 2, wanted 'tesserec checkpoint' version 99"):
        Checkpoint(saved)


def test_version_1_can_be_read(tmp_path: Path) -> None:
    """One file for each array, with one checksum for each file."""
    want, files = content(), {}
    for name, array in {path.replace("%40", "@"): array for path, array in arrays().items()}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "state.json").write_text(json.dumps(want.state))
    (tmp_path / "dense.safetensors").write_bytes(
        save({n: np.array(a, order="C") for n, a in want.dense.items()})
    )
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        data = path.read_bytes()
        files[str(path.relative_to(tmp_path))] = {"bytes": len(data), "crc32": zlib.crc32(data)}
    signed: dict[str, Any] = {
        "format": "tesserec checkpoint",
        "version": 1,
        "tesserec": "0.1",
        "files": files,
    }
    signed["crc32"] = zlib.crc32(json.dumps(signed, sort_keys=True).encode())
    (tmp_path / "manifest.json").write_text(json.dumps(signed, indent=1))
    found = read_all(tmp_path)
    for name, array in {**arrays(), **want.dense}.items():
        np.testing.assert_array_equal(found[name], array)
    assert Checkpoint(tmp_path).problems() == []
    flipped(tmp_path / "tables/user.npy", -1)
    with pytest.raises(CheckpointError, match=r"user\.npy: CRC-32"):
        read_all(tmp_path)


def test_failing_half_way_leaves_the_old_one(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, data: bytes) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(module, "_write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(saved, content(seed=1))
    read_all(saved)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_kill_while_saving_leaves_the_old_one(saved: Path) -> None:
    """The process dies while it is asked for the last rows; the next one to save sweeps up what it left."""
    code = f"""
import os, pathlib, signal, numpy as np
from tesserec.train.checkpoint import Content, Rect, save_checkpoint

class Deadly:
    shape, dtype = (1 << 21, 8), np.dtype("float32")
    def __getitem__(self, rows):
        if rows.stop == self.shape[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.zeros((rows.stop - rows.start, 8), np.float32)

rect = Rect(Deadly(), (0, 1 << 21), (0, 8), (1 << 21, 8))
save_checkpoint(pathlib.Path({str(saved)!r}), Content({{}}, {{}}, {{"tables/t": [rect]}}))
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert problems(saved) == []
    (left,) = (path for path in saved.parent.iterdir() if path != saved)
    assert left.name.endswith(".tmp") and (left / "tables/t.npy").stat().st_size > 1 << 25
    save_checkpoint(saved, content(seed=1))
    assert problems(saved) == [] and list(saved.parent.iterdir()) == [saved]


def test_steps_are_found_in_order_and_removed_whole(tmp_path: Path) -> None:
    for step in (30, 4, 1_000_000_000_000):
        save_checkpoint(checkpoint_folder(tmp_path, step), Content({}, {}, {}))
    assert checkpoint_steps(tmp_path) == [4, 30, 1_000_000_000_000]
    remove_checkpoint(checkpoint_folder(tmp_path, 30))
    assert checkpoint_steps(tmp_path) == [4, 1_000_000_000_000]
    assert len(list(tmp_path.iterdir())) == 2


TABLE = np.random.default_rng(5).standard_normal(SHAPE).astype(np.float32)
TOTAL = np.random.default_rng(6).standard_normal(SHAPE[0]).astype(np.float32)


def cut(array: npt.NDArray[Any], rectangle: Rectangle) -> npt.NDArray[Any]:
    rows, cols = (slice(*span) for span in rectangle)
    return array[rows, cols] if array.ndim == 2 else array[rows]


def held(plan: ShardingPlan, rank: int, values: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> Any:
    """What `rank` holds of TABLE and TOTAL, {path: rectangles}, in the memory that `values` makes."""
    found: dict[str, list[Rect]] = {"tables/t": [], "rows/t.total": []}
    for shard in plan.on(rank):
        (rows, cols), first = shard.rectangle, plan.replicas(shard)[0] == rank
        found["tables/t"].append(Rect(values(cut(TABLE, shard.rectangle)), rows, cols, SHAPE, first))
        total = values(cut(TOTAL, shard.rectangle))
        found["rows/t.total"].append(Rect(total, rows, None, SHAPE[:1], first and cols[0] == 0))
    return found


def save_under(plan: ShardingPlan, comm: Comm, path: Path) -> None:
    state = {"rank": comm.rank}
    save_checkpoint(path, Content(state, {"w": np.array([comm.rank])}, held(plan, comm.rank, np.copy)), comm)


def load_under(plan: ShardingPlan, comm: Comm, path: Path) -> None:
    """Reads what the rank holds, and finds it right."""
    found = held(plan, comm.rank, np.zeros_like)
    Checkpoint(path).read_into(found)
    for name, wanted in held(plan, comm.rank, np.copy).items():
        for got, want in zip(found[name], wanted, strict=True):
            np.testing.assert_array_equal(got.array, want.array)


@settings(max_examples=25, deadline=None)
@given(before=tilings(SHAPE), after=tilings(SHAPE))
def test_any_tiling_loads_into_any_other(
    before: Tiling, after: Tiling, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("tilings") / "step-1"
    run_ranks(before.num_ranks, lambda comm: save_under(before.plan("t"), comm, path))
    run_ranks(after.num_ranks, lambda comm: load_under(after.plan("t"), comm, path))
    assert Checkpoint(path).state() == {"rank": 0} and Checkpoint(path).dense()["w"] == [0]


def plan_of(num_ranks: int) -> ShardingPlan:
    return ShardingPlan(row_wise("t", SHAPE, range(num_ranks)), num_ranks)


@pytest.mark.ranks(4)
def test_real_ranks_go_from_2_to_1_to_4(num_ranks: int, shared_path: Path) -> None:
    comm = world()
    path = shared_path / "step-1"
    some = {2: comm.split(comm.rank // 2), 1: comm.split(comm.rank), 4: comm}
    for n in (2, 1, 4):
        if comm.rank < n:
            load = load_under if path.exists() else (lambda *_: None)
            load(plan_of(n), some[n], path)
            some[n].barrier()  # or its files are replaced while another rank still reads them
            save_under(plan_of(n), some[n], path)
        comm.barrier()
        assert len(list(path.glob("tables/*.npy"))) == n
        comm.barrier()
    columns = Tiling(SHAPE, ((((0, 12), (0, 2)), (1,)), (((0, 12), (2, 6)), (0, 3))), 4)
    load_under(columns.plan("t"), comm, path)


def failing(comm: Comm, path: Path, arrays: Mapping[str, Sequence[Rect]]) -> str:
    with pytest.raises(CheckpointError) as error:
        save_checkpoint(path, Content({}, {}, arrays), comm)
    return str(error.value)


def test_a_failure_of_one_rank_is_everyones_and_leaves_the_old_one(saved: Path) -> None:
    """The rank that fails says why; nothing of the new checkpoint stays."""
    before = read_all(saved)

    def body(comm: Comm) -> str:
        array = np.zeros((6, 6)) if comm.rank == 1 else TABLE[:6]
        rows = (6 * comm.rank, 6 * comm.rank + 6 + (comm.rank == 1))
        return failing(comm, saved, {"tables/t": [Rect(array, rows, (0, 6), SHAPE)]})

    assert {*run_ranks(2, body)} == {
        "rank 1: CheckpointError: tables/t: the memory of rows [6, 13) × columns [0, 6) of (12, 6) is (6, 6)"
    }
    assert {name: array.tobytes() for name, array in read_all(saved).items()} == {
        name: array.tobytes() for name, array in before.items()
    }
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([(0, 6), (7, 12)], r"no rank holds rows \[6, 7\)"),
        ([(0, 7), (6, 12)], "overlap in"),
        ([(0, 12), (0, 12)], "is written 2 times: one replica writes it"),
        ([(0, 6), None], "no rank holds"),
        ([None, None], "to the ranks it is nothing"),
    ],
)
def test_what_does_not_tile_is_not_saved(pieces: list[Any], message: str, tmp_path: Path) -> None:
    def body(comm: Comm) -> str:
        piece = pieces[comm.rank]
        rects = [] if piece is None else [Rect(TABLE[slice(*piece)], piece, (0, 6), SHAPE)]
        return failing(comm, tmp_path / "step-1", {"tables/t": rects})

    for found in run_ranks(2, body):
        assert re.search(message, found)
    assert not list(tmp_path.iterdir())


def test_ranks_must_mean_the_same_array(tmp_path: Path) -> None:
    def body(comm: Comm) -> str:
        table = TABLE.astype(np.float64) if comm.rank else TABLE
        rows = (6 * comm.rank, 6 * comm.rank + 6)
        return failing(
            comm, tmp_path / "step-1", {"tables/t": [Rect(table[slice(*rows)], rows, (0, 6), SHAPE)]}
        )

    assert re.search(
        r"to the ranks it is float32 \(12, 6\), float64 \(12, 6\), wanted one", run_ranks(2, body)[0]
    )


def test_memory_may_be_part_of_something_wider(tmp_path: Path) -> None:
    wide = np.zeros((12, 12), np.float32)
    wide[:, 3:9] = TABLE
    rect = Rect(wide[:, 3:9], (0, 12), (0, 6), SHAPE)
    save_checkpoint(tmp_path / "step-1", Content({}, {}, {"tables/t": [rect]}))
    out = np.zeros((12, 12), np.float32)
    Checkpoint(tmp_path / "step-1").read_into({"tables/t": [Rect(out[:, 6:], (0, 12), (0, 6), SHAPE)]})
    np.testing.assert_array_equal(out[:, 6:], TABLE)
    assert not out[:, :6].any()


def test_nobody_sees_a_checkpoint_that_is_being_written(tmp_path: Path) -> None:
    """While rank 1 is still writing, the folder has no name yet."""
    seen, last = [], threading.Event()

    class Slow:
        shape, dtype = (6, 6), TABLE.dtype

        def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
            seen.append(checkpoint_steps(tmp_path))
            last.set()
            return TABLE[6:][rows]

    def body(comm: Comm) -> None:
        array: Any = Slow() if comm.rank else TABLE[:6]
        rows = (6 * comm.rank, 6 * comm.rank + 6)
        rect = Rect(array, rows, (0, 6), SHAPE)
        save_checkpoint(checkpoint_folder(tmp_path, 1), Content({}, {}, {"tables/t": [rect]}), comm)

    run_ranks(2, body)
    assert last.is_set() and not any(seen) and checkpoint_steps(tmp_path) == [1]
