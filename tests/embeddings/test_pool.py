"""First values: what was asked for, whoever fills the rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tesserec.autograd.workers import num_threads, set_num_threads
from tesserec.embeddings import (
    Clamp,
    Constant,
    EmbeddingConfig,
    Normal,
    Origin,
    Pool,
    TableError,
    Uniform,
    XavierNormal,
)

random = pytest.mark.parametrize(
    "init", [Uniform(0.3), Normal(2.0), XavierNormal()], ids=lambda i: type(i).__name__
)


def table(name: str = "t", rows: int = 1000, width: int = 16, init: Any = None) -> EmbeddingConfig:
    return EmbeddingConfig(name, rows, width, (name,), init=init or Uniform())


@random
@pytest.mark.parametrize("width", [1, 3, 16, 33])
def test_values_do_not_depend_on_the_tables_beside(init: Any, width: int) -> None:
    config = table(width=width, init=init)
    together = Pool([table("before", width=width), config, table("after", width=width)], seed=7)
    assert np.array_equal(together.table("t"), Pool([config], seed=7).data)


@random
@pytest.mark.parametrize("data_type", ["float32", "bfloat16"])
@pytest.mark.parametrize("cols", [(0, 16), (0, 5), (3, 4), (3, 16), (5, 11), (8, 9)])
def test_values_do_not_depend_on_how_a_table_is_cut(init: Any, data_type: Any, cols: tuple[int, int]) -> None:
    config = replace(table(init=init), data_type=data_type)
    origins = [Origin(config, rows, cols) for rows in ((0, 1), (13, 500), (999, 1000))]
    pool = Pool([origin.config for origin in origins], seed=7, origins=origins)
    whole = Pool([config], seed=7).data
    for piece, origin in zip(pool.tables, origins, strict=True):
        assert piece.origin is origin
        assert np.array_equal(pool.data[piece.rows], whole[slice(*origin.rows), slice(*cols)])


def test_a_rectangle_is_a_table_of_its_own() -> None:
    config = EmbeddingConfig("t", 1000, 16, ("x",), unseen=Clamp(999))
    assert Origin.whole(config).config is config
    piece = Origin(config, (10, 30), (4, 8)).config
    assert (piece.name, piece.num_embeddings, piece.embedding_dim) == ("t[10:30, 4:8]", 20, 4)
    assert piece.unseen == "error" and piece.feature_names == ("x",)


@random
def test_values_do_not_depend_on_threads(init: Any) -> None:
    results, before = [], num_threads()
    try:
        for threads in (1, 2, 4):
            set_num_threads(threads)
            results.append(Pool([table(rows=200_000, init=init)], seed=0).data)
    finally:
        set_num_threads(before)
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


def test_values_depend_on_seed_name_row_and_column() -> None:
    draws = [Pool([table(name)], seed=seed).data for name in "ab" for seed in (0, 1)]
    assert len(np.unique(np.concatenate(draws))) > 0.99 * 4 * draws[0].size


def test_uniform_fills_its_range() -> None:
    values = Pool([table(rows=100_000, width=5, init=Uniform(0.5))], seed=0).data
    counts = np.histogram(values, bins=50, range=(-0.5, 0.5))[0]
    assert values.min() >= -0.5 and values.max() < 0.5
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 100  # chi-square, 49 degrees of freedom: 1e-5
    assert np.abs(Pool([table(rows=100)], seed=0).data).max() <= 0.1


def test_normal_is_normal() -> None:
    values = Pool([table(rows=100_000, width=5, init=Normal(2.0))], seed=0).data.astype(np.float64) / 2
    moments = [(values**k).mean() for k in range(1, 7)]
    assert np.all(np.abs(np.subtract(moments, [0, 1, 0, 3, 0, 15])) < [0.01, 0.01, 0.03, 0.08, 0.3, 0.7])
    np.testing.assert_allclose(np.corrcoef(values.T), np.eye(5), atol=0.02)
    assert abs(np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]) < 0.01
    inside = [(np.abs(values) < z).mean() for z in (0.5, 1.0, 2.0, 3.0)]
    np.testing.assert_allclose(inside, [0.3829, 0.6827, 0.9545, 0.9973], atol=0.003)


def test_xavier_and_constant() -> None:
    assert Pool([table(rows=5000, width=8, init=XavierNormal())], seed=0).data.std() == pytest.approx(
        0.02, rel=0.02
    )
    assert (Pool([table(init=Constant(0.25))], seed=0).data == 0.25).all()


def test_float64_tables_hold_the_same_numbers() -> None:
    single = EmbeddingConfig("t", 50, 3, ("x",), init=Normal(0.1))
    double = replace(single, data_type="float64")
    pool = Pool([double], seed=0)
    assert pool.dtype == np.float64 and np.array_equal(
        pool.data, Pool([single], seed=0).data.astype(np.float64)
    )


@pytest.mark.parametrize("init", [Uniform(0.3), Normal(2.0), Constant(0.1)], ids=lambda i: type(i).__name__)
def test_narrow_tables_hold_the_nearest_numbers(init: Any) -> None:
    single = table(rows=300, width=7, init=init)
    values = Pool([single], seed=0).data
    half = Pool([replace(single, data_type="float16")], seed=0)
    assert half.dtype == half.data.dtype == np.float16 and half.data_type == "float16"
    assert np.array_equal(half.data, values.astype(np.float16))
    brain = Pool([replace(single, data_type="bfloat16")], seed=0)
    assert brain.data.dtype == np.uint16 and "dtype=bfloat16" in repr(brain)
    held = (brain.data.astype(np.uint32) << 16).view(np.float32)
    assert np.all(np.abs(held - values) <= np.abs(values) * 2.0**-8)
    assert half.compute_dtype == brain.compute_dtype == np.float32


def test_pool_knows_its_tables() -> None:
    pool = Pool([table("a", 3), table("b", 4)], seed=0)
    assert pool.bounds.tolist() == [0, 3, 7] and pool.shape == (7, 16) and pool.data.ctypes.data % 64 == 0
    assert np.shares_memory(pool.table("b"), pool.data) and len(pool.table("b")) == 4
    assert repr(pool) == "Pool(shape=(7, 16), dtype=float32, tables: a, b)"
    with pytest.raises(KeyError, match="no table 'c'; have"):
        pool.table("c")


def test_a_pool_over_rows_has_them_and_no_others() -> None:
    table = EmbeddingConfig("t", 4, 3, ("f",), data_type="float16")
    rows = np.arange(12, dtype=np.float16).reshape(4, 3)
    pool = Pool.over([table], rows)
    assert pool.data is rows and not pool.requires_grad and pool.data_type == "float16"
    np.testing.assert_array_equal(pool.values(slice(1, 3)), rows[1:3].astype(np.float32))
    for wrong in (rows[1:], rows.astype(np.float32)):
        with pytest.raises(TableError, match=r"its rows are .* wanted \(4, 3\) float16"):
            Pool.over([table], wrong)
