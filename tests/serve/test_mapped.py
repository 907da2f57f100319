"""What a process has of a mapped file."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from tesserec.serve.mapped import map_file, populate

PAGES = 300


def resident(path: Path) -> int:
    """Bytes of a mapped file that this process has at hand."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.endswith(str(path)))
    rss = next(line for line in lines[at:] if line.startswith("Rss:"))
    return int(rss.split()[1]) * 1024


def linux() -> tuple[int, ...]:
    if sys.platform != "linux":
        return (0,)
    release = Path("/proc/sys/kernel/osrelease").read_text()
    return tuple(int(part) for part in release.split("-")[0].split(".")[:2])


@pytest.mark.skipif(linux() < (5, 14), reason="MADV_POPULATE_READ came with Linux 5.14")
def test_populated_rows_are_at_hand_and_unchanged(tmp_path: Path) -> None:
    path, size = tmp_path / "rows", PAGES * mmap.PAGESIZE
    values = np.arange(size // 4, dtype=np.float32)
    path.write_bytes(values.tobytes())
    rows = np.frombuffer(map_file(path, size), np.float32)[32:].reshape(-1, 4)  # rows begin after a header
    assert resident(path) < size
    populate(rows, lambda: True)
    assert resident(path) < size
    populate(rows, lambda: False)
    assert resident(path) == size
    np.testing.assert_array_equal(rows.ravel(), values[32:])
