"""Ranks with unequal data take the same number of steps."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.sharding.comm import Comm, LocalComm, PeerError
from tesserec.sharding.in_step import lockstep
from tesserec.sharding.threads import run_ranks


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_all_ranks_stop_with_the_first_or_go_on_with_the_last(lengths: list[int]) -> None:
    def body(comm: Comm) -> tuple[list[int], list[int]]:
        mine = range(lengths[comm.rank])
        return list(lockstep(comm, mine)), list(lockstep(comm, mine, empty=-1))

    for length, (shortest, longest) in zip(lengths, run_ranks(len(lengths), body), strict=True):
        assert shortest == list(range(min(lengths)))
        assert longest == list(range(length)) + [-1] * (max(lengths) - length)


def test_one_rank_needs_nobody() -> None:
    assert list(lockstep(LocalComm(), "abc")) == ["a", "b", "c"]


def test_an_error_on_one_rank_stops_all() -> None:
    told = []

    def batches(rank: int) -> Iterator[int]:
        yield 0
        if rank == 1:
            raise OSError("disk")
        yield 1

    def body(comm: Comm) -> None:
        try:
            list(lockstep(comm, batches(comm.rank)))
        except PeerError as error:
            told.append(str(error))
            raise

    with pytest.raises(OSError, match="disk"):
        run_ranks(3, body)
    assert sorted(told) == [
        f"rank {rank}: stops, because reading batches failed on another rank" for rank in (0, 2)
    ]
