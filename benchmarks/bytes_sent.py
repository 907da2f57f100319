"""Bytes that a sharded lookup sends in a step, beside the least possible and beside TorchRec's formulas.

    python -m benchmarks.bytes_sent

Forward and backward of one global batch, worlds of threads, every byte that leaves a rank for another
counted by the communicator, our messages of sizes too. `overhead`: ours to the minimum of
`benchmarks.wire_minimum`, which defines both sides, `packed` to that with ids of three bytes; `outputs`,
`all`: how many times as much TorchRec sends, of vectors and in all. For hot_cold it is taken to shard by
rows: it has nothing like it.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from benchmarks.cases import draw
from benchmarks.harness import Line, Report, arguments
from benchmarks.wire_minimum import Ids, Sent, minimum, torchrec
from tesserec.embeddings import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    KeyedJaggedTensor,
    planning,
)
from tesserec.sharding.collection import ShardedEmbeddingBagCollection
from tesserec.sharding.comm import Comm
from tesserec.sharding.placement import make_plan
from tesserec.sharding.plan import ShardingPlan
from tesserec.sharding.slabs import Slabs
from tesserec.sharding.threads import run_ranks

TABLES, DIM, BATCH = 8, 64, 4096
KINDS = ("row_wise", "table_wise", "column_wise", "grid_shard", "hot_cold:2000")
NAMES = [f"t{k}" for k in range(TABLES)]


def main() -> None:
    args = arguments(__doc__, ranks=[2, 4, 8], lengths=[1, 3, 10], kinds=KINDS)
    rows = 20_000 if args.quick else 200_000
    with Report("bytes_sent") as report:
        for kind, ranks, length in product(args.kinds, args.ranks, args.lengths):
            report.add({"kind": kind, "ranks": ranks, "length": length, **compare(kind, ranks, length, rows)})
        worst = {name: max(line[name] for line in report.lines) for name in ("overhead", "packed")}
        report.add({"kind": "the worst", **worst})


def compare(kind: str, ranks: int, length: int, rows: int) -> Line:
    """Ours, the least, and the ratios; bytes of all ranks."""
    rng = np.random.default_rng([ranks, length])
    draws = "log" if kind.startswith("hot_cold") else "uniform"
    batch = {name: draw(draws, rows, BATCH * length, rng).reshape(BATCH, length) for name in NAMES}
    shapes = dict.fromkeys(NAMES, (rows, DIM))
    plan = make_plan(shapes, ranks, default=kind)
    ours, least, packed = measured(plan, batch, rows), minimum(plan, batch), minimum(plan, batch, packed=True)
    theirs = torchrec(make_plan(shapes, ranks, default="row_wise") if draws == "log" else plan, batch)
    return {
        "ours": round(ours.total),
        "minimum": round(least.total),
        "overhead": round(ours.total / least.total, 4),
        "packed": round(ours.total / packed.total, 4),
        "outputs": round(theirs.vectors / ours.vectors, 2),
        "all": round(theirs.total / ours.total, 2),
    }


def measured(plan: ShardingPlan, batch: dict[str, Ids], rows: int) -> Sent:
    """What a world of threads sends for the batch."""
    configs = [EmbeddingBagConfig(name, rows, DIM, (name,)) for name in NAMES]
    length = next(iter(batch.values())).shape[1]

    def work(comm: Comm) -> Sent:
        with planning():
            collection = EmbeddingBagCollection(configs, seed=0)
        sharded = ShardedEmbeddingBagCollection(collection, plan, comm)
        mine = np.concatenate([np.split(ids, comm.size)[comm.rank].ravel() for ids in batch.values()])
        bags = TABLES * BATCH // comm.size
        kjt = KeyedJaggedTensor.from_lengths(NAMES, mine, np.full(bags, length))
        counts = [comm.bytes_sent]
        dist = sharded.exchange.input_dist(kjt)
        counts.append(comm.bytes_sent)
        looked = sharded.exchange.look_up(dist)
        counts.append(comm.bytes_sent)
        grad = np.ones_like(looked.outputs[sharded.outlet].values)
        sharded.exchange.row_grads(dist, {sharded.outlet: Slabs([(0, grad)])})
        counts.append(comm.bytes_sent)
        ids, vectors, back = np.diff(counts).tolist()
        return Sent(ids, vectors, back - vectors)

    return sum(run_ranks(plan.num_ranks, work), Sent(0, 0))


if __name__ == "__main__":
    main()
