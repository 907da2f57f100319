"""Every model gives the same numbers compiled, in slices or whole, with dropout and batch norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tesserec.autograd import Module, Tensor, compile, no_grad, random_stream
from tesserec.autograd.losses import bce_with_logits
from tesserec.embeddings.jagged import InvalidIdError, KeyedJaggedTensor
from tesserec.models import build_model
from tesserec.models.registry import describe
from tests.models.test_models import (
    VARIANTS,
    build,
    dense_gradient,
    enlarge,
    features,
    sample,
    to_float64,
)

every_model = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=lambda v: str(v).replace(" ", ""))


def outcome(model: Module, inputs: Any, labels: Any) -> list[Any]:
    """The logits, the loss, and the gradient of every parameter."""
    model.zero_grad()
    with random_stream(np.random.default_rng(3)):
        logits: Tensor = model(*inputs)
    loss = bce_with_logits(logits, labels)
    loss.backward()
    return [logits.data, loss.data, *(dense_gradient(p) for p in model.parameters())]


def assert_close(mine: list[Any], wanted: list[Any], rtol: float) -> None:
    for a, b in zip(mine, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max(initial=1e-3))


@every_model
@pytest.mark.parametrize("num_dense", [3, 0])
def test_compiled_models_give_the_same_numbers(name: str, options: dict[str, Any], num_dense: int) -> None:
    model = build(name, options, num_dense)
    enlarge(model)
    whole, sliced = compile(model), compile(model, slice_size=4)
    for seed in range(3):
        dense, sparse, labels = sample(num_dense, seed=seed)
        wanted = outcome(model, (dense, sparse), labels)
        for compiled in (whole, sliced):
            assert_close(outcome(compiled, (dense, sparse), labels), wanted, 1e-5)
        with no_grad():
            np.testing.assert_allclose(whole(dense, sparse).data, wanted[0], rtol=1e-4, atol=1e-5)
    assert whole.why_eager is None and sliced.why_eager is None


@every_model
def test_in_double_precision_they_agree_to_its_last_digits(name: str, options: dict[str, Any]) -> None:
    model = build(name, options)
    enlarge(model)
    to_float64(model)
    dense, sparse, labels = sample()
    inputs = dense.astype(np.float64), sparse
    wanted = outcome(model, inputs, labels.astype(np.float64))
    assert_close(outcome(compile(model, slice_size=4), inputs, labels.astype(np.float64)), wanted, 1e-12)


EXTRAS = [
    (name, {**options, **extra})
    for name, options in VARIANTS
    for extra in ({"dropout": 0.4}, {"batch_norm": True}, {"dropout": 0.4, "batch_norm": True})
    if extra.keys() <= {option.name for option in describe(name)[1]}
]


@pytest.mark.parametrize(("name", "options"), EXTRAS, ids=lambda v: str(v).replace(" ", ""))
@pytest.mark.parametrize("training", [True, False])
def test_dropout_and_batch_norm_are_captured(name: str, options: dict[str, Any], training: bool) -> None:
    twins = [build(name, options).train(training) for _ in range(2)]
    for model in twins:
        enlarge(model)
    compiled = compile(twins[1])
    for seed in range(3):
        dense, sparse, labels = sample(seed=seed)
        wanted = outcome(twins[0], (dense, sparse), labels)
        assert_close(outcome(compiled, (dense, sparse), labels), wanted, 1e-4)
    assert compiled.why_eager is None
    for key, array in twins[0].state_dict().items():
        np.testing.assert_allclose(twins[1].state_dict()[key], array, rtol=1e-4, atol=1e-6)


def test_an_invalid_id_is_reported_as_ever() -> None:
    """Also by the batch that is captured; and nothing is the worse for it."""
    model = build("dlrm", {"embedding_dim": 4})
    compiled = compile(model, slice_size=4)
    dense, sparse, labels = sample()
    values = np.array(sparse.values)
    values[7] = 99
    wrong = KeyedJaggedTensor(sparse.keys, values, sparse.offsets)
    for _ in range(2):
        with pytest.raises(InvalidIdError, match="feature 'user', table 'user', sample") as eager:
            model(dense, wrong)
        with pytest.raises(InvalidIdError, match="feature 'user', table 'user', sample") as replayed:
            compiled(dense, wrong)
        assert "id 99" in str(eager.value) and "id 99" in str(replayed.value)
        assert_close(
            outcome(compiled, (dense, sparse), labels), outcome(model, (dense, sparse), labels), 1e-5
        )
    assert compiled.why_eager is None


def test_keys_of_the_batch_are_guarded() -> None:
    model = build("fm", {"embedding_dim": 4})
    compiled = compile(model)
    dense, sparse, _ = sample()
    turned = sparse.permute([2, 1, 0])
    for batch in (sparse, turned, sparse):
        np.testing.assert_allclose(compiled(dense, batch).data, model(dense, batch).data, rtol=1e-5)
    assert len(compiled.programs) == 2


def test_a_missing_key_is_reported_as_ever() -> None:
    dense, sparse, _ = sample()
    compiled = compile(build_model("lr", features(), seed=0))
    with pytest.raises(KeyError, match="has no key 'genres'"):
        compiled(dense, sparse.permute([0, 1]))
    assert compiled.why_eager is None
