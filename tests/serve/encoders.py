"""Fitted encoders for tests of requests, and what they make of whole rows, as the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tesserec.dataio.config import load_yaml, parse_config
from tesserec.dataio.encoder import Encoder, EncoderFitter
from tesserec.dataio.schema import Schema
from tesserec.models.features import Features
from tesserec.serve.query import Query

_POOL = ThreadPoolExecutor(1)


def fit(folder: Path, schema: str, columns: Mapping[str, Any]) -> Encoder:
    """The encoder of a schema, without its name, fitted on columns of training rows."""
    fitter = EncoderFitter(parse_config(load_yaml("{name: t, " + schema + "}"), Schema), folder, 1 << 30)
    batch = pa.record_batch(dict(columns))
    rows = np.arange(batch.num_rows)
    fitter.update(batch, rows, rows >= 0, _POOL)
    return fitter.finish()


def features_of(encoder: Encoder) -> Features:
    """What a model of the encoder takes: its features in the reverse of the schema's order."""
    return Features(len(encoder.dense), {f.spec.name: f.num_embeddings for f in reversed(encoder.sparse)})


def whole(query: Query, encoder: Encoder) -> dict[str, list[Any]]:
    """Feature → its number, or ids, in every row: the context's repeated, as a model would be fed."""
    features = list(features_of(encoder).sparse)
    repeat = query.rows.num_rows
    found: dict[str, list[Any]] = {}
    own_dense = [i for i in range(len(encoder.dense)) if i not in query.split.dense]
    for part, places, times in (
        (query.context, query.split.dense, repeat),
        (query.rows, own_dense, 1),
    ):
        for column, place in zip(part.dense.T.tolist(), places, strict=True):
            found[encoder.dense[place].spec.name] = column * times
    own_sparse = [i for i in range(len(features)) if i not in query.split.sparse]
    for part, own, times in ((query.context, query.split.sparse, repeat), (query.rows, own_sparse, 1)):
        assert tuple(features[i] for i in own) == (part.sparse.keys if part.sparse is not None else ())
        for name, bags in part.sparse.to_dict().items() if part.sparse is not None else ():
            found[name] = bags.to_lists() * times
    return found


def by_encoder(encoder: Encoder, columns: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The same from the encoder itself, of whole Arrow columns."""
    encoded = encoder.encode(pa.record_batch(dict(columns))).to_pydict()
    single = {feature.spec.name for feature in encoder.sparse if not feature.is_list}
    return {name: [[one] for one in ids] if name in single else ids for name, ids in encoded.items()}


def texts(rows: Sequence[Any]) -> Any:
    """Texts and integers as an Arrow column of texts, as a text file would give them."""
    return pa.array([None if value is None else str(value) for value in rows], pa.string())


def stream_of(table: Any, metadata: dict[str, str]) -> bytes:
    """A table as an Arrow stream with metadata."""
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata(metadata)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    out: bytes = sink.getvalue().to_pybytes()
    return out
