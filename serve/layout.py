"""Which raw columns of a request are in its context and which in its candidates, and how both are read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from typing import Annotated, Any

import msgspec
from msgspec.structs import astuple

from tesserec.dataio.columns import MISSING
from tesserec.dataio.encoder import Encoder
from tesserec.models.features import Features
from tesserec.serve.columns import Column
from tesserec.serve.encode import PartEncoder
from tesserec.serve.query import Split

Name = str | Annotated[int, msgspec.Meta(gt=MISSING, le=2**63 - 1)] | None


class Layout:
    """Reads requests whose contexts have the columns `context`, and whose candidates have all others.

    candidate_id: the raw column, of the model or not, that names candidates which have no `id`.
    candidates, list_length: how many at most. extra: names of what candidates have beside the model's
    columns; naming: of what names them, the first before the second.
    """

    def __init__(
        self,
        encoder: Encoder,
        features: Features,
        columns: Sequence[Column],
        context: Collection[str],
        *,
        candidate_id: str | None,
        candidates: int,
        list_length: int,
    ):
        given = [column for column in columns if column.name in context]
        rest = [column for column in columns if column.name not in context]
        self.context = PartEncoder(encoder, features, given, list_length)
        self.rows = PartEncoder(encoder, features, rest, list_length)
        self.split = Split(self.context.dense, self.context.sparse)
        wanted = [name for name in ("id", candidate_id) if name is not None]
        self.extra = sorted({*wanted}.difference(column.name for column in columns))
        fields = [*self.extra, *(column.name for column in rest)]
        fillers = dict.fromkeys(self.extra)
        fillers |= {c.name: c.filler for c in rest if c.kind != "number" and not c.is_list}
        self.naming = [name for name in wanted if name in fillers]
        self._names = [(fields.index(name), fillers[name]) for name in self.naming]
        self._width = len(fields)
        row_type = _struct("Row", [(name, Name, None) for name in self.extra] + _fields(rest, list_length))
        rows_type = Annotated[list[row_type], msgspec.Meta(min_length=1, max_length=candidates)]  # type: ignore[valid-type]
        context_type = _struct("Context", _fields(given, list_length))
        about = [("request_key", Name, None), ("warnings", bool, False)]
        head = [("context", context_type, msgspec.field(default_factory=context_type))]
        top_k = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)] | None
        head += [("top_k", top_k, None), *about]
        self.decode_head = _decoder("Head", head)
        self.decode_about = _decoder("About", about)
        self.decode_rank = _decoder("Rank", [*head, ("candidates", rows_type)])
        self.decode_predict = _decoder("Predict", [*about, ("rows", rows_type)])

    def row_columns(self, rows: Iterable[msgspec.Struct]) -> tuple[list[list[Any]], list[Any]]:
        """Rows as read → the values of each column of `self.rows`, and what each row is called."""
        flat = list(chain.from_iterable(map(astuple, rows)))
        columns = [flat[start :: self._width] for start in range(len(self.extra), self._width)]
        return columns, self._named(flat)

    def _named(self, flat: list[Any]) -> list[Any]:
        names: list[Any] = [None] * (len(flat) // self._width)
        for start, filler in self._names:
            own = flat[start :: self._width]
            if filler is not None:
                own = [None if name == filler else name for name in own]
            names = [mine if name is None else name for name, mine in zip(names, own, strict=True)]
            if None not in names:
                break
        return names


def _fields(columns: Iterable[Column], list_length: int) -> list[tuple[str, Any, Any]]:
    return [(column.name, column.json_type(list_length), column.filler) for column in columns]


def _decoder(name: str, fields: list[Any]) -> Any:
    return msgspec.json.Decoder(_struct(name, fields)).decode


def _struct(name: str, fields: Sequence[tuple[Any, ...]]) -> Any:
    """A type with these (name, type[, default]), which may be any texts; other names are refused."""
    plain = [(f"f{i}", *field[1:]) for i, field in enumerate(fields)]
    rename = {f"f{i}": field[0] for i, field in enumerate(fields)}
    return msgspec.defstruct(name, plain, rename=rename, forbid_unknown_fields=True, gc=False, kw_only=True)
