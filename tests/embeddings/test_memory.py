"""The memory report says what arrays will take before they are, and refuses what cannot fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tesserec.autograd import MLP, Adam, Module
from tesserec.embeddings import (
    ROW_OPTIMIZERS,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    Pool,
)
from tesserec.embeddings.memory import (
    MemoryLimitError,
    MemoryReport,
    available_memory,
    in_units,
    memory_report,
    planning,
)

GIB = 2**30


class Model(Module):
    def __init__(self, rows: int) -> None:
        bag: Any = EmbeddingBagConfig
        wide, narrow = bag("wide", rows, 24, ("a", "b")), bag("narrow", rows // 10, 8, ("c",))
        half = EmbeddingConfig("half", rows, 5, ("a",), data_type="float16")
        self.bags = EmbeddingBagCollection([wide, narrow], seed=0)
        self.sequences = EmbeddingCollection([half], seed=0)
        self.mlp = MLP((56, 4, 1), rng=np.random.default_rng(0))


def optimizers(model: Model, name: str) -> list[Any]:
    named = list(model.named_parameters())
    pools = [(path, p) for path, p in named if isinstance(p, Pool)]
    dense = [(path, p) for path, p in named if not isinstance(p, Pool)]
    return [Adam(dense, lr=0.1), ROW_OPTIMIZERS[name](pools, lr=0.1)]


@pytest.mark.parametrize("name", ROW_OPTIMIZERS)
def test_planned_is_what_is_allocated(name: str) -> None:
    with planning():
        planned_model = Model(1000)
        planned = memory_report(planned_model, optimizers(planned_model, name), batch_size=8)
    model = Model(1000)
    rows, dense = optimizers(model, name)[1], [p for p in model.parameters() if not isinstance(p, Pool)]
    found = memory_report(model, optimizers(model, name), batch_size=8)
    assert replace(found, available_bytes=None) == replace(planned, available_bytes=None)
    assert [t.table for t in planned.tables] == ["bags.wide", "sequences.half", "bags.narrow"]
    assert (
        planned.rows_bytes == sum(array.nbytes for array in model.bags.state_dict().values()) + 1000 * 5 * 2
    )
    state = sum(array.nbytes for slots in rows.state.values() for array in slots.values())
    assert planned.state_bytes == state
    assert planned.dense_bytes == 4 * sum(p.data.nbytes for p in dense)


def test_planning_takes_no_memory() -> None:
    rows = 2**32 - 1
    with planning():
        model = Model(rows)
        found = memory_report(model, optimizers(model, "adam"), batch_size=8)
    assert found.rows_bytes == rows * (24 * 4 + 5 * 2) + rows // 10 * 8 * 4
    assert found.state_bytes == 2 * 4 * (rows * (24 + 5) + rows // 10 * 8)
    assert not model.bags.pools[0].data.flags.writeable


def test_workspace_grows_with_the_batch() -> None:
    with planning():
        model = Model(1000)
    one = memory_report(model, batch_size=100)
    assert memory_report(model, batch_size=300).workspace_bytes == 3 * one.workspace_bytes
    longer = memory_report(model, batch_size=100, bag_lengths={"c": 51.0})
    assert {t.table for t in set(longer.tables) - set(one.tables)} == {"bags.narrow"}
    assert longer.workspace_bytes == one.workspace_bytes + 50 * 100 * 24  # an id of 8 bytes, two entries


def test_error_names_the_largest_tables() -> None:
    with planning():
        model = Model(1_000_000_000)
    found = replace(memory_report(model, batch_size=8), available_bytes=GIB)
    assert not found.fits
    with pytest.raises(MemoryLimitError, match=r"need 102 GiB .* there are 1\.0 GiB.*'bags.wide' 89\.4 GiB"):
        found.check()


@pytest.mark.parametrize("available", [None, 10])
def test_what_fits_or_is_not_known_passes(available: int | None) -> None:
    MemoryReport((), 10, available).check()


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


MEMINFO = {"proc/meminfo": "MemTotal: 100 kB\nMemAvailable: 80 kB\n"}


def test_available_memory_of_the_machine(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None
    write(tmp_path, MEMINFO)
    assert available_memory(tmp_path) == 80 * 1024


def test_available_memory_of_control_groups(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/job/step"
    write(tmp_path, MEMINFO | {"proc/self/cgroup": "0::/job/step\n"})
    write(tmp_path, {f"{group}/memory.max": "max\n", f"{group}/memory.current": "30000\n"})
    assert available_memory(tmp_path) == 80 * 1024
    write(
        tmp_path, {"sys/fs/cgroup/job/memory.max": "50000\n", "sys/fs/cgroup/job/memory.current": "30000\n"}
    )
    assert available_memory(tmp_path) == 20000
    write(tmp_path, {"sys/fs/cgroup/job/memory.stat": "anon 5\ninactive_file 4000\n"})
    assert available_memory(tmp_path) == 24000


def test_available_memory_of_old_control_groups(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory/job"
    write(tmp_path, MEMINFO | {"proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/job\n"})
    write(tmp_path, {f"{group}/memory.limit_in_bytes": "9000\n", f"{group}/memory.usage_in_bytes": "8000\n"})
    assert available_memory(tmp_path) == 1000


@pytest.mark.parametrize(
    ("size", "wanted"),
    [(0, "0 B"), (999, "999 B"), (1536, "1.5 KiB"), (150 * 2**20, "150 MiB"), (2**40, "1,024 GiB")],
)
def test_units(size: int, wanted: str) -> None:
    assert in_units(size) == wanted
