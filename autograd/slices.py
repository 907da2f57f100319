"""Gradients of the slices of a batch, summed in slice order by all threads: the same bits for any number.

Numbers in a row are cut into pieces of a fixed size, which the worker threads share.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tesserec.autograd.kernels.optim import add_in_order
from tesserec.autograd.tensor import Array, Gradients, Tensor
from tesserec.autograd.workers import parallel_map

PIECE = 1 << 16  # numbers that one thread works on at a time: a quarter of its L2 cache


def pieces(size: int) -> list[slice]:
    """range(size) in pieces for the worker threads."""
    return [slice(lo, min(lo + PIECE, size)) for lo in range(0, size, PIECE)]


def sum_of_slices(parts: Sequence[Gradients]) -> Gradients:
    """The sum of the slices' gradients, leaf by leaf, in slice order.

    Takes the gradients over: arrays of the first are added to.
    """
    total: Gradients = {}
    terms: dict[Tensor, list[Array]] = {}
    for grads in parts:
        for leaf, grad in grads.items():
            if isinstance(grad, np.ndarray):
                terms.setdefault(leaf, []).append(np.asarray(grad, order="C"))
            else:
                total[leaf] = total[leaf] + grad if leaf in total else grad
    _add_to_first(list(terms.values()))
    return total | {leaf: arrays[0] for leaf, arrays in terms.items()}


def _add_to_first(sums: Sequence[Sequence[Array]]) -> None:
    """first += each of the others, one after the other, for packed arrays of one shape and type."""
    work = [
        (first.reshape(-1), np.array([_address(array) for array in others]), piece)
        for first, *others in sums
        if others
        for piece in pieces(first.size)
    ]
    parallel_map(lambda item: add_in_order(item[1], item[2].start, item[2].stop, item[0]), work)


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])
