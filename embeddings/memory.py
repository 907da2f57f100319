"""The memory that tables need, table by table, known before any is taken, beside what the machine can give.

with planning():
    model = MyModel(…)
    optimizer = RowAdagrad(…)
memory_report(model, [optimizer], batch_size=2048).check()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tesserec.autograd.module import Module
from tesserec.embeddings.allocation import planning
from tesserec.embeddings.collection import named_collections
from tesserec.embeddings.config import EmbeddingBagConfig, EmbeddingConfig
from tesserec.embeddings.kernels.coalesce import SOURCE
from tesserec.embeddings.pool import Pool
from tesserec.embeddings.row_optim import RowOptimizer

__all__ = ["MemoryLimitError", "MemoryReport", "TableMemory", "available_memory", "memory_report", "planning"]

_PER_ID = 8 + 2 * 8  # bytes: the id, and its entry in each of the two arrays that it is sorted in
_PER_BAG = 8 + SOURCE.itemsize  # its offset, and where its gradient lies


class MemoryLimitError(ValueError):
    """Tables that cannot fit; the message names the largest and says what to do."""


@dataclass(frozen=True, slots=True)
class TableMemory:
    """What a table takes.

    rows_bytes: its rows. state_bytes: what the row optimizer keeps about them. workspace_bytes: for each
    batch, its ids, their output and its gradient, and what they are sorted in.
    """

    table: str
    num_embeddings: int
    embedding_dim: int
    data_type: str
    rows_bytes: int
    state_bytes: int
    workspace_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.rows_bytes + self.state_bytes + self.workspace_bytes


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """What all tables take, largest first.

    dense_bytes: the other parameters, their gradients and what optimizers keep about them. available_bytes:
    what this process could still get; None where that is not known. Not counted: the libraries, batches that
    are being read, and what dense layers compute.
    """

    tables: tuple[TableMemory, ...]
    dense_bytes: int
    available_bytes: int | None

    @property
    def rows_bytes(self) -> int:
        return sum(table.rows_bytes for table in self.tables)

    @property
    def state_bytes(self) -> int:
        return sum(table.state_bytes for table in self.tables)

    @property
    def workspace_bytes(self) -> int:
        return sum(table.workspace_bytes for table in self.tables)

    @property
    def total_bytes(self) -> int:
        return self.rows_bytes + self.state_bytes + self.workspace_bytes + self.dense_bytes

    @property
    def fits(self) -> bool:
        """Whether this is not more than the machine is known to have."""
        return self.available_bytes is None or self.total_bytes <= self.available_bytes

    def check(self) -> None:
        """MemoryLimitError unless it fits."""
        if self.fits or self.available_bytes is None:
            return
        largest = "; ".join(_described(table) for table in self.tables[:3])
        raise MemoryLimitError(
            f"the tables need {in_units(self.total_bytes)} of memory (rows {in_units(self.rows_bytes)}, "
            f"optimizer state {in_units(self.state_bytes)}, workspace {in_units(self.workspace_bytes)}), "
            f"but there are {in_units(self.available_bytes)}. The largest: {largest}. Make embedding_dim "
            "smaller; let fewer ids have a row (min_count, max_size or hash buckets in the schema); take an "
            "optimizer with less state (rowwise_adagrad has a number per row, sgd none); or use float16"
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain numbers."""
        kinds = ("rows", "state", "workspace", "dense", "total", "available")
        sums = {f"{kind}_bytes": getattr(self, f"{kind}_bytes") for kind in kinds}
        tables = [{**asdict(table), "total_bytes": table.total_bytes} for table in self.tables]
        return {**sums, "tables": tables}


def memory_report(
    model: Module,
    optimizers: Sequence[Any] = (),
    *,
    batch_size: int,
    bag_lengths: Mapping[str, float] | None = None,
) -> MemoryReport:
    """What `model` and its optimizers take, made in `planning` or not, with batches of `batch_size`.

    bag_lengths: {feature: mean number of ids of a bag}, 1 where nothing is said.
    """
    state = _state_per_row(optimizers)
    tables = [
        TableMemory(
            name,
            config.num_embeddings,
            config.embedding_dim,
            pool.data_type,
            pool.data.nbytes // len(pool) * config.num_embeddings,
            state.get(id(pool), 0) * config.num_embeddings,
            _workspace(pool, config, batch_size, bag_lengths or {}),
        )
        for name, pool, config in _tables(model)
    ]
    ordered = tuple(sorted(tables, key=lambda table: -table.total_bytes))
    return MemoryReport(ordered, _dense_bytes(model, optimizers), available_memory())


def _tables(model: Module) -> Iterator[tuple[str, Pool, EmbeddingConfig]]:
    """(name in the state of `model`, its pool, what it is) of every table."""
    for prefix, collection in named_collections(model):
        for pool in collection.pools:
            for table in pool.tables:
                yield prefix + table.config.name, pool, table.config


def _state_per_row(optimizers: Sequence[Any]) -> dict[int, int]:
    """{id of a pool: bytes that its optimizer keeps about a row}."""
    return {
        id(optimizer.pools[name]): sum(array.nbytes for array in slots.values()) // len(optimizer.pools[name])
        for optimizer in optimizers
        if isinstance(optimizer, RowOptimizer)
        for name, slots in optimizer.state.items()
    }


def _workspace(pool: Pool, config: EmbeddingConfig, batch_size: int, bag_lengths: Mapping[str, float]) -> int:
    """Bytes for a batch. Without pooling, every id is a bag."""
    ids = batch_size * sum(bag_lengths.get(feature, 1.0) for feature in config.feature_names)
    pooled = isinstance(config, EmbeddingBagConfig)
    bags = batch_size * len(config.feature_names) if pooled else ids
    return round(ids * _PER_ID + bags * (_PER_BAG + 2 * config.embedding_dim * pool.compute_dtype.itemsize))


def _dense_bytes(model: Module, optimizers: Sequence[Any]) -> int:
    """Parameters that are no tables, twice for their gradients, and the state of their optimizers."""
    parameters = sum(p.data.nbytes for p in model.parameters() if not isinstance(p, Pool))
    states = [o.state_dict() for o in optimizers if not isinstance(o, RowOptimizer)]
    kept = sum(a.nbytes for state in states for a in state.values() if isinstance(a, np.ndarray))
    return 2 * parameters + kept


def _described(table: TableMemory) -> str:
    rows = f"{table.num_embeddings:,} rows × {table.embedding_dim} {table.data_type}"
    return f"{table.table!r} {in_units(table.total_bytes)} ({rows}, state {in_units(table.state_bytes)})"


def in_units(size: float) -> str:
    """Bytes as people read them: "1.5 GiB"."""
    power = 0
    while size >= 1000 and power < 3:
        size, power = size / 1024, power + 1
    digits = 1 if power and size < 100 else 0
    return f"{size:,.{digits}f} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process can still get, by the kernel's estimate and its control groups' limits.

    None where neither is known. root: where proc and sys are mounted.
    """
    rooms = [*_machine_room(root), *_group_rooms(root)]
    return max(0, min(rooms)) if rooms else None


def _machine_room(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _group_rooms(root: Path) -> Iterator[int]:
    """What each control group of this process leaves of its limit; pages of files can be given back."""
    mount = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _rooms(mount, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            yield from _rooms(mount / "memory", path, *names)


def _rooms(mount: Path, path: str, limit: str, used: str, reclaimable: str) -> Iterator[int]:
    group = mount / path.lstrip("/")
    for folder in (group, *group.parents):
        if not folder.is_relative_to(mount):
            return
        limits, uses = _lines(folder / limit), _lines(folder / used)
        if uses and limits and limits[0] != "max":
            files = dict(line.split() for line in _lines(folder / "memory.stat")).get(reclaimable, 0)
            yield int(limits[0]) - int(uses[0]) + int(files)


def _lines(path: Path) -> list[str]:
    """Lines of a file; none where it cannot be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
