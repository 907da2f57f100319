"""What the planner says of kernels beside what they take: cases that calibration did not see.

    tesserec plan calibrate
    python -m benchmarks.planner_kernels [--topology machine.yaml]

Lookups and updates of one rank with one thread and with all, and what two ranks do side by side, through MPI:
other widths, types, table sizes, bag lengths, skews and optimizers than those that calibration measures.
Seconds are 10th percentiles, as in calibration; `error` is |log(predicted / measured)| as a percentage, and
the summary its mean, back through exp: the geometric mean absolute error.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Line, Report
from tesserec.autograd import num_threads, optim, set_num_threads
from tesserec.autograd.tensor import Tensor, accumulate, backpropagate, no_grad
from tesserec.cli.plan_options import machine_file
from tesserec.dataio.config import read_config
from tesserec.embeddings import (
    Constant,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    KeyedJaggedTensor,
    planning,
)
from tesserec.embeddings.row_optim import ROW_OPTIMIZERS
from tesserec.sharding.collection import ShardedEmbeddingBagCollection
from tesserec.sharding.comm import Comm, LocalComm, world
from tesserec.sharding.launch import in_ranks, launch, settle
from tesserec.sharding.placement import make_plan
from tesserec.sharding.planner.distance import Distances
from tesserec.sharding.planner.frequencies import Frequencies
from tesserec.sharding.planner.measure import COLD, LOW, start_together
from tesserec.sharding.planner.speeds import Speeds, at_distance, reuse
from tesserec.sharding.planner.topology import Link, Topology
from tesserec.sharding.planner.workload import RowOptimizer
from tesserec.sharding.slabs import Slabs

Shape = tuple[int, str, int, int, float, int]

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
TURNS, WARM = 25, 5
OTHER = np.zeros(COLD >> 3)  # is read before each call, as other work would be in a step

# width, type, rows, ids of a bag, Zipf exponent (0: uniform), bags
LOOKUPS: tuple[Shape, ...] = (
    (12, "float32", 30_000, 5, 0.0, 4096),
    (20, "float32", 700_000, 20, 1.05, 2048),
    (48, "float32", 300_000, 3, 0.0, 8192),
    (80, "float32", 1_500_000, 10, 0.0, 2048),
    (96, "float32", 50_000, 1, 1.2, 8192),
    (96, "float32", 1_000_000, 30, 1.1, 1024),
    (160, "float32", 400_000, 7, 0.0, 2048),
    (192, "float32", 200_000, 12, 1.3, 1024),
    (48, "float16", 2_000_000, 8, 0.0, 2048),
    (96, "float16", 500_000, 25, 1.0, 1024),
    (80, "bfloat16", 3_000_000, 4, 0.0, 4096),
    (36, "bfloat16", 100_000, 15, 1.15, 2048),
)
# optimizer, and the same
UPDATES: tuple[tuple[str, Shape], ...] = (
    ("sgd", (48, "float32", 300_000, 3, 0.0, 8192)),
    ("sgd", (96, "float32", 1_000_000, 10, 1.1, 2048)),
    ("rowwise_adagrad", (32, "float32", 2_000_000, 1, 0.0, 16384)),
    ("rowwise_adagrad", (80, "float32", 500_000, 6, 1.05, 4096)),
    ("rowwise_adagrad", (128, "float32", 100_000, 20, 1.2, 1024)),
    ("rowwise_adagrad", (48, "float16", 1_000_000, 4, 0.0, 4096)),
    ("adagrad", (32, "float32", 800_000, 5, 0.0, 4096)),
    ("adagrad", (96, "float32", 300_000, 2, 1.1, 8192)),
    ("adam", (48, "float32", 400_000, 8, 0.0, 2048)),
    ("adam", (128, "float32", 200_000, 3, 1.05, 4096)),
    ("adamw", (32, "float32", 1_000_000, 2, 1.2, 8192)),
    ("partial_rowwise_adam", (80, "float32", 300_000, 4, 0.0, 4096)),
)
DENSE = (("adam", 2, 300_000), ("adagrad", 1, 2_500_000), ("sgd", 0, 700_000))
MESSAGES = (300, 5_000, 50_000, 200_000, 700_000, 5_000_000)
SUMS = (40_000, 500_000, 4_000_000)
# tables, batch of a rank, ids of a bag, width: row-wise over the ranks
STAGES = ((5, 1024, 2, 48), (12, 2048, 1, 32), (20, 512, 6, 24), (3, 4096, 3, 96))
STAGE_ROWS = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", type=Path, default=machine_file())
    parser.add_argument("--lines", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    topology = read_config(args.topology, Topology)
    if in_ranks():
        settle()
        lines = list(side_by_side(topology, world()))
        if world().rank == 0:
            args.lines.write_text(json.dumps(lines))
        return
    with Report("planner_kernels") as report, tempfile.TemporaryDirectory() as folder:
        for threads in dict.fromkeys((1, num_threads())):
            set_num_threads(threads)
            for line in alone(topology, threads):
                report.add(line)
        found = Path(folder) / "lines.json"
        argv = ["--topology", str(args.topology), "--lines", str(found)]
        if launch(2, argv, ["-m", "benchmarks.planner_kernels"]):
            sys.exit("two ranks failed")
        for line in json.loads(found.read_text()):
            report.add(line)
        for kernel in dict.fromkeys(line["kernel"] for line in report.lines):
            report.add(summary(kernel, [line for line in report.lines if line["kernel"] == kernel]))
        report.add(summary("all", [line for line in report.lines if "cases" not in line]))


def summary(kernel: str, lines: list[Line]) -> Line:
    """The geometric mean absolute error of some lines, percent, and the worst."""
    errors = [abs(np.log(line["predicted_us"] / line["measured_us"])) for line in lines]
    mean, worst = (round(100 * float(np.expm1(x)), 1) for x in (np.mean(errors), np.max(errors)))
    return {"kernel": kernel, "cases": len(lines), "error": mean, "worst": worst}


def compared(kernel: str, label: Line, predicted: float, measured: float) -> Line:
    error = 100 * float(np.expm1(abs(np.log(predicted / measured))))
    times = {"predicted_us": round(1e6 * predicted, 2), "measured_us": round(1e6 * measured, 2)}
    return {"kernel": kernel, **label, **times, "error": round(error, 1)}


def alone(topology: Topology, threads: int) -> Iterator[Line]:
    """One rank."""
    (device,) = topology.devices.values()
    speeds = Speeds(device, max(1, device.threads // threads)) if threads > 1 else one_thread(device)
    for case in LOOKUPS:
        yield compared("lookup", {"threads": threads, **label_of(*case)}, *lookup(speeds, *case))
    for name, case in UPDATES:
        label = {"threads": threads, "optimizer": name, **label_of(*case)}
        yield compared("update", label, *update(speeds, name, *case))
    for name, numbers, size in DENSE:
        label = {"threads": threads, "optimizer": name, "parameters": size}
        step = dense_step(name, size)
        yield compared("dense_update", label, float(speeds.dense_update(size, numbers)), timed(step))


def one_thread(device: Any) -> Speeds:
    """Of one rank with one thread, and nobody beside it."""
    return Speeds(replace(device, threads=1))


def label_of(width: int, data_type: str, rows: int, length: int, zipf: float, bags: int) -> Line:
    return {"dim": width, "data_type": data_type, "rows": rows, "length": length, "zipf": zipf, "bags": bags}


def frequencies(rows: int, zipf: float) -> Frequencies:
    return Frequencies.zipf(rows, zipf, ordered=False) if zipf else Frequencies.uniform(rows)


def distances(
    speeds: Speeds, rows: int, zipf: float, row_bytes: float, ids: int, beside: float
) -> tuple[Any, Any]:
    """How far back rows were touched: of all reads, and of the first of each row in a batch."""
    one = np.array([[0.0], [rows], [row_bytes], [ids]])
    found = Distances(frequencies(rows, zipf))
    reads, firsts = found.of(one[0], one[1], one[2], one[3], beside + OTHER.nbytes, speeds.drift)
    return reads[0], firsts[0]


class Case:
    """A table, and bags of fresh ids for it: strewn over the table, as hashes do."""

    def __init__(self, width: int, data_type: Any, rows: int, length: int, zipf: float, bags: int):
        self.rows, self.bags, self.length, self.zipf = rows, bags, length, zipf
        config = EmbeddingBagConfig("t", rows, width, ("t",), data_type=data_type, init=Constant(0.01))
        self.collection = EmbeddingBagCollection([config], seed=0)
        self.offsets = np.arange(0, bags * length + 1, length)
        self.rng = np.random.default_rng(rows)
        self.reached = np.cumsum(np.arange(1, rows + 1) ** -zipf) if zipf else None
        self.places = self.rng.permutation(rows)

    def batch(self) -> KeyedJaggedTensor:
        n = self.bags * self.length
        if self.reached is None:
            return KeyedJaggedTensor(("t",), self.rng.integers(0, self.rows, n), self.offsets)
        ranks = np.searchsorted(self.reached, self.rng.random(n) * self.reached[-1])
        return KeyedJaggedTensor(("t",), self.places[ranks], self.offsets)


def lookup(
    speeds: Speeds, width: int, data_type: str, rows: int, length: int, zipf: float, bags: int
) -> tuple[float, float]:
    """(predicted, measured) seconds."""
    case, item = Case(width, data_type, rows, length, zipf, bags), ITEM_BYTES[data_type]
    batches = [case.batch() for _ in range(TURNS + WARM)]
    ids = bags * length
    depth, _ = distances(speeds, rows, zipf, width * item, ids, 4.0 * bags * width + 8.0 * ids)
    taken = []
    with no_grad():
        for batch in batches:
            OTHER.max()
            start = time.perf_counter()
            case.collection(batch)
            taken.append(time.perf_counter() - start)
    return float(speeds.lookup(ids, bags, width, item, depth)), low(taken[WARM:])


def update(
    speeds: Speeds, name: str, width: int, data_type: str, rows: int, length: int, zipf: float, bags: int
) -> tuple[float, float]:
    """(predicted, measured) seconds, from the gradient of a lookup on."""
    case, item = Case(width, data_type, rows, length, zipf, bags), ITEM_BYTES[data_type]
    kinds: Any = ROW_OPTIMIZERS
    optimizer = kinds[name]([("t", case.collection.pools[0])], lr=0.01)
    for array in (a for slots in optimizer.state.values() for a in slots.values()):
        array[...] = 0.1
    grad, taken = np.full((bags, width), 1e-3, np.float32), []
    for batch in [case.batch() for _ in range(TURNS + WARM)]:
        accumulate(backpropagate(case.collection(batch).values, grad))
        OTHER.max()
        start = time.perf_counter()
        optimizer.step()
        taken.append(time.perf_counter() - start)
        optimizer.zero_grad()
    ids, state = bags * length, RowOptimizer.named(name)
    distinct, beside = float(frequencies(rows, zipf).distinct(ids)), 8.0 * width * bags + 16.0 * ids
    near = at_distance(distinct * width * item + beside + OTHER.nbytes)
    whole = width * item + float(state.row_bytes(width))
    _, far = distances(speeds, rows, zipf, whole, ids, beside)
    predicted = speeds.update(
        ids, distinct, width, item, state, near, state_reuse=far, table_rows=rows, bags=bags
    )
    return float(predicted), low(taken[WARM:])


def dense_step(name: str, size: int) -> Callable[[], Any]:
    kinds: Any = {"sgd": optim.SGD, "adagrad": optim.Adagrad, "adam": optim.Adam}
    tensor = Tensor(np.full(size, 0.1, np.float32), requires_grad=True)
    tensor.grad = np.full(size, 1e-3, np.float32)
    step: Callable[[], Any] = kinds[name]([("w", tensor)], lr=1e-3).step
    return step


def side_by_side(topology: Topology, comm: Comm) -> Iterator[Line]:
    """What ranks do together."""
    (device,), link = topology.devices.values(), topology.hosts[0].inside
    speeds = Speeds(device, comm.size)
    for size in MESSAGES:
        predicted = float(speeds.exchange(size * (comm.size - 1), comm.size - 1, link))
        measured = together(sent(size, comm), comm)
        yield compared("all_to_all", {"ranks": comm.size, "bytes": size}, predicted, measured)
    for size in SUMS:
        predicted = float(speeds.all_reduce(size, comm.size, link))
        measured = together(partial(comm.all_reduce, np.zeros(size // 4, np.float32)), comm)
        yield compared("all_reduce", {"ranks": comm.size, "bytes": size}, predicted, measured)
    for case in LOOKUPS[1::3]:
        predicted, measured = lookup(speeds, *case)
        label = {"ranks": comm.size, **label_of(*case)}
        yield compared("lookup", label, predicted, mean(comm, measured))
    for name, case in UPDATES[2::3]:
        predicted, measured = update(speeds, name, *case)
        label = {"ranks": comm.size, "optimizer": name, **label_of(*case)}
        yield compared("update", label, predicted, mean(comm, measured))
    for shape in STAGES:
        label = dict(zip(("tables", "batch", "length", "dim"), shape, strict=True))
        estimates, times = stages(speeds, link, comm, *shape)
        for stage, estimate in estimates.items():
            yield compared(stage, {"ranks": comm.size, **label}, estimate, times[stage])


def sent(size: int, comm: Comm) -> Callable[[], Any]:
    """An all_to_all of `size` bytes from each rank to each."""
    counts = [size] * comm.size
    array, out = np.ones(size * comm.size, np.uint8), np.empty(size * comm.size, np.uint8)
    return partial(comm.all_to_all, array, counts, counts, out)


def stages(
    speeds: Speeds, link: Link, comm: Comm, tables: int, batch: int, length: int, width: int
) -> tuple[dict[str, float], dict[str, float]]:
    """({stage of the exchange: predicted seconds}, {stage: measured})."""
    names = tuple(f"t{k}" for k in range(tables))
    with planning():
        configs = [EmbeddingBagConfig(name, STAGE_ROWS, width, (name,)) for name in names]
        collection = EmbeddingBagCollection(configs, seed=0)
    plan = make_plan(dict.fromkeys(names, (STAGE_ROWS, width)), comm.size, default="row_wise")
    sharded = ShardedEmbeddingBagCollection(collection, plan, comm)
    rng, bags = np.random.default_rng(comm.rank), tables * batch
    taken: dict[str, list[float]] = {"input_dist": [], "look_up": [], "row_grads": []}
    for _ in range(TURNS + WARM):
        ids = rng.integers(0, STAGE_ROWS, bags * length)
        kjt = KeyedJaggedTensor(names, ids, np.arange(0, bags * length + 1, length))
        exchange = sharded.exchange
        dist = clocked(taken["input_dist"], comm, partial(exchange.input_dist, kjt))
        looked = clocked(taken["look_up"], comm, partial(exchange.look_up, dist))
        grad = np.ones_like(looked.outputs[sharded.outlet].values)
        slabs = {sharded.outlet: Slabs([(0, grad)])}
        clocked(taken["row_grads"], comm, partial(exchange.row_grads, dist, slabs))
    measured = {stage: mean(comm, low(times[WARM:])) for stage, times in taken.items()}
    return stages_predicted(speeds, link, comm.size, tables, batch, length, width), measured


def stages_predicted(
    speeds: Speeds, link: Link, ranks: int, tables: int, batch: int, length: int, width: int
) -> dict[str, float]:
    ids, wires = float(tables * batch * length), ranks * tables
    touched = ranks * tables * batch * (1 - (1 - 1 / ranks) ** length)
    away, peers = (ranks - 1) / ranks, ranks - 1
    id_bytes = (2 if STAGE_ROWS // ranks <= 1 << 16 else 4) * ids + touched * (length > 1)
    depth = reuse(Frequencies.uniform(STAGE_ROWS / ranks), 4.0 * width, ids / tables, 12.0 * touched * width)
    vectors = float(speeds.exchange(4.0 * width * touched * away, peers, link))
    return {
        "input_dist": float(
            speeds.pack_ids(ids, touched, wires, peers)
            + speeds.unpack_ids(ids, touched, wires)
            + speeds.exchange(id_bytes * away, peers, link)
            + speeds.exchange(12.0 * tables * peers, peers, link)
        ),
        "look_up": float(
            speeds.lookup(ids, touched, width, 4, depth, out_bytes=4.0 * width * touched)
            + speeds.add_vectors(touched, width, wires)
        )
        + vectors,
        "row_grads": float(speeds.pack_grads(touched, width, wires)) + vectors,
    }


def clocked(times: list[float], comm: Comm, run: Callable[[], Any]) -> Any:
    OTHER.max()
    start_together(comm)
    start = time.perf_counter()
    found = run()
    times.append(time.perf_counter() - start)
    return found


def together(run: Callable[[], Any], comm: Comm) -> float:
    """Low percentile of the seconds of a collective, the mean of the ranks."""
    times: list[float] = []
    for _ in range(TURNS + WARM):
        clocked(times, comm, run)
    return mean(comm, low(times[WARM:]))


def timed(run: Callable[[], Any]) -> float:
    times: list[float] = []
    for _ in range(TURNS + WARM):
        clocked(times, LocalComm(), run)
    return low(times[WARM:])


def mean(comm: Comm, seconds: float) -> float:
    return float(comm.all_reduce(np.array([seconds]))[0]) / comm.size


def low(seconds: list[float]) -> float:
    """What calibration takes too: other processes only ever add."""
    return float(np.percentile(seconds, LOW))


if __name__ == "__main__":
    main()
