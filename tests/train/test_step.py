"""A step is the gradient of the whole batch, whatever the slices, and refuses what would spoil the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tesserec.autograd.losses import bce_with_logits
from tesserec.dataio.batch import Batch
from tesserec.dataio.dataset import Dataset
from tesserec.dataio.stream import read_batches
from tesserec.embeddings.rowgrad import RowGrad
from tesserec.train.learner import Learner
from tesserec.train.step import TrainingError, loss_and_gradients, slices


@pytest.fixture
def learner(data: Path, configure: Any) -> Any:
    """`learner(**changes)`: a Learner without dropout."""

    def make(**changes: Any) -> Learner:
        return Learner(
            configure(**{"model__dropout": 0.0, **changes}), Dataset.open(data).info, total_steps=30
        )

    return make


@pytest.fixture
def batch(data: Path) -> Batch:
    return next(iter(read_batches(Dataset.open(data), "train", 64)))


def dense(grad: Any) -> Any:
    return grad.to_dense() if isinstance(grad, RowGrad) else grad


@pytest.mark.parametrize("size", [1, 16, 30, 64, 999])
@pytest.mark.parametrize("weighted", [True, False])
def test_slices_sum_to_the_whole_batch(learner: Any, batch: Batch, size: int, weighted: bool) -> None:
    """Also where the last slice is shorter and weights differ between slices."""
    mine = learner(train__slice_size=size)
    batch = batch if weighted else replace(batch, weights=None)
    loss, grads = loss_and_gradients(mine.model, batch, 0, mine.options)
    whole = bce_with_logits(mine.model(batch.dense, batch.sparse), batch.labels[:, 0], batch.weights)
    whole.backward()
    assert loss == pytest.approx(whole.item(), rel=1e-5)
    for parameter in mine.model.parameters():
        np.testing.assert_allclose(dense(grads[parameter]), dense(parameter.grad), rtol=1e-4, atol=1e-6)


def test_gradients_are_summed_without_touching_parameters(learner: Any, batch: Batch) -> None:
    mine = learner()
    before = {name: array.copy() for name, array in mine.model.state_dict().items()}
    loss_and_gradients(mine.model, batch, 0, mine.options)
    for parameter in mine.model.parameters():
        assert parameter.grad is None
    for name, array in mine.model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_model_that_couples_samples_sees_the_whole_batch(learner: Any, batch: Batch) -> None:
    model = {"name": "dnn", "embedding_dim": 4, "hidden": [8], "batch_norm": True}
    few, many = (learner(model=model, train__slice_size=size) for size in (4, 64))
    results = [loss_and_gradients(mine.model, batch, 0, mine.options)[0] for mine in (few, many)]
    assert results[0] == results[1]


def test_dropout_is_a_function_of_seed_and_step(learner: Any, batch: Batch) -> None:
    mine = learner()
    mine.model.top.dropout.p = 0.5
    losses = [loss_and_gradients(mine.model, batch, step, mine.options)[0] for step in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_not_finite_loss_stops_before_anything_changes(learner: Any, batch: Batch) -> None:
    mine = learner()
    batch.dense[5, 0] = np.inf
    before = {name: array.copy() for name, array in mine.model.state_dict().items()}
    with (
        np.errstate(all="ignore"),
        pytest.raises(TrainingError, match=r"step 7: the loss is not finite .* nothing was updated\. Lower"),
    ):
        mine.step(batch, 7)
    for name, array in mine.model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_weights_that_sum_to_nothing_are_refused(learner: Any, batch: Batch) -> None:
    mine = learner()
    with pytest.raises(TrainingError, match="step 3: the sample weights of the batch sum to 0"):
        mine.step(replace(batch, weights=np.zeros(64, np.float32)), 3)


@pytest.mark.parametrize("clip", ["train__clip_norm", "train__clip_value"])
def test_clipping_shrinks_the_step(learner: Any, batch: Batch, clip: str) -> None:
    sgd = {"dense": {"name": "sgd", "lr": 1.0}, "rows": {"name": "sgd", "lr": 1.0}}
    free, clipped = (
        learner(optimizer=sgd, schedule={"name": "constant"}, **{clip: value}) for value in (None, 1e-6)
    )
    for mine in (free, clipped):
        before = {name: array.copy() for name, array in mine.model.state_dict().items()}
        mine.step(batch, 0)
        moved = max(np.abs(a - before[n]).max() for n, a in mine.model.state_dict().items())
        assert moved <= 1.1e-6 if mine is clipped else moved > 1e-3


def test_slices_cover_the_batch_in_order(batch: Batch) -> None:
    parts = slices(batch, 30)
    assert [part.batch_size for part in parts] == [30, 30, 4]
    np.testing.assert_array_equal(np.concatenate([part.dense for part in parts]), batch.dense)
