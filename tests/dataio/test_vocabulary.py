from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.dataio.columns import MISSING, hash_integers, keys_of
from tesserec.dataio.vocabulary import KeyTable, Vocabulary, VocabularyFitter

Ints = npt.NDArray[np.int64]


def every(keys: Ints) -> npt.NDArray[np.bool_]:
    return np.ones(len(keys), np.bool_)


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        ("a", 0xD24EC4F1A98C6E5B),
        ("abc", 0x44BC2CF5AD770999),
        ("Nobody inspects the spammish repetition", 0xFBCEA83C8A378BF1),
    ],
)
def test_texts_hash_as_xxh64_publishes(text: str, digest: int) -> None:
    for kind in (pa.string(), pa.large_string(), pa.binary()):
        column = pa.array(["before", text, "after"], kind)[1:2]
        keys, missing = keys_of(column, "string", "x")
        assert (keys.view(np.uint64)[0], missing[0]) == (digest, False)


@given(st.lists(st.one_of(st.none(), st.text(max_size=70)), max_size=20), st.integers(0, 2**63))
@settings(max_examples=30, deadline=None)
def test_equal_texts_have_equal_keys_and_nothing_else_does(texts: list[str | None], seed: int) -> None:
    keys, missing = keys_of(pa.array(texts, pa.string()), "string", "x", seed)
    assert missing.tolist() == [not text for text in texts]
    assert len(set(keys.tolist())) == len({text or None for text in texts})
    assert (keys[missing] == MISSING).all()


def test_an_integer_hashes_as_its_eight_bytes() -> None:
    values = np.array([0, 1, -5, 1 << 40])
    texts = pa.array([value.tobytes() for value in values], pa.binary())
    assert (hash_integers(values, 7) == keys_of(texts, "string", "x", 7)[0]).all()


def test_integer_keys_are_the_values_whatever_their_type() -> None:
    for column in (
        pa.array([3, None, -1], pa.int16()),
        pa.array([3.0, float("nan"), -1.0]),
        pa.array(["3", "", "-1"]),
        pa.array([3, None, 2**64 - 1], pa.uint64()),
    ):
        keys, missing = keys_of(column, "int", "x")
        assert keys.tolist() == [3, MISSING, -1]
        assert missing.tolist() == [False, True, False]


@given(st.lists(st.integers(-50, 50), max_size=300), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_counting_equals_counter(values: list[int], parts: int) -> None:
    table = KeyTable()
    for part in np.array_split(np.array(values, np.int64), parts):
        known = set(table.entries()[0].tolist())
        new = part[table.count(part)].tolist()
        assert new == [v for v in dict.fromkeys(part.tolist()) if v not in known]
    keys, counts = table.entries()
    assert dict(zip(keys.tolist(), counts.tolist(), strict=True)) == Counter(values)


def test_a_table_grows_past_its_first_size() -> None:
    keys = np.random.default_rng(0).permutation(200_000) * 4096
    table = KeyTable()
    table.number(keys)
    table.number(keys[::-1].copy())
    assert (table.find(keys) == np.arange(1, len(keys) + 1)).all()
    assert (table.find(keys + 1) == 0).all()
    assert table.nbytes < 40 * len(keys)


def fitted(
    folder: Path, batches: list[list[str]], min_count: int = 1, max_size: int | None = None
) -> Vocabulary:
    fitter = VocabularyFitter(folder / "v.arrow")
    for batch in batches:
        column = pa.array(batch, pa.string())
        keys, _ = keys_of(column, "string", "x")
        fitter.add(keys, every(keys), column)
    return fitter.finish(min_count=min_count, max_size=max_size)


def test_ids_go_by_falling_count_whatever_the_chunks(tmp_path: Path) -> None:
    words = ["a"] * 5 + ["b"] * 3 + ["c"] * 3 + ["d"] * 2 + ["e"]
    np.random.default_rng(0).shuffle(words)
    whole = fitted(tmp_path, [words])
    assert whole.rows()["count"].to_pylist() == [5, 3, 3, 2, 1]
    assert whole.rows()["token"].to_pylist()[0] == "a"
    tokens = whole.rows()["token"].to_pylist()
    for size in (1, 3):
        parts = [words[i : i + size] for i in range(0, len(words), size)]
        assert fitted(tmp_path, parts).rows()["token"].to_pylist() == tokens
    keys, _ = keys_of(pa.array([*tokens, "new"]), "string", "x")
    assert whole.find(keys).tolist() == [1, 2, 3, 4, 5, 0]


def test_rare_and_surplus_tokens_are_unknown(tmp_path: Path) -> None:
    words = ["a"] * 5 + ["b"] * 3 + ["c"] * 3 + ["d"]
    assert fitted(tmp_path, [words], min_count=2).rows()["count"].to_pylist() == [5, 3, 3]
    assert fitted(tmp_path, [words], max_size=2).rows()["count"].to_pylist() == [5, 3]
    assert len(fitted(tmp_path, [words], min_count=9)) == 0


def test_a_vocabulary_opens_as_it_was_saved(tmp_path: Path) -> None:
    vocabulary = fitted(tmp_path, [["x", "y", "x"]])
    keys, _ = keys_of(pa.array(["y", "z", "x"]), "string", "x")
    assert Vocabulary.open(vocabulary.file).find(keys).tolist() == vocabulary.find(keys).tolist() == [2, 0, 1]
