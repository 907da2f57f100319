"""Scores and metrics of a model over a stream of batches, on the same slices and workers as training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.module import Module
from tesserec.autograd.tensor import no_grad
from tesserec.autograd.workers import one_thread_blas, parallel_map
from tesserec.dataio.batch import Batch
from tesserec.dataio.dataset import DataError, Dataset, DatasetInfo
from tesserec.dataio.stream import read_batches
from tesserec.embeddings.collection import unseen_ids
from tesserec.train.config import TrainConfig, chosen
from tesserec.train.learner import label_index, load_model, tolerant_features
from tesserec.train.metrics import RankingMetrics
from tesserec.train.run import RunFolder, without_nan
from tesserec.train.step import slices

Floats = npt.NDArray[Any]
ROWS_AT_ONCE = 8192  # rows of a batch without gradients; its slices are those of training


@contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """While inside, `model` is in evaluation mode: no dropout, running statistics in batch norm."""
    was_training = model.training
    model.eval()
    try:
        with one_thread_blas():
            yield
    finally:
        if was_training:
            model.train()


def score(model: Module, batch: Batch, slice_size: int) -> npt.NDArray[np.float32]:
    """(B,) logits of a batch, computed slice by slice on the worker threads. For use inside `evaluating`."""

    def work(part: Batch) -> npt.NDArray[np.float32]:
        with no_grad():
            logits: npt.NDArray[np.float32] = model(part.dense, part.sparse).numpy()
            return logits

    return np.concatenate(parallel_map(work, slices(batch, slice_size)))


def evaluate_run(
    path: Path,
    *,
    data: Path | None = None,
    split: str = "test",
    checkpoint: str = "best",
    compare: Sequence[str] = (),
    convert: Callable[[Module], Module] = lambda model: model,
) -> dict[str, dict[str, Any]]:
    """{"model": metrics of a run's model on a split, column: metrics of that column, …}, NaN as None.

    data: another prepared data set than the run's; its columns must mean the same. convert: what the model
    is made into before it is measured.
    """
    run = RunFolder.open(path)
    config, info = run.config(), run.dataset()
    dataset = Dataset.open(data or config.data.path)
    _check_same_features(dataset.info, info, dataset.path)
    for name in compare:
        chosen("--compare-column", name, dict.fromkeys(dataset.info.keep))
    model = convert(load_model(run, checkpoint))
    found = evaluate_split(model, dataset, split, config, compare=compare)
    return {name: without_nan(metrics) for name, metrics in found.items()}


def _check_same_features(got: DatasetInfo, wanted: DatasetInfo, path: Path) -> None:
    if (got.dense, got.sparse) != (wanted.dense, wanted.sparse):
        raise DataError(
            f"{path}: its dense and sparse columns are not those that the model was trained on; "
            "prepare it with the same schema and vocabularies"
        )


def evaluate_split(
    model: Module,
    dataset: Dataset,
    split: str,
    config: TrainConfig,
    *,
    compare: Sequence[str] = (),
    each: Callable[[int], None] = lambda rows: None,
) -> dict[str, dict[str, float]]:
    """{"model": metrics of `model` on the split, column: metrics of that column of scores, …}.

    compare: kept columns of probabilities. each: called after every batch with the number of rows seen. Where
    ids were outside their tables, "unseen_ids" of the model is their number; its own counts are reset.
    """
    label = label_index(dataset.info, config.data.label)
    grouped, exact = dataset.info.group is not None, config.train.auc == "exact"
    found = {name: RankingMetrics(grouped=grouped, exact_auc=exact) for name in ("model", *compare)}
    batches: Any = read_batches(
        dataset,
        split,
        ROWS_AT_ONCE,
        shuffle=False,
        drop_last=False,
        keep=bool(compare),
        unseen=tolerant_features(dataset.info, config),
    )
    with closing(batches), evaluating(model):
        for batch in batches:
            scores: dict[str, Floats] = {"model": score(model, batch, config.train.slice_size)}
            scores |= {name: _logits(batch.kept.column(name), name) for name in compare}
            for name, logits in scores.items():
                found[name].update(logits, batch.labels[:, label], batch.weights, batch.groups)
            each(found["model"].likelihood.rows)
    computed = {name: metrics.compute() for name, metrics in found.items()}
    unseen = sum(unseen_ids(model, reset=True).values())
    if unseen:
        computed["model"]["unseen_ids"] = unseen
    return computed


def _logits(column: Any, name: str) -> Floats:
    """A column of probabilities as logits; 0 and 1 become the nearest number inside."""
    p: Floats = column.to_numpy().astype(np.float64)
    bad = ~((p >= 0) & (p <= 1))
    if bad.any():
        raise DataError(f"column {name!r}: wanted probabilities in [0, 1], got {p[bad.argmax()]}")
    p = p.clip(1e-15, 1 - 1e-15)
    return np.log(p) - np.log1p(-p)
