"""What leaves a run scores as the run does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from tesserec.cli import app
from tesserec.dataio.config import parse_config
from tesserec.dataio.dataset import DataError
from tesserec.dataio.prepare import prepare
from tesserec.dataio.schema import Schema
from tesserec.serve.artefact import Artefact
from tesserec.serve.golden import score_rows
from tesserec.train.config import TrainConfig
from tesserec.train.export import GOLDEN_ROWS, ExportOptions, gather
from tesserec.train.loop import Trainer
from tesserec.train.predict import predict_files
from tesserec.train.run import RunError
from tests.train.conftest import Train, settings

SCHEMA: dict[str, Any] = {
    "name": "shop",
    "labels": "click",
    "group": "user",
    "dense": ["price", {"column": "hour", "fill": 0}],
    "sparse": [
        "user",
        {"column": "age", "type": "int"},
        {"column": "item", "encoding": "integer"},
        {"column": "brand", "encoding": "hash", "buckets": 30},
        {"column": "tags", "delimiter": " "},
    ],
}


def raw_table(rows: int = 600) -> pa.Table:
    """Ages follow from users; prices, brands and tags from items."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 40, rows), rng.integers(0, 25, rows)
    return pa.table(
        {
            "click": ((user + item) % 3 == 0).astype(int),
            "user": [f"u{u}" for u in user],
            "age": 20 + user % 50,
            "hour": rng.integers(0, 24, rows),
            "item": item,
            "price": np.round(item * 1.7 + 3, 2),
            "brand": [f"b{i % 6}" for i in item],
            "tags": [" ".join(f"t{t}" for t in range(i % 4)) for i in item],
        }
    )


def tesserec(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on a data set that was prepared from raw rows, with both beside it."""
    folder = tmp_path_factory.mktemp("trained")
    pq.write_table(raw_table(), folder / "raw.parquet")
    prepare([folder / "raw.parquet"], parse_config(SCHEMA, Schema), folder / "prepared")
    values = settings(folder / "prepared", folder / "run", train__epochs=2)
    Trainer(parse_config(values, TrainConfig)).fit()
    return folder


@pytest.fixture
def run(trained: Path) -> Path:
    return trained / "run"


def predicted(run: Path, rows: pa.RecordBatch, tmp_path: Path, checkpoint: str = "best") -> Any:
    """What `tesserec predict` gives raw rows, of which none lacks the group."""
    pq.write_table(pa.Table.from_batches([rows]), tmp_path / "rows.parquet")
    predict_files(
        run, [tmp_path / "rows.parquet"], tmp_path / "scores.parquet", raw=True, checkpoint=checkpoint
    )
    return pq.read_table(tmp_path / "scores.parquet")["score"].to_numpy()


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_golden_scores_are_those_of_predict(run: Path, tmp_path: Path, checkpoint: str) -> None:
    found = gather(run, ExportOptions(), checkpoint)
    assert found.golden.num_rows == GOLDEN_ROWS and found.deviation == 0
    known = np.array(found.golden.column("user").is_valid())
    rows = found.golden.filter(pa.array(known))
    np.testing.assert_array_equal(predicted(run, rows, tmp_path, checkpoint), found.scores[known])
    assert ("auc" in found.metrics) == (checkpoint == "best")


def test_golden_rows_have_gaps_unknown_values_and_plain_ones_first(run: Path) -> None:
    rows = gather(run, ExportOptions()).golden
    plain = rows.slice(0, GOLDEN_ROWS // 2)
    assert not any(column.null_count for column in plain.columns)
    assert set(plain.column("user").to_pylist()) <= {f"u{u}" for u in range(40)}
    assert {name for name in rows.schema.names if rows.column(name).null_count} >= {"user", "hour", "brand"}
    assert rows.column("price").null_count == 0  # which must be there
    assert "a value never seen" in rows.column("user").to_pylist()


def test_the_histogram_is_of_validation_scores(run: Path) -> None:
    found = gather(run, ExportOptions())
    assert sum(found.counts) == pq.read_metadata(run.parent / "prepared/valid.parquet").num_rows
    assert found.edges[0] == 0 and found.edges[-1] == 1 and min(found.counts) > 0


@pytest.mark.parametrize(
    ("candidate_id", "columns"),
    [
        ("item", {"item", "price", "brand", "tags"}),
        ("user", {"user", "age"}),
        (None, {"item", "price", "brand", "tags", "hour"}),  # all but the group's own
    ],
)
def test_candidates_have_what_follows_from_their_id(run: Path, candidate_id: Any, columns: Any) -> None:
    assert set(gather(run, ExportOptions(candidate_id=candidate_id)).candidate_columns) == columns


@pytest.mark.parametrize(
    ("tables", "data_type"),
    [(None, "float32"), ("fp32", "float32"), ("fp16", "float16"), ("int8", "int8"), ("int4", "int4")],
)
def test_an_artefact_scores_as_its_run(run: Path, tmp_path: Path, tables: Any, data_type: str) -> None:
    output = tmp_path / "repository/shop/7"
    options = ["--tables", tables] if tables else []
    result = tesserec("export", run, "-o", output, "--candidate-id", "item", "--json", *options)
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    artefact = Artefact.open(output)
    assert (artefact.name, artefact.data_type, artefact.candidate_id) == ("shop", data_type, "item")
    assert summary["data_type"] == data_type and summary["table_bytes"] == artefact.table_bytes
    raw = raw_table(100).combine_chunks().to_batches()[0].drop_columns(["click"])
    got = score_rows(artefact.model(), artefact.encoder, raw)
    off = np.abs(got - predicted(run, raw, tmp_path)).max()
    bound = {"float32": 1e-6, "float16": 5e-3, "int8": 2e-2, "int4": 0.5}[data_type]
    assert off <= bound and summary["deviation"] <= bound
    assert (summary["deviation"] == 0) == (data_type == "float32")


def test_export_says_what_it_did(run: Path, tmp_path: Path) -> None:
    result = tesserec("export", run, "-o", tmp_path / "a", "--name", "shelf", "--tables", "int8")
    assert "model 'shelf'" in result.stderr and "golden rows score as by the trainer" in result.stderr
    assert "otherwise" in result.stderr
    assert Artefact.open(tmp_path / "a").name == "shelf"


def test_onnx_is_written_beside(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    onnx = tmp_path / "model.onnx"
    result = tesserec("export", run, "-o", tmp_path / "a", "--onnx", onnx, "--json")
    assert json.loads(result.stdout)["onnx_difference"] < 1e-5 and onnx.stat().st_size > 1000


def test_golden_rows_can_be_given(run: Path, tmp_path: Path) -> None:
    given = raw_table(10)
    pq.write_table(given, tmp_path / "given.parquet")
    found = gather(run, ExportOptions(golden=tmp_path / "given.parquet"))
    assert found.golden.column("user").equals(given["user"].combine_chunks())
    pq.write_table(given.slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(DataError, match=r"none\.parquet: no rows"):
        gather(run, ExportOptions(golden=tmp_path / "none.parquet"))


def test_a_run_needs_no_data_any_more(trained: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    config = moved / "config.yaml"
    config.write_text(config.read_text().replace(str(trained / "prepared"), "/nowhere"))
    found = gather(moved, ExportOptions(candidate_id="item"))
    assert found.golden.num_rows > GOLDEN_ROWS // 2 and found.counts == (0,)
    assert found.candidate_columns == ("item",)
    result = tesserec("export", moved, "-o", tmp_path / "a")
    assert "no histogram" in result.stderr and Artefact.open(tmp_path / "a").score_histogram.counts == (0,)


def test_a_run_without_an_encoder_cannot_be_exported(train: Train, tmp_path: Path) -> None:
    train(train__max_steps=2)
    with pytest.raises(RunError, match="has no encoder"):
        gather(tmp_path / "run", ExportOptions())


def test_a_candidate_id_that_is_no_column_is_refused(run: Path) -> None:
    with pytest.raises(DataError, match="no raw column 'itme'; did you mean 'item'"):
        gather(run, ExportOptions(candidate_id="itme"))
