"""FM: factorization machine of order two (Rendle 2010, sections III.A and III.B)."""

from __future__ import annotations

from tesserec.autograd import ops
from tesserec.autograd.module import Module
from tesserec.autograd.tensor import Tensor
from tesserec.embeddings.jagged import KeyedJaggedTensor
from tesserec.models.features import Features
from tesserec.models.interactions import Dense, FieldEmbeddings, FirstOrder


class FM(Module):
    """LR + Σ vᵢ·vⱼ over pairs of fields; vᵢ is the pool of the field's ids, or dense value times vector."""

    def __init__(self, features: Features, *, seed: int, embedding_dim: int = 16):
        self.first_order = FirstOrder(features, seed=seed)
        self.fields = FieldEmbeddings(features, embedding_dim, seed=seed)

    def forward(self, dense: Dense, sparse: KeyedJaggedTensor) -> Tensor:
        """(B, num_dense) and F keys by B samples -> (B,) logits."""
        first: Tensor = self.first_order(dense, sparse)
        return first + ops.factorization(self.fields(dense, sparse)).sum(axis=1)
