"""Program: a model's forward pass for one split, as calls on memory that lies ready.

What depends on the context alone is computed once per request, in the first stage; the second one computes
the rest for the candidates. Any number of rows runs through the same memory, in pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby, pairwise
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.embeddings.allocation import aligned
from tesserec.embeddings.bags import numbers_of
from tesserec.embeddings.jagged import KeyedJaggedTensor
from tesserec.embeddings.kernels.lookup import LANE
from tesserec.embeddings.pool import Pool
from tesserec.embeddings.table_set import Reader
from tesserec.serve.kernels.steps import STEP, aim, ask, places, play
from tesserec.serve.query import Part, Query

Array = npt.NDArray[Any]


@dataclass(slots=True, eq=False)
class Slot:
    """A place for rows of `shape` float32: of candidates if `own`, else of requests.

    axis: where in an array of rows they are, 0 unless it is a root. parent: whose memory it lies in, `at`
    numbers into each row. sparse: many of its numbers may be 0.
    """

    shape: tuple[int, ...]
    own: bool
    axis: int = 0
    parent: Slot | None = None
    at: int = 0
    sparse: bool = False
    memory: Array = field(default_factory=lambda: np.empty((0, 0), np.float32))

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return prod(self.shape)

    @property
    def root(self) -> Slot:
        """The slot whose memory this is."""
        return self if self.parent is None else self.parent.root

    @property
    def begin(self) -> int:
        """Where in a row of the root it begins."""
        return self.at + (0 if self.parent is None else self.parent.begin)

    @property
    def address(self) -> int:
        """Where its numbers are."""
        return self.root.memory.ctypes.data + 4 * self.begin

    @property
    def row_bytes(self) -> int:
        """How far it is from row to row."""
        return 4 * self.root.width

    def flat(self, first: int, last: int) -> Array:
        """Rows first … last-1, the numbers of each side by side."""
        begin = self.begin
        return self.root.memory[first:last, begin : begin + self.width]

    def array(self, rows: int) -> Array:
        """The first so many rows."""
        if self.axis:
            shape = (*self.shape[: self.axis], rows, *self.shape[self.axis :])
            return self.memory.reshape(-1)[: rows * self.width].reshape(shape)
        return self.flat(0, rows).reshape(rows, *self.shape)


@dataclass(slots=True, eq=False)
class Fixed:
    """An array that is the same for all requests: what `make` gives, which `refresh` makes anew."""

    make: Callable[[], Array]
    array: Array = field(init=False)

    def __post_init__(self) -> None:
        value = self.make()
        self.array = aligned(value.shape, value.dtype, np.empty)
        np.copyto(self.array, value)

    def refresh(self) -> None:
        np.copyto(self.array, self.make())


@dataclass(slots=True, eq=False)
class Step:
    """A STEP for `play`, by slots instead of addresses. y: rows of requests, or one that is for all."""

    kind: int
    out: Slot
    x: Slot | None = None
    y: Slot | Fixed | None = None
    fixed: Fixed | None = None
    width: int = 0
    count: int = 0
    others: int = 0
    activation: int = 0

    def as_record(self) -> tuple[int, ...]:
        x = (0, 0) if self.x is None else (self.x.address, self.x.row_bytes)
        y = (self.y.address, self.y.row_bytes) if isinstance(self.y, Slot) else (0, 0)
        if isinstance(self.y, Fixed):
            y = self.y.array.ctypes.data, 0
        fixed = 0 if self.fixed is None else self.fixed.array.ctypes.data
        skip = int(self.x is not None and self.x.sparse)
        numbers = self.width, self.count, self.others, self.activation, skip
        return (self.kind, *x, *y, self.out.address, self.out.row_bytes, fixed, *numbers)


@dataclass(slots=True, eq=False)
class Call:
    """fn(*args, out=out) by numpy; args: slots, arrays and numbers."""

    fn: Callable[..., Any]
    args: Sequence[Any]
    out: Slot

    def run(self, rows: int) -> None:
        self.fn(*(a.array(rows) if isinstance(a, Slot) else a for a in self.args), out=self.out.array(rows))


@dataclass(slots=True, eq=False)
class Input:
    """A part of a request as a stage takes it in. ids: as `aim` takes them; held: what has them."""

    dense: Array
    held: KeyedJaggedTensor | None
    ids: tuple[int, ...]


class Lookup:
    """Bags of a part's features that read one pool, each pooled into its columns of a slot.

    keys: those of the part. columns: where each reader's begin.
    """

    memory: Array  # of the slot

    def __init__(
        self, pool: Pool, readers: Sequence[Reader], keys: Sequence[str], columns: Sequence[int], out: Slot
    ):
        self.pool, self.out = pool, out
        self.rows = pool.data.ctypes.data, pool.data.strides[0]
        self.keys = np.array([keys.index(reader.feature) for reader in readers], np.int64)
        self.lanes = np.zeros(len(readers), LANE)
        self.lanes["column"] = columns
        for lane, reader in zip(self.lanes, readers, strict=True):
            config: Any = reader.table.config
            lane["table"], lane["first_row"] = reader.position, reader.table.first_row
            lane["num_rows"], lane["mean"] = config.num_embeddings, config.pooling == "mean"

    def settle(self) -> None:
        """The slot has memory now."""
        self.memory = self.out.flat(0, len(self.out.root.memory))

    def ask(self, part: Input, first: int, rows: int) -> None:
        """Prefetch what `run` will read."""
        aim(self.lanes, self.keys, first, *part.ids)
        ask(self.lanes, rows, *self.rows)

    def run(self, part: Input, first: int, rows: int, at: int) -> None:
        """Bags `first` … of every key into rows `at` … of the slot."""
        aim(self.lanes, self.keys, first, *part.ids)
        self.pool.pool_bags(self.lanes, 0, rows, self.memory[at : at + rows])


class Stage:
    """What is done with the rows of requests, or with those of candidates.

    keys: of their features. dense: where their dense columns go.
    """

    numbers: Array  # of `dense`

    def __init__(self, keys: Sequence[str]):
        self.keys = tuple(keys)
        self.dense: Slot | None = None
        self.lookups: list[Lookup] = []
        self.work: list[Step | Call] = []
        self.calls: list[Call | Array] = []

    def settle(self) -> None:
        """Make the calls, now that slots have memory: steps that follow each other are one."""
        for is_steps, work in groupby(self.work, lambda item: isinstance(item, Step)):
            if is_steps:
                self.calls.append(np.array([step.as_record() for step in work], STEP))  # type: ignore[union-attr]
            else:
                self.calls += work  # type: ignore[arg-type]
        for lookup in self.lookups:
            lookup.settle()
        if self.dense is not None:
            self.numbers = self.dense.flat(0, len(self.dense.root.memory))

    def open(self, part: Part) -> Input:
        """A part, made ready for `take`."""
        if not self.lookups:
            return Input(part.dense, None, ())
        if part.sparse is None or part.sparse.keys != self.keys:
            raise ValueError(f"the ids are {part.sparse}, wanted keys {list(self.keys)}")
        kjt = part.sparse.expand()
        if kjt.batch_size != part.num_rows:
            raise ValueError(f"a part has {part.num_rows} rows, its ids are of {kjt.batch_size} samples")
        weights = 0 if kjt.weights is None else numbers_of(kjt.weights).ctypes.data
        narrow = int(kjt.values.itemsize == 4)
        ids = kjt.batch_size, narrow, weights, *places(kjt.values, kjt.offsets)
        return Input(part.dense, kjt, ids)

    def ask(self, part: Input, first: int, rows: int) -> None:
        """Prefetch what `take` will read."""
        for lookup in self.lookups:
            lookup.ask(part, first, rows)

    def take(self, part: Input, first: int, rows: int, at: int) -> None:
        """Rows `first` … of a part become rows `at` … of this stage."""
        if self.dense is not None:
            self.numbers[at : at + rows] = part.dense[first : first + rows]
        for lookup in self.lookups:
            lookup.run(part, first, rows, at)

    def run(self, starts: Array, requests: int, rows: int) -> None:
        """All calls, for so many rows of so many requests."""
        for call in self.calls:
            if isinstance(call, Call):
                call.run(rows)
            else:
                play(call, starts, requests)


class Program:
    """The forward pass for at most `max_rows` requests of one split, with any number of candidates.

    result: probabilities, (candidates, 1).
    """

    def __init__(self, shared: Stage, own: Stage, fixed: Sequence[Fixed], result: Slot, max_rows: int):
        self.shared, self.own, self.fixed, self.max_rows = shared, own, fixed, max_rows
        self.each = np.arange(max_rows + 1)  # a request is one row of the first stage
        self.starts = np.empty(max_rows + 1, np.int64)
        self.scores = result.flat(0, max_rows)[:, 0]
        shared.settle()
        own.settle()

    def refresh(self) -> None:
        """Take up parameters and buffers as they are now."""
        for fixed in self.fixed:
            fixed.refresh()

    def run(self, queries: Sequence[Query], out: Array) -> None:
        """out (ΣK,) = the probabilities of all candidates."""
        contexts = [self.shared.open(query.context) for query in queries]
        rows = [self.own.open(query.rows) for query in queries]
        pieces = _pieces([query.rows.num_rows for query in queries], self.max_rows)
        for context in contexts:
            self.shared.ask(context, 0, 1)
        self._ask(pieces[:1], rows)
        for k, context in enumerate(contexts):
            self.shared.take(context, 0, 1, k)
        self.shared.run(self.each, len(queries), len(queries))
        for i, piece in enumerate(pieces):
            self._run_piece(piece, pieces[i + 1 : i + 2], rows)
            out[piece.lo : piece.lo + piece.rows] = self.scores[: piece.rows]

    def _ask(self, pieces: Sequence[_Piece], rows: Sequence[Input]) -> None:
        """Rows of tables for these are on their way while others are computed."""
        for piece in pieces:
            for k, first, count, _ in piece.spans():
                self.own.ask(rows[k], first, count)

    def _run_piece(self, piece: _Piece, following: Sequence[_Piece], rows: Sequence[Input]) -> None:
        for k, first, count, at in piece.spans():
            self.own.take(rows[k], first, count, at)
        self._ask(following, rows)
        self.starts[: len(piece.starts)] = piece.starts
        self.own.run(self.starts, len(rows), piece.rows)


def _pieces(counts: Sequence[int], most: int) -> list[_Piece]:
    """Candidates, so many of each request, in even pieces of at most so many."""
    ends = list(accumulate(counts, initial=0))
    number = -(-ends[-1] // most)
    cuts = [ends[-1] * i // number for i in range(number + 1)] if number else []
    return [_Piece(ends, lo, hi - lo) for lo, hi in pairwise(cuts)]


class _Piece:
    """Candidates lo …, so many rows of them. ends: where those of each request begin, and their number.

    starts: the same within the piece.
    """

    __slots__ = ("ends", "lo", "rows", "starts")

    def __init__(self, ends: Sequence[int], lo: int, rows: int):
        self.ends, self.lo, self.rows = ends, lo, rows
        self.starts = [min(max(end - lo, 0), rows) for end in ends]

    def spans(self) -> Iterator[tuple[int, int, int, int]]:
        """(request, the first of its candidates here, how many, where in the piece)."""
        for k, (begin, end) in enumerate(pairwise(self.starts)):
            if begin < end:
                yield k, max(self.lo - self.ends[k], 0), end - begin, begin
