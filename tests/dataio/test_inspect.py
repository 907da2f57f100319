from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.dataio.columns import hash_integers
from tesserec.dataio.config import load_yaml, parse_config
from tesserec.dataio.dataset import DataError, DatasetInfo, SparseFeature, Split, write_dataset_info
from tesserec.dataio.inspect import ColumnReport, inspect_data
from tesserec.dataio.inspect_plot import plot_inspection
from tesserec.dataio.schema import Schema
from tesserec.dataio.statistics import QUANTILES, IdCounter, NumberSketch, zipf_exponent

TEXT = "click,price,site,tags\n1,2.5,a,x|y\n0,,b,\n0,7.5,a,x\n1,0,,y|y|z\n"
SCHEMA = """
name: t
labels: click
dense: {column: price, fill: 0}
sparse: [site, {column: tags, delimiter: "|"}]
"""


def reports(path: Path, schema: Schema | None = None) -> dict[str, ColumnReport]:
    return {column.name: column for column in inspect_data(path, schema).columns}


def test_a_text_file_by_its_schema(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(TEXT)
    got = reports(path, parse_config(load_yaml(SCHEMA), Schema))
    assert {name: column.role for name, column in got.items()} == {
        "click": "label",
        "price": "dense",
        "site": "sparse",
        "tags": "sparse",
    }
    assert got["click"].numbers is not None and got["click"].numbers.mean == 0.5
    assert got["price"].missing == 0.25 and got["price"].numbers is not None
    assert (got["price"].numbers.minimum, got["price"].numbers.maximum) == (0, 7.5)
    assert got["site"].missing == 0.25 and got["site"].ids is not None
    assert got["site"].ids.distinct == 2 and got["site"].ids.top[0] == ("a", 2 / 3)
    assert got["tags"].ids is not None and got["tags"].lengths is not None
    assert got["tags"].ids.top[0] == ("y", 0.5)
    assert (got["tags"].lengths.mean, got["tags"].lengths.maximum) == (1.5, 3)


def test_without_a_schema_columns_are_what_they_look_like(tmp_path: Path) -> None:
    table = pa.table({"n": [1, 2, 2], "x": [0.5, None, 1.5], "s": ["a", "b", "a"], "l": [[1, 2], [], None]})
    pq.write_table(table, tmp_path / "t.parquet")
    pa.feather.write_feather(table, tmp_path / "t.arrow")
    for name in ("t.parquet", "t.arrow"):
        got = reports(tmp_path / name)
        assert got["n"].ids is not None and got["n"].numbers is not None
        assert got["n"].ids.top[0] == ("2", 2 / 3)
        assert got["x"].ids is None and got["x"].missing == pytest.approx(1 / 3)
        assert got["s"].numbers is None and got["s"].ids is not None
        assert got["l"].lengths is not None and got["l"].missing == pytest.approx(1 / 3)


def test_a_prepared_folder_by_its_description(tmp_path: Path) -> None:
    rows = 300
    for split in ("train", "test"):
        columns = {
            "y": np.arange(rows) % 4 == 0,
            "x": np.arange(rows, dtype=np.float32),
            "u": np.arange(rows) % 30,
            "p": np.full(rows, 0.25),
        }
        pq.write_table(pa.table(columns).cast(_TYPES), tmp_path / f"{split}.parquet")
    splits = {split: Split((f"{split}.parquet",), rows) for split in ("train", "test")}
    info = DatasetInfo(
        "t", ("y",), dense=("x",), sparse=(SparseFeature("u", 30),), keep=("p",), splits=splits
    )
    write_dataset_info(tmp_path, info)
    inspection = inspect_data(tmp_path)
    assert inspection.rows == 600 and inspection.splits == {"train": 300, "test": 300}
    got = {column.name: column for column in inspection.columns}
    assert got["y"].numbers is not None and got["y"].numbers.mean == 0.25
    assert got["u"].ids is not None and got["u"].numbers is None and got["u"].ids.distinct == 30
    assert got["p"].role == "kept"


_TYPES = pa.schema({"y": pa.float32(), "x": pa.float32(), "u": pa.int64(), "p": pa.float64()})


def test_a_folder_that_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="tesserec data prepare"):
        inspect_data(tmp_path)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(-5, 20), max_size=30), max_size=5))
def test_id_counts_are_exact_below_the_limit(batches: list[list[int]]) -> None:
    counter, want = IdCounter(), Counter(i for batch in batches for i in batch)
    for batch in batches:
        counter.add(np.array(batch, np.int64))
    stats = counter.stats({})
    assert stats.exact and stats.distinct == len(want)
    assert list(stats.counts) == sorted(want.values(), reverse=True)


def test_past_the_limit_distinct_is_estimated_and_the_head_stays_exact() -> None:
    rng = np.random.default_rng(0)
    tail = hash_integers(np.arange(200_000))
    counter, want = IdCounter(limit=5000), Counter[int]()
    for part in np.array_split(tail, 50):
        head = np.minimum(rng.geometric(0.05, 4000), 100)
        counter.add(np.concatenate([head, part]))
        want.update(head.tolist())
    stats = counter.stats({})
    assert not stats.exact
    assert stats.distinct == pytest.approx(200_100, rel=0.08)
    assert list(stats.counts[:50]) == [count for _, count in want.most_common(50)]
    assert stats.top[0] == (str(want.most_common(1)[0][0]), want.most_common(1)[0][1] / 400_000)


def test_quantiles_of_a_sample_are_near_and_say_so() -> None:
    values = np.random.default_rng(1).normal(size=200_000)
    exact, sampled = NumberSketch(), NumberSketch(limit=20_000)
    for part in np.array_split(values, 30):
        exact.add(part)
        sampled.add(part)
    one, other = exact.stats(), sampled.stats()
    assert one is not None and other is not None
    assert one.exact and not other.exact
    np.testing.assert_allclose(one.quantiles, np.quantile(values, QUANTILES))
    np.testing.assert_allclose(other.quantiles, one.quantiles, atol=0.1)
    assert (other.minimum, other.maximum) == (values.min(), values.max())
    assert other.mean == pytest.approx(values.mean()) and other.deviation == pytest.approx(values.std())
    assert NumberSketch().stats() is None


@pytest.mark.parametrize("exponent", [0.0, 0.7, 1.3])
def test_zipf_exponent_of_a_power_law(exponent: float) -> None:
    assert zipf_exponent(1e6 * np.arange(1, 200) ** -exponent) == pytest.approx(exponent, abs=1e-6)
    assert zipf_exponent(np.array([5, 3, 1])) is None


@pytest.mark.parametrize("text", [TEXT, "click,site\n1,a\n0,b\n", "x\n1.5\n2.5\n"])
def test_json_and_picture(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    inspection = inspect_data(path)
    assert json.loads(json.dumps(inspection.to_dict()))["rows"] == inspection.rows
    for suffix in (".png", ".svg"):
        plot_inspection(inspection, tmp_path / f"t{suffix}")
        assert (tmp_path / f"t{suffix}").stat().st_size > 5000
