"""Vectors compute what numpy does, leave alone what is beyond the end of a row, and round as `put` does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit

from tesserec.embeddings.kernels import vectors as v
from tesserec.embeddings.kernels.memory import like_at
from tesserec.embeddings.kernels.rows import noise, noise_key, put, stored


@njit
def combine(x: Any, y: Any, a: Any, out: Any) -> Any:
    """out = a formula of all operations; -> the sum of x."""
    like, total = like_at(x, 0), v.zeros(x)
    for c in range(0, x.shape[0], v.lanes(like)):
        left, begin = x.shape[0] - c, c * v.itemsize(like)
        p, q = v.load_part(like, x.ctypes.data + begin, left), v.load_part(like, y.ctypes.data + begin, left)
        r = v.lower(a, v.higher(p - a * q, -a)) / (v.sqrt(v.size(q)) + a) + v.sign_like(p, q)
        v.store_part(like, out.ctypes.data + begin, left, r, np.uint64(0), c)
        total = total + p
    return v.total(total)


@njit
def round_both(values: Any, by_element: Any, by_vector: Any) -> None:
    like, address = like_at(by_vector, 0), by_element.ctypes.data
    key, width = noise_key(1, 2, 3), values.shape[0]
    for d in range(width):
        put(by_element, address, d, values[d], noise(key, d))
    for c in range(0, width, v.lanes(like)):
        x = v.load_part(like_at(values, 0), values.ctypes.data + c * 4, width - c)
        v.store_part(like, by_vector.ctypes.data + c * v.itemsize(like), width - c, x, key, c)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [1, 7, 16, 21, 64])
def test_arithmetic_is_numpys(dtype: Any, width: int) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, width)).astype(dtype)
    out, a = np.full(width + 3, 7, dtype), dtype(0.3)
    total = combine(x, y, a, out[:width])
    wanted = np.clip(x - a * y, -a, a) / (np.sqrt(abs(y)) + a) + np.copysign(x, y)
    np.testing.assert_allclose(out[:width], wanted, rtol=1e-6)
    assert (out[width:] == 7).all() and total == pytest.approx(x.sum(), rel=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.uint16, np.float32])
@pytest.mark.parametrize("width", [1, 16, 300])
def test_rounding_is_that_of_put(dtype: Any, width: int) -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(width) * 10.0 ** rng.integers(-9, 3, width)).astype(np.float32)
    values[::5] *= 0.0
    one, other = np.empty((2, width), dtype)
    round_both(values, stored(one), stored(other))
    assert one.tobytes() == other.tobytes()
