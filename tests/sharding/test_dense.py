"""Dense parameters over ranks have the bits of one rank's, whole on every rank or in parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tesserec.autograd import SGD, Adagrad, Adam, AdamW, RMSprop, Tensor, accumulate
from tesserec.autograd.optim import Optimizer
from tesserec.autograd.slices import sum_of_slices
from tesserec.sharding.comm import Comm
from tesserec.sharding.dense import DenseError, DenseReplicas, DenseShards, Reduction, make_buckets
from tesserec.sharding.threads import run_ranks

SHAPES = {"w": (7, 5), "b": (5,), "frozen": (2, 2), "scale": (), "v": (40, 3), "none": (0, 4), "idle": (3,)}
SLICES = 4  # of the global batch
BUCKET = 200  # bytes: several buckets, one of them of a parameter that is larger
OPTIMIZERS = [
    lambda named: SGD(named, lr=0.1),
    lambda named: SGD(named, lr=0.1, momentum=0.9, nesterov=True),
    lambda named: Adagrad(named, lr=0.1),
    lambda named: RMSprop(named, lr=0.1),
    lambda named: Adam(named, lr=0.1, weight_decay=0.01),
    lambda named: AdamW(named, lr=0.1),
]


def parameters() -> dict[str, Tensor]:
    rng = np.random.default_rng(0)
    return {
        name: Tensor(rng.standard_normal(shape).astype(np.float64 if name == "v" else np.float32))
        for name, shape in SHAPES.items()
    }


def gradient(leaf: Tensor, step: int, k: int) -> Any:
    """That of slice `k` of a step's global batch."""
    rng = np.random.default_rng([step, k, leaf.size])
    return rng.standard_normal(leaf.shape).astype(leaf.dtype)


def lacks(name: str, k: int) -> bool:
    """Whether slice `k` has no gradient for a parameter."""
    return name == "idle" or (name == "b" and k != 2)


def unsharded(make: Callable[[Any], Optimizer], steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """({parameter: values}, the optimizer's state) after some steps."""
    named = parameters()
    optimizer = make(named.items())
    for step in range(steps):
        parts = [
            {leaf: gradient(leaf, step, k) for name, leaf in named.items() if not lacks(name, k)}
            for k in range(SLICES)
        ]
        accumulate(sum_of_slices(parts))
        optimizer.step()
        optimizer.zero_grad()
    return {name: leaf.data for name, leaf in named.items()}, optimizer.state_dict()


def train(
    dense: DenseReplicas, named: dict[str, Tensor], optimizer: Optimizer, comm: Comm, steps: range
) -> None:
    for step in steps:
        gathering = dense.gather()
        if gathering is not None:
            gathering.result()
        assert all(np.isfinite(leaf.data).all() for leaf in named.values())
        each = SLICES // comm.size
        reduction = Reduction(dense, each)
        for k in range(each):
            take, place = reduction.take(k), comm.rank * each + k
            for name, leaf in reversed(named.items()):
                assert lacks(name, place) or take(leaf, gradient(leaf, step, place))
            assert not take(Tensor([0.0]), np.zeros(1))
        accumulate(reduction.finish())
        dense.release()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", [DenseReplicas, DenseShards])
@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_training_has_the_bits_of_one_rank(kind: type[DenseReplicas], make: Any, ranks: int) -> None:
    want, want_state = unsharded(make, 3)

    def body(comm: Comm) -> None:
        named = parameters()
        dense = kind(named, comm.duplicate(), bucket_bytes=BUCKET)
        optimizer = make(dense.own.items())
        train(dense, named, optimizer, comm, range(2))
        resumed = make(dense.own.items())
        resumed.steps = optimizer.steps
        dense.load_optimizer_state(resumed, dense.optimizer_state(optimizer))
        train(dense, named, resumed, comm, range(2, 3))
        gathering = dense.gather()
        if gathering is not None:
            gathering.result()
        for name, leaf in named.items():
            np.testing.assert_array_equal(leaf.data, want[name], strict=True)
        state = dense.optimizer_state(resumed)
        assert state.keys() == want_state.keys() - {"steps"}
        for name, array in state.items():
            np.testing.assert_array_equal(array, want_state[name], strict=True)

    run_ranks(ranks, body)


@pytest.mark.parametrize("kind", [DenseReplicas, DenseShards])
def test_a_bucket_is_summed_while_others_are_still_to_come(kind: type[DenseReplicas]) -> None:
    def body(comm: Comm) -> None:
        named = parameters()
        dense = kind(named, comm.duplicate(), bucket_bytes=BUCKET)
        reduction = Reduction(dense, 2)
        last = named.pop("v")
        for leaf in reversed(named.values()):
            for k in (1, 0):
                reduction.take(k)(leaf, np.ones(leaf.shape, leaf.dtype))
        early = [future.result() for future in reduction.sums]
        assert 0 < len(early) < len(dense.buckets)
        reduction.take(0)(last, np.ones(last.shape, last.dtype))
        for leaf, g in reduction.finish().items():
            np.testing.assert_array_equal(g, comm.size * (1.0 if leaf is dense.own["v"] else 2.0))

    run_ranks(2, body)


def test_parts_are_even_and_the_rest_is_not_kept() -> None:
    def body(comm: Comm) -> int:
        named = parameters()
        dense = DenseShards(named, comm.duplicate(), bucket_bytes=BUCKET)
        assert all(np.isnan(leaf.data).all() for leaf in named.values())
        assert all(leaf.data.strides == (0,) * leaf.ndim for leaf in named.values())
        return sum(part.data.nbytes for part in dense.own.values())

    held = run_ranks(3, body)
    assert sum(held) == sum(leaf.data.nbytes for leaf in parameters().values())
    assert max(held) - min(held) < 8 * len(SHAPES)


def test_what_is_written_to_whole_parameters_can_be_kept() -> None:
    def body(comm: Comm) -> None:
        named = parameters()
        dense = DenseShards(named, comm.duplicate(), bucket_bytes=BUCKET)
        for step in range(2):
            gathering = dense.gather()
            assert gathering is not None
            gathering.result()
            for leaf in named.values():
                np.testing.assert_array_equal(leaf.data, np.full(leaf.shape, step) if step else leaf.data)
                leaf.data[...] = step + 1
            dense.release(changed=True)

    run_ranks(2, body)


def test_buckets_are_of_one_type_and_bounded_and_begin_with_the_last_parameter() -> None:
    leaves = list(parameters().values())
    buckets = make_buckets(leaves, BUCKET)
    assert buckets[0].leaves[0] is leaves[-1]
    assert sorted(map(id, leaves)) == sorted(id(leaf) for bucket in buckets for leaf in bucket.leaves)
    for bucket in buckets:
        assert {leaf.dtype for leaf in bucket.leaves} == {bucket.dtype}
        assert len(bucket.leaves) == 1 or bucket.size * bucket.dtype.itemsize <= BUCKET


def test_parameters_that_differ_are_named_with_their_ranks() -> None:
    def body(comm: Comm) -> None:
        named = parameters()
        named["b"].data[3] += comm.rank == 1
        DenseReplicas(named, comm)

    with pytest.raises(DenseError, match=r"parameter 'b' .*\[0, 2\] / \[1\] differ.*seed"):
        run_ranks(3, body)
