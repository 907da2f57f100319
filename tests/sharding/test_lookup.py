"""Every plan gives what the unsharded lookup gives: vectors, gradients and updated rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tesserec.embeddings import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    JaggedTensor,
    KeyedJaggedTensor,
    RowSGD,
    planning,
)
from tesserec.sharding.codecs import Codecs
from tesserec.sharding.collection import ShardedEmbeddingBagCollection
from tesserec.sharding.comm import Comm
from tesserec.sharding.plan import (
    Shard,
    ShardingPlan,
    column_wise,
    data_parallel,
    grid_shard,
    hot_cold,
    row_wise,
    table_wise,
)
from tesserec.sharding.threads import run_ranks

Array = np.ndarray[Any, Any]

SHAPES = {"t0": (300, 8), "t1": (66_000, 8), "t2": (5, 12), "t3": (40, 8)}
WORLDS = (1, 2, 3)


def tables(pooling: str = "sum", data_type: Any = "float32") -> list[EmbeddingBagConfig]:
    features = {"t0": ("f0", "g0"), "t1": ("f1",), "t2": ("f2", "f1x"), "t3": ("f2",)}
    return [
        EmbeddingBagConfig(
            name=name,
            num_embeddings=rows,
            embedding_dim=width,
            feature_names=features[name],
            pooling="mean" if pooling == "mean" or (pooling == "mixed" and name in "t0 t1") else "sum",
            data_type=data_type,
        )
        for name, (rows, width) in SHAPES.items()
    ]


def grid(table: str, shape: tuple[int, int], ranks: Sequence[int]) -> tuple[Shard, ...]:
    n = len(ranks)
    return grid_shard(table, shape, [[ranks[0], ranks[-1]], [ranks[n // 2], ranks[0]]])


def uneven(table: str, shape: tuple[int, int], ranks: Sequence[int]) -> tuple[Shard, ...]:
    cuts = [min(shape[0] - 1, 3 * (i + 1)) for i in range(len(ranks) - 1)]
    return row_wise(table, shape, ranks, sorted(cuts))


Maker = Callable[[str, tuple[int, int], Sequence[int]], tuple[Shard, ...]]
KINDS: dict[str, Maker] = {
    "table_wise": lambda table, shape, ranks: table_wise(table, shape, ranks[hash(shape) % len(ranks)]),
    "row_wise": row_wise,
    "uneven": uneven,
    "column_wise": column_wise,
    "grid": grid,
    "data_parallel": data_parallel,
    "hot_cold": lambda table, shape, ranks: hot_cold(table, shape, 3, ranks),
}


def plan_of(kind: str, size: int) -> ShardingPlan:
    make, ranks = KINDS[kind], list(range(size))
    return ShardingPlan(tuple(s for name, shape in SHAPES.items() for s in make(name, shape, ranks)), size)


def batch(
    seed: int, samples: int, *, weighted: bool = False, longest: int = 4, shared: bool = False
) -> KeyedJaggedTensor:
    rng = np.random.default_rng(seed)
    limits = {"f0": 300, "g0": 300, "f1": 66_000, "f2": 5, "f1x": 5}
    bags, inverse = {}, {}
    for key, limit in limits.items():
        count = samples
        if shared and key in ("f0", "f2") and samples:
            count = max(1, samples // 3)
            inverse[key] = rng.integers(0, count, samples)
        lengths = rng.integers(0, longest + 1, count) if longest > 1 else np.ones(count, int)
        ids = np.where(rng.random(lengths.sum()) < 0.5, rng.integers(0, limit, lengths.sum()), 0)
        weights = rng.standard_normal(len(ids)).astype(np.float32) if weighted else None
        bags[key] = JaggedTensor.from_lengths(ids, lengths, weights)
    return KeyedJaggedTensor.from_dict(bags, inverse)


def rank_parts(kjt: KeyedJaggedTensor, size: int) -> list[KeyedJaggedTensor]:
    samples = kjt.batch_size
    cuts = [samples * r // size for r in range(size + 1)]
    return [kjt.select(lo, hi) for lo, hi in pairwise(cuts)]


def unsharded(kjt: KeyedJaggedTensor, g: Array, **options: Any) -> tuple[Array, dict[str, Array]]:
    """(output, {table: rows after a step of SGD})."""
    collection = EmbeddingBagCollection(tables(**options), seed=3)
    out = collection(kjt).values
    out.backward(g)
    step(collection)
    return out.data, collection.local_state()


def step(collection: Any) -> None:
    RowSGD([(f"p{i}", pool) for i, pool in enumerate(collection.pools)], lr=0.5).step()


def sharded(
    kjt: KeyedJaggedTensor, g: Array, plan: ShardingPlan, how: Any, comm: Comm | None, **options: Any
) -> tuple[Array, dict[str, Array]]:
    """The same of all ranks, which are threads if `comm` is None. how: options of the sharded collection."""
    parts = rank_parts(kjt, plan.num_ranks)
    grads = np.split(g, np.cumsum([part.batch_size for part in parts])[:-1])

    def body(comm: Comm) -> Any:
        with planning():
            planned = EmbeddingBagCollection(tables(**options), seed=3)
        collection = ShardedEmbeddingBagCollection(planned, plan, comm, **how)
        out = collection(parts[comm.rank]).values
        out.backward(grads[comm.rank])
        step(collection)
        return out.data, collection.rectangles()

    results = run_ranks(plan.num_ranks, body) if comm is None else comm.gather_objects(body(comm))
    return np.concatenate([out for out, _ in results]), merged([held for _, held in results])


def merged(held: Any) -> dict[str, Array]:
    """{table: its rows} put together from the rectangles of all ranks; replicas must agree."""
    state = {name: np.full(shape, np.nan) for name, shape in SHAPES.items()}
    for rectangle, rows in (item for of_rank in held for item in of_rank):
        place = state[rectangle.table][slice(*rectangle.rows), slice(*rectangle.cols)]
        assert np.isnan(place).all() or np.array_equal(place, rows), "replicas differ"
        place[...] = rows
    return state


def check(
    kjt: KeyedJaggedTensor,
    plan: ShardingPlan,
    *,
    bitwise: bool = False,
    codecs: Codecs | None = None,
    tolerance: float = 1e-5,
    comm: Comm | None = None,
    **options: Any,
) -> None:
    """Whether output and updated rows are those of the unsharded collection."""
    g = np.random.default_rng(9).standard_normal((kjt.batch_size, 56)).astype(np.float32)
    out, state = unsharded(kjt, g, **options)
    got, rows = sharded(kjt, g, plan, {"bitwise": bitwise, "codecs": codecs}, comm, **options)
    close = partial(np.allclose, rtol=tolerance, atol=tolerance)
    same = np.array_equal if bitwise else close
    assert same(got, out)
    for name, wanted in state.items():
        assert same(rows[name], wanted), name


@pytest.mark.parametrize("size", WORLDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pooling", ["sum", "mixed"])
def test_sharded_equals_unsharded(kind: str, size: int, pooling: str) -> None:
    check(batch(0, 23), plan_of(kind, size), pooling=pooling)


@pytest.mark.parametrize("size", WORLDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_bitwise_gives_equal_bits(kind: str, size: int, weighted: bool) -> None:
    check(batch(1, 37, weighted=weighted, longest=6), plan_of(kind, size), bitwise=True, pooling="mixed")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_weighted_and_shared_bags(kind: str, pooling: str) -> None:
    check(batch(2, 30, weighted=True), plan_of(kind, 2), pooling=pooling)
    check(batch(3, 30, shared=True), plan_of(kind, 2), pooling=pooling)
    check(batch(4, 30, shared=True, weighted=True), plan_of(kind, 3), pooling=pooling)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data_type", ["float16", "bfloat16", "float64"])
def test_any_storage(kind: str, data_type: str) -> None:
    check(batch(5, 20), plan_of(kind, 2), bitwise=True, data_type=data_type)


@pytest.mark.parametrize("kind", KINDS)
def test_one_id_per_bag(kind: str) -> None:
    check(batch(6, 50, longest=1), plan_of(kind, 3), bitwise=True)
    check(batch(6, 50, longest=1), plan_of(kind, 3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", [0, 1, 2])
def test_ranks_without_samples(kind: str, samples: int) -> None:
    check(batch(7, samples), plan_of(kind, 3), pooling="mixed")
