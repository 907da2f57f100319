"""Rows as they are stored: nothing but rounding changes a number, and rounding has no bias."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tesserec.embeddings.kernels.jit import kernel
from tesserec.embeddings.kernels.rows import load_rows, noise, noise_key, put, store_rows, stored
from tests.naive import Array

NARROW: dict[str, Any] = {"float16": np.float16, "bfloat16": np.uint16}
narrow = pytest.mark.parametrize("dtype", NARROW.values(), ids=NARROW)


@kernel
def put_rows(values, rows, seed):  # type: ignore[no-untyped-def]
    """rows = values, rounded stochastically."""
    for r in range(rows.shape[0]):
        address, key = rows.ctypes.data + r * rows.strides[0], noise_key(seed, 7, r)
        for d in range(rows.shape[1]):
            put(rows, address, d, values[np.uint64(r), np.uint64(d)], noise(key, d))


@kernel
def draw(out, seed):  # type: ignore[no-untyped-def]
    """out[r, d] = the noise of row r, element d."""
    for r in range(out.shape[0]):
        for d in range(out.shape[1]):
            out[r, d] = noise(noise_key(seed, 3, r), d)


def all_numbers(dtype: Any) -> tuple[Array, Array]:
    """All 65,536 numbers that `dtype` can hold, as stored and as float32."""
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    if dtype == np.float16:
        return bits.view(np.float16), bits.view(np.float16).astype(np.float32)
    return bits, (bits.astype(np.uint32) << 16).view(np.float32)


def loaded(rows: Array) -> Array:
    values = np.empty(rows.shape, np.float64 if rows.dtype == np.float64 else np.float32)
    load_rows(stored(rows), values)
    return values


@narrow
def test_what_a_type_holds_is_stored_exactly(dtype: Any) -> None:
    rows, values = all_numbers(dtype)
    assert np.array_equal(loaded(rows), values, equal_nan=True)
    for store in (store_rows, lambda v, r: put_rows(v, r, 5)):
        back = np.empty_like(rows)
        store(values, stored(back))
        same = (back.view(np.uint16) == rows.view(np.uint16)) | np.isnan(values)
        assert same.all() and np.isnan(loaded(back)[np.isnan(values)]).all()


def test_wide_types_hold_everything() -> None:
    for dtype in (np.float32, np.float64):
        values = np.random.default_rng(0).standard_normal((5, 7)).astype(dtype)
        rows = np.empty_like(values)
        put_rows(values, rows, 1)
        assert np.array_equal(rows, values) and np.array_equal(loaded(rows), values)


def test_nearest_float16_is_numpys() -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((64, 33)) * 10.0 ** rng.integers(-9, 4, (64, 33))).astype(np.float32)
    rows = np.empty(values.shape, np.float16)
    store_rows(values, stored(rows))
    assert np.array_equal(rows, values.astype(np.float16))


@narrow
@pytest.mark.parametrize("value", [0.1, -70.3, 3e-6, 1.2345e-7])
def test_stochastic_rounding_takes_a_neighbour_and_has_no_bias(dtype: Any, value: float) -> None:
    values = np.full((2000, 100), value, np.float32)
    rows = np.empty(values.shape, dtype)
    put_rows(values, stored(rows), 1)
    got = np.unique(loaded(rows))
    assert len(got) == 2 and got[0] < np.float32(value) < got[1]
    held = np.sort(all_numbers(dtype)[1], axis=None)
    assert np.searchsorted(held, got[1]) - np.searchsorted(held, got[0]) == 1
    deviation = loaded(rows).mean(dtype=np.float64) - values[0, 0]
    assert abs(deviation) < 5 * (got[1] - got[0]) / 2 / values.size**0.5
    assert not np.array_equal(rows[0], rows[1])


@narrow
def test_rounding_is_a_function_of_the_seed(dtype: Any) -> None:
    values = np.full((30, 40), 0.1, np.float32)
    rows = np.empty((3, 30, 40), dtype)
    for out, seed in zip(rows, (1, 1, 2), strict=True):
        put_rows(values, stored(out), seed)
    assert np.array_equal(rows[0], rows[1]) and not np.array_equal(rows[0], rows[2])


def test_noise_is_uniform_and_uncorrelated() -> None:
    bits = np.empty((4096, 64), np.uint32)
    draw(bits, 0)
    ones = np.unpackbits(bits.view(np.uint8)).reshape(-1, 32).mean(0)
    assert np.abs(ones - 0.5).max() < 0.005
    uniform = bits / 2.0**32
    assert abs(np.corrcoef(uniform[1:].ravel(), uniform[:-1].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(uniform[:, 1:].ravel(), uniform[:, :-1].ravel())[0, 1]) < 0.01
    counts = np.histogram(uniform, bins=64, range=(0, 1))[0]
    assert ((counts - 4096) ** 2 / 4096).sum() < 130  # chi-square, 63 degrees of freedom: 1e-6
