"""The layers of dense ranking models. Weights are float32, drawn from the `rng` that is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar

import numpy as np

from tesserec.autograd import losses, ops
from tesserec.autograd.module import Module
from tesserec.autograd.random import current_stream
from tesserec.autograd.tensor import Operand, Tensor, as_tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": ops.relu,
    "gelu": ops.gelu,
    "sigmoid": ops.sigmoid,
    "tanh": ops.tanh,
}


def activation_by_name(name: str) -> Callable[[Tensor], Tensor]:
    """The op of that name in `ACTIVATIONS`. ValueError for an unknown one."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is unknown: wanted one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class Linear(Module):
    """x·Wᵀ + b: (…, fan_in) -> (…, fan_out).

    W is He-uniform, U(±√(6/fan_in)) (He et al. 2015, equation 10); b starts at 0.
    """

    def __init__(self, fan_in: int, fan_out: int, *, rng: np.random.Generator, bias: bool = True):
        bound = np.sqrt(6.0 / max(fan_in, 1))
        weight = rng.uniform(-bound, bound, (fan_out, fan_in))
        self.weight = Tensor(weight, requires_grad=True, dtype=np.float32)
        self.bias = Tensor(np.zeros(fan_out, np.float32), requires_grad=True) if bias else None

    def forward(self, x: Operand) -> Tensor:
        return ops.linear(x, self.weight, self.bias)


class MLP(Module):
    """Fully connected layers: (…, sizes[0]) -> (…, sizes[-1]).

    A hidden layer is Linear, then batch norm if asked for, the activation, and dropout with probability
    `dropout`. The last layer is Linear alone; with an `output_activation` it is made like a hidden one,
    with that activation.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        rng: np.random.Generator,
        activation: str = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
        output_activation: str | None = None,
    ):
        if len(sizes) < 2:
            raise ValueError(f"MLP: sizes {tuple(sizes)}, wanted the width of the input and of each layer")
        self.layers = [Linear(fan_in, fan_out, rng=rng) for fan_in, fan_out in pairwise(sizes)]
        last = [] if output_activation is None else [output_activation]
        self.activations = [activation] * (len(sizes) - 2) + last
        for name in self.activations:
            activation_by_name(name)
        self.norms = [BatchNorm1d(n) for n in sizes[1 : 1 + len(self.activations)]] if batch_norm else []
        self.dropout = Dropout(dropout)

    def forward(self, x: Operand) -> Tensor:
        h = as_tensor(x)
        for i in range(len(self.activations)):
            h = self.dropout(self._hidden(h, i))
        return h if len(self.activations) == len(self.layers) else self.layers[-1](h)

    def _hidden(self, x: Tensor, i: int) -> Tensor:
        layer, activation = self.layers[i], self.activations[i]
        if activation == "relu" and not self.norms and layer.bias is not None:
            return ops.linear_relu(x, layer.weight, layer.bias)
        z = layer(x)
        return ACTIVATIONS[activation](self.norms[i](z) if self.norms else z)


class LayerNorm(Module):
    """Each row to mean 0 and variance 1, then scaled and shifted: (…, size) -> the same.

    Ba, Kiros & Hinton 2016.
    """

    def __init__(self, size: int, *, eps: float = 1e-5):
        self.weight = Tensor(np.ones(size, np.float32), requires_grad=True)
        self.bias = Tensor(np.zeros(size, np.float32), requires_grad=True)
        self.eps = eps

    def forward(self, x: Operand) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, eps=self.eps)


class BatchNorm1d(Module):
    """Each column to mean 0 and variance 1, then scaled and shifted: (B, size) -> the same.

    In training the statistics are the batch's, and running averages of them (the variance unbiased) are
    kept for evaluation. Couples samples, so a batch is not cut into slices. Ioffe & Szegedy 2015.
    """

    buffers: ClassVar = ("running_mean", "running_var")
    couples_samples: ClassVar = True

    def __init__(self, size: int, *, eps: float = 1e-5, momentum: float = 0.1):
        self.weight = Tensor(np.ones(size, np.float32), requires_grad=True)
        self.bias = Tensor(np.zeros(size, np.float32), requires_grad=True)
        self.running_mean = np.zeros(size, np.float32)
        self.running_var = np.ones(size, np.float32)
        self.eps = eps
        self.momentum = momentum

    def forward(self, x: Operand) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if not self.training:
            return ops.normalize(x, self.weight, self.bias, mean=mean, var=var, eps=self.eps)
        return ops.batch_norm(
            x,
            self.weight,
            self.bias,
            running_mean=mean,
            running_var=var,
            momentum=self.momentum,
            eps=self.eps,
        )


class Dropout(Module):
    """x / (1 - p) or, with probability p, 0, while training; x in evaluation.

    Draws from the open `random_stream` of the thread; RuntimeError without one.
    """

    def __init__(self, p: float):
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p is {p}, wanted 0 <= p < 1")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, p=self.p, rng=current_stream()) if self.training and self.p else x


class InBatchSoftmax(Module):
    """`losses.in_batch_softmax` of vectors, as a layer because it couples samples: (B, D), (B, D) -> ().

    scores = queries @ itemsᵀ / temperature.
    """

    couples_samples: ClassVar = True

    def __init__(self, *, temperature: float = 1.0):
        self.temperature = temperature

    def forward(self, queries: Tensor, items: Tensor, log_q: Operand | None = None) -> Tensor:
        return losses.in_batch_softmax(queries @ items.T / self.temperature, log_q=log_q)
