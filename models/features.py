"""What a model must know of the data: how many dense columns, which id features, how many ids each has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tesserec.embeddings.config import DataType, EmbeddingBagConfig, Init, Normal, Unseen
from tesserec.embeddings.jagged import KeyedJaggedTensor

# Models that meet fields only in products sit on a saddle near 0, and 1/√num_embeddings makes features of few
# values loud. Best on ML-100k's validation split among this, .01, .1, 1/√n and Xavier over four models.
INIT = Normal(0.03)


class ModelError(ValueError):
    """A model was named, configured or fed wrongly."""


@dataclass(frozen=True, slots=True)
class Features:
    """The inputs of a model: `num_dense` numbers, and one bag of ids for each sparse feature of each sample.

    sparse: feature -> number of ids; ids run from 0. pooling: how a bag of several ids becomes one vector.
    unseen: feature -> what becomes of other ids; an InvalidIdError where nothing is said. data_type: of rows.
    """

    num_dense: int
    sparse: Mapping[str, int]
    pooling: Literal["mean", "sum"] = "mean"
    unseen: Mapping[str, Unseen] = field(default_factory=dict)
    data_type: DataType = "float32"

    def __post_init__(self) -> None:
        if self.num_dense < 0:
            raise ModelError(f"num_dense is {self.num_dense}, wanted 0 or more")
        if not self.sparse:
            raise ModelError("no sparse feature: a model here needs at least one column of ids")
        if self.pooling not in ("mean", "sum"):
            raise ModelError(f"pooling is {self.pooling!r}, wanted 'mean' or 'sum'")
        unknown = [name for name in self.unseen if name not in self.sparse]
        if unknown:
            raise ModelError(f"unseen names {unknown[0]!r}, which is no sparse feature")

    def tables(self, dim: int, init: Init = INIT) -> list[EmbeddingBagConfig]:
        """One table of width `dim` per sparse feature, under its name."""
        return [
            EmbeddingBagConfig(
                name=name,
                num_embeddings=num_embeddings,
                embedding_dim=dim,
                feature_names=(name,),
                pooling=self.pooling,
                data_type=self.data_type,
                init=init,
                unseen=self.unseen.get(name, "error"),
            )
            for name, num_embeddings in self.sparse.items()
        ]

    def check(self, dense: npt.NDArray[Any], sparse: KeyedJaggedTensor) -> None:
        """Raise ModelError unless `dense` is (B, num_dense) for the B samples of `sparse`."""
        wanted = (sparse.batch_size, self.num_dense)
        if np.shape(dense) != wanted:
            raise ModelError(f"dense has shape {np.shape(dense)}, wanted {wanted}: (samples, dense features)")
