"""Raw rows made of training columns: the encoder makes the same training columns of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tesserec.dataio.config import parse_config
from tesserec.dataio.encoder import Encoder, EncoderFitter
from tesserec.dataio.invert import UNKNOWN, drawn_rows, encodable, raw_rows, with_gaps, with_unknown
from tesserec.dataio.schema import Schema

ROWS = 40
SPECS: dict[str, Any] = {
    "dense": [
        {"column": "price", "fill": 0, "transform": "log1p"},
        {"column": "time", "transform": "standardize"},
        {"column": "share", "fill": "mean", "transform": "minmax"},
        {"column": "flat", "fill": 1, "transform": "standardize"},
    ],
    "sparse": [
        {"column": "word", "min_count": 2},
        {"column": "number", "type": "int"},
        {"column": "row", "encoding": "integer"},
        {"column": "level", "encoding": "bucketize", "buckets": 4},
        {"column": "never", "encoding": "bucketize", "boundaries": [], "name": "one_bucket"},
        {"column": "tags", "delimiter": "|", "name": "tags"},
        {"column": "seen"},
        {"column": "word", "name": "hashed_word", "encoding": "hash", "buckets": 50},
        {"column": "price", "name": "price_level", "encoding": "bucketize", "boundaries": [1, 2]},
        {"column": "age"},
    ],
    "labels": "label",
    "group": "word",
    "keep": {"column": "number", "name": "kept"},
}
SPECS["dense"].append({"column": "age", "name": "age_number", "fill": 0})


def raw() -> pa.RecordBatch:
    rng = np.random.default_rng(0)
    words = [None if i == 3 else f"w{i % 7}" for i in range(ROWS)]
    return pa.record_batch(
        {
            "label": pa.array(np.arange(ROWS) % 2),
            "price": pa.array([None if i == 1 else float(i % 5) for i in range(ROWS)]),
            "time": pa.array(rng.normal(1e9, 1e6, ROWS)),
            "share": pa.array(rng.random(ROWS)),
            "flat": pa.array(np.ones(ROWS)),
            "word": pa.array(words),
            "number": pa.array([None if i == 2 else i % 9 - 4 for i in range(ROWS)]),
            "row": pa.array(np.arange(ROWS)),
            "level": pa.array(rng.normal(size=ROWS)),
            "never": pa.array(rng.normal(size=ROWS)),
            "tags": pa.array(["|".join(f"t{j}" for j in range(i % 4)) for i in range(ROWS)]),
            "seen": pa.array([["a"], ["b", "c"], None, []] * (ROWS // 4)),
            "age": pa.array([str(20 + i % 9) for i in range(ROWS)]),
        }
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    fitter = EncoderFitter(
        parse_config({"name": "all", **SPECS}, Schema), tmp_path_factory.mktemp("words"), 1 << 20
    )
    with ThreadPoolExecutor(1) as executor:
        fitter.update(raw(), np.arange(ROWS), np.ones(ROWS, np.bool_), executor)
    return fitter.finish().of_features()


def check_same(encoder: Encoder, got: pa.RecordBatch, wanted: pa.RecordBatch) -> None:
    for dense in encoder.dense:
        values, others = (batch.column(dense.spec.name).to_numpy() for batch in (got, wanted))
        np.testing.assert_allclose(values, others, rtol=2e-6, atol=2e-6, err_msg=dense.spec.name)
    for sparse in encoder.sparse:
        if sparse.spec.encoding != "hash" and sparse.spec.name != "price_level":
            assert got.column(sparse.spec.name).equals(wanted.column(sparse.spec.name)), sparse.spec.name


def test_encoding_raw_rows_gives_what_they_were_made_of(encoder: Encoder) -> None:
    encoded = encoder.encode(raw())
    made = raw_rows(encoder, encoded)
    assert made.schema.names == list(encoder.schema.feature_columns())
    check_same(encoder, encoder.encode(made), encoded)


def test_rows_drawn_at_random_can_be_encoded(encoder: Encoder) -> None:
    drawn = drawn_rows(encoder, 30)
    made = raw_rows(encoder, drawn)
    assert encodable(encoder, made).num_rows == 30
    for sparse in encoder.sparse:
        ids = encoder.encode(made).column(sparse.spec.name)
        assert ids.type == drawn.column(sparse.spec.name).type


def test_unknown_ids_are_unknown(encoder: Encoder) -> None:
    encoded = with_unknown(encoder, encoder.encode(raw()))
    made = raw_rows(encoder, encoded)
    assert UNKNOWN in made.column("word").to_pylist()
    again = encoder.encode(made)
    assert again.column("number").equals(encoded.column("number"))
    for name in ("word", "number"):
        assert (again.column(name).to_numpy() == 0).sum() >= ROWS // 4


def test_gaps_are_only_where_a_value_may_be_missing(encoder: Encoder) -> None:
    gapped = with_gaps(encoder, raw_rows(encoder, encoder.encode(raw()).slice(4)))
    assert encodable(encoder, gapped).num_rows == ROWS - 4
    for name in gapped.schema.names:
        assert (gapped.column(name).null_count > 0) == (name not in ("time", "row")), name


def test_rows_that_cannot_be_encoded_are_left_out(encoder: Encoder) -> None:
    rows = raw_rows(encoder, encoder.encode(raw()))
    numbers = rows.column("row").to_pylist()
    numbers[5] = numbers[9] = 10**6
    bad = rows.set_column(rows.schema.get_field_index("row"), "row", pa.array(numbers))
    left = encodable(encoder, bad)
    assert left.column("row").to_pylist() == [number for number in numbers if number < 10**6]


def test_scoring_needs_no_group(encoder: Encoder, tmp_path: Path) -> None:
    row = raw().slice(3, 1)  # its word, which is the group, is missing
    assert encoder.encode(row).schema.names[0] == "price"
