"""Engine: requests in, probabilities out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.compiler.capture import Uncapturable
from tesserec.autograd.module import Module
from tesserec.autograd.ops.elementwise import expit
from tesserec.autograd.tensor import no_grad
from tesserec.embeddings.jagged import JaggedTensor, KeyedJaggedTensor
from tesserec.models.features import Features
from tesserec.serve.lowering import lowered
from tesserec.serve.program import Program
from tesserec.serve.query import Part, Query, Split

Array = npt.NDArray[Any]

NOTHING = Split((), ())  # is shared
KEPT = 8  # programs, of the splits that come first; each has memory of its own
WARM_UP = (1,), (2,), (1, 3)  # candidates of the requests of one batch


class Engine:
    """Scores requests with a model, in evaluation mode. One thread at a time.

    What depends on a request's context alone is computed once per request, by a program made for the split;
    `why_eager` says why there is none for this model, which then runs as it is. max_rows: candidates, or
    requests, that are computed at a time; more go through in pieces. After a change of parameters or buffers
    call `refresh`; rows of tables may change at any time.
    """

    def __init__(self, model: Module, features: Features, *, max_rows: int = 240):
        self.model, self.features, self.max_rows = model.eval(), features, max_rows
        self.programs: dict[Split, Program] = {}
        self.why_eager: str | None = None
        self._prepare(NOTHING)

    def score(self, queries: Sequence[Query]) -> npt.NDArray[np.float32]:
        """(ΣK,) probabilities, query after query. All queries have one split; ids are inside their tables."""
        out = np.empty(sum(query.rows.num_rows for query in queries), np.float32)
        if not len(out):
            return out
        program, at = self._program(queries[0].split), 0
        if program is None:
            return self._scored_as_rows(queries)
        for part in _at_most(self.max_rows, queries):
            rows = sum(query.rows.num_rows for query in part)
            program.run(part, out[at : at + rows])
            at += rows
        return out

    def refresh(self) -> None:
        """Take up parameters and buffers that have changed."""
        for program in self.programs.values():
            program.refresh()

    def warm_up(self, splits: Sequence[Split]) -> None:
        """Make ready for requests of these splits: all that is compiled on first use."""
        for split in (*splits, NOTHING):
            for counts in WARM_UP:
                self.score([_made_up(split, self.features, rows) for rows in counts])

    def _program(self, split: Split) -> Program | None:
        """The program of a split; None if there is none."""
        if split not in self.programs and len(self.programs) < KEPT:
            self._prepare(split)
        return self.programs.get(split)

    def _prepare(self, split: Split) -> None:
        if self.why_eager is None:
            try:
                self.programs[split] = lowered(self.model, self.features, split, self.max_rows)
            except Uncapturable as error:
                self.why_eager = str(error)

    def _scored_as_rows(self, queries: Sequence[Query]) -> npt.NDArray[np.float32]:
        """The same, with contexts repeated for every candidate."""
        rows = materialise(queries, self.features)
        if self.why_eager is None:
            query = Query(NOTHING, Part(np.empty((1, 0), np.float32), None), rows, [])
            return self.score([query])
        with no_grad():
            return expit(self.model(rows.dense, rows.sparse).data)


def materialise(queries: Sequence[Query], features: Features) -> Part:
    """All candidates as independent rows of all columns, in the model's order; the queries have one split."""
    split, counts = queries[0].split, [query.rows.num_rows for query in queries]
    segments = np.repeat(np.arange(len(queries)), counts)
    dense = np.empty((len(segments), features.num_dense), np.float32)
    dense[:, list(split.dense)] = np.concatenate([query.context.dense for query in queries])[segments]
    own = np.delete(np.arange(features.num_dense), split.dense)
    dense[:, own] = np.concatenate([query.rows.dense for query in queries])
    shared = _joined([query.context.sparse for query in queries])
    bags = shared | _joined([query.rows.sparse for query in queries])
    inverse = dict.fromkeys(shared, segments)
    sparse = KeyedJaggedTensor.from_dict({key: bags[key] for key in features.sparse}, inverse)
    return Part(dense, sparse.expand())


def _joined(parts: Sequence[KeyedJaggedTensor | None]) -> dict[str, JaggedTensor]:
    """{key: the bags of all parts}."""
    held = [part.expand() for part in parts if part is not None and part.keys]
    return KeyedJaggedTensor.concat_batches(held).to_dict() if held else {}


def _at_most(count: int, queries: Sequence[Query]) -> Iterator[Sequence[Query]]:
    return (queries[lo : lo + count] for lo in range(0, len(queries), count))


def _made_up(split: Split, features: Features, rows: int) -> Query:
    """A query with id 0 and number 0 everywhere."""
    names = list(features.sparse)
    context = [names[i] for i in split.sparse]
    own = [name for name in names if name not in context]
    dense = features.num_dense - len(split.dense)
    return Query(split, _zeros(len(split.dense), context, 1), _zeros(dense, own, rows), [])


def _zeros(dense: int, keys: Sequence[str], rows: int) -> Part:
    ids = {key: np.zeros(rows, np.int64) for key in keys}
    return Part(np.zeros((rows, dense), np.float32), KeyedJaggedTensor.from_dense(ids) if keys else None)
