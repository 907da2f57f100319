"""Gradients on their way back along the tape: what each tensor has got so far, and whose are final."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tesserec.autograd.tensor import Array, Gradients, Node, Piece, Take, Tensor, as_array


class Sums:
    """The sums so far, added to in place where the array is our own."""

    __slots__ = ("grads", "owned")

    def __init__(self, grads: Gradients):
        self.grads = grads
        self.owned: set[Tensor] = set()

    def take(self, tensor: Tensor) -> Any:
        self.owned.discard(tensor)
        return self.grads.pop(tensor)

    def add(self, tensor: Tensor, g: Any, node: Node) -> None:
        if isinstance(g, Piece):
            g.add_to(self._buffer(tensor))
            return
        g = as_array(g)
        _check(g, tensor, node)
        so_far = self.grads.get(tensor)
        if so_far is None:
            self.grads[tensor] = g
        elif tensor in self.owned:
            so_far += g
        else:
            self.grads[tensor] = as_array(so_far + g)
            if isinstance(g, np.ndarray):
                self.owned.add(tensor)

    def _buffer(self, tensor: Tensor) -> Array:
        """An array of our own that holds the sum so far."""
        if tensor not in self.owned:
            so_far = self.grads.get(tensor)
            self.grads[tensor] = np.zeros_like(tensor.data) if so_far is None else np.array(so_far)
            self.owned.add(tensor)
        buffer: Array = self.grads[tensor]
        return buffer

    def final(self, leaf: Tensor) -> Any:
        """The leaf's gradient; a view of another array copied."""
        g = self.grads[leaf]
        return g.copy() if isinstance(g, np.ndarray) and g.base is not None else g

    def finish(self) -> Gradients:
        """What is left, the leaves'."""
        return {leaf: self.final(leaf) for leaf in self.grads}


class Offers:
    """Offers each leaf's gradient when no node is left that could add to it."""

    def __init__(self, order: Sequence[Tensor], sums: Sums, take: Take):
        self.sums, self.take = sums, take
        self.uses = Counter(leaf for tensor in order for leaf in _leaves(tensor.node))

    def early(self, node: Node) -> Take | None:
        """For a joint node to offer those of leaves that only it is still to add to."""
        if node.joint is None:
            return None
        alone = {leaf for leaf in _leaves(node) if self.uses[leaf] == 1 and leaf not in self.sums.grads}

        def offer(leaf: Tensor, g: Any) -> bool:
            if leaf not in alone:
                return False
            self.uses[leaf] = 0  # it will not be offered again
            return self.take(leaf, g)

        return offer

    def after(self, node: Node) -> None:
        """Offer what became final with this node."""
        for leaf in _leaves(node):
            self.uses[leaf] -= 1
            if not self.uses[leaf] and leaf in self.sums.grads and self.take(leaf, self.sums.final(leaf)):
                del self.sums.grads[leaf]


def _leaves(node: Node | None) -> Iterator[Tensor]:
    """The parents that no op made."""
    return (parent for parent in (node.parents if node else ()) if parent is not None and parent.node is None)


def _check(g: Any, tensor: Tensor, node: Node) -> None:
    if isinstance(g, np.ndarray) and (g.shape != tensor.shape or g.dtype != tensor.dtype):
        raise RuntimeError(
            f"a pullback of op {node.name!r} returned {g.dtype} {g.shape} for an argument of {tensor.dtype} "
            f"{tensor.shape}: the op is wrong"
        )
