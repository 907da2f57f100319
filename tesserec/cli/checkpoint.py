"""`tesserec checkpoint`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from tesserec.cli.console import fail, out, print_json

if TYPE_CHECKING:
    from tesserec.sharding.plan import ShardingPlan
    from tesserec.train.checkpoint import Checkpoint
    from tesserec.train.manifest import Stored

PathArgument = Annotated[
    Path, typer.Argument(help="A checkpoint, or a run: then its last one.", show_default=False)
]
Which = Annotated[Literal["best", "last"], typer.Option("--checkpoint", help="Which one of a run.")]
Output = Annotated[Path, typer.Option("--output", "-o", show_default=False, help="What to write.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def inspect(path: PathArgument, which: Which = "last", as_json: AsJson = False) -> None:
    """Show what a checkpoint holds: its tables, their rectangles, the state of the optimizers."""
    found = _description(_open(path, which))
    if as_json:
        print_json(found)
    else:
        _show(found)


def verify(path: PathArgument, as_json: AsJson = False) -> None:
    """Read every byte of a checkpoint, or of all checkpoints of a run. Exit status 1 if any is damaged."""
    problems = {str(folder): _problems(folder) for folder in _folders(path)}
    if as_json:
        print_json({"sound": not any(problems.values()), "problems": problems})
    for folder, found in {} if as_json else problems.items():
        out.print(f"{escape(folder)}: {'damaged' if found else 'sound'}", soft_wrap=True)
        for problem in found:
            out.print(f"  {escape(problem)}", soft_wrap=True)
    if any(problems.values()):
        raise SystemExit(1)


def reshard(
    path: PathArgument,
    output: Output,
    plan: Annotated[
        Path | None, typer.Option(help="The sharding plan, a JSON file.", show_default=False)
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Or: a simple plan for so many ranks.", show_default=False)
    ] = None,
    kind: Annotated[str, typer.Option(help="With --ranks: how each table is sharded.")] = "auto",
    which: Which = "last",
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint with the rectangles of another plan, in bounded memory.

    Training needs no such thing: any checkpoint continues under any plan.
    """
    from tesserec.train.checkpoint import Checkpoint
    from tesserec.train.reshard import reshard as write

    checkpoint = _open(path, which)
    if output.exists():
        fail(f"{output}: is there already; choose another name, or remove it")
    write(checkpoint, _plan(checkpoint, plan, ranks, kind), output)
    found = _description(Checkpoint(output))
    if as_json:
        print_json(found)
    else:
        out.print(f"{escape(str(output))}: {_summary(found)}", soft_wrap=True)


def export_table(
    path: PathArgument,
    table: Annotated[
        str, typer.Argument(help="Its name, such as C1 or inputs.vectors.C1.", show_default=False)
    ],
    output: Output,
    which: Which = "last",
    as_json: AsJson = False,
) -> None:
    """Write a table to one file: .npy, .parquet (columns id and vector) or .safetensors."""
    from tesserec.train.reshard import export_table as write
    from tesserec.train.reshard import table_shapes

    checkpoint = _open(path, which)
    name = write(checkpoint, table, output)
    shape = table_shapes(checkpoint)[name]
    if as_json:
        print_json({"table": name, "shape": shape, "output": str(output), "bytes": output.stat().st_size})
    else:
        out.print(f"{escape(str(output))}: {escape(name)}, {shape[0]:,} × {shape[1]}", soft_wrap=True)


def _open(path: Path, which: str) -> Checkpoint:
    from tesserec.train.checkpoint import Checkpoint
    from tesserec.train.run import RunFolder

    if (path / "config.yaml").is_file():
        return RunFolder.open(path).checkpoint(which)
    return Checkpoint(path)


def _folders(path: Path) -> list[Path]:
    """The checkpoint `path`, or all of the run that is there."""
    from tesserec.train.checkpoint import checkpoint_folder, checkpoint_steps
    from tesserec.train.run import RunFolder

    if not (path / "config.yaml").is_file():
        return [path]
    folder = RunFolder.open(path).checkpoints
    return [checkpoint_folder(folder, step) for step in checkpoint_steps(folder)]


def _problems(folder: Path) -> list[str]:
    from tesserec.train.checkpoint import Checkpoint, CheckpointError

    try:
        return Checkpoint(folder).problems()
    except CheckpointError as error:  # the manifest itself
        return [str(error)]


def _plan(checkpoint: Checkpoint, file: Path | None, ranks: int | None, kind: str) -> ShardingPlan:
    from tesserec.sharding.placement import make_plan
    from tesserec.sharding.plan import ShardingPlan
    from tesserec.train.reshard import table_shapes

    if (file is None) == (ranks is None):
        fail("give one of --plan and --ranks")
    if file is not None:
        return ShardingPlan.load(file)
    return make_plan(table_shapes(checkpoint), ranks or 1, default=kind)


def _description(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the manifest and the state say, as JSON values: each table with the state of its rows."""
    from tesserec.train.checkpoint import table_of

    arrays = {path: _array(path, array) for path, array in checkpoint.arrays.items()}
    tables = {table_of(path): found | {"state": []} for path, found in arrays.items() if _is_table(path)}
    for path, found in arrays.items():
        if not _is_table(path):
            tables[table_of(path)]["state"].append(found)
    progress = checkpoint.state().get("progress", {})
    return {
        "path": str(checkpoint.path),
        "step": progress.get("step"),
        "progress": progress,
        "tables": [{"table": name} | tables[name] for name in sorted(tables, key=_by_number)],
        "dense": {name: list(array.shape) for name, array in checkpoint.dense().items()},
    }


def _array(path: str, array: Stored) -> dict[str, Any]:
    return {
        "path": path,
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "bytes": sum(part.size for part in array.parts),
        "parts": [{"file": p.file, "rows": p.rows, "cols": p.cols} for p in array.parts],
    }


def _is_table(path: str) -> bool:
    return path.startswith("tables/")


def _by_number(name: str) -> list[tuple[int, str]]:
    """C2 before C10."""
    return [(int(digits or 0), text) for text, digits in re.findall(r"(\D*)(\d*)", name)]


def _show(found: dict[str, Any]) -> None:
    from tesserec.embeddings.memory import in_units

    view = Table(box=SIMPLE_HEAD)
    view.add_column("table", overflow="fold")
    for title in ("shape", "type", "rectangles", "rows", "state"):
        view.add_column(title, justify="right", no_wrap=True)
    for table in found["tables"]:
        shape = " × ".join(f"{n:,}" for n in table["shape"])
        sizes = table["bytes"], sum(state["bytes"] for state in table["state"])
        parts = f"{len(table['parts']):,}"
        view.add_row(escape(table["table"]), shape, table["dtype"], parts, *map(in_units, sizes))
    out.print(view)
    out.print(f"{escape(found['path'])}: {_summary(found)}", soft_wrap=True)


def _summary(found: dict[str, Any]) -> str:
    from tesserec.embeddings.memory import in_units

    arrays = [array for table in found["tables"] for array in (table, *table["state"])]
    parts, size = sum(len(a["parts"]) for a in arrays), in_units(sum(a["bytes"] for a in arrays))
    step = f"step {found['step']:,}, " if found["step"] is not None else ""
    return f"{step}{len(found['tables'])} tables, {parts} files of {size}, {len(found['dense'])} dense arrays"
