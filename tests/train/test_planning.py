"""A training run as a workload: the engine's own names, shapes and state, and what its data is like."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tesserec.dataio.collect import collect_stats
from tesserec.dataio.dataset import DataError, Dataset
from tesserec.sharding.model import table_shapes
from tesserec.train.config import TrainConfig
from tesserec.train.learner import Learner, new_model
from tesserec.train.planning import buffer_rows, read_frequencies, workload_of
from tests.train.conftest import BATCH, GENRES, ITEMS, ROWS, USERS

Configure = Callable[..., TrainConfig]


@pytest.fixture
def dataset(data: Path) -> Dataset:
    return Dataset.open(data)


def test_tables_are_the_models(configure: Configure, dataset: Dataset) -> None:
    config = configure()
    workload = workload_of(config, dataset, {})
    assert workload.shapes() == table_shapes(new_model(config, dataset.info))
    assert [table.rows for table in workload.tables] == [USERS, ITEMS, GENRES]
    assert workload.batch_size == BATCH and workload.slice_size == 16
    assert (workload.optimizer.element_slots, workload.optimizer.row_slots) == (0, 1)


def test_the_dense_part_is_counted(configure: Configure, dataset: Dataset) -> None:
    config = configure(optimizer__dense={"name": "adam", "lr": 0.1})
    dense = workload_of(config, dataset, {}).dense
    learner = Learner(config, dataset.info, total_steps=1)
    tables = sum(rows * 4 for rows in (USERS, ITEMS, GENRES))
    assert dense.parameters == sum(p.data.size for p in learner.model.parameters()) - tables
    products = 2 * (1 * 8 + 8 * 4 + (6 + 4) * 16 + 16 * 1)  # bottom, top; of the pairs 2·6·4 more
    assert products + 2 * 6 * 4 <= dense.flops < 1.5 * products + 200
    assert (dense.columns, dense.state_numbers, dense.seconds) == (1, 2, None)
    assert dense.activation_bytes > 4 * (8 + 4 + 10 + 16 + 1)


def test_the_dense_part_is_measured_when_asked(
    configure: Configure, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tesserec.train.planning.MEASURED_SECONDS", 0.0)
    seconds = workload_of(configure(), dataset, {}, measure=True).dense.seconds
    assert seconds is not None and 1e-9 < seconds < 1
    assert seconds == float(f"{seconds:.1e}")  # two digits: noise would change plans


def test_a_sample_says_how_features_are_read(configure: Configure, dataset: Dataset) -> None:
    reads, words = read_frequencies(dataset, configure(), "")
    assert reads["user"].lengths.mean == 1 and 1.2 < reads["genres"].lengths.mean < 1.8
    assert reads["genres"].lengths.empty == pytest.approx(0.25, abs=0.06)
    assert words.startswith("all rows of") and "'train'" in words
    table = workload_of(configure(), dataset, reads).by_name["inputs.sparse.genres"]
    assert table.frequencies.rows == GENRES and table.mean_length == reads["genres"].lengths.mean


def test_statistics_of_a_file_are_those_of_the_sample(
    configure: Configure, dataset: Dataset, tmp_path: Path
) -> None:
    collect_stats(dataset).write(tmp_path / "stats.json")
    from_file, words = read_frequencies(dataset, configure(), str(tmp_path / "stats.json"))
    sample, _ = read_frequencies(dataset, configure(), "")
    assert words.endswith("stats.json")
    for name, reads in sample.items():
        np.testing.assert_array_equal(from_file[name].frequencies.shares, reads.frequencies.shares)


def test_statistics_of_other_data_are_refused(configure: Configure, dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    path.write_text('{"format": "tesserec data statistics", "version": 1, "features": {}}')
    with pytest.raises(DataError, match=r"has no feature 'user'.*tesserec data stats"):
        read_frequencies(dataset, configure(), str(path))
    with pytest.raises(DataError, match=r"none\.json: No such file.*tesserec data stats"):
        read_frequencies(dataset, configure(), "none.json")


def test_buffers_are_whole_row_groups(configure: Configure, dataset: Dataset) -> None:
    assert buffer_rows(configure(), dataset) == ROWS["train"]  # smaller than a buffer
    assert buffer_rows(configure(data__shuffle=False), dataset) == 100
