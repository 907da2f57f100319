"""Wide & Deep: a linear model and a deep one, trained together (Cheng et al. 2016, section 3)."""

from __future__ import annotations

import numpy as np

from tesserec.autograd.layers import MLP
from tesserec.autograd.module import Module
from tesserec.autograd.tensor import Tensor
from tesserec.embeddings.jagged import KeyedJaggedTensor
from tesserec.models.features import Features
from tesserec.models.interactions import Dense, FirstOrder, FlatInput


class WideDeep(Module):
    """LR + mlp([embeddings, x]). The paper's crossed columns are features: make them in the data."""

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
        self.wide = FirstOrder(features, seed=seed)
        self.inputs = FlatInput(features, embedding_dim, seed=seed)
        self.deep = MLP((self.inputs.width, *hidden, 1), rng=rng, dropout=dropout, batch_norm=batch_norm)

    def forward(self, dense: Dense, sparse: KeyedJaggedTensor) -> Tensor:
        """(B, num_dense) and F keys by B samples -> (B,) logits."""
        wide: Tensor = self.wide(dense, sparse)
        deep: Tensor = self.deep(self.inputs(dense, sparse))
        return wide + deep.reshape(-1)
