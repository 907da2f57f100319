"""One version of a model in memory: everything that it takes to answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import orjson

from tesserec.embeddings.collection import named_collections
from tesserec.serve.artefact import Artefact
from tesserec.serve.decode import Decoder, Limits
from tesserec.serve.deltas import Follower
from tesserec.serve.engine import Engine
from tesserec.serve.golden import check_scores
from tesserec.serve.mapped import populate
from tesserec.serve.places import Place
from tesserec.serve.query import Query

Scores = npt.NDArray[np.float32]

_ANY = 1 << 40
_UNLIMITED = Limits(body_bytes=_ANY, candidates=_ANY, list_length=_ANY)


class Version:
    """A loaded version. Who holds one can score with it, also after it was unloaded."""

    def __init__(self, place: Place, artefact: Artefact, *, limits: Limits, max_rows: int):
        """place: under which names it is served. limits, max_rows: of its decoder and its engine.

        ArtefactError.
        """
        self.model, self.number, self.artefact = place.model, place.number, artefact
        self.lock = threading.Lock()  # held while scoring, and while a delta is applied
        self._model = model = artefact.model()
        self.decoder = _decoder(artefact, limits)
        self.engine = Engine(model, artefact.model_spec.features, max_rows=max_rows)
        self.follower = Follower(artefact.path, model, self.engine, self.lock)

    @property
    def nbytes(self) -> int:
        """Bytes of tables and id maps."""
        return self.artefact.nbytes

    def score(self, queries: Sequence[Query]) -> Scores:
        """(ΣK,) probabilities in the order of the queries, which all have one split."""
        with self.lock:
            return self.engine.score(queries)

    def warm_up(self) -> None:
        """Prove that it answers as the trainer did, which also compiles; then catch up on deltas.

        The golden rows are scored as requests, to predict and to rank. ArtefactError: which row, by how much.
        """
        rows, wanted = self.artefact.golden()
        self.decoder.split_of(set(rows.schema.names) - set(self.artefact.manifest.candidate_columns))
        for queries in golden_queries(self.artefact, rows.to_pylist()):
            self.engine.warm_up([queries[0].split])
            check_scores(self.artefact.path, self.score(queries), wanted)
        self.follower.poll()

    def verify(self, stop: Callable[[], bool]) -> None:
        """Bring all tables into memory, and check them. ArtefactError. `stop` ends it between blocks."""
        for _, collection in named_collections(self._model):
            for pool in collection.pools:
                populate(pool.data, stop)
        self.artefact.verify_tables(stop=stop)


def golden_queries(artefact: Artefact, rows: Sequence[dict[str, object]]) -> list[list[Query]]:
    """The same rows as one request to predict, and as requests to rank one candidate each."""
    decoder = _decoder(artefact, _UNLIMITED)  # of its own: golden rows are not counted as traffic
    own = artefact.manifest.candidate_columns
    asked = ({"context": _without(row, own), "candidates": [{c: row[c] for c in own}]} for row in rows)
    ranked = [decoder.rank(orjson.dumps(body)) for body in asked]
    return [[decoder.predict(orjson.dumps({"rows": rows}))], ranked]


def _decoder(artefact: Artefact, limits: Limits) -> Decoder:
    features, candidate_id = artefact.model_spec.features, artefact.candidate_id
    return Decoder(artefact.encoder, features, candidate_id=candidate_id, limits=limits)


def _without(row: dict[str, object], columns: Sequence[str]) -> dict[str, object]:
    return {column: value for column, value in row.items() if column not in columns}
