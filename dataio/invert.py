"""Training columns → raw columns that an encoder makes them of: examples of what it takes.

Not the rows that were: what a hash was made of is lost, and any value stands for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tesserec.dataio.columns import MISSING, BadValue, is_text
from tesserec.dataio.dense import DenseEncoder
from tesserec.dataio.encoder import Encoder
from tesserec.dataio.lists import holds_lists
from tesserec.dataio.sparse import Ids, SparseEncoder
from tesserec.dataio.vocabulary import Vocabulary

UNKNOWN = "a value never seen"
_SAYS = ("hash", "bucketize", "dense", "vocabulary", "integer")  # the more, the later
_DIGITS, _NEAR = range(4, 18), 1e-6  # of numbers; what encoded ones may be off
_DRAWN = 64  # integers, one of which is not known


def raw_rows(encoder: Encoder, encoded: pa.RecordBatch) -> pa.RecordBatch:
    """Training columns of features → the raw columns that features read.

    Id 0 of a vocabulary becomes a value that it does not know. Of the features that read one column, that
    which can say its values best decides. They are a function of `encoded`.
    """
    rng = np.random.default_rng(0)
    numeric = {dense.spec.column for dense in encoder.dense}
    columns: dict[str, Any] = {}
    features: list[DenseEncoder | SparseEncoder] = [*encoder.dense, *encoder.sparse]
    for feature in sorted(features, key=_says):
        column = encoded.column(feature.spec.name)
        if isinstance(feature, DenseEncoder):
            values = _numbers(feature, column)
        else:
            values = _texts_or_ids(feature, column, rng)
        if feature.spec.column in numeric and is_text(values.type):
            values = _parsed(values)  # another feature reads it as a number
        columns[feature.spec.column] = values
    wanted = encoder.schema.feature_columns()
    return pa.record_batch({name: columns[name] for name in wanted})


def drawn_rows(encoder: Encoder, count: int) -> pa.RecordBatch:
    """`count` rows of training columns of features, drawn at random, as if all ids were as frequent."""
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {}
    for dense in encoder.dense:
        columns[dense.spec.name] = pa.array(rng.random(count, np.float32))
    for sparse in encoder.sparse:
        lengths = rng.integers(0, 4, count) if sparse.is_list else np.ones(count, np.int64)
        ids = pa.array(rng.integers(0, sparse.num_embeddings, int(lengths.sum())))
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        columns[sparse.spec.name] = pa.ListArray.from_arrays(offsets, ids) if sparse.is_list else ids
    return pa.record_batch(columns)


def with_gaps(encoder: Encoder, rows: pa.RecordBatch) -> pa.RecordBatch:
    """Raw rows, row i without a value in column i (mod their number), where no feature refuses that."""
    lacking = {feature.spec.column for feature in encoder.dense if feature.fill is None}
    for sparse in encoder.sparse:
        if sparse.spec.missing_policy(is_list=sparse.is_list) == "error":
            lacking.add(sparse.spec.column)
    names = [name for name in rows.schema.names if name not in lacking]
    for number, name in enumerate(names):
        gaps = pa.array(np.arange(rows.num_rows) % len(names) == number)
        place, column = rows.schema.get_field_index(name), rows.column(name)
        rows = rows.set_column(place, name, pc.if_else(gaps, pa.scalar(None, column.type), column))
    return rows


def with_unknown(encoder: Encoder, encoded: pa.RecordBatch) -> pa.RecordBatch:
    """Training columns, of which row i has id 0 in the i-th feature (mod their number) with a vocabulary."""
    single = [f.spec.name for f in encoder.sparse if f.vocabulary is not None and not f.is_list]
    for number, name in enumerate(single):
        chosen = np.arange(encoded.num_rows) % len(single) == number
        ids = np.where(chosen, 0, encoded.column(name).to_numpy())
        encoded = encoded.set_column(encoded.schema.get_field_index(name), name, pa.array(ids))
    return encoded


def encodable(encoder: Encoder, rows: pa.RecordBatch) -> pa.RecordBatch:
    """The rows that the encoder takes."""
    while rows.num_rows:
        try:
            encoder.encode(rows)
        except BadValue as error:
            rows = rows.filter(pa.array(np.arange(rows.num_rows) != error.row))
        else:
            break
    return rows


def _says(feature: DenseEncoder | SparseEncoder) -> int:
    """How much of a raw value can be told from what the feature makes of it."""
    return _SAYS.index("dense" if isinstance(feature, DenseEncoder) else feature.spec.encoding)


def _numbers(dense: DenseEncoder, encoded: Any) -> Any:
    """Numbers that become the encoded ones, nearly, in as few digits as that takes."""
    values = encoded.to_numpy().astype(np.float64)
    values = values / dense.scale + dense.shift if dense.scale else np.full(len(values), dense.shift)
    if dense.spec.transform == "log1p":
        values = np.copysign(np.expm1(np.abs(values)), values)
    for digits in _DIGITS:
        numbers = pa.array([float(f"{value:.{digits}g}") for value in values], pa.float64())
        if np.allclose(dense.encode(numbers), encoded.to_numpy(), rtol=_NEAR, atol=_NEAR):
            break
    return numbers


def _texts_or_ids(sparse: SparseEncoder, encoded: Any, rng: np.random.Generator) -> Any:
    if not holds_lists(encoded.type):
        return _values(sparse, encoded.to_numpy(), rng)
    values = _values(sparse, encoded.flatten().to_numpy(), rng)
    lengths = pc.list_value_length(encoded).to_numpy()
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    lists = pa.ListArray.from_arrays(offsets, values)
    return lists if sparse.spec.delimiter is None else pc.binary_join(lists, sparse.spec.delimiter)


def _values(sparse: SparseEncoder, ids: Ids, rng: np.random.Generator) -> Any:
    """Single values that become `ids`."""
    if sparse.vocabulary is not None:
        return _known(sparse.vocabulary, sparse.kind, ids, rng)
    if sparse.spec.encoding == "integer":
        return pa.array(ids)
    if sparse.spec.encoding == "bucketize":
        return _inside(np.array(sparse.boundaries), ids)
    drawn = rng.integers(1 << 20, 1 << 31, len(ids))
    return pa.array(drawn) if sparse.kind == "int" else pa.array([f"{number:x}" for number in drawn])


def _known(vocabulary: Vocabulary, kind: str, ids: Ids, rng: np.random.Generator) -> Any:
    rows, places, unknown = vocabulary.rows(), pa.array(ids - 1, mask=ids == 0), pa.array(ids == 0)
    if kind == "string":
        tokens = rows["token"].take(places).combine_chunks().cast(pa.string())
        return pc.if_else(unknown, UNKNOWN, tokens)
    keys = rows["key"].take(places).combine_chunks()
    keys = pc.if_else(pc.equal(keys, MISSING), pa.scalar(None, pa.int64()), keys)
    drawn = rng.integers(1 << 52, size=_DRAWN)
    return pc.if_else(unknown, int(drawn[vocabulary.find(drawn) == 0][0]), keys)


def _inside(boundaries: npt.NDArray[np.float64], ids: Ids) -> Any:
    """Numbers in these buckets; null for bucket 0."""
    lowest = boundaries[0] - 1 if len(boundaries) else 0.0
    edges = np.concatenate([[lowest], boundaries])
    return pa.array(edges[np.maximum(ids, 1) - 1], mask=ids == 0)


def _parsed(texts: Any) -> Any:
    """Texts as numbers, null for others."""
    for kind in (pa.int64(), pa.float64()):
        try:
            return texts.cast(kind)
        except pa.ArrowInvalid:
            continue
    return pa.nulls(len(texts), pa.float64())
