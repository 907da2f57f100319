"""A sharded model trains as the unsharded one does: any plan, any number of ranks, compiled or not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from tesserec import sharding
from tesserec.autograd import (
    MLP,
    Adam,
    Module,
    Tensor,
    accumulate,
    clip_grad_norm,
    compile,
    gradients,
    no_grad,
    parallel_map,
)
from tesserec.autograd.losses import bce_with_logits
from tesserec.autograd.slices import sum_of_slices
from tesserec.embeddings import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    Pool,
    PositionWeighted,
    RowWiseAdagrad,
    planning,
)
from tesserec.models.features import Features
from tesserec.models.registry import build_model
from tesserec.sharding.codecs import Codecs
from tesserec.sharding.comm import Comm, LocalComm, world
from tesserec.sharding.dense import DenseReplicas, DenseShards
from tesserec.sharding.model import MakeDense, ShardedModel, ShardError, shard, table_shapes
from tesserec.sharding.placement import make_plan
from tesserec.sharding.plan import PlanError, ShardingPlan, even_cut
from tesserec.sharding.replicas import Replicas
from tesserec.sharding.threads import run_ranks

BATCH, SLICE, STEPS = 32, 4, 4
FEATURES = Features(3, {"user": 50, "item": 31, "genres": 9}, "mean")
KINDS = ["data_parallel", "table_wise", "row_wise", "column_wise", "grid_shard", "hot_cold:5", "auto"]
MODELS: dict[str, dict[str, Any]] = {
    "dlrm": {"embedding_dim": 8, "bottom": (8,), "top": (16, 8)},
    "deepfm": {"embedding_dim": 8, "hidden": (16,)},
    "dcnv2": {"embedding_dim": 8},
    "wide_deep": {"embedding_dim": 8, "hidden": (8,)},
}

Batch = tuple[Any, KeyedJaggedTensor, Any]


def build(name: str = "dlrm") -> Module:
    return build_model(name, FEATURES, seed=3, options=MODELS[name])


def global_batch(step: int) -> Batch:
    rng = np.random.default_rng([7, step])
    lengths = rng.integers(0, 4, (3, BATCH))
    ids = [rng.integers(0, rows, n) for rows, n in zip((50, 31, 9), lengths.sum(axis=1), strict=True)]
    kjt = KeyedJaggedTensor.from_lengths(tuple(FEATURES.sparse), np.concatenate(ids), lengths)
    dense = rng.standard_normal((BATCH, 3)).astype(np.float32)
    return dense, kjt, rng.integers(0, 2, BATCH).astype(np.float32)


def part_of(batch: Batch, lo: int, hi: int) -> Batch:
    dense, kjt, labels = batch
    return dense[lo:hi], kjt.select(lo, hi), labels[lo:hi]


def optimizers(model: Module) -> list[Any]:
    named = list(model.named_parameters())
    pools = [(name, p) for name, p in named if isinstance(p, Pool)]
    dense = [(name, p) for name, p in named if not isinstance(p, Pool)]
    return [Adam(dense, lr=0.01), RowWiseAdagrad(pools, lr=0.1)]


def slice_gradients(
    model: Module, batch: Batch, takes: Callable[[int], Any] | None = None
) -> tuple[list[float], list[Any]]:
    """(loss, gradients) of each slice of a batch, looked up or not."""

    def work(k: int) -> tuple[float, Any]:
        dense, kjt, labels = part_of(batch, k * SLICE, (k + 1) * SLICE)
        loss = bce_with_logits(model(dense, kjt), labels, reduction="sum")
        return loss.item(), gradients(loss, np.float32(1 / BATCH), take=takes(k) if takes else None)

    found = parallel_map(work, range(len(batch[2]) // SLICE))
    return [loss for loss, _ in found], [grads for _, grads in found]


def train(model: Module, fast: Module, steps: Sequence[int] = range(STEPS)) -> list[float]:
    """The losses of some steps without shards."""
    losses, made = [], optimizers(model)
    for step in steps:
        found, grads = slice_gradients(fast, global_batch(step))
        losses += found
        accumulate(sum_of_slices(grads))
        for optimizer in made:
            optimizer.step()
            optimizer.zero_grad()
    return losses


def train_sharded(model: ShardedModel, comm: Comm, fast: Module | None = None) -> list[float]:
    """The same steps on this rank's part of each batch -> the losses of all slices."""
    losses, made = [], optimizers(model)
    for step in range(STEPS):
        dense, kjt, labels = part_of(global_batch(step), *even_cut(BATCH, comm.size)[comm.rank])
        looked: Any = model.look_up(model.input_dist(kjt))
        reduction = model.reduction(len(labels) // SLICE)
        takes = reduction.take if reduction else None
        found, grads = slice_gradients(fast or model, (dense, looked, labels), takes)
        losses.append(comm.gather_objects(found))
        accumulate(model.exchange(sum_of_slices(grads)))
        model.step(made)
    return [loss for step in losses for rank in step for loss in rank]


def check_state(model: ShardedModel, want: Module, **tolerance: Any) -> None:
    """What this rank holds is what the unsharded model has."""
    state = want.state_dict()
    pools = {name for name, p in want.named_parameters() if isinstance(p, Pool)}
    with model.whole():
        for name, parameter in model.model.named_parameters():
            if name in state and name not in pools:
                np.testing.assert_allclose(parameter.data, state[name], **tolerance)
    for prefix, collection in model.collections.items():
        for held, array in collection.rectangles():
            whole = state[prefix + held.table]
            np.testing.assert_allclose(array, whole[slice(*held.rows), slice(*held.cols)], **tolerance)


CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # Adam makes much of what is near 0
SAME = {"rtol": 0.0, "atol": 0.0}


DENSE: dict[str, MakeDense] = {
    "replicated": partial(DenseReplicas, bucket_bytes=500),
    "sharded": partial(DenseShards, bucket_bytes=500),
}  # several buckets


def sharded(name: str, kind: str, comm: Comm, dense: str = "replicated", **options: Any) -> ShardedModel:
    with planning():
        model = build(name)
    plan = make_plan(table_shapes(model), comm.size, default=kind)
    return shard(model, plan, comm, dense=DENSE[dense], **options)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_training_is_that_of_the_unsharded_model(kind: str, ranks: int) -> None:
    want = build()
    losses = train(want, want)

    def body(comm: Comm) -> None:
        model = sharded("dlrm", kind, comm)
        np.testing.assert_allclose(train_sharded(model, comm), losses, rtol=1e-5)
        check_state(model, want, **CLOSE)

    run_ranks(ranks, body)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("compiled", [False, True])
def test_every_model_trains_compiled_or_not(name: str, compiled: bool) -> None:
    want = build(name)
    losses = train(want, compile(want) if compiled else want)

    def body(comm: Comm) -> None:
        model = sharded(name, "row_wise", comm)
        got = train_sharded(model, comm, compile(model) if compiled else None)
        np.testing.assert_allclose(got, losses, rtol=1e-5)
        check_state(model, want, **CLOSE)

    run_ranks(2, body)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dense", ["replicated", "sharded"])
def test_bitwise_has_the_bits_of_the_unsharded_model(kind: str, ranks: int, dense: Any) -> None:
    want = build()
    losses = train(want, compile(want, slice_size=SLICE))

    def body(comm: Comm) -> None:
        model = sharded("dlrm", kind, comm, bitwise=True, dense=dense)
        assert train_sharded(model, comm, compile(model, slice_size=SLICE)) == losses
        check_state(model, want, **SAME)

    run_ranks(ranks, body)


@pytest.mark.ranks(2)
def test_training_is_that_of_the_unsharded_model_in_processes() -> None:
    want = build()
    losses = train(want, want)
    comm = world()
    for options in ({"bitwise": True}, {"bitwise": True, "dense": "sharded"}):
        model = sharded("dlrm", "row_wise", comm, **options)
        assert train_sharded(model, comm) == losses
        check_state(model, want, **SAME)


@pytest.mark.parametrize("dense", ["replicated", "sharded"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_loop_of_ones_own_needs_no_stages(dense: Any, compiled: bool) -> None:
    want = build()
    train(want, want)

    def body(comm: Comm) -> None:
        with planning():
            model: Module = build()
        plan = make_plan(table_shapes(model), comm.size, default="row_wise")
        model = shard(compile(model, slice_size=SLICE) if compiled else model, plan, comm, dense=dense)
        made = optimizers(model)
        for step in range(STEPS):
            x, kjt, labels = part_of(global_batch(step), *even_cut(BATCH, comm.size)[comm.rank])
            loss = bce_with_logits(model(x, kjt), labels, reduction="sum")
            loss.backward(np.float32(1 / BATCH))
            model.step(made)
        check_state(model, want, **CLOSE)

    run_ranks(2, body)


def test_vectors_travel_as_the_codecs_say() -> None:
    want = build()
    losses = train(want, want)

    def body(comm: Comm) -> None:
        model = sharded("dlrm", "row_wise", comm, codecs=Codecs("fp16", "bf16"))
        got = train_sharded(model, comm)
        assert got != losses
        np.testing.assert_allclose(got, losses, rtol=0.02)

    run_ranks(2, body)


class Sequences(Module):
    """Pooled vectors with learned weights of ids, and vectors of single ids."""

    def __init__(self) -> None:
        bags = [EmbeddingBagConfig(name, 60, 4, (name,), pooling="mean") for name in ("user", "item")]
        weights = PositionWeighted({"user": 3, "item": 3})
        self.bags = EmbeddingBagCollection(bags, seed=1, processor=weights)
        self.ids = EmbeddingCollection([EmbeddingConfig("user", 60, 4, ("user",))], seed=1)
        self.weight = Tensor(np.ones(8, np.float32), requires_grad=True)

    def forward(self, kjt: Any) -> Tensor:
        rows: Any = self.ids(kjt)["user"].values
        total: Tensor = (self.bags(kjt).values * self.weight).sum() + (rows * rows).sum()
        return total


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("kind", ["data_parallel", "row_wise", "column_wise"])
@pytest.mark.parametrize("dense", DENSE)
def test_sequences_and_learned_weights_get_their_gradients(kind: str, ranks: int, dense: str) -> None:
    want = Sequences()
    made = optimizers(want)
    for step in range(2):
        want(global_batch(step)[1]).backward()
        for optimizer in made:
            optimizer.step()
            optimizer.zero_grad()

    def body(comm: Comm) -> None:
        with planning():
            model: Any = Sequences()
        model = shard(
            model, make_plan(table_shapes(model), comm.size, default=kind), comm, dense=DENSE[dense]
        )
        assert not model.may_run_ahead
        made = optimizers(model)
        for step in range(2):
            model(global_batch(step)[1].select(*even_cut(BATCH, comm.size)[comm.rank])).backward()
            model.step(made)
        check_state(model, want, **CLOSE)

    run_ranks(ranks, body)


@pytest.mark.parametrize("kind", ["data_parallel", "row_wise", "column_wise"])
@pytest.mark.parametrize("dense", DENSE)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_gradients_are_clipped_by_the_norm_of_all_ranks(kind: str, dense: str, ranks: int) -> None:
    want = build()
    _, grads = slice_gradients(want, global_batch(0))
    accumulate(sum_of_slices(grads))
    norm = clip_grad_norm(want.parameters(), 0.1)

    def body(comm: Comm) -> None:
        model = sharded("dlrm", kind, comm, dense, bitwise=True)
        x, kjt, labels = part_of(global_batch(0), *even_cut(BATCH, comm.size)[comm.rank])
        looked: Any = model.look_up(model.input_dist(kjt))
        _, grads = slice_gradients(model, (x, looked, labels))
        accumulate(model.exchange(sum_of_slices(grads)))
        assert model.clip_grad_norm(0.1) == norm
        np.testing.assert_allclose(model.clip_grad_norm(1.0), 0.1, rtol=1e-5)

    run_ranks(ranks, body)


def test_it_evaluates_without_gradients() -> None:
    want = build().eval()
    x, kjt, _ = global_batch(0)

    def body(comm: Comm) -> None:
        model = sharded("dlrm", "row_wise", comm, dense="sharded").eval()
        dense, mine, _ = part_of(global_batch(0), *even_cut(BATCH, comm.size)[comm.rank])
        with no_grad():
            logits = model(dense, mine)
        assert not logits.requires_grad
        expected = want(x, kjt).data[slice(*even_cut(BATCH, comm.size)[comm.rank])]
        np.testing.assert_allclose(logits.data, expected, rtol=1e-5, atol=1e-6)

    run_ranks(3, body)


def test_names_are_those_of_the_model() -> None:
    want = build()

    def body(comm: Comm) -> None:
        model = sharded("dlrm", "table_wise", comm, dense="sharded")
        dense = [name for name, p in want.named_parameters() if not isinstance(p, Pool)]
        assert [name for name, p in model.named_parameters() if not isinstance(p, Pool)] == dense
        assert {name for name in model.state_dict() if name in want.state_dict()} >= set(dense)

    run_ranks(2, body)


def test_collections_are_found_in_containers() -> None:
    class Two(Module):
        def __init__(self) -> None:
            self.parts = ({"a": [build("dlrm")]}, build("deepfm"))

        def forward(self, dense: Any, kjt: Any) -> Tensor:
            held: Any = self.parts
            a, b = held[0]["a"][0](dense, kjt), held[1](dense, kjt)
            total: Tensor = a + b
            return total

    want = Two()
    train(want, want)

    def body(comm: Comm) -> None:
        model = Two()
        plan = make_plan(table_shapes(model), comm.size, default="row_wise")
        wrapped = shard(model, plan, comm)
        assert wrapped.model is model and len(wrapped.collections) == 3
        train_sharded(wrapped, comm)
        check_state(wrapped, want, **CLOSE)

    run_ranks(2, body)


def test_what_cannot_be_sharded_is_refused() -> None:
    def body(comm: Comm) -> None:
        plan = make_plan(table_shapes(build()), 3)
        with pytest.raises(PlanError, match="the plan is for 3 ranks, wanted as many as there are, 2"):
            shard(build(), plan, comm)
        with pytest.raises(PlanError, match="each group of replicas has, 1"):
            shard(build(), plan, comm, replicas=Replicas(2))
        with pytest.raises(ShardError, match="bitwise: groups of replicas"):
            shard(build(), make_plan(table_shapes(build()), 1), comm, bitwise=True, replicas=Replicas(2))
        with pytest.raises(ShardError, match="MLP has no collection"):
            shard(MLP((2, 1), rng=np.random.default_rng(0)), ShardingPlan((), 2), comm)
        coupled = build_model("deepfm", FEATURES, seed=0, options={"batch_norm": True})
        plan = make_plan(table_shapes(coupled), 2)
        with pytest.raises(ShardError, match=r"BatchNorm1d couples the samples .*local_batches=True"):
            shard(coupled, plan, comm)
        shard(coupled, plan, comm, local_batches=True)
        model = sharded("dlrm", "auto", comm)
        with pytest.raises(ShardError, match="no batch was looked up"):
            model.exchange({})
        x, kjt, _ = global_batch(0)
        with pytest.raises(ShardError, match="2 KeyedJaggedTensors"):
            model(x, kjt, kjt)

    run_ranks(2, body)


def test_a_compiled_sharded_model_is_not_looked_up_slice_by_slice() -> None:
    x, kjt, _ = global_batch(0)
    fast = compile(sharded("dlrm", "row_wise", LocalComm()), slice_size=SLICE)
    with pytest.warns(UserWarning, match="shard the compiled model"):
        logits = fast(x, kjt)
    np.testing.assert_allclose(logits.data, build()(x, kjt).data, rtol=1e-5, atol=1e-6)


def test_public_names_are_there_and_need_no_numerical_library_before() -> None:
    assert all(hasattr(sharding, name) for name in sharding.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Shards'"):
        getattr(sharding, "Shards")  # noqa: B009
    code = "import sys, tesserec.sharding.launch; assert not {'numba', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
