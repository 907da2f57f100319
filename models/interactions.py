"""The layers that models are built from: ways into a model, and ways in which fields meet.

Ways in take (dense (B, num_dense), sparse); interactions take what those give. Layers without a parameter are
plain functions in `tesserec.autograd.ops` (`factorization`, `pairwise_dot`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd import ops
from tesserec.autograd.layers import MLP, Linear
from tesserec.autograd.module import Module, Sequential
from tesserec.autograd.tensor import Tensor
from tesserec.embeddings.collection import EmbeddingBagCollection
from tesserec.embeddings.config import Constant
from tesserec.embeddings.jagged import KeyedJaggedTensor
from tesserec.embeddings.keyed_tensor import KeyedTensor
from tesserec.models.features import INIT, Features, ModelError

Dense = npt.NDArray[np.float32]  # (B, num_dense)


class FirstOrder(Module):
    """Σ w[id] + Σ wᵢ·xᵢ + bias: -> (B,). Every weight starts at 0."""

    def __init__(self, features: Features, *, seed: int):
        self.features = features
        self.sparse = EmbeddingBagCollection(features.tables(1, Constant(0.0)), seed=seed)
        self.dense = Tensor(np.zeros((1, features.num_dense), np.float32), requires_grad=True)
        self.bias = Tensor(np.zeros(1, np.float32), requires_grad=True)

    def forward(self, dense: Dense, sparse: KeyedJaggedTensor) -> Tensor:
        self.features.check(dense, sparse)
        weights: KeyedTensor = self.sparse(sparse)
        return weights.values.sum(axis=1) + ops.linear(dense, self.dense, self.bias).reshape(-1)


class FieldEmbeddings(Module):
    """One vector per field, v[id] or vᵢ·xᵢ: -> (B, F, D) with F = sparse + dense features, in that order."""

    def __init__(self, features: Features, dim: int, *, seed: int):
        rng = np.random.default_rng([seed, 1])  # not the stream of the layers above
        self.features = features
        self.num_fields = len(features.sparse) + features.num_dense
        self.sparse = EmbeddingBagCollection(features.tables(dim), seed=seed)
        dense = rng.normal(0.0, INIT.std, (features.num_dense, dim)).astype(np.float32)
        self.dense = Tensor(dense, requires_grad=True)

    def forward(self, dense: Dense, sparse: KeyedJaggedTensor) -> Tensor:
        self.features.check(dense, sparse)
        fields: Tensor = self.sparse(sparse).stack()
        if not self.features.num_dense:
            return fields
        return ops.concat(fields, self.dense * dense[:, :, None], axis=1)


class FlatInput(Module):
    """Pooled embeddings beside the dense values: -> (B, F·D + num_dense), the `width`."""

    def __init__(self, features: Features, dim: int, *, seed: int):
        self.features = features
        self.width = len(features.sparse) * dim + features.num_dense
        self.sparse = EmbeddingBagCollection(features.tables(dim), seed=seed)

    def forward(self, dense: Dense, sparse: KeyedJaggedTensor) -> Tensor:
        self.features.check(dense, sparse)
        return ops.concat(self.sparse(sparse).values, dense, axis=1)


class BottomInput(Module):
    """The dense values as one more vector, by a bottom MLP: -> ((B, D), (B, F·D)); ((B, F·D),) without any.

    bottom: widths of its hidden layers; its output, of width D and through a ReLU, comes by itself.
    `num_fields` counts the vectors. (Naumov et al. 2019, section 2.1.)
    """

    def __init__(
        self, features: Features, dim: int, bottom: Sequence[int], *, seed: int, rng: np.random.Generator
    ):
        self.features = features
        self.num_fields = len(features.sparse) + (features.num_dense > 0)
        self.sparse = EmbeddingBagCollection(features.tables(dim), seed=seed)
        sizes = (features.num_dense, *bottom, dim)
        self.bottom = _bottom_mlp(sizes, rng) if features.num_dense else None

    def forward(self, dense: Dense, sparse: KeyedJaggedTensor) -> tuple[Tensor, ...]:
        self.features.check(dense, sparse)
        vectors = self.sparse(sparse).values
        return (vectors,) if self.bottom is None else (self.bottom(dense), vectors)


def _bottom_mlp(sizes: Sequence[int], rng: np.random.Generator) -> MLP:
    """ReLU layers with biases from N(0, 1/width), as in DLRM's reference code.

    With biases of 0 the output for one dense value x would be x times a constant, and nothing at x = 0.
    """
    mlp = MLP(sizes, rng=rng, output_activation="relu")
    for layer in mlp.layers:
        width = len(layer.weight)
        layer.bias = Tensor(rng.normal(0.0, width**-0.5, width), requires_grad=True, dtype=np.float32)
    return mlp


class Cross(Module):
    """x₀·(w·x) + b + x: (B, W) twice -> (B, W). (Wang et al. 2017, section 2.2.)"""

    def __init__(self, width: int, *, rng: np.random.Generator):
        self.weight = Linear(width, 1, rng=rng, bias=False)
        self.bias = Tensor(np.zeros(width, np.float32), requires_grad=True)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        along: Tensor = self.weight(x)
        return x0 * along + self.bias + x


class CrossV2(Module):
    """x₀ ⊙ (W·x + b) + x: (B, W) twice -> (B, W). (Wang et al. 2021, section 3.2, equation 1.)"""

    def __init__(self, width: int, *, rng: np.random.Generator):
        self.linear = Linear(width, width, rng=rng)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        through: Tensor = self.linear(x)
        return x0 * through + x


class LowRankCross(Module):
    """x₀ ⊙ (U·(Vᵀ·x) + b) + x, U and V of W by `rank`. (Wang et al. 2021, section 3.5, equation 2.)"""

    def __init__(self, width: int, rank: int, *, rng: np.random.Generator):
        self.v = Linear(width, rank, rng=rng, bias=False)
        self.u = Linear(rank, width, rng=rng)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        through: Tensor = self.u(self.v(x))
        return x0 * through + x


class MixtureCross(Module):
    """Σₑ Gₑ(x)·(x₀ ⊙ (Uₑ·tanh(Cₑ·tanh(Vₑᵀ·x)) + b)) + x, G a softmax. (Wang et al. 2021, equation 4.)

    The gates sum to 1, so they may weigh the experts before U: all Uₑ are one matrix, applied once.
    """

    def __init__(self, width: int, rank: int, experts: int, *, rng: np.random.Generator):
        self.gate = Linear(width, experts, rng=rng, bias=False)
        self.v = Linear(width, experts * rank, rng=rng, bias=False)
        bound = np.sqrt(3.0 / rank)
        c = rng.uniform(-bound, bound, (experts, rank, rank)).astype(np.float32)
        self.c = Tensor(c, requires_grad=True)
        self.u = Linear(experts * rank, width, rng=rng)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        experts, rank, _ = self.c.shape
        inner = ops.tanh(self.v(x)).reshape(-1, experts, rank).transpose(1, 0, 2)  # (E, B, r)
        inner = ops.tanh(ops.matmul(inner, self.c)).transpose(1, 0, 2)
        gates = ops.softmax(self.gate(x), axis=1).reshape(-1, experts, 1)
        through: Tensor = self.u((inner * gates).reshape(-1, experts * rank))
        return x0 * through + x


@dataclass(frozen=True, slots=True)
class LowRank:
    """A cross layer's matrix as a product of two thin ones; with several `experts`, a gated mixture."""

    rank: int
    experts: int = 1

    def __post_init__(self) -> None:
        if self.rank < 1 or self.experts < 1:
            raise ModelError(
                f"low_rank has rank {self.rank}, experts {self.experts}: wanted 1 or more of both"
            )

    def layer(self, width: int, *, rng: np.random.Generator) -> Module:
        """One cross layer of this form."""
        if self.experts == 1:
            return LowRankCross(width, self.rank, rng=rng)
        return MixtureCross(width, self.rank, self.experts, rng=rng)


class CrossNetwork(Module):
    """x₀ through layers that each meet x₀ again, x = layer(x₀, x): (B, W) -> (B, W)."""

    def __init__(self, layers: Sequence[Module]):
        self.layers = list(layers)

    def forward(self, x0: Tensor) -> Tensor:
        x = x0
        for layer in self.layers:
            x = layer(x0, x)
        return x


def hidden_layers(
    width: int,
    hidden: Sequence[int],
    *,
    rng: np.random.Generator,
    dropout: float = 0.0,
    batch_norm: bool = False,
) -> Module:
    """An MLP whose every layer is a hidden one: (B, width) -> (B, hidden[-1]); x itself without any."""
    if not hidden:
        return Sequential()
    sizes = (width, *hidden)
    return MLP(sizes, rng=rng, dropout=dropout, batch_norm=batch_norm, output_activation="relu")


def cross_network_v2(
    width: int, depth: int, low_rank: LowRank | None, *, rng: np.random.Generator
) -> CrossNetwork:
    """`depth` cross layers of version 2, with full matrices unless `low_rank` says otherwise."""
    make: Any = low_rank.layer if low_rank else CrossV2
    return CrossNetwork([make(width, rng=rng) for _ in range(depth)])
