"""Models take batches of every kind: shared bags, learned weights, unseen ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tesserec.embeddings import Clamp, Drop, KeyedJaggedTensor, PositionWeighted, unseen_ids
from tesserec.models import Features, ModelError, build_model, model_names

SIZES = {"user": 20, "item": 50, "history": 50}
DENSE = np.random.default_rng(0).standard_normal((6, 2)).astype(np.float32)


def candidates() -> KeyedJaggedTensor:
    """Two users and their histories, three items for each."""
    bags: Any = {"user": [[3], [7]], "history": [[1, 2, 3], [4]], "item": [[i] for i in range(6)]}
    return KeyedJaggedTensor.from_dict(bags, {key: [0, 0, 0, 1, 1, 1] for key in ("user", "history")})


@pytest.mark.parametrize("name", model_names())
def test_shared_bags_equal_repeated_ones(name: str) -> None:
    model = build_model(name, Features(2, SIZES), seed=0).eval()
    sparse = candidates()
    got, want = model(DENSE, sparse), model(DENSE, sparse.expand())
    np.testing.assert_allclose(got.data, want.data, rtol=1e-6)


def test_weights_of_positions_are_learned_through_a_model() -> None:
    positions, model = PositionWeighted({"history": 3}), build_model("deepfm", Features(2, SIZES), seed=0)
    model(DENSE, positions(candidates())).sum().backward()
    grad = positions.weights["history"].grad
    assert grad.shape == (3,) and np.all(grad != 0)


def test_policies_reach_the_tables() -> None:
    features = Features(2, SIZES, unseen={"item": Clamp(7), "history": Drop()})
    assert [table.unseen for table in features.tables(4)] == ["error", Clamp(7), Drop()]
    model = build_model("wide_deep", features, seed=0)
    model(DENSE[:1], KeyedJaggedTensor.from_dict({"user": [[1]], "item": [[50]], "history": [[50, 1, -1]]}))
    assert unseen_ids(model) == {"history": 2, "item": 1}
    with pytest.raises(ModelError, match="unseen names 'items', which is no sparse feature"):
        Features(2, SIZES, unseen={"items": Drop()})
