"""An error of all ranks is said once, that of one rank with its name."""

from __future__ import annotations

import time

import pytest

from tesserec.cli import ranks
from tesserec.cli.ranks import errors_in_one_line
from tesserec.dataio.config import ConfigError
from tesserec.sharding.comm import Comm, LocalComm
from tesserec.sharding.threads import run_ranks


@pytest.fixture(autouse=True)
def little_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "PAUSE", 0.3)


def test_what_all_ranks_raise_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    def run(comm: Comm) -> int:
        with pytest.raises(SystemExit) as left, errors_in_one_line(comm):
            raise ConfigError("key a.b: is wrong")
        return int(str(left.value))

    assert run_ranks(3, run) == [2, 2, 2]
    assert capsys.readouterr().err == "error: key a.b: is wrong\n"


def test_what_one_rank_raises_ends_all_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def abort(self: Comm, reason: str) -> None:
        said.append(reason)
        raise SystemExit(1)

    monkeypatch.setattr("tesserec.sharding.threads.ThreadComm.abort", abort)

    def run(comm: Comm) -> str:
        if comm.rank == 0:
            with errors_in_one_line(comm):
                time.sleep(2 * ranks.PAUSE)
                return "well"
        with pytest.raises(SystemExit), errors_in_one_line(comm):
            raise OSError("disk full")
        return "ended"

    assert run_ranks(2, run) == ["well", "ended"]
    assert said == ["rank 1: error: disk full"]


@pytest.mark.parametrize("comm", [None, LocalComm()])
def test_bugs_keep_their_traceback(comm: Comm | None) -> None:
    with pytest.raises(ValueError, match="bug"), errors_in_one_line(comm):
        raise ValueError("bug")
