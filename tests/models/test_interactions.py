"""The cross layers compute the formulas of their papers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tesserec.autograd.tensor import Tensor
from tesserec.models.features import ModelError
from tesserec.models.interactions import Cross, CrossNetwork, CrossV2, LowRank, LowRankCross, MixtureCross

B, W, RANK, EXPERTS = 5, 6, 3, 4
rng = np.random.default_rng(0)
X0, X = (rng.standard_normal((B, W)).astype(np.float32) for _ in range(2))


def close(got: Tensor, wanted: np.ndarray[tuple[int, ...], np.dtype[np.floating]]) -> None:
    np.testing.assert_allclose(got.data, wanted, rtol=1e-4, atol=1e-5)


def test_cross_v1() -> None:
    layer = Cross(W, rng=rng)
    layer.bias.data[...] = rng.standard_normal(W)
    w = layer.weight.weight.data[0]
    close(layer(Tensor(X0), Tensor(X)), X0 * (X @ w)[:, None] + layer.bias.data + X)


def test_cross_v2() -> None:
    layer: Any = CrossV2(W, rng=rng)
    w, b = layer.linear.weight.data, rng.standard_normal(W).astype(np.float32)
    layer.linear.bias.data[...] = b
    wanted = np.stack([x0 * (w @ x + b) + x for x0, x in zip(X0, X, strict=True)])
    close(layer(Tensor(X0), Tensor(X)), wanted)


def test_full_rank_equals_v2_of_the_product() -> None:
    low: Any = LowRankCross(W, RANK, rng=rng)
    full: Any = CrossV2(W, rng=rng)
    full.linear.weight.data[...] = low.u.weight.data @ low.v.weight.data
    full.linear.bias.data[...] = low.u.bias.data
    close(low(Tensor(X0), Tensor(X)), full(Tensor(X0), Tensor(X)).data)


def test_mixture_is_the_gated_sum_of_experts() -> None:
    layer: Any = MixtureCross(W, RANK, EXPERTS, rng=rng)
    layer.u.bias.data[...] = rng.standard_normal(W)
    gates = np.exp(X @ layer.gate.weight.data.T)
    gates /= gates.sum(axis=1, keepdims=True)
    v = layer.v.weight.data.reshape(EXPERTS, RANK, W)
    u = layer.u.weight.data.reshape(W, EXPERTS, RANK)
    wanted = X.copy()
    for e in range(EXPERTS):
        inner = np.tanh(np.tanh(X @ v[e].T) @ layer.c.data[e])
        wanted += gates[:, [e]] * X0 * (inner @ u[:, e].T + layer.u.bias.data)
    close(layer(Tensor(X0), Tensor(X)), wanted)


def test_network_meets_its_input_in_every_layer() -> None:
    first, second = CrossV2(W, rng=rng), CrossV2(W, rng=rng)
    x0 = Tensor(X0)
    close(CrossNetwork([first, second])(x0), second(x0, first(x0, x0)).data)
    close(CrossNetwork([])(x0), X0)


def test_impossible_low_rank_is_refused() -> None:
    with pytest.raises(ModelError, match="rank 0"):
        LowRank(0)
