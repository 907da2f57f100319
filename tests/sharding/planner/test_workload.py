"""Workload files say what a step has to do, or where they are wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tesserec.dataio.config import ConfigError, read_config
from tesserec.embeddings import ROW_OPTIMIZERS
from tesserec.sharding.planner.frequencies import Frequencies, Lengths
from tesserec.sharding.planner.workload import (
    Feature,
    RowOptimizer,
    Table,
    WorkloadError,
    WorkloadFile,
)

TEXT = """
batch_size: 4096
tables:
  - {name: user, rows: 200_000_000, dim: 128, zipf: 1.05, data_type: float16}
  - {name: item, rows: 1_000_000, dim: 64, length: 20, spread: poisson, ordered: false, count: 3}
dense: {parameters: 3_000_000, flops: 6_000_000, columns: 13}
optimizer: adam
forward: fp16
"""


def read(folder: Path, text: str) -> WorkloadFile:
    (folder / "w.yaml").write_text(text)
    return read_config(folder / "w.yaml", WorkloadFile)


def test_files_become_workloads(tmp_path: Path) -> None:
    workload = read(tmp_path, TEXT).workload()
    assert list(workload.shapes()) == ["user", "item.0", "item.1", "item.2"]
    user, item = workload.by_name["user"], workload.by_name["item.1"]
    assert (user.shape, user.item_bytes, user.compute_bytes) == ((200_000_000, 128), 2, 4)
    assert item.mean_length == pytest.approx(20) and item.frequencies.rows == 1_000_000
    assert workload.dense.columns == 13 and workload.forward == "fp16"
    assert workload.optimizer.row_bytes(64) == 2 * 4 * 64


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size: 4096", "batch_size: 0", "line 2.*batch_size"),
        ("dim: 128", "dims: 128", "line 4.*dim"),
        ("zipf: 1.05", "zipf: -1", "line 4.*zipf"),
        ("name: item", "name: user", None),
        ("count: 3", "count: 3, rows_: 1", "line 5.*rows_"),
        ("optimizer: adam", "optimizer: adamm", "line 7.*no optimizer 'adamm'; have sgd"),
        ("forward: fp16", "forward: fp8", "line 8.*forward"),
    ],
)
def test_mistakes_are_named_by_line(old: str, new: str, message: str | None, tmp_path: Path) -> None:
    text = TEXT.replace(old, new)
    if message is None:  # a family's names have numbers
        assert len(read(tmp_path, text).workload().tables) == 4
        text, message = text.replace(", count: 3", ""), "line 5.*a second 'user': names must differ"
    with pytest.raises(ConfigError, match=f"(?s)w.yaml, {message}"):
        read(tmp_path, text)


def test_frequencies_must_be_those_of_the_table() -> None:
    feature = Feature("f", Lengths.fixed(1), Frequencies.uniform(10))
    with pytest.raises(WorkloadError, match=r"'t' has 20 rows, but .* 'f' are of 10: use .*resized\(20\)"):
        Table("t", 20, 4, features=(feature,))


def test_several_features_read_one_table() -> None:
    features = tuple(
        Feature(name, Lengths.fixed(n), Frequencies.zipf(1000, a))
        for name, n, a in [("x", 1, 1.2), ("y", 3, 0.5)]
    )
    table = Table("t", 1000, 4, features=features)
    assert table.mean_length == 4 and table.vectors == 2
    each = [feature.frequencies.share(0, 10) for feature in features]
    assert table.frequencies.share(0, 10) == pytest.approx((each[0] + 3 * each[1]) / 4)
    assert replace(table, pooled=False).vectors == 4


def test_optimizers_keep_what_the_engine_keeps() -> None:
    assert RowOptimizer.named("sgd").row_bytes(16) == 0
    assert RowOptimizer.named("rowwise_adagrad") == RowOptimizer("rowwise_adagrad", 0, 1, 1)
    assert not RowOptimizer.named("adam").whole_rows
    for name in ROW_OPTIMIZERS:
        assert RowOptimizer.named(name).name == name


def test_fingerprints_tell_workloads_apart(tmp_path: Path) -> None:
    workload = read(tmp_path, TEXT).workload()
    assert workload.fingerprint() == read(tmp_path, TEXT).workload().fingerprint()
    others = [replace(workload, batch_size=8192), replace(workload, tables=workload.tables[:3])]
    others.append(read(tmp_path, TEXT.replace("1.05", "1.06")).workload())
    assert len({workload.fingerprint(), *(other.fingerprint() for other in others)}) == 4
