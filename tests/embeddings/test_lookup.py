"""Pooling kernels: any width, any storage, any id type and any bags give what the sums say."""

from __future__ import annotations

import mmap
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.embeddings.kernels.lookup import LANE, pool_bags
from tesserec.embeddings.kernels.rows import load_rows, store_rows, stored
from tests import naive

Array = naive.Array

STORAGE: dict[str, Any] = {
    "float32": np.float32,
    "float64": np.float64,
    "float16": np.float16,
    "bfloat16": np.uint16,
}
storage = pytest.mark.parametrize("data_type", STORAGE)
WIDTHS = [1, 2, 7, 8, 15, 16, 17, 31, 48, 100, 128, 255, 256, 272, 511, 2048]


def table(data_type: str, rows: int, width: int) -> tuple[Array, Array]:
    """(rows as stored, the numbers they hold), from a cache line on."""
    values = np.random.default_rng(width).standard_normal((rows, width)).astype(np.float32)
    real = np.dtype(np.float64 if data_type == "float64" else np.float32)
    data = np.empty((rows, width), STORAGE[data_type])
    store_rows(values.astype(real), stored(data))
    load_rows(stored(data), held := np.empty((rows, width), real))
    return stored(data), held


def lane(ids: Array, offsets: Array, *, column: int = 0, first_row: int = 0, **more: Any) -> Array:
    """One lane over these arrays, which the caller keeps."""
    lanes = np.zeros(1, LANE)
    lanes["ids"], lanes["narrow"], lanes["offsets"] = ids.ctypes.data, ids.itemsize == 4, offsets.ctypes.data
    lanes["bags"], lanes["count"] = len(offsets) - 1, offsets[-1] - offsets[0]
    lanes["num_rows"], lanes["column"], lanes["first_row"] = 2**32 - 1, column, first_row
    for name, value in more.items():
        lanes[name] = value
    return lanes


def expected(held: Array, ids: Array, offsets: Array, weights: Array | None, mean: bool) -> Array:
    """(bags, D) by the oracle."""
    w = np.ones(len(ids)) if weights is None else weights
    bags = [slice(lo, hi) for lo, hi in pairwise(offsets)]
    return np.array([naive.pooled(held, ids[bag], w[bag], mean) for bag in bags])


@storage
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("mean", [False, True], ids=["sum", "mean"])
def test_bags_of_any_width_and_storage(data_type: str, width: int, weighted: bool, mean: bool) -> None:
    rng = np.random.default_rng(0)
    data, held = table(data_type, 50, width)
    offsets = np.cumsum([0, 0, 1, 5, 1, 0, 23, *[2] * 40, 0])
    ids = rng.integers(0, 45, offsets[-1])
    weights = rng.standard_normal(len(ids)).astype(np.float32) if weighted else None
    at = 0 if weights is None else weights.ctypes.data
    bags = len(offsets) - 1
    out = np.full((bags, width + 8), 7, held.dtype)
    lanes = lane(ids, offsets, column=3, first_row=5, weights=at, mean=mean)
    pool_bags(data, lanes, 0, bags, out)
    wanted = expected(held[5:], ids, offsets, weights, mean)
    np.testing.assert_allclose(out[:, 3:-5], wanted, rtol=1e-5, atol=1e-5)
    assert (out[:, :3] == 7).all() and (out[:, -5:] == 7).all()


@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), st.data())
@settings(max_examples=30, deadline=None)
def test_same_bits_however_samples_are_shared_out(lengths: list[int], data: Any) -> None:
    width = data.draw(st.sampled_from([3, 16, 40]))
    rows, _ = table("float32", 30, width)
    offsets = np.cumsum([0, *lengths])
    ids = np.random.default_rng(1).integers(0, 30, offsets[-1])
    lanes = np.concatenate([lane(ids, offsets, column=c * width) for c in range(3)])
    whole, pieces = np.empty((2, len(lengths), 3 * width), np.float32)
    pool_bags(rows, lanes, 0, len(lengths), whole)
    cut = data.draw(st.integers(0, len(lengths)))
    pool_bags(rows, lanes, cut, len(lengths), pieces)
    pool_bags(rows, lanes, 0, cut, pieces)
    assert np.array_equal(whole, pieces)


@storage
def test_int32_and_int64_ids_and_strided_output_give_the_same_bits(data_type: str) -> None:
    rows, held = table(data_type, 100, 24)
    offsets = np.arange(0, 301, 3)
    wide = np.random.default_rng(2).integers(0, 100, 300)
    narrow = wide.astype(np.int32)
    out, strided = np.empty((100, 24), held.dtype), np.empty((100, 64), held.dtype)[:, 8:32]
    pool_bags(rows, lane(wide, offsets), 0, 100, out)
    pool_bags(rows, lane(narrow, offsets), 0, 100, strided)
    assert np.array_equal(out, strided)


@storage
@pytest.mark.parametrize("width", [1, 16, 50])
def test_one_id_per_bag_copies_rows(data_type: str, width: int) -> None:
    rows, held = table(data_type, 500, width)
    ids, offsets = np.random.default_rng(3).integers(0, 500, 1000), np.arange(1001)
    out = np.empty((1000, width), held.dtype)
    pool_bags(rows, lane(ids, offsets), 0, 1000, out)
    assert np.array_equal(out, held[ids])


def test_a_bag_of_ten_thousand_ids() -> None:
    rows, held = table("float32", 1000, 65)
    offsets = np.array([0, 3, 10_003, 10_003, 10_004])
    ids = np.random.default_rng(4).integers(0, 1000, offsets[-1])
    out = np.empty((4, 65), np.float32)
    pool_bags(rows, lane(ids, offsets), 0, 4, out)
    np.testing.assert_allclose(out, expected(held, ids, offsets, None, False), rtol=1e-4, atol=1e-3)


def test_no_samples_and_no_ids() -> None:
    rows, _ = table("float32", 3, 20)
    ids, offsets = np.empty(0, np.int64), np.zeros(5, np.int64)
    out = np.full((4, 20), 7, np.float32)
    pool_bags(rows, lane(ids, offsets), 0, 0, out)
    assert (out == 7).all()
    pool_bags(rows, lane(ids, offsets), 0, 4, out)
    assert (out == 0).all()


@pytest.mark.skipif(sys.platform != "linux", reason="asks for address space without memory")
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_tables_of_a_tebibyte(dtype: Any) -> None:
    space = mmap.mmap(-1, 1 << 40, flags=mmap.MAP_PRIVATE | 0x4000)  # MAP_NORESERVE
    rows = np.frombuffer(space, np.float32).reshape(-1, 64)
    ids = np.array([0, 2**31 - 1, 2**25 + 1, 2**31 if dtype == np.int64 else 7]).astype(dtype)
    if dtype == np.int64:
        ids[0] = len(rows) - 2**30 - 1
    rows[2**30 + ids.astype(np.int64)] = [[1], [2], [4], [8]]
    out = np.empty((2, 64), np.float32)
    pool_bags(rows, lane(ids, np.array([0, 3, 4]), first_row=2**30), 0, 2, out)
    assert (out == [[7], [8]]).all()
