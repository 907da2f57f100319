"""How long the service's JSON takes: a body of 100 candidates to arrays of ids, and scores to the answer.

    taskset -c 1 python -m benchmarks.serve_decode

13 numbers and 20 ids in the context, 6 ids in each candidate; vocabularies of a million ids each. One thread.
Beside it, what a good engineer writes without the encoder's kernels: orjson to dicts, then a column each for
the fitted encoder. One JSON line per kind of ids; milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from benchmarks.harness import Report, arguments, milliseconds, take_turns
from tesserec.dataio.columns import keys_of
from tesserec.dataio.dense import DenseEncoder
from tesserec.dataio.encoder import Encoder
from tesserec.dataio.schema import Dense, Schema, Sparse
from tesserec.dataio.sparse import SparseEncoder
from tesserec.dataio.vocabulary import Vocabulary
from tesserec.models.features import Features
from tesserec.serve.answers import predict_answer, rank_answer
from tesserec.serve.decode import Decoder

NUM_DENSE, NUM_CONTEXT, NUM_OWN, CANDIDATES, KNOWN = 13, 20, 6, 100, 1_000_000
CALLS = 300
KINDS = ("integer", "int vocabulary", "text vocabulary", "text hash")


def texts(numbers: Iterable[int]) -> list[str]:
    """As Criteo's ids look."""
    return [f"{number * 2654435761 % 2**32:08x}" for number in numbers]


def sparse_encoder(name: str, kind: str, known: dict[str, Vocabulary]) -> SparseEncoder:
    """An encoder of single ids."""
    what, _, encoding = kind.rpartition(" ")
    options: dict[str, Any] = {"hash": {"buckets": KNOWN}, "integer": {"size": KNOWN}}.get(encoding, {})
    spec = Sparse(column=name, name=name, encoding=encoding, **options)  # type: ignore[arg-type]
    return SparseEncoder(spec, False, "string" if what == "text" else "int", KNOWN + 1, known.get(kind))


def vocabularies() -> dict[str, Vocabulary]:
    """A million known ids: one table for all features, so that making them takes seconds."""
    ids = np.arange(KNOWN)
    hashed = keys_of(pa.array(texts(ids.tolist())), "string", "ids")[0]
    file = Path("unused")
    return {
        "int vocabulary": Vocabulary.from_keys(ids, file),
        "text vocabulary": Vocabulary.from_keys(hashed, file),
    }


def encoder_of(kind: str, known: dict[str, Vocabulary]) -> Encoder:
    """13 dense features and 26 sparse ones."""
    dense = tuple(Dense(column=f"I{i}", name=f"I{i}", fill=0, transform="log1p") for i in range(NUM_DENSE))
    sparse = tuple(sparse_encoder(f"C{i}", kind, known) for i in range(NUM_CONTEXT + NUM_OWN))
    schema = Schema(name="bench", dense=dense, sparse=tuple(feature.spec for feature in sparse))
    return Encoder(schema, tuple(DenseEncoder(spec, 0.0) for spec in dense), sparse)


def body_of(kind: str, rng: np.random.Generator) -> bytes:
    """A request; nine tenths of the ids are known."""
    numbers = rng.integers(0, KNOWN if kind == "integer" else KNOWN * 10 // 9, (CANDIDATES + 1, 26)).tolist()
    rows: list[Any] = [texts(row) for row in numbers] if kind.startswith("text") else numbers
    names = [f"C{i}" for i in range(NUM_CONTEXT + NUM_OWN)]
    context = {f"I{i}": float(value) for i, value in enumerate(rng.integers(0, 1000, NUM_DENSE))}
    context |= dict(zip(names[:NUM_CONTEXT], rows[-1], strict=False))
    candidates = [dict(zip(names[NUM_CONTEXT:], row, strict=False)) for row in rows[:-1]]
    named = [{"id": i, **candidate} for i, candidate in enumerate(candidates)]
    return orjson.dumps({"context": context, "candidates": named})


def by_columns(encoder: Encoder, body: bytes) -> list[Any]:
    """The plain way: a dict per row, an Arrow column per feature, the fitted encoder for each."""
    request = orjson.loads(body)
    encoded = []
    features: list[DenseEncoder | SparseEncoder] = [*encoder.dense, *encoder.sparse]
    for feature in features:
        name = feature.spec.column
        rows = [request["context"]] if name in request["context"] else request["candidates"]
        encoded.append(feature.encode(pa.array([row.get(name) for row in rows])))
    return encoded


def timed(call: Callable[[], Any]) -> Callable[[], float]:
    """A turn: seconds of CALLS calls."""

    def turn() -> float:
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        return time.perf_counter() - start

    return turn


def main() -> None:
    args = arguments(__doc__, kinds=KINDS)
    rng = np.random.default_rng(0)
    known = vocabularies()
    with Report("serve_decode") as report:
        for kind in args.kinds:
            encoder = encoder_of(kind, known)
            features = Features(NUM_DENSE, {f.spec.name: f.num_embeddings for f in encoder.sparse})
            decoder, body = Decoder(encoder, features), body_of(kind, rng)
            query, scores = decoder.rank(body), rng.random(CANDIDATES, np.float32)
            runs = {
                "decode": timed(partial(decoder.rank, body)),
                "by columns": timed(partial(by_columns, encoder, body)),
                "answer": timed(partial(rank_answer, query, scores, model="m", version="1")),
                "scores only": timed(partial(predict_answer, query, scores, model="m", version="1")),
            }
            seconds = take_turns(runs, args.turns)
            report.add(
                {"ids": kind, "bytes": len(body)} | {k: milliseconds(s, CALLS) for k, s in seconds.items()}
            )


if __name__ == "__main__":
    main()
