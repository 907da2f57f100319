"""Training uses the compiled model, and learns what it would learn without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tesserec.autograd import CompiledModel
from tesserec.dataio.dataset import Dataset
from tesserec.dataio.stream import read_batches
from tesserec.train.learner import Learner

MODELS: list[dict[str, Any]] = [
    {"name": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8], "dropout": 0.3},
    {"name": "deepfm", "embedding_dim": 4, "hidden": [8], "batch_norm": True},
]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m["name"])
def test_compiled_training_learns_the_same(data: Path, configure: Any, model: dict[str, Any]) -> None:
    dataset = Dataset.open(data)
    batches = list(read_batches(dataset, "train", 50, drop_last=False))[:6]  # in slices of 16 and less
    sgd = {
        "dense": {"name": "sgd", "lr": 0.1},
        "rows": {"name": "sgd", "lr": 0.1},
    }  # no roots of rounding errors
    learners = [
        Learner(
            configure(model=model, optimizer=sgd, train__compile=flag, train__slice_size=16), dataset.info, 10
        )
        for flag in (True, False)
    ]
    losses = [[mine.step(batch, i) for i, batch in enumerate(batches)] for mine in learners]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    compiled, eager = learners
    assert isinstance(compiled.fast, CompiledModel) and compiled.fast.why_eager is None
    assert eager.fast is eager.model
    for name, array in eager.model.state_dict().items():
        np.testing.assert_allclose(compiled.model.state_dict()[name], array, rtol=1e-3, atol=1e-5)
