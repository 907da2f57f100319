from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tesserec.dataio.config import ConfigError, load_yaml, parse_config
from tesserec.dataio.infer import infer_schema
from tesserec.dataio.schema import Schema, SchemaError, read_schema, ready_schemas


def schema_of(text: str) -> Schema:
    return parse_config(load_yaml(text), Schema)


def problem(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        schema_of(text)
    return str(caught.value)


def test_short_and_long_forms_mean_the_same() -> None:
    short = schema_of(
        "{name: a, labels: y, dense: [I1..I3, x], sparse: [{column: [u, C8..C10], min_count: 3}]}"
    )
    names = ["u", "C8", "C9", "C10"]
    long: dict[str, Any] = {
        "name": "a",
        "labels": [{"column": "y"}],
        "dense": [{"column": f"I{i}"} for i in (1, 2, 3)] + [{"column": "x", "name": "x"}],
        "sparse": [{"column": name, "min_count": 3} for name in names],
    }
    assert short == Schema.model_validate(long)
    assert [sparse.name for sparse in short.sparse] == names


@pytest.mark.parametrize("name", ["a..b", "x1..y3", "..", "v1.2"])
def test_names_that_are_no_range_stay(name: str) -> None:
    assert [entry.column for entry in schema_of(f"{{name: a, sparse: ['{name}']}}").sparse] == [name]


@pytest.mark.parametrize("name", ready_schemas())
def test_ready_schemas_read_and_survive_yaml(name: str) -> None:
    schema = read_schema(name)
    assert schema_of(schema.to_yaml()) == schema


def test_every_kind_of_split_survives_yaml() -> None:
    for split in (
        "{by: ratio, train: 1, valid: 0, test: 0}",
        "{by: time, column: t, valid_from: 5, test_from: 9}",
        "{by: time, column: t, type: timestamp, valid_from: 2014-10-30, test_from: 2014-10-31T12:00:00}",
        "{by: column, column: part}",
        "{by: leave_one_out, group: u, time: t}",
    ):
        schema = schema_of(f"{{name: a, sparse: u, split: {split}}}")
        assert schema_of(schema.to_yaml()) == schema


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{name: a}", "needs dense or sparse"),
        ("{name: a, sparse: [u, u]}", "called 'u'"),
        ("{name: a, sparse: weight, weight: w}", "called 'weight'"),
        ("{name: a, sparse: [{column: u, encoding: hash}]}", "needs `buckets`"),
        (
            "{name: a, sparse: [{column: u, encoding: hash, buckets: 9, min_count: 2}]}",
            "`min_count` belongs to",
        ),
        (
            "{name: a, sparse: [{column: u, encoding: hash, buckets: 9, missing: oov}]}",
            "own or error, got oov",
        ),
        ("{name: a, sparse: [{column: u, delimiter: ' ', missing: own}]}", "empty or oov or error, got own"),
        ("{name: a, sparse: [{column: u, encoding: bucketize}]}", "`boundaries` or `buckets`"),
        ("{name: a, sparse: [{column: u, encoding: bucketize, boundaries: [2, 1]}]}", "must increase"),
        ("{name: a, sparse: [{column: u, encoding: vocabularry}]}", "did you mean 'vocabulary'"),
        ("{name: a, dense: [{column: x, transfrom: log1p}]}", "did you mean 'transform'"),
        ("{name: a, sparse: u, split: {by: ratio, train: 0.5}}", "must be 1, got 0.5 + 0.1 + 0.1"),
        (
            "{name: a, sparse: u, split: {by: time, column: t, valid_from: 3}}",
            "both valid_from",
        ),
        ("{name: a, sparse: u, split: {by: tme, column: t}}", "tme"),
    ],
)
def test_a_mistake_is_told_with_its_remedy(text: str, words: str) -> None:
    assert words in problem(text)


def test_an_unknown_ready_schema_lists_the_ready_ones() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'criteo'.*avazu, criteo, movielens"):
        read_schema("criteoo")


def test_a_column_with_two_uses_is_read_as_text() -> None:
    schema = schema_of("{name: a, dense: year, sparse: [{column: year, name: year_id}]}")
    assert schema.columns() == {"year": "string"}


def test_a_schema_is_guessed_from_text_and_from_parquet(tmp_path: Path) -> None:
    columns = {
        "click": [0, 1] * 50,
        "user_id": list(range(100)),
        "site": ["a", "b"] * 50,
        "price": [1.5, 2.5] * 50,
        "views": [1] * 99 + [5000],
    }
    pq.write_table(pa.table({**columns, "tags": [["x"]] * 100}), tmp_path / "a.parquet")
    lines = [",".join(columns)] + [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    for file, sparse in (("a.csv", ["user_id", "site"]), ("a.parquet", ["user_id", "site", "tags"])):
        schema = infer_schema(tmp_path / file, "click")
        assert [entry.name for entry in schema.sparse] == sparse
        assert {entry.name: entry.transform for entry in schema.dense} == {
            "price": "standardize",
            "views": "log1p",
        }
        assert schema_of(schema.to_yaml()) == schema
    with pytest.raises(SchemaError, match=r"wanted 0 and 1, got 1\.5, 2\.5; give the threshold"):
        infer_schema(tmp_path / "a.csv", "price")
    assert infer_schema(tmp_path / "a.csv", "price", threshold=2).labels[0].threshold == 2
    with pytest.raises(SchemaError, match="did you mean 'click'"):
        infer_schema(tmp_path / "a.csv", "clik")
