"""What every ranking model promises, and what each computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tesserec.autograd.losses import bce_with_logits
from tesserec.autograd.module import Module
from tesserec.autograd.optim import Adam
from tesserec.autograd.random import random_stream
from tesserec.autograd.tensor import Tensor
from tesserec.embeddings.jagged import KeyedJaggedTensor
from tesserec.embeddings.pool import Pool
from tesserec.embeddings.row_optim import RowAdagrad
from tesserec.models import Features, ModelError, build_model, model_names

SIZES = {"user": 7, "item": 11, "genres": 5}
B = 9
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("lr", {}),
    ("fm", {"embedding_dim": 4}),
    ("dnn", {"embedding_dim": 4, "hidden": [8, 6]}),
    ("dnn", {"embedding_dim": 4, "hidden": []}),
    ("wide_deep", {"embedding_dim": 4, "hidden": [8]}),
    ("deepfm", {"embedding_dim": 4, "hidden": [8]}),
    ("dcn", {"embedding_dim": 4, "hidden": [8], "cross_layers": 2}),
    ("dcnv2", {"embedding_dim": 4, "hidden": [8], "cross_layers": 2}),
    ("dcnv2", {"embedding_dim": 4, "hidden": [8], "cross_layers": 2, "structure": "parallel"}),
    ("dcnv2", {"embedding_dim": 4, "hidden": [], "cross_layers": 1, "low_rank": {"rank": 3}}),
    ("dcnv2", {"embedding_dim": 4, "hidden": [8], "low_rank": {"rank": 3, "experts": 2}}),
    ("dlrm", {"embedding_dim": 4, "bottom": [5], "top": [8]}),
    ("dlrm_dcnv2", {"embedding_dim": 4, "bottom": [5], "top": [8], "rank": 3}),
]
every_model = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=lambda v: str(v).replace(" ", ""))


def features(num_dense: int = 3) -> Features:
    return Features(num_dense, SIZES)


def sample(num_dense: int = 3, batch_size: int = B, seed: int = 0) -> tuple[Any, KeyedJaggedTensor, Any]:
    """Random dense values, bags (genres: 0 to 3 ids; the others: 1) and labels that depend on both."""
    rng = np.random.default_rng(seed)
    genres = rng.integers(0, 4, batch_size)
    lengths = np.concatenate([np.ones(2 * batch_size, np.int64), genres])
    user, item = rng.integers(0, SIZES["user"], batch_size), rng.integers(0, SIZES["item"], batch_size)
    values = np.concatenate([user, item, rng.integers(0, SIZES["genres"], genres.sum())])
    dense = rng.standard_normal((batch_size, num_dense)).astype(np.float32)
    labels = ((user + item) % 2).astype(np.float32)
    return dense, KeyedJaggedTensor.from_lengths(list(SIZES), values, lengths), labels


def build(name: str, options: dict[str, Any], num_dense: int = 3, seed: int = 0) -> Module:
    return build_model(name, features(num_dense), seed=seed, options=options)


def enlarge(model: Module, seed: int = 1) -> None:
    """Weights far from their small start, so that every term of a formula is seen."""
    rng = np.random.default_rng(seed)
    for parameter in model.parameters():
        parameter.data[...] = rng.normal(0.0, 0.5, parameter.shape)


def to_float64(model: Module) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.astype(np.float64)


def dense_gradient(parameter: Tensor) -> npt.NDArray[np.float64]:
    grad = parameter.grad
    if grad is None:
        return np.zeros(parameter.shape)
    return np.asarray(grad.to_dense() if isinstance(parameter, Pool) else grad, np.float64)


@every_model
@pytest.mark.parametrize("num_dense", [3, 0])
def test_one_logit_per_sample_with_and_without_dense(
    name: str, options: dict[str, Any], num_dense: int
) -> None:
    dense, sparse, _ = sample(num_dense)
    logits = build(name, options, num_dense)(dense, sparse)
    assert logits.shape == (B,) and logits.dtype == np.float32
    assert np.isfinite(logits.data).all()


@every_model
def test_gradients_match_finite_differences(name: str, options: dict[str, Any]) -> None:
    model = build(name, options)
    enlarge(model)
    to_float64(model)
    dense, sparse, labels = sample()
    dense, labels = dense.astype(np.float64), labels.astype(np.float64)

    def loss() -> Tensor:
        return bce_with_logits(model(dense, sparse), labels)

    loss().backward()
    rng, step = np.random.default_rng(2), 1e-6
    for path, parameter in model.named_parameters():
        direction = rng.standard_normal(parameter.shape)
        start = parameter.data
        parameter.data = start + step * direction
        above = loss().item()
        parameter.data = start - step * direction
        below = loss().item()
        parameter.data = start
        wanted = (dense_gradient(parameter) * direction).sum()
        assert (above - below) / (2 * step) == pytest.approx(wanted, rel=1e-5, abs=1e-7), path


@every_model
def test_training_lowers_the_loss(name: str, options: dict[str, Any]) -> None:
    model = build(name, options)
    dense, sparse, labels = sample(batch_size=64)
    pools = [(n, p) for n, p in model.named_parameters() if isinstance(p, Pool)]
    rest = [(n, p) for n, p in model.named_parameters() if not isinstance(p, Pool)]
    optimizers: list[Any] = [Adam(rest, lr=0.02), RowAdagrad(pools, lr=0.2)]
    losses = []
    for _ in range(30):
        loss = bce_with_logits(model(dense, sparse), labels)
        losses.append(loss.item())
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]


@every_model
def test_weights_are_a_function_of_the_seed(name: str, options: dict[str, Any]) -> None:
    first, same, other = (build(name, options, seed=s).state_dict() for s in (3, 3, 4))
    assert all(np.array_equal(first[key], same[key]) for key in first)
    assert name == "lr" or any(not np.array_equal(first[key], other[key]) for key in first)


@every_model
def test_state_dict_round_trip(name: str, options: dict[str, Any]) -> None:
    model, copy = build(name, options, seed=3), build(name, options, seed=4)
    enlarge(model)
    copy.load_state_dict(model.state_dict())
    dense, sparse, _ = sample()
    assert np.array_equal(copy(dense, sparse).data, model(dense, sparse).data)


@every_model
def test_a_slice_gives_the_same_logits_as_the_batch(name: str, options: dict[str, Any]) -> None:
    model = build(name, options)
    enlarge(model)
    assert not model.needs_whole_batch
    dense, sparse, _ = sample()
    whole = model(dense, sparse).data
    np.testing.assert_allclose(model(dense[2:6], sparse.select(2, 6)).data, whole[2:6], rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dnn", "wide_deep", "deepfm", "dcn"])
def test_batch_norm_needs_the_whole_batch(name: str) -> None:
    model = build(name, {"hidden": [8], "batch_norm": True})
    assert model.needs_whole_batch
    dense, sparse, labels = sample()
    bce_with_logits(model(dense, sparse), labels).backward()
    model.eval()
    whole = model(dense, sparse).data
    np.testing.assert_allclose(model(dense[:4], sparse.select(0, 4)).data, whole[:4], rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dnn", "wide_deep", "deepfm", "dcn", "dcnv2", "dlrm", "dlrm_dcnv2"])
def test_dropout_only_in_training(name: str) -> None:
    model = build(name, {"dropout": 0.5})
    dense, sparse, _ = sample()

    def logits(seed: int) -> npt.NDArray[Any]:
        with random_stream(np.random.default_rng(seed)):
            return np.asarray(model(dense, sparse).data)

    assert np.array_equal(logits(0), logits(0)) and not np.array_equal(logits(0), logits(1))
    model.eval()
    assert np.array_equal(logits(0), logits(1))


@pytest.mark.parametrize("name", model_names())
def test_dense_of_the_wrong_width_is_named(name: str) -> None:
    _, sparse, _ = sample()
    with pytest.raises(ModelError, match=r"dense has shape \(9, 2\), wanted \(9, 3\)"):
        build(name, {})(np.zeros((B, 2), np.float32), sparse)


def test_features_without_ids_are_refused() -> None:
    with pytest.raises(ModelError, match="no sparse feature"):
        Features(3, {})


def bag(sparse: KeyedJaggedTensor, key: str, b: int) -> npt.NDArray[np.int64]:
    """The ids of one key in one sample."""
    start = sparse.keys.index(key) * B + b
    return np.asarray(sparse.values[sparse.offsets[start] : sparse.offsets[start + 1]])


def naive_pairs(v: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Dot products of all pairs of rows, (0, 1), (0, 2), … first."""
    return np.array([v[i] @ v[j] for i in range(len(v)) for j in range(i + 1, len(v))])


def vectors(model: Module, dense: Any, sparse: KeyedJaggedTensor, pool: str) -> Iterator[npt.NDArray[Any]]:
    """Each sample's field vectors, bag by bag from the tables' rows: (F, D), or (F + num_dense, D) for FM."""
    state = model.state_dict()
    for b in range(B):
        fields = []
        for key in SIZES:
            ids = bag(sparse, key, b)
            table = state[f"{pool}.sparse.{key}"]
            fields.append(table[ids].mean(axis=0) if len(ids) else np.zeros(table.shape[1]))
        if f"{pool}.dense" in state:
            scaled = state[f"{pool}.dense"].reshape(3, -1) * dense[b, :, None]
            fields.extend(scaled)
        yield np.stack(fields).astype(np.float64)


def check(model: Module, oracle: Callable[..., Iterator[float]]) -> None:
    """The model's logits equal the oracle's."""
    enlarge(model)
    dense, sparse, _ = sample()
    np.testing.assert_allclose(
        model(dense, sparse).data, list(oracle(model, dense, sparse)), rtol=1e-4, atol=1e-5
    )


def test_lr_is_the_sum_of_weights() -> None:
    def oracle(model: Module, dense: Any, sparse: KeyedJaggedTensor) -> Iterator[float]:
        for w in vectors(model, dense, sparse, "first_order"):
            yield w.sum() + model.state_dict()["first_order.bias"].item()

    check(build("lr", {}), oracle)


def test_fm_is_the_double_sum_over_pairs() -> None:
    def oracle(model: Module, dense: Any, sparse: KeyedJaggedTensor) -> Iterator[float]:
        linear = vectors(model, dense, sparse, "first_order")
        for w, v in zip(linear, vectors(model, dense, sparse, "fields"), strict=True):
            pairs = naive_pairs(v)
            yield w.sum() + model.state_dict()["first_order.bias"].item() + pairs.sum()

    check(build("fm", {"embedding_dim": 4}), oracle)


@pytest.mark.parametrize("num_dense", [3, 0])
def test_dlrm_feeds_all_pairs_to_the_top(num_dense: int) -> None:
    model: Any = build("dlrm", {"embedding_dim": 4}, num_dense)
    enlarge(model)
    dense, sparse, _ = sample(num_dense)
    rows = list(vectors(model, dense, sparse, "inputs"))
    if num_dense:
        bottom = model.inputs.bottom(dense).data
        joined = [
            np.concatenate([z, naive_pairs(np.vstack([z, v]))]) for z, v in zip(bottom, rows, strict=True)
        ]
    else:
        joined = [naive_pairs(v) for v in rows]
    wanted = model.top(np.stack(joined).astype(np.float32)).data[:, 0]
    np.testing.assert_allclose(model(dense, sparse).data, wanted, rtol=1e-3, atol=1e-4)


def test_dlrm_of_a_single_vector_has_no_pairs() -> None:
    with pytest.raises(ModelError, match="pairs"):
        build_model("dlrm", Features(0, {"user": 3}), seed=0)
