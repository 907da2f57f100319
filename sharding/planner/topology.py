"""The machines to plan for: hosts of ranks, what ranks compute on and keep rows in, and links between them.

One YAML file or preset, or what `tesserec plan calibrate` has measured. Sizes are bytes, times seconds,
speeds per second and in one direction; files may use units ("80 GB", "450 GB/s", "20 us": see `units`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from annotated_types import Gt, MinLen

from tesserec.sharding.planner.grids import STRICT, Curve, Kernels, TopologyError
from tesserec.sharding.planner.units import Bandwidth, Bytes, Flops, Seconds, SomeBytes

__all__ = ["Cache", "Curve", "Device", "Host", "Kernels", "Link", "Tier", "Topology", "TopologyError"]

Positive = Annotated[int, Gt(0)]
Share = Annotated[float, Gt(0)]


@dataclass(frozen=True)
class Link:
    """What messages between ranks travel on. bandwidth: of a port, each way. ports: ranks that share one."""

    latency: Seconds
    bandwidth: Bandwidth
    ranks_per_port: Positive = 1
    share: Share = 1.0  # of the bandwidth that one gets
    curve: Curve | None = None  # measured: an all_to_all in which each of 2 ranks sends so many bytes
    call: Seconds = 0.0  # of one more peer in a collective

    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class Tier:
    """Memory that rows may lie in. bandwidth: of reading rows at random, each as whole lines."""

    name: str
    bytes: Bytes
    bandwidth: Bandwidth
    latency: Seconds = 0.0  # of one access, where they do not overlap: disks
    line: Bytes = 64.0  # what is moved at least
    shared: bool = False  # by all ranks of the host; on a cpu everything is

    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class Cache:
    """Memory that keeps what was read last, before the first tier."""

    bytes: Bytes
    bandwidth: Bandwidth

    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class Device:
    """What a rank computes on: a gpu of its own, or its share of the host's cpu.

    bandwidths and flops of a cpu: of all its threads. kernels: what calibrate measured, for some numbers of
    ranks and threads. factors: {stage: what measured steps took of it, as a multiple of the estimate}, from
    `tesserec plan compare --refit`.
    """

    kind: Literal["cpu", "gpu"]
    tiers: Annotated[tuple[Tier, ...], MinLen(1)]  # fastest first
    flops: Flops
    threads: Positive = 1
    caches: tuple[Cache, ...] = ()  # smallest first
    row_share: Share = 0.6  # of the tiers' bandwidths that lookups get
    flop_share: Share = 0.5  # of flops that dense layers get
    launch: Seconds = 5e-6  # a kernel's start, or a call from Python
    step: Seconds = 0.0  # what is left of a step without tables, data and dense part
    reserve_bytes: SomeBytes = 0.0  # of the first tier, kept free on each rank
    process_bytes: SomeBytes = 0.0  # a rank's memory without any table or batch
    kernels: tuple[Kernels, ...] = ()
    factors: Mapping[str, Annotated[float, Gt(0)]] = field(default_factory=dict)

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        names = [tier.name for tier in self.tiers]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise TopologyError(f"two tiers are called {name!r}: give each a name of its own", "tiers", i)

    def tier(self, name: str | None = None) -> Tier:
        """The tier of that name; the fastest if None. TopologyError where there is none."""
        for tier in self.tiers:
            if name in (None, tier.name):
                return tier
        raise TopologyError(f"no tier {name!r}; have {', '.join(tier.name for tier in self.tiers)}", "tiers")


@dataclass(frozen=True)
class Host:
    """`count` equal hosts of `ranks` ranks each. inside: the link between the ranks of a host."""

    ranks: Positive
    device: str
    inside: Link
    count: Positive = 1

    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class Topology:
    """Hosts and the network between them. Ranks are numbered host by host.

    measured: what a measurement was made on and with; empty for one from data sheets.
    """

    name: str
    devices: Mapping[str, Device]
    hosts: Annotated[tuple[Host, ...], MinLen(1)]
    network: Link | None = None  # needed where there are several hosts
    measured: Mapping[str, Any] = field(default_factory=dict)

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        for i, host in enumerate(self.hosts):
            if host.device not in self.devices:
                raise TopologyError(
                    f"no device {host.device!r}; devices are {', '.join(self.devices) or 'none'}: "
                    "name one of them, or describe this one under `devices`",
                    "hosts",
                    i,
                    "device",
                )
        if self.num_hosts > 1 and self.network is None:
            raise TopologyError("several hosts need a `network` with latency and bandwidth", "hosts")

    @cached_property
    def num_hosts(self) -> int:
        return sum(host.count for host in self.hosts)

    @cached_property
    def num_ranks(self) -> int:
        return sum(host.count * host.ranks for host in self.hosts)

    @cached_property
    def hosts_of_ranks(self) -> tuple[int, ...]:
        """The host of each rank."""
        sizes = [host.ranks for host in self.hosts for _ in range(host.count)]
        return tuple(h for h, ranks in enumerate(sizes) for _ in range(ranks))

    @cached_property
    def kinds_of_ranks(self) -> tuple[int, ...]:
        """Which of `hosts` each rank is on: ranks of one kind are alike."""
        return tuple(k for k, host in enumerate(self.hosts) for _ in range(host.count * host.ranks))

    def host_of(self, rank: int) -> Host:
        return self.hosts[self.kinds_of_ranks[rank]]

    def device_of(self, rank: int) -> Device:
        return self.devices[self.host_of(rank).device]

    def threads_of(self, rank: int) -> int:
        """The threads that a rank has for itself."""
        host, device = self.host_of(rank), self.device_of(rank)
        return max(1, device.threads // host.ranks) if device.kind == "cpu" else device.threads

    def link(self, a: int, b: int) -> Link:
        """Between two ranks."""
        hosts = self.hosts_of_ranks
        return self.host_of(a).inside if hosts[a] == hosts[b] or self.network is None else self.network

    @property
    def tier_names(self) -> tuple[str, ...]:
        """Of all devices, fastest first."""
        return tuple(dict.fromkeys(tier.name for device in self.devices.values() for tier in device.tiers))

    def tier_bytes(self, tier: str | None = None) -> npt.NDArray[np.float64]:
        """(W,) what each rank has of a tier, less the reserve in its fastest; 0 where it has none."""
        of_kinds = np.array([_tier_bytes(host, self.devices[host.device], tier) for host in self.hosts])
        found: npt.NDArray[np.float64] = of_kinds[list(self.kinds_of_ranks)]
        return found

    def with_ranks(self, ranks: int) -> Topology:
        """The same machines, but so many ranks in all: fewer or more hosts, or other shares of one host.

        TopologyError where `ranks` is not positive, or hosts are not all alike.
        """
        if ranks < 1:
            raise TopologyError(f"got {ranks} ranks, wanted 1 or more")
        if ranks == self.num_ranks:
            return self
        if len(self.hosts) > 1:
            raise TopologyError(
                f"{ranks} ranks in place of {self.num_ranks}: hosts are not alike; write a topology file"
            )
        (host,) = self.hosts
        several = self.num_hosts > 1 or (self.network is not None and ranks % host.ranks == 0)
        if several and ranks > host.ranks:
            if ranks % host.ranks:
                raise TopologyError(f"{ranks} ranks: wanted a multiple of {host.ranks}, those of a host")
            return replace(self, hosts=(replace(host, count=ranks // host.ranks),))
        return replace(self, hosts=(replace(host, count=1, ranks=ranks),))

    def scaled(self, *, bandwidth: float = 1.0, memory: float = 1.0) -> Topology:
        """The same with links, or memory, so many times as fast."""
        hosts = tuple(replace(host, inside=_faster(host.inside, bandwidth)) for host in self.hosts)
        network = self.network and _faster(self.network, bandwidth)
        devices = {name: _faster_memory(device, memory) for name, device in self.devices.items()}
        return replace(self, hosts=hosts, network=network, devices=devices)


def _tier_bytes(host: Host, device: Device, name: str | None) -> float:
    for i, tier in enumerate(device.tiers):
        if name in (None, tier.name):
            shared = tier.shared or device.kind == "cpu"
            whole = tier.bytes / host.ranks if shared else tier.bytes
            return max(0.0, whole - (device.reserve_bytes if i == 0 else 0.0))
    return 0.0


def _faster(link: Link, factor: float) -> Link:
    return replace(link, bandwidth=link.bandwidth * factor, curve=link.curve and _faster_curve(link, factor))


def _faster_curve(link: Link, factor: float) -> Curve | None:
    """What an empty message takes stays; the rest shrinks."""
    if link.curve is None:
        return None
    first = link.curve.seconds[0]
    return replace(link.curve, seconds=tuple(first + (s - first) / factor for s in link.curve.seconds))


def _faster_memory(device: Device, factor: float) -> Device:
    tiers = tuple(replace(tier, bandwidth=tier.bandwidth * factor) for tier in device.tiers)
    return replace(device, tiers=tiers)
