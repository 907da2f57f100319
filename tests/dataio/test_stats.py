from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.dataio.collect import collect_stats, open_data
from tesserec.dataio.dataset import DataError, Dataset, DatasetInfo, SparseFeature, Split, write_dataset_info
from tesserec.dataio.stats import merge_stats, read_stats
from tesserec.dataio.stats_plot import plot_stats
from tesserec.sharding.planner.statistics import features_of

Samples = list[tuple[int, list[int], list[int]]]  # of the features a (one id), b and c (lists)
TABLES = {"a": 7, "b": 300, "c": 50}
SAMPLES = st.lists(
    st.tuples(
        st.integers(0, 6),
        st.lists(st.integers(0, 299), max_size=70),
        st.lists(st.integers(0, 49), max_size=2),
    ),
    min_size=1,
    max_size=40,
)


def write(folder: Path, samples: Samples, group: int = 16) -> Dataset:
    """A prepared data set of these samples."""
    folder.mkdir(exist_ok=True)
    lists = pa.list_(pa.int64())
    types = {"a": pa.int64(), "b": lists, "c": lists}
    columns = {name: pa.array([s[i] for s in samples], kind) for i, (name, kind) in enumerate(types.items())}
    pq.write_table(pa.table(columns), folder / "train.parquet", row_group_size=group)
    sparse = tuple(SparseFeature(name, rows, name != "a") for name, rows in TABLES.items())
    splits = {"train": Split(("train.parquet",), len(samples))}
    write_dataset_info(folder, DatasetInfo("t", sparse=sparse, splits=splits))
    return Dataset.open(folder)


@settings(deadline=None, max_examples=30)
@given(SAMPLES)
def test_counts_are_those_of_a_naive_loop(tmp_path_factory: pytest.TempPathFactory, samples: Samples) -> None:
    stats = collect_stats(write(tmp_path_factory.mktemp("data"), samples))
    assert (stats.rows, stats.of_rows) == (len(samples), len(samples))
    for i, (name, rows) in enumerate(TABLES.items()):
        bags = [([s[0]], s[1], s[2])[i] for s in samples]
        feature, truth = stats.features[name], Counter(row for bag in bags for row in bag)
        assert (feature.rows, feature.ids) == (rows, truth.total())
        assert feature.reads.distinct == len(truth) and feature.reads.exact
        assert dict(zip(feature.reads.sample, feature.reads.sample_counts, strict=True)) == truth
        lengths = [len(bag) for bag in bags]
        assert feature.lengths.mean == pytest.approx(np.mean(lengths))
        assert feature.lengths.empty == pytest.approx(lengths.count(0) / len(bags))
        assert feature.lengths.longest == max(lengths)
        values = feature.to_dict()["lengths"]["values"]
        assert {v for v in values if v < 16} == {n for n in lengths if n < 16}
    both = [sum(not s[i] and not s[j] for s in samples) for i in (1, 2) for j in (1, 2)]
    assert stats.empties.features == ("b", "c") and np.ravel(stats.empties.both).tolist() == both


@settings(deadline=None, max_examples=30)
@given(SAMPLES, SAMPLES)
def test_statistics_of_parts_make_those_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, some: Samples, others: Samples
) -> None:
    folder = tmp_path_factory.mktemp("data")
    parts = [collect_stats(write(folder / name, part)) for name, part in (("x", some), ("y", others))]
    for name, part in zip("xy", parts, strict=True):
        part.write(folder / f"{name}.json")
    merged = merge_stats([read_stats(folder / f"{name}.json") for name in "xy"])
    whole = collect_stats(write(folder / "z", some + others))
    assert merged.features == whole.features and merged.empties == whole.empties
    assert (merged.rows, merged.of_rows, len(merged.data)) == (whole.rows, whole.of_rows, 2)


def test_any_number_of_threads_counts_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    samples: Samples = [(int(a), list(range(a)), []) for a in rng.integers(0, 7, 500)]
    dataset = write(tmp_path, samples)
    assert collect_stats(dataset, threads=1) == collect_stats(dataset, threads=5)


def test_a_sample_takes_row_groups_from_all_over(tmp_path: Path) -> None:
    samples: Samples = [(i // 40, [], []) for i in range(240)]
    stats = collect_stats(write(tmp_path, samples, group=40), rows=120)
    assert (stats.rows, stats.of_rows) == (120, 240)
    assert stats.features["a"].reads.sample == (1, 3, 5)


def test_the_planner_reads_what_was_counted(tmp_path: Path) -> None:
    collect_stats(write(tmp_path, [(i % 3, [1] * (i % 2), []) for i in range(300)])).write(
        tmp_path / "s.json"
    )
    found = features_of((tmp_path / "s.json").read_text())
    lengths, frequencies = found["b"]
    assert (lengths.mean, lengths.empty, frequencies.rows) == (0.5, 0.5, 300)
    assert found["a"][1].share(0, 2) == pytest.approx(2 / 3)
    assert found["c"][0].empty == 1 and found["c"][1].rows == 50  # never read: all rows alike


def test_a_bare_parquet_file_has_ids_in_its_integer_columns(tmp_path: Path) -> None:
    table = pa.table({"x": [0.5, 1, 2], "id": pa.array([4, 4, 9], pa.int32()), "tags": [[1, 2], [], [7]]})
    pq.write_table(table, tmp_path / "part.parquet")
    stats = collect_stats(open_data(tmp_path / "part.parquet"))
    assert {name: feature.rows for name, feature in stats.features.items()} == {"id": 10, "tags": 8}
    assert stats.features["id"].reads.hot == (4, 9) and stats.features["tags"].lengths.mean == 1


def test_an_id_outside_its_table_is_found(tmp_path: Path) -> None:
    dataset = write(tmp_path, [(1, [2], []), (1, [3, 300], [])] * 20)
    with pytest.raises(
        DataError, match=r"row group 0, row 1, column 'b': wanted an id in \[0, 300\), got 300"
    ):
        collect_stats(dataset)


def test_what_does_not_belong_together_is_not_merged(tmp_path: Path) -> None:
    one = collect_stats(write(tmp_path / "x", [(1, [2], [])]))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "bare.parquet")
    with pytest.raises(DataError, match="different features"):
        one.merged(collect_stats(open_data(tmp_path / "bare.parquet")))
    table = json.loads((tmp_path / "x" / "dataset.json").read_text())
    table["sparse"][0]["num_embeddings"] = 8
    (tmp_path / "x" / "dataset.json").write_text(json.dumps(table))
    with pytest.raises(DataError, match="feature 'a': a table of 7 rows here, of 8 there"):
        one.merged(collect_stats(Dataset.open(tmp_path / "x")))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read as JSON"),
        ('{"format": "tesserec sharding plan"}', "no statistics of data"),
        ('{"format": "tesserec data statistics", "version": 7}', "version 7"),
        ('{"format": "tesserec data statistics", "version": 1}', "damaged: KeyError"),
        (None, "damaged at features.a.*7 reads of rows, but 1 ids"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    if text is None:
        stats = collect_stats(write(tmp_path, [(1, [2], [])])).to_dict()
        stats["features"]["a"]["sketch"]["reads"]["spans"] = [0, 7]
        text = json.dumps(stats)
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(DataError, match=said):
        read_stats(tmp_path / "s.json")


def test_a_picture(tmp_path: Path) -> None:
    stats = collect_stats(write(tmp_path, [(i % 7, [i], []) for i in range(100)]))
    plot_stats(stats, tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 10_000


def tesserec(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tesserec", "data", "stats", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)


def test_the_command_counts_merges_and_refuses(tmp_path: Path) -> None:
    dataset = write(tmp_path / "x", [(i % 7, [i], []) for i in range(100)])
    collect_stats(dataset).write(tmp_path / "y.json")
    (tmp_path / "run.yaml").write_text("data: {path: x}\nmodel: {name: lr}\n")
    assert json.loads(tesserec(tmp_path, "run.yaml", "-o", "x.json", "--json").stdout)["rows"] == 100
    merged = tesserec(tmp_path, "--merge", "x.json", "y.json", "-o", "z.json")
    assert merged.returncode == 0 and "200 rows" in merged.stdout
    assert read_stats(tmp_path / "z.json").rows == 200
    refused = tesserec(tmp_path, "--merge", "x.json", "x/dataset.json", "-o", "w.json")
    assert refused.returncode == 2 and "no statistics of data" in refused.stderr
    assert not (tmp_path / "w.json").exists()


def test_ctrl_c_ends_all_threads(tmp_path: Path) -> None:
    dataset = write(tmp_path, [(i % 7, [i], []) for i in range(300)], group=4)
    before = set(threading.enumerate())

    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_stats(dataset, progress=interrupted)
    assert set(threading.enumerate()) == before
