"""Every op: its value is the formula, and its pullbacks are the derivatives, over random shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, mutually_broadcastable_shapes

from tesserec.autograd import Tensor, gradcheck, gradients, losses, ops

quick = settings(max_examples=8, deadline=None)
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 4)
shapes = array_shapes(min_dims=0, max_dims=3, max_side=3)


def apart(rng: np.random.Generator, *shape: int) -> Any:
    """Numbers at least .05 apart and away from 0, so that kinks are not stepped over."""
    n = int(np.prod(shape))
    steps = (rng.permutation(n) + rng.uniform(0.3, 0.7, n)) / 8
    return (steps * rng.choice([-1, 1], n)).reshape(shape)


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "negative": ops.negative,
    "power": lambda x: ops.power(x, exponent=3),
    "clip": lambda x: ops.clip(x, low=-0.21, high=0.35),
    "exp": ops.exp,
    "log": lambda x: ops.log(ops.absolute(x)),
    "sqrt": lambda x: ops.sqrt(ops.absolute(x)),
    "absolute": ops.absolute,
    "relu": ops.relu,
    "gelu": ops.gelu,
    "sigmoid": ops.sigmoid,
    "tanh": ops.tanh,
    "softplus": ops.softplus,
    "where": lambda x: ops.where(x > 0.4, x * x, -x),
}


@pytest.mark.parametrize("name", UNARY)
@given(seed=seeds, shape=shapes)
@quick
def test_unary_gradients(name: str, seed: int, shape: tuple[int, ...]) -> None:
    gradcheck(UNARY[name], [apart(np.random.default_rng(seed), *shape)], rtol=1e-4)


BINARY: dict[str, Callable[[Any, Any], Tensor]] = {
    "add": ops.add,
    "subtract": ops.subtract,
    "multiply": ops.multiply,
    "divide": ops.divide,
    "maximum": ops.maximum,
    "minimum": ops.minimum,
    "where": lambda x, y: ops.where(np.True_, x, y) + ops.where(np.False_, x, y * y),
}


@pytest.mark.parametrize("name", BINARY)
@given(seed=seeds, both=mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3))
@quick
def test_binary_gradients_under_broadcasting(name: str, seed: int, both: Any) -> None:
    rng = np.random.default_rng(seed)
    x, y = (apart(rng, *shape) for shape in both.input_shapes)
    gradcheck(BINARY[name], [x, y + 0.01], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["sum", "mean", "max"])
@given(seed=seeds, shape=shapes, keepdims=st.booleans(), data=st.data())
@quick
def test_reduction_gradients(
    name: str, seed: int, shape: tuple[int, ...], keepdims: bool, data: st.DataObject
) -> None:
    axes = st.none() | (st.integers(-len(shape), len(shape) - 1) if shape else st.just(()))
    axis = data.draw(axes | st.just(tuple(range(len(shape)))))
    x = apart(np.random.default_rng(seed), *shape)
    result = getattr(ops, name)(Tensor(x), axis=axis, keepdims=keepdims)
    np.testing.assert_allclose(result.data, getattr(np, name)(x, axis=axis, keepdims=keepdims))
    gradcheck(lambda t: getattr(ops, name)(t, axis=axis, keepdims=keepdims), [x])


def test_equal_largest_elements_share_the_gradient() -> None:
    x = Tensor([1.0, 3.0, 3.0], requires_grad=True)
    ops.max(x).backward()
    np.testing.assert_array_equal(x.grad, [0, 0.5, 0.5])


@pytest.mark.parametrize("name", ["logsumexp", "softmax", "log_softmax"])
@given(seed=seeds, shape=array_shapes(min_dims=1, max_dims=3, max_side=4), data=st.data())
@quick
def test_normalised_exponentials(name: str, seed: int, shape: tuple[int, ...], data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = np.random.default_rng(seed).normal(size=shape)
    gradcheck(lambda t: getattr(ops, name)(t, axis=axis), [x])


def test_softmax_of_huge_numbers_is_finite() -> None:
    x = Tensor([[1000.0, 0.0], [-1000.0, -1000.0]])
    np.testing.assert_allclose(ops.softmax(x).data, [[1.0, 0.0], [0.5, 0.5]])
    assert np.isfinite(ops.log_softmax(x).data).all()


@given(seed=seeds, b=sizes, n=sizes, k=sizes, m=sizes)
@quick
def test_matmul_gradients(seed: int, b: int, n: int, k: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    gradcheck(lambda x, y: x @ y, [rng.normal(size=(n, k)), rng.normal(size=(k, m))])
    gradcheck(ops.matmul, [rng.normal(size=(b, n, k)), rng.normal(size=(b, k, m))])
    gradcheck(ops.matmul, [rng.normal(size=(b, n, k)), rng.normal(size=(k, m))])


@given(seed=seeds, lead=array_shapes(min_dims=1, max_dims=2, max_side=4), i=st.integers(0, 4), o=sizes)
@quick
def test_linear_gradients(seed: int, lead: tuple[int, ...], i: int, o: int) -> None:
    rng = np.random.default_rng(seed)
    x, w, b = apart(rng, *lead, i), apart(rng, o, i), apart(rng, o)
    np.testing.assert_allclose(ops.linear(Tensor(x), w, b).data, x @ w.T + b)
    np.testing.assert_allclose(ops.linear_relu(Tensor(x), w, b).data, np.maximum(x @ w.T + b, 0), atol=1e-12)
    turned = np.ascontiguousarray(x.T).T
    np.testing.assert_array_equal(ops.linear_relu(turned, w, b).data, ops.linear_relu(x, w, b).data)
    gradcheck(ops.linear, [x, w, b])
    gradcheck(ops.linear, [x, w])
    gradcheck(lambda x, w: ops.linear(x, w, None), [x, w])
    if np.abs(x @ w.T + b).min() > 1e-3:
        gradcheck(ops.linear_relu, [x, w, b])


@given(seed=seeds, n=sizes, i=st.integers(2, 5))
@quick
def test_norm_gradients(seed: int, n: int, i: int) -> None:
    rng = np.random.default_rng(seed)
    x, scale, shift = rng.normal(size=(n + 1, i)), rng.normal(size=i), rng.normal(size=i)
    gradcheck(ops.layer_norm, [x, scale, shift], rtol=1e-4, atol=1e-6)

    def batch_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        running = {"running_mean": np.zeros(x.shape[1]), "running_var": np.ones(x.shape[1])}
        return ops.batch_norm(x, scale, shift, **running, eps=0.1)

    gradcheck(batch_norm, [x, scale, shift], rtol=1e-4, atol=1e-6)
    fixed = {"mean": rng.normal(size=i), "var": rng.uniform(0.5, 2, i)}
    gradcheck(lambda *args: ops.normalize(*args, **fixed), [x, scale, shift])


@given(seed=seeds, b=st.integers(0, 5), n=sizes, d=sizes)
@quick
def test_field_interactions(seed: int, b: int, n: int, d: int) -> None:
    x = np.random.default_rng(seed).normal(size=(b, n, d))
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    dots = np.array([[row[i] @ row[j] for i, j in pairs] for row in x]).reshape(b, len(pairs))
    products = sum((x[:, i] * x[:, j] for i, j in pairs), np.zeros((b, d)))
    np.testing.assert_allclose(ops.pairwise_dot(Tensor(x)).data, dots, atol=1e-12)
    np.testing.assert_allclose(ops.factorization(Tensor(x)).data, products, atol=1e-12)
    gradcheck(ops.pairwise_dot, [x])
    gradcheck(ops.factorization, [x])


def test_pairwise_dot_in_several_blocks() -> None:
    gradcheck(ops.pairwise_dot, [np.random.default_rng(0).normal(size=(130, 3, 1))])


@given(seed=seeds, b=sizes, widths=st.lists(sizes, min_size=1, max_size=4), axis=st.sampled_from([0, 1, -1]))
@quick
def test_concat_and_split_are_inverse(seed: int, b: int, widths: list[int], axis: int) -> None:
    rng = np.random.default_rng(seed)
    xs = [rng.normal(size=(w, b) if axis == 0 else (b, w)) for w in widths]
    joined = ops.concat(*map(Tensor, xs), axis=axis)
    for x, piece in zip(xs, ops.split(joined, widths, axis=axis), strict=True):
        np.testing.assert_array_equal(piece.data, x)
    gradcheck(lambda *ts: ops.concat(*ts, axis=axis), xs)
    gradcheck(
        lambda t: ops.concat(*(p**2 for p in ops.split(t, widths, axis=axis)), axis=axis), [joined.data]
    )


@given(seed=seeds, shape=array_shapes(min_dims=2, max_dims=3, max_side=3), n=sizes, data=st.data())
@quick
def test_moving_elements(seed: int, shape: tuple[int, ...], n: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    axis = data.draw(st.integers(-len(shape) - 1, len(shape)))
    axes = tuple(data.draw(st.permutations(range(len(shape)))))
    gradcheck(lambda *ts: ops.stack(*ts, axis=axis), [x] * n)
    gradcheck(lambda t: t.transpose(*axes) * 2.0, [x])
    gradcheck(lambda t: t.T.reshape(-1), [x])
    gradcheck(lambda t: ops.broadcast_to(t, shape=(2, *shape)), [x])


KEYS: dict[str, Any] = {
    "integer": 1,
    "slice": slice(0, 2),
    "stride": (slice(None), slice(None, None, -2)),
    "new axis": (..., None, 0),
    "repeated rows": np.array([0, 1, 1, 2]),
    "pairs": (np.array([0, 0, 2]), np.array([1, 1, 3])),
    "mask": np.eye(3, 4) > 0,
}


@pytest.mark.parametrize("key", KEYS)
def test_indexing_gradients(key: str) -> None:
    gradcheck(lambda t: t[KEYS[key]] ** 2, [np.random.default_rng(1).normal(size=(3, 4))])


@given(seed=seeds, shape=array_shapes(min_dims=1, max_dims=3, max_side=4), n=st.integers(0, 6))
@quick
def test_gather_gradients(seed: int, shape: tuple[int, ...], n: int) -> None:
    rng = np.random.default_rng(seed)
    index = rng.integers(0, shape[0], n)
    gradcheck(lambda t: ops.gather(t, index=index), [rng.normal(size=shape)])


def test_gather_outside_is_an_error() -> None:
    for index in ([0, 3], [-1]):
        with pytest.raises(ValueError, match=r"wanted \[0, 3\)"):
            ops.gather(Tensor(np.zeros((3, 2))), index=np.array(index))


@given(seed=seeds, p=st.floats(0, 0.9), shape=shapes)
@quick
def test_dropout_is_a_function_of_its_generator(seed: int, p: float, shape: tuple[int, ...]) -> None:
    gradcheck(lambda t: ops.dropout(t, p=p, rng=np.random.default_rng(seed)), [np.ones(shape)])


def test_dropout_keeps_the_mean() -> None:
    x = ops.dropout(Tensor(np.ones(100_000, np.float32)), p=0.25, rng=np.random.default_rng(0)).data
    assert x.dtype == np.float32
    assert set(np.unique(x)) == {np.float32(0), np.float32(4 / 3)}
    assert abs(x.mean() - 1) < 0.01


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_op_keeps_the_float_type(dtype: Any) -> None:
    x = Tensor(np.abs(np.random.default_rng(0).normal(size=(4, 3, 2))).astype(dtype) + 1, requires_grad=True)
    rng = np.random.default_rng(0)
    widening = np.float64(0.5)  # a numpy number must not turn float32 into float64
    flat = x.reshape(4, 6)
    results = [
        *(fn(x) for fn in UNARY.values()),
        *(fn(x, widening) for fn in BINARY.values()),
        *(getattr(ops, name)(x) for name in ("sum", "mean", "max", "softmax", "log_softmax", "logsumexp")),
        ops.power(x, exponent=widening),
        ops.clip(x, low=widening),
        ops.dropout(x, p=0.5, rng=rng),
        ops.pairwise_dot(x),
        ops.factorization(x),
        ops.linear(x, np.ones((5, 2), dtype), np.ones(5, dtype)),
        ops.linear_relu(x, np.ones((5, 2), dtype), np.ones(5, dtype)),
        ops.layer_norm(x, np.ones(2, dtype), np.ones(2, dtype)),
        x @ x.transpose(0, 2, 1),
        x * 2 + np.arange(2),
        losses.bce_with_logits(flat[:, 0], np.ones(4, dtype), np.ones(4, dtype)),
        losses.mse(flat[:, 0], np.ones(4, dtype)),
        losses.bpr(flat[:, 0], flat[:, 1]),
        losses.sampled_softmax(flat[:, 0], flat, log_q=(np.zeros(4, dtype), np.zeros(6, dtype))),
        losses.in_batch_softmax(flat @ flat.T, items=np.arange(4)),
        losses.softmax_cross_entropy(flat, np.zeros(4, np.int64)),
    ]
    for result in results:
        assert result.dtype == dtype
        assert gradients(result.sum(), retain_graph=True)[x].dtype == dtype


def test_relu_keeps_a_nan() -> None:
    x = np.array([[np.nan, 1.0]], np.float32)
    assert np.isnan(ops.relu(Tensor(x)).data[0, 0])
    assert np.isnan(
        ops.linear_relu(Tensor(x), np.eye(2, dtype=np.float32), np.zeros(2, np.float32)).data
    ).any()


def test_sigmoid_is_exact_at_both_ends() -> None:
    p = ops.sigmoid(Tensor([-80.0, 0.0, 200.0, -200.0])).data
    np.testing.assert_allclose(p, [np.exp(-80.0), 0.5, 1.0, 0.0], rtol=1e-5)
