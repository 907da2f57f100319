"""The wheel holds every file of the source directories, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PARTS = sorted(p.name for p in (ROOT / "tesserec").iterdir() if p.is_symlink())


def test_links_name_the_source_directories() -> None:
    for part in PARTS:
        assert (ROOT / "tesserec" / part).readlink() == Path("..") / part
    packages = {p.name for p in ROOT.iterdir() if (p / "__init__.py").is_file()}
    assert packages - {"tesserec", "tests"} == set(PARTS)


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="no git checkout")
def test_wheel_holds_every_tracked_file(tmp_path: Path) -> None:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    tracked = [name for name in listing.stdout.split("\0") if name]
    for name in tracked:  # build from a copy: the checkout stays clean
        target = tmp_path / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target, follow_symlinks=False)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--installer=uv", "-o", tmp_path, tmp_path / "source"],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {n for n in archive.namelist() if ".dist-info/" not in n}
    source = [n for n in tracked if n.startswith(("tesserec/", *(f"{p}/" for p in PARTS)))]
    want = {n if n.startswith("tesserec/") else f"tesserec/{n}" for n in source}
    assert held == want - {f"tesserec/{p}" for p in PARTS}
