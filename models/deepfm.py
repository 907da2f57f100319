"""DeepFM: a factorization machine and a deep network on the same vectors (Guo et al. 2017, section 2.1)."""

from __future__ import annotations

import numpy as np

from tesserec.autograd import ops
from tesserec.autograd.layers import MLP
from tesserec.autograd.module import Module
from tesserec.autograd.tensor import Tensor
from tesserec.embeddings.jagged import KeyedJaggedTensor
from tesserec.models.features import Features
from tesserec.models.interactions import Dense, FieldEmbeddings, FirstOrder


class DeepFM(Module):
    """FM + mlp([v₁, …, v_F]), over the same field vectors; dropout of hidden units as in section 3.3."""

    def __init__(
        self,
        features: Features,
        *,
        seed: int,
        embedding_dim: int = 16,
        hidden: tuple[int, ...] = (256, 128),
        dropout: float = 0.0,
        batch_norm: bool = False,
    ):
        rng = np.random.default_rng(seed)
        self.first_order = FirstOrder(features, seed=seed)
        self.fields = FieldEmbeddings(features, embedding_dim, seed=seed)
        width = self.fields.num_fields * embedding_dim
        self.deep = MLP((width, *hidden, 1), rng=rng, dropout=dropout, batch_norm=batch_norm)

    def forward(self, dense: Dense, sparse: KeyedJaggedTensor) -> Tensor:
        """(B, num_dense) and F keys by B samples -> (B,) logits."""
        fields: Tensor = self.fields(dense, sparse)
        first: Tensor = self.first_order(dense, sparse)
        deep: Tensor = self.deep(fields.reshape(len(dense), -1))
        return first + ops.factorization(fields).sum(axis=1) + deep.reshape(-1)
