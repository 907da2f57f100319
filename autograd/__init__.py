"""The shared autograd core: a Tensor that remembers how it was computed, and what trains with it.

Read `tensor` first: it is the whole of differentiation. `ops` are functions of Tensors, `losses` end in a
scalar, `module` and `layers` hold parameters, `optim` and `schedules` move them, `workers` are the threads.
"""

from tesserec.autograd import losses, ops, schedules
from tesserec.autograd.compiler.capture import opaque
from tesserec.autograd.compiler.model import CompiledModel, compile
from tesserec.autograd.gradcheck import GradcheckError, gradcheck
from tesserec.autograd.layers import MLP, BatchNorm1d, Dropout, InBatchSoftmax, LayerNorm, Linear
from tesserec.autograd.module import Module, ModuleList, Sequential, StateError
from tesserec.autograd.optim import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    RMSprop,
    clip_grad_norm,
    clip_grad_value,
)
from tesserec.autograd.random import current_stream, random_stream
from tesserec.autograd.tensor import Node, Piece, Tensor, accumulate, gradients, is_grad_enabled, no_grad, op
from tesserec.autograd.workers import num_threads, one_thread_blas, parallel_map, set_num_threads

__all__ = [
    "MLP",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "BatchNorm1d",
    "CompiledModel",
    "Dropout",
    "GradcheckError",
    "InBatchSoftmax",
    "LayerNorm",
    "Linear",
    "Module",
    "ModuleList",
    "Node",
    "Piece",
    "RMSprop",
    "Sequential",
    "StateError",
    "Tensor",
    "accumulate",
    "clip_grad_norm",
    "clip_grad_value",
    "compile",
    "current_stream",
    "gradcheck",
    "gradients",
    "is_grad_enabled",
    "losses",
    "no_grad",
    "num_threads",
    "one_thread_blas",
    "op",
    "opaque",
    "ops",
    "parallel_map",
    "random_stream",
    "schedules",
    "set_num_threads",
]
