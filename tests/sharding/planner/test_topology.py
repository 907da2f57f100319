from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tesserec.dataio.config import ConfigError, read_config
from tesserec.sharding.planner.grids import Curve
from tesserec.sharding.planner.topology import Device, Host, Link, Tier, Topology, TopologyError
from tesserec.sharding.planner.topology_text import to_yaml
from tesserec.sharding.planner.units import BYTES, FLOPS, SPEED, TIME, in_bytes, in_seconds
from tesserec.train.plan_case import preset_names, topology_file

TEXT = """name: two kinds
devices:
  cpu:
    kind: cpu
    threads: 8
    flops: 100 GFLOP/s
    reserve_bytes: 1 GB
    tiers: [{name: dram, bytes: 16 GB, bandwidth: 20 GB/s}]
  gpu:
    kind: gpu
    flops: 400 TFLOP/s
    tiers:
      - {name: hbm, bytes: 80 GB, bandwidth: 3 TB/s}
      - {name: dram, bytes: 2 TB, bandwidth: 30 GB/s, shared: true}
hosts:
  - {ranks: 4, device: gpu, inside: {latency: 5 us, bandwidth: 400 GB/s}}
  - {count: 2, ranks: 2, device: cpu, inside: {latency: 20 us, bandwidth: 4 GB/s}}
network: {latency: 20 us, bandwidth: 400 Gbit/s, ranks_per_port: 2}
"""


def read(folder: Path, text: str) -> Topology:
    path = folder / "cluster.yaml"
    path.write_text(text)
    return read_config(path, Topology)


def refused(folder: Path, old: str, new: str) -> str:
    assert old in TEXT
    with pytest.raises(ConfigError) as caught:
        read(folder, TEXT.replace(old, new))
    return str(caught.value)


@pytest.mark.parametrize(
    ("unit", "text", "number"),
    [
        (BYTES, "80 GB", 80e9),
        (BYTES, "1.5GiB", 1.5 * 2**30),
        (BYTES, "1_000", 1000),
        (BYTES, 12, 12),
        (SPEED, "450 GB/s", 450e9),
        (SPEED, "400 Gbit/s", 50e9),
        (TIME, "20 us", 20e-6),
        (TIME, "3 µs", 3e-6),
        (FLOPS, "495 TFLOP/s", 495e12),
    ],
)
def test_units(unit: Any, text: Any, number: float) -> None:
    assert unit.parse(text) == pytest.approx(number, rel=1e-12)


@pytest.mark.parametrize("text", ["80 parsec", "GB", "4 GB/s"])
def test_another_unit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="wanted bytes, for example '80 GB'"):
        BYTES.parse(text)


def test_numbers_in_words() -> None:
    assert (in_bytes(80e9), in_bytes(999), in_seconds(2e-5)) == ("80 GB", "999 B", "20 µs")


def test_ranks_are_numbered_host_by_host(tmp_path: Path) -> None:
    topology = read(tmp_path, TEXT)
    assert topology.hosts_of_ranks == (0, 0, 0, 0, 1, 1, 2, 2)
    assert topology.num_ranks == 8 and topology.kinds_of_ranks == (0,) * 4 + (1,) * 4
    assert topology.device_of(3).kind == "gpu" and topology.device_of(4).kind == "cpu"
    assert topology.threads_of(4) == 4
    assert topology.link(4, 5).bandwidth == 4e9 and topology.link(3, 4).bandwidth == 50e9


def test_ranks_share_what_is_of_their_host(tmp_path: Path) -> None:
    topology = read(tmp_path, TEXT)
    np.testing.assert_allclose(topology.tier_bytes("hbm"), [80e9] * 4 + [0] * 4)
    np.testing.assert_allclose(topology.tier_bytes("dram"), [500e9] * 4 + [7e9] * 4)
    np.testing.assert_allclose(topology.tier_bytes(), [80e9] * 4 + [7e9] * 4)
    assert topology.tier_names == ("dram", "hbm")


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("bandwidth: 20 GB/s", "bandwidth: -20 GB/s", "line 8: key devices.cpu.tiers.0.bandwidth"),
        ("latency: 5 us", "latency: 5 miles", "line 16: key hosts.0.inside.latency: got '5 miles'"),
        ("device: gpu", "device: tpu", "line 16: key hosts.0.device: no device 'tpu'; devices are cpu, gpu"),
        ("{ranks: 4", "{ranks: 0", "line 16: key hosts.0.ranks"),
        ("name: dram, bytes: 2 TB", "name: hbm, bytes: 2 TB", "line 14: key devices.gpu.tiers.1: two tiers"),
        ("bytes: 80 GB, ", "", "line 13: key devices.gpu.tiers.0.bytes: Field required"),
        ("  gpu:\n", "  cpu:\n", "line 9: cannot be read: key 'cpu' is given twice"),
        ("threads: 8", "thread: 8", "line 5: key devices.cpu.thread: unknown key; did you mean 'threads'?"),
        ("threads: 8", "threads: .inf", "line 5: key devices.cpu.threads"),
        ("network:", "networks:", "line 18: key networks: unknown key; did you mean 'network'?"),
    ],
)
def test_what_cannot_be_is_refused_with_its_line(tmp_path: Path, old: str, new: str, wanted: str) -> None:
    assert f"cluster.yaml, {wanted}" in refused(tmp_path, old, new)


def test_several_hosts_need_a_network(tmp_path: Path) -> None:
    text = TEXT[: TEXT.index("network")]
    with pytest.raises(ConfigError, match="line 15: key hosts: several hosts need a `network`"):
        read(tmp_path, text)


def test_text_reads_back_as_the_same(tmp_path: Path) -> None:
    topology = read(tmp_path, TEXT)
    again = read(tmp_path, to_yaml(topology, "one line\nand another"))
    assert again == topology
    curve = Curve((1.0, 2.0), (1e-6, 3e-6))
    device = Device("cpu", (Tier("dram", 2.0**30, 1e10),), 1e11, factors={"look_up": 1.25})
    other = Topology(
        "x", {"d": device}, (Host(2, "d", Link(1e-5, 1e9, curve=curve)),), measured={"host": "h"}
    )
    assert read(tmp_path, to_yaml(other)) == other


def one_host(ranks: int = 2) -> Topology:
    device = Device("cpu", (Tier("dram", 8e9, 1e10),), 1e11, threads=4)
    return Topology("x", {"d": device}, (Host(ranks, "d", Link(1e-5, 1e9)),))


def test_more_ranks_are_other_shares_of_one_host_or_more_hosts(tmp_path: Path) -> None:
    four = one_host().with_ranks(4)
    assert four.num_ranks == 4 and four.tier_bytes()[0] == 2e9 and four.threads_of(0) == 1
    cluster = read_config(topology_file("h100x64"), Topology)
    assert cluster.with_ranks(64).num_hosts == 8
    assert cluster.with_ranks(4).num_hosts == 1
    assert cluster.with_ranks(1024).hosts_of_ranks[-1] == 127
    for ranks, why in ((0, "wanted 1 or more"), (12, "a multiple of 8")):
        with pytest.raises(TopologyError, match=why):
            cluster.with_ranks(ranks)
    with pytest.raises(TopologyError, match="not alike"):
        read(tmp_path, TEXT).with_ranks(4)


def test_links_twice_as_fast() -> None:
    faster = one_host().scaled(bandwidth=2, memory=3)
    assert faster.hosts[0].inside.bandwidth == 2e9 and faster.device_of(0).tiers[0].bandwidth == 3e10
    curve = Curve((0.0, 100.0), (1.0, 5.0))
    link = Link(1.0, 25.0, curve=curve)
    scaled = Topology("x", one_host().devices, (Host(2, "d", link),)).scaled(bandwidth=2)
    assert scaled.hosts[0].inside.curve == Curve((0.0, 100.0), (1.0, 3.0))


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_topologies(name: str) -> None:
    topology = read_config(topology_file(name), Topology)
    assert topology.name == name
    assert (topology.tier_bytes() > 0).all()


def test_the_presets_that_are_asked_for_are_there() -> None:
    ranks = {name: read_config(topology_file(name), Topology).num_ranks for name in preset_names()}
    assert ranks == {"laptop": 2, "a100x8": 8, "h100x8": 8, "h100x64": 512, "cpu-cluster": 32}
