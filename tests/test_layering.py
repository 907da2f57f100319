"""Each package imports only from packages below it. These tables are the architecture."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT: dict[str, set[str]] = {
    "autograd": set(),
    "embeddings": {"autograd"},
    "dataio": {"embeddings"},
    "models": {"autograd", "embeddings"},
    "sharding": {"autograd", "embeddings"},
    "train": {"autograd", "embeddings", "dataio", "models", "sharding"},
    "serve": {"autograd", "embeddings", "dataio", "models"},
}
# dataio knows embeddings only by the jagged types
ONLY_FROM_DATAIO = "tesserec.embeddings.jagged"
# each third party has its home
ONLY_IN: dict[str, tuple[str, ...]] = {
    "mpi4py": ("sharding/mpi.py",),
    "numba": ("kernels/",),
    "llvmlite": ("kernels/",),
    "pyarrow": ("dataio/", "embeddings/arrow.py", "train/", "serve/"),
    "pydantic": ("dataio/", "train/config.py", "models/registry.py", "serve/"),
    "plotly": ("sharding/planner/report.py", "sharding/planner/report/"),
    "highspy": ("sharding/planner/milp.py",),
    "typer": ("tesserec/cli/",),
    "rich": ("tesserec/cli/",),
    "safetensors": ("train/checkpoint.py", "serve/artefact.py"),
    "fastapi": ("serve/",),
    "starlette": ("serve/",),
    "uvicorn": ("serve/",),
    "prometheus_client": ("serve/",),
    "msgspec": ("serve/",),
    "orjson": ("serve/",),
    "httpx": ("serve/client.py",),
    "onnx": ("serve/onnx",),
    "onnxruntime": ("serve/onnx",),
    "opentelemetry": ("serve/",),
}
FILES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """Full names of the modules that `path` imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_down(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    ours = {name for name in imports(path) if name.split(".")[0] == "tesserec"}
    used = {name.split(".")[1] for name in ours if "." in name} & MAY_IMPORT.keys()
    assert used - {package} <= MAY_IMPORT[package]
    if package == "dataio":
        assert {n for n in ours if n.startswith("tesserec.embeddings")} <= {ONLY_FROM_DATAIO}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_third_parties_stay_at_home(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    for name in imports(path):
        homes = ONLY_IN.get(name.split(".")[0])
        assert homes is None or any(home in place for home in homes), f"{place} imports {name}"
