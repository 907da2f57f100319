"""Exchange: ids to the shards, vectors home, gradients back; one message each for all collections of a model.

    dist = exchange.input_dist(kjt)          ids go to the ranks that hold their rows
    looked = exchange.look_up(dist)          shards pool, vectors come home
    grads = exchange.row_grads(dist, slabs)  gradients of the vectors go back, and become RowGrads

All three are collective: every rank calls them, in the same order. `input_dist` may run ahead, on a thread
and a channel of its own. What a rank holds whole, it looks up as if there were no shards.

A row's gradient is summed where the row is, over the columns of the output and then over the samples of all
ranks in their order: as without shards, whatever the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.tensor import Gradients, Tensor
from tesserec.autograd.workers import parallel_map
from tesserec.embeddings.allocation import aligned
from tesserec.embeddings.jagged import JaggedError, KeyedJaggedTensor
from tesserec.embeddings.kernels.lookup import pool_lanes
from tesserec.embeddings.kernels.shared import copy_bags
from tesserec.embeddings.pool import Pool
from tesserec.embeddings.spans import Span, even_spans
from tesserec.sharding.codecs import Codecs
from tesserec.sharding.comm import Comm
from tesserec.sharding.dist import Blocks, Dist, joined, lay_out_all, send_ids, send_vectors
from tesserec.sharding.kernels import vectors as kernels
from tesserec.sharding.kernels.route import first_id
from tesserec.sharding.layout import Layout
from tesserec.sharding.shards import Shards
from tesserec.sharding.slabs import LookedUp, Output, Slabs
from tesserec.sharding.timeline import span
from tesserec.sharding.way_back import WayBack, through

Array = npt.NDArray[Any]

_LEAST = 1 << 18  # elements of rows that are worth a task of their own


class Exchange:
    """The three stages of the sharded lookup, for collections that are given the same batches.

    comm: the usual channel; each stage may be given another. codecs: how vectors and gradients travel. cut:
    into what the lanes of a pool are cut, to be looked up one after the other; usually not at all.
    """

    def __init__(self, shards: Sequence[Shards], comm: Comm, *, codecs: Codecs | None = None):
        """shards: of each collection."""
        self.shards, self.comm, self.codecs = list(shards), comm, codecs or Codecs()
        self.bitwise = any(part.bitwise for part in self.shards)
        if self.bitwise and not self.codecs.are_exact:
            raise ValueError(f"bitwise: {self.codecs} change bits; wanted fp32 both ways")
        self.layout = Layout(shards, comm.rank, comm.size)
        self.wiring = self.layout.wiring
        self.way_back = WayBack(self.layout, self.codecs, comm.size)
        self.cut: Callable[[Pool, Array], Iterable[Array]] = whole

    @property
    def may_run_ahead(self) -> bool:
        """Whether `input_dist` reads no parameter: not so where weights of ids are learned."""
        return all(part.processor is None for part in self.shards)

    def input_dist(self, kjt: KeyedJaggedTensor, comm: Comm | None = None) -> Dist:
        """The part of a batch that this rank has, its ids sent to the shards."""
        with span("input_dist"):
            bounds = [part.bind(kjt) for part in self.shards]
            if self.bitwise and any(bound.inverse or bound.weights for bound in bounds):
                raise JaggedError(
                    "bitwise: the batch has shared bags or weights that get a gradient, whose sums depend on "
                    "how samples are shared out: expand() the batch, or do without bitwise"
                )
            dist = send_ids(self.wiring, self.layout.arriving, kjt, bounds, comm or self.comm)
            lay_out_all(dist, [dtype.itemsize for dtype in self.layout.dtypes])
            return dist

    def look_up(self, dist: Dist, comm: Comm | None = None) -> LookedUp:
        """The vectors of the batch of this rank, from all shards."""
        with span("look_up"):
            outputs = self._outputs(dist)
            lanes, shared = self._aimed(dist, outputs)
            buffers = self._pooled(dist, lanes)
            if self.wiring.is_needed:
                self._receive(dist, lanes, buffers, comm or self.comm)
            for k, bags in shared.items():
                output = outputs[self.layout.outlets[self.layout.outlet_of[k]]].values
                copy_bags(bags, dist.inverse[k], output[:, self.layout.columns_of(k)])
            return LookedUp(dist.kjt.keys, dist.kjt.batch_size, outputs)

    def row_grads(self, dist: Dist, slabs: Mapping[Tensor, Slabs], comm: Comm | None = None) -> Gradients:
        """{pool: RowGrad} of what is here, from the gradients of all ranks' outputs, {outlet: Slabs}.

        And the gradients of this rank's learned weights, or of what they were computed from.
        """
        return through(self.gradients(dist, slabs, comm))

    def gradients(self, dist: Dist, slabs: Mapping[Tensor, Slabs], comm: Comm | None = None) -> Gradients:
        """The same, but of learned weights themselves."""
        with span("row_grads"):
            return self.way_back.gradients(dist, slabs, comm or self.comm)

    def _outputs(self, dist: Dist) -> dict[Tensor, Output]:
        """An array for each output; zeros if vectors are to be added."""
        found: dict[Tensor, Output] = {}
        make = np.zeros if self.wiring.is_needed else np.empty
        for part, bound in zip(self.shards, dist.bounds, strict=True):
            if part.is_pooled:
                found[part.outlets[0]] = Output(aligned(bound.shape, part.dtype, make))
                continue
            kjt = bound.held[0]
            for k, reader in enumerate(part.readers):
                outlet, bags = part.outlets[part.output[k]], bound.replaced.get(k, kjt[reader.feature])
                shape = int(bound.lanes["count"][k]), reader.width
                found[outlet] = Output(aligned(shape, part.dtype, make), 0, bags)
        return found

    def _aimed(self, dist: Dist, outputs: Mapping[Tensor, Output]) -> tuple[Array, dict[int, Array]]:
        """(the lanes with `grad` where their bags are to be written, {reader: its shared bags})."""
        lanes, shared, layout = dist.lanes.copy(), {}, self.layout
        addresses, strides = np.array([_place(outputs[outlet].values) for outlet in layout.outlets]).T
        lanes["grad"] = addresses[layout.outlet_of] + layout.shift
        lanes["stride"] = strides[layout.outlet_of]
        for k in dist.inverse:
            part, reader = layout.readers[k]
            shared[k] = np.zeros((int(lanes["bags"][k]), part.readers[reader].width), part.dtype)
            lanes["grad"][k], lanes["stride"][k] = _place(shared[k])
        return lanes, shared

    def _pooled(self, dist: Dist, lanes: Array) -> list[Array]:
        """Look up all that is here -> for each dtype, the vectors to send."""
        arrived, buffers = dist.arrived.copy(), []
        arrived["mean"] *= 1 - dist.got["cut"]
        arrived["weights"] *= 1 - dist.got["apart"]
        arrived["stride"] = dist.got["width"]
        for dtype in self.layout.dtypes:
            mine = (dist.got["itemsize"] == dtype.itemsize) & (dist.got["silent"] == 0)
            buffer = np.empty((dist.got["bags"] * dist.got["width"])[mine].sum(), dtype)
            arrived["grad"][mine] = buffer.ctypes.data + dist.got["vectors"][mine] * dtype.itemsize
            buffers.append(buffer)
        direct, loud = self.layout.direct_lanes(lanes), dist.got["silent"] == 0
        for p, pool in enumerate(self.layout.pools):
            mine = arrived[loud & (self.layout.arriving_pool == p)]
            for part in self.cut(pool, joined([mine, direct[self.layout.direct_pool == p]])):
                _pool(pool.stored, part)
        return buffers

    def _receive(self, dist: Dist, lanes: Array, buffers: Sequence[Array], comm: Comm) -> None:
        """Send the vectors home, and add those that come to the output."""
        apart = self._pools_of_one(dist)
        target = lanes.copy()
        for k, rows in apart.items():
            target["grad"][k], target["stride"][k] = _place(rows)
        for dtype, buffer in zip(self.layout.dtypes, buffers, strict=True):
            there, back = (Blocks.of(wires, dtype, silent=False) for wires in (dist.got, dist.sent))
            vectors = send_vectors(buffer, there, back, self.codecs.for_values, comm)
            self._add(dist, target, vectors)
        for k, rows in apart.items():
            _pool_apart(rows, lanes[k : k + 1].copy())

    def _add(self, dist: Dist, lanes: Array, vectors: Array) -> None:
        def add(part: Span) -> None:
            kernels.add_vectors(
                dist.sent, self.wiring.order, lanes, vectors, dist.places, dist.origins, *part
            )

        parallel_map(add, self.wiring.order_spans(dist.sent["bags"]))

    def _pools_of_one(self, dist: Dist) -> dict[int, Array]:
        """{reader: room for a vector for each of its ids}, of those whose ids travel apart."""
        return {
            k: np.empty((int(dist.lanes["count"][k]), part.readers[reader].width), part.dtype)
            for k in self.layout.apart
            for part, reader in (self.layout.readers[k],)
        }


def whole(pool: Pool, lanes: Array) -> Iterable[Array]:
    """The lanes in one piece."""
    return (lanes,)


def _place(rows: Array) -> tuple[int, int]:
    """(address, items from one row to the next) of a (N, D) array."""
    return rows.ctypes.data, rows.strides[0] // rows.itemsize


def _pool(rows: Array, lanes: Array) -> None:
    """Look up all bags of `lanes` in (R, D) rows, on all threads."""
    bags = int(lanes["bags"].sum())
    elements = int(lanes["count"].sum()) * rows.shape[1]
    spans = even_spans(bags, max(1, bags * _LEAST // max(1, elements)))
    parallel_map(lambda part: pool_lanes(rows, lanes, *part), spans)


def _pool_apart(rows: Array, lane: Array) -> None:
    """The bags of a lane, from the rows of its ids, (L, D): as the kernel without shards pools them."""
    first = first_id(lane)
    ids = np.arange(first + len(rows) + 1, dtype=np.uint32)
    lane["ids"], lane["narrow"], lane["first_row"], lane["table"] = ids.ctypes.data, 1, -first, 0
    _pool(rows, lane)
