"""What a rank finds out about single tables and its memory while it trains; see `measured`."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.workers import num_threads, parallel_map
from tesserec.embeddings.allocation import planning
from tesserec.embeddings.collection import EmbeddingBagCollection, named_collections
from tesserec.embeddings.pool import Pool
from tesserec.embeddings.rowgrad import RowGrad
from tesserec.embeddings.spans import even_spans
from tesserec.embeddings.table_set import TableSet
from tesserec.sharding.codecs import Codec
from tesserec.sharding.dist import Dist
from tesserec.sharding.kernels.route import WEIGHTED
from tesserec.sharding.replicas import touched_rows
from tesserec.train.learner import Learner, Share
from tesserec.train.tables import held_tables

Array = npt.NDArray[Any]
Quantities = dict[str, float]

EVERY = 16  # steps, of which ids and bytes are counted in one
PAGE = 4096


class TableSamples:
    """Ids, bytes and seconds of each table on this rank, from some of the steps.

    A few steps look up and update one table after the other, which changes no bit: rows have one owner each.
    """

    def __init__(self, learner: Learner):
        self.learner = learner
        self.names = _names(learner)
        self.counted = self.timed_steps = 0
        self.counts: dict[str, dict[str, float]] = defaultdict(_zeros)
        self.seconds: dict[str, dict[str, float]] = defaultdict(_zeros)
        self._twins = {} if learner.sharded else dict(_twins(learner))

    def told(self) -> dict[str, Quantities]:
        """{table: {quantity: of a step, on this rank}}.

        ids: that this rank's samples have. vectors: that it gets for them: one for each touched bag and
        rectangle. id_bytes, gradient_bytes: what it sends for them, vector_bytes: what comes. ids_here: that
        it looks up, for whomever. rows: that it updates. lookup_seconds, update_seconds: of these when they
        are done alone; updates of tables that are split by columns, under an optimizer that looks at whole
        rows, are not among them.
        """
        found: dict[str, Quantities] = {}
        for name, counts in self.counts.items():
            found[name] = {key: amount / self.counted for key, amount in counts.items()}
        for name, seconds in self.seconds.items():
            found.setdefault(name, {}).update({k: v / self.timed_steps for k, v in seconds.items()})
        return found

    def count(self, step: int, share: Share) -> None:
        """Count ids and bytes, if it is time."""
        if step % EVERY == 1:
            self.counted += 1
            counted = self._of_batch(share) if share.dist is None else self._of_dist(share.dist)
            for name, key, amount in counted:
                self.counts[name][key] += amount

    @contextmanager
    def timed(self, share: Share) -> Iterator[None]:
        """Inside, a step is learned, table by table."""
        learner, optimizer = self.learner, self.learner.row_optimizer
        self.timed_steps += 1
        before = optimizer.cut
        optimizer.cut = self._updates
        try:
            if learner.sharded is None:
                self._look_up(share)
                yield
            else:
                lookups = learner.sharded.lookups
                whole, lookups.cut = lookups.cut, self._lookups
                try:
                    yield
                finally:
                    lookups.cut = whole
        finally:
            optimizer.cut = before

    def _lookups(self, pool: Pool, lanes: Array) -> Iterable[Array]:
        for t in np.unique(lanes["table"]).tolist():
            with self._clock(self.names[pool, t], "lookup_seconds"):
                yield lanes[lanes["table"] == t]

    def _updates(self, pool: Pool, grad: RowGrad) -> Iterable[RowGrad]:
        for t in range(len(pool.tables)):
            part = grad.only([t])
            if part is not None:
                with self._clock(self.names[pool, t], "update_seconds"):
                    yield part
                self.seconds[self.names[pool, t]]["rows"] += len(touched_rows(part))

    @contextmanager
    def _clock(self, name: str, key: str) -> Iterator[None]:
        clock = time.perf_counter if num_threads() > 1 else time.thread_time  # which others do not disturb
        start = clock()
        yield
        self.seconds[name][key] += clock() - start

    def _look_up(self, share: Share) -> None:
        """Without shards the lookup is in the midst of the model: here it is once more, for the clock."""
        for collection, twin in self._twins.items():
            bound = twin.bind(share.batch.sparse)
            for pool, block in zip(collection.pools, bound.blocks, strict=True):
                for k in range(block.first, block.last):
                    lane = bound.lanes[k : k + 1].copy()
                    lane["column"] = 0
                    out = np.empty((int(lane["bags"][0]), block.width), pool.compute_dtype)
                    with self._clock(self.names[pool, int(lane["table"][0])], "lookup_seconds"):
                        _gather(pool, lane, out)

    def _of_batch(self, share: Share) -> Iterator[tuple[str, str, float]]:
        """(table, quantity, amount) of a batch that stays here."""
        kjt = share.batch.sparse
        for prefix, collection in named_collections(self.learner.model):
            for reader in collection.table_set.readers:
                bags = kjt[reader.feature]
                name, ids = prefix + reader.table.config.name, len(bags.values)
                yield name, "ids", ids
                yield name, "ids_here", ids
                yield name, "vectors", float(np.count_nonzero(np.diff(bags.offsets)))

    def _of_dist(self, dist: Dist) -> Iterator[tuple[str, str, float]]:
        """(table, quantity, amount) of a batch that has been sent out, as this rank sees it."""
        assert self.learner.sharded is not None
        lookups = self.learner.sharded.lookups
        layout, sent, got = lookups.layout, dist.sent, dist.got
        away, loud = sent["peer"] != lookups.comm.rank, sent["silent"] == 0
        forward, backward = lookups.codecs.for_values, lookups.codecs.for_gradients
        amounts = {
            "id_bytes": (sent, _id_bytes(sent) * away),
            "vector_bytes": (sent, _vector_bytes(sent, forward) * (away & loud)),
            "gradient_bytes": (sent, _vector_bytes(sent, backward) * away),
            "vectors": (sent, sent["bags"] * loud),
            "ids_here": (got, got["ids"] * (got["silent"] == 0)),
        }
        direct = dist.lanes[layout.direct_reader]
        for k, (part, reader) in enumerate(layout.readers):
            name = part.prefix + part.readers[reader].table.config.name
            yield name, "ids", float(dist.lanes["count"][k])
            for key, (wires, amount) in amounts.items():
                yield name, key, float(amount[wires["reader"] == k].sum())
            mine = direct[layout.direct_reader == k]
            yield name, "ids_here", float(mine["count"].sum())
            yield name, "vectors", float(mine["bags"].sum())


def _zeros() -> dict[str, float]:
    return defaultdict(float)


def joined(ranks: Sequence[Mapping[str, Quantities]]) -> dict[str, Quantities]:
    """Of all ranks: {table: {quantity: summed over ranks; "busiest_" + quantity: of the rank with most}}."""
    found: dict[str, Quantities] = {}
    for name in sorted({name for tables in ranks for name in tables}):
        mine = [tables[name] for tables in ranks if name in tables]
        keys = dict.fromkeys(key for quantities in mine for key in quantities)
        values = {key: [quantities.get(key, 0.0) for quantities in mine] for key in keys}
        found[name] = {key: float(sum(numbers)) for key, numbers in values.items()}
        busiest = ("ids_here", "lookup_seconds", "update_seconds")
        found[name] |= {f"busiest_{key}": float(max(values[key])) for key in busiest if key in values}
    return found


def _gather(pool: Pool, lane: Array, out: Array) -> None:
    """Look up a lane on all threads."""
    spans = even_spans(len(out), max(1, (len(out) << 18) // max(1, int(lane["count"][0]) * pool.shape[1])))
    parallel_map(lambda span: pool.pool_bags(lane, *span, out), spans)


def _id_bytes(wires: Array) -> Array:
    """Bytes of each wire's ids, lengths, sizes and weights; see `kernels.route`."""
    flags = wires["flags"]
    for_bags = wires["bags"] * ((flags & 15) + (flags >> 4 & 15))
    found: Array = for_bags + wires["ids"] * (wires["id_bytes"] + 4 * (flags & WEIGHTED > 0))
    return found


def _vector_bytes(wires: Array, codec: Codec) -> Array:
    """Bytes of each wire's vectors on their way, in the code where they are float32."""
    found: Array = wires["bags"] * wires["width"] * wires["itemsize"]
    if not codec.is_exact:
        coded = wires["itemsize"] == 4
        found[coded] = codec.bytes(wires["bags"], wires["width"])[coded]
    return found


def _names(learner: Learner) -> dict[tuple[Pool, int], str]:
    """{(pool, position in it): the table's name in plans}, of all that is here."""
    held = list(held_tables(learner.model))
    return {(h.pool, h.pool.tables.index(h.place)): h.table for h in held}


def _twins(learner: Learner) -> Iterator[tuple[Any, TableSet]]:
    """For each collection of pooled bags, its tables without memory, which bind batches and count nothing."""
    for _, collection in named_collections(learner.model):
        if isinstance(collection, EmbeddingBagCollection) and collection.processor is None:
            with planning():
                yield collection, TableSet(collection.table_set.tables, seed=collection.table_set.seed)


class Memory:
    """Resident bytes of this process: before the model, after it, and at most while it learns.

    Pages of files that were mapped since, which data are read from, do not count: they can be given back.
    """

    def __init__(self) -> None:
        self._files, self._before = _status("RssFile"), _status("VmRSS")
        self._after = self._peak = 0

    def built(self) -> None:
        """The model is there."""
        self._after = self._own("VmRSS")
        self.forget_peak()

    def note(self) -> None:
        """Remember the peak until now."""
        self._peak = max(self._peak, self._own("VmHWM"))

    def _own(self, name: str) -> int:
        return _status(name) - max(0, _status("RssFile") - self._files)

    def forget_peak(self) -> None:
        """What comes counts from here on; where the kernel does not let us, what was counts too."""
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def told(self, learner: Learner) -> dict[str, float]:
        """{part: bytes}.

        rows, state, dense: of the tables, of their optimizer, and of dense parameters with their optimizer's
        state, as they are laid out; untouched: of the state, what has no memory yet.
        """
        states = [array for slots in learner.row_optimizer.state.values() for array in slots.values()]
        dense = [p.data for p in learner.dense_optimizer.parameters.values()]
        kept = [array for slots in learner.dense_optimizer.state.values() for array in slots.values()]
        return {
            "baseline": self._before,
            "built": self._after,
            "peak": self._peak,
            "rows": sum(held.pool.data[held.place.rows].nbytes for held in held_tables(learner.model)),
            "state": sum(array.nbytes for array in states),
            "untouched": sum(map(_untouched, states)),
            "dense": sum(array.nbytes for array in (*dense, *kept)),
        }


def resident_bytes() -> int:
    """Of this process."""
    return _status("VmRSS")


def _status(name: str) -> int:
    """Bytes that /proc/self/status gives under `name`; 0 where it does not."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


def _untouched(array: Array) -> int:
    """Bytes of whole pages that were never written; 0 where the kernel does not tell."""
    first, last = -(-array.ctypes.data // PAGE), (array.ctypes.data + array.nbytes) // PAGE
    with suppress(OSError), open("/proc/self/pagemap", "rb", buffering=0) as file:
        file.seek(8 * first)
        pages = np.frombuffer(file.read(8 * max(0, last - first)), np.uint64)
        return int(np.count_nonzero(pages >> np.uint64(62) == 0)) * PAGE
    return 0
