"""A checkpoint comes back as it was, or not at all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tesserec.train import checkpoint as module
from tesserec.train.checkpoint import (
    Checkpoint,
    CheckpointError,
    Content,
    array_path,
    checkpoint_folder,
    checkpoint_steps,
    remove_checkpoint,
    save_checkpoint,
)

Arrays = dict[str, npt.NDArray[Any]]


def content(seed: int = 0) -> Content:
    rng = np.random.default_rng(seed)
    arrays: Arrays = {
        array_path("tables", "user"): rng.standard_normal((7, 3)).astype(np.float32),
        array_path("tables", "odd/näme [x]"): rng.standard_normal((2, 5)),
        array_path("rows", "user.sum"): np.zeros((0, 3), np.float32),
    }
    dense: Arrays = {"w": rng.standard_normal((4, 2)).astype(np.float32).T, "steps": np.array(3)}
    return Content({"step": 12, "loss": 0.1 + 0.2, "best": None}, dense, arrays)


def empty_like(saved: Content) -> Arrays:
    return {name: np.full_like(array, 9) for name, array in saved.arrays.items()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = checkpoint_folder(tmp_path, 12)
    save_checkpoint(path, content())
    return path


def test_round_trip_keeps_every_bit(saved: Path) -> None:
    want, read = content(), Checkpoint(saved)
    arrays = empty_like(want)
    read.read_into(arrays)
    assert read.state() == want.state
    for name, array in want.arrays.items():
        np.testing.assert_array_equal(arrays[name], array)
    for name, array in want.dense.items():
        np.testing.assert_array_equal(read.dense()[name], array)


def test_tables_can_be_mapped_into_memory(saved: Path) -> None:
    table = np.load(saved / "tables/user.npy", mmap_mode="r")
    np.testing.assert_array_equal(table, content().arrays["tables/user"])


def test_every_flipped_byte_of_every_file_is_noticed(saved: Path) -> None:
    for file in [path for path in saved.rglob("*") if path.is_file()]:
        whole = file.read_bytes()
        for at in {0, len(whole) // 3, len(whole) // 2, len(whole) - 1}:
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x15]) + whole[at + 1 :])
            with pytest.raises(CheckpointError, match=re.escape(file.name)):
                read_all(saved)
        file.write_bytes(whole)
    read_all(saved)


def read_all(path: Path) -> None:
    read = Checkpoint(path)
    read.state(), read.dense()
    read.read_into(empty_like(content()))


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
    arrays = empty_like(content())
    arrays["tables/item"] = arrays.pop("tables/user")
    with pytest.raises(CheckpointError, match=r"lacks \['tables/item'\], has in excess \['tables/user'\]"):
        Checkpoint(saved).read_into(arrays)
    arrays = empty_like(content()) | {"tables/user": np.zeros((8, 3), np.float32)}
    with pytest.raises(CheckpointError, match=r"user\.npy: holds float32 \(7, 3\), wanted float32 \(8, 3\)"):
        Checkpoint(saved).read_into(arrays)


def test_another_version_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VERSION", 99)
    with pytest.raises(CheckpointError, match="version 1, wanted 'tesserec checkpoint' version 99"):
        Checkpoint(saved)


def test_failing_half_way_leaves_the_old_one(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, data: bytes) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(module, "_write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(saved, content(seed=1))
    read_all(saved)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_steps_are_found_in_order_and_removed_whole(tmp_path: Path) -> None:
    for step in (30, 4, 1_000_000_000_000):
        save_checkpoint(checkpoint_folder(tmp_path, step), Content({}, {}, {}))
    assert checkpoint_steps(tmp_path) == [4, 30, 1_000_000_000_000]
    remove_checkpoint(checkpoint_folder(tmp_path, 30))
    assert checkpoint_steps(tmp_path) == [4, 1_000_000_000_000]
    assert len(list(tmp_path.iterdir())) == 2
