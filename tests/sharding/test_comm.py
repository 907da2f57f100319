"""Every kind of world moves the same bytes, sums to the same bits, and notices ranks that disagree."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tesserec.sharding import mpi
from tesserec.sharding.comm import Comm, CommError, LocalComm, PeerError, fold, world
from tesserec.sharding.plan import even_cut
from tesserec.sharding.threads import run_ranks

Array = npt.NDArray[Any]
DTYPES = ("uint8", "int64", "float16", "float32", "bool")
SIZES = (0, 1, 7, 5000, 20_011)  # below and above comm.SMALL


def numbers(rank: int, items: int, dtype: str = "float32") -> Array:
    return (np.random.default_rng([rank, items]).normal(size=items) * 100).astype(dtype)


def tree(parts: Sequence[Array]) -> Array:
    """The sum that every world computes."""
    half = len(parts) // 2
    return parts[0] if len(parts) == 1 else tree(parts[:half]) + tree(parts[half:])


def all_to_all_delivers(comm: Comm) -> None:
    for draw, dtype in enumerate(DTYPES):
        counts = np.random.default_rng(draw).integers(0, 5, (comm.size, comm.size)) * 7**draw
        sent = {
            (a, b): numbers(a * 10 + b, counts[a, b], dtype)
            for a in range(comm.size)
            for b in range(comm.size)
        }
        send = np.concatenate([sent[comm.rank, other] for other in range(comm.size)])
        want = np.concatenate([sent[other, comm.rank] for other in range(comm.size)])
        known = counts[:, comm.rank].tolist()
        out = np.zeros(len(want) + 3, dtype)
        for received, into in ((None, None), (known, None), (known, out), (None, out)):
            got, lengths = comm.all_to_all(send, counts[comm.rank].tolist(), received, into)
            assert got.dtype == want.dtype and got.tobytes() == want.tobytes()
            assert lengths == known
            assert into is None or got.base is out


def all_gather_joins_unequal_lengths(comm: Comm) -> None:
    for length in (0, 3, 40_000):
        parts = [numbers(rank, length * rank) for rank in range(comm.size)]
        got, lengths = comm.all_gather(parts[comm.rank])
        assert lengths == [length * rank for rank in range(comm.size)]
        assert got.tobytes() == np.concatenate(parts).tobytes()
        whole = np.zeros_like(got)
        whole[sum(lengths[: comm.rank]) :][: lengths[comm.rank]] = parts[comm.rank]
        place = whole[sum(lengths[: comm.rank]) :][: lengths[comm.rank]]
        assert comm.all_gather(place, lengths, whole)[0].tobytes() == got.tobytes()


def sums_have_the_bits_of_the_tree(comm: Comm) -> None:
    for items in SIZES:
        for dtype in ("float32", "float64", "int64"):
            parts = [numbers(rank, items, dtype) for rank in range(comm.size)]
            want = tree(parts)
            assert comm.all_reduce(parts[comm.rank].copy()).tobytes() == want.tobytes()
            first, end = even_cut(items, comm.size)[comm.rank]
            assert comm.reduce_scatter(parts[comm.rank]).tobytes() == want[first:end].tobytes()
            flat = parts[comm.rank].copy()
            assert comm.reduce_scatter(flat, flat[first:end]).tobytes() == want[first:end].tobytes()


def reductions_are_in_place_and_keep_shapes(comm: Comm) -> None:
    parts = [numbers(rank, 6).reshape(2, 3) for rank in range(comm.size)]
    for op, ufunc in (("max", np.maximum), ("min", np.minimum)):
        array = parts[comm.rank].copy()
        got = comm.all_reduce(array, op)  # type: ignore[arg-type]
        assert got.shape == (2, 3) and np.shares_memory(got, array)
        np.testing.assert_array_equal(array, ufunc.reduce(parts))
    count = np.array(comm.rank)
    assert comm.all_reduce(count) == count == sum(range(comm.size))


def broadcast_and_objects_reach_all(comm: Comm) -> None:
    for root in range(comm.size):
        array = np.full((3, 4), comm.rank, np.float32)
        assert (comm.broadcast(array, root) == root).all() and (array == root).all()
    assert comm.gather_objects({"rank": comm.rank}) == [{"rank": rank} for rank in range(comm.size)]


def split_groups_by_color(comm: Comm) -> None:
    group = comm.split(comm.rank % 2)
    assert group.gather_objects(comm.rank) == list(range(comm.rank % 2, comm.size, 2))
    inside, across = comm.by_host()
    assert set(inside.gather_objects(comm.hosts[comm.rank])) == {comm.hosts[comm.rank]}
    assert len(set(across.gather_objects(comm.hosts[comm.rank]))) == across.size
    assert inside.size * across.size == comm.size


def channels_do_not_meet(comm: Comm) -> None:
    other = comm.duplicate()
    heard: list[int] = []

    def ahead() -> None:
        heard.extend(other.all_reduce(np.full(9, k)).sum() for k in range(50))

    thread = threading.Thread(target=ahead)
    thread.start()
    for k in range(50):
        assert comm.all_to_all(np.full(comm.size, k), [1] * comm.size)[0].tolist() == [k] * comm.size
    thread.join()
    assert heard == [9 * k * comm.size for k in range(50)]


def bytes_sent_are_those_for_others(comm: Comm) -> None:
    others = comm.size - 1
    before = comm.bytes_sent
    comm.all_to_all(np.zeros(5 * comm.size, np.float32), [5] * comm.size, [5] * comm.size)
    assert comm.bytes_sent - before == others * 20
    comm.all_gather(np.zeros(3, np.int16), [3] * comm.size)
    assert comm.bytes_sent - before == others * 26


def disagreement_is_an_error(comm: Comm) -> None:
    """Ranks with another dtype, another call, another length."""
    ones, odd = [1] * comm.size, comm.rank == comm.size - 1
    if comm.size == 1:
        return
    with pytest.raises(CommError, match=rf"rank {comm.rank}: .*(int32|float32)"):
        comm.all_to_all(np.zeros(comm.size, "int32" if odd else "float32"), ones, ones)
    with pytest.raises(CommError, match="same calls in the same order"):
        if odd:
            comm.reduce_scatter(np.zeros(comm.size, np.float32))
        else:
            comm.all_to_all(np.zeros(comm.size, np.float32), ones, ones)
    comm.barrier()


CHECKS: list[Callable[[Comm], None]] = [
    all_to_all_delivers,
    all_gather_joins_unequal_lengths,
    sums_have_the_bits_of_the_tree,
    reductions_are_in_place_and_keep_shapes,
    broadcast_and_objects_reach_all,
    split_groups_by_color,
    channels_do_not_meet,
    bytes_sent_are_those_for_others,
]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_in_threads(check: Callable[[Comm], None], size: int) -> None:
    run_ranks(size, check, hosts=[rank * 2 // size for rank in range(size)] if size != 3 else None)


@pytest.mark.ranks(1, 2, 3)
def test_in_processes(num_ranks: int) -> None:
    comm = world()
    assert comm.size == num_ranks
    for check in (*CHECKS, disagreement_is_an_error):
        check(comm)


@pytest.mark.ranks(2)
def test_arrays_longer_than_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpi, "LONGEST", 1000)
    all_to_all_delivers(world())
    sums_have_the_bits_of_the_tree(world())
    array = np.full(999, world().rank)
    assert (world().broadcast(array, 1) == 1).all()


@pytest.mark.ranks(2)
def test_other_lengths_than_announced_are_an_error() -> None:
    comm = world()
    for sent in (1, 3):
        if comm.rank == 0:
            with pytest.raises((CommError, PeerError), match=r"rank 0: all_to_all: "):
                comm.all_to_all(np.zeros(4), [2, 2], [2, 2])
        else:
            comm.all_to_all(np.zeros(sent + 2), [sent, 2], [2, 2])
        comm.barrier()


def test_threads_that_disagree_get_an_error() -> None:
    def dtypes(comm: Comm) -> None:
        comm.all_gather(np.zeros(2, ("int32", "float32")[comm.rank]), [2, 2])

    def calls(comm: Comm) -> None:
        comm.barrier() if comm.rank else comm.all_gather(np.zeros(2), [2, 2])

    with pytest.raises(CommError, match=r"rank \d: all_gather: rank \d sent (int32|float32)"):
        run_ranks(2, dtypes)
    with pytest.raises(CommError, match="same calls in the same order"):
        run_ranks(2, calls)


@pytest.mark.parametrize("leaves", ["raises", "returns"])
def test_a_thread_that_is_gone_is_not_waited_for(leaves: str) -> None:
    def body(comm: Comm) -> None:
        if comm.rank == 1 and leaves == "raises":
            raise KeyError("the reason")
        if comm.rank != 1:
            comm.barrier()

    with pytest.raises(KeyError if leaves == "raises" else PeerError, match=r"the reason|rank 1.* has left"):
        run_ranks(3, body)


@pytest.mark.parametrize(
    ("send", "counts", "problem"),
    [
        (np.zeros((2, 2)), [4], r"shape \(2, 2\), wanted \(n,\)"),
        (np.zeros(8)[::2], [4], "wanted contiguous"),
        (np.array([None]), [1], "wanted contiguous"),
        (np.zeros(3), [4], r"counts \[4\] for 3 items"),
        (np.zeros(3), [2, 1], r"counts \[2, 1\] for 3 items"),
    ],
)
def test_bad_sends_are_named(send: Array, counts: list[int], problem: str) -> None:
    with pytest.raises(CommError, match=f"rank 0: all_to_all: .*{problem}"):
        LocalComm().all_to_all(send, counts)


def test_bad_buffers_are_named() -> None:
    with pytest.raises(CommError, match=r"out is float64 \(2,\), wanted float64 \(3,\)"):
        LocalComm().all_to_all(np.zeros(3), [3], out=np.zeros(2))
    with pytest.raises(CommError, match="out is float32"):
        LocalComm().all_gather(np.zeros(3), out=np.zeros(3, np.float32))


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 8])
def test_fold_may_end_in_any_of_its_parts(parts: int) -> None:
    arrays = [numbers(rank, 10) for rank in range(parts)]
    want = tree([array.copy() for array in arrays])
    for place in range(parts):
        scratch = [array.copy() for array in arrays]
        assert fold("sum", scratch, scratch[place]).tobytes() == want.tobytes()
