from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.dataio import row_counts
from tesserec.dataio.row_counts import BOUNDS, ArrayCounter, RowCounter, RowSketch, TableCounter, is_sampled

SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True, scope="module")
def _small_sketches() -> object:
    """Sketches of few rows, so that little data overflows them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_counts, "HOT", 16)
        patch.setattr(row_counts, "SAMPLED", 64)
        yield


def draw(seed: int, rows: int, count: int) -> np.ndarray:
    """(count,) ids, some rows far more frequent than others."""
    rng = np.random.default_rng(seed)
    ranks = np.minimum((rows + 1) ** rng.random(count) - 1, rows - 1).astype(np.int64)
    return rng.permutation(rows)[ranks]


def counted(counter: RowCounter, ids: np.ndarray) -> RowSketch:
    for part in np.array_split(ids, 7):
        assert counter.add(part) == -1
    return counter.sketch()


def check(sketch: RowSketch, ids: np.ndarray) -> None:
    """All that the docstring of RowSketch promises."""
    truth = Counter(ids.tolist())
    spans, _ = np.histogram(ids, np.append(BOUNDS[: len(sketch.spans)], BOUNDS[len(sketch.spans)] - 0.5))
    assert sketch.spans == tuple(spans) and sum(sketch.spans) == len(ids)
    for row, count in zip(sketch.hot, sketch.hot_counts, strict=True):
        assert count <= truth[row] <= count + sketch.low
    assert all(truth[row] <= sketch.rest for row in truth.keys() - set(sketch.hot))
    rows = np.array(sorted(truth))
    assert sketch.sample == tuple(rows[is_sampled(rows, sketch.level)])
    assert sketch.sample_counts == tuple(truth[row] for row in sketch.sample)
    if sketch.exact:
        assert sketch.distinct == len(truth)


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(1, 3000), st.integers(1, 3000))
def test_an_array_is_exact(seed: int, rows: int, count: int) -> None:
    ids = draw(seed, rows, count)
    sketch = counted(ArrayCounter(rows), ids)
    check(sketch, ids)
    assert sketch.low == 0 and sketch.distinct == len(set(ids.tolist()))


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(1, 20_000), st.integers(1, 9000))
def test_a_table_keeps_its_promises_when_it_overflows(seed: int, rows: int, count: int) -> None:
    ids = draw(seed, rows, count)
    check(counted(TableCounter(rows, limit=512), ids), ids)


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(1, 20_000), st.integers(1, 9000), st.floats(0, 1), st.booleans())
def test_sketches_of_parts_make_that_of_the_whole(
    seed: int, rows: int, count: int, part: float, small: bool
) -> None:
    ids = draw(seed, rows, count)
    cut = int(part * count)
    make = (lambda: TableCounter(rows, limit=512)) if small else (lambda: ArrayCounter(rows))
    one, other, whole = (counted(make(), some) for some in (ids[:cut], ids[cut:], ids))
    merged = one.merged(other)
    check(merged, ids)
    assert (merged.spans, merged.level, merged.sample) == (whole.spans, whole.level, whole.sample)
    assert merged.sample_counts == whole.sample_counts
    assert merged == other.merged(one)
    if not merged.level:
        assert merged == whole


def test_an_id_outside_the_table_is_pointed_at() -> None:
    for counter in (ArrayCounter(10), TableCounter(10)):
        assert counter.add(np.array([3, 9, 10])) == 2
        assert counter.add(np.array([-1, 3])) == 0


def test_distinct_rows_are_estimated_without_bias() -> None:
    rng = np.random.default_rng(0)
    draws = (first + rng.integers(0, 50_000, 30_000) for first in range(0, 3_000_000, 50_000))
    found = [counted(TableCounter(3_000_000, limit=2048), ids).distinct for ids in draws]
    assert np.mean(found) == pytest.approx(50_000 * (1 - np.exp(-0.6)), rel=0.02)


def test_rows_that_stay_are_scattered_over_the_table() -> None:
    counter, rng = TableCounter(10_000_000, limit=20_000), np.random.default_rng(3)
    while counter._level == 0:
        counter.add(rng.integers(0, 10_000_000, 5_000))
    free = np.flatnonzero(counter._table._values == 0)
    assert np.diff(free).max() < 200  # the longest run of used slots; of neighbours it would be thousands
