"""DCN: a cross network beside a deep one (Wang et al. 2017, section 2)."""

from __future__ import annotations

import numpy as np

from tesserec.autograd import ops
from tesserec.autograd.layers import Linear
from tesserec.autograd.module import Module
from tesserec.autograd.tensor import Tensor
from tesserec.embeddings.jagged import KeyedJaggedTensor
from tesserec.models.features import Features
from tesserec.models.interactions import Cross, CrossNetwork, Dense, FlatInput, hidden_layers


class DCN(Module):
    """linear([cross(x₀), mlp(x₀)]) with x₀ = [embeddings, x].

    dropout, batch_norm: of the deep part; the paper uses batch norm (section 4.2).
    """

    def __init__(
        self,
        features: Features,
        *,
        seed: int,
        embedding_dim: int = 16,
        cross_layers: int = 3,
        hidden: tuple[int, ...] = (256, 128),
        dropout: float = 0.0,
        batch_norm: bool = False,
    ):
        rng = np.random.default_rng(seed)
        self.inputs = FlatInput(features, embedding_dim, seed=seed)
        width = self.inputs.width
        self.cross = CrossNetwork([Cross(width, rng=rng) for _ in range(cross_layers)])
        self.deep = hidden_layers(width, hidden, rng=rng, dropout=dropout, batch_norm=batch_norm)
        self.output = Linear(width + (width, *hidden)[-1], 1, rng=rng)

    def forward(self, dense: Dense, sparse: KeyedJaggedTensor) -> Tensor:
        """(B, num_dense) and F keys by B samples -> (B,) logits."""
        x0 = self.inputs(dense, sparse)
        logits: Tensor = self.output(ops.concat(self.cross(x0), self.deep(x0), axis=1))
        return logits.reshape(-1)
