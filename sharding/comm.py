"""Collectives. `Comm` is all that the rest of the engine knows about other processes.

A world is one process (`LocalComm`), threads of one process (`threads.ThreadComm`) or MPI processes
(`mpi.MpiComm`). What an operation means is written once, in `Comm`: sizes, checks, and sums in one fixed tree
over the ranks, so that every kind of world gives the same bits. A kind of world only moves bytes.
"""

from __future__ import annotations

import functools
import itertools
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt

from tesserec.sharding import timeline
from tesserec.sharding.launch import announced_ranks
from tesserec.sharding.plan import even_cut

Array = npt.NDArray[Any]
Op = Literal["sum", "max", "min"]

# all_reduce: up to here every rank gets all arrays and sums them itself, above each sums a part: bytes.
SMALL = 16 << 10
UFUNCS: dict[str, Callable[..., Array]] = {"sum": np.add, "max": np.maximum, "min": np.minimum}


class CommError(ValueError):
    """A call that cannot work: names the rank, the call, what was given and what was wanted."""


class PeerError(RuntimeError):
    """Another rank failed, or left, while this one waited for it."""


class Comm(ABC):
    """`size` ranks. Every method is collective: all ranks call it, in the same order.

    One Comm is one channel: its methods are called by one thread at a time; `duplicate` makes another
    channel for another thread. Arrays are C-contiguous, and of one dtype on all ranks.
    """

    rank: int
    size: int
    hosts: tuple[int, ...]  # the number of each rank's host: 0 for the host of rank 0, and on in order
    bytes_sent: int = 0  # what left for other ranks so far, on this channel

    def all_to_all(
        self,
        send: Array,
        counts: Sequence[int],
        received: Sequence[int] | None = None,
        out: Array | None = None,
    ) -> tuple[Array, list[int]]:
        """What every rank sent to this one, packed by source, and how many items from each.

        send: (n,), packed by destination; counts: (W,) items for each. received: (W,) what will come from
        each, where that is known: it saves a message. out: (≥ total,) of send's dtype; the result is a view.
        """
        counts = [int(count) for count in counts]
        self._check_flat("all_to_all", send)
        if len(counts) != self.size or min(counts) < 0 or sum(counts) != len(send):
            self._fail("all_to_all", f"counts {counts} for {len(send)} items, wanted {self.size} that add up")
        if received is None:
            ones = [1] * self.size
            received = self.all_to_all(np.array(counts, np.int64), ones, ones)[0].tolist()
        received = [int(count) for count in received]
        into = self._room_for("all_to_all", send, received, out)
        if received[self.rank] != counts[self.rank]:
            self._fail("all_to_all", f"counts {counts}, received {received}: they differ for the rank itself")
        sources, targets = cut(send, counts), cut(into, received)
        copy(sources[self.rank], targets[self.rank])
        self._move([part.nbytes for part in sources], lambda: self._exchange("all_to_all", sources, targets))
        return into, received

    def all_gather(
        self, array: Array, received: Sequence[int] | None = None, out: Array | None = None
    ) -> tuple[Array, list[int]]:
        """The (n,) arrays of all ranks one after another, and their lengths, which may differ.

        received: (W,) the lengths, where they are known. out: as for `all_to_all`; `array` may be the very
        part of it where it belongs.
        """
        self._check_flat("all_gather", array)
        if received is None:
            ones = [1] * self.size
            received = self.all_gather(np.array([len(array)], np.int64), ones)[0].tolist()
        received = [int(count) for count in received]
        if len(received) == self.size and received[self.rank] != len(array):
            self._fail("all_gather", f"{len(array)} items where {received[self.rank]} were announced")
        into = self._room_for("all_gather", array, received, out)
        targets = cut(into, received)
        copy(array, targets[self.rank])
        self._move([array.nbytes] * self.size, lambda: self._gather("all_gather", array, targets))
        return into, received

    def reduce_scatter(self, array: Array, out: Array | None = None) -> Array:
        """This rank's even part (`even_cut(n, size)[rank]`) of the sum over ranks of (n,) arrays.

        Summed in the tree of `fold`. out: receives it, of array's dtype; it may be that part of `array`.
        """
        self._check_flat("reduce_scatter", array)
        return self._reduce_scatter("reduce_scatter", array, "sum", out)

    def all_reduce(self, array: Array, op: Op = "sum") -> Array:
        """The sum, max or min over ranks of arrays of one shape, in place: the same bits on every rank.

        Summed in the tree of `fold`.
        """
        self._check_contiguous("all_reduce", array)
        flat = array.reshape(-1)
        if self.size == 1:
            return array
        if array.nbytes <= SMALL:
            lengths = [len(flat)] * self.size
            every = self.all_gather(flat, lengths, self._scratch(flat, sum(lengths)))[0]
            return fold(op, cut(every, lengths), flat).reshape(array.shape)
        spans = even_cut(len(flat), self.size)
        mine = flat[slice(*spans[self.rank])]
        self._reduce_scatter("all_reduce", flat, op, mine)
        self.all_gather(mine, [end - first for first, end in spans], flat)
        return array

    def broadcast(self, array: Array, root: int = 0) -> Array:
        """`array` as it is on rank `root`, in place; its shape and dtype are the same on every rank."""
        self._check_contiguous("broadcast", array)
        shapes = self.gather_objects((array.shape, array.dtype.str))
        if len(set(shapes)) > 1:
            self._fail("broadcast", f"shapes and dtypes of the ranks are {shapes}, wanted one")
        sent = array.nbytes if self.rank == root else 0
        self._move([sent] * self.size, lambda: self._broadcast(array.reshape(-1), root))
        return array

    def gather_objects(self, value: Any) -> list[Any]:
        """The small Python values of all ranks, in rank order."""
        packed, lengths = self.all_gather(np.frombuffer(pickle.dumps(value), np.uint8))
        return [pickle.loads(part.tobytes()) for part in cut(packed, lengths)]

    def by_host(self) -> tuple[Comm, Comm]:
        """(the ranks of this rank's host, the ranks that have this rank's place on each host)."""
        place = self.hosts[: self.rank].count(self.hosts[self.rank])
        return self.split(self.hosts[self.rank]), self.split(place)

    @abstractmethod
    def barrier(self) -> None:
        """Come back when every rank has come here."""

    @abstractmethod
    def duplicate(self) -> Comm:
        """Another channel between the same ranks, for another thread."""

    @abstractmethod
    def split(self, color: int) -> Comm:
        """The ranks that gave the same `color`, in the order of their ranks."""

    @abstractmethod
    def abort(self, reason: str) -> NoReturn:
        """End all ranks; `reason` is what the user reads. Not collective."""

    def leave(self, status: int) -> NoReturn:
        """End the program with exit status `status`, on all ranks in good order: none is cut short."""
        self.barrier()
        raise SystemExit(status)

    @abstractmethod
    def _exchange(self, call: str, sources: list[Array], targets: list[Array]) -> None:
        """Give sources[r] to rank r, fill targets[r] with what it gives; what is this rank's own is there."""

    @abstractmethod
    def _gather(self, call: str, source: Array, targets: list[Array]) -> None:
        """Fill targets[r] with the `source` of each other rank r; its own is there."""

    @abstractmethod
    def _broadcast(self, flat: Array, root: int) -> None:
        """Fill `flat` (n,) with rank `root`'s."""

    def _reduce_scatter(self, call: str, array: Array, op: Op, out: Array | None) -> Array:
        spans = even_cut(len(array), self.size)
        sources = [array[slice(*part)] for part in spans]
        mine = sources[self.rank]
        out = np.empty_like(mine) if out is None else out
        if out.dtype != array.dtype or out.shape != mine.shape:
            self._fail(call, f"out is {out.dtype} {out.shape}, wanted {array.dtype} {mine.shape}")
        scratch = self._scratch(array, len(mine) * self.size)
        targets = cut(scratch, [len(mine)] * self.size)
        copy(mine, targets[self.rank])
        self._move([part.nbytes for part in sources], lambda: self._exchange(call, sources, targets))
        return fold(op, targets, out)

    def _move(self, sizes: Sequence[int], move: Callable[[], None]) -> None:
        """`move()`, which sends so many bytes to each rank, and note that it did."""
        if self.size == 1:
            return
        sent = sum(sizes) - sizes[self.rank]
        timeline.moving(move, sent, sum(sizes[r] for r in self._abroad))
        self.bytes_sent += sent

    @functools.cached_property
    def _abroad(self) -> list[int]:
        """The ranks that are on other hosts."""
        return [rank for rank, host in enumerate(self.hosts) if host != self.hosts[self.rank]]

    def _room_for(self, call: str, send: Array, received: list[int], out: Array | None) -> Array:
        """(total,) of `out`, or new memory."""
        if len(received) != self.size or min(received) < 0:
            self._fail(call, f"received {received}, wanted {self.size} counts")
        total = sum(received)
        if out is None:
            return np.empty(total, send.dtype)
        if out.dtype != send.dtype or out.ndim != 1 or len(out) < total or not out.flags.c_contiguous:
            self._fail(call, f"out is {out.dtype} {out.shape}, wanted {send.dtype} ({total},), contiguous")
        return out[:total]

    def _scratch(self, like: Array, items: int) -> Array:
        """(items,) of like's dtype, in memory of the Comm's own that the next call uses again."""
        nbytes = items * like.itemsize
        if len(self._spare) < nbytes:
            self._spare = np.empty(nbytes, np.uint8)
        return self._spare[:nbytes].view(like.dtype)

    _spare: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    def _check_flat(self, call: str, array: Array) -> None:
        self._check_contiguous(call, array)
        if array.ndim != 1:
            self._fail(call, f"an array of shape {array.shape}, wanted (n,)")

    def _check_contiguous(self, call: str, array: Array) -> None:
        if not array.flags.c_contiguous or array.dtype.hasobject or array.itemsize == 0:
            self._fail(
                call, f"{array.dtype} {array.shape}, strides {array.strides}: wanted contiguous numbers"
            )

    def _fail(self, call: str, problem: str) -> NoReturn:
        raise CommError(f"rank {self.rank}: {call}: {problem}")


def fold(op: Op, parts: Sequence[Array], out: Array) -> Array:
    """The sum (max, min) of `parts` in `out`, by the tree(n) = tree(n // 2) + tree(n - n // 2).

    The first n // 2 parts are one branch. Uses the parts as scratch; `out` may be one of them, or none.
    """
    if len(parts) == 1:
        copy(parts[0], out)
        return out
    half = len(parts) // 2
    left = fold(op, parts[:half], parts[0])
    right = fold(op, parts[half:], parts[half])
    UFUNCS[op](left, right, out=out)
    return out


def cut(array: Array, counts: Sequence[int]) -> list[Array]:
    """Consecutive parts of `array`, of these lengths."""
    ends = list(itertools.accumulate(counts))
    return [array[end - count : end] for count, end in zip(counts, ends, strict=True)]


def copy(source: Array, target: Array) -> None:
    """target[:] = source, unless they are the same memory."""
    if len(source) and source.ctypes.data != target.ctypes.data:
        target[...] = source


class LocalComm(Comm):
    """A world of one rank: nothing is sent."""

    def __init__(self) -> None:
        self.rank, self.size, self.hosts = 0, 1, (0,)

    def barrier(self) -> None:
        pass

    def duplicate(self) -> Comm:
        return LocalComm()

    def split(self, color: int) -> Comm:
        return LocalComm()

    def abort(self, reason: str) -> NoReturn:
        raise SystemExit(reason)

    def _exchange(self, call: str, sources: list[Array], targets: list[Array]) -> None:
        pass

    def _gather(self, call: str, source: Array, targets: list[Array]) -> None:
        pass

    def _broadcast(self, flat: Array, root: int) -> None:
        pass


@functools.cache
def world() -> Comm:
    """All ranks of the job: an MpiComm where a launcher started several, else a LocalComm, without MPI."""
    if announced_ranks() == 1:
        return LocalComm()
    from tesserec.sharding.mpi import mpi_world

    return mpi_world(announced_ranks())
