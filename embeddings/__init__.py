"""Embedding tables: jagged id features in, vectors out, gradients that name only the rows touched."""

from tesserec.embeddings.collection import EmbeddingBagCollection, EmbeddingCollection, unseen_ids
from tesserec.embeddings.config import (
    Clamp,
    Constant,
    Drop,
    EmbeddingBagConfig,
    EmbeddingConfig,
    Hash,
    Init,
    Normal,
    TableError,
    Uniform,
    Unseen,
    XavierNormal,
)
from tesserec.embeddings.jagged import InvalidIdError, JaggedError, JaggedTensor, KeyedJaggedTensor
from tesserec.embeddings.keyed_tensor import KeyedTensor
from tesserec.embeddings.memory import MemoryLimitError, MemoryReport, TableMemory, memory_report, planning
from tesserec.embeddings.pool import Origin, Pool, PoolTable
from tesserec.embeddings.processors import PositionWeighted
from tesserec.embeddings.quantize import Deviation, QuantizedPool, deviations, quantize
from tesserec.embeddings.row_optim import (
    ROW_OPTIMIZERS,
    PartialRowWiseAdam,
    PartialRowWiseLAMB,
    RowAdagrad,
    RowAdam,
    RowAdamW,
    RowFTRL,
    RowLAMB,
    RowLARS,
    RowOptimizer,
    RowSGD,
    RowWiseAdagrad,
    RowWiseAdagradCounter,
)
from tesserec.embeddings.rowgrad import RowGrad

__all__ = [
    "ROW_OPTIMIZERS",
    "Clamp",
    "Constant",
    "Deviation",
    "Drop",
    "EmbeddingBagCollection",
    "EmbeddingBagConfig",
    "EmbeddingCollection",
    "EmbeddingConfig",
    "Hash",
    "Init",
    "InvalidIdError",
    "JaggedError",
    "JaggedTensor",
    "KeyedJaggedTensor",
    "KeyedTensor",
    "MemoryLimitError",
    "MemoryReport",
    "Normal",
    "Origin",
    "PartialRowWiseAdam",
    "PartialRowWiseLAMB",
    "Pool",
    "PoolTable",
    "PositionWeighted",
    "QuantizedPool",
    "RowAdagrad",
    "RowAdam",
    "RowAdamW",
    "RowFTRL",
    "RowGrad",
    "RowLAMB",
    "RowLARS",
    "RowOptimizer",
    "RowSGD",
    "RowWiseAdagrad",
    "RowWiseAdagradCounter",
    "TableError",
    "TableMemory",
    "Uniform",
    "Unseen",
    "XavierNormal",
    "deviations",
    "memory_report",
    "planning",
    "quantize",
    "unseen_ids",
]
