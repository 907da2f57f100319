"""The way back of an exchange: gradients of vectors to the shards, where they become those of pools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.tensor import Gradients, Tensor, backpropagate
from tesserec.autograd.workers import parallel_map
from tesserec.embeddings.kernels.shared import add_bags
from tesserec.embeddings.kernels.weights import weight_grads
from tesserec.embeddings.pool import Pool
from tesserec.embeddings.rowgrad import Part, RowGrad
from tesserec.embeddings.spans import Span
from tesserec.sharding.codecs import Codecs
from tesserec.sharding.comm import Comm
from tesserec.sharding.dist import Blocks, Dist, firsts, joined, send_vectors
from tesserec.sharding.kernels import vectors as kernels
from tesserec.sharding.kernels.route import WEIGHTED, count_ids, first_id
from tesserec.sharding.kernels.vectors import SLAB
from tesserec.sharding.layout import Layout
from tesserec.sharding.shared_rows import Place, SharedRows
from tesserec.sharding.slabs import Slabs

Array = npt.NDArray[Any]


class WayBack:
    """From Slabs of the outputs to RowGrads of the pools that are here."""

    def __init__(self, layout: Layout, codecs: Codecs, num_ranks: int):
        self.layout, self.wiring, self.codecs = layout, layout.wiring, codecs
        self.shared = _shared_rows(layout, num_ranks)
        self.arriving_summed = np.array([piece.is_summed for piece in self.wiring.got_pieces], bool)
        self.direct_summed = np.array([piece.is_summed for piece in self.wiring.direct], bool)

    def gradients(self, dist: Dist, slabs: Mapping[Tensor, Slabs], comm: Comm) -> Gradients:
        """{pool: RowGrad}, and what learned weights, or what made them, get. Collective."""
        table, starts, held = _slab_table(self.layout, dist, slabs)
        arrived, returned = self._returned(dist, table, starts, comm)
        direct, which = self._direct(dist, table, starts)
        found = self._row_grads(dist, arrived, direct, which, (*held, *returned, dist), comm)
        if dist.weights:
            weights = WeightGrads(self.layout, dist, arrived, direct, which)
            found |= weights.sent(comm)
        return found

    def _returned(self, dist: Dist, slabs: Array, starts: Array, comm: Comm) -> tuple[Array, list[Array]]:
        """(the lanes that have arrived, with their gradients; what these give addresses of)."""
        lanes, held = dist.arrived.copy(), []
        lanes["stride"] = dist.got["width"]
        for dtype in self.layout.dtypes if self.wiring.is_needed else ():
            there, back = (Blocks.of(wires, dtype, silent=True) for wires in (dist.sent, dist.got))
            out = np.empty(there.rows @ there.widths, dtype)

            def pack(part: Span, out: Array = out) -> None:
                kernels.pack_grads(dist.sent, self.wiring.order, slabs, starts, dist.places, out, *part)

            parallel_map(pack, self.wiring.order_spans(dist.sent["bags"]))
            grads = send_vectors(out, there, back, self.codecs.for_gradients, comm)
            mine = dist.got["itemsize"] == dtype.itemsize
            lanes["grad"][mine] = grads.ctypes.data + dist.got["grads"][mine] * dtype.itemsize
            held.append(grads)
        return lanes, held

    def _direct(self, dist: Dist, slabs: Array, starts: Array) -> tuple[Array, Array]:
        """(the lanes of what was looked up where it is, cut by slab, with gradients; which each was)."""
        readers = self.layout.direct_reader
        which = np.repeat(np.arange(len(readers)), (starts[1:] - starts[:-1])[readers])
        own = [np.arange(starts[k], starts[k + 1]) for k in readers]
        cut = slabs[np.concatenate([np.empty(0, np.int64), *own])]
        lanes = self.layout.direct_lanes(dist.lanes)[which]
        lanes["offsets"] += 8 * cut["first"]
        lanes["bags"] = cut["last"] - cut["first"]
        lanes["grad"] = cut["grad"] + self.layout.direct_shift[which]
        lanes["stride"] = cut["stride"]
        count_ids(lanes)
        return lanes, which

    def _row_grads(
        self, dist: Dist, arrived: Array, direct: Array, which: Array, held: tuple[Any, ...], comm: Comm
    ) -> Gradients:
        """In the order of samples: what came from ranks before this one, its own, what came from the rest."""
        before = dist.got["peer"] < comm.rank

        def in_order(of_wires: Array, of_direct: Array) -> Array:
            return joined([of_wires[before], of_direct, of_wires[~before]])

        lanes = in_order(arrived, direct)
        pool_of = in_order(self.layout.arriving_pool, self.layout.direct_pool[which])
        summed = in_order(self.arriving_summed, self.direct_summed[which])
        pools = self.layout.pools
        parts = [[Part(lanes[(pool_of == p) & ~summed], held)] for p in range(len(pools))]
        if self.shared:
            own = [_row_grad(q, [Part(lanes[(pool_of == p) & summed], held)]) for p, q in enumerate(pools)]
        for shared in self.shared:
            sums = shared.sum(own, self.codecs.for_gradients, comm)
            parts = [before + after for before, after in zip(parts, sums, strict=True)]
        return {
            pool: _row_grad(pool, mine) for pool, mine in zip(pools, parts, strict=True) if pool.requires_grad
        }


def _row_grad(pool: Pool, parts: list[Part]) -> RowGrad:
    kept = [part for part in parts if len(part.lanes)] or parts[:1]
    return RowGrad(pool.bounds, pool.shape[1], pool.compute_dtype, kept)


def _shared_rows(layout: Layout, num_ranks: int) -> list[SharedRows]:
    """For each type of gradients that any ranks share rectangles of, those of this rank."""
    found: dict[np.dtype[Any], tuple[list[Place], list[int]]] = {}
    summed = ((q.rectangle, layout.readers[q.reader][0]) for q in layout.pieces if q.is_summed)
    for rectangle, part in dict.fromkeys(summed):
        places, numbers = found.setdefault(part.dtype, ([], []))
        numbers.append(len(rectangle.ranks))
        if rectangle in part.place:
            pool, position = part.place[rectangle]
            places.append(Place(rectangle, layout.first_pool(part) + pool, position))
    return [
        SharedRows(places, layout.pools, num_ranks, dtype, most=max(numbers))
        for dtype, (places, numbers) in found.items()
    ]


def _slab_table(
    layout: Layout, dist: Dist, slabs: Mapping[Tensor, Slabs]
) -> tuple[Array, Array, list[Array]]:
    """(SLAB, those of reader k from starts[k] on; starts; the arrays)."""
    tiles, outlet_of, shift = _tiles(layout, dist, slabs), layout.outlet_of.copy(), layout.shift.copy()
    for k, inverse in dist.inverse.items():
        parts = [(first, grad[:, layout.columns_of(k)]) for first, grad in tiles[outlet_of[k]]]
        outlet_of[k], shift[k] = len(tiles), 0
        tiles.append([(0, _of_shared_bags(parts, inverse, int(dist.lanes["bags"][k])))])
    rows = [(i, i + len(g), g.ctypes.data, g.strides[0] // g.itemsize) for mine in tiles for i, g in mine]
    counts = np.array([len(mine) for mine in tiles])
    own = counts[outlet_of]
    starts = np.append(0, np.cumsum(own))
    which = np.arange(starts[-1]) + np.repeat(firsts(counts)[outlet_of] - starts[:-1], own)
    table = np.array(rows, SLAB)[which]
    table["grad"] += np.repeat(shift, own)
    return table, starts, [grad for mine in tiles for _, grad in mine]


def _tiles(layout: Layout, dist: Dist, slabs: Mapping[Tensor, Slabs]) -> list[list[tuple[int, Array]]]:
    """For each outlet, its gradient in parts that tile its rows."""
    found: list[list[tuple[int, Array]]] = [[]] * len(layout.outlets)
    for k, (part, reader) in enumerate(layout.readers):
        i = layout.outlet_of[k]
        if not found[i]:
            rows = dist.kjt.batch_size if part.is_pooled else int(dist.lanes["bags"][k])
            mine = slabs.get(layout.outlets[i], Slabs(()))
            found[i] = mine.tiles(rows, part.widths[part.output[reader]], part.dtype)
    return found


def _of_shared_bags(parts: list[tuple[int, Array]], inverse: Array, num_bags: int) -> Array:
    """(num_bags, D): the gradients of samples, summed over those that share a bag."""
    total = np.zeros((num_bags, parts[0][1].shape[1]), parts[0][1].dtype)
    for first, grad in parts:
        add_bags(grad, inverse[first : first + len(grad)], total)
    return total


class WeightGrads:
    """The gradients of per-id weights: rows · the gradients of their bags, sent back from the shards."""

    def __init__(self, layout: Layout, dist: Dist, arrived: Array, direct: Array, which: Array):
        """arrived, direct, which: see `WayBack`."""
        self.layout, self.dist, self.arrived, self.direct, self.which = layout, dist, arrived, direct, which

    def sent(self, comm: Comm) -> Gradients:
        """{weights: their gradient}, of this rank's. Collective."""
        tensors = list(dict.fromkeys(self.dist.weights.values()))
        grads = {tensor: np.zeros(tensor.shape, tensor.dtype) for tensor in tensors}
        for i, lane in zip(self.which, self.direct, strict=True):
            tensor = self.dist.weights.get(int(self.layout.direct_reader[i]))
            if tensor is not None:
                self._dot(lane, self.layout.direct_pool[i], grads[tensor])
        if self.layout.wiring.is_needed:
            self._receive(grads, comm)
        return dict(grads)

    def _dot(self, lane: Any, pool: int, out: Array) -> None:
        held = self.layout.pools[pool]
        lanes = np.array([lane], lane.dtype)
        weight_grads(held.stored, lanes, 0, int(lane["bags"]), np.empty(0, held.compute_dtype), out)

    def _receive(self, grads: Gradients, comm: Comm) -> None:
        """Send the dots of ids that came from elsewhere back to them, and add those that come."""
        there, back = (_learned(wires, self.dist) for wires in (self.dist.got, self.dist.sent))
        dots = np.zeros(there.rows.sum(), np.float32)
        spans = zip(firsts(there.rows), there.rows, strict=True)
        for lane, pool, (at, n) in zip(self.arrived, self.layout.arriving_pool, spans, strict=True):
            if n:
                self._dot(lane, pool, dots[at : at + n])
        found, _ = comm.all_to_all(dots, there.sizes(comm.size), back.sizes(comm.size))
        places, dist = firsts(back.rows), self.dist
        for j in self.layout.wiring.order:
            wire, n = dist.sent[j], int(back.rows[j])
            if n:
                k = int(wire["reader"])
                ids = dist.origins[wire["origin"] : wire["origin"] + n] + first_id(dist.lanes[k : k + 1])
                grads[dist.weights[k]][ids] += found[places[j] : places[j] + n]


def _learned(wires: Array, dist: Dist) -> Blocks:
    """A number for each id of wires whose weights are learned, none for others."""
    learned = np.isin(wires["reader"], list(dist.weights)) & (wires["flags"] & WEIGHTED > 0)
    ids = np.where(learned & (wires["silent"] == 0), wires["ids"], 0)
    return Blocks(ids, np.ones_like(ids), wires["peer"])


def through(grads: Gradients) -> Gradients:
    """Gradients of leaves, from those of Tensors that may have been computed from them."""
    found: Gradients = {}
    for tensor, g in grads.items():
        computed = isinstance(g, np.ndarray) and tensor.node is not None
        for leaf, grad in (backpropagate(tensor, g) if computed else {tensor: g}).items():
            found[leaf] = found[leaf] + grad if leaf in found else grad
    return found
