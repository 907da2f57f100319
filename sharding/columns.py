"""Row optimizers on tables that are split by columns: formulas of a whole row, of which no rank has all.

Row-wise Adagrad's mean of squares, LAMB's norms and `max_norm` look at whole rows. Every rank that holds a
part of a touched row is sent the others' parts of what the formula looks at: sums of gradients, and weights
and state where they matter. Then all of them run the kernel of the unsharded table on whole rows, and keep
their own columns: the same bits, and the same on all ranks. Formulas by element, such as Adam's, need none of
this.

All that hold a part of a row have looked it up in the same batch. So each knows which rows come, in which
order, and nothing but numbers travels, in one exchange for all tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.workers import parallel_map
from tesserec.embeddings.kernels.rows import stored
from tesserec.embeddings.pool import Pool
from tesserec.embeddings.row_optim import RowOptimizer
from tesserec.embeddings.rowgrad import RowGrad
from tesserec.embeddings.spans import Span
from tesserec.sharding.comm import Comm
from tesserec.sharding.kernels.columns import put_rows, take_rows
from tesserec.sharding.plan import ShardingPlan, server

Array = npt.NDArray[Any]

_CHUNK = 4096  # rows that are put together at a time: what is made for them stays in the cache


@dataclass(frozen=True, slots=True)
class Band:
    """Rows of a table that are cut into the same columns. pieces: {columns: ranks that hold them}."""

    table: str
    rows: Span
    pieces: Mapping[Span, Sequence[int]]

    @property
    def width(self) -> int:
        return max(stop for _, stop in self.pieces)

    def wanted(self, source: int, target: int) -> list[Span]:
        """The columns that `source` sends to `target`."""
        if source == target or not any(target in ranks for ranks in self.pieces.values()):
            return []
        return [cols for cols, holders in self.pieces.items() if server(holders, target) == source]


def split_bands(plan: ShardingPlan) -> list[Band]:
    """The rows that no rank holds whole, table by table."""
    return [band for table in plan.tables for band in _bands(plan, table) if len(band.pieces) > 1]


def _bands(plan: ShardingPlan, table: str) -> Iterator[Band]:
    held = plan.rectangles(table)
    for rows in pairwise(sorted({edge for span, _ in held for edge in span})):
        inside = {cols: ranks for (span, cols), ranks in held.items() if span[0] <= rows[0] < span[1]}
        yield Band(table, rows, dict(sorted(inside.items())))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a piece of a band is on this rank: rows of a pool, of its `table`-th table."""

    pool: Pool
    table: int
    rows: slice


@dataclass(frozen=True, slots=True, eq=False)
class Own:
    """Touched rows of a piece that is here. at: (U,) rows of the pool; grad: (U, width); arrays: (R, …)."""

    at: Array
    grad: Array
    arrays: Mapping[str, Array]

    def take(self, name: str, out: Array) -> None:
        """Copy to `out`, (U, width) or (U,)."""
        if name == "gradient":
            out[:] = self.grad
        else:
            take_rows(_stack(self.arrays[name]), self.at, _stack(out))

    def put(self, name: str, values: Array) -> None:
        """Copy back from `values`."""
        put_rows(_stack(values), self.at, _stack(self.arrays[name]))

    def cut(self, part: slice) -> Own:
        return Own(self.at[part], self.grad[part], self.arrays)


@dataclass(frozen=True, slots=True, eq=False)
class Touched:
    """Rows of a band that this step updates here. numbers: (U,) in the whole table; table: what TABLE says.

    dtypes: {"weights": …, "gradient": …, slot: …}. sent: {columns: {name: (U, width)}}, from other ranks.
    """

    band: Band
    numbers: Array
    table: Any
    own: Mapping[Span, Own]
    dtypes: Mapping[str, np.dtype[Any]]
    sent: dict[Span, dict[str, Array]]

    def __len__(self) -> int:
        return len(self.numbers)

    def cut(self, lo: int, hi: int) -> Touched:
        """Rows lo … hi-1 of them; views."""
        part = slice(lo, hi)
        own = {cols: own.cut(part) for cols, own in self.own.items()}
        sent = {cols: {name: a[part] for name, a in arrays.items()} for cols, arrays in self.sent.items()}
        return replace(self, numbers=self.numbers[part], own=own, sent=sent)

    def room(self, cols: Span, names: Sequence[str]) -> int:
        """Bytes of a message about these columns; each array begins at a multiple of 8."""
        sizes = (len(self) * (cols[1] - cols[0]) * self.dtypes[name].itemsize for name in names)
        return sum(size + -size % 8 for size in sizes)

    def views(self, cols: Span, names: Sequence[str], message: Array) -> dict[str, Array]:
        """{name: (U, width)} in a `message` of that size."""
        found, at, width = {}, 0, cols[1] - cols[0]
        for name in names:
            size = len(self) * width * self.dtypes[name].itemsize
            found[name] = message[at : at + size].view(self.dtypes[name]).reshape(len(self), width)
            at += size + -size % 8
        return found

    def fill(self, whole: Mapping[str, Array]) -> None:
        """Write what is known of the rows to `whole`: (U, D) arrays, or (U,)."""
        for name, array in whole.items():
            for cols, own in self.own.items():  # all that hold a part of a row have the same number for it
                own.take(name, array if array.ndim == 1 else array[:, slice(*cols)])
            for cols, sent in self.sent.items():
                if name in sent:
                    array[:, slice(*cols)] = sent[name]

    def keep(self, whole: Mapping[str, Array]) -> None:
        """Write to the pools what is theirs of `whole`."""
        for cols, own in self.own.items():
            for name in own.arrays:
                own.put(name, whole[name] if whole[name].ndim == 1 else whole[name][:, slice(*cols)])


class SplitRows:
    """Steps of row optimizers when some tables are split by columns."""

    def __init__(self, comm: Comm, plan: ShardingPlan, prefixes: Mapping[Pool, str]):
        """prefixes: {pool of this rank: what the plan's names of its tables begin with}."""
        self.comm, self.tables, self.bands = comm, list(plan.tables), split_bands(plan)
        self.places = [dict(_places(band, prefixes)) for band in self.bands]
        self.split: dict[Pool, set[int]] = {}
        for place in (place for held in self.places for place in held.values()):
            self.split.setdefault(place.pool, set()).add(place.table)

    def step(self, optimizer: RowOptimizer) -> None:
        """`optimizer.step()` of all ranks together, also of those that have nothing to update: collective."""
        self._check_names(optimizer)
        names = optimizer.looks_at()
        if not names or not self.bands:
            optimizer.step()
            return
        grads = {pool: pool.grad for pool in optimizer.pools.values() if pool in self.split}
        for pool, grad in grads.items():
            others = set(range(len(pool.tables))) - self.split[pool]
            pool.grad = None if grad is None else grad.only(sorted(others))
        optimizer.step()
        for pool, grad in grads.items():
            pool.grad = grad
        touched = list(self._touched(optimizer))
        self._exchange(touched, names)
        kinds: dict[tuple[int, np.dtype[Any]], list[Touched]] = {}
        for rows in touched:
            kinds.setdefault((rows.band.width, rows.dtypes["weights"]), []).append(rows)
        chunks = [chunk for alike in kinds.values() for chunk in _chunks(alike)]
        parallel_map(lambda chunk: _update(optimizer, chunk), chunks)

    def _check_names(self, optimizer: RowOptimizer) -> None:
        """ValueError for a table of `table_lr` that is nowhere: the optimizer knows only what is here."""
        for name in optimizer.table_lr:
            if not any(table == name or table.endswith(f".{name}") for table in self.tables):
                raise ValueError(f"table_lr: no table {name!r}; have {', '.join(self.tables)}")

    def _touched(self, optimizer: RowOptimizer) -> Iterator[Touched]:
        """The touched rows of every band that this rank has a part of."""
        names = {pool: name for name, pool in optimizer.pools.items()}
        for band, places in zip(self.bands, self.places, strict=True):
            here = {cols: place for cols, place in places.items() if place.pool in names}
            if here:
                place = next(iter(here.values()))
                pool = place.pool
                own = {cols: _own(each, optimizer.state[names[each.pool]]) for cols, each in here.items()}
                numbers = next(iter(own.values())).at - place.rows.start + band.rows[0]
                dtypes = dict.fromkeys(("gradient", *optimizer.slots), pool.compute_dtype)
                table = optimizer.tables[names[pool]][place.table]
                yield Touched(band, numbers, table, own, dtypes | {"weights": pool.dtype}, {})

    def _exchange(self, touched: Sequence[Touched], names: Sequence[str]) -> None:
        """Fill in what is `sent`."""
        rank, ranks = self.comm.rank, range(self.comm.size)
        out = [[(rows, c) for rows in touched for c in rows.band.wanted(rank, other)] for other in ranks]
        into = [[(rows, c) for rows in touched for c in rows.band.wanted(other, rank)] for other in ranks]
        counts, wanted = ([sum(r.room(c, names) for r, c in parts) for parts in way] for way in (out, into))
        message, at = np.empty(sum(counts), np.uint8), 0
        for rows, cols in chain(*out):
            for name, view in rows.views(cols, names, message[at:]).items():
                rows.own[cols].take(name, view)
            at += rows.room(cols, names)
        data, received = self.comm.all_to_all(message, counts)
        if received != wanted:
            raise RuntimeError(
                f"rank {rank}: got {received} bytes about rows of which it holds columns, wanted {wanted}: "
                "all ranks must step with the gradient of the same batch"
            )
        at = 0
        for rows, cols in chain(*into):
            rows.sent[cols] = rows.views(cols, names, data[at:])
            at += rows.room(cols, names)


def _stack(array: Array) -> Array:
    """`array` as kernels take it: with two axes, float16 as int16."""
    rows: Array = stored(array if array.ndim == 2 else array[:, None])
    return rows


def _places(band: Band, prefixes: Mapping[Pool, str]) -> Iterator[tuple[Span, Place]]:
    """(columns, where they are) of the pieces of a band that are here."""
    for pool, prefix in prefixes.items():
        for k, table in enumerate(pool.tables):
            rows, cols = table.origin.rows, table.origin.cols
            if prefix + table.origin.table.name == band.table and rows[0] <= band.rows[0] < rows[1]:
                first, last = (table.first_row + row - rows[0] for row in band.rows)
                yield cols, Place(pool, k, slice(first, last))


def _own(place: Place, state: Mapping[str, Array]) -> Own:
    pool, grad, arrays = place.pool, place.pool.grad, {"weights": place.pool.data, **state}
    if grad is None:
        return Own(np.empty(0, np.int64), np.empty((0, pool.shape[1]), pool.compute_dtype), arrays)
    lo, hi = np.searchsorted(grad.rows, (place.rows.start, place.rows.stop))
    return Own(grad.rows[lo:hi], grad.values[lo:hi], arrays)


def _chunks(alike: Sequence[Touched]) -> Iterator[list[Touched]]:
    """All rows, in lists of up to `_CHUNK`."""
    chunk: list[Touched] = []
    room = _CHUNK
    for rows in alike:
        lo = 0
        while lo < len(rows):
            chunk.append(rows.cut(lo, lo + room))
            lo, room = lo + len(chunk[-1]), room - len(chunk[-1])
            if room == 0:
                yield chunk
                chunk, room = [], _CHUNK
    if chunk:
        yield chunk


def _update(optimizer: RowOptimizer, alike: Sequence[Touched]) -> None:
    """Update rows of one width and type, whole, as tables of a pool of their own."""
    bounds, width = np.cumsum([0, *map(len, alike)]), alike[0].band.width
    whole = {
        name: np.zeros(bounds[-1:].tolist() + [width] * (name not in optimizer.row_slots), dtype)
        for name, dtype in alike[0].dtypes.items()
    }
    tables = np.array([rows.table for rows in alike])
    tables["numbers"], tables["origin_column"] = [rows.numbers.ctypes.data for rows in alike], 0
    parts = [{name: array[lo:hi] for name, array in whole.items()} for lo, hi in pairwise(bounds.tolist())]
    for rows, part in zip(alike, parts, strict=True):
        rows.fill(part)
    grad = RowGrad.from_rows(bounds, np.arange(bounds[-1]), whole["gradient"])
    optimizer.update(whole["weights"], {slot: whole[slot] for slot in optimizer.slots}, grad, tables)
    for rows, part in zip(alike, parts, strict=True):
        rows.keep(part)
