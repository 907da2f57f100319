from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from tesserec.dataio import planted, synth
from tesserec.dataio.dataset import DataError
from tesserec.dataio.planted import IdColumn, PlantedModel, SynthOptions
from tesserec.dataio.schema import read_schema
from tesserec.dataio.synth import ClickCurve, write_synth


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (planted, synth):
        monkeypatch.setattr(module, "BLOCK_ROWS", 2048)


def read(path: Path) -> pa.Table:
    if path.suffix == ".parquet":
        return pq.read_table(path)
    delimiter = "\t" if ".tsv" in path.name else ","
    texts = {f"C{i}": pa.string() for i in range(1, 27)} | {"M1": pa.string()}
    with pa.input_stream(str(path), compression="detect") as stream:
        return pa.csv.read_csv(
            stream,
            parse_options=pa.csv.ParseOptions(delimiter=delimiter),
            convert_options=pa.csv.ConvertOptions(column_types=texts),
        )


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "a.tsv.zst", "a.parquet"])
def test_every_kind_of_file_holds_the_same_rows(tmp_path: Path, name: str) -> None:
    options = SynthOptions(3000, seed=3, multi_hot=1)
    summary = write_synth(tmp_path / name, options)
    table = read(tmp_path / name)
    model = PlantedModel(options)
    want = pa.concat_tables([model.block(0), model.block(1)]).slice(0, 3000)
    assert table.column_names == want.column_names
    assert table.num_rows == summary.rows == 3000
    for column in ("label", "I1", "I7", "C1", "C26", "M1"):
        got = ["" if value is None else value for value in table[column].to_pylist()]
        assert got == ["" if value is None else value for value in want[column].to_pylist()], column
    np.testing.assert_allclose(table["p_true"].to_numpy(), want["p_true"].to_numpy(), rtol=1e-6)


def test_fewer_rows_are_the_first_of_more(tmp_path: Path) -> None:
    few, many = tmp_path / "few.csv", tmp_path / "many.csv"
    write_synth(few, SynthOptions(1000))
    write_synth(many, SynthOptions(5000))
    assert many.read_text().startswith(few.read_text())
    write_synth(many, SynthOptions(5000, seed=1))
    assert not many.read_text().startswith(few.read_text())


def test_best_auc_is_that_of_the_true_probability(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    summary = write_synth(path, SynthOptions(20_000))
    table = pq.read_table(path)
    assert summary.best_auc == pytest.approx(roc_auc_score(table["label"], table["p_true"]), abs=1e-5)
    assert summary.click_rate == pytest.approx(np.mean(table["label"].to_numpy()))
    assert abs(summary.click_rate - 0.25) < 0.02
    assert 0.77 < summary.best_auc < 0.83


def test_labels_follow_the_true_probability(tmp_path: Path) -> None:
    table = pa.concat_tables([PlantedModel(SynthOptions(1)).block(number) for number in range(10)])
    p_true, labels = table["p_true"].to_numpy(), table["label"].to_numpy()
    for low, high in [(0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1)]:
        some = (p_true >= low) & (p_true < high)
        assert abs(labels[some].mean() - p_true[some].mean()) < 4 * 0.5 / np.sqrt(some.sum())


def test_ids_follow_their_law() -> None:
    column = IdColumn(1000, 1.3, np.zeros(1, np.float32), salt=7)
    ids = column.draw((np.arange(100_000) + 0.5) / 100_000)
    assert ids.min() == 0 and ids.max() == 999
    want = (1 - 2.0**-0.3) / (1 - 1001**-0.3)
    assert np.mean(ids == 0) == pytest.approx(want, abs=1e-3)


def test_tokens_are_eight_hex_digits_and_distinct() -> None:
    column = IdColumn(100_000, 1.3, np.zeros(1, np.float32), salt=12345)
    tokens = column.tokens(np.arange(100_000)).to_pylist()
    assert len(set(tokens)) == 100_000
    assert all(len(token) == 8 and int(token, 16) >= 0 for token in tokens[:1000])


def test_schema_beside_the_file_describes_it(tmp_path: Path) -> None:
    summary = write_synth(tmp_path / "clicks.csv.gz", SynthOptions(100, multi_hot=2))
    assert summary.schema == tmp_path / "clicks.schema.yaml"
    schema = read_schema(summary.schema)
    assert schema.name == "clicks"
    assert set(schema.columns()) == set(read(tmp_path / "clicks.csv.gz").column_names)
    assert [sparse.name for sparse in schema.sparse if sparse.delimiter] == ["M1", "M2"]
    assert [keep.name for keep in schema.keep] == ["p_true"]
    without = write_synth(tmp_path / "b.csv", SynthOptions(100, p_true=False))
    assert not read_schema(without.schema).keep
    assert "p_true" not in read(tmp_path / "b.csv").column_names


def test_rare_ids_have_no_effect_and_cardinalities_are_capped() -> None:
    model = PlantedModel(SynthOptions(1, max_ids=300_000))
    assert max(column.cardinality for column in model.columns) == 300_000
    column = model.columns[2]
    assert column.effects(np.array([299_999]))[0] == 0
    assert np.abs(column.effect[:5]).max() > 10 * np.abs(column.effect[50_000:]).max()


@pytest.mark.parametrize("name", ["a.json", "a", "a.parquet.gz", "a.gz"])
def test_unknown_kinds_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="wanted a name ending in"):
        write_synth(tmp_path / name, SynthOptions(10))
    assert not list(tmp_path.iterdir())


def test_impossible_options_are_refused() -> None:
    with pytest.raises(DataError, match="rows ≥ 1"):
        SynthOptions(0)


def test_click_curve_counts_ties_by_half() -> None:
    curve = ClickCurve()
    curve.add(np.array([0, 1, 1, 0], np.int8), np.array([0.1, 0.5, 0.9, 0.5], np.float32))
    assert curve.auc == pytest.approx(roc_auc_score([0, 1, 1, 0], [0.1, 0.5, 0.9, 0.5]))
