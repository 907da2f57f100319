"""Dense parameters over ranks: every rank holds all of them, or a part of each.

Parameters of one type lie in buckets, the last parameters in the first bucket, because the backward pass
comes to them first. When all slices of the batch have delivered their gradients of a bucket, these are summed
over the slices and over the ranks, on a thread and a channel of their own, while the backward pass goes on.

`DenseReplicas`: every rank updates all parameters alike, from the same sums. `DenseShards` (ZeRO, stage 3,
Rajbhandari et al. 2020): each rank keeps an even part of every bucket, of parameters, gradients and optimizer
state. Parameters are whole only from the lookup of a batch to the end of its backward pass.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tesserec.autograd.module import copy_state
from tesserec.autograd.optim import Optimizer
from tesserec.autograd.slices import add_slices
from tesserec.autograd.tensor import Array, Gradients, Take, Tensor
from tesserec.sharding import timeline
from tesserec.sharding.background import Background
from tesserec.sharding.comm import Comm
from tesserec.sharding.plan import Span, even_cut

BUCKET_BYTES = 4 << 20

Parameters = Mapping[str, Tensor]


class DenseError(ValueError):
    """Dense parameters that are not the same on all ranks; the message names them, and the ranks."""


@dataclass(frozen=True, slots=True, eq=False)
class Bucket:
    """Parameters whose numbers lie in a row: those of leaves[k] at spans[k]."""

    leaves: Sequence[Tensor]
    spans: Sequence[Span]

    @property
    def size(self) -> int:
        return self.spans[-1][1]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.leaves[0].dtype

    def cut(self, flat: Array) -> dict[Tensor, Array]:
        """{parameter: its numbers among those of the bucket, in its shape}; views."""
        placed = zip(self.leaves, self.spans, strict=True)
        return {leaf: flat[lo:hi].reshape(leaf.shape) for leaf, (lo, hi) in placed}


def make_buckets(leaves: Sequence[Tensor], most: int) -> list[Bucket]:
    """All of `leaves`, last first, in buckets of one type and at most `most` bytes, or of one leaf."""
    groups: list[list[Tensor]] = []
    last: dict[Any, tuple[list[Tensor], int]] = {}  # the newest group of each type, and its bytes
    for leaf in reversed(leaves):
        group, size = last.get(leaf.dtype, ([], most))
        if size + leaf.data.nbytes > most:
            group, size = [], 0
            groups.append(group)
        group.append(leaf)
        last[leaf.dtype] = group, size + leaf.data.nbytes
    return [_bucket(group) for group in groups]


def _bucket(leaves: Sequence[Tensor]) -> Bucket:
    ends = np.cumsum([leaf.size for leaf in leaves]).tolist()
    return Bucket(leaves, [(end - leaf.size, end) for leaf, end in zip(leaves, ends, strict=True)])


class DenseReplicas:
    """Parameters that every rank holds whole and updates alike.

    own: {name: what optimizers update on this rank}. Every method but `release` is collective.
    """

    def __init__(self, parameters: Parameters, comm: Comm, *, bucket_bytes: int = BUCKET_BYTES):
        """Takes `comm` for itself. DenseError where the parameters are not the same on all ranks."""
        check_equal(parameters, comm)
        self.own: Parameters = dict(parameters)
        self.comm = comm
        self.buckets = make_buckets(list(parameters.values()), bucket_bytes)
        self.background = Background("dense")

    def gather(self) -> Future[None] | None:
        """Begin to make the parameters whole, if they are not."""
        return None

    def release(self, *, changed: bool = False) -> None:
        """Hold only what is this rank's. changed: its own part is to be what was written to whole ones."""

    def reduce(self, bucket: Bucket, parts: Sequence[Gradients]) -> Gradients:
        """{own: its gradient summed over slices and ranks}, without those that no rank has; empties parts."""
        flat, held = _packed(bucket, parts)
        self.comm.all_reduce(flat)
        return {leaf: g for (leaf, g), some in zip(bucket.cut(flat).items(), held, strict=True) if some}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Array]:
        """{"slot.parameter": array in the parameter's shape}, whatever number of ranks there is."""
        return {
            f"{slot}.{name}": self._whole(name, array)
            for name, slots in optimizer.state.items()
            for slot, array in slots.items()
        }

    def load_optimizer_state(self, optimizer: Optimizer, state: Mapping[str, Array]) -> None:
        """Go on with what `optimizer_state` gave. StateError, before any change, where it does not fit."""
        wanted = self.optimizer_state(optimizer)
        copy_state(state, wanted, type(optimizer).__name__)
        for name, slots in optimizer.state.items():
            for slot, array in slots.items():
                array[...] = self._part(name, wanted[f"{slot}.{name}"])

    def _whole(self, name: str, array: Array) -> Array:
        """All numbers of which `array` has those that belong to `own[name]`."""
        return array

    def _part(self, name: str, whole: Array) -> Array:
        """What belongs to `own[name]`."""
        return whole


class DenseShards(DenseReplicas):
    """Parameters of which each rank keeps and updates a part: own has the flat parts, some of them empty.

    While they are not whole, the model's parameters are NaN.
    """

    def __init__(self, parameters: Parameters, comm: Comm, *, bucket_bytes: int = BUCKET_BYTES):
        super().__init__(parameters, comm, bucket_bytes=bucket_bytes)
        self.leaves = dict(parameters)
        self.homes = {leaf: (b, s) for b in self.buckets for leaf, s in zip(b.leaves, b.spans, strict=True)}
        self.kept = [np.empty(self._sizes(bucket)[comm.rank], bucket.dtype) for bucket in self.buckets]
        self.parts = {
            leaf: Tensor(part, requires_grad=True)
            for bucket, kept in zip(self.buckets, self.kept, strict=True)
            for leaf, part in zip(bucket.leaves, self._cut(bucket, kept), strict=True)
        }
        self.own = {name: self.parts[leaf] for name, leaf in parameters.items()}
        self.is_whole = True
        self.release(changed=True)

    def gather(self) -> Future[None] | None:
        if self.is_whole:
            return None
        self.is_whole = True
        return self.background.submit(self._gather)

    def release(self, *, changed: bool = False) -> None:
        for leaf, part in self.parts.items():
            if changed:
                part.data[...] = leaf.data.reshape(-1)[slice(*self._share(leaf, self.comm.rank))]
            leaf.data = np.broadcast_to(np.array(np.nan, leaf.dtype), leaf.shape)
        self.is_whole = False

    def reduce(self, bucket: Bucket, parts: Sequence[Gradients]) -> Gradients:
        flat, held = _packed(bucket, parts)
        kept = self.comm.reduce_scatter(flat[: bucket.size])
        self.comm.all_reduce(held)
        leaves = zip(bucket.leaves, self._cut(bucket, kept), held, strict=True)
        return {self.parts[leaf]: g for leaf, g, some in leaves if some}

    def _gather(self) -> None:
        with timeline.span("gather_dense"):
            for bucket, kept in zip(self.buckets, self.kept, strict=True):
                flat, _ = self.comm.all_gather(kept, self._sizes(bucket))
                for leaf, array in bucket.cut(flat).items():
                    leaf.data = array

    def _sizes(self, bucket: Bucket) -> list[int]:
        """How many of the bucket's numbers each rank has."""
        return [end - first for first, end in even_cut(bucket.size, self.comm.size)]

    def _cut(self, bucket: Bucket, kept: Array) -> list[Array]:
        """What this rank's part of a bucket has of each parameter."""
        shares = (self._share(leaf, self.comm.rank) for leaf in bucket.leaves)
        ends = np.cumsum([end - first for first, end in shares])
        return np.split(kept, ends[:-1])

    def _share(self, leaf: Tensor, rank: int) -> Span:
        """Which of the parameter's numbers are the rank's."""
        bucket, (first, end) = self.homes[leaf]
        lo, hi = (min(max(at, first), end) for at in even_cut(bucket.size, self.comm.size)[rank])
        return lo - first, hi - first

    def _whole(self, name: str, array: Array) -> Array:
        leaf = self.leaves[name]
        shares = (self._share(leaf, rank) for rank in range(self.comm.size))
        return self.comm.all_gather(array, [end - first for first, end in shares])[0].reshape(leaf.shape)

    def _part(self, name: str, whole: Array) -> Array:
        return whole.reshape(-1)[slice(*self._share(self.leaves[name], self.comm.rank))]


class Reduction:
    """The dense gradients of one step, each bucket summed as soon as every slice has delivered it."""

    def __init__(self, dense: DenseReplicas, slices: int):
        self.dense = dense
        self.parts: list[Gradients] = [{} for _ in range(slices)]
        self.places = {leaf: k for k, bucket in enumerate(dense.buckets) for leaf in bucket.leaves}
        self.missing = [slices * len(bucket.leaves) for bucket in dense.buckets]
        self.sums: list[Future[Gradients]] = []  # of the buckets in order: that of the channel's calls
        self._lock = threading.Lock()

    def take(self, k: int) -> Take:
        """What slice `k` gives its gradients to, on whatever thread: see `autograd.gradients`."""
        return partial(self._take, self.parts[k])

    def finish(self) -> Gradients:
        """{own parameter: its gradient, summed over slices and ranks}. Collective."""
        with self._lock:
            self._start(len(self.missing))
        return {leaf: g for future in self.sums for leaf, g in future.result().items()}

    def _take(self, part: Gradients, leaf: Tensor, g: Any) -> bool:
        place = self.places.get(leaf)
        if place is None:
            return False
        part[leaf] = np.asarray(g, order="C")
        with self._lock:
            self.missing[place] -= 1
            done = next((k for k, n in enumerate(self.missing) if n), len(self.missing))
            self._start(done)
        return True

    def _start(self, end: int) -> None:
        """Begin to sum the buckets up to `end`."""
        for bucket in self.dense.buckets[len(self.sums) : end]:
            self.sums.append(self.dense.background.submit(partial(self._reduce, bucket)))

    def _reduce(self, bucket: Bucket) -> Gradients:
        with timeline.span("reduce_dense"):
            return self.dense.reduce(bucket, self.parts)


def check_equal(parameters: Parameters, comm: Comm) -> None:
    """DenseError unless every parameter has the same bits on all ranks. Collective."""
    sums = {name: zlib.crc32(leaf.data.tobytes()) for name, leaf in parameters.items()}
    every = comm.gather_objects(sums)
    for name in dict.fromkeys(name for found in every for name in found):
        kinds: dict[int | None, list[int]] = {}
        for rank, found in enumerate(every):
            kinds.setdefault(found.get(name), []).append(rank)
        if len(kinds) > 1:
            raise DenseError(
                f"parameter {name!r} is not the same on all ranks: {' / '.join(map(str, kinds.values()))} "
                "differ; make the model from the same seed and options on each"
            )


def _packed(bucket: Bucket, parts: Sequence[Gradients]) -> tuple[Array, Array]:
    """(the bucket's gradients summed over slices, then a 1 for each parameter that has any; the ones).

    Takes them out of `parts`.
    """
    flat = np.empty(bucket.size + len(bucket.leaves), bucket.dtype)
    held = flat[bucket.size :]
    for k, (leaf, (lo, hi)) in enumerate(zip(bucket.leaves, bucket.spans, strict=True)):
        terms = [part.pop(leaf, None) for part in parts]
        held[k] = any(term is not None for term in terms)
        add_slices(terms, flat[lo:hi])
    return flat, held
