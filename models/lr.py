"""LR: logistic regression on ids and dense values (Richardson et al. 2007, section 4)."""

from __future__ import annotations

from tesserec.autograd.module import Module
from tesserec.autograd.tensor import Tensor
from tesserec.embeddings.jagged import KeyedJaggedTensor
from tesserec.models.features import Features
from tesserec.models.interactions import Dense, FirstOrder


class LR(Module):
    """Σ w[id] + Σ wᵢ·xᵢ + bias: one weight per id and per dense column."""

    def __init__(self, features: Features, *, seed: int):
        self.first_order = FirstOrder(features, seed=seed)

    def forward(self, dense: Dense, sparse: KeyedJaggedTensor) -> Tensor:
        """(B, num_dense) and F keys by B samples -> (B,) logits."""
        logits: Tensor = self.first_order(dense, sparse)
        return logits
