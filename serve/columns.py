"""The raw columns of a model as requests give them: names, kinds, JSON types."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import pyarrow as pa

from tesserec.dataio.columns import MISSING
from tesserec.dataio.dense import DenseEncoder
from tesserec.dataio.encoder import Encoder
from tesserec.dataio.sparse import SparseEncoder
from tesserec.models.features import Features

Kind = Literal["number", "int", "text"]

FILLER: dict[Kind, Any] = {"number": float("nan"), "int": MISSING, "text": ""}  # what stands for missing ones
ARROW: dict[Kind, Any] = {"number": pa.float64(), "int": pa.int64(), "text": pa.string()}

_Int = Annotated[int, msgspec.Meta(gt=MISSING, le=2**63 - 1)]
_SCALAR: dict[Kind, Any] = {"number": float, "int": _Int, "text": str | _Int}
_WORDS: dict[Kind, list[str]] = {"number": ["number"], "int": ["integer"], "text": ["string", "integer"]}
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Column:
    """A raw column. delimiter: a list may be one text, cut there; None when lists are lists only."""

    name: str
    kind: Kind
    is_list: bool = False
    delimiter: str | None = None

    @property
    def filler(self) -> Any:
        """What a row without the column has."""
        return None if self.is_list else FILLER[self.kind]

    def json_type(self, list_length: int) -> Any:
        """The type by which msgspec reads a value of the column."""
        one = _SCALAR[self.kind] | None
        if not self.is_list:
            return one
        many = Annotated[list[one], msgspec.Meta(max_length=list_length)]  # type: ignore[valid-type]
        return many | None if self.delimiter is None else many | str | None

    def arrow(self, values: Iterable[Any]) -> Any:
        """The values of several rows as an Arrow column, fillers as nulls."""
        if not self.is_list:
            return _arrow(self.kind, values)
        lists = [cut(value, self.delimiter) for value in values]
        held = [None if row is None else [_plain(self.kind, one) for one in row] for row in lists]
        return pa.array(held, pa.list_(ARROW[self.kind]))

    def json_schema(self, features: Sequence[DenseEncoder | SparseEncoder]) -> dict[str, Any]:
        """The JSON schema of a value, with how `features`, which read the column, encode it."""
        one: dict[str, Any] = {"type": [*_WORDS[self.kind], "null"]}
        about: dict[str, Any] = {"type": ["array", "null"], "items": one} if self.is_list else one
        if self.delimiter is not None:
            about["type"] = ["array", "string", "null"]
            about["x-delimiter"] = self.delimiter
        about["x-encoding"] = [_encoding(feature) for feature in features]
        examples = [one for feature in features for one in _examples(feature)]
        if examples:
            about["examples"] = [[one] for one in examples] if self.is_list else examples
        return about


def columns_of(encoder: Encoder, features: Features) -> tuple[Column, ...]:
    """The raw columns that a model reads, in the schema's order.

    A column that features read differently has the kind that all of them can be made of: integers before
    numbers, texts before both.
    """
    uses: dict[str, list[tuple[Kind, bool, str | None]]] = {}
    for dense in encoder.dense:
        uses.setdefault(dense.spec.column, []).append(("number", False, None))
    for sparse in encoder.sparse:
        if sparse.spec.name in features.sparse:
            use = (kind_of(sparse), sparse.is_list, sparse.spec.delimiter)
            uses.setdefault(sparse.spec.column, []).append(use)
    return tuple(_merged(name, found) for name, found in uses.items())


def cut(value: Any, delimiter: str | None) -> Any:
    """A list as given, or from a text (an integer: its decimal digits); None for a missing one."""
    if isinstance(value, str | int):
        return str(value).split(delimiter) if value != "" else None
    return value


def kind_of(feature: SparseEncoder) -> Kind:
    """What the values of a feature are made of."""
    if feature.spec.encoding == "bucketize":
        return "number"
    return "int" if feature.kind == "int" else "text"


def _merged(name: str, uses: Sequence[tuple[Kind, bool, str | None]]) -> Column:
    kinds = {kind for kind, _, _ in uses}
    delimiters = {delimiter for _, _, delimiter in uses}
    text = "text" in kinds or delimiters != {None}
    kind: Kind = "text" if text else "int" if "int" in kinds else "number"
    if all(is_list for _, is_list, _ in uses) and len(delimiters) == 1:
        return Column(name, kind, True, delimiters.pop())
    return Column(name, kind)


def _arrow(kind: Kind, values: Iterable[Any]) -> Any:
    return pa.array([_plain(kind, value) for value in values], ARROW[kind])


def _plain(kind: Kind, value: Any) -> Any:
    """A value as Arrow takes it: null for a filler, an integer among texts by its decimal digits."""
    if value is None or value == FILLER[kind] or value != value:
        return None
    return str(value) if kind == "text" else value


def _encoding(feature: DenseEncoder | SparseEncoder) -> str:
    return feature.spec.encoding if isinstance(feature, SparseEncoder) else "number"


def _examples(feature: DenseEncoder | SparseEncoder) -> list[Any]:
    """Values that a feature knows."""
    if not isinstance(feature, SparseEncoder) or feature.vocabulary is None:
        return []
    rows = feature.vocabulary.rows().slice(0, _SHOWN)
    known = rows["token" if "token" in rows.column_names else "key"].to_pylist()
    return [one for one in known if one is not None and one != MISSING]
