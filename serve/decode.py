"""JSON bodies → queries.

A request to rank gives each raw column once: in its context or in its candidates. Which column is where makes
a layout, with a JSON reader of its own. A service meets few layouts, and mostly the same one twice, so each
body is first read by the last layout. What that layout expects in the context and nobody gives is missing
there: clients which leave out empty values do not make a layout for each choice.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from msgspec.structs import astuple

from tesserec.dataio.columns import BadValue
from tesserec.dataio.encoder import Encoder
from tesserec.dataio.schema import SchemaError
from tesserec.models.features import Features
from tesserec.serve import bulk
from tesserec.serve.columns import columns_of
from tesserec.serve.encode import Encoded, ListTooLong, PartEncoder
from tesserec.serve.kernels import encode as kernels
from tesserec.serve.layout import Layout
from tesserec.serve.problems import BadBody, Problem, TooLarge, Unprocessable
from tesserec.serve.query import Part, Query, Split
from tesserec.serve.remarks import remarks

_LAYOUTS = 32  # kept; each holds a few types and encoders' places
_SMALL = 1 << 16  # bytes of a body whose objects take no more than a few megabytes


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a request may be. candidates: or rows to predict; list_length: of one list of ids."""

    body_bytes: int = 4 << 20
    candidates: int = 10_000
    list_length: int = 1_000


class _Envelope(msgspec.Struct):
    """Just enough of a request to see which columns its context has."""

    context: dict[str, msgspec.Raw] = {}


class _Keyed(msgspec.Struct):
    request_key: str | int | None = None


def request_key(body: bytes) -> str | None:
    """The `request_key` of a JSON body; None without one, or when the body cannot be read.

    What is wrong with a body is for its decoder to say, and that comes after a version is chosen by the key.
    """
    try:
        key = msgspec.json.decode(body, type=_Keyed).request_key
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return None if key is None else str(key)


class Decoder:
    """Reads requests to one model.

    candidate_id: the raw column, of the model or not, that names candidates which have no `id`.
    """

    def __init__(
        self,
        encoder: Encoder,
        features: Features,
        *,
        candidate_id: str | None = None,
        limits: Limits | None = None,
    ):
        self.columns = columns_of(encoder, features)
        self.limits = limits or Limits()
        self._encoder, self._features, self._candidate_id = encoder, features, candidate_id
        self._layouts: dict[frozenset[str], Layout] = {}
        self._flat = self._latest = self._layout(())
        self._nothing = self._flat.context.encode([], 1).part
        self._totals = np.zeros((len(encoder.dense) + len(features.sparse), 2), np.int64)

    @property
    def unknown(self) -> dict[str, int]:
        """Feature with a vocabulary → how many of its ids so far were not in it."""
        known = {f.spec.name for f in self._encoder.sparse if f.vocabulary is not None}
        return {name: count for name, count in self._count(0) if name in known}

    @property
    def missing(self) -> dict[str, int]:
        """Feature → how many of its values so far were missing; one of a context counts once a request."""
        return dict(self._count(1))

    def rank(self, body: bytes) -> Query:
        """{context?, candidates, top_k?, request_key?, warnings?} → the query.

        Raises BadBody when it is no JSON, TooLarge, and Unprocessable, whose `field` is the value's path.
        """
        self._check_size(body)
        with _reading():
            layout, request = self._read(body)
        context, top_k, _, warnings, candidates = astuple(request)
        said: list[str] | None = [] if warnings else None
        shared = self._encode(layout.context, _one_row(context), 1, "context", said)
        columns, names = layout.row_columns(candidates)
        rows = self._encode(layout.rows, columns, len(names), "candidates[{}]", said)
        return Query(layout.split, shared, rows, names, top_k, tuple(said or ()))

    def predict(self, body: bytes) -> Query:
        """{rows, request_key?, warnings?} → the query, in which nothing is shared. Raises as `rank` does."""
        self._check_size(body)
        layout = self._flat
        with _reading():
            _, warnings, given = astuple(layout.decode_predict(body))
        said: list[str] | None = [] if warnings else None
        columns, names = layout.row_columns(given)
        rows = self._encode(layout.rows, columns, len(names), "rows[{}]", said)
        return Query(layout.split, self._nothing, rows, names, None, tuple(said or ()))

    def rank_arrow(self, body: bytes) -> Query:
        """The query of an Arrow stream of candidates (tesserec.serve.bulk). Raises as `rank` does."""
        self._check_bytes(body)
        table, head = bulk.read_stream(body, self.limits.candidates)
        with _reading():
            layout = self._layout(msgspec.json.decode(head, type=_Envelope).context)
            context, top_k, _, warnings = astuple(layout.decode_head(head))
        said: list[str] | None = [] if warnings else None
        shared = self._encode(layout.context, _one_row(context), 1, "context", said)
        rows = self._encode_table(layout, table, "candidates[{}]", said)
        names = bulk.names_of_rows(table, layout.naming, self.limits.body_bytes)
        return Query(layout.split, shared, rows, names, top_k, tuple(said or ()))

    def predict_arrow(self, body: bytes) -> Query:
        """The query of an Arrow stream of rows, in which nothing is shared. Raises as `rank` does."""
        self._check_bytes(body)
        table, head = bulk.read_stream(body, self.limits.candidates)
        with _reading():
            _, warnings = astuple(self._flat.decode_about(head))
        said: list[str] | None = [] if warnings else None
        rows = self._encode_table(self._flat, table, "rows[{}]", said)
        names = bulk.names_of_rows(table, self._flat.naming, self.limits.body_bytes)
        return Query(self._flat.split, self._nothing, rows, names, None, tuple(said or ()))

    def split_of(self, context: Collection[str]) -> Split:
        """How the model's columns are shared out when contexts have these raw columns."""
        return self._layout(context).split

    def json_schema(self) -> dict[str, Any]:
        """The JSON schema of a row: of a context, a candidate or a row to predict, each with part of it."""
        readers: dict[str, list[Any]] = {column.name: [] for column in self.columns}
        for feature in self._flat.rows.features:
            readers[feature.spec.column].append(feature)
        properties = {column.name: column.json_schema(readers[column.name]) for column in self.columns}
        return {"type": "object", "properties": properties, "additionalProperties": False}

    def _count(self, column: int) -> Iterator[tuple[str, int]]:
        names = [feature.spec.name for feature in self._flat.rows.features]
        return zip(names, self._totals[:, column].tolist(), strict=True)

    def _check_bytes(self, body: bytes) -> None:
        if len(body) > self.limits.body_bytes:
            raise TooLarge(f"the body has {len(body)} bytes, wanted at most {self.limits.body_bytes}")

    def _check_size(self, body: bytes) -> None:
        """Objects are many times larger than their JSON: refuse too many before they are made."""
        self._check_bytes(body)
        most = self.limits.candidates + 2  # the context, and what is around all
        if len(body) <= _SMALL or body.count(b"{") <= most:
            return
        if kernels.count_objects(np.frombuffer(body, np.uint8)) > most:  # not counting those in texts
            raise TooLarge(f"the body has more than {self.limits.candidates} candidates or rows")

    def _read(self, body: bytes) -> tuple[Layout, Any]:
        layout = self._latest
        try:
            return layout, layout.decode_rank(body)
        except msgspec.ValidationError:
            names = msgspec.json.decode(body, type=_Envelope).context
        self._latest = layout = self._layout(names)
        return layout, layout.decode_rank(body)

    def _layout(self, context: Collection[str]) -> Layout:
        """The layout with these columns in the context; made at need, the least recently wanted dropped."""
        key = frozenset(column.name for column in self.columns if column.name in context)
        layout = self._layouts.pop(key, None)
        if layout is None:
            layout = Layout(
                self._encoder,
                self._features,
                self.columns,
                key,
                candidate_id=self._candidate_id,
                candidates=self.limits.candidates,
                list_length=self.limits.list_length,
            )
        self._layouts[key] = layout
        if len(self._layouts) > _LAYOUTS:
            self._layouts.pop(next(iter(self._layouts)), None)
        return layout

    def _encode(
        self, part: PartEncoder, values: Sequence[Any], num_rows: int, place: str, said: list[str] | None
    ) -> Part:
        """Columns of Python values, encoded and counted. said: takes remarks, if they are wanted."""
        try:
            encoded = part.encode(values, num_rows)
        except BadValue as error:
            raise _placed(error, place) from None
        return self._counted(part, encoded, values, place, said)

    def _encode_table(self, layout: Layout, table: Any, place: str, said: list[str] | None) -> Part:
        part, limits = layout.rows, self.limits
        names = {column.name for column in part.columns}
        bulk.refuse_others(table, names.union(layout.extra))
        columns = bulk.columns_of_rows(table, part.columns, limits.body_bytes, limits.list_length)
        try:
            encoded = part.encode_arrow(columns, table.num_rows)
        except BadValue as error:
            raise _placed(error, place) from None
        except (SchemaError, pa.ArrowException) as error:
            raise Unprocessable(str(error), field="") from None
        return self._counted(part, encoded, list(columns.values()), place, said)

    def _counted(
        self, part: PartEncoder, encoded: Encoded, values: Sequence[Any], place: str, said: list[str] | None
    ) -> Part:
        kernels.count_seen(encoded.seen, part.places, self._totals)
        if said is not None:
            said += remarks(part, encoded, values, place)
        return encoded.part


def _one_row(context: msgspec.Struct) -> list[list[Any]]:
    return [[value] for value in astuple(context)]


_MESSAGE = re.compile(r"(.*?)(?: - at `\$\.?(.*)`)?", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)


@contextmanager
def _reading() -> Iterator[None]:
    """What msgspec finds wrong with a body, as problems."""
    try:
        yield
    except msgspec.ValidationError as error:
        raise _refused(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadBody(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise BadBody("the body is nested too deeply") from None


def _refused(message: str) -> Problem:
    found = _MESSAGE.fullmatch(message)
    assert found is not None
    what, place = found[1], found[2] or ""
    unknown = _UNKNOWN.fullmatch(what)
    if unknown is not None:
        place = f"{place}.{unknown[1]}" if place else unknown[1]
        what = "no such field, or one that the context has already"
    if "of length <=" in what:
        return TooLarge(f"{place}: {what}", field=place)
    return Unprocessable(f"{place or 'the body'}: {what}", field=place)


def _placed(error: BadValue, place: str) -> Problem:
    """What an encoder refuses, as a problem; `place` is the path of row {}."""
    field = f"{place.format(error.row)}.{error.column}"
    kind = TooLarge if isinstance(error, ListTooLong) else Unprocessable
    return kind(f"{field}: got {error.value!r}, wanted {error.wanted}", field=field)
