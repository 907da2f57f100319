"""Criteo-like click logs of any size, written block by block, with the schema that prepares them."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from tesserec.dataio.ahead import ahead
from tesserec.dataio.atomic import atomic_file
from tesserec.dataio.dataset import DataError
from tesserec.dataio.planted import BLOCK_ROWS, DELIMITER, F4, PlantedModel, SynthOptions

_BINS = 1 << 18
_DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True, slots=True)
class SynthSummary:
    """best_auc: AUC of the true probability on the rows written, which no model beats but by luck."""

    rows: int
    click_rate: float
    best_auc: float
    schema: Path


def write_synth(
    path: str | Path, options: SynthOptions, progress: Callable[[int], None] = lambda rows: None
) -> SynthSummary:
    """Write `path` (.csv, .tsv, either with .gz or .zst, or .parquet) and a schema for it beside.

    Memory: a few blocks. progress: called with the number of rows written so far. DataError: another suffix.
    """
    path = Path(path)
    kind, model, clicks = _kind(path), PlantedModel(options), ClickCurve()
    blocks = range(-(-options.rows // BLOCK_ROWS))
    tasks = (partial(_make_block, model, kind, number) for number in blocks)
    workers = os.cpu_count() or 1
    with atomic_file(path) as temporary, _writer(temporary, kind) as write:
        for block in ahead(tasks, workers=workers, depth=workers + 1):
            write(block)
            clicks.add(block.labels, block.p_true)
            progress(clicks.rows)
    name = path.name.removesuffix("".join(path.suffixes))
    schema = path.with_name(f"{name}.schema.yaml")
    with atomic_file(schema) as temporary:
        temporary.write_text(synth_schema(name, options), encoding="utf-8")
    return SynthSummary(clicks.rows, clicks.rate, clicks.auc, schema)


def synth_schema(name: str, options: SynthOptions) -> str:
    """The schema, as YAML, that prepares what `write_synth` writes."""
    min_count = max(2, options.rows // 5_000)  # rarer ids have next to no effect
    lines = [
        f"# Synthetic click logs of `tesserec data synth`, seed {options.seed}.",
        f"name: {json.dumps(name)}",
        "labels: label",
        "dense:",
        "  - {column: I1..I13, fill: 0, transform: log1p}",
        "sparse:",
        f"  - {{column: C1..C26, min_count: {min_count}}}",
    ]
    if options.multi_hot:
        lines += [
            f'  - {{column: M1..M{options.multi_hot}, delimiter: "{DELIMITER}", min_count: {min_count}}}'
        ]
    if options.p_true:
        lines += ["keep: {column: p_true, type: float}  # the probability that drew the label"]
    return "\n".join([*lines, "split: {by: ratio, train: 0.8, valid: 0.1, test: 0.1}", ""])


class ClickCurve:
    """AUC of probabilities, from a histogram of 2^18 bins of equal width; labels in a bin count as ties."""

    def __init__(self) -> None:
        self._counts = np.zeros((2, _BINS), np.int64)

    def add(self, labels: npt.NDArray[np.int8], p_true: F4) -> None:
        bins = (p_true * np.float32(_BINS)).astype(np.int64).clip(max=(_BINS) - 1)
        for label in (0, 1):
            self._counts[label] += np.bincount(bins[labels == label], minlength=_BINS)

    @property
    def rows(self) -> int:
        return int(self._counts.sum())

    @property
    def rate(self) -> float:
        return float(self._counts[1].sum() / self.rows)

    @property
    def auc(self) -> float:
        """NaN when all labels are the same."""
        negatives, positives = self._counts.astype(np.float64)
        below = np.cumsum(negatives) - negatives / 2
        return float(below @ positives / (negatives.sum() * positives.sum() or np.nan))


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a file is written. delimiter: None for Parquet."""

    delimiter: str | None
    compression: str | None = None


def _kind(path: Path) -> _Kind:
    *_, inner, last = ["", "", *path.suffixes]
    if last == ".parquet":
        return _Kind(None)
    if last in _DELIMITERS:
        return _Kind(_DELIMITERS[last])
    if last in _COMPRESSIONS and inner in _DELIMITERS:
        return _Kind(_DELIMITERS[inner], _COMPRESSIONS[last])
    raise DataError(
        f"{path}: wanted a name ending in .csv, .tsv, .txt (then .gz or .zst if you like), or .parquet"
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Rows ready to be written: text or a table."""

    content: Any
    labels: npt.NDArray[np.int8]
    p_true: F4


def _make_block(model: PlantedModel, kind: _Kind, number: int) -> _Block:
    table = model.block(number).slice(0, model.options.rows - number * BLOCK_ROWS)
    labels, p_true = table["label"].to_numpy(), table["p_true"].to_numpy()
    if not model.options.p_true:
        table = table.drop_columns("p_true")
    if kind.delimiter is None:
        return _Block(table, labels, p_true)
    text = io.BytesIO()
    options = pa.csv.WriteOptions(include_header=number == 0, delimiter=kind.delimiter, quoting_style="none")
    pa.csv.write_csv(table, text, options)
    return _Block(text.getbuffer(), labels, p_true)


@contextmanager
def _writer(path: Path, kind: _Kind) -> Iterator[Callable[[_Block], None]]:
    """Yield what writes one block after another to `path`."""
    if kind.delimiter is not None:
        with pa.output_stream(str(path), compression=kind.compression) as stream:
            yield lambda block: stream.write(block.content)
        return
    writer: Any = None

    def write(block: _Block) -> None:
        nonlocal writer
        writer = writer or pa.parquet.ParquetWriter(path, block.content.schema)
        writer.write_table(block.content)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()
