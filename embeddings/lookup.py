"""The lookup op: rows of pools gathered into bags. Forward and backward walk the same lanes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.tensor import Node, Tensor, is_grad_enabled, shared
from tesserec.autograd.workers import parallel_map
from tesserec.embeddings.allocation import aligned
from tesserec.embeddings.bags import Ids, JaggedTensor
from tesserec.embeddings.kernels.rows import compute_dtype
from tesserec.embeddings.kernels.shared import add_bags, copy_bags
from tesserec.embeddings.kernels.weights import weight_grads
from tesserec.embeddings.pool import Pool
from tesserec.embeddings.rowgrad import Part, RowGrad
from tesserec.embeddings.spans import Span, even_spans

Array = npt.NDArray[Any]
Gather = Callable[[Array, int, int, Array], None]  # (lanes of a pool, first bag, last + 1, out)

_LEAST = 1 << 18  # elements of rows that are worth a task of their own


@dataclass(frozen=True, slots=True)
class Block:
    """The lanes of one pool, first … last-1, and its width."""

    first: int
    last: int
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """Bags to look up, as kernels see them.

    lanes:    (S,) LANE, those of a pool side by side; blocks: one for each pool.
    shape:    (B, ΣD) of the result.
    held:     the arrays that the lanes give addresses of.
    inverse:  {lane: (B,)} which of the lane's bags each sample has; other lanes have B bags.
    weights:  {lane: its weights} where these get a gradient.
    replaced: {lane: its bags} where they are not those of the batch, because ids were unseen.
    """

    lanes: Array
    blocks: Sequence[Block]
    shape: tuple[int, int]
    held: tuple[Any, ...]
    inverse: Mapping[int, Ids] = field(default_factory=dict)
    weights: Mapping[int, Tensor] = field(default_factory=dict)
    replaced: Mapping[int, JaggedTensor] = field(default_factory=dict)


def lookup(pools: Sequence[Pool], bound: Bound, out: Array | None = None) -> Tensor:
    """(B, ΣD): every lane's pooled rows in its own columns.

    out: where to write, if not to a new array; of the pools' compute type, a row's columns side by side.
    """
    for pool in pools:  # ids were checked against its bounds
        if len(pool) != pool.bounds[-1] or not pool.data.flags.c_contiguous:
            raise RuntimeError(f"the data of {pool!r} was replaced: wanted as many rows, C-contiguous")
    if out is None:
        out = aligned(bound.shape, compute_dtype(pools[0].dtype), np.empty)
    gather_bags([pool.pool_bags for pool in pools], bound, out)
    result = Tensor(out)
    weights = list(dict.fromkeys(bound.weights.values()))
    parents = [leaf if leaf.requires_grad else None for leaf in (*pools, *weights)]
    if is_grad_enabled() and any(parent is not None for parent in parents):
        graded = shared(partial(_graded, bound))
        pullbacks: list[Any] = [
            partial(_row_grad, graded, pool, block) for pool, block in zip(pools, bound.blocks, strict=True)
        ]
        pullbacks += [partial(_weight_grad, graded, pools, bound, tensor) for tensor in weights]
        result.requires_grad, result.node = True, Node("lookup", parents, pullbacks)
    return result


def gather_bags(gathers: Sequence[Gather], bound: Bound, out: Array) -> None:
    """out (B, ΣD) = the bags; gathers: the kernel of each pool, which writes its lanes' columns."""
    lanes, blocks = bound.lanes, list(zip(gathers, bound.blocks, strict=True))
    own = np.array([k not in bound.inverse for k in range(len(lanes))]) if bound.inverse else None

    def gather_own(span: tuple[int, int]) -> None:
        for gather, block in blocks:
            part = slice(block.first, block.last)
            gather(lanes[part] if own is None else lanes[part][own[part]], *span, out)

    def gather_shared(k: int) -> None:
        gather, block = next(item for item in blocks if item[1].first <= k < item[1].last)
        lane = lanes[k : k + 1].copy()
        lane["column"] = 0
        bags = np.empty((lane["bags"][0], block.width), out.dtype)
        gather(lane, 0, len(bags), bags)
        copy_bags(bags, bound.inverse[k], out[:, _columns(lanes[k], block)])

    parallel_map(gather_own, _spans(bound.shape[0], bound))
    parallel_map(gather_shared, list(bound.inverse))


def _spans(bags: int, bound: Bound) -> list[Span]:
    """range(bags) in parts, none with much less than `_LEAST` elements of rows."""
    ids = bound.lanes["count"]
    elements = sum(int(ids[block.first : block.last].sum()) * block.width for block in bound.blocks)
    return even_spans(bags, max(1, bags * _LEAST // max(1, elements)))


def _columns(lane: Any, block: Block) -> slice:
    return slice(lane["column"], lane["column"] + block.width)


def _graded(bound: Bound, g: Array) -> tuple[Array, tuple[Any, ...]]:
    """(lanes that know where the gradients of their bags lie, all that they give addresses of)."""
    if g.strides[1] != g.itemsize or g.strides[0] % g.itemsize:
        g = np.ascontiguousarray(g)
    lanes, sums = bound.lanes.copy(), []
    lanes["grad"] = g.ctypes.data + lanes["column"] * g.itemsize
    lanes["stride"] = g.strides[0] // g.itemsize
    for k, index in bound.inverse.items():
        block = next(block for block in bound.blocks if block.first <= k < block.last)
        total = np.zeros((lanes["bags"][k], block.width), g.dtype)
        add_bags(g[:, _columns(lanes[k], block)], index, total)
        lanes["grad"][k], lanes["stride"][k] = total.ctypes.data, block.width
        sums.append(total)
    return lanes, (g, *sums, *bound.held)


def _row_grad(graded: Any, pool: Pool, block: Block, g: Array) -> RowGrad:
    """The gradient of a pool, which is computed when it is looked at."""
    lanes, held = graded(g)
    return RowGrad(pool.bounds, block.width, g.dtype, [Part(lanes[block.first : block.last], held)])


def _weight_grad(graded: Any, pools: Sequence[Pool], bound: Bound, weights: Tensor, g: Array) -> Array:
    """The gradient of the weights of some lanes, summed over the lanes in order."""
    lanes, _ = graded(g)
    mine = np.array([bound.weights.get(k) is weights for k in range(len(lanes))])
    grad, like = np.zeros(weights.shape, weights.dtype), np.empty(0, g.dtype)

    def add(span: tuple[int, int]) -> None:
        for pool, block in zip(pools, bound.blocks, strict=True):
            part = slice(block.first, block.last)
            weight_grads(pool.stored, lanes[part][mine[part]], *span, like, grad)

    parallel_map(add, _spans(int(lanes["bags"].max(initial=0)), bound))
    return grad
