"""This machine's kernels, timed through the engine: {point: seconds}, of which `calibration` makes grids.

Every point is timed with fresh uniform ids, in a table of some size that lies in memory touched beforehand,
for page faults are no part of a step. Points take turns in several rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd import num_threads, one_thread_blas, optim, parallel_map
from tesserec.autograd.slices import add_slices
from tesserec.autograd.tensor import Tensor, no_grad
from tesserec.embeddings import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from tesserec.embeddings.allocation import aligned, planning
from tesserec.embeddings.kernels.lookup import LANE
from tesserec.embeddings.row_optim import ROW_OPTIMIZERS, RowOptimizer
from tesserec.embeddings.rowgrad import Part, RowGrad
from tesserec.sharding.codecs import Codecs
from tesserec.sharding.collection import ShardedEmbeddingBagCollection
from tesserec.sharding.comm import Array, Comm, LocalComm
from tesserec.sharding.placement import make_plan
from tesserec.sharding.slabs import Slabs

Point = tuple[Any, ...]  # what is timed, and at what numbers
Ready = Callable[[], None]
Timer = Callable[[Ready], float]  # calls the Ready when what it times is about to begin

KEPT = 64 << 20  # bytes: what caches of any cpu may keep
COLD = (
    2 << 20
)  # bytes that are read before each timed call, as other work would be, so that it finds no cache hot
ROUNDS, CALLS = 3, 3
LOW = 10  # the percentile of seconds that counts: other processes only ever add
SKEW = 1.1
HEAD_START = 5e-4  # seconds: longer than a rank that waits sleeps between two looks


class Memory:
    """Rows and states of whatever table is measured, touched once; the states have room for a quarter."""

    def __init__(self, size: int):
        self.size = size
        self.rows, *self.slots = (_touched(n) for n in (size, size >> 2, size >> 2))

    def collection(self, rows: int, width: int, data_type: Any) -> EmbeddingBagCollection:
        """One table, called t, with its rows here."""
        with planning():
            config = EmbeddingBagConfig("t", rows, width, ("t",), data_type=data_type)
            made = EmbeddingBagCollection([config], seed=0)
        (pool,) = made.pools
        pool.data = _shaped(self.rows, pool.shape, pool.dtype)
        return made

    def optimizer(self, collection: EmbeddingBagCollection, name: str) -> RowOptimizer:
        """With its states here."""
        kinds: Mapping[str, Callable[..., RowOptimizer]] = ROW_OPTIMIZERS
        with planning():
            made = kinds[name]([("t", collection.pools[0])], lr=1e-3)
        free = iter(self.slots)
        for slot, array in made.state["t"].items():
            made.state["t"][slot] = _shaped(next(free), array.shape, array.dtype)
        return made


def _touched(size: int) -> npt.NDArray[np.uint8]:
    memory: npt.NDArray[np.uint8] = aligned((size,), np.dtype(np.uint8), np.empty)
    memory[...] = 0
    return memory


def _shaped(memory: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    return memory[: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)


class Lookup:
    """`bags` bags of `length` fresh ids, looked up in a table.

    skewed: the k-th most frequent id comes about as often as k^-SKEW, frequent ones strewn over the table.
    """

    def __init__(
        self,
        memory: Memory,
        rows: int,
        width: int,
        data_type: str,
        bags: int,
        length: int,
        skewed: bool = False,
    ):
        self.collection = memory.collection(rows, width, data_type)
        self.rows, self.bags, self.length = rows, bags, length
        self.rng = np.random.default_rng(rows)
        self.places = self.rng.permutation(rows) if skewed else np.empty(0, np.int64)
        self.offsets = np.arange(0, bags * length + 1, length)
        held = memory.rows[: min(KEPT, self.collection.pools[0].data.nbytes)]
        self.warm = held.view(np.float64) if len(held) % 8 == 0 else held

    def ids(self) -> npt.NDArray[np.int64]:
        """Fresh ones."""
        if not len(self.places):
            return self.rng.integers(0, self.rows, self.bags * self.length)
        share = self.rng.random(self.bags * self.length) * (1 - (self.rows + 1.0) ** (1 - SKEW))
        found: npt.NDArray[np.int64] = self.places[((1 - share) ** (1 / (1 - SKEW)) - 1).astype(np.int64)]
        return found

    def settle(self) -> None:
        """Bring the table to where it stays while it is used."""
        self.warm.max()

    def __call__(self, ready: Ready) -> float:
        batch = KeyedJaggedTensor(("t",), self.ids(), self.offsets)
        with no_grad():
            ready()
            start = time.perf_counter()
            self.collection(batch)
            return time.perf_counter() - start


class Sort(Lookup):
    """The ids of a batch grouped by row, as updates do first; a table for each thread."""

    @cached_property
    def grad(self) -> npt.NDArray[np.float32]:
        """That of the bags."""
        return np.full((self.bags, self.collection.pools[0].shape[1]), 1e-3, np.float32)

    @property
    def tables(self) -> int:
        """How many the bags are shared out to."""
        return num_threads()

    def gradient(self) -> RowGrad:
        """That of fresh bags."""
        ids, pool = self.ids(), self.collection.pools[0]
        lanes = np.zeros(self.tables, LANE)
        cuts = np.linspace(0, self.bags, self.tables + 1).astype(int)
        lanes["table"], lanes["num_rows"], lanes["ids"] = np.arange(self.tables), self.rows, ids.ctypes.data
        lanes["bags"], lanes["count"] = np.diff(cuts), np.diff(cuts) * self.length
        lanes["offsets"] = self.offsets.ctypes.data + 8 * cuts[:-1]
        lanes["grad"], lanes["stride"] = (
            self.grad.ctypes.data + self.grad.strides[0] * cuts[:-1],
            pool.shape[1],
        )
        return RowGrad(pool.bounds, pool.shape[1], self.grad.dtype, [Part(lanes, (ids,))])

    def __call__(self, ready: Ready) -> float:
        grad = self.gradient()
        ready()
        start = time.perf_counter()
        grad.entries  # noqa: B018
        return time.perf_counter() - start


class Update(Sort):
    """The update of the rows of a batch, when its ids are sorted."""

    def __init__(
        self, memory: Memory, optimizer: str, rows: int, width: int, data_type: str, bags: int, length: int
    ):
        super().__init__(memory, rows, width, data_type, bags, length)
        self.optimizer = memory.optimizer(self.collection, optimizer)

    @property
    def tables(self) -> int:
        return 1

    def __call__(self, ready: Ready) -> float:
        grad = self.gradient()
        grad.entries  # noqa: B018
        self.collection.pools[0].grad = grad
        ready()
        start = time.perf_counter()
        self.optimizer.step()
        taken = time.perf_counter() - start
        self.optimizer.zero_grad()
        return taken


class Mirror(Comm):
    """The first of two ranks, the other of which sends just what is sent to it: all work, and no waiting."""

    def __init__(self) -> None:
        self.rank, self.size, self.hosts = 0, 2, (0, 0)

    def barrier(self) -> None:
        pass

    def duplicate(self) -> Comm:
        return Mirror()

    def split(self, color: int) -> Comm:
        return Mirror()

    def abort(self, reason: str) -> Any:
        raise SystemExit(reason)

    def _exchange(self, call: str, sources: list[Array], targets: list[Array]) -> None:
        targets[1][...] = sources[1]

    def _gather(self, call: str, source: Array, targets: list[Array]) -> None:
        targets[1][...] = source

    def _broadcast(self, flat: Array, root: int) -> None:
        pass


STAGES = ("input_dist", "look_up", "row_grads")


class Stage:
    """One stage of the exchange of `tables` tables, each half on either rank."""

    def __init__(self, stage: str, tables: int, batch: int, length: int, width: int):
        names = [f"t{k}" for k in range(tables)]
        configs = [EmbeddingBagConfig(name, 2 * _STAGE_ROWS, width, (name,)) for name in names]
        plan = make_plan(dict.fromkeys(names, (2 * _STAGE_ROWS, width)), 2, default="row_wise")
        with planning():
            collection = EmbeddingBagCollection(configs, seed=0)
        self.stage, self.names = stage, tuple(names)
        self.sharded = ShardedEmbeddingBagCollection(collection, plan, Mirror())
        self.rng, self.bags, self.length = np.random.default_rng(tables), tables * batch, length
        self.offsets = np.arange(0, self.bags * length + 1, length)

    def settle(self) -> None:
        """Nothing to do."""

    def __call__(self, ready: Ready) -> float:

        ids = self.rng.integers(0, 2 * _STAGE_ROWS, self.bags * self.length)
        kjt, exchange = KeyedJaggedTensor(self.names, ids, self.offsets), self.sharded.exchange
        ready()
        times = [time.perf_counter()]
        dist = exchange.input_dist(kjt)
        times.append(time.perf_counter())
        looked = exchange.look_up(dist)
        times.append(time.perf_counter())
        grad = looked.outputs[self.sharded.outlet].values
        times.append(time.perf_counter())
        exchange.row_grads(dist, {self.sharded.outlet: Slabs([(0, grad)])})
        times.append(time.perf_counter())
        k = STAGES.index(self.stage)
        return times[k + 1 + (k == 2)] - times[k + (k == 2)]


_STAGE_ROWS = 1000


class Call:
    """Any function."""

    def __init__(self, function: Callable[[], Any]):
        self.function = function

    def settle(self) -> None:
        """Nothing to do."""

    def __call__(self, ready: Ready) -> float:
        ready()
        start = time.perf_counter()
        self.function()
        return time.perf_counter() - start


def dense_update(name: str, size: int) -> Call:
    """A step of a dense optimizer over so many parameters."""
    kinds: Mapping[str, Any] = {"sgd": optim.SGD, "adagrad": optim.Adagrad, "adam": optim.Adam}
    tensor = Tensor(np.full((size // 256, 256), 0.1, np.float32), requires_grad=True)
    tensor.grad = np.full((size // 256, 256), 1e-3, np.float32)
    return Call(kinds[name]([("w", tensor)], lr=1e-3).step)


def slice_sums(slices: int, size: int) -> Call:
    """Dense gradients of so many slices added up, on one thread."""
    parts, total = [np.ones(size, np.float32) for _ in range(slices)], np.empty(size, np.float32)
    return Call(lambda: add_slices(parts, total))


def matrix_products(rows: int, inner: int, columns: int) -> Call:
    """One on each thread."""
    n = num_threads()
    sides = [(np.ones((rows, inner), np.float32), np.ones((inner, columns), np.float32)) for _ in range(n)]
    outs = [np.empty((rows, columns), np.float32) for _ in range(n)]

    def multiply(k: int) -> None:
        np.matmul(*sides[k], out=outs[k])

    def every() -> None:
        with one_thread_blas():
            parallel_map(multiply, range(n))

    return Call(every)


def coded(name: Any, rows: int, width: int) -> Call:
    """Vectors encoded and decoded."""
    codec = Codecs(name, name).for_values
    values = np.random.default_rng(0).normal(0, 1, rows * width).astype(np.float32)
    counts, widths = np.array([rows]), np.array([width])
    return Call(lambda: codec.decode(codec.encode(values, counts, widths), counts, widths))


class Collective:
    """all_to_all, in which each rank sends `size` bytes to each other, or all_reduce of `size` bytes."""

    def __init__(self, call: str, size: int, comm: Comm):
        counts = [size] * comm.size
        send, out = np.ones(size * comm.size, np.uint8), np.zeros(size * comm.size, np.uint8)
        array = np.zeros(max(1, size // 4), np.float32)
        self.run: Callable[[], Any] = lambda: comm.all_to_all(send, counts, counts, out)
        if call == "all_reduce":
            self.run = lambda: comm.all_reduce(array)

    def settle(self) -> None:
        """Nothing to do."""

    def __call__(self, ready: Ready) -> float:
        ready()
        start = time.perf_counter()
        self.run()
        return time.perf_counter() - start


def start_together(comm: Comm) -> None:
    """Come back at the same moment on all ranks, which are on one host.

    A barrier would not do: who comes early sleeps between looks, and so leaves late.
    """
    if comm.size > 1:
        (last,) = comm.all_reduce(np.array([time.perf_counter()]), "max")
        while time.perf_counter() < last + HEAD_START:
            pass


def timed(
    points: Mapping[Point, Any], comm: Comm | None = None, rounds: int = ROUNDS, calls: int = CALLS
) -> Generator[Point, None, dict[Point, float]]:
    """Yields each point of each round when it was timed; the generator's value is {point: seconds}.

    With a comm, all ranks time the same point at the same moment; seconds are the mean over ranks.
    """
    comm = comm or LocalComm()
    found: dict[Point, list[float]] = {point: [] for point in points}
    other = np.zeros(COLD >> 3)

    def ready() -> None:
        other.max()
        start_together(comm)

    for _ in range(rounds):
        for point, timer in points.items():
            timer.settle()
            timer(ready)
            found[point] += [timer(ready) for _ in range(calls)]
            yield point
    mine = np.array([np.percentile(taken, LOW) for taken in found.values()])
    every = comm.all_reduce(mine) / comm.size
    return dict(zip(points, every.tolist(), strict=True))
