"""Hosts on one machine: network namespaces joined by a bridge, whose links can be made slow. Needs root.

    with hosts(2, mbit=100) as made:
        subprocess.run([*made.mpiexec(ranks_per_host=2), sys.executable, "-m", "mpi4py", "program.py"])

MPI starts its ranks through a "remote shell" that enters a namespace. They speak TCP only, within a host too:
all namespaces share one machine's memory, so MPI would else find that they need no network.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# $h: address of a host; the namespaces are those of this run
SHELL = """#!/bin/sh
while [ "${{1#-}}" != "$1" ]; do case $1 in -l|-p|-o) shift 2;; *) shift;; esac; done
h=$1; shift
exec ip netns exec {prefix}-${{h##*.}} unshare --uts sh -c "hostname {prefix}-${{h##*.}}; $*"
"""


@dataclass(frozen=True)
class Hosts:
    """Namespaces prefix-2, prefix-3, … with addresses 10.77.NET.2, …; folder: of the remote shell."""

    count: int
    net: int
    prefix: str
    folder: str

    @property
    def names(self) -> list[str]:
        return [f"{self.prefix}-{k}" for k in range(2, 2 + self.count)]

    def mpiexec(self, ranks_per_host: int) -> list[str]:
        """What to put before a command to run it on all hosts; the first ranks are on the first."""
        places = ",".join(f"10.77.{self.net}.{k}:{ranks_per_host}" for k in range(2, 2 + self.count))
        shell = ["-launcher", "ssh", "-launcher-exec", f"{self.folder}/shell", "-iface", f"{self.prefix}-br"]
        count = str(self.count * ranks_per_host)
        env = ["-genv", "UCX_TLS", "tcp,self"]
        return [str(Path(sys.executable).parent / "mpiexec"), *shell, "-hosts", places, *env, "-n", count]

    def slow_down(self, mbit: float) -> None:
        """From now on every host sends at most so many megabits per second; 0: as fast as it can."""
        for name in self.names:
            if not mbit:
                _run("ip", "netns", "exec", name, "tc", "qdisc", "del", "dev", "eth0", "root")
                continue
            bucket = ["rate", f"{mbit}mbit", "burst", f"{max(16, mbit / 8):.0f}kb", "latency", "400ms"]
            _run("ip", "netns", "exec", name, "tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", *bucket)

    def bytes_sent(self) -> list[int]:
        """What has left each host so far, by its network card's own count."""
        counter = "/sys/class/net/eth0/statistics/tx_bytes"
        return [int(_run("ip", "netns", "exec", name, "cat", counter)) for name in self.names]


@contextmanager
def hosts(count: int, mbit: float = 0) -> Iterator[Hosts]:
    """`count` hosts, with links of so many megabits per second (0: as fast as they go); gone at the end."""
    missing = [tool for tool in ("ip", "tc", "unshare") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        raise RuntimeError(f"hosts need root and ip, tc, unshare; missing: {missing or 'root'}")
    with tempfile.TemporaryDirectory() as folder:
        net = os.getpid() % 250
        made = Hosts(count, net, f"tr{net}", folder)
        shell = Path(folder, "shell")
        shell.write_text(SHELL.format(prefix=made.prefix))
        shell.chmod(shell.stat().st_mode | stat.S_IXUSR)
        try:
            _connect(made)
            if mbit:
                made.slow_down(mbit)
            yield made
        finally:
            for name in made.names:
                subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)
            subprocess.run(["ip", "link", "del", f"{made.prefix}-br"], stderr=subprocess.DEVNULL)


def _connect(made: Hosts) -> None:
    bridge = f"{made.prefix}-br"
    _run("ip", "link", "add", bridge, "type", "bridge")
    _run("ip", "addr", "add", f"10.77.{made.net}.1/24", "dev", bridge)
    _run("ip", "link", "set", bridge, "up")
    for k, name in enumerate(made.names, 2):
        cable = f"{made.prefix}v{k}"
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "link", "set", cable, "master", bridge, "up")
        _run("ip", "-n", name, "addr", "add", f"10.77.{made.net}.{k}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _run("ip", "-n", name, "link", "set", device, "up")


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
