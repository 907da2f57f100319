"""Costs: what traffic takes on one kind of rank, in seconds by column of `schedule.COLUMNS`.

All are sums over pieces: what a piece costs every rank, which asks, and what it costs the ranks that hold it
on top. What a step costs whatever the plan is `base`. Kernels and links are those of `Speeds`, which has the
formulas; what they take for nothing, such as to be started, is in `base` once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.sharding.planner.distance import Distances, at_distances
from tesserec.sharding.planner.schedule import COLUMN, COLUMNS, LANES
from tesserec.sharding.planner.speeds import DISTANCES, Speeds
from tesserec.sharding.planner.topology import Link, Topology
from tesserec.sharding.planner.traffic import WIRE_COUNTS, Traffic
from tesserec.sharding.planner.workload import Table, Workload

Numbers = npt.NDArray[np.float64]

_CHECKS = 2  # small collectives of a step: whether all gradients are finite, whether anybody wants to stop


class Costs:
    """Of the ranks of one kind of host: `topology.hosts[kind]`."""

    def __init__(self, workload: Workload, topology: Topology, kind: int = 0):
        """world: all ranks; ranks: those that share tables; batch: of these; vectors: bytes of a rank's."""
        self.workload, self.topology = workload, topology
        self.host = topology.hosts[kind]
        self.device = topology.devices[self.host.device]
        self.world, self.ranks = topology.num_ranks, topology.num_ranks // workload.replica_groups
        self.samples = workload.batch_size / self.world
        self.batch = self.samples * self.ranks
        self.vectors = self.samples * sum(
            table.vectors * table.dim * table.compute_bytes for table in workload.tables
        )
        self.neighbours = min(self.host.ranks, self.ranks)
        self.speeds = Speeds(self.device, self.host.ranks)
        self.inside = _Line(self.speeds, self.host.inside, self.neighbours - 1)
        self.network = _Line(self.speeds, topology.network, self.ranks - self.neighbours)
        self.between = self._between()
        self.distances: dict[str, Distances] = {}

    def loads(self, traffic: Traffic, tier: str | None) -> tuple[Numbers, Numbers]:
        """(n, K) seconds that each piece costs every rank, and (n, K) what each of its holders has on top."""
        everyone, holder = (np.zeros((len(traffic.pieces.rows), len(COLUMNS))) for _ in range(2))
        self._ask(traffic, everyone)
        holder -= everyone * traffic.pieces.whole[:, None]  # what is whole here is read where it is
        self._move(traffic, everyone, holder)
        self._answer(traffic, holder)
        self._tell(traffic, holder)
        self._read_rows(traffic, holder, tier)
        return everyone * self.factors, holder * self.factors

    @cached_property
    def base(self) -> Numbers:
        """(K,) seconds that a rank has in any case."""
        work, speeds, dense = self.workload, self.speeds, self.workload.dense
        found, slices = np.zeros(len(COLUMNS)), max(1.0, np.ceil(self.samples / work.slice_size))
        if work.reads_data:
            found[COLUMN["read"]] = self._reading()
        found[COLUMN["dense"]] = speeds.dense(dense.flops, self.samples, dense.seconds)
        if self.world == 1:
            found[COLUMN["dense"]] += speeds.sum_slices(dense.parameters, slices)
        kept = dense.parameters / (self.world if dense.sharded else 1)
        found[COLUMN["update"]] = speeds.dense_update(kept, dense.state_numbers)
        pools = self._pools()  # each is looked up in one go
        found[COLUMN["lookup"]] = sum(float(speeds.start_lookup(elements)) for elements in pools.values())
        found[COLUMN["update"]] += len(pools) * speeds.update(0.0, 0.0, 1.0, 4.0, work.optimizer)
        found[COLUMN["route"]] = speeds.pack_ids(0.0, 0.0, 0.0, self.ranks - 1)
        found[COLUMN["add"]] = speeds.add_vectors(0.0, 0.0)
        found[COLUMN["pack"]] = speeds.pack_grads(0.0, 0.0)
        if self.world > 1:
            self._reduce(found, slices)
        found[COLUMN["rest"]] = speeds.rest
        return found * self.factors

    @cached_property
    def factors(self) -> Numbers:
        """(K,) what measured steps took as multiples of estimates; 1 where nobody measured."""
        return np.array([self.speeds.factor(stage) for stage, _ in COLUMNS.values()])

    @property
    def cores(self) -> Numbers:
        """(J,) 1 for the lanes that keep the cores of a rank busy: messages in a host do, by copying."""
        cpu = self.device.kind == "cpu"
        idle = [name.endswith("_network") or (name.endswith("_inside") and not cpu) for name in LANES]
        found = 1.0 - np.array(idle)
        found[list(LANES).index("read")] = float(cpu)
        return found

    def dense_seconds(self) -> float:
        """Forward and backward of the dense model."""
        return float(self.base[COLUMN["dense"]])

    def _ask(self, traffic: Traffic, out: Numbers) -> None:
        """A rank packs the ids of each piece, adds up the vectors that come, and packs their gradients."""
        asked, width = traffic.asked, traffic.pieces.width
        wires = np.full(len(out), float(asked.wires))
        copies = np.where(traffic.raw, traffic.pieces.holders, 1.0)
        values = asked.bags * width
        out[:, COLUMN["route"]] = copies * _more(self.speeds.pack_ids, [asked.ids, asked.bags, wires])
        out[:, COLUMN["add"]] = _more(self.speeds.add_vectors, [asked.bags, width, wires])
        out[:, COLUMN["add"]] += self._codec(values, self.workload.forward)
        out[:, COLUMN["pack"]] = copies * _more(self.speeds.pack_grads, [asked.bags, width, wires])
        out[:, COLUMN["pack"]] += copies * self._codec(values, self.workload.backward)

    def _answer(self, traffic: Traffic, out: Numbers) -> None:
        """A holder unpacks what it is asked, sends vectors, and gets their gradients."""
        asked, width = traffic.asked, traffic.pieces.width
        inside, network = traffic.askers(self.neighbours)
        others = inside + network
        wires = np.where(traffic.pieces.whole, traffic.heard - 1, traffic.heard)
        arrived = [wires * asked.ids, wires * asked.bags, wires * asked.wires]
        out[:, COLUMN["route"]] += _more(self.speeds.unpack_ids, arrived)
        out[:, COLUMN["lookup"]] += self._codec(others * asked.bags * width, self.workload.forward)
        out[:, COLUMN["pack"]] += self._codec(others * asked.bags * width, self.workload.backward)

    def _move(self, traffic: Traffic, everyone: Numbers, holder: Numbers) -> None:
        """Ids and gradients come to a holder, vectors leave it.

        Links have two ways, and as much comes and goes for all that ask as for all that hold, so that of a
        link the holder's way is the busiest. Within a cpu host both ends copy, each for half of the time.
        """
        inside, network = traffic.askers(self.neighbours)
        others = inside + network
        heard = np.where(traffic.raw, (self.ranks - 1) / np.maximum(others, 1e-9), 1.0)
        ids = traffic.asked.id_bytes + WIRE_COUNTS * traffic.asked.wires
        sizes = {"ids": heard * ids, "vectors": traffic.vector_bytes, "grads": heard * traffic.grad_bytes}
        halves = 0.5 if self.device.kind == "cpu" else 0.0
        share = traffic.pieces.holders * inside / np.maximum(self.ranks - traffic.pieces.holders, 1)
        for name, size in sizes.items():
            asking = halves * self.inside.slope * share * size  # of those that ask, in the mean
            everyone[:, COLUMN[f"{name}_inside"]] += asking
            holder[:, COLUMN[f"{name}_inside"]] += (1 - halves) * self.inside.slope * inside * size - asking
            holder[:, COLUMN[f"{name}_network"]] += self.network.slope * network * size

    def _tell(self, traffic: Traffic, out: Numbers) -> None:
        """Holders of the same piece, or of other columns of its rows, tell each other gradients."""
        self._sum_replicas(traffic, out)
        split = traffic.pieces.is_split & self.workload.optimizer.whole_rows
        lines = zip(("inside", "network"), traffic.siblings(), (self.inside, self.network), strict=True)
        for link, share, line in lines:
            out[:, COLUMN[f"replicas_{link}"]] += line.slope * share * traffic.told_bytes
            out[:, COLUMN[f"columns_{link}"]] += line.slope * share * traffic.column_bytes * split
        if split.any():
            every, width = traffic.rows_updated, traffic.pieces.width
            sum_rows = partial(self.speeds.sum_rows, table_rows=traffic.pieces.height)
            again = _more(sum_rows, [traffic.entries, every], width)
            whole = np.full(len(width), float(traffic.pieces.table.dim))
            out[:, COLUMN["split"]] += (again + _more(self.speeds.pack_grads, [every, width])) * split
            out[:, COLUMN["update"]] += _more(self.speeds.add_vectors, [every, whole]) * split

    def _sum_replicas(self, traffic: Traffic, out: Numbers) -> None:
        """What a holder has of its own, and then, where they take turns, its rows of all of them."""
        if not traffic.summed.any():
            return
        width, mine = traffic.pieces.width, traffic.rows_touched
        sum_rows = partial(self.speeds.sum_rows, table_rows=traffic.pieces.height)
        first = _more(sum_rows, [traffic.heard * traffic.asked.ids, mine], width)
        turns = _more(sum_rows, [mine, traffic.rows_updated / traffic.pieces.holders], width)
        copied = _more(self.speeds.pack_grads, [traffic.rows_told, width])
        out[:, COLUMN["sums"]] += (first + turns * traffic.met + copied) * traffic.summed

    def _read_rows(self, traffic: Traffic, out: Numbers, tier: str | None) -> None:
        """Rows are looked up and updated; an update finds them where the lookup of the step has left them."""
        pieces, optimizer, item = (
            traffic.pieces,
            self.workload.optimizer,
            float(traffic.pieces.table.item_bytes),
        )
        reads, firsts = self._reuse(traffic)
        bags = traffic.answered * traffic.asked.bags
        out[:, COLUMN["lookup"]] += _more(
            partial(self.speeds.lookup, out_bytes=self.vectors, started=True),
            [traffic.rows_read, bags],
            pieces.width,
            item,
            reads,
            tier,
        )
        split = pieces.is_split & optimizer.whole_rows
        part = np.where(
            split & (self.ranks == 1), pieces.width / pieces.table.dim, 1.0
        )  # all columns are here
        rows = part * traffic.rows_updated
        entries = np.where(split, rows, traffic.entries)
        gradients = np.where(split | traffic.summed, entries, traffic.heard * traffic.asked.bags)
        near = self.between / 2 + traffic.rows_updated * pieces.width * item
        update = partial(
            self.speeds.update,
            state_reuse=firsts,
            table_rows=pieces.height,
            bags=gradients,
            grad_bytes=self.vectors,
        )
        width = np.where(split, float(pieces.table.dim), pieces.width)
        here = at_distances(near) if self._is_cached else None
        found = update(entries, rows, width, item, optimizer, here, tier)
        out[:, COLUMN["update"]] += found - self.speeds.update(0.0, 0.0, width, item, optimizer)

    def hits(self, traffic: Traffic) -> float | None:
        """Share of a table's reads that find their row in a cache; None where there is no cache."""
        reads, _ = self._reuse(traffic)
        if reads is None or not self.device.caches:
            return None
        sizes = [cache.bytes for cache in self.device.caches]
        sizes[-1] /= self.speeds.sharing  # the largest is the host's
        weights = traffic.rows_read * traffic.pieces.holders
        found = reads[:, max(sizes) > DISTANCES].sum(axis=1)
        return float(found @ weights / max(float(weights.sum()), 1e-300))

    def _reuse(self, traffic: Traffic) -> tuple[Numbers, Numbers] | tuple[None, None]:
        """(n, …) how far back the rows of lookups were touched: of all, of a step's first of each row."""
        if not self._is_cached:
            return None, None
        pieces, table = traffic.pieces, traffic.pieces.table
        ids = self.batch * table.mean_length / pieces.holders
        row = pieces.width * table.item_bytes + self.workload.optimizer.row_bytes(
            pieces.width, table.compute_bytes
        )
        span = pieces.rows[:, 0], pieces.rows[:, 1]
        return self._distances(table).of(*span, row, ids, self.between, self.speeds.drift)

    @property
    def _is_cached(self) -> bool:
        """Whether it matters how far back a row was touched."""
        return bool(self.device.caches or self.device.kernels)

    def _distances(self, table: Table) -> Distances:
        if table.name not in self.distances:
            self.distances[table.name] = Distances(table.frequencies)
        return self.distances[table.name]

    def _between(self) -> float:
        """Bytes of all tables, vectors and activations that a rank touches in a step: its share of them."""
        work, rows = self.workload, 0.0
        for table in work.tables:
            row = table.dim * table.item_bytes + work.optimizer.row_bytes(table.dim, table.compute_bytes)
            rows += float(table.frequencies.distinct(self.batch * table.mean_length)) * row
        dense, slices = work.dense, min(self.samples, work.slice_size * self.speeds.threads)
        kept = 4 * dense.parameters * (2 + dense.state_numbers)
        return rows / self.ranks + 2 * self.vectors + slices * dense.activation_bytes + kept

    def _pools(self) -> dict[tuple[int, str], float]:
        """Elements of rows that a rank looks up in tables of each width and type, in the mean."""
        found: dict[tuple[int, str], float] = {}
        for table in self.workload.tables:
            pool = table.dim, table.data_type
            found[pool] = found.get(pool, 0.0) + self.samples * table.mean_length * table.dim
        return found

    def _codec(self, values: Numbers, name: str) -> Numbers:
        return np.asarray(_more(self.speeds.codec, [values], name))

    def _reading(self) -> float:
        """Seconds of decoding: its own streams, or all of one that several ranks share."""
        work = self.workload
        ids = sum(table.mean_length for table in work.tables)
        decoded = self.samples * max(1.0, self.world / (work.streams or self.world))
        return float(self.speeds.read(decoded, decoded * ids, work.dense.columns))

    def _reduce(self, found: Numbers, slices: float) -> None:
        """The sum of dense gradients over slices and ranks, and the small numbers of a step."""
        found[COLUMN["update"]] += _CHECKS * self.latency
        size, dense = 4.0 * self.workload.dense.parameters, self.workload.dense
        links = (
            ("inside", self.host.inside, self.host.ranks - 1),
            (
                "network",
                self.topology.network,
                self.world - self.host.ranks,
            ),
        )
        for name, link, others in links:
            if link is not None and others > 0:
                part = size * others / self.world  # of a reduce_scatter, and of an all_gather
                found[COLUMN[f"reduction_{name}"]] = 2 * self.speeds.exchange(part, others, link)
        adding = self.speeds.sum_slices(dense.parameters / self.world, self.world)
        found[COLUMN["reduction"]] = self.speeds.sum_slices(dense.parameters, slices) + adding

    @property
    def latency(self) -> float:
        """Of one exchange of nothing between all ranks."""
        return max(self.inside.start, self.network.start)


class _Line:
    """`Speeds.exchange` over a link as start + slope · bytes, near the sizes that vectors of a step have."""

    def __init__(self, speeds: Speeds, link: Link | None, peers: int, size: float = 1e6):
        self.start = self.slope = 0.0
        if link is not None and peers > 0:
            small, large = (float(speeds.exchange(times * size, peers, link)) for times in (0.5, 2.0))
            self.slope = (large - small) / (1.5 * size)
            self.start = max(0.0, small - 0.5 * size * self.slope)


def _more(kernel: Callable[..., Any], amounts: Sequence[Any], *kind: Any) -> Any:
    """What a kernel takes for these amounts of something of some kind, less what it takes for none."""
    return kernel(*amounts, *kind) - kernel(*(0.0 * np.asarray(amount) for amount in amounts), *kind)
