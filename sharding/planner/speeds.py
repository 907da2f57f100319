"""What kernels take on a device: seconds, one method for each, of arrays or numbers.

From the grids that `tesserec plan calibrate` has measured of the device, else from those that its data sheet
gives (`datasheet`). Times are those of one rank, with the threads that are its own, while the other ranks of
its host do the like.

How far back a row was last touched decides where it is found. `reuse` says it for all reads of a table: the
share of reads by reuse distance, the bytes that were touched in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from tesserec.sharding.planner.datasheet import kernels_of
from tesserec.sharding.planner.grids import Curve, Kernels
from tesserec.sharding.planner.row_times import (
    DISTANCES,
    FAR,
    BlockTimes,
    Numbers,
    Real,
    RowTimes,
    at_distances,
    between,
    log_sizes,
    on_curve,
    passes_of,
)
from tesserec.sharding.planner.topology import Device, Link, Topology

__all__ = [
    "DISTANCES",
    "FAR",
    "INTERVALS",
    "TAIL_WIDTH",
    "Classes",
    "Speeds",
    "State",
    "at_distance",
    "passes_of",
]
__all__ += ["radix_passes", "reuse", "speeds_of", "surprise", "tasks_of"]

INTERVALS: Numbers = np.concatenate([[0.0], 10.0 ** np.linspace(0, 13, 105)])  # ids between two of one row


class Classes(Protocol):
    """What is needed of `Frequencies`: rows of each class and their shares of the ids."""

    @property
    def counts(self) -> Numbers: ...

    @property
    def shares(self) -> Numbers: ...


class State(Protocol):
    """What is needed of a `RowOptimizer`."""

    @property
    def name(self) -> str: ...

    @property
    def element_slots(self) -> int: ...

    @property
    def row_slots(self) -> int: ...


def reuse(
    frequencies: Classes, row_bytes: float, ids: float, between: float = 0.0, drift: float = 0.0
) -> Numbers:
    """(K,) share of reads of a table by the distance to the last touch of the same row; K as of DISTANCES.

    ids: of the table in a step, read one after the other; between: bytes of anything else that are touched
    from the end of that to the next step's. Independent draws: t ids ago with density p·exp(-p·t) for a row
    of chance p; meanwhile Σ n·(1 - exp(-p·t)) other rows were read (Fagin 1977; Che et al. 2002).
    drift: `Speeds.drift`, bytes that the rest of the machine brings into a shared cache for each row that hot
    rows save: they pass the time with less traffic than uniform ones, by which distances were measured.
    """
    counts, shares = np.maximum(frequencies.counts, 1e-300), frequencies.shares
    left = np.exp(-np.outer(INTERVALS, shares / counts))  # rows that were not read for so long
    seen = (1 - left) @ counts
    rows = counts.sum()
    even = -rows * np.expm1(-INTERVALS / rows)  # rows that uniform ids would have read
    footprint = row_bytes * seen + drift * np.maximum(even - seen, 0.0)
    reached = left @ shares
    mass, middle = reached[:-1] - reached[1:], np.sqrt(np.maximum(INTERVALS[:-1], 0.5) * INTERVALS[1:])
    near = np.interp(middle, INTERVALS, footprint)
    within = np.maximum(0.0, 1 - middle / max(ids, 1.0))  # the last touch is of the same step
    far = near + between * np.maximum(1.0, middle / max(ids, 1.0))
    found = _by_distance(near, mass * within) + _by_distance(far, mass * (1 - within))
    found[FAR] += max(0.0, 1 - found.sum())
    return found


def at_distance(distance: float) -> Numbers:
    """(K,) all reads at this reuse distance."""
    return _by_distance(np.array([distance]), np.ones(1))


def _by_distance(distances: Numbers, shares: Numbers) -> Numbers:
    """(K,) `shares`, each between the two nearest of DISTANCES."""
    place = np.clip(np.log2(np.maximum(distances, 1.0)) - np.log2(DISTANCES[0]), 0, FAR)
    low = np.minimum(place.astype(int), FAR - 1)
    high = shares * (place - low)
    below, above = np.bincount(low, shares - high, FAR + 1), np.bincount(low + 1, high, FAR + 1)
    return (below + above).astype(np.float64)


class Speeds:
    """Kernel times of a rank on `device`. sharing: ranks that share it, those of a host on a cpu.

    "name" in formulas is a price of `kernels.single`. All are sums of prices, and so linear in counts, where
    sizes of outputs and gradients are given; else those of the piece alone are taken.
    """

    def __init__(self, device: Device, sharing: int = 1):
        self.device = device
        self.sharing = sharing if device.kind == "cpu" else 1
        self.threads = max(1, device.threads // self.sharing)
        self.kernels, self.scale = _chosen(device, self.sharing, self.threads)
        self.price = {name: self.scale * seconds for name, seconds in self.kernels.single.items()}
        self.drift = self.kernels.single.get("drift", 0.0)
        self.rows = {
            kind: RowTimes(curves, self.scale, ITEM_BYTES[kind])
            for kind, curves in self.kernels.lookup.items()
        }
        self.updated = RowTimes(self.kernels.update, self.scale)

    def lookup(
        self,
        ids: Real,
        bags: Real,
        width: Real,
        item_bytes: Real,
        reuse: Any = None,
        tier: str | None = None,
        *,
        out_bytes: Real = None,
        started: bool = False,
    ) -> Any:
        """Rows read and pooled: `start_lookup` + ids · row + bags · ("bag" + 4·width · byte written).

        Bags of several ids have passes · "bag_pass" + vectors · "bag_vector" on top, unless memory is slower.
        What is one task takes what it takes on one thread.

        width: columns of the piece. reuse: (…, K), or None for all from the tier. out_bytes: of the whole
        output that this is a part of. started: so is the lookup, which is started and cut as a whole.
        """
        if started:
            return self._looked_up(ids, bags, width, item_bytes, reuse, tier, out_bytes)
        elements = np.asarray(ids) * width
        found = self._looked_up(ids, bags, width, item_bytes, reuse, tier, out_bytes)
        found = self.start_lookup(elements) + found
        if self._one_thread is None:
            return found
        one = self._one_thread.lookup(ids, bags, width, item_bytes, reuse, tier, out_bytes=out_bytes)
        return np.where(tasks_of(elements) > 1, found, one)

    def start_lookup(self, elements: Real) -> Any:
        """The price "lookup"; where so many elements of rows are several tasks, "fork", to wake threads."""
        return self.price["lookup"] + self.price.get("fork", 0.0) * (tasks_of(elements) > 1)

    def _looked_up(
        self,
        ids: Real,
        bags: Real,
        width: Real,
        item_bytes: Real,
        reuse: Any,
        tier: str | None,
        out_bytes: Real,
    ) -> Any:
        """`lookup` without its start."""
        written = 4.0 * width * self._curve(self.kernels.output, _or(out_bytes, 4.0 * width * bags))
        bag = passes_of(width) * self.price["bag_pass"] + np.asarray(width) // 16 * self.price["bag_vector"]
        several = np.asarray(ids) > np.asarray(bags)
        each = bag * several * bags / np.maximum(ids, 1e-9)
        row = self.row(width, item_bytes, reuse, tier, each)
        return ids * row + bags * (self.price["bag"] + written)

    def update(
        self,
        ids: Real,
        distinct: Real,
        width: Real,
        item_bytes: Real,
        optimizer: State,
        reuse: Any = None,
        tier: str | None = None,
        *,
        state_reuse: Any = None,
        table_rows: Real = None,
        bags: Real = None,
        grad_bytes: Real = None,
    ) -> Any:
        """`sort` + "update" + ids · gradient added + distinct · (row and state, read and written).

        reuse, state_reuse: (…, K) of rows, and of states, which is that of rows unless given; rows may have
        been touched last by the lookup of the step. grad_bytes: of the gradients that ids read, 4·width·bags
        unless given. Runs of unlike length cost "run" on top, by `surprise`.
        """
        bags = _or(bags, ids)
        added = self._by_width(self.kernels.gradient, width, _or(grad_bytes, 4.0 * width * bags))
        runs = self.price["run"] * surprise(ids / np.maximum(distinct, 1e-9)) * (np.asarray(distinct) > 0)
        row = (
            runs + self.updated.seconds(width * item_bytes, reuse) + self._rule(optimizer, width, item_bytes)
        )
        row = row + self._state(optimizer, width, _or(state_reuse, reuse))
        if tier not in (None, self.device.tiers[0].name):
            state = 4.0 * (optimizer.element_slots * width + optimizer.row_slots)
            row = 2 * (self._moved(width * item_bytes, tier) + self._moved(state, tier) * (state > 0))
        sort = self.sort(ids, table_rows, bags, distinct)
        return sort + self.price["update"] + ids * added + distinct * row

    def sum_rows(self, ids: Real, distinct: Real, width: Real, *, table_rows: Real = None) -> Any:
        """Gradients of `ids` sorted and summed into an array of `distinct` rows: what replicas tell."""
        added = self._by_width(self.kernels.gradient, width, 4.0 * width * ids)
        row = self.updated.seconds(4.0 * width, at_distance(DISTANCES[0]))
        return self.sort(ids, table_rows) + self.price["update"] + ids * added + distinct * row

    def sort(self, ids: Real, table_rows: Real = None, bags: Real = None, distinct: Real = None) -> Any:
        """ids grouped by row: "sort" + ids · ("sort_id" + passes · "sort_pass") + bags · "sort_bag".

        table_rows: 10⁶ unless given. With `distinct` as well, ids that are more alike than uniform ones cost
        up to "sort_skew" on top: counting the same digit again waits for the count before.
        """
        each = self.price["sort_id"] + self.price["sort_pass"] * radix_passes(_or(table_rows, 1e6))
        if table_rows is not None and distinct is not None:
            even = table_rows * -np.expm1(-np.asarray(ids) / table_rows)
            each = each + self.price["sort_skew"] * np.clip(1 - distinct / np.maximum(even, 1e-9), 0, 1)
        return self.price["sort"] + ids * each + _or(bags, ids) * self.price["sort_bag"]

    def pack_ids(self, ids: Real, bags: Real, wires: Real = 1, peers: Real = 1) -> Any:
        """A batch's ids counted and packed: "ids" + wires · "ids_wire" + SENDER · (ids · "ids_id" + …).

        wires: pairs of a piece and a rank that holds it. Measured: all work of `input_dist`, but what
        `exchange` takes.
        """
        each = ids * self.price["ids_id"] + bags * self.price["ids_bag"]
        return self.price["ids"] + wires * self.price["ids_wire"] + SENDER * each

    def unpack_ids(self, ids: Real, bags: Real, wires: Real = 1) -> Any:
        """Packed ids that arrived made readable: the rest of what an id and a bag cost."""
        return (1 - SENDER) * (ids * self.price["ids_id"] + bags * self.price["ids_bag"])

    def add_vectors(self, vectors: Real, width: Real, wires: Real = 0) -> Any:
        """Vectors that arrived added to the output: all work of `look_up` but `lookup` and `exchange`."""
        each = self.price["vectors_bag"] + width * self.price["vectors_number"]
        start = max(0.0, self.price["vectors"] - self.price["lookup"])
        return start + wires * self.price["vectors_wire"] + vectors * each

    def pack_grads(self, vectors: Real, width: Real, wires: Real = 0) -> Any:
        """Gradients of bags gathered for the wire: all work of `row_grads` but `exchange` and `sum_rows`."""
        each = self.price["grads_bag"] + width * self.price["grads_number"]
        return self.price["grads"] + wires * self.price["grads_wire"] + vectors * each

    def codec(self, values: Real, name: str) -> Any:
        """`values` numbers encoded, or decoded, for the wire; 0 for fp32."""
        return values * (0.0 if name == "fp32" else self.price[f"codec_{name}"])

    def gemm(self, flops: Real) -> Any:
        """Matrix products of so many operations, on all threads; a multiplication and an addition are two."""
        return flops * self.price["flop"] / self.threads

    def dense(self, flops: Real, samples: Real, seconds: float | None = None) -> Any:
        """Forward and backward of so many samples: 3·flops each, or `seconds` each on one thread, measured.

        That is with nobody else around; beside others a product takes longer, and so does this.
        """
        if seconds is None:
            return self.gemm(3.0 * flops * samples)
        alone = next((k.single["flop"] for k in self.device.kernels if k.ranks == k.threads == 1), None)
        slower = max(1.0, self.price["flop"] / alone) if alone else 1.0
        return samples * seconds / self.threads * slower

    def dense_update(self, parameters: Real, state_numbers: Real) -> Any:
        """Gradient read, parameters and `state_numbers` for each read and written; linear beyond two."""
        prices = [self.price[f"dense_{n}"] for n in range(3)]
        beyond = np.maximum(np.asarray(state_numbers) - 2, 0) * (prices[2] - prices[1])
        return parameters * (np.interp(state_numbers, range(3), prices) + beyond)

    def sum_slices(self, parameters: Real, slices: Real) -> Any:
        """Dense gradients of `slices` added up, by one thread."""
        return parameters * (self.price["slice_copy"] + (slices - 1) * self.price["slice_sum"])

    def read(self, rows: Real, ids: Real, columns: Real) -> Any:
        """A batch decoded: rows · ("read_row" + columns · "read_column") + ids · "read_id"."""
        each = self.price["read_row"] + columns * self.price["read_column"]
        return self.price["read"] + rows * each + ids * self.price["read_id"]

    def exchange(self, size: Real, peers: Real, link: Link) -> Any:
        """An all_to_all in which a rank sends `size` bytes in all to, or gets from, so many `peers`.

        latency + call for each further peer + size · ranks_per_port / (bandwidth · share); or as measured.
        """
        peers = np.asarray(peers)
        if link.curve is None:
            wire = link.latency + size * link.ranks_per_port / (link.bandwidth * link.share)
        else:
            wire = on_curve(link.curve, size)
        return np.where(peers > 0, wire + np.maximum(peers - 1, 0) * link.call, 0.0)

    def all_reduce(self, size: Real, ranks: Real, link: Link) -> Any:
        """The sum over ranks of `size` bytes: a reduce_scatter and an all_gather of (W-1)/W of them each."""
        part = size * (ranks - 1) / np.maximum(ranks, 1)
        return 2 * self.exchange(part, ranks - 1, link) + size / 4 * self.price["slice_sum"]

    def factor(self, stage: str) -> float:
        """What measured steps took of this stage as a multiple of what kernels say; 1 where nobody measured.

        First those of the calibration's own trial, "in_step_…", then those of `plan compare --refit`.
        """
        return self.kernels.single.get(f"in_step_{stage}", 1.0) * self.device.factors.get(stage, 1.0)

    @property
    def rest(self) -> float:
        """Seconds of a step that are in no stage: between them, and waiting for the others' delays."""
        return self.kernels.single.get("rest", 0.0) + self.device.step

    def row(
        self, width: Real, item_bytes: Real, reuse: Any = None, tier: str | None = None, more: Real = 0.0
    ) -> Any:
        """Seconds of a row that is read: by lines and distance, at least those in the cache and `more`."""
        if tier not in (None, self.device.tiers[0].name):
            return self._moved(width * item_bytes, tier)
        kind = "float16" if np.all(np.asarray(item_bytes) == 2) else "float32"
        least = self._cached[kind].seconds(np.asarray(width) * np.maximum(np.asarray(item_bytes) / 4, 1))
        found = self.rows[kind].seconds(width * item_bytes, reuse, least + more)
        return found + ((np.asarray(width) % 16 > 0) & (np.asarray(width) > 16)) * self._tail(reuse)

    def _tail(self, reuse: Any) -> Any:
        """What reading the tail of a row takes on top, far from the cache."""
        return self._tails[FAR] if reuse is None else (self._tails * reuse).sum(axis=-1)

    @cached_property
    def _tails(self) -> Numbers:
        """(K,) by reuse distance: what rows with a tail took more than others of as many bytes."""
        if self.kernels.tail is None:
            return np.zeros(len(DISTANCES))
        taken, every = self.scale * at_distances(self.kernels.tail), np.full(len(DISTANCES), 4.0 * TAIL_WIDTH)
        near = self._cached["float32"].seconds(TAIL_WIDTH)
        found: Numbers = np.maximum(
            taken - self.rows["float32"].seconds(every, np.eye(len(taken)), near), 0.0
        )
        return found

    def _moved(self, row_bytes: Real, tier: str | None) -> Any:
        """A row read from one of the slower tiers."""
        found = self.device.tier(tier)
        moved = np.maximum(np.ceil(np.asarray(row_bytes) / found.line), 1) * found.line
        return (moved / (found.bandwidth * self.device.row_share) + found.latency) * self.sharing

    def _rule(self, optimizer: State, width: Real, item_bytes: Real) -> Any:
        """What a row takes beside SGD's, in the cache."""
        rules, slots = self.kernels.rules, optimizer.element_slots
        both = min(slots + optimizer.row_slots, 2)
        like = ("adagrad", "adam")[both - 1] if slots else _ROW_RULES[min(optimizer.row_slots, 1)]
        known = optimizer.name in rules
        found = self._line(rules[optimizer.name if known else like], width)
        found = found * (1 if known or slots < 3 else slots / 2)
        return found + self._line(self.kernels.half, width) * (np.asarray(item_bytes) == 2)

    def _state(self, optimizer: State, width: Real, reuse: Any) -> Any:
        """What of its state's bytes is not in the cache."""
        found = 0.0
        for count, size in ((optimizer.element_slots, 4.0 * width), (min(optimizer.row_slots, 1), 4.0)):
            if count:
                near = self.updated.seconds(size, at_distance(DISTANCES[0]))
                found = found + count * (self.updated.seconds(size, reuse) - near)
        return found

    def _by_width(self, curves: Mapping[int, Curve], width: Real, size: Real) -> Any:
        """Between the curves of the nearest widths, at `size` bytes."""
        widths = sorted(curves)
        values = [self._curve(curves[w], size) for w in widths]
        return between(np.asarray(width, float), np.array(widths, float), values)

    def _line(self, seconds: Mapping[int, float], width: Real) -> Any:
        widths = sorted(seconds)
        values = [np.asarray(self.scale * seconds[w]) for w in widths]
        return np.maximum(between(np.asarray(width, float), np.array(widths, float), values), 0.0)

    def _curve(self, curve: Curve, size: Real) -> Any:
        """At `size`, as far as was measured."""
        return self.scale * np.interp(np.log2(np.maximum(size, 1.0)), log_sizes(curve), curve.seconds)

    @cached_property
    def _one_thread(self) -> Speeds | None:
        """What one task takes on this rank; None where that is no other, or where nobody measured."""
        if self.threads == 1 or not self.device.kernels:
            return None
        return Speeds(replace(self.device, threads=self.sharing), self.sharing)

    @cached_property
    def _cached(self) -> dict[str, BlockTimes]:
        return {kind: BlockTimes(seconds, self.scale) for kind, seconds in self.kernels.cached.items()}


ITEM_BYTES = {"float32": 4, "float16": 2}
TASK = 1 << 18  # elements of rows that lookups count as a task
TAIL_WIDTH = 20  # of the rows that `Kernels.tail` is measured of
SENDER = 0.7  # of what ids cost on their way, at the rank that sends them
_ROW_RULES = ("sgd", "rowwise_adagrad")


def surprise(repeated: Any) -> Any:
    """How unlike each other the runs of equal ids are, 0 to 1, where a row has so many ids in the mean."""
    return 1 - np.exp(1 - np.maximum(repeated, 1.0))


def tasks_of(elements: Any) -> Any:
    """Tasks that a lookup of so many elements of rows is cut into; 0 and 1 are one."""
    return np.asarray(elements) // TASK


def radix_passes(rows: Any) -> Any:
    """Passes that `sort_ranges` makes over ids below `rows`, of at most 11 bits each."""
    return np.ceil(np.maximum(np.ceil(np.log2(np.maximum(rows, 2.0))), 1) / 11)


def speeds_of(topology: Topology, rank: int) -> Speeds:
    """Those of a rank, while the others of its host work as well. Ranks of one kind have the same."""
    return Speeds(topology.device_of(rank), topology.host_of(rank).ranks)


def _chosen(device: Device, sharing: int, threads: int) -> tuple[Kernels, float]:
    """(the grids nearest to so many ranks and threads, what multiplies their times)."""
    if not device.kernels:
        return kernels_of(device, sharing), 1.0

    def distance(k: Kernels) -> tuple[float, float]:
        return abs(np.log2(k.threads / threads)), abs(np.log2(k.ranks / sharing))

    best = min(device.kernels, key=distance)
    return best, best.threads / threads * max(1.0, sharing * threads / device.threads)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
