from __future__ import annotations

import json
from typing import Any

import pytest

from tesserec.sharding.plan import PlanError
from tesserec.sharding.planner.statistics import features_of


def document() -> dict[str, Any]:
    feature = {
        "lengths": {"values": [0, 2.5], "counts": [1, 3]},
        "curve": {"ordered": False, "counts": [1, 9], "shares": [0.4, 0.6]},
    }
    return {"format": "tesserec data statistics", "version": 1, "features": {"C1": feature}}


def test_a_document_gives_lengths_and_frequencies() -> None:
    lengths, frequencies = features_of(json.dumps(document()))["C1"]
    assert (lengths.empty, lengths.mean) == (0.25, 1.875)
    assert (frequencies.rows, frequencies.ordered, frequencies.hottest(1)) == (10, False, 0.4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "s.json: cannot be read as JSON"),
        ("[]", "s.json: no statistics of data"),
        (
            '{"format": "tesserec sharding plan"}',
            "no statistics of data; make some with `tesserec data stats",
        ),
        (json.dumps(document() | {"version": 9}), "version 9; this release reads 1"),
        (json.dumps(document() | {"features": 3}), "no `features`"),
        (json.dumps(document() | {"features": {"C1": {}}}), "feature 'C1': damaged: 'lengths'"),
        (json.dumps(document()).replace("0.4", "0.7"), "feature 'C1': damaged: .*sum 1"),
        (json.dumps(document()).replace("[1, 3]", '["a", 3]'), "feature 'C1': damaged"),
    ],
)
def test_anything_else_is_refused(text: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        features_of(text, "s.json")
