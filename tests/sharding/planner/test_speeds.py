from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tesserec.sharding.planner.datasheet import kernels_of
from tesserec.sharding.planner.frequencies import Frequencies
from tesserec.sharding.planner.grids import Curve, Kernels
from tesserec.sharding.planner.row_times import DISTANCES, FAR, RowTimes, lines_of, passes_of
from tesserec.sharding.planner.speeds import Speeds, at_distance, radix_passes, reuse
from tesserec.sharding.planner.topology import Cache, Device, Link, Tier
from tesserec.sharding.planner.workload import RowOptimizer

GPU = Device("gpu", (Tier("hbm", 80e9, 2e12), Tier("dram", 1e12, 2e10)), 4e14, row_share=0.5, launch=0.0)
CPU = Device(
    "cpu",
    (Tier("dram", 8e9, 1e10),),
    1e11,
    threads=2,
    caches=(Cache(2**20, 1e11),),
    row_share=1.0,
    launch=0.0,
)


def lru_distances(ids: list[int], row_bytes: int) -> list[float]:
    """The naive oracle: bytes of distinct rows since the same row was read, for each read that has one."""
    found, last = list[float](), dict[int, int]()
    for at, row in enumerate(ids):
        if row in last:
            found.append(row_bytes * len(set(ids[last[row] + 1 : at])))
        last[row] = at
    return found


@pytest.mark.parametrize("exponent", [0.0, 1.1])
def test_reuse_is_what_a_simulation_finds(exponent: float) -> None:
    rows, width = 400, 4096
    frequencies = Frequencies.zipf(rows, exponent, ordered=True) if exponent else Frequencies.uniform(rows)
    chances = np.arange(1, rows + 1) ** -exponent
    rng = np.random.default_rng(0)
    ids = rng.choice(rows, 6000, p=chances / chances.sum()).tolist()
    distances = np.array(lru_distances(ids, width)[2000:])
    shares = reuse(frequencies, width, 1e9)
    assert shares.sum() == pytest.approx(1)
    expected = np.log2(np.maximum(distances, DISTANCES[0]))
    assert shares @ np.log2(DISTANCES) == pytest.approx(expected.mean(), abs=0.1)
    nearest = shares[np.log2(DISTANCES) < 17.5].sum()
    assert nearest == pytest.approx((expected < 17.5).mean(), abs=0.1)


def test_what_lies_between_steps_pushes_rows_away() -> None:
    near = reuse(Frequencies.uniform(1000), 64, ids=1000)
    far = reuse(Frequencies.uniform(1000), 64, ids=1000, between=1e9)
    assert far[DISTANCES > 5e8].sum() > 0.5 and near[DISTANCES > 5e8].sum() < 0.01
    drifting = reuse(Frequencies.zipf(1000, 1.2), 64, ids=1e9, drift=1e6)
    assert drifting @ DISTANCES > reuse(Frequencies.zipf(1000, 1.2), 64, ids=1e9) @ DISTANCES


def test_rows_of_a_data_sheet_are_bytes_by_bandwidth() -> None:
    speeds = Speeds(GPU)
    assert float(speeds.row(128, 4)) == pytest.approx(512 / 1e12)
    assert float(speeds.row(8, 4)) == pytest.approx(64 / 1e12)  # a line at least
    assert float(speeds.row(128, 2)) == pytest.approx(256 / 1e12)
    assert float(speeds.row(128, 4, tier="dram")) == pytest.approx(512 / 1e10)
    one = float(speeds.lookup(1000, 100, 128, 4))
    assert one == pytest.approx(1000 * 512 / 1e12 + 100 * (8 + 512) / 2e12)


def test_ranks_of_a_cpu_share_it() -> None:
    alone, beside = Speeds(CPU, 1), Speeds(CPU, 2)
    assert float(beside.row(64, 4)) == pytest.approx(2 * float(alone.row(64, 4)))
    assert Speeds(GPU, 8).row(64, 4) == Speeds(GPU, 1).row(64, 4)
    assert (alone.threads, beside.threads) == (2, 1)
    assert beside.gemm(1e9) == pytest.approx(2 * alone.gemm(1e9))


def test_rows_in_the_cache_are_cheaper() -> None:
    speeds = Speeds(CPU)
    near, far = (float(speeds.row(64, 4, at_distance(d))) for d in (2.0**16, 2.0**30))
    assert near == pytest.approx(256 / 1e11, rel=0.01) and far == pytest.approx(256 / 1e10, rel=0.01)


def test_measured_working_sets_come_back() -> None:
    """What uniform reads of so many bytes took is what is predicted of them."""
    sizes = 2.0 ** np.arange(14, 31)
    true = np.where(sizes <= 2**21, 2e-9, 9e-9)  # at a distance
    taken = np.cumsum(true * np.diff(sizes, prepend=0.0)) / sizes
    curve = Curve(tuple(sizes), tuple(taken))
    rows = RowTimes({16: curve, 64: curve}, 1.0)
    for k in (16, 19, 25, 28):
        depth = reuse(Frequencies.uniform(2.0**k / 64), 64, 1e9)
        assert float(rows.seconds(64, depth)) == pytest.approx(taken[k - 14], rel=0.05)


def test_everything_is_linear_and_vectorised() -> None:
    speeds, optimizer = Speeds(CPU, 2), RowOptimizer.named("rowwise_adagrad")
    ids, width = np.array([0.0, 1e4, 2e4]), np.array([32, 32, 32])
    depth = np.stack([at_distance(1e5)] * 3)
    found = speeds.lookup(ids, ids / 4, width, 4, depth)
    np.testing.assert_allclose(np.diff(found)[1], np.diff(found)[0], rtol=1e-12)
    updated = speeds.update(ids, ids / 2, width, 4, optimizer, depth, grad_bytes=1e6)
    np.testing.assert_allclose(np.diff(updated)[1], np.diff(updated)[0], rtol=1e-12)
    one = speeds.update(1e4, 5e3, 32, 4, optimizer, at_distance(1e5), grad_bytes=1e6)
    np.testing.assert_allclose(updated[1], one, rtol=1e-12)
    for function in (speeds.pack_ids, speeds.unpack_ids, speeds.add_vectors, speeds.pack_grads):
        assert np.shape(function(ids, ids)) == (3,)


@pytest.mark.parametrize("name", ["sgd", "rowwise_adagrad", "adagrad", "adam", "lamb", "ftrl", "lars_sgd"])
def test_more_state_takes_longer(name: str) -> None:
    speeds, state = Speeds(CPU), RowOptimizer.named(name)
    taken = float(speeds.update(1e4, 1e4, 64, 4, state))
    plain = float(speeds.update(1e4, 1e4, 64, 4, RowOptimizer.named("sgd")))
    assert taken > plain if name != "sgd" else taken == plain


def test_exchanges() -> None:
    speeds, link = Speeds(CPU, 2), Link(1e-5, 1e9, ranks_per_port=2, share=0.5, call=1e-6)
    assert float(speeds.exchange(1e6, 3, link)) == pytest.approx(1e-5 + 1e6 * 2 / 5e8 + 2e-6)
    assert float(speeds.exchange(1e6, 0, link)) == 0
    measured = replace(link, curve=Curve((0.0, 1e6, 2e6), (1e-5, 1e-3, 3e-3)))
    assert float(speeds.exchange(5e5, 1, measured)) == pytest.approx(5.05e-4)
    assert float(speeds.exchange(4e6, 1, measured)) == pytest.approx(7e-3)
    assert float(speeds.all_reduce(0, 1, link)) == 0


def test_blocks_of_rows() -> None:
    assert [int(passes_of(w)) for w in (4, 16, 24, 64, 80, 112, 256, 512)] == [1, 1, 2, 1, 2, 3, 1, 2]
    assert [float(lines_of(b)) for b in (64, 256, 80, 96)] == [1, 4, 2, 2]
    assert [int(radix_passes(r)) for r in (2, 2048, 2049, 1 << 22, 1 << 23)] == [1, 1, 2, 2, 3]


def test_measured_grids_are_those_of_as_many_ranks_and_threads() -> None:
    base = measured_kernels(1, 1)
    kernels = tuple(
        replace(base, ranks=r, threads=t, single={**base.single, "flop": 1e-11 * r})
        for r, t in ((1, 1), (1, 2), (2, 1))
    )
    device = replace(CPU, kernels=kernels)
    assert Speeds(device, 1).kernels is kernels[1] and Speeds(device, 2).kernels is kernels[2]
    assert Speeds(device, 4).scale == 2  # four ranks on two cores
    assert Speeds(device, 2).dense(0.0, 10, 1e-3) == pytest.approx(2e-2)  # products take twice as long beside
    assert Speeds(device, FAR).threads == 1


def measured_kernels(ranks: int, threads: int) -> Kernels:
    return replace(kernels_of(CPU, 1), ranks=ranks, threads=threads)
