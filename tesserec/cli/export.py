"""`tesserec export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tesserec.cli.console import console, fail, print_json

if TYPE_CHECKING:
    from tesserec.serve.artefact import Artefact, Content
    from tesserec.train.export import Export

STORED: dict[str, Any] = {"fp32": "float32", "fp16": "float16", "int8": "int8", "int4": "int4"}


def export(
    run: Annotated[Path, typer.Argument(help="A run folder made by `tesserec train`.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="The artefact, a folder; in a model repository: REPOSITORY/MODEL/VERSION.",
            show_default=False,
        ),
    ],
    tables: Annotated[
        Literal["fp32", "fp16", "int8", "int4"] | None,
        typer.Option("--tables", help="Store the tables like this.", show_default="as trained"),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the model.", show_default="that of the folder")
    ] = None,
    candidate_id: Annotated[
        str | None,
        typer.Option("--candidate-id", help="The raw column that names a candidate, such as item_id."),
    ] = None,
    golden: Annotated[
        Path | None,
        typer.Option("--golden", help="A raw file with rows to prove the artefact by. Default: made up."),
    ] = None,
    onnx: Annotated[
        Path | None, typer.Option("--onnx", help="Write the model as ONNX as well, and compare it.")
    ] = None,
    checkpoint: Annotated[
        Literal["best", "last"], typer.Option("--checkpoint", help="Which weights.")
    ] = "best",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write all that ranking with a trained model needs as one folder, for `tesserec serve`.

    It has proved, when it appears, that it gives raw rows the scores that the trainer does.
    """
    from tesserec.serve.artefact import Artefact, write_artefact
    from tesserec.train.export import ExportOptions, gather

    if onnx is not None:
        _check_onnx()
    with console.status("gathering and scoring"):
        found = gather(run, ExportOptions(tables and STORED[tables], candidate_id, golden), checkpoint)
    with console.status("writing"):
        write_artefact(output, content_of(found, name or model_name(output), candidate_id))
    written = Artefact.open(output)
    summary = {
        "artefact": str(output),
        "name": written.name,
        "data_type": written.data_type,
        "table_bytes": written.table_bytes,
        "golden_rows": len(found.scores),
        "deviation": found.deviation,
        "metrics": found.metrics,
    }
    if onnx is not None:
        summary |= {"onnx": str(onnx), "onnx_difference": _write_onnx(written, onnx)}
    if as_json:
        print_json(summary)
        return
    size = f"{written.table_bytes / 2**20:,.1f} MiB of {written.data_type} tables"
    proof = f"{len(found.scores)} golden rows score as by the trainer"
    console.print(f"{output}: model {written.name!r}, {size}; {proof}", soft_wrap=True, highlight=False)
    if found.deviation:
        console.print(f"tables as trained would score these up to {found.deviation:.1e} otherwise")
    if not found.counts[0]:
        console.print(f"{found.config.data.path} is not there: no histogram of scores to tell drift by")
    if onnx is not None:
        console.print(f"{onnx}: onnxruntime scores up to {summary['onnx_difference']:.1e} otherwise")


def content_of(found: Export, name: str, candidate_id: str | None) -> Content:
    """What `write_artefact` takes."""
    from tesserec.serve.artefact import Content, Histogram, ModelSpec

    section = found.config.model
    return Content(
        name=name,
        spec=ModelSpec(section.name, found.config.train.seed, section.options, found.features),
        model=found.model,
        encoder=found.encoder,
        golden=found.golden,
        scores=found.scores,
        metrics=found.metrics,
        histogram=Histogram(found.edges, found.counts),
        candidate_id=candidate_id,
        candidate_columns=found.candidate_columns,
        deviation=found.deviation,
    )


def _check_onnx() -> None:
    """Leave at once where ONNX is not installed, before anything is written."""
    try:
        import tesserec.serve.onnx  # noqa: F401
    except ModuleNotFoundError as error:
        fail(str(error))


def _write_onnx(artefact: Artefact, path: Path) -> float:
    """Write the model as ONNX -> how far its scores of the golden rows are off, at most."""
    from tesserec.serve.golden import model_inputs
    from tesserec.serve.onnx import export_onnx

    inputs = model_inputs(artefact.encoder, artefact.golden()[0])
    return export_onnx(artefact.model(), artefact.model_spec, path, *inputs)


def model_name(output: Path) -> str:
    """The folder's name; that of the folder above where it is a version of a repository."""
    resolved = output.resolve()
    return resolved.parent.name if resolved.name.isdecimal() else resolved.name
