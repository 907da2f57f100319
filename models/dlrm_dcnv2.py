"""DLRM-DCNv2: DLRM with low-rank cross layers for dots (MLPerf Training v3.0; TorchRec's `DLRM_DCN`)."""

from __future__ import annotations

import numpy as np

from tesserec.autograd import ops
from tesserec.autograd.layers import MLP
from tesserec.autograd.module import Module
from tesserec.autograd.tensor import Tensor
from tesserec.embeddings.jagged import KeyedJaggedTensor
from tesserec.models.features import Features
from tesserec.models.interactions import BottomInput, Dense, LowRank, cross_network_v2


class DLRMDCNv2(Module):
    """mlp(cross([z, v₁, …, v_F])) with z = mlp(x) (Naumov et al. 2019; Wang et al. 2021, section 3.5).

    bottom, top: widths of the hidden layers; the outputs, of width `embedding_dim` and 1, come by themselves.
    MLPerf: embedding_dim 128, bottom (512, 256), 3 cross layers of rank 512, top (1024, 1024, 512, 256).
    """

    def __init__(
        self,
        features: Features,
        *,
        seed: int,
        embedding_dim: int = 16,
        bottom: tuple[int, ...] = (64,),
        cross_layers: int = 3,
        rank: int = 64,
        top: tuple[int, ...] = (256, 64),
        dropout: float = 0.0,
    ):
        rng = np.random.default_rng(seed)
        self.inputs = BottomInput(features, embedding_dim, bottom, seed=seed, rng=rng)
        width = self.inputs.num_fields * embedding_dim
        self.cross = cross_network_v2(width, cross_layers, LowRank(rank), rng=rng)
        self.top = MLP((width, *top, 1), rng=rng, dropout=dropout)

    def forward(self, dense: Dense, sparse: KeyedJaggedTensor) -> Tensor:
        """(B, num_dense) and F keys by B samples -> (B,) logits."""
        vectors = ops.concat(*self.inputs(dense, sparse), axis=1)
        logits: Tensor = self.top(self.cross(vectors))
        return logits.reshape(-1)
