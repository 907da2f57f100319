"""The example of the manual, as a user runs it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tesserec.sharding.comm import world

EXAMPLE = Path(__file__).parents[2] / "examples" / "sharded_loop.py"


@pytest.mark.ranks(1, 2)
def test_a_loop_of_ones_own_learns_and_ends_together(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE))["main"]()
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines() if "loss" in line]
    assert len(losses) == (4 if world().rank == 0 else 0)
    assert not losses or losses[-1] < 0.1 < losses[0]
