"""Embedding tables: jagged id features in, pooled or per-id vectors out, gradients that name only touched rows."""

from tesserec.embeddings.config import (
    Constant,
    EmbeddingBagConfig,
    EmbeddingConfig,
    Init,
    Normal,
    TableError,
    Uniform,
    XavierNormal,
)
from tesserec.embeddings.jagged import InvalidIdError, JaggedError, JaggedTensor, KeyedJaggedTensor

__all__ = [
    "Constant",
    "EmbeddingBagConfig",
    "EmbeddingConfig",
    "Init",
    "InvalidIdError",
    "JaggedError",
    "JaggedTensor",
    "KeyedJaggedTensor",
    "Normal",
    "TableError",
    "Uniform",
    "XavierNormal",
]
