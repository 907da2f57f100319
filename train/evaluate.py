"""Scores and metrics of a model over a stream of batches, on the same slices and workers as training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
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
from tesserec.sharding.comm import Comm, LocalComm
from tesserec.sharding.model import ShardedModel
from tesserec.sharding.watchdog import patience
from tesserec.train.config import TrainConfig, chosen
from tesserec.train.learner import label_index, load_model, looked_up, tolerant_features
from tesserec.train.metrics import RankingMetrics
from tesserec.train.ranks import from_first_rank, to_first_rank
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
    """(B,) logits of a batch, computed slice by slice on the worker threads. For use inside `evaluating`.

    Collective where the model is sharded; each rank has a batch of its own, which may be empty.
    """

    def work(part: Batch) -> npt.NDArray[np.float32]:
        with no_grad():
            logits: npt.NDArray[np.float32] = model(part.dense, part.sparse).numpy()
            return logits

    if isinstance(model, ShardedModel):
        with no_grad():
            batch = looked_up(batch, model, model.input_dist(batch.sparse))
    if not batch.batch_size:
        return np.empty(0, np.float32)
    return np.concatenate(parallel_map(work, slices(batch, slice_size)))


def evaluate_run(
    path: Path,
    *,
    data: Path | None = None,
    split: str = "test",
    checkpoint: str = "best",
    compare: Sequence[str] = (),
    convert: Callable[[Module], Module] = lambda model: model,
    comm: Comm | None = None,
) -> dict[str, dict[str, Any]]:
    """{"model": metrics of a run's model on a split, column: metrics of that column, …}, NaN as None.

    data: another prepared data set than the run's; its columns must mean the same. convert: what the model
    is made into before it is measured. comm: the ranks that do this together, and share the tables.
    """
    run = RunFolder.open(path)
    config, info = run.config(), run.dataset()
    dataset = Dataset.open(data or config.data.path)
    _check_same_features(dataset.info, info, dataset.path)
    for name in compare:
        chosen("--compare-column", name, dict.fromkeys(dataset.info.keep))
    model = convert(load_model(run, checkpoint, comm))
    found = evaluate_split(model, dataset, split, config, compare=compare, comm=comm)
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
    comm: Comm | None = None,
) -> dict[str, dict[str, float]]:
    """{"model": metrics of `model` on the split, column: metrics of that column of scores, …}.

    compare: kept columns of probabilities. each: called after every batch with the number of rows seen. Where
    ids were outside their tables, "unseen_ids" of the model is their number; its own counts are reset.
    comm: ranks that share `model`. Each scores a contiguous part of whole slices, and all get the metrics of
    all rows, which do not depend on the number of ranks.
    """
    comm = comm or LocalComm()
    label, slice_size = label_index(dataset.info, config.data.label), config.train.slice_size
    options: Any = {"grouped": dataset.info.group is not None, "exact_auc": config.train.auc == "exact"}
    found = {name: RankingMetrics(**options, every=slice_size) for name in ("model", *compare)}
    batches: Any = read_batches(
        dataset,
        split,
        max(1, ROWS_AT_ONCE // slice_size) * slice_size * comm.size,
        shuffle=False,
        drop_last=False,
        rank=comm.rank,
        size=comm.size,
        streams=comm.size,
        grain=slice_size,
        keep=bool(compare),
        unseen=tolerant_features(dataset.info, config),
    )
    with closing(batches), evaluating(model), ExitStack() as beginning:
        beginning.enter_context(patience("the first batch of an evaluation"))  # it may compile kernels
        for batch in batches:
            scores: dict[str, Floats] = {"model": score(model, batch, slice_size)}
            beginning.close()
            scores |= {name: _logits(batch.kept.column(name), name) for name in compare}
            for name, logits in scores.items():
                found[name].update(logits, batch.labels[:, label], batch.weights, batch.groups)
            each(found["model"].likelihood.rows)
    unseen = sum(unseen_ids(model, reset=True).values())
    return _merged(comm, found, unseen)


def _merged(comm: Comm, found: dict[str, RankingMetrics], unseen: int) -> dict[str, dict[str, float]]:
    """The metrics of all ranks' rows, which rank 0 sees in file order, on every rank."""
    computed: dict[str, dict[str, float]] = {}
    for held, more in to_first_rank(comm, (found, unseen)):
        if held is not found:
            unseen += more
            for name, metrics in held.items():
                found[name].merge(metrics)
    if comm.rank == 0:
        with patience("computing metrics"):
            computed = {name: metrics.compute() for name, metrics in found.items()}
        if unseen:
            computed["model"]["unseen_ids"] = unseen
    return from_first_rank(comm, computed)


def _logits(column: Any, name: str) -> Floats:
    """A column of probabilities as logits; 0 and 1 become the nearest number inside."""
    p: Floats = column.to_numpy().astype(np.float64)
    bad = ~((p >= 0) & (p <= 1))
    if bad.any():
        raise DataError(f"column {name!r}: wanted probabilities in [0, 1], got {p[bad.argmax()]}")
    p = p.clip(1e-15, 1 - 1e-15)
    return np.log(p) - np.log1p(-p)
