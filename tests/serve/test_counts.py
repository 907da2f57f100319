"""What is counted says no more than it can."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tesserec.serve.counts import LEAST, drift


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=20))
def test_drift_is_that_of_the_formula_and_zero_for_equal_shares(counts: list[int]) -> None:
    seen = np.array(counts) + LEAST
    assert drift(seen, seen) == pytest.approx(0.0)
    other = seen[::-1].copy()
    p, q = ((c + 0.5) / (c + 0.5).sum() for c in (seen, other))
    wanted = sum((a - b) * np.log(a / b) for a, b in zip(p, q, strict=True))
    assert drift(seen, other) == pytest.approx(wanted)


@pytest.mark.parametrize("few", [0, 3, LEAST - 1])
def test_drift_of_few_scores_is_not_told(few: int) -> None:
    enough, little = np.array([LEAST, LEAST]), np.array([few, 0])
    assert drift(little, enough) is None and drift(enough, little) is None
    assert drift(enough, np.array([LEAST, 0])) is not None
