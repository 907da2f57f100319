"""Wires: both ends know the same ones, and what is packed for a rectangle is what it has of each bag."""

from __future__ import annotations

import ctypes
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.embeddings.kernels.lookup import LANE
from tesserec.embeddings.lookup import Bound
from tesserec.sharding.comm import Comm
from tesserec.sharding.dist import send_ids
from tesserec.sharding.route import Holding, Piece, Wiring, bytes_for
from tesserec.sharding.threads import run_ranks
from tests import naive
from tests.sharding.test_lookup import Array


@st.composite
def rectangles(draw: Any, size: int) -> list[Holding]:
    """A table cut into bands of rows, each cut into columns or not, on any ranks."""
    height = draw(st.sampled_from([1, 7, 300, 70_000]))
    cuts = sorted({0, height, *draw(st.lists(st.integers(0, height), max_size=4))})
    found = []
    for rows in pairwise(cuts):
        for cols in draw(st.sampled_from([[(0, 8)], [(0, 3), (3, 8)]])):
            ranks = tuple(sorted(draw(st.sets(st.integers(0, size - 1), min_size=1))))
            found.append(Holding("t", rows, cols, ranks, rows == (0, height)))
    return found


def piece(rectangle: Holding, *, mean: bool = False, apart: bool = False, raw: bool = False) -> Piece:
    return Piece(0, rectangle, mean, apart, raw, 4)


def random_bags(rng: Any, height: int, count: int, weighted: bool) -> Any:
    """Bags of (id, weight), weight 1 for none."""
    weights = rng.standard_normal if weighted else lambda n: np.ones(n)
    sizes = rng.integers(0, 5, count)
    return [
        list(zip(rng.integers(0, height, n).tolist(), weights(n).astype(np.float32).tolist(), strict=True))
        for n in sizes
    ]


def lane_of(bags: Any, weighted: bool) -> tuple[Array, Any]:
    """(the bags as a LANE, what it gives addresses of)."""
    ids = np.array([i for bag in bags for i, _ in bag], np.int64)
    weights = np.array([w for bag in bags for _, w in bag], np.float32)
    offsets, lane = np.cumsum([0, *map(len, bags)]), np.zeros(1, LANE)
    lane["ids"], lane["offsets"], lane["bags"] = ids.ctypes.data, offsets.ctypes.data, len(bags)
    lane["count"], lane["weights"] = len(ids), weights.ctypes.data if weighted else 0
    return lane, (ids, weights, offsets)


def bags_in(lane: Any, cut: bool) -> Any:
    """The bags of a lane that has arrived, as `naive.clipped` has them."""
    ids, offsets = numbers(lane["ids"], "u4", lane["count"]), numbers(lane["offsets"], "i8", lane["bags"] + 1)
    weights = numbers(lane["weights"], "f4", lane["count"]) if lane["weights"] else [1.0] * len(ids)
    items = list(zip(ids, weights, strict=True))
    bags = [items[lo:hi] for lo, hi in pairwise(offsets)]
    sizes = numbers(lane["sizes"], "u4", lane["bags"]) if lane["sizes"] else [0] * len(bags)
    return list(zip(bags, sizes, strict=True)) if cut else bags


def numbers(address: int, kind: str, count: int) -> list[Any]:
    size = int(count) * np.dtype(kind).itemsize
    return np.frombuffer(ctypes.string_at(int(address), size), kind).tolist() if size else []


@given(st.data(), st.integers(1, 3), st.booleans(), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_what_arrives_is_what_was_in_the_rectangle(
    data: Any, size: int, mean: bool, apart: bool, raw: bool, weighted: bool
) -> None:
    held = data.draw(rectangles(size))
    height = held[-1].rows[1]
    pieces = [piece(r, mean=mean, apart=apart, raw=raw) for r in held]
    samples = data.draw(st.lists(st.integers(0, 12), min_size=size, max_size=size))
    batches = [random_bags(np.random.default_rng(r), height, n, weighted) for r, n in enumerate(samples)]

    def body(comm: Comm) -> Any:
        wiring: Any = Wiring(pieces, comm.rank, comm.size, [height])
        lane, given = lane_of(batches[comm.rank], weighted)
        bounds, template = [Bound(lane, [], (0, 0), ())], np.zeros(len(wiring.got), LANE)
        return wiring, send_ids(wiring, template, given, bounds, comm)

    results = run_ranks(size, body)
    for rank, (wiring, dist) in enumerate(results):
        for k, what in enumerate(wiring.got_pieces):
            bags = batches[int(dist.got[k]["peer"])]
            wanted = naive.clipped(bags, what.rectangle.rows, apart)
            found = bags_in(dist.arrived[k], what.cut)
            assert found == (wanted if what.cut else [items for items, _ in wanted])
        for peer in range(size):
            there = [p for p, w in zip(wiring.sent_pieces, wiring.sent, strict=True) if w["peer"] == peer]
            other = results[peer][0]
            back = [p for p, w in zip(other.got_pieces, other.got, strict=True) if w["peer"] == rank]
            assert there == back


@given(st.data(), st.integers(1, 4), st.booleans())
@settings(max_examples=50, deadline=None)
def test_every_rank_has_one_way_to_every_row(data: Any, size: int, apart: bool) -> None:
    held = data.draw(rectangles(size))
    pieces = [piece(r, apart=apart) for r in held]
    for rank in range(size):
        wiring = Wiring(pieces, rank, size, [held[-1].rows[1]])
        loud = [p for p, w in zip(wiring.sent_pieces, wiring.sent, strict=True) if not w["silent"]]
        assert sorted(pieces.index(p) for p in [*loud, *wiring.direct]) == list(range(len(pieces)))


def test_replicas_serve_themselves_and_others_in_turn() -> None:
    shared = Holding("t", (0, 5), (0, 8), (1, 3), True)
    assert [shared.server(rank) for rank in range(4)] == [1, 1, 1, 3]
    assert piece(shared).targets(1) == []
    assert piece(shared).targets(2) == (1,)
    assert piece(shared, raw=True).targets(1) == [3]  # which is told of its gradients


@pytest.mark.parametrize(("number", "size"), [(0, 1), (255, 1), (256, 2), (65_535, 2), (65_536, 4)])
def test_fewest_bytes(number: int, size: int) -> None:
    assert bytes_for(number) == size
