from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tesserec.dataio import prepare as module
from tesserec.dataio import raw
from tesserec.dataio.config import load_yaml, parse_config
from tesserec.dataio.dataset import Dataset
from tesserec.dataio.encoder import Encoder
from tesserec.dataio.prepare import Prepared, prepare
from tesserec.dataio.schema import Schema, SchemaError
from tesserec.dataio.splits import SPLITS

ROWS = 1000


def schema_of(text: str) -> Schema:
    return parse_config(load_yaml("{name: t, " + text + "}"), Schema)


FULL = schema_of("""labels: y, weight: w, group: u, keep: [{column: row, type: int}],
    dense: [{column: x, fill: mean, transform: standardize}],
    sparse: [{column: u, min_count: 2}, {column: tags, delimiter: " "}]""")
PLAIN = "sparse: u, keep: [{column: row, type: int}]"


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    user, time = rng.integers(0, 90, ROWS), rng.integers(0, 300, ROWS)
    lines = [
        f"{row},{row % 2},{row % 3},u{user[row]},{row / 10 if row % 7 else ''},{'a b' if row % 5 else ''},"
        f"{time[row]},{SPLITS[row % 3]},2024-01-{1 + row % 30:02d}"
        for row in range(ROWS)
    ]
    path = tmp_path / "raw.csv"
    path.write_text("\n".join(["row,y,w,u,x,tags,t,part,day", *lines]))
    return path


def read(prepared: Prepared) -> dict[str, pa.Table]:
    return {name: pq.read_table(prepared.dataset.files(name)[0]) for name in prepared.dataset.info.splits}


def split_of(csv: Path, split: str, out: str = "out") -> dict[str, list[int]]:
    prepared = prepare([csv], schema_of(f"{PLAIN}, split: {split}"), csv.parent / out)
    return {name: table["row"].to_pylist() for name, table in read(prepared).items()}


def test_a_data_set_holds_every_row_once_with_the_promised_types(csv: Path, tmp_path: Path) -> None:
    stages = []
    prepared = prepare([csv], FULL, tmp_path / "out", progress=lambda *step: stages.append(step))
    tables = read(prepared)
    assert sorted(r for table in tables.values() for r in table["row"].to_pylist()) == list(range(ROWS))
    assert {name: table.num_rows for name, table in tables.items()} == dict(prepared.rows)
    kinds = {
        "y": pa.float32(),
        "weight": pa.float32(),
        "group": pa.int64(),
        "x": pa.float32(),
        "u": pa.int64(),
    }
    kinds |= {"tags": pa.list_(pa.int64()), "row": pa.int64()}
    for table in tables.values():
        assert {name: table.schema.field(name).type for name in table.column_names} == kinds
        assert sum(column.null_count for column in table.columns) == 0
    info = Dataset.open(tmp_path / "out").info
    assert (info.labels, info.weight, info.group, info.dense, info.keep) == (
        ("y",), "weight", "group", ("x",), ("row",),
    )  # fmt: skip
    assert [(f.name, f.is_list) for f in info.sparse] == [("u", False), ("tags", True)]
    assert stages[-1] == ("write", ROWS, ROWS) and stages[0][0] == "fit"
    assert sorted(os.listdir(tmp_path / "out")) == [
        "dataset.json", "encoder", "test.parquet", "train.parquet", "valid.parquet",
    ]  # fmt: skip


def test_the_saved_encoder_gives_what_was_written(csv: Path, tmp_path: Path) -> None:
    tables = read(prepare([csv], FULL, tmp_path / "out"))
    encoder = Encoder.load(tmp_path / "out" / "encoder")
    features = [part.batch for part in raw.read_raw([csv], {**FULL.feature_columns(), "row": "int"})]
    encoded = pa.Table.from_batches([encoder.encode(batch) for batch in features])
    for table in tables.values():
        want = encoded.take(table["row"])
        assert want.equals(table.select(want.column_names))


def test_statistics_do_not_see_validation_and_test(csv: Path, tmp_path: Path) -> None:
    tables = read(prepare([csv], FULL, tmp_path / "out"))
    rows = tables["train"]["row"].to_numpy()
    x = rows[rows % 7 != 0] / 10
    got = tables["train"]["x"].to_numpy()[rows % 7 != 0]
    np.testing.assert_allclose(got, (x - x.mean()) / x.std(), rtol=1e-4)


def test_oov_is_counted_per_split_and_feature(csv: Path, tmp_path: Path) -> None:
    prepared = prepare([csv], FULL, tmp_path / "out")
    for split, table in read(prepared).items():
        assert prepared.oov[split]["u"] == int((table["u"].to_numpy() == 0).sum())


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_cut_into_batches_and_threads_changes_no_id(
    csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    file = csv
    if suffix == "parquet":
        file = tmp_path / "raw.parquet"
        columns = FULL.columns()
        pq.write_table(pa.Table.from_batches([part.batch for part in raw.read_raw([csv], columns)]), file)
    prepare([file], FULL, tmp_path / "a", threads=1)
    monkeypatch.setattr(raw, "_BLOCK_BYTES", 2000)
    monkeypatch.setattr(raw, "_BATCH_ROWS", 37)
    prepare([file], FULL, tmp_path / "b", threads=3)
    for name in SPLITS:
        one, other = (pq.read_table(tmp_path / folder / f"{name}.parquet") for folder in "ab")
        np.testing.assert_allclose(one["x"].to_numpy(), other["x"].to_numpy(), rtol=1e-5, atol=1e-6)
        assert one.drop_columns(["x"]).equals(other.drop_columns(["x"]))


def test_row_groups_have_one_size(csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "_BLOCK_BYTES", 2000)
    monkeypatch.setattr(module, "ROW_GROUP", 64)
    prepared = prepare([csv], FULL, tmp_path / "out")
    meta = pq.read_metadata(tmp_path / "out" / "train.parquet")
    sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
    assert set(sizes[:-1]) == {64} and sum(sizes) == prepared.rows["train"]


def test_a_ratio_split_meets_its_shares_and_follows_its_seed(csv: Path) -> None:
    parts = split_of(csv, "{by: ratio, train: 0.5, valid: 0.3, test: 0.2, seed: 3}")
    assert [len(parts[name]) / ROWS for name in SPLITS] == pytest.approx([0.5, 0.3, 0.2], abs=0.06)
    assert split_of(csv, "{by: ratio, train: 0.5, valid: 0.3, test: 0.2, seed: 3}", "again") == parts
    assert split_of(csv, "{by: ratio, train: 0.5, valid: 0.3, test: 0.2, seed: 4}", "other") != parts
    assert split_of(csv, "{by: ratio, train: 1, valid: 0, test: 0}", "all") == {"train": list(range(ROWS))}


def times(csv: Path) -> np.ndarray[Any, Any]:
    return np.array([int(line.split(",")[6]) for line in csv.read_text().split("\n")[1:]])


def test_a_time_split_puts_the_past_before_the_future(csv: Path) -> None:
    t = times(csv)
    for name, split in (
        ("a", "{by: time, column: t}"),
        ("b", "{by: time, column: t, valid_from: 240, test_from: 270}"),
    ):
        parts = split_of(csv, split, name)
        assert (
            t[parts["train"]].max()
            < t[parts["valid"]].min()
            <= t[parts["valid"]].max()
            < t[parts["test"]].min()
        )
        assert [len(parts[name]) / ROWS for name in SPLITS] == pytest.approx([0.8, 0.1, 0.1], abs=0.04)


def test_times_may_be_dates(csv: Path) -> None:
    split = "{by: time, column: day, type: timestamp, valid_from: 2024-01-21, test_from: 2024-01-21}"
    parts = split_of(csv, split)
    assert parts == {
        "train": [row for row in range(ROWS) if row % 30 < 20],
        "test": [row for row in range(ROWS) if row % 30 >= 20],
    }


def test_a_column_may_say_the_split(csv: Path) -> None:
    parts = split_of(csv, "{by: column, column: part}")
    assert parts == {name: list(range(code, ROWS, 3)) for code, name in enumerate(SPLITS)}
    with pytest.raises(
        SchemaError, match=r"raw.csv, line 2, column 'u': got 'u\d+', wanted train, valid or test"
    ):
        split_of(csv, "{by: column, column: u}", "other")


@pytest.mark.parametrize("by_time", [True, False])
def test_leave_one_out_takes_the_last_rows_of_each_group(
    csv: Path, monkeypatch: pytest.MonkeyPatch, by_time: bool
) -> None:
    monkeypatch.setattr(raw, "_BLOCK_BYTES", 2000)
    users = [line.split(",")[3] for line in csv.read_text().split("\n")[1:]]
    order = np.argsort(times(csv), kind="stable") if by_time else np.arange(ROWS)
    want: dict[str, list[int]] = {name: [] for name in SPLITS}
    for user in set(users):
        mine = [int(row) for row in order if users[row] == user]
        want["test"] += mine[-1:] if len(mine) > 1 else []
        want["valid"] += mine[-2:-1] if len(mine) > 2 else []
        want["train"] += mine[:-2] if len(mine) > 2 else mine[:1]
    parts = split_of(csv, f"{{by: leave_one_out, group: u{', time: t' if by_time else ''}}}")
    assert parts == {name: sorted(rows) for name, rows in want.items()}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: text.replace("\n500,0,", "\n500,2,"), "raw.csv, line 502, column 'y': got 2.0"),
        (lambda text: text.replace("\n500,0,", "\n500,no,"), "raw.csv, line 502, column 'y': got 'no'"),
        (lambda text: text.replace("\n500,0,", "\n500,"), "raw.csv, line 502: 8 fields, wanted 9"),
        (lambda text: text.replace("row,y,w", "row,label,w"), "no column 'y'"),
        (lambda text: text.split("\n")[0] + "\n", "none of 0 rows is for training"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(
    csv: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[str], str], words: str
) -> None:
    monkeypatch.setattr(raw, "_BLOCK_BYTES", 2000)
    csv.write_text(spoil(csv.read_text()))
    with pytest.raises(SchemaError) as caught:
        prepare([csv], FULL, csv.parent / "out")
    assert words in str(caught.value)
    assert os.listdir(csv.parent) == ["raw.csv"]


def test_an_interrupted_run_leaves_nothing(csv: Path) -> None:
    def stop(stage: str, done: int, total: int | None) -> None:
        if stage == "write":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([csv], FULL, csv.parent / "out", progress=stop)
    assert os.listdir(csv.parent) == ["raw.csv"]


def test_only_a_data_set_may_be_overwritten(csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare([csv], FULL, out)
    with pytest.raises(SchemaError, match="holds a data set already"):
        prepare([csv], FULL, out)
    assert prepare([csv], FULL, out, overwrite=True).dataset.path == out
    with pytest.raises(SchemaError, match="exists and is no data set"):
        prepare([csv], FULL, tmp_path, overwrite=True)
    inside = csv.rename(out / "raw.csv")
    with pytest.raises(SchemaError, match="would be overwritten"):
        prepare([inside], FULL, out, overwrite=True)
