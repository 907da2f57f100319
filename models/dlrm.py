"""DLRM: bottom MLP, dots of all pairs of vectors, top MLP (Naumov et al. 2019, section 2)."""

from __future__ import annotations

import numpy as np

from tesserec.autograd import ops
from tesserec.autograd.layers import MLP
from tesserec.autograd.module import Module
from tesserec.autograd.tensor import Tensor
from tesserec.embeddings.jagged import KeyedJaggedTensor
from tesserec.models.features import Features, ModelError
from tesserec.models.interactions import BottomInput, Dense


class DLRM(Module):
    """mlp([z, dots of distinct pairs of z, v₁, …, v_F]) with z = mlp(x); no z without dense features.

    bottom, top: widths of the hidden layers. The bottom MLP's output, of width `embedding_dim`, and the top
    MLP's, of width 1, come by themselves. dropout: in the top MLP.
    """

    def __init__(
        self,
        features: Features,
        *,
        seed: int,
        embedding_dim: int = 16,
        bottom: tuple[int, ...] = (64,),
        top: tuple[int, ...] = (256, 64),
        dropout: float = 0.0,
    ):
        rng = np.random.default_rng(seed)
        self.embedding_dim = embedding_dim
        self.inputs = BottomInput(features, embedding_dim, bottom, seed=seed, rng=rng)
        fields = self.inputs.num_fields
        if fields < 2:
            raise ModelError("DLRM pairs features: it needs two sparse ones, or one and dense columns")
        width = fields * (fields - 1) // 2 + (embedding_dim if features.num_dense else 0)
        self.top = MLP((width, *top, 1), rng=rng, dropout=dropout)

    def forward(self, dense: Dense, sparse: KeyedJaggedTensor) -> Tensor:
        """(B, num_dense) and F keys by B samples -> (B,) logits."""
        *z, vectors = self.inputs(dense, sparse)
        fields = ops.concat(*z, vectors, axis=1).reshape(len(dense), -1, self.embedding_dim)
        logits: Tensor = self.top(ops.concat(*z, ops.pairwise_dot(fields), axis=1))
        return logits.reshape(-1)
