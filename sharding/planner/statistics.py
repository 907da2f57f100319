"""The JSON that `tesserec data stats` writes → lengths and frequencies of each feature."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from tesserec.sharding.plan import PlanError
from tesserec.sharding.planner.frequencies import Frequencies, Lengths

FORMAT, VERSION = "tesserec data statistics", 1


def features_of(text: str | bytes, source: str = "stats.json") -> dict[str, tuple[Lengths, Frequencies]]:
    """{feature: (how long its bags are, how often the rows of its table are read)}.

    text: of the file; source: its name, for messages. PlanError when it is something else, too new, or
    damaged. The rows are those of the data's own table: `Frequencies.resized` fits them to another.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise PlanError(f"{source}: cannot be read as JSON: {error}") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise PlanError(f"{source}: no statistics of data; make some with `tesserec data stats DATA -o FILE`")
    if values.get("version") != VERSION:
        raise PlanError(
            f"{source}: version {values.get('version')}; this release reads {VERSION}; make it again"
        )
    if not isinstance(values.get("features"), dict):
        raise PlanError(f"{source}: damaged: no `features`; make it again")
    found = {}
    for name, feature in values["features"].items():
        try:
            found[name] = _lengths(feature["lengths"]), _frequencies(feature["curve"])
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"{source}, feature {name!r}: damaged: {error}; make it again") from None
    return found


def _lengths(values: Mapping[str, Any]) -> Lengths:
    return Lengths.of(values["values"], values["counts"])


def _frequencies(values: Mapping[str, Any]) -> Frequencies:
    counts, shares = (np.array(values[key], np.float64) for key in ("counts", "shares"))
    return Frequencies(counts, shares, bool(values["ordered"]))
