from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.dataio import reuse, stream
from tesserec.dataio.batch import Batch
from tesserec.dataio.dataset import DataError, Dataset, DatasetInfo, SparseFeature, Split
from tesserec.dataio.reuse import Reuse
from tesserec.dataio.row_groups import DecodedRows, RowGroup
from tesserec.dataio.stream import num_batches, read_batches

ROWS, GROUP = 1000, 64


def columns(rows: int, start: int = 0) -> dict[str, Any]:
    """Row r has user id r: a batch tells which rows it holds."""
    row = np.arange(start, start + rows)
    return {
        "label": (row % 3 == 0).astype(np.float32),
        "weight": (1 + row % 5).astype(np.float32),
        "group": row // 10,
        "x": (row / 7).astype(np.float32),
        "z": (-row).astype(np.float32),
        "user": row,
        "tags": pa.array([[(i + j) % 50 for j in range(i % 4)] for i in row.tolist()], pa.list_(pa.int64())),
        "item": row % 17,
        "note": [f"row {i}" for i in row.tolist()],
    }


def dataset(folder: Path, *, lists: bool = True, **changed: Any) -> Dataset:
    """ROWS rows in two files of GROUP-row row groups; `changed` replaces columns of the second file."""
    half = ROWS // 2
    pq.write_table(pa.table(columns(half)), folder / "a.parquet", row_group_size=GROUP)
    pq.write_table(pa.table(columns(half, half) | changed), folder / "b.parquet", row_group_size=GROUP)
    tags = (SparseFeature("tags", 50, is_list=True),) if lists else ()
    info = DatasetInfo(
        name="test",
        labels=("label",),
        weight="weight",
        group="group",
        dense=("x", "z"),
        sparse=(SparseFeature("user", ROWS), *tags, SparseFeature("item", 17)),
        keep=("note",),
        splits={"train": Split(("a.parquet", "b.parquet"), ROWS)},
    )
    return Dataset(folder, info)


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BUFFER_ROWS", 150)


def users(batch: Batch) -> list[int]:
    return batch.sparse["user"].values.tolist()  # type: ignore[no-any-return]


def check_rows(batch: Batch) -> None:
    """Every column of the batch is what its user ids say."""
    want = [columns(1, user) for user in users(batch)]
    np.testing.assert_array_equal(batch.labels[:, 0], [w["label"][0] for w in want])
    assert batch.weights is not None and batch.groups is not None
    np.testing.assert_array_equal(batch.weights, [w["weight"][0] for w in want])
    np.testing.assert_array_equal(batch.groups, [w["group"][0] for w in want])
    np.testing.assert_array_equal(batch.dense, [[w["x"][0], w["z"][0]] for w in want])
    np.testing.assert_array_equal(batch.sparse["item"].values, [w["item"][0] for w in want])
    if "tags" in batch.sparse.keys:
        assert batch.sparse["tags"].to_lists() == [w["tags"][0].as_py() for w in want]


def equal(left: Batch, right: Batch) -> bool:
    assert left.weights is not None and right.weights is not None
    pairs: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = [
        (left.dense, right.dense),
        (left.labels, right.labels),
        (left.weights, right.weights),
        (left.sparse.values, right.sparse.values),
        (left.sparse.offsets, right.sparse.offsets),
    ]
    return all(a.tobytes() == b.tobytes() for a, b in pairs)


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_epoch_holds_every_row_once(tmp_path: Path, lists: bool, prefetch: int, shuffle: bool) -> None:
    data = dataset(tmp_path, lists=lists)
    batches = list(read_batches(data, "train", 77, shuffle=shuffle, drop_last=False, prefetch=prefetch))
    assert [batch.batch_size for batch in batches] == [77] * 12 + [76]
    assert len(batches) == num_batches(data, "train", 77, drop_last=False)
    for batch in batches:
        check_rows(batch)
    seen = [user for batch in batches for user in users(batch)]
    assert sorted(seen) == list(range(ROWS))
    assert (seen == sorted(seen)) is not shuffle


def test_drop_last_leaves_the_remainder_out(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    batches = list(read_batches(data, "train", 77))
    assert [batch.batch_size for batch in batches] == [77] * 12
    assert num_batches(data, "train", 77) == 12
    assert len({user for batch in batches for user in users(batch)}) == 12 * 77


def test_order_is_a_function_of_seed_and_epoch(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    runs = [
        list(read_batches(data, "train", 100, seed=s, epoch=e)) for s, e in [(3, 1), (3, 1), (3, 2), (1, 3)]
    ]
    assert all(equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    orders = [[user for batch in run for user in users(batch)] for run in runs]
    assert orders[0] != orders[2] and orders[0] != orders[3]


@settings(max_examples=12, deadline=None)
@given(
    skip=st.integers(0, 18), batch_size=st.integers(55, 400), shuffle=st.booleans(), drop_last=st.booleans()
)
def test_skip_equals_dropping(
    tmp_path_factory: pytest.TempPathFactory, skip: int, batch_size: int, shuffle: bool, drop_last: bool
) -> None:
    data = dataset(tmp_path_factory.mktemp("skip"))

    def read(skip: int) -> list[Batch]:
        options: dict[str, Any] = {"shuffle": shuffle, "drop_last": drop_last, "prefetch": 1, "seed": 5}
        return list(read_batches(data, "train", batch_size, skip=skip, **options))

    whole, rest = read(0), read(skip)
    assert len(rest) == max(len(whole) - skip, 0)
    assert all(equal(a, b) for a, b in zip(whole[skip:], rest, strict=True))


def test_skip_does_not_read_what_it_passes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, read = dataset(tmp_path), list[RowGroup]()
    original = RowGroup.read

    def counted(group: RowGroup, *where: Any) -> DecodedRows:
        read.append(group)
        return original(group, *where)

    monkeypatch.setattr(RowGroup, "read", counted)
    list(read_batches(data, "train", 100, skip=9))
    assert 0 < len(read) < 6  # of 16 row groups


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize("streams", [1, 2, 6])
def test_ranks_share_each_batch(tmp_path: Path, streams: int, size: int, drop_last: bool) -> None:
    """What a batch holds depends on the streams and never on the ranks, also when a run is resumed."""
    data = dataset(tmp_path)

    def read(rank: int, size: int, skip: int = 0) -> list[Batch]:
        options: dict[str, Any] = {"streams": streams, "drop_last": drop_last, "skip": skip, "epoch": 4}
        return list(read_batches(data, "train", 60, rank=rank, size=size, **options))

    if max(streams, size) % min(streams, size):
        with pytest.raises(ValueError, match="wanted one to be a multiple of the other"):
            read(0, size)
        return
    whole = read(0, 1)
    assert len(whole) == num_batches(data, "train", 60, streams=streams, drop_last=drop_last)
    for skip in (0, 11, 16):
        parts = zip(*(read(rank, size, skip) for rank in range(size)), strict=True)
        joined = [Batch.concat(part) for part in parts]
        assert all(equal(a, b) for a, b in zip(joined, whole[skip:], strict=True))
    for batch in whole[:-1]:
        check_rows(batch)
    seen = [user for batch in whole for user in users(batch)]
    assert len(set(seen)) == len(seen) == (60 * len(whole) if drop_last else ROWS)


def test_batches_take_evenly_from_every_stream(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    batches = list(read_batches(data, "train", 100, streams=2, shuffle=False))
    assert [users(batch) for batch in batches] == [
        [*range(50 * k, 50 * k + 50), *range(500 + 50 * k, 550 + 50 * k)] for k in range(10)
    ]


def test_streams_begin_at_whole_grains(tmp_path: Path) -> None:
    """So evaluation cuts the same slices for any number of ranks, which see them in file order."""
    data = dataset(tmp_path)
    options: dict[str, Any] = {"size": 3, "streams": 3, "shuffle": False, "drop_last": False, "grain": 150}
    parts = [list(read_batches(data, "train", 900, rank=rank, **options)) for rank in range(3)]
    assert [sum(batch.batch_size for batch in part) for part in parts] == [300, 300, 400]
    assert [len(part) for part in parts] == [2, 2, 2]
    assert [user for part in parts for batch in part for user in users(batch)] == list(range(ROWS))


def test_ranks_without_rows_get_empty_batches(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    parts = [
        list(
            read_batches(
                data, "train", 8000, rank=rank, size=4, streams=4, shuffle=False, drop_last=False, grain=600
            )
        )
        for rank in range(4)
    ]
    assert [[batch.batch_size for batch in part] for part in parts] == [[0], [600], [0], [400]]
    assert all(len(part[0].sparse.keys) == 3 for part in parts)


def test_select_is_a_slice_and_concat_its_inverse(tmp_path: Path) -> None:
    batch = next(iter(read_batches(dataset(tmp_path), "train", 100, keep=True)))
    parts = [batch.select(lo, hi) for lo, hi in [(0, 30), (30, 31), (31, 100)]]
    assert users(parts[1]) == users(batch)[30:31]
    for part in parts:
        check_rows(part)
    whole = Batch.concat(parts)
    assert equal(whole, batch)
    assert whole.kept.equals(batch.kept)


def test_kept_columns_ride_along(tmp_path: Path) -> None:
    for batch in read_batches(dataset(tmp_path), "train", 90, keep=True):
        assert batch.kept["note"].to_pylist() == [f"row {user}" for user in users(batch)]
    assert next(iter(read_batches(dataset(tmp_path), "train", 90))).kept is None


def test_batches_stay_valid_while_held(tmp_path: Path) -> None:
    for batch in list(read_batches(dataset(tmp_path), "train", 50)):
        check_rows(batch)


def test_narrow_and_large_types_are_read_as_the_same_values(tmp_path: Path) -> None:
    half = columns(500, 500)
    data = dataset(
        tmp_path,
        user=pa.array(half["user"], pa.int32()),
        item=pa.array(half["item"], pa.uint8()),
        label=pa.array(half["label"] > 0),
        x=pa.array(half["x"], pa.float64()),
        tags=half["tags"].cast(pa.large_list(pa.int32())),
    )
    for batch in read_batches(data, "train", 100):
        check_rows(batch)


def test_without_dense_or_without_sparse_columns(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    only_ids = DatasetInfo("a", sparse=(SparseFeature("user", ROWS),), splits=data.info.splits)
    batch = next(iter(read_batches(Dataset(tmp_path, only_ids), "train", 30)))
    assert batch.dense.shape == (30, 0) and batch.labels.shape == (30, 0) and batch.weights is None
    assert batch.select(3, 9).batch_size == 6
    only_dense = DatasetInfo("b", dense=("x",), labels=("label",), splits=data.info.splits)
    batches = list(read_batches(Dataset(tmp_path, only_dense), "train", 30))
    assert len(batches) == 33 and batches[0].sparse.keys == ()
    assert batches[5].select(3, 9).dense.shape == (6, 1)


def _put(name: str, row: int, value: Any) -> dict[str, Any]:
    values = pa.array(columns(500, 500)[name]).to_pylist()
    values[row] = value
    return {name: pa.array(values, pa.array(columns(1)[name]).type)}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", None, "row group 3, row 8, column 'x': null"),
        ("user", None, "row group 3, row 8, column 'user': null"),
        ("tags", None, "row group 3, row 8, column 'tags': null"),
        ("tags", [1, None], "row group 3, row 8, column 'tags': null in the list"),
        ("z", np.nan, "row group 3, row 8, column 'z': wanted a finite number, got nan"),
        ("label", np.inf, "row group 3, row 8, column 'label': wanted a finite number, got inf"),
        ("user", -1, r"row group 3, row 8, column 'user': wanted an id in \[0, 1000\), got -1"),
        ("item", 17, r"row group 3, row 8, column 'item': wanted an id in \[0, 17\), got 17"),
        ("tags", [3, 50], r"row group 3, row 8, column 'tags': wanted an id in \[0, 50\), got 50"),
    ],
)
@pytest.mark.parametrize("prefetch", [0, 2])
def test_bad_values_are_named(tmp_path: Path, name: str, value: Any, message: str, prefetch: int) -> None:
    data = dataset(tmp_path, **_put(name, 200, value))
    with pytest.raises(DataError, match=rf"b\.parquet, {message}"):
        list(read_batches(data, "train", 50, prefetch=prefetch))
    assert not reader_threads()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": ["a"] * 500}, "column 'x': wanted float, got string"),
        ({"user": np.zeros(500)}, "column 'user': wanted int64, got double"),
        ({"tags": np.arange(500)}, "column 'tags': wanted list"),
        ({"item": pa.array([[1]] * 500)}, "column 'item': wanted int64, got list"),
    ],
)
def test_wrong_types_are_refused_before_reading(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_batches(dataset(tmp_path, **changed), "train", 50)


def test_files_that_do_not_fit_the_description(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    splits = {
        "short": Split(("a.parquet",), 7),
        "absent": Split(("c.parquet",), 7),
        "torn": Split(("torn.parquet",), 7),
    }
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:2000])
    renamed = DatasetInfo("n", dense=("xx",), splits=data.info.splits)
    for split, message in [("short", "500 rows, its description says 7"), ("absent", "no such file")]:
        with pytest.raises(DataError, match=message):
            read_batches(Dataset(tmp_path, DatasetInfo("n", dense=("x",), splits=splits)), split, 2)
    with pytest.raises(DataError, match=r"torn\.parquet: not a readable Parquet file"):
        read_batches(Dataset(tmp_path, DatasetInfo("n", dense=("x",), splits=splits)), "torn", 2)
    with pytest.raises(DataError, match="no column 'xx'; did you mean 'x'"):
        read_batches(Dataset(tmp_path, renamed), "train", 2)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"rank": 2, "size": 2},
        {"skip": -1},
        {"seed": -1},
        {"rank": -1},
        {"batch_size": 9, "streams": 2},
    ],
)
def test_impossible_arguments_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    arguments = {"batch_size": 10, **options}
    with pytest.raises(ValueError, match=r"wanted|evenly"):
        read_batches(dataset(tmp_path), "train", **arguments)


def reader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("tesserec-ahead")]


def _close(batches: Iterator[Batch]) -> None:
    batches.close()  # type: ignore[attr-defined]


def _drop(batches: Iterator[Batch]) -> None:
    del batches


@pytest.mark.parametrize("leave", [_close, _drop])
def test_threads_end_with_the_iterator(tmp_path: Path, leave: Callable[[Iterator[Batch]], None]) -> None:
    batches = read_batches(dataset(tmp_path), "train", 50)
    assert not reader_threads()
    next(batches)
    assert reader_threads()
    leave(batches)
    del batches
    assert not reader_threads()


def test_threads_end_when_the_consumer_raises(tmp_path: Path) -> None:
    data = dataset(tmp_path)

    def consume() -> None:
        for _ in read_batches(data, "train", 50):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        consume()
    assert not reader_threads()


def test_an_error_on_a_reading_thread_reaches_the_consumer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dataset(tmp_path)
    monkeypatch.setattr(stream, "column_types", lambda info: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(read_batches(data, "train", 50))
    assert not reader_threads()


def test_memory_is_used_again_only_when_no_view_is_left() -> None:
    memory = Reuse()
    first = memory.empty((1 << 19, 1), np.int64)
    place, view = first.ctypes.data, first.T[:, 5:10].view(np.uint64)
    view[:] = 7
    del first
    second = memory.empty((1 << 19,), np.int64)
    second[:] = 1
    assert second.ctypes.data != place and (view == 7).all()
    del view
    assert memory.empty(((1 << 19) - 100,), np.int64).ctypes.data == place
    assert memory.empty((3, 0), np.float32).shape == (3, 0)


def test_batches_held_across_buffers_keep_their_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reuse, "_SMALL", 1)
    held = [batch.select(0, 3) for batch in read_batches(dataset(tmp_path), "train", 20)]
    for batch in held:
        check_rows(batch)
