"""What a run leaves to whoever ranks with its model: the model, and rows with their scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tesserec.autograd.module import Module
from tesserec.dataio.batch import Batch
from tesserec.dataio.config import did_you_mean
from tesserec.dataio.dataset import DataError, Dataset
from tesserec.dataio.encoder import Encoder
from tesserec.dataio.invert import drawn_rows, encodable, raw_rows, with_gaps, with_unknown
from tesserec.dataio.raw import read_raw
from tesserec.dataio.schema import Dense, Sparse
from tesserec.embeddings.quantize import QuantizedType, quantize
from tesserec.models.features import Features
from tesserec.train.config import TrainConfig
from tesserec.train.evaluate import evaluating, score
from tesserec.train.learner import features_of, load_model
from tesserec.train.metrics import sigmoid
from tesserec.train.predict import to_batch
from tesserec.train.run import RunError, RunFolder

GOLDEN_ROWS = 64
BINS = 20  # of the histogram of scores, about as many in each
_GROUPS, _ROWS = 4, 1 << 14  # row groups of a split that are looked at, and rows of each

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Export:
    """A model that is to leave, and what is known of it.

    config: the run's. features: as the model was built for. model: with tables stored as wanted. golden: raw
    rows, and scores: (n,) float32 the model's probabilities for them, by the code that trained it; deviation:
    how far at most they are from those before tables were converted. edges, counts: a histogram of scores of
    the validation split. candidate_columns: raw columns that differ between the candidates of a request.
    """

    config: TrainConfig
    features: Features
    model: Module
    encoder: Path
    golden: pa.RecordBatch
    scores: Floats
    deviation: float
    metrics: dict[str, Any]
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    candidate_columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """tables: how rows are to be stored; None: as they were trained.

    candidate_id: the raw column that names a candidate. golden: a raw file with rows to score; None: rows are
    made up that look like those of the validation split.
    """

    tables: QuantizedType | None = None
    candidate_id: str | None = None
    golden: Path | None = None


def gather(path: Path, options: ExportOptions, checkpoint: str = "best") -> Export:
    """All about a run's model, with the weights of its "best" or "last" checkpoint.

    RunError for a run without an encoder, DataError for a candidate_id that is no raw column.
    """
    run = RunFolder.open(path)
    progress = run.checkpoint(checkpoint).state()["progress"]
    known = progress["best"] if checkpoint == "best" else None
    return gather_model(run, load_model(run, checkpoint), known or {"step": progress["step"]}, options)


def gather_model(run: RunFolder, model: Module, metrics: Mapping[str, Any], options: ExportOptions) -> Export:
    """The same of a model that is in memory, with weights of the run. It is left as it is."""
    if not run.encoder.is_dir():
        raise RunError(
            f"{run.path}: has no encoder, so raw rows cannot be scored: train on data that "
            "`tesserec data prepare` made"
        )
    whole, config, info = Encoder.load(run.encoder), run.config(), run.dataset()
    encoder, size = whole.of_features(), config.train.slice_size
    _check_column(encoder, options.candidate_id)
    sample = _sample(config, encoder)
    golden = _read_golden(encoder, options.golden) if options.golden else _golden(encoder, sample)
    converted = model if options.tables is None else quantize(model, options.tables)
    rows = to_batch(encoder.encode(golden), info)
    scores, before = (_probabilities(one, rows, size) for one in (converted, model))
    seen = scores[:0] if sample is None else _probabilities(converted, to_batch(sample, info), size)
    edges, counts = _histogram(seen)
    return Export(
        config=config,
        features=features_of(info, config),
        model=converted,
        encoder=run.encoder,
        golden=golden,
        scores=scores,
        deviation=float(np.abs(scores - before).max()),
        metrics={key: value for key, value in metrics.items() if key not in ("kind", "best")},
        edges=edges,
        counts=counts,
        candidate_columns=_candidate_columns(whole, sample, options.candidate_id),
    )


def _check_column(encoder: Encoder, name: str | None) -> None:
    columns = encoder.schema.feature_columns()
    if name is not None and name not in columns:
        near = did_you_mean(name, columns)
        raise DataError(f"candidate id: no raw column {name!r}{near} (features read {', '.join(columns)})")


def _sample(config: TrainConfig, encoder: Encoder) -> pa.RecordBatch | None:
    """Rows of training columns from all over the validation split, or else the training split.

    None where the data set is no longer there.
    """
    try:
        dataset = Dataset.open(config.data.path)
        split = config.data.valid or config.data.train
        if not dataset.split(split).rows:
            split = config.data.train
        files = [pq.ParquetFile(path) for path in dataset.files(split)]
    except (DataError, OSError):
        return None
    groups = [(file, number) for file in files for number in range(file.num_row_groups)]
    chosen = np.unique(np.linspace(0, len(groups) - 1, _GROUPS).astype(int))
    names = [*(dense.spec.name for dense in encoder.dense), *(sparse.spec.name for sparse in encoder.sparse)]
    parts = [groups[i][0].read_row_group(groups[i][1], columns=names).slice(0, _ROWS) for i in chosen]
    return pa.concat_tables(parts).combine_chunks().to_batches()[0]


def _golden(encoder: Encoder, sample: pa.RecordBatch | None) -> pa.RecordBatch:
    """Raw rows: half of them like those of the sample, then some with gaps, then some with unknown ids."""
    if sample is None:
        sample = drawn_rows(encoder, GOLDEN_ROWS)
    places = np.linspace(0, sample.num_rows - 1, GOLDEN_ROWS).astype(int)
    rows = sample.take(pa.array(places))
    plain, gaps = raw_rows(encoder, rows.slice(0, 3 * GOLDEN_ROWS // 4)), GOLDEN_ROWS // 4
    parts = [
        plain.slice(0, 2 * gaps),
        with_gaps(encoder, plain.slice(2 * gaps)),
        raw_rows(encoder, with_unknown(encoder, rows.slice(3 * gaps))),
    ]
    golden = encodable(encoder, pa.concat_batches(parts))
    if not golden.num_rows:
        raise DataError("no raw rows could be made up that the encoder takes: give some with --golden")
    return golden


def _read_golden(encoder: Encoder, path: Path) -> pa.RecordBatch:
    """The first rows of a raw file."""
    schema = encoder.schema
    columns = schema.feature_columns()
    for raw in read_raw([path], columns, schema.format):
        with raw.located():
            encoder.encode(raw.batch)
        return raw.batch.slice(0, GOLDEN_ROWS)
    raise DataError(f"{path}: no rows")


def _probabilities(model: Module, rows: Batch, slice_size: int) -> Floats:
    with evaluating(model):
        return sigmoid(score(model, rows, slice_size)).astype(np.float32)


def _histogram(scores: Floats) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """(edges from 0 to 1, counts): quantiles part the scores."""
    inner = (
        np.sort(scores)[np.linspace(0, len(scores), BINS + 1)[1:-1].astype(int)] if len(scores) else scores
    )
    edges = np.unique([0.0, *inner, 1.0])
    counts, _ = np.histogram(scores, edges)
    return tuple(edges.tolist()), tuple(counts.tolist())


def _candidate_columns(
    encoder: Encoder, sample: pa.RecordBatch | None, candidate_id: str | None
) -> tuple[str, ...]:
    """Raw columns that differ between candidates, as far as the sample shows.

    Those that follow from the candidate's id; without one, those that do not follow from the group.
    """
    if sample is None:
        return () if candidate_id is None else (candidate_id,)
    codes: dict[str, list[Any]] = {}
    specs: tuple[Dense | Sparse, ...] = (*encoder.schema.dense, *encoder.schema.sparse)
    for spec in specs:
        codes.setdefault(spec.column, []).append(_codes(sample.column(spec.name)))
    key = candidate_id or encoder.schema.group
    if key not in codes:
        return ()
    follow = {name for name, values in codes.items() if all(_follows(v, codes[key][0]) for v in values)}
    own = follow | {key} if candidate_id else codes.keys() - follow - {key}
    return tuple(name for name in codes if name in own)


def _codes(column: Any) -> npt.NDArray[Any]:
    """Numbers that are equal where the values are."""
    if not pa.types.is_list(column.type):
        numbers: npt.NDArray[Any] = column.to_numpy()
        return numbers
    seen: dict[tuple[int, ...], int] = {}
    return np.array([seen.setdefault(tuple(ids), len(seen)) for ids in column.to_pylist()])


def _follows(values: npt.NDArray[Any], keys: npt.NDArray[Any]) -> bool:
    """Whether rows of one key, 0 aside, have one value; no constant follows from anything."""
    order = np.argsort(keys, kind="stable")
    order = order[keys[order] != 0]
    same = np.diff(keys[order]) == 0
    equal = np.diff(values[order]) == 0
    return bool(same.any() and equal[same].all() and not equal.all())
