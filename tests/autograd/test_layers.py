"""Layers: their formulas, their gradients, training against evaluation, and use by several threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from tesserec.autograd import (
    MLP,
    BatchNorm1d,
    Dropout,
    InBatchSoftmax,
    LayerNorm,
    Linear,
    Module,
    Tensor,
    accumulate,
    gradcheck,
    gradients,
    losses,
    num_threads,
    ops,
    parallel_map,
    random_stream,
    set_num_threads,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def in_float64(module: Module) -> Module:
    for parameter in module.parameters():
        parameter.data = parameter.data.astype(np.float64)
    for m in module.modules():
        for name in m.buffers:
            setattr(m, name, getattr(m, name).astype(np.float64))
    return module


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh", "sigmoid"])
@pytest.mark.parametrize("output_activation", [None, "tanh"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_mlp_gradients(
    rng: np.random.Generator, activation: str, output_activation: str | None, batch_norm: bool
) -> None:
    mlp = MLP(
        (3, 4, 2), rng=rng, activation=activation, output_activation=output_activation, batch_norm=batch_norm
    )
    x = rng.normal(size=(5, 3))
    model = in_float64(mlp)
    gradcheck(lambda *_: model(x), list(model.parameters()), rtol=1e-4, atol=1e-6)


def test_mlp_is_its_layers(rng: np.random.Generator) -> None:
    mlp = MLP((3, 4, 2, 1), rng=rng)
    x = h = rng.normal(size=(5, 3)).astype(np.float32)
    for layer in mlp.layers[:-1]:
        h = np.maximum(h @ layer.weight.data.T, 0)  # biases start at 0
    np.testing.assert_allclose(mlp(x).data, h @ mlp.layers[-1].weight.data.T, rtol=1e-5)
    bottom = MLP((3, 4), rng=rng, output_activation="relu")
    assert (bottom(x).data >= 0).all()
    assert (bottom(x).data == 0).any()


def test_mlp_refuses_what_it_does_not_know(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match=r"'rule' is unknown: wanted one of relu, gelu"):
        MLP((3, 4, 1), rng=rng, activation="rule")
    with pytest.raises(ValueError, match="sizes"):
        MLP((3,), rng=rng)


def test_linear_keeps_the_scale_of_its_input(rng: np.random.Generator) -> None:
    y = ops.relu(Linear(400, 300, rng=rng)(rng.normal(size=(200, 400)).astype(np.float32)))
    assert 0.8 < np.square(y.data).mean() < 1.2


def test_layer_norm_rows_have_mean_0_and_variance_1(rng: np.random.Generator) -> None:
    norm = in_float64(LayerNorm(6))
    x = rng.normal(3, 5, size=(4, 6))
    y = norm(x).data
    np.testing.assert_allclose(y.mean(axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(y.var(axis=1), 1, rtol=1e-5)
    gradcheck(lambda *_: norm(x), list(norm.parameters()))


def test_batch_norm_trains_on_the_batch_and_evaluates_by_running_averages(rng: np.random.Generator) -> None:
    norm = BatchNorm1d(2, momentum=0.5)
    batches = rng.normal([1, -2], [3, 0.5], size=(20, 64, 2)).astype(np.float32)
    for x in batches:
        y = norm(x).data
        np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(y.var(axis=0), 1, rtol=1e-3)
    mean, var = np.zeros(2), np.ones(2)
    for x in batches:
        mean, var = 0.5 * mean + 0.5 * x.mean(axis=0), 0.5 * var + 0.5 * x.var(axis=0, ddof=1)
    norm.eval()
    x = batches[0]
    np.testing.assert_allclose(norm(x).data, (x - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)
    norm(x[:1])
    with pytest.raises(ValueError, match="wanted 2 samples or more"):
        norm.train()(x[:1])
    assert norm.running_mean.dtype == norm.running_var.dtype == np.float32


def test_dropout_draws_from_the_stream_of_its_thread() -> None:
    layer, x = Dropout(0.5), Tensor(np.ones(100, np.float32))
    with pytest.raises(RuntimeError, match="random_stream"):
        layer(x)
    with random_stream(np.random.default_rng(3)):
        first = layer(x).data
        with random_stream(np.random.default_rng(3)):
            np.testing.assert_array_equal(layer(x).data, first)
        assert (layer(x).data != first).any()
    assert layer.eval()(x) is x
    with pytest.raises(ValueError, match="0 <= p < 1"):
        Dropout(1.0)


def test_in_batch_softmax_needs_the_whole_batch(rng: np.random.Generator) -> None:
    layer = InBatchSoftmax(temperature=0.5)
    assert layer.needs_whole_batch
    queries, items = (Tensor(rng.normal(size=(4, 3)), requires_grad=True) for _ in range(2))
    scores = queries.data @ items.data.T / 0.5
    want = np.mean(np.log(np.exp(scores).sum(axis=1)) - np.diag(scores))
    assert layer(queries, items).item() == pytest.approx(want)


@pytest.fixture
def threads() -> Iterator[None]:
    before = num_threads()
    yield
    set_num_threads(before)


def test_slices_on_any_number_of_threads_give_the_same_bits(rng: np.random.Generator, threads: None) -> None:
    model = MLP((6, 32, 16, 1), rng=rng, dropout=0.3)
    x, y = rng.normal(size=(64, 6)).astype(np.float32), rng.integers(0, 2, 64).astype(np.float32)

    def work(lo: int) -> dict[Tensor, npt.NDArray[np.float32]]:
        with random_stream(np.random.default_rng([0, lo])):
            logits = model(x[lo : lo + 8]).reshape(-1)
        return gradients(losses.bce_with_logits(logits, y[lo : lo + 8], reduction="sum"))

    def whole(n: int) -> list[npt.NDArray[np.float32]]:
        set_num_threads(n)
        model.zero_grad()
        for grads in parallel_map(work, range(0, 64, 8)):
            accumulate(grads)
        return [p.grad for p in model.parameters()]

    alone = whole(1)
    for n in (2, 5):
        for _ in range(5):
            for got, want in zip(whole(n), alone, strict=True):
                np.testing.assert_array_equal(got, want)
