"""Scores for rows of Parquet, prepared or raw: (features in) -> (kept columns, score) out, streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tesserec.dataio.atomic import atomic_file
from tesserec.dataio.batch import Batch
from tesserec.dataio.config import did_you_mean
from tesserec.dataio.dataset import INFO_FILE, DataError, DatasetInfo
from tesserec.dataio.encoder import Encoder
from tesserec.dataio.raw import read_raw
from tesserec.embeddings.jagged import InvalidIdError, KeyedJaggedTensor
from tesserec.train.evaluate import evaluating, score
from tesserec.train.learner import load_model
from tesserec.train.metrics import sigmoid
from tesserec.train.run import RunFolder

ROWS_AT_ONCE = 65_536  # one row group of the output
Columns = Literal["none", "kept", "all"]
Rows = tuple[str, Any, Any]  # (where from, rows to take output columns from, training columns)


def predict_files(
    path: Path,
    inputs: Sequence[Path],
    output: Path,
    *,
    raw: bool,
    columns: Columns = "kept",
    name: str = "score",
    checkpoint: str = "best",
    each: Callable[[int], None] = lambda rows: None,
) -> int:
    """Write `output`, Parquet with the score of every input row, in order -> number of rows.

    raw: the inputs are raw files, for the run's own encoder; else Parquet with the training columns.
    columns: which input columns stand beside the score: none, those the schema keeps and the group, with the
    labels of prepared rows, or all. name: of the score column, float32, the probability of a positive label.
    The file appears when complete.
    """
    run = RunFolder.open(path)
    info, size, model = run.dataset(), run.config().train.slice_size, load_model(run, checkpoint)
    source = _raw_rows(run, inputs) if raw else _prepared_rows(inputs, info, columns)
    done = 0
    with evaluating(model), atomic_file(output) as temporary, _Writer(temporary) as writer:
        for place, rows, features in source:
            try:
                logits = score(model, to_batch(features, info), size)
            except (DataError, InvalidIdError) as error:
                raise DataError(f"{place}: {error}") from None
            scores = sigmoid(logits).astype(np.float32)
            writer.write(_chosen(rows, features, columns, info), name, scores)
            done += len(scores)
            each(done)
        if not done:
            raise DataError(f"{', '.join(map(str, inputs))}: no rows to score")
    return done


def _prepared_rows(inputs: Sequence[Path], info: DatasetInfo, columns: Columns) -> Iterator[Rows]:
    wanted = {*info.dense, *(feature.name for feature in info.sparse), *_kept(info, columns)}
    for path in inputs:
        try:
            with pq.ParquetFile(path) as file:
                names = [n for n in file.schema_arrow.names if columns == "all" or n in wanted]
                for i, rows in enumerate(file.iter_batches(ROWS_AT_ONCE, columns=names)):
                    yield f"{path}, counting from row {i * ROWS_AT_ONCE}", rows, rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: cannot be read as Parquet: {error}") from error


def _raw_rows(run: RunFolder, inputs: Sequence[Path]) -> Iterator[Rows]:
    encoder = Encoder.load(run.encoder)
    schema = encoder.schema
    columns = schema.columns()
    optional = columns.keys() - schema.feature_columns().keys()
    labels = {label.column for label in schema.labels} & optional  # rows to be scored may have none yet
    for raw in read_raw(inputs, columns, schema.format, optional=optional):
        unlabelled = raw.batch.select([n for n in raw.batch.schema.names if n not in labels])
        with raw.located():
            features = encoder.encode(unlabelled)
        yield f"{raw.file}, counting from {raw.unit} {raw.first_row}", raw.batch, features


def _chosen(rows: Any, features: Any, columns: Columns, info: DatasetInfo) -> Any:
    """The input columns that stand beside the score, as a table."""
    if columns == "all":
        return pa.table(rows)
    names = [name for name in _kept(info, columns) if name in features.schema.names]
    return pa.table(features.select(names))


def _kept(info: DatasetInfo, columns: Columns) -> tuple[str, ...]:
    if columns == "none":
        return ()
    return (*info.keep, *info.labels, *((info.group,) if info.group else ()))


class _Writer:
    """A Parquet file that grows by tables of one schema."""

    def __init__(self, path: Path):
        self.path = path
        self.file: Any = None

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()

    def write(self, table: Any, name: str, scores: Any) -> None:
        """One row group: the columns of `table`, and the scores."""
        if name in table.column_names:
            raise DataError(f"the input has a column {name!r} already; choose another name for the scores")
        columns = dict(zip(table.column_names, table.columns, strict=True)) | {name: pa.array(scores)}
        table = pa.table(columns)
        if self.file is None:
            self.file = pq.ParquetWriter(self.path, table.schema)
        self.file.write_table(table)


def to_batch(rows: Any, info: DatasetInfo) -> Batch:
    """Training columns, an Arrow record batch -> Batch without labels. DataError naming row and column."""
    dense = np.empty((rows.num_rows, len(info.dense)), np.float32)
    for i, name in enumerate(info.dense):
        dense[:, i] = _column(rows, name).cast(pa.float32()).to_numpy(zero_copy_only=False)
    if not np.isfinite(dense).all():
        row, column = np.argwhere(~np.isfinite(dense))[0]
        raise DataError(f"row {row}, column {info.dense[column]!r}: null or not finite, wanted a number")
    for feature in info.sparse:
        _column(rows, feature.name)
    sparse = KeyedJaggedTensor.from_arrow(rows, [feature.name for feature in info.sparse])
    return Batch(dense, sparse, np.zeros((rows.num_rows, 0), np.float32))


def _column(rows: Any, name: str) -> Any:
    if name not in rows.schema.names:
        raise DataError(f"no column {name!r}{did_you_mean(name, rows.schema.names)} in the input")
    return rows.column(name)


def is_prepared(path: Path) -> bool:
    """Whether a file lies in a prepared data set, beside its `dataset.json`."""
    return (path.resolve().parent / INFO_FILE).is_file()
