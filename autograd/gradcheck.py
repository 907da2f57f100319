"""gradcheck: are the pullbacks of a function the derivatives of its value?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.tensor import Array, Tensor, gradients, no_grad


class GradcheckError(AssertionError):
    """A gradient differs from finite differences; the message names the worst element."""


def gradcheck(
    fn: Callable[..., Tensor],
    inputs: Sequence[Tensor | npt.ArrayLike],
    *,
    eps: float = 1e-6,
    rtol: float = 1e-5,
    atol: float = 1e-7,
    seed: int = 0,
) -> None:
    """Nothing, if the gradient of `fn(*inputs)` equals central differences in every element of every input.

    Arrays are copied to float64. A float64 Tensor that requires a gradient is used as it is and its
    elements are moved to and fro, so the parameters of a Module can be checked:
    `gradcheck(lambda *_: model(x), list(model.parameters()))`. An output of any shape is checked along one
    random direction. `fn` must be smooth within `eps` of the inputs.
    """
    tensors = [_leaf(x, i) for i, x in enumerate(inputs)]
    output = fn(*tensors)
    direction = np.random.default_rng(seed).uniform(0.5, 1.5, output.shape)
    grads = gradients(output, direction)
    worst: tuple[float, str] = (0.0, "")
    for i, tensor in enumerate(tensors):
        analytic = np.asarray(grads.get(tensor, np.zeros(tensor.shape)))
        numeric = _differences(lambda: fn(*tensors), tensor, direction, eps)
        worst = max(worst, _worst(i, analytic, numeric, rtol, atol))
    if worst[0] > 1:
        raise GradcheckError(worst[1])


def _leaf(x: Any, i: int) -> Tensor:
    if not isinstance(x, Tensor):
        return Tensor(np.array(x, np.float64), requires_grad=True)
    if x.dtype != np.float64 or not x.requires_grad or x.node is not None:
        raise ValueError(f"gradcheck: input {i} must be a float64 leaf that requires a gradient, or an array")
    return x


def _differences(fn: Callable[[], Tensor], tensor: Tensor, direction: Array, eps: float) -> Array:
    """d(direction·fn)/d(tensor), element by element."""
    result = np.zeros(tensor.shape)
    with no_grad():
        for index in np.ndindex(tensor.shape):
            here = float(tensor.data[index])
            ends = []
            for moved in (here + eps, here - eps):
                tensor.data[index] = moved
                ends.append(float(np.vdot(direction, fn().data)))
            tensor.data[index] = here
            result[index] = (ends[0] - ends[1]) / (2 * eps)
    return result


def _worst(i: int, analytic: Array, numeric: Array, rtol: float, atol: float) -> tuple[float, str]:
    """How far off the worst element of input `i` is, in units of what is allowed, and the words for it."""
    if not analytic.size:
        return (0.0, "")
    off = np.abs(analytic - numeric) / (atol + rtol * np.abs(numeric))
    off = np.where(np.isfinite(off), off, np.inf)
    at = np.unravel_index(int(off.argmax()), off.shape)
    where = tuple(int(k) for k in at)
    return float(off[at]), (
        f"input {i}, element {where}: the pullback gives {analytic[at]:.9g}, finite differences give "
        f"{numeric[at]:.9g}, {off[at]:.1f} times as far apart as rtol {rtol} and atol {atol} allow"
    )
