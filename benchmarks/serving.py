"""Services as the serving benchmarks run them: a process of its own on one core, the load on another."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.harness import ROOT
from benchmarks.serve_cases import MODEL, PATH

START_SECONDS = 300.0
SERVER_CORE, LOAD_CORE = "0", "1"

Answer = dict[str, Any]


class Server:
    """A service on one core, which is stopped while `paused`. log: a file for what it prints."""

    def __init__(self, command: Sequence[str], log: Path, *, core: str = SERVER_CORE):
        self.port, self.log = free_port(), log
        self.url = f"http://127.0.0.1:{self.port}"
        with log.open("w") as output:
            self.process = subprocess.Popen(
                ["taskset", "-c", core, *command, "--port", str(self.port)],
                cwd=ROOT,
                stdout=output,
                stderr=output,
            )

    def wait(self) -> float:
        """Seconds until it is ready. RuntimeError when it ends, or never is."""
        start = time.perf_counter()
        while time.perf_counter() - start < START_SECONDS and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/readyz"):
                    return time.perf_counter() - start
            except OSError:
                time.sleep(0.02)
        raise RuntimeError(f"{self.process.args!r} is not ready:\n{self.log.read_text()[-3000:]}")

    def get(self, path: str) -> Answer:
        """The JSON at `path`."""
        return self._ask(urllib.request.Request(self.url + path))

    def post(self, path: str, body: bytes = b"{}") -> Answer:
        """The JSON that answers a body of JSON."""
        headers = {"Content-Type": "application/json"}
        return self._ask(urllib.request.Request(self.url + path, data=body, headers=headers))

    def pause(self) -> None:
        """Stop it as it stands."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.resume()
        self.process.terminate()
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def _ask(self, request: urllib.request.Request) -> Answer:
        try:
            with urllib.request.urlopen(request) as answer:
                found: Answer = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{request.full_url}: {error.code} {error.read().decode()}") from error


def ours(repository: Path, log: Path, *options: str) -> Server:
    """`tesserec serve`."""
    return Server([sys.executable, "-m", "tesserec", "serve", str(repository), *options], log)


def wait_for_tables(server: Server) -> None:
    """Until our service has checked all tables, which it does when it is ready already."""
    while not all(version["verified"] for version in server.get(f"/v1/models/{MODEL}")["versions"]):
        time.sleep(0.1)


def peer(python: str, dim: int, log: Path) -> Server:
    """FastAPI and torch."""
    return Server([python, "-m", "benchmarks.peers.serve", "--dim", str(dim)], log)


def cpu_seconds(pid: int) -> float:
    """What a process has used of a core so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """One that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def load_command(server: Server, bodies: Path, **options: Any) -> list[str]:
    """`benchmarks.load` on its own core. options: of its command line."""
    given = [f"--{name}={value}" for name, value in options.items()]
    command = ["taskset", "-c", LOAD_CORE, sys.executable, "-m", "benchmarks.load"]
    return [*command, server.url + PATH, "--bodies", str(bodies), *given]


def load(server: Server, bodies: Path, **options: Any) -> Answer:
    """What the load generator says of one run."""
    command = load_command(server, bodies, **options)
    found: Answer = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    return found


def make_repository(folder: Path, dim: int) -> Path:
    """A repository with the model of that width, made unless it is there."""
    path = folder / f"d{dim}"
    command = [sys.executable, "-m", "benchmarks.ours.serve", str(path), "--dim", str(dim)]
    subprocess.run(command, cwd=ROOT, check=True)
    for left in (path / "state.json", path / "state.json.lock"):
        left.unlink(missing_ok=True)
    return path


def warm_cache(folder: Path) -> None:
    """Read all files of a folder once."""
    for file in sorted(folder.rglob("*.npy")):
        with file.open("rb") as data:
            while data.read(1 << 24):
                pass


def memory_bytes(pid: int) -> dict[str, int]:
    """What a process has in memory: `own`, which it has written to, and `mapped`, which is that of files."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in rollup}
    return {"own": kib["Anonymous"] << 10, "mapped": (kib["Rss"] - kib["Anonymous"]) << 10}
