from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.dataio.columns import BadValue
from tesserec.serve.decode import Decoder
from tesserec.serve.problems import Unprocessable
from tests.serve.encoders import by_encoder, features_of, fit, stream_of, texts, whole

WORDS = ["a", "bc", "ä", "d|e", "7", "x" * 40, 'q"\\', "\n"]


@dataclass(frozen=True)
class Kind:
    """A kind of column: what the schema says, what training saw, what requests give."""

    entries: str  # with NAME for the column
    training: Any
    values: st.SearchStrategy[Any]
    arrow: Any  # values -> Arrow column

    def is_dense(self) -> bool:
        return "DENSE" in self.entries


def floats(rows: list[Any]) -> Any:
    return pa.array([None if value is None else float(value) for value in rows], pa.float64())


def ints(rows: list[Any]) -> Any:
    return pa.array(rows, pa.int64())


def lists(rows: list[Any]) -> Any:
    cut = [None if r in (None, "") else r.split("|") if isinstance(r, str) else r for r in rows]
    held = [None if r is None else [None if v is None else str(v) for v in r] for r in cut]
    return pa.array(held, pa.list_(pa.string()))


def int_lists(rows: list[Any]) -> Any:
    return pa.array(rows, pa.list_(pa.int64()))


NUMBER = st.none() | st.integers(-3, 10**6) | st.floats(-1e6, 1e6, allow_nan=False)
INTEGER = st.none() | st.integers(0, 5) | st.integers(-(2**63) + 1, 2**63 - 1)
SMALL = st.none() | st.integers(0, 4)
TEXT = st.none() | st.sampled_from(["", *WORDS]) | st.integers(-9, 9) | st.text(max_size=40)
SAFE_LISTS = st.none() | st.lists(TEXT, max_size=4)
KINDS = [
    Kind("DENSE{column: NAME, fill: 0}", [1.0, 5.0, 2.5], NUMBER, floats),
    Kind("DENSE{column: NAME, fill: mean, transform: log1p}", [1.0, 5.0, -2.5], NUMBER, floats),
    Kind("DENSE{column: NAME, fill: mean, transform: standardize}", [1.0, 5.0, -2.5], NUMBER, floats),
    Kind("DENSE{column: NAME, transform: minmax}", [1.0, 5.0, 2.5], NUMBER, floats),
    Kind("{column: NAME}", [3, 1, 4], INTEGER, ints),
    Kind("{column: NAME, missing: oov}", [3, 1, 4], INTEGER, ints),
    Kind("{column: NAME, missing: error}", [3, 1, 4], INTEGER, ints),
    Kind("{column: NAME, encoding: hash, buckets: 97, seed: 5}", [3, 1, 4], INTEGER, ints),
    Kind("{column: NAME, encoding: integer, size: 5}", [3, 1, 4], SMALL, ints),
    Kind("{column: NAME}", ["a", "bc", None], TEXT, texts),
    Kind("{column: NAME, missing: oov}", WORDS[:3], TEXT, texts),
    Kind("{column: NAME, missing: error}", WORDS[:3], TEXT, texts),
    Kind("{column: NAME, encoding: hash, buckets: 97, seed: 5}", WORDS[:3], TEXT, texts),
    Kind("{column: NAME, encoding: bucketize, boundaries: [0, 1.5, 100]}", [1.0, 2.0, 3.0], NUMBER, floats),
    Kind("{column: NAME}", [["a", "bc"], ["ä"], []], SAFE_LISTS, lists),
    Kind("{column: NAME, missing: oov, max_length: 2}", [["a", "bc"], ["ä"], []], SAFE_LISTS, lists),
    Kind("{column: NAME, missing: error}", [["a", "bc"], ["ä"], []], SAFE_LISTS, lists),
    Kind("{column: NAME, delimiter: '|', missing: oov}", ["a|bc", "ä", "7"],
         SAFE_LISTS | st.text("ab|"), lists),
    Kind("{column: NAME, encoding: integer, size: 6, max_length: 3}", [[3, 1], [4], []],
         st.none() | st.lists(SMALL, max_size=5), int_lists),
    Kind("{column: NAME, encoding: hash, buckets: 9}", [[3, 1], [4], []],
         st.none() | st.lists(INTEGER, max_size=5), int_lists),
    # read by two features, differently
    Kind("{column: NAME, name: NAME-n}, {column: NAME, name: NAME-b, encoding: bucketize, boundaries: [2]}",
         [3, 1, 4], INTEGER, ints),
    Kind("{column: NAME, name: NAME-1}, {column: NAME, name: NAME-2, delimiter: '|'}",
         ["a|bc", "ä", "7"], st.none() | st.text("ab|") | st.integers(0, 9), texts),
    Kind("{column: NAME, name: NAME-1}, {column: NAME, name: NAME-2, encoding: bucketize, boundaries: [2]}",
         ["1.5", "3", "7"], st.none() | st.integers(0, 9) | st.sampled_from(["1.5", "-2", ""]), texts),
    Kind("{column: NAME, name: NAME-1}, {column: NAME, name: NAME-2, encoding: integer, size: 9}",
         ["1", "3", "7"], st.sampled_from(["1", "8", 2, 0]), texts),
]  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> tuple[dict[str, Kind], dict[str, Any], list[dict[str, Any]]]:
    """Columns with strange names; a context with some, candidates with others; either may lack some."""
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=6))
    columns = {f"{name} .{i}": kind for i, (name, kind) in enumerate(zip("äbcdef", kinds, strict=False))}
    shared = {name for name in columns if draw(st.booleans())}
    context = {n: draw(columns[n].values) for n in sorted(shared) if draw(st.integers(0, 9))}
    candidates = [
        {n: draw(columns[n].values) for n in columns if n not in shared and draw(st.integers(0, 9))}
        for _ in range(draw(st.integers(1, 4)))
    ]
    return columns, context, candidates


def schema_of(columns: dict[str, Kind]) -> str:
    parts: dict[str, list[str]] = {"dense": [], "sparse": ["{column: always, encoding: integer, size: 9}"]}
    for name, kind in columns.items():
        entry = kind.entries.replace("NAME", f"'{name}'").replace("''", "'")
        entry = entry.replace(f"'{name}'-", f"{name}-")
        parts["dense" if kind.is_dense() else "sparse"].append(entry.replace("DENSE", ""))
    return ", ".join(f"{role}: [{', '.join(entries)}]" for role, entries in parts.items())


@settings(max_examples=100, deadline=None)
@given(requests())
def test_a_request_is_encoded_as_the_encoder_would(request_: Any) -> None:
    columns, context, candidates = request_
    context = {"always": 3, **context}
    with tempfile.TemporaryDirectory() as folder:
        training = {name: kind.training for name, kind in columns.items()}
        encoder = fit(Path(folder), schema_of(columns), {"always": [1, 2, 3], **training})
        decoder = Decoder(encoder, features_of(encoder))
        body = json.dumps({"context": context, "candidates": candidates}).encode()
        rows = [{**context, **candidate} for candidate in candidates]
        raw = {name: kind.arrow([row.get(name) for row in rows]) for name, kind in columns.items()}
        raw["always"] = ints([row["always"] for row in rows])
        own = {n: column for n, column in raw.items() if n not in context}
        head = {"request": json.dumps({"context": context})}
        bulk = stream_of(pa.table(own or {"id": list(range(len(rows)))}), head)
        try:
            want: dict[str, list[Any]] | None = by_encoder(encoder, raw)
        except BadValue:
            want = None
        for read, given_body in (
            (decoder.rank, body),
            (decoder.rank_arrow, bulk),
            (decoder.predict, json.dumps({"rows": rows}).encode()),
            (decoder.predict_arrow, stream_of(pa.table(raw), {})),
        ):
            if want is None:
                with pytest.raises(Unprocessable):
                    read(given_body)
            else:
                assert whole(read(given_body), encoder) == want
