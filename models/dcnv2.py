"""DCN-V2: full or low-rank cross layers, under or beside a deep network (Wang et al. 2021, section 3)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from tesserec.autograd import ops
from tesserec.autograd.layers import Linear
from tesserec.autograd.module import Module
from tesserec.autograd.tensor import Tensor
from tesserec.embeddings.jagged import KeyedJaggedTensor
from tesserec.models.features import Features
from tesserec.models.interactions import Dense, FlatInput, LowRank, cross_network_v2, hidden_layers


class DCNv2(Module):
    """Stacked linear(mlp(cross(x₀))), or parallel linear([cross(x₀), mlp(x₀)]), with x₀ = [embeddings, x].

    structure: which of the two (section 3.4). low_rank: {rank, experts} of the cross layers
    (section 3.5); None: full matrices (section 3.2).
    """

    def __init__(
        self,
        features: Features,
        *,
        seed: int,
        embedding_dim: int = 16,
        cross_layers: int = 3,
        low_rank: LowRank | None = None,
        hidden: tuple[int, ...] = (256, 128),
        structure: Literal["stacked", "parallel"] = "stacked",
        dropout: float = 0.0,
    ):
        rng = np.random.default_rng(seed)
        self.structure = structure
        self.inputs = FlatInput(features, embedding_dim, seed=seed)
        width = self.inputs.width
        self.cross = cross_network_v2(width, cross_layers, low_rank, rng=rng)
        self.deep = hidden_layers(width, hidden, rng=rng, dropout=dropout)
        last = (width, *hidden)[-1]
        self.output = Linear(last if structure == "stacked" else width + last, 1, rng=rng)

    def forward(self, dense: Dense, sparse: KeyedJaggedTensor) -> Tensor:
        """(B, num_dense) and F keys by B samples -> (B,) logits."""
        x0 = self.inputs(dense, sparse)
        crossed = self.cross(x0)
        stacked = self.structure == "stacked"
        last = self.deep(crossed) if stacked else ops.concat(crossed, self.deep(x0), axis=1)
        logits: Tensor = self.output(last)
        return logits.reshape(-1)
