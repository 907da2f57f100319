"""Embedding tables: jagged id features in, vectors out, gradients that name only the rows touched."""

from tesserec.embeddings.collection import EmbeddingBagCollection, EmbeddingCollection
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
from tesserec.embeddings.keyed_tensor import KeyedTensor
from tesserec.embeddings.pool import Pool, PoolTable
from tesserec.embeddings.row_optim import (
    ROW_OPTIMIZERS,
    RowAdagrad,
    RowAdam,
    RowOptimizer,
    RowSGD,
    RowWiseAdagrad,
)
from tesserec.embeddings.rowgrad import RowGrad

__all__ = [
    "ROW_OPTIMIZERS",
    "Constant",
    "EmbeddingBagCollection",
    "EmbeddingBagConfig",
    "EmbeddingCollection",
    "EmbeddingConfig",
    "Init",
    "InvalidIdError",
    "JaggedError",
    "JaggedTensor",
    "KeyedJaggedTensor",
    "KeyedTensor",
    "Normal",
    "Pool",
    "PoolTable",
    "RowAdagrad",
    "RowAdam",
    "RowGrad",
    "RowOptimizer",
    "RowSGD",
    "RowWiseAdagrad",
    "TableError",
    "Uniform",
    "XavierNormal",
]
