"""The option `--ranks`: a command that starts itself again in several processes, or joins those there are."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tesserec.cli.console import fail
from tesserec.sharding.launch import LaunchError, announced_rank, in_ranks, launch

if TYPE_CHECKING:
    from tesserec.sharding.comm import Comm

PAUSE = 0.5  # seconds in which ranks that fail alike do so


def joined(ranks: int | None) -> Comm:
    """The ranks that run this command with us, one unless told. With `ranks` above 1, starts them and leaves.

    None: those of an outer mpiexec or srun, if there is one.
    """
    from tesserec.sharding.comm import LocalComm, world

    if in_ranks():
        comm = world()
        if ranks is not None and ranks != comm.size:
            raise LaunchError(f"--ranks {ranks}, but {comm.size} were started: leave the option out")
        return comm
    if ranks is None or ranks == 1:
        return LocalComm()
    raise SystemExit(launch(ranks, sys.argv[1:]))


@contextmanager
def errors_in_one_line(comm: Comm | None = None) -> Iterator[None]:
    """Inside, an error of ours is a message and status 2; any other is a bug and keeps its traceback.

    comm: the ranks that are inside as well, on a channel of its own. What all of them raise is read once.
    """
    if comm is not None and comm.size == 1:
        yield  # the command line itself will say it
        return
    failing = None if comm is None else comm.duplicate()
    try:
        yield
    except (ValueError, OSError) as error:
        ours = type(error).__module__.startswith("tesserec.")
        if not ours and not isinstance(error, OSError):
            raise
        if failing is None:
            time.sleep(PAUSE if announced_rank() else 0)  # if all fail, rank 0 has ended them by then
            fail(str(error))
        if not _everyone_comes(failing):
            failing.abort(f"rank {failing.rank}: error: {error}")
        if failing.rank == 0:
            fail(str(error))
        raise SystemExit(2) from None


def _everyone_comes(comm: Comm) -> bool:
    """Whether all ranks call this in the same moment."""
    from tesserec.sharding.background import Background

    coming = Background("errors").submit(comm.barrier)
    try:
        coming.result(PAUSE)
    except TimeoutError:
        return False
    return True
