from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tesserec.dataio.columns import BadValue
from tesserec.dataio.config import load_yaml, parse_config
from tesserec.dataio.encoder import Encoder, EncoderError, EncoderFitter
from tesserec.dataio.schema import Schema, SchemaError

POOL = ThreadPoolExecutor(2)


def fit(
    folder: Path, schema: str, columns: dict[str, Any], train: list[bool] | None = None, memory: int = 1 << 30
) -> Encoder:
    """An encoder fitted on columns that come in two batches."""
    fitter = EncoderFitter(parse_config(load_yaml("{name: t, " + schema + "}"), Schema), folder, memory)
    batch = pa.record_batch(columns)
    chosen = np.array(train or [True] * batch.num_rows)
    for low in (0, 2):
        part = batch.slice(low, 2 if low == 0 else batch.num_rows)
        rows = np.arange(low, low + part.num_rows)
        fitter.update(part, rows, chosen[low : low + part.num_rows], POOL)
    return fitter.finish()


def encode(encoder: Encoder, columns: dict[str, Any]) -> dict[str, list[Any]]:
    encoded: dict[str, list[Any]] = encoder.encode(pa.record_batch(columns)).to_pydict()
    return encoded


def test_dense_transforms_have_their_formulas(tmp_path: Path) -> None:
    x = [0.0, 4.0, -1.0, None]
    schema = """dense: [
        {column: x, name: plain, fill: 7}, {column: x, name: log, fill: 0, transform: log1p},
        {column: x, name: unit, fill: mean, transform: minmax},
        {column: x, name: standard, fill: mean, transform: standardize}]"""
    encoder = fit(tmp_path, schema, {"x": x})
    got = encode(encoder, {"x": x})
    known = np.array([0.0, 4.0, -1.0, 1.0])  # the mean fills
    np.testing.assert_allclose(got["plain"], [0, 4, -1, 7])
    np.testing.assert_allclose(got["log"], [0, np.log(5), -np.log(2), 0], rtol=1e-6)
    np.testing.assert_allclose(got["unit"], (known + 1) / 5, rtol=1e-6)
    np.testing.assert_allclose(got["standard"], (known - 1) / np.std(known[:3]), rtol=1e-6)
    assert encoder.encode(pa.record_batch({"x": x})).schema.field("log").type == pa.float32()


def test_statistics_and_vocabularies_come_from_training_rows_only(tmp_path: Path) -> None:
    columns = {"x": [1.0, 3.0, 1000.0], "u": ["a", "b", "secret"]}
    schema = "dense: [{column: x, transform: minmax}], sparse: [u]"
    encoder = fit(tmp_path, schema, columns, train=[True, True, False])
    got = encode(encoder, columns)
    np.testing.assert_allclose(got["x"], [0, 1, 499.5])
    assert got["u"][2] == 0
    assert sorted(got["u"][:2]) == [1, 2]
    assert encoder.count_oov(encoder.encode(pa.record_batch(columns))) == {"u": 1}


def test_a_constant_column_becomes_zero(tmp_path: Path) -> None:
    for transform in ("minmax", "standardize"):
        encoder = fit(tmp_path, f"dense: [{{column: x, transform: {transform}}}]", {"x": [5.0] * 3})
        assert encode(encoder, {"x": [5.0, 6.0]})["x"] == [0, 0]


@pytest.mark.parametrize(
    ("missing", "ids"), [("own", [1, 2, 1, 1, 0]), ("oov", [0, 1, 0, 0, 0]), ("error", None)]
)
def test_missing_values_follow_the_policy(tmp_path: Path, missing: str, ids: list[int] | None) -> None:
    encoder = fit(tmp_path, f"sparse: [{{column: u, missing: {missing}}}]", {"u": [None, "a", "", None]})
    rows = {"u": [None, "a", "", None, "new"]}
    if ids is not None:
        assert encode(encoder, rows)["u"] == ids
        return
    with pytest.raises(BadValue, match="column 'u': got None, wanted a value") as caught:
        encode(encoder, rows)
    assert caught.value.row == 0


def test_hashing_is_stable_seeded_and_bounded(tmp_path: Path) -> None:
    schema = """sparse: [{column: u, name: a, encoding: hash, buckets: 50},
        {column: u, name: b, encoding: hash, buckets: 50, seed: 1}]"""
    values = ["a", "abc"] + [f"{i:08x}" for i in range(2000)] + [None]
    got = encode(fit(tmp_path, schema, {"u": ["x", "y", "z"]}), {"u": values})
    assert got["a"] != got["b"]
    assert set(got["a"]) == set(range(50))
    assert got["a"][:2] == [0xD24EC4F1A98C6E5B % 50, 0x44BC2CF5AD770999 % 50]
    counts = np.bincount(got["a"])
    assert counts.min() > 15 and counts.max() < 80


def test_integer_ids_pass_and_are_checked(tmp_path: Path) -> None:
    encoder = fit(
        tmp_path, "sparse: [{column: u, encoding: integer}]", {"u": [4, 0, 2]}, train=[False, True, True]
    )
    assert encoder.sparse[0].num_embeddings == 5
    assert encode(encoder, {"u": [3, 4]})["u"] == [3, 4]
    for bad in (5, -1, None):
        with pytest.raises(BadValue, match=rf"'u': got {bad}, wanted (an id from 0 to 4|a value)"):
            encode(encoder, {"u": [0, bad]})


def test_numbers_fall_into_buckets(tmp_path: Path) -> None:
    schema = """sparse: [{column: x, encoding: bucketize, boundaries: [1, 3]},
        {column: x, name: q, encoding: bucketize, buckets: 4}]"""
    encoder = fit(tmp_path, schema, {"x": [float(i) for i in range(100)]})
    got = encode(encoder, {"x": [0.0, 1.0, 2.9, 3.0, None, 60.0]})
    assert got["x"] == [1, 2, 2, 3, 0, 3]
    assert got["q"] == [1, 1, 1, 1, 0, 3]
    assert [feature.num_embeddings for feature in encoder.sparse] == [4, 5]


def test_lists_are_cut_cleaned_and_encoded(tmp_path: Path) -> None:
    schema = 'sparse: [{column: g, delimiter: "|", max_length: 2}]'
    texts = {"g": ["a|b|a", "", None, "a||b|a", "a"]}
    lists = {"g": [["a", "b", "a"], [], None, ["a", None, "b", ""], ["a"]]}
    encoder = fit(tmp_path, schema, texts)
    want = [[1, 2], [], [], [1, 2], [1]]
    assert encode(encoder, texts)["g"] == want
    assert encode(encoder, lists)["g"] == want
    assert encoder.sparse[0].is_list
    sliced = pa.record_batch(lists).slice(3, 2)
    assert encoder.encode(sliced).to_pydict()["g"] == want[3:]


def test_a_missing_list_may_be_oov_or_an_error(tmp_path: Path) -> None:
    lists = {"g": [[7, 8], None, [7], None]}
    assert encode(fit(tmp_path, "sparse: [{column: g, missing: oov}]", lists), lists)["g"] == [
        [1, 2],
        [0],
        [1],
        [0],
    ]
    encoder = fit(tmp_path, "sparse: [{column: g, missing: error}]", lists)
    with pytest.raises(BadValue, match="got None") as caught:
        encode(encoder, lists)
    assert caught.value.row == 1


def test_a_bad_list_element_names_its_row(tmp_path: Path) -> None:
    encoder = fit(tmp_path, "sparse: [{column: g, encoding: integer}]", {"g": [[1], [2, 3], [0]]})
    with pytest.raises(BadValue, match="got 9") as caught:
        encode(encoder, {"g": [[1, 1], [], [2, 9]]})
    assert caught.value.row == 2


@pytest.mark.parametrize(
    ("schema", "column", "words"),
    [
        (
            "labels: y, sparse: u",
            [0.0, 2.0],
            "got 2.0, wanted a label of 0 or 1; state a `threshold`",
        ),
        ("labels: y, sparse: u", [0.0, None], "got None, wanted a label"),
        ("weight: y, sparse: u", [1.0, -1.0], "got -1.0, wanted a weight"),
        ("dense: y, sparse: u", [1.0, None], "got None, wanted a number"),
        ("dense: y, sparse: u", [1.0, float("inf")], "got inf, wanted a finite number"),
        ("dense: y, sparse: u", ["1", "1e"], "got '1e', wanted a number"),
        ("group: y, sparse: u", ["a", None], "got None, wanted a group"),
    ],
)
def test_a_bad_value_is_named_with_its_row(
    tmp_path: Path, schema: str, column: list[Any], words: str
) -> None:
    encoder = fit(tmp_path, schema, {"u": ["a", "b", "c"], "y": [1.0, 0.0, 1.0]})
    with pytest.raises(BadValue) as caught:
        encode(encoder, {"u": ["a", "b"], "y": column})
    assert words in str(caught.value)
    assert caught.value.row == 1


def test_targets_come_out_where_they_are_present(tmp_path: Path) -> None:
    schema = (
        "labels: {column: r, threshold: 4}, weight: w, group: g, keep: [{column: g, name: who}], sparse: u"
    )
    columns = {"r": [3.5, 4.0, 5.0], "w": [1, 2, 0], "g": ["x", "y", "x"], "u": [5, 6, 5]}
    encoder = fit(tmp_path, schema, columns)
    got = encode(encoder, columns)
    assert (got["r"], got["weight"], got["who"], got["u"]) == (
        [0, 1, 1],
        [1, 2, 0],
        ["x", "y", "x"],
        [1, 2, 1],
    )
    assert got["group"][0] == got["group"][2] != got["group"][1]
    assert encode(encoder, {"u": [6]}) == {"u": [2]}
    with pytest.raises(SchemaError, match="no column 'u' among r"):
        encode(encoder, {"r": [4]})


def test_strings_at_serving_find_integer_keys(tmp_path: Path) -> None:
    encoder = fit(tmp_path, "sparse: u", {"u": [10, 20, 10]})
    assert encode(encoder, {"u": ["20", "10", ""]})["u"] == [2, 1, 0]
    with pytest.raises(BadValue, match="got 'x', wanted an integer"):
        encode(encoder, {"u": ["10", "x"]})


def test_numbers_as_ids_need_a_type(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="state `type: int`"):
        fit(tmp_path, "sparse: u", {"u": [1.0, 2.0, 3.0]})
    encoder = fit(tmp_path, "sparse: [{column: u, type: int}]", {"u": [1.0, None, 1.0]})
    assert encode(encoder, {"u": [1.0, float("nan")]})["u"] == [1, 2]


def test_too_many_distinct_values_name_the_column(tmp_path: Path) -> None:
    columns = {"u": [str(i) for i in range(20_000)], "v": ["a"] * 20_000}
    with pytest.raises(SchemaError, match=r"column 'u' has too many distinct values.*`encoding: hash`"):
        fit(tmp_path, "sparse: [v, u]", columns, memory=100_000)


def test_a_saved_encoder_encodes_alike(tmp_path: Path) -> None:
    schema = """labels: y, dense: [{column: x, fill: mean, transform: standardize}], sparse: [u,
        {column: g, delimiter: " "}, {column: u, name: h, encoding: hash, buckets: 7},
        {column: x, name: b, encoding: bucketize, buckets: 3}],
        split: {by: time, column: t, valid_from: 2014-01-01, test_from: 2015-01-01}"""
    columns = {"y": [1, 0, 1], "x": [0.5, None, 2.0], "u": ["p", "q", "p"], "g": ["a b", "", "c"]}
    encoder = fit(tmp_path, schema, columns)
    encoder.save(tmp_path / "saved")
    loaded = Encoder.load(tmp_path / "saved")
    rows = pa.record_batch({**columns, "u": ["p", "new", "q"]})
    assert loaded.encode(rows).equals(encoder.encode(rows))
    assert loaded.encode(rows, executor=POOL).equals(encoder.encode(rows))
    assert loaded.schema == encoder.schema
    loaded.save(tmp_path / "saved")
    assert Encoder.load(tmp_path / "saved").encode(rows).equals(encoder.encode(rows))


def test_a_damaged_encoder_is_refused(tmp_path: Path) -> None:
    encoder = fit(tmp_path, "sparse: u", {"u": ["a", "b", "c"]})
    folder = tmp_path / "saved"
    for damage, words in (
        (lambda: (folder / "vocabulary" / "000.arrow").write_bytes(b"x"), "000.arrow: missing or damaged"),
        (lambda: (folder / "vocabulary" / "000.arrow").unlink(), "missing or damaged"),
        (
            lambda: _swap(folder / "encoder.json", '"num_embeddings": 4', '"num_embeddings": 5'),
            "damaged or edited",
        ),
        (lambda: _swap(folder / "encoder.json", '"format_version": 1', '"format_version": 9'), "version 9"),
        (lambda: (folder / "encoder.json").write_text("{"), "damaged"),
        (lambda: (folder / "encoder.json").unlink(), "no such file"),
    ):
        encoder.save(folder)
        damage()
        with pytest.raises(EncoderError, match=words):
            Encoder.load(folder)


def _swap(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_arrow_types_of_one_meaning_encode_alike(tmp_path: Path) -> None:
    texts = pa.array(["a", "b", "a", None])
    lists = pa.array([["p", "q"]] * 4)
    encoder = fit(tmp_path, "sparse: [u, g]", {"u": texts, "g": lists})
    want = encoder.encode(pa.record_batch({"u": texts, "g": lists}))
    forms = [texts.dictionary_encode(), texts.cast(pa.large_string()), texts.cast(pa.string_view())]
    for number, form in enumerate(forms):
        for same in (lists.cast(pa.large_list(pa.string())), lists.cast(pa.list_(pa.string(), 2))):
            batch = pa.record_batch({"u": form, "g": same})
            assert encoder.encode(batch).equals(want)
            (tmp_path / str(number)).mkdir(exist_ok=True)
            again = fit(tmp_path / str(number), "sparse: [u, g]", {"u": form, "g": same})
            assert again.encode(batch).equals(want)
