"""DNN: embeddings and dense values through a multi-layer perceptron (Covington et al. 2016, section 4)."""

from __future__ import annotations

import numpy as np

from tesserec.autograd.layers import MLP
from tesserec.autograd.module import Module
from tesserec.autograd.tensor import Tensor
from tesserec.embeddings.jagged import KeyedJaggedTensor
from tesserec.models.features import Features
from tesserec.models.interactions import Dense, FlatInput


class DNN(Module):
    """mlp([embeddings, x]). hidden: widths of the hidden layers, each with ReLU and, as told, the rest."""

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
        self.inputs = FlatInput(features, embedding_dim, seed=seed)
        self.deep = MLP((self.inputs.width, *hidden, 1), rng=rng, dropout=dropout, batch_norm=batch_norm)

    def forward(self, dense: Dense, sparse: KeyedJaggedTensor) -> Tensor:
        """(B, num_dense) and F keys by B samples -> (B,) logits."""
        deep: Tensor = self.deep(self.inputs(dense, sparse))
        return deep.reshape(-1)
