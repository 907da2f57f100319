"""Gradients of the slices of a batch, summed in the order of a fixed tree: the same bits for any threads.

tree(n slices) = tree(the first n // 2) + tree(the others). So the sums of 2, 4, … parts of a batch, each with
as many slices, are the branches of the tree of the whole: ranks that share out a batch add the same numbers
in the same order as one that has all of it. Numbers in a row are cut into pieces of a fixed size, which the
worker threads share.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.kernels.optim import add_by_tree
from tesserec.autograd.tensor import Array, Gradients
from tesserec.autograd.workers import parallel_map

PIECE = 1 << 16  # numbers that one thread works on at a time: a quarter of its L2 cache


def pieces(size: int) -> list[slice]:
    """range(size) in pieces for the worker threads."""
    return [slice(lo, min(lo + PIECE, size)) for lo in range(0, size, PIECE)]


def sum_of_slices(parts: Sequence[Gradients]) -> Gradients:
    """The sum of the slices' gradients, leaf by leaf: arrays by the tree, other objects in slice order.

    Takes the gradients over: arrays of the first are added to. A slice without a gradient for a leaf counts
    as one of zeros.
    """
    leaves = dict.fromkeys(leaf for grads in parts for leaf in grads)
    total: Gradients = {}
    sums: list[tuple[Array, list[Array | None]]] = []
    for leaf in leaves:
        found = [grads.get(leaf) for grads in parts]
        first: Any = next(grad for grad in found if grad is not None)
        if isinstance(first, np.ndarray):
            terms = [None if grad is None else np.asarray(grad, order="C") for grad in found]
            total[leaf] = first = next(term for term in terms if term is not None)
            sums.append((first.reshape(-1), terms))
        else:
            total[leaf] = functools.reduce(lambda x, y: x + y, (grad for grad in found if grad is not None))
    _add_all(sums)
    return total


def add_slices(terms: Sequence[Array | None], total: Array) -> None:
    """total (n,) = the sum by the tree of packed arrays of its size and type, on this thread; None is 0."""
    held = [term for term in terms if term is not None]
    if len(held) < 2:
        total[...] = held[0].reshape(-1) if held else 0
    else:
        add_by_tree(*_tree(terms), 0, len(total), total)


def _add_all(sums: Sequence[tuple[Array, Sequence[Array | None]]]) -> None:
    """total = the sum of its terms, the first of which it may be, on all threads."""
    work = [
        (*_tree(terms), piece, total)
        for total, terms in sums
        if sum(term is not None for term in terms) > 1
        for piece in pieces(total.size)
    ]
    parallel_map(lambda item: add_by_tree(item[0], item[1], item[2].start, item[2].stop, item[3]), work)


def _tree(terms: Sequence[Array | None]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(addresses, joins) of the arrays among `terms`, as `add_by_tree` takes them."""
    addresses = [_address(term) for term in terms if term is not None]
    return np.array(addresses), _joins(tuple(term is not None for term in terms))


@functools.cache
def _joins(present: tuple[bool, ...]) -> npt.NDArray[np.int64]:
    """After each array that is present, how many branches of the tree it completes as their second half."""
    joins: list[int] = []

    def walk(lo: int, hi: int) -> bool:
        if hi - lo == 1:
            joins.extend([0] * present[lo])
            return present[lo]
        middle = lo + (hi - lo) // 2
        first, second = walk(lo, middle), walk(middle, hi)
        if first and second:
            joins[-1] += 1
        return first or second

    walk(0, len(present))
    return np.array(joins)


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])
