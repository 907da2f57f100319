"""Dense kernels equal the written-out formulas: ragged sizes, rows that lie apart, sums that go on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tesserec.autograd.kernels import interaction, linear, loss
from tesserec.autograd.kernels.gemm import gemm

Array = npt.NDArray[Any]
DTYPES = [np.float32, np.float64]
SHAPES = [
    (1, 1, 1),
    (5, 7, 3),
    (12, 13, 32),
    (13, 5, 33),
    (25, 16, 47),
    (40, 64, 16),
    (130, 520, 100),
    (3, 0, 8),
]
close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)


def values(rng: np.random.Generator, *shape: int, dtype: Any = np.float32) -> Array:
    return rng.standard_normal(shape).astype(dtype)


def apart(array: Array) -> Array:
    """The same numbers as columns of a wider matrix."""
    flat = array.reshape(len(array), -1)
    wide = np.full((len(flat), flat.shape[1] + 5), 7, flat.dtype)
    wide[:, 2 : 2 + flat.shape[1]] = flat
    part = wide[:, 2 : 2 + flat.shape[1]]
    return np.lib.stride_tricks.as_strided(part, array.shape, (wide.strides[0], *array.strides[1:]))


def untouched_around(array: Array) -> bool:
    """Whether the columns beside those of `apart` still are what they were."""
    wide: Any = array.base
    while wide.base is not None:
        wide = wide.base
    width = wide.shape[1] - 5
    return bool(np.all(wide[:, :2] == 7) and np.all(wide[:, 2 + width :] == 7))


def pair_matrix(pairs: Array, n: int) -> Array:
    """(B, n(n-1)/2) -> (B, n, n), symmetric, 0 on the diagonal."""
    matrix = np.zeros((len(pairs), n, n), pairs.dtype)
    matrix[(slice(None), *np.triu_indices(n, 1))] = pairs
    return matrix + matrix.transpose(0, 2, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_product_of_any_size_and_layout(shape: tuple[int, int, int], dtype: Any) -> None:
    rows, terms, columns = shape
    rng = np.random.default_rng(0)
    a, b = values(rng, rows, terms, dtype=dtype), values(rng, terms, columns, dtype=dtype)
    for left in (a, np.asfortranarray(a)):
        for right in (b, np.asfortranarray(b)):
            for accumulate in (False, True):
                out = apart(values(rng, rows, columns, dtype=dtype))
                want = a @ b + (out if accumulate else 0)
                gemm(left, right, out, accumulate)
                close(out, want)
                assert untouched_around(out)


def test_a_row_of_a_product_has_the_same_bits_in_any_batch() -> None:
    rng = np.random.default_rng(1)
    x, w, none = values(rng, 150, 70), values(rng, 45, 70), np.empty(0, np.float32)
    whole, part = np.empty((150, 45), np.float32), np.empty((7, 45), np.float32)
    linear.linear_forward(x, w, none, linear.IDENTITY, whole)
    linear.linear_forward(x[101:108], w, none, linear.IDENTITY, part)
    np.testing.assert_array_equal(part, whole[101:108])


ACTIVATIONS: dict[int, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    linear.IDENTITY: (lambda z: z, lambda y: np.ones_like(y)),
    linear.RELU: (lambda z: np.maximum(z, 0), lambda y: (y > 0).astype(y.dtype)),
    linear.SIGMOID: (lambda z: 1 / (1 + np.exp(-z)), lambda y: y * (1 - y)),
    linear.TANH: (np.tanh, lambda y: 1 - y * y),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", [(1, 3, 1), (130, 20, 33), (300, 64, 2), (9, 2, 40)])
def test_a_layer_forward_and_backward(sizes: tuple[int, int, int], activation: int, dtype: Any) -> None:
    batch, fan_in, fan_out = sizes
    rng = np.random.default_rng(2)
    f, slope = ACTIVATIONS[activation]
    x = apart(f(values(rng, batch, fan_in, dtype=dtype)))
    w, b = values(rng, fan_out, fan_in, dtype=dtype), values(rng, fan_out, dtype=dtype)
    y, g = apart(np.empty((batch, fan_out), dtype)), apart(values(rng, batch, fan_out, dtype=dtype))
    linear.linear_forward(x, w, b, activation, y)
    close(y, f(x @ w.T + b))
    for accumulate in (False, True):
        gx, gw, gb = (values(rng, *a.shape, dtype=dtype) for a in (x, w, b))
        want_x, want_w, want_b = ((a if accumulate else 0) for a in (gx.copy(), gw.copy(), gb.copy()))
        linear.linear_backward_input(g, w, x, activation, accumulate, gx)
        linear.linear_backward_weight(g, x, accumulate, gw, gb)
        close(gx, (want_x + g @ w) * slope(x))
        close(gw, want_w + g.T @ x)
        close(gb, want_b + g.sum(axis=0))


def test_a_not_a_number_stays_one() -> None:
    x, w, none = np.full((3, 20), np.nan, np.float32), np.ones((20, 20), np.float32), np.empty(0, np.float32)
    for activation in ACTIVATIONS:
        y = np.zeros((3, 20), np.float32)
        linear.linear_forward(x, w, none, activation, y)
        assert np.isnan(y).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 6, 8), (16, 27, 16), (37, 9, 5), (20, 3, 40), (1, 2, 1), (3, 1, 4)])
def test_pairwise_dots_forward_and_backward(shape: tuple[int, int, int], dtype: Any) -> None:
    batch, n, _ = shape
    rng = np.random.default_rng(3)
    x = apart(values(rng, *shape, dtype=dtype))
    pairs = apart(np.empty((batch, n * (n - 1) // 2), dtype))
    interaction.pairwise_dot(x, pairs)
    want = (x @ x.transpose(0, 2, 1))[(slice(None), *np.triu_indices(n, 1))]
    close(pairs, want)
    assert untouched_around(pairs)
    g = apart(values(rng, *pairs.shape, dtype=dtype))
    for accumulate in (False, True):
        gx = apart(values(rng, *shape, dtype=dtype))
        want = pair_matrix(g, n) @ x + (gx if accumulate else 0)
        interaction.pairwise_dot_backward(x, g, accumulate, gx)
        close(gx, want)
        assert untouched_around(gx)


def test_factorization_forward_and_backward() -> None:
    rng = np.random.default_rng(4)
    x, g = apart(values(rng, 7, 5, 9)), values(rng, 7, 9)
    total, out = np.empty((7, 9), np.float32), np.empty((7, 9), np.float32)
    interaction.factorization(x, total, out)
    close(out, (x.sum(axis=1) ** 2 - (x**2).sum(axis=1)) / 2)
    for accumulate in (False, True):
        gx = values(rng, 7, 5, 9)
        want = g[:, None] * (total[:, None] - x) + (gx if accumulate else 0)
        interaction.factorization_backward(g, x, total, accumulate, gx)
        close(gx, want)


def test_a_cross_layer_forward_and_backward() -> None:
    rng = np.random.default_rng(5)
    x0, x, through, g = (apart(values(rng, 6, 11)) for _ in range(4))
    out, gthrough = np.empty((6, 11), np.float32), np.empty((6, 11), np.float32)
    interaction.cross(x0, x, through, out)
    close(out, x0 * through + x)
    for accumulate in (False, True):
        gx0 = values(rng, 6, 11)
        want = g * through + (gx0 if accumulate else 0)
        interaction.cross_backward(g, x0, through, accumulate, gx0, gthrough)
        close(gx0, want)
        close(gthrough, g * x0)


def test_binary_cross_entropy_at_any_logit() -> None:
    z = np.array([-90, -30, -1, 0, 1, 30, 90], np.float32)
    y = np.array([0, 1, 0.25, 1, 0, 1, 0], np.float32)
    losses, slopes = np.empty_like(z), np.empty_like(z)
    loss.bce_with_logits(z, y, losses, slopes)
    exact = z.astype(np.float64)
    want = np.maximum(exact, 0) - exact * y + np.log1p(np.exp(-np.abs(exact)))
    close(losses, want, rtol=1e-6, atol=0)
    close(slopes, 1 / (1 + np.exp(-exact)) - y, rtol=1e-6, atol=1e-7)
