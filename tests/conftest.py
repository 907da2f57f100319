"""Tests in several processes: `@pytest.mark.ranks(1, 2, 4, timeout=60)` runs a test in so many MPI ranks.

Several numbers are several tests (`test_name[ranks2]`; the fixture `num_ranks` tells which). A test in more
than one rank runs in an `mpiexec` of its own: each rank is a pytest that runs this one test, where
`tesserec.sharding.comm.world()` is the communicator. The first rank that fails ends all of them, and its
report is the test's; after `timeout` seconds all are killed and say where they were. In one rank a test runs
here, as any other.

Ranks share the folder `shared_path`, while `tmp_path` is each rank's own. Hypothesis draws the same examples
on every rank. A rank has one thread unless TESSEREC_NUM_THREADS says more.
"""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

FOLDER = "TESSEREC_TEST_RANKS"  # set in a rank: where it leaves its report, and `shared_path`
OUTPUT = 6000  # characters of it that a report shows

settings.register_profile("ranks", derandomize=True, database=None, deadline=None)
if FOLDER in os.environ:
    settings.load_profile("ranks")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ranks(*numbers, timeout=60): run the test in so many MPI ranks")
    if FOLDER in os.environ:  # ranks must not tidy up each other's temporary folders
        config.option.basetemp = Path(os.environ[FOLDER]) / f"own {os.getpid()}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mark = metafunc.definition.get_closest_marker("ranks")
    if mark is not None:
        metafunc.fixturenames.append("num_ranks")
        metafunc.parametrize("num_ranks", mark.args, ids=[f"ranks{n}" for n in mark.args], indirect=True)


@pytest.fixture
def num_ranks(request: pytest.FixtureRequest) -> int:
    """How many ranks this test runs in."""
    return int(getattr(request, "param", 1))


@pytest.fixture
def shared_path(tmp_path: Path) -> Path:
    """A folder that all ranks of the test share, empty at first."""
    return Path(os.environ[FOLDER]) / "shared" if FOLDER in os.environ else tmp_path


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a marked test in its ranks (here), or as one of them (there); others, and one rank, as always."""
    mark = pyfuncitem.get_closest_marker("ranks")
    ranks: Any = pyfuncitem.callspec.params["num_ranks"] if mark is not None else 1
    if mark is None or ranks == 1:
        return None
    timeout = mark.kwargs.get("timeout", 60)
    if FOLDER in os.environ:
        _run_as_rank(pyfuncitem, timeout)
    else:
        _run_in_ranks(pyfuncitem, ranks, timeout)
    return True


def _run_as_rank(test: pytest.Function, timeout: float) -> None:
    folder = Path(os.environ[FOLDER])
    with (folder / f"stuck {os.getpid()}").open("w") as stacks:
        faulthandler.dump_traceback_later(max(timeout - 3, 1), file=stacks)
        _run_here(test, folder)
        faulthandler.cancel_dump_traceback_later()


def _run_here(test: pytest.Function, folder: Path) -> None:
    try:
        test.obj(**{name: test.funcargs[name] for name in test._fixtureinfo.argnames})
    except BaseException as error:
        from tesserec.sharding.comm import world

        failure = test.repr_failure(pytest.ExceptionInfo.from_exception(error))
        (folder / f"failed {time.time_ns()}").write_text(f"rank {world().rank}:\n{failure}\n")
        world().abort(f"rank {world().rank} failed")


def _run_in_ranks(test: pytest.Function, ranks: int, timeout: float) -> None:
    folder = test._request.getfixturevalue("tmp_path") / "ranks"
    (folder / "shared").mkdir(parents=True)
    process = subprocess.Popen(
        _command(test, ranks),
        env={"TESSEREC_NUM_THREADS": "1", **os.environ, "OPENBLAS_NUM_THREADS": "1", FOLDER: str(folder)},
        cwd=test.config.rootpath,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    ended = f"no end in {timeout} s"
    try:
        output = process.communicate(timeout=timeout)[0]
        ended = f"exit status {process.returncode}"
    except subprocess.TimeoutExpired:
        output = _kill(process)
    finally:
        _kill(process)
    if process.returncode:
        reason = "".join(path.read_text() for path in sorted(folder.glob("failed *"))[:1]) or _stacks(folder)
        pytest.fail(f"{ranks} ranks: {ended}\n{reason}--- output\n{output[-OUTPUT:]}", pytrace=False)


def _stacks(folder: Path) -> str:
    """Where the test was in each rank; without pytest's own part of the stack."""
    ranks = [path.read_text().partition(f'  File "{__file__}"')[0] for path in folder.glob("stuck *")]
    return "\n".join(ranks)


def _command(test: pytest.Function, ranks: int) -> list[str]:
    beside = Path(sys.executable).with_name("mpiexec")
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    if mpiexec is None:
        pytest.skip("there is no mpiexec here")
    pytest_options = "-x -s --no-header --no-summary --strict-markers --import-mode=importlib -o addopts="
    python = [sys.executable, "-m", "mpi4py", "-m", "pytest", *pytest_options.split()]
    without = ["-p", "no:cacheprovider", "-p", "no:cov", "--timeout=0"]
    return [mpiexec, "-n", str(ranks), *python, *without, f"--rootdir={test.config.rootpath}", test.nodeid]


def _kill(process: subprocess.Popen[str]) -> str:
    """What it still said."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            try:
                return process.communicate(timeout=5)[0]
            except subprocess.TimeoutExpired:
                continue
    return ""
