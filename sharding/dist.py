"""Dist: a batch whose ids have gone to the ranks that hold their rows; and how vectors travel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.tensor import Tensor
from tesserec.autograd.workers import parallel_map
from tesserec.embeddings.jagged import KeyedJaggedTensor
from tesserec.embeddings.lookup import Bound
from tesserec.embeddings.spans import Span, weighted_spans
from tesserec.sharding.codecs import Codec
from tesserec.sharding.comm import Comm
from tesserec.sharding.kernels import route as kernels
from tesserec.sharding.kernels.vectors import lay_out_vectors
from tesserec.sharding.route import Wiring

Array = npt.NDArray[Any]

LEAST_IDS = 1 << 13  # that are worth a task of their own


@dataclass(frozen=True, eq=False)
class Dist:
    """A batch on its way through an exchange.

    bounds:    for each collection, its bags as they are here. lanes: LANE, those of all of them.
    sent, got: WIRE, with where everything lies.
    places, origins: which bag, and which id, of its lane each of `sent` is; see `kernels.route.pack_wires`.
    arrived:   LANE for each wire of `got`. held: what they give addresses of.
    """

    kjt: KeyedJaggedTensor
    bounds: Sequence[Bound]
    lanes: Array
    sent: Array
    got: Array
    places: Array
    origins: Array
    arrived: Array
    held: tuple[Any, ...]

    @cached_property
    def inverse(self) -> dict[int, Array]:
        """{reader: which of its bags each sample has}, of those whose bags are shared."""
        return {k: index for first, bound in self._numbered for k, index in _shift(bound.inverse, first)}

    @cached_property
    def weights(self) -> dict[int, Tensor]:
        """{reader: its weights}, of those whose weights get a gradient."""
        return {k: weights for first, bound in self._numbered for k, weights in _shift(bound.weights, first)}

    @cached_property
    def _numbered(self) -> list[tuple[int, Bound]]:
        """The bounds, each with the number of its first reader."""
        ends = np.cumsum([0, *(len(bound.lanes) for bound in self.bounds)]).tolist()
        return list(zip(ends, self.bounds, strict=False))


def _shift(found: Any, first: int) -> list[tuple[int, Any]]:
    return [(first + k, item) for k, item in found.items()]


def send_ids(
    wiring: Wiring, template: Array, kjt: KeyedJaggedTensor, bounds: Sequence[Bound], comm: Comm
) -> Dist:
    """The batch whose bags are `bounds`, its ids sent along the wires. template: LANE for what arrives."""
    lanes = joined([bound.lanes for bound in bounds])
    sent, got, none = wiring.sent.copy(), wiring.got.copy(), np.empty(0, np.uint32)
    if not wiring.is_needed:
        return Dist(kjt, bounds, lanes, sent, got, none, none, template.copy(), ())
    spans = weighted_spans(np.cumsum(lanes["count"] + 1), LEAST_IDS)
    to_wires = lanes, wiring.routes, wiring.bands, sent
    parallel_map(lambda span: kernels.count_wires(*to_wires, *span), spans)
    _send_counts(sent, got, comm)
    sizes, arriving = np.zeros((2, comm.size), np.int64)
    kernels.lay_out(sent, sizes)
    kernels.lay_out(got, arriving)
    sent["place"], sent["origin"] = firsts(sent["bags"]), firsts(sent["ids"])
    message, places = np.empty(sizes.sum(), np.uint8), np.empty(sent["bags"].sum(), np.uint32)
    traced = sent["apart"].any() or any(bound.weights for bound in bounds)
    origins = np.empty(sent["ids"].sum(), np.uint32) if traced else none
    parallel_map(lambda span: kernels.pack_wires(*to_wires, message, places, origins, *span), spans)
    found, _ = comm.all_to_all(message, sizes.tolist(), arriving.tolist())
    return Dist(kjt, bounds, lanes, sent, got, places, origins, *_unpacked(template, got, found))


def _send_counts(sent: Array, got: Array, comm: Comm) -> None:
    """Tell each rank what will come: the bags, ids and flags of each wire."""
    names = ["bags", "ids", "flags"]
    counts = np.stack([sent[name] for name in names], axis=1).astype(np.uint32)
    there, back = (3 * np.bincount(wires["peer"], minlength=comm.size) for wires in (sent, got))
    found, _ = comm.all_to_all(counts.reshape(-1), there.tolist(), back.tolist())
    for name, column in zip(names, found.reshape(-1, 3).T, strict=True):
        got[name] = column


def _unpacked(template: Array, wires: Array, message: Array) -> tuple[Array, tuple[Any, ...]]:
    """(LANE for each wire that has arrived, what they give addresses of)."""
    lanes, flags = template.copy(), wires["flags"]
    num_offsets = np.where(flags & 15, wires["bags"] + 1, 0)
    num_numbers = np.where(wires["id_bytes"] < 4, wires["ids"], 0)
    num_numbers += np.where(np.isin(flags >> 4 & 15, (1, 2)), wires["bags"], 0)
    wires["place"], wires["origin"] = firsts(num_offsets), firsts(num_numbers)
    counting = np.arange(wires["bags"].max(initial=0) + 1)
    offsets, numbers = np.empty(num_offsets.sum(), np.int64), np.empty(num_numbers.sum(), np.uint32)

    def unpack(span: Span) -> None:
        kernels.unpack_wires(wires, message, counting, offsets, numbers, lanes, *span)

    parallel_map(unpack, weighted_spans(np.cumsum(wires["ids"] + 1), LEAST_IDS))
    return lanes, (message, counting, offsets, numbers)


def joined(parts: Sequence[Array]) -> Array:
    """One after the other, of one type of records; numpy takes ten times as long over their fields."""
    kind = parts[0].dtype
    found: Array = np.concatenate([part.view(np.dtype((np.void, kind.itemsize))) for part in parts])
    return found.view(kind)


def firsts(counts: Array) -> Array:
    """Where each begins if they lie one after the other."""
    ends: Array = np.cumsum(counts)
    return ends - counts


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """The vectors of K wires, one wire after the other: rows (K,) by widths (K,), from or to peers (K,)."""

    rows: Array
    widths: Array
    peers: Array

    @classmethod
    def of(cls, wires: Array, dtype: np.dtype[Any], *, silent: bool) -> Blocks:
        """Those with elements of `dtype`; silent: also of wires that only gradients travel on."""
        mine = (wires["itemsize"] == dtype.itemsize) & (silent | (wires["silent"] == 0))
        return cls(wires["bags"][mine], wires["width"][mine], wires["peer"][mine])

    def sizes(self, num_ranks: int, codec: Codec | None = None) -> list[int]:
        """Items, or bytes in the code, from or to each rank."""
        sizes = self.rows * self.widths if codec is None else codec.bytes(self.rows, self.widths)
        totals: list[int] = np.bincount(self.peers, sizes, num_ranks).astype(np.int64).tolist()
        return totals

    def where(self, which: Array) -> Blocks:
        """Some of them; which: (K,) bool."""
        return Blocks(self.rows[which], self.widths[which], self.peers[which])


def send_vectors(values: Array, there: Blocks, back: Blocks, codec: Codec, comm: Comm) -> Array:
    """`values`, the blocks `there` one after the other, sent to their ranks -> the blocks `back`.

    They travel in the code, but those that stay here do not: what a rank reads itself has all its bits.
    """
    sizes, arriving = there.sizes(comm.size), back.sizes(comm.size)
    if codec.is_exact or values.dtype != np.float32:
        return comm.all_to_all(values, sizes, arriving)[0]
    found = np.empty(sum(arriving), values.dtype)
    own, place = (slice(sum(n[: comm.rank]), sum(n[: comm.rank + 1])) for n in (sizes, arriving))
    found[place] = values[own]
    there, back = (blocks.where(blocks.peers != comm.rank) for blocks in (there, back))
    data = codec.encode(np.delete(values, own), there.rows, there.widths)
    data, _ = comm.all_to_all(data, there.sizes(comm.size, codec), back.sizes(comm.size, codec))
    others = codec.decode(data, back.rows, back.widths)
    found[: place.start], found[place.stop :] = others[: place.start], others[place.start :]
    return found


def lay_out_all(dist: Dist, itemsizes: Sequence[int]) -> None:
    """Set where the vectors and the gradients of all wires lie among those of their itemsize."""
    for itemsize in itemsizes:
        lay_out_vectors(dist.sent, itemsize)
        lay_out_vectors(dist.got, itemsize)
