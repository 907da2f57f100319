"""A first schema for data nobody has described yet: a guess written out for its user to correct."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tesserec.dataio.columns import is_text
from tesserec.dataio.config import did_you_mean
from tesserec.dataio.lists import holds_lists
from tesserec.dataio.raw import sample_raw
from tesserec.dataio.schema import Dense, Label, Schema, SchemaError, Sparse

_ID_NAME = re.compile(r"(^|_)(u|i)?(ids?|hash|code|uuid|ip)$", re.IGNORECASE)


def infer_schema(file: str | Path, label: str, *, threshold: float | None = None) -> Schema:
    """The schema that the first rows of `file` suggest; only its `label` (with `threshold`) is certain.

    Texts, lists and columns named like ids are sparse; numbers are dense, by log1p when they look like counts
    and otherwise standardized; times are left out. SchemaError when the label is not there or not 0 and 1.
    """
    path = Path(file)
    rows = sample_raw(path)
    if label not in rows.column_names:
        hint = did_you_mean(label, rows.column_names)
        raise SchemaError(f"{path}: no column {label!r}{hint} (columns: {', '.join(rows.column_names)})")
    _check_label(rows[label], label, threshold)
    others = [name for name in rows.column_names if name != label]
    sparse = [name for name in others if _is_id(name, rows[name].type)]
    dense = [name for name in others if name not in sparse and _is_number(rows[name].type)]
    return Schema(
        name=path.name.split(".")[0],
        labels=(Label.model_validate({"column": label, "threshold": threshold}),),
        dense=tuple(_dense(name, rows[name]) for name in dense),
        sparse=tuple(Sparse.model_validate({"column": name, "min_count": 2}) for name in sparse),
    )


def _check_label(column: Any, name: str, threshold: float | None) -> None:
    values = column.unique().drop_null().to_pylist()
    if threshold is None and not set(values) <= {0, 1}:
        shown = ", ".join(map(str, sorted(values, key=str)[:5]))
        raise SchemaError(f"label {name!r}: wanted 0 and 1, got {shown}; give the threshold of a 1")


def _is_id(name: str, column_type: Any) -> bool:
    if pa.types.is_dictionary(column_type) or pa.types.is_boolean(column_type):
        return True
    return is_text(column_type) or holds_lists(column_type) or bool(_ID_NAME.search(name))


def _is_number(column_type: Any) -> bool:
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    return any(is_kind(column_type) for is_kind in kinds)


def _dense(name: str, column: Any) -> Dense:
    """Numbers from 0 up with a long tail, as counts have, by log1p; others standardized."""
    least, largest = pc.min_max(column).as_py().values()
    tail = least is not None and least >= 0 and largest > 10 * (1 + pc.mean(column).as_py())
    transform = "log1p" if tail else "standardize"
    return Dense.model_validate({"column": name, "fill": "mean", "transform": transform})
