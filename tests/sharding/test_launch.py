"""Ranks are started with their share of the machine, get signals, and are named in what they say."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tesserec.sharding import launch as module
from tesserec.sharding.launch import (
    LAUNCHER,
    RANKS,
    SIZES,
    LaunchError,
    NamedLines,
    announced_rank,
    announced_ranks,
    in_ranks,
    launch,
    launcher_is_gone,
    mpiexec,
    rank_environment,
)

PROGRAM = str(Path(__file__).with_name("faulty.py"))


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SIZES, *RANKS, LAUNCHER, "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)


def start(kind: str, *options: str) -> subprocess.Popen[str]:
    """Two ranks of the faulty program, through a process of its own that calls `launch`."""
    code = (
        "import sys; from tesserec.sharding.launch import *; sys.exit(launch(2, sys.argv[2:], sys.argv[1:2]))"
    )
    command = [sys.executable, "-c", code, PROGRAM, kind, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_process_knows_its_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (announced_ranks(), announced_rank(), in_ranks()) == (1, 0, False)
    monkeypatch.setenv("SLURM_NTASKS", "4")  # a batch script, not yet a task
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert not in_ranks()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert (announced_ranks(), announced_rank(), in_ranks()) == (4, 3, True)


def test_ranks_share_the_cores() -> None:
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    inner = rank_environment(2, "/tmp/ranks", {"HOME": "/root"})
    assert inner["TESSEREC_NUM_THREADS"] == str(max(1, cores // 2))
    assert inner["OPENBLAS_NUM_THREADS"] == "1" and inner["HOME"] == "/root"
    assert rank_environment(2, "/tmp/ranks", {"TESSEREC_NUM_THREADS": "7"})["TESSEREC_NUM_THREADS"] == "7"


def test_without_mpiexec_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(LaunchError, match="pip install mpich"):
        mpiexec()


def test_lines_are_named_once() -> None:
    plain = io.StringIO()
    named = NamedLines(plain, "rank 1: ")
    for text in ("one", " line\n", "two\nthree\n", "", "rank 1: four\n"):
        assert named.write(text) == len(text)
    print("five\n\nsix", file=named)
    want = "rank 1: one line\nrank 1: two\nrank 1: three\nrank 1: four\nrank 1: five\nrank 1: \nrank 1: six\n"
    assert plain.getvalue() == want


def test_ranks_that_do_well(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert launch(2, ["none", "1", "5"], [PROGRAM]) == 0
    assert capfdbinary.readouterr().out.count(b"fine\n") == 2


@pytest.mark.parametrize(
    ("kind", "status", "reason"),
    [
        ("kill", 137, "rank 1: was killed by SIGKILL: the machine was short of memory"),
        ("crash", 139, "rank 1: was killed by SIGSEGV"),
        ("raise", 1, "rank 1: Traceback"),
    ],
)
def test_the_reason_comes_first(kind: str, status: int, reason: str) -> None:
    process = start(kind, "1", "5")
    out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert err.replace("rank 0 or 1:", "rank 1:").startswith(reason), err  # both, if they died at once
    assert "BAD TERMINATION" not in out + err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_rank(number: signal.Signals, tmp_path: Path) -> None:
    process = start("signals", "1", "5", str(tmp_path))
    while len(list(tmp_path.iterdir())) < 2 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, "")
    assert out.count(f"saved after {number}\n") == 2


def test_ranks_notice_that_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not launcher_is_gone()
    here, there = socket.socketpair()
    monkeypatch.setattr(module, "_launcher", here)
    assert not launcher_is_gone()
    there.close()
    assert launcher_is_gone()
    here.close()
