"""Sharded collections: sequences, learned weights, codecs, slices of what was looked up, random tilings."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.autograd import Tensor, gradients, no_grad, ops
from tesserec.autograd.slices import sum_of_slices
from tesserec.autograd.tensor import accumulate
from tesserec.embeddings import (
    Clamp,
    Drop,
    EmbeddingBagCollection,
    EmbeddingCollection,
    EmbeddingConfig,
    Hash,
    JaggedError,
    PositionWeighted,
    RowGrad,
    planning,
)
from tesserec.embeddings.bags import numbers_of
from tesserec.sharding.codecs import Codecs
from tesserec.sharding.collection import ShardedEmbeddingBagCollection, ShardedEmbeddingCollection
from tesserec.sharding.comm import Comm, LocalComm, world
from tesserec.sharding.exchange import Exchange
from tesserec.sharding.plan import Shard, ShardingPlan
from tesserec.sharding.slabs import Slabs
from tesserec.sharding.threads import run_ranks
from tests.sharding.test_lookup import (
    KINDS,
    SHAPES,
    Array,
    batch,
    check,
    merged,
    plan_of,
    rank_parts,
    step,
    tables,
)


def sequences() -> list[EmbeddingConfig]:
    return [EmbeddingConfig(t.name, t.num_embeddings, t.embedding_dim, t.feature_names) for t in tables()]


def weigh(found: dict[str, Any], names: dict[str, Array]) -> Tensor:
    """A loss that each row enters with weights of its own."""
    parts = [(bags.values * names[name][: len(bags.values)]).sum() for name, bags in found.items()]
    return ops.concat(*(part.reshape(1) for part in parts), axis=0).sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bitwise", [False, True])
def test_sequences_equal_unsharded(kind: str, bitwise: bool) -> None:
    check_sequences(plan_of(kind, 3), bitwise=bitwise)


def check_sequences(plan: ShardingPlan, *, bitwise: bool, comm: Comm | None = None) -> None:
    kjt, size = batch(0, 17), plan.num_ranks
    whole = EmbeddingCollection(sequences(), seed=1)
    parts = rank_parts(kjt, size)
    wanted = whole(kjt)
    rng = np.random.default_rng(0)
    factors = {
        name: rng.standard_normal(bags.values.shape).astype(np.float32) for name, bags in wanted.items()
    }
    weigh(wanted, factors).backward()
    step(whole)

    def body(comm: Comm) -> Any:
        with planning():
            given = EmbeddingCollection(sequences(), seed=1)
        collection = ShardedEmbeddingCollection(given, plan, comm, bitwise=bitwise)
        found = collection(parts[comm.rank])
        mine = {}
        for name in found:
            feature = name.split("@")[0]
            before = sum(len(part[feature].values) for part in parts[: comm.rank])
            mine[name] = factors[name][before:]
        weigh(found, mine).backward()
        step(collection)
        return {name: bags.values.data for name, bags in found.items()}, collection.rectangles()

    results = run_ranks(size, body) if comm is None else comm.gather_objects(body(comm))
    for name, bags in wanted.items():
        assert np.array_equal(np.concatenate([found[name] for found, _ in results]), bags.values.data)
    rows = merged([held for _, held in results])
    for name, array in whole.local_state().items():
        tolerance = 0 if bitwise else 1e-5
        np.testing.assert_allclose(rows[name], array, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_learned_weights_get_their_gradient(kind: str) -> None:
    kjt, plan = batch(1, 14), plan_of(kind, 3)
    parts = rank_parts(kjt, 3)
    lengths = {"f0": 5, "f1": 5, "f2": 2}
    g = np.random.default_rng(2).standard_normal((14, 56)).astype(np.float32)

    def collection() -> EmbeddingBagCollection:
        processor = PositionWeighted(lengths, clamp=True)
        return EmbeddingBagCollection(tables("mixed"), seed=2, processor=processor)

    whole = collection()
    whole(kjt).values.backward(g)
    cuts = np.cumsum([part.batch_size for part in parts])

    def body(comm: Comm) -> Any:
        with planning():
            given = collection()
        sharded = ShardedEmbeddingBagCollection(given, plan, comm)
        lo = cuts[comm.rank] - parts[comm.rank].batch_size
        sharded(parts[comm.rank]).values.backward(g[lo : cuts[comm.rank]])
        return {name: tensor.grad for name, tensor in sharded.named_parameters() if "weights" in name}

    results = run_ranks(3, body)
    for name, tensor in whole.named_parameters():
        if "weights" not in name:
            continue
        np.testing.assert_allclose(sum(found[name] for found in results), tensor.grad, rtol=1e-4, atol=1e-5)


def test_gradients_of_weights_of_a_batch() -> None:
    kjt, plan = batch(1, 14, weighted=True), plan_of("hot_cold", 1)
    g = np.random.default_rng(2).standard_normal((14, 56)).astype(np.float32)
    found = []
    whole = EmbeddingBagCollection(tables("mixed"), seed=2)
    for collection in (whole, ShardedEmbeddingBagCollection(whole, plan, LocalComm())):
        weights = Tensor(numbers_of(kjt.weights), requires_grad=True)
        collection(kjt.with_weights(weights * 2.0)).values.backward(g)
        found.append(weights.grad)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["table_wise", "grid", "hot_cold"])
def test_slices_of_what_was_looked_up(kind: str) -> None:
    """The stages of a training step: look up, model in slices, Slabs back."""
    kjt, plan = batch(3, 24), plan_of(kind, 2)
    parts = rank_parts(kjt, 2)
    g = np.random.default_rng(4).standard_normal((24, 56)).astype(np.float32)
    whole = EmbeddingBagCollection(tables("mixed"), seed=2)
    whole(kjt).values.backward(g)
    step(whole)

    def body(comm: Comm) -> Any:
        collection = ShardedEmbeddingBagCollection(
            EmbeddingBagCollection(tables("mixed"), seed=2), plan, comm
        )
        exchange = collection.exchange
        dist = exchange.input_dist(parts[comm.rank])
        looked = exchange.look_up(dist)
        slices = []
        for lo in range(0, 12, 5):
            part = looked.select(lo, min(lo + 5, 12))
            out = collection(part).values
            slices.append(gradients(out, g[12 * comm.rank + lo :][: len(out)]))
        grads = sum_of_slices(slices)
        assert isinstance(grads[collection.outlet], Slabs)
        for pool, grad in exchange.row_grads(dist, grads).items():
            assert isinstance(grad, RowGrad)
            pool.grad = grad
        step(collection)
        return collection.rectangles()

    rows = merged(run_ranks(2, body))
    for name, array in whole.local_state().items():
        np.testing.assert_allclose(rows[name], array, rtol=1e-5, atol=1e-6)


def test_slabs_that_overlap_or_leave_gaps() -> None:
    ones = np.ones((2, 3), np.float32)
    dense = Slabs([(3, ones), (0, ones)]) + Slabs([(1, 2 * ones)])
    [(first, grad)] = dense.tiles(6, 3, np.dtype(np.float32))
    assert first == 0 and grad[:, 0].tolist() == [1, 3, 2, 1, 1, 0]
    assert [first for first, _ in Slabs([(2, ones), (0, ones)]).tiles(4, 3, ones.dtype)] == [0, 2]
    assert [len(grad) for _, grad in Slabs([]).tiles(5, 3, ones.dtype)] == [5]
    assert Slabs([]).tiles(0, 3, ones.dtype)[0][1].shape == (0, 3)


@pytest.mark.parametrize("codec", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "data_parallel", "hot_cold"])
def test_codecs_are_close_and_replicas_stay_the_same(kind: str, codec: Any) -> None:
    check(batch(5, 20), plan_of(kind, 2), codecs=Codecs(codec, codec), tolerance=0.1)


def test_bitwise_refuses_what_has_no_order() -> None:
    whole, plan = EmbeddingBagCollection(tables(), seed=0), plan_of("table_wise", 1)
    with pytest.raises(ValueError, match="bitwise"):
        ShardedEmbeddingBagCollection(whole, plan, LocalComm(), bitwise=True, codecs=Codecs("fp16"))
    collection = ShardedEmbeddingBagCollection(whole, plan, LocalComm(), bitwise=True)
    with pytest.raises(JaggedError, match="shared bags"):
        collection(batch(0, 6, shared=True))


def test_tables_in_memory_are_copied() -> None:
    whole = EmbeddingBagCollection(tables(), seed=0)
    whole.pools[0].data[...] = 7
    collection = ShardedEmbeddingBagCollection(whole, plan_of("grid", 1), LocalComm())
    rows = merged([collection.rectangles()])
    for name, array in whole.local_state().items():
        assert np.array_equal(rows[name], array)
    with no_grad():
        np.testing.assert_allclose(collection(batch(0, 5)).values.data, whole(batch(0, 5)).values.data, 1e-5)


def three_collections() -> list[Any]:
    """Pooled float32, pooled float64, and sequences, of the same features; unseen ids are treated."""
    unseen: dict[str, Any] = {"t0": Clamp(7), "t1": Hash(), "t2": Drop(), "t3": Drop()}
    wide = tables("mean", "float64")
    return [
        EmbeddingBagCollection([replace(t, unseen=unseen[t.name]) for t in tables("mixed")], seed=1),
        EmbeddingBagCollection([replace(t, unseen=unseen[t.name]) for t in wide], seed=2),
        EmbeddingCollection([replace(t, unseen=unseen[t.name]) for t in sequences()], seed=3),
    ]


def outputs_of(found: Any) -> list[Tensor]:
    return [bags.values for bags in found.values()] if isinstance(found, dict) else [found.values]


@pytest.mark.parametrize("kind", ["table_wise", "grid", "hot_cold"])
def test_several_collections_share_an_exchange(kind: str) -> None:
    """Also those of other types of numbers; unseen ids are treated and counted where they are read."""
    kjt, plan = batch(6, 16), plan_of(kind, 2)
    kjt = replace(kjt, values=np.where(np.arange(len(kjt.values)) % 5, kjt.values, 100_000))
    wholes, parts = three_collections(), rank_parts(kjt, 2)
    wanted = [outputs_of(whole(kjt)) for whole in wholes]
    for whole, outputs in zip(wholes, wanted, strict=True):
        for out in outputs:
            out.backward(np.ones(out.shape, out.dtype), retain_graph=True)
        step(whole)

    def body(comm: Comm) -> Any:
        kinds = {True: ShardedEmbeddingBagCollection, False: ShardedEmbeddingCollection}
        made = [kinds[isinstance(c, EmbeddingBagCollection)](c, plan, comm) for c in three_collections()]
        exchange = Exchange([collection.shards for collection in made], comm)
        dist = exchange.input_dist(parts[comm.rank])
        looked = exchange.look_up(dist)
        grads: dict[Tensor, Any] = {}
        found = [outputs_of(collection(looked)) for collection in made]
        for out in (out for outputs in found for out in outputs):
            grads |= gradients(out, np.ones(out.shape, out.dtype))
        accumulate(exchange.row_grads(dist, grads))
        for collection in made:
            step(collection)
        unseen = [collection.unseen_ids() for collection in made]
        return [[out.data for out in outputs] for outputs in found], [c.rectangles() for c in made], unseen

    results = run_ranks(2, body)
    for c, whole in enumerate(wholes):
        for i, out in enumerate(wanted[c]):
            got = np.concatenate([found[c][i] for found, _, _ in results])
            np.testing.assert_allclose(got, out.data, rtol=1e-5, atol=1e-6)
        rows = merged([held[c] for _, held, _ in results])
        for name, array in whole.local_state().items():
            np.testing.assert_allclose(rows[name], array, rtol=1e-5, atol=1e-6)
        counts = [Counter(unseen[c]) for _, _, unseen in results]
        assert counts[0] + counts[1] == whole.unseen_ids()


def test_frozen_tables_get_no_gradient() -> None:
    collection = ShardedEmbeddingBagCollection(
        EmbeddingBagCollection(tables(), seed=0), plan_of("row_wise", 1), LocalComm()
    )
    for pool in collection.pools[1:]:
        pool.requires_grad = False
    collection(batch(0, 5)).values.sum().backward()
    assert [pool.grad is not None for pool in collection.pools] == [True] + [False] * (
        len(collection.pools) - 1
    )


@st.composite
def tilings(draw: Any, size: int) -> ShardingPlan:
    """Every table cut again and again, along rows or columns; each rectangle on one rank or several."""
    shards = []

    def cut(table: str, rows: Any, cols: Any, depth: int) -> None:
        spans = [rows, cols]
        axis = draw(st.integers(0, 3))
        if depth and axis < 2 and spans[axis][1] - spans[axis][0] > 1:
            lo, hi = spans[axis]
            middle = draw(st.integers(lo + 1, hi - 1))
            for part in ((lo, middle), (middle, hi)):
                spans[axis] = part
                cut(table, spans[0], spans[1], depth - 1)
            return
        for rank in draw(st.sets(st.integers(0, size - 1), min_size=1)):
            shards.append(Shard(table, tuple(rows), tuple(cols), rank))

    for name, (rows, width) in SHAPES.items():
        cut(name, (0, rows), (0, width), 3)
    return ShardingPlan(tuple(shards), size)


@given(st.data(), st.integers(1, 4), st.booleans(), st.booleans(), st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_any_tiling_equals_unsharded(data: Any, size: int, bitwise: bool, weighted: bool, seed: int) -> None:
    plan = data.draw(tilings(size))
    plan.check(SHAPES)
    check(batch(seed, 13, weighted=weighted), plan, bitwise=bitwise, pooling="mixed")


@pytest.mark.ranks(1, 2, 4)
def test_every_kind_on_real_ranks(num_ranks: int) -> None:
    comm = world()
    for kind in KINDS:
        plan = plan_of(kind, num_ranks)
        for kjt in (batch(8, 21), batch(9, 21, weighted=True, longest=6), batch(10, 21, longest=1)):
            check(kjt, plan, pooling="mixed", comm=comm)
            check(kjt, plan, pooling="mixed", comm=comm, bitwise=True)
        check(batch(11, 21, shared=True), plan, pooling="mixed", comm=comm)
        check_sequences(plan, bitwise=True, comm=comm)
