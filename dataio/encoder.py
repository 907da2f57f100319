"""Raw columns → training columns, the same way in preparation, prediction and serving.

An encoder is fitted once and saved as a folder:

    encoder.json            the schema, what was fitted, and a checksum of every file
    vocabulary/000.arrow    the known ids of one feature (tesserec.dataio.vocabulary)
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tesserec.dataio.atomic import atomic_folder
from tesserec.dataio.columns import Keys, Mask, column_of, keys_of, numbers, refuse
from tesserec.dataio.config import parse_config
from tesserec.dataio.dense import DenseEncoder, DenseFitter
from tesserec.dataio.schema import Label, Schema, SchemaError, Sparse
from tesserec.dataio.sparse import SparseEncoder, SparseFitter
from tesserec.dataio.vocabulary import Vocabulary

FORMAT_VERSION = 1


class EncoderError(ValueError):
    """A saved encoder that is absent, damaged, or of another version."""


@dataclass(frozen=True, eq=False)
class Encoder:
    """What was fitted, feature by feature, in the schema's order."""

    schema: Schema
    dense: tuple[DenseEncoder, ...]
    sparse: tuple[SparseEncoder, ...]

    def encode(self, rows: pa.RecordBatch, *, executor: Executor | None = None) -> pa.RecordBatch:
        """Raw rows → labels, weight, dense: float32; group: int64; sparse: int64 or list<int64>; kept.

        Labels, weight, group and kept columns come out where their raw columns are present. The threads of an
        `executor` share the columns. Raises BadValue with the row, SchemaError for a missing column.
        """
        tasks = list(self._tasks(rows))
        run = map if executor is None else executor.map
        columns = list(run(_call, tasks))
        return pa.record_batch(columns, names=[name for name, _ in tasks])

    def of_features(self) -> Encoder:
        """The same, without labels, weight, group and kept columns: for rows that are only to be scored."""
        nothing = {"labels": (), "weight": None, "group": None, "keep": ()}
        return replace(self, schema=self.schema.model_copy(update=nothing))

    def count_oov(self, encoded: pa.RecordBatch) -> dict[str, int]:
        """Feature with a vocabulary → how many of its ids are 0."""
        known = [feature.spec.name for feature in self.sparse if feature.vocabulary is not None]
        return {name: _count_zeros(encoded.column(name)) for name in known}

    def save(self, folder: str | Path) -> None:
        """Write the encoder as a folder; it appears whole or not at all."""
        with atomic_folder(folder) as target:
            (target / "vocabulary").mkdir()
            files = {}
            for number, feature in enumerate(self.sparse):
                if feature.vocabulary is not None:
                    file = files[feature.spec.name] = f"vocabulary/{number:03d}.arrow"
                    shutil.copyfile(feature.vocabulary.file, target / file)
            values = {
                "format_version": FORMAT_VERSION,
                "schema": self.schema.model_dump(mode="json", exclude_unset=True),
                "dense": {feature.spec.name: feature.state for feature in self.dense},
                "sparse": {f.spec.name: {**f.state, "file": files.get(f.spec.name)} for f in self.sparse},
                "checksums": {name: _checksum(target / name) for name in files.values()},
            }
            signed = {**values, "checksum": _digest(values)}
            (target / "encoder.json").write_text(json.dumps(signed, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Encoder:
        """The encoder of a folder. EncoderError when it is absent, damaged, or of another version."""
        folder = Path(folder)
        values = _read_manifest(folder / "encoder.json")
        for name, checksum in values["checksums"].items():
            if not (folder / name).is_file() or _checksum(folder / name) != checksum:
                raise EncoderError(f"{folder / name}: missing or damaged; prepare the data again")
        return cls.load_without_words(folder, lambda file, size: Vocabulary.open(folder / file))

    @classmethod
    def load_without_words(cls, folder: str | Path, vocabulary: Callable[[str, int], Vocabulary]) -> Encoder:
        """The same, but that `vocabulary` gives what (a file in the folder, its number of ids) would hold."""
        folder = Path(folder)
        values = _read_manifest(folder / "encoder.json")
        schema = parse_config(values["schema"], Schema, str(folder / "encoder.json"))
        dense = tuple(DenseEncoder(spec, **values["dense"][spec.name]) for spec in schema.dense)
        sparse = tuple(_load_sparse(spec, vocabulary, values["sparse"][spec.name]) for spec in schema.sparse)
        return cls(schema, dense, sparse)

    def _tasks(self, rows: pa.RecordBatch) -> Iterator[tuple[str, Callable[[], Any]]]:
        """(output column, what computes it)."""
        have, schema = set(rows.schema.names), self.schema
        missing = [column for column in schema.feature_columns() if column not in have]
        if missing:
            raise SchemaError(f"no column {missing[0]!r} among {', '.join(rows.schema.names)}")
        for label in schema.labels:
            if label.column in have:
                yield label.name, partial(_label, column_of(rows, label.column), label)
        if schema.weight is not None and schema.weight in have:
            yield "weight", partial(_weight, column_of(rows, schema.weight), schema.weight)
        if schema.group is not None and schema.group in have:
            yield "group", partial(_group, column_of(rows, schema.group), schema.group)
        features: tuple[DenseEncoder | SparseEncoder, ...] = (*self.dense, *self.sparse)
        for feature in features:
            yield feature.spec.name, partial(feature.encode, column_of(rows, feature.spec.column))
        for keep in schema.keep:
            if keep.column in have:
                yield keep.name, partial(column_of, rows, keep.column)


def _call(task: tuple[str, Callable[[], Any]]) -> Any:
    return task[1]()


def _count_zeros(ids: Any) -> int:
    flat = ids.flatten() if pa.types.is_list(ids.type) else ids
    return int(np.count_nonzero(flat.to_numpy() == 0))


def _label(column: Any, label: Label) -> Any:
    values = numbers(column, label.column)
    refuse(np.isnan(values), column, label.column, "a label")
    if label.threshold is not None:
        values = (values >= label.threshold).astype(np.float64)
    wanted = "a label of 0 or 1; state a `threshold` to make one"
    refuse((values != 0) & (values != 1), column, label.column, wanted)
    return pa.array(values.astype(np.float32))


def _weight(column: Any, name: str) -> Any:
    values = numbers(column, name)
    refuse(~(values >= 0), column, name, "a weight of 0 or more")
    return pa.array(values.astype(np.float32))


def _group(column: Any, name: str) -> Any:
    """Integers themselves; texts by their XXH64: a group key is only ever compared."""
    keys, missing = keys_of(column, "int" if pa.types.is_integer(column.type) else "string", name)
    refuse(missing, column, name, "a group")
    return pa.array(keys)


class EncoderFitter:
    """Streams raw batches, then makes the Encoder. Vocabularies go into `folder` and stay there.

    Bounded: never more than `memory_bytes` of counting tables, 12 bytes a slot, and one batch.
    """

    def __init__(self, schema: Schema, folder: Path, memory_bytes: int) -> None:
        self._schema, self._memory_bytes = schema, memory_bytes
        self._dense = [DenseFitter(spec) for spec in schema.dense]
        self._sparse = [SparseFitter(spec, folder / f"{i:03d}.arrow") for i, spec in enumerate(schema.sparse)]

    def update(self, batch: pa.RecordBatch, rows: Keys, train: Mask, executor: Executor) -> None:
        """See one batch; statistics are taken of the rows where `train`."""
        fitters: list[DenseFitter | SparseFitter] = [*self._dense, *self._sparse]
        list(executor.map(lambda f: f.update(column_of(batch, f.spec.column), rows, train), fitters))
        held = [fitter.nbytes for fitter in self._sparse]
        if sum(held) > self._memory_bytes:
            name = self._sparse[int(np.argmax(held))].spec.column
            raise SchemaError(
                f"column {name!r} has too many distinct values: counting takes {max(held) >> 20} MiB and all "
                f"columns {sum(held) >> 20} where {self._memory_bytes >> 20} are allowed; give it "
                f"`encoding: hash` with `buckets`, or allow more memory"
            )

    def finish(self) -> Encoder:
        """The fitted encoder."""
        dense = tuple(fitter.finish() for fitter in self._dense)
        return Encoder(self._schema, dense, tuple(fitter.finish() for fitter in self._sparse))


def _load_sparse(
    spec: Sparse, vocabulary: Callable[[str, int], Vocabulary], saved: dict[str, Any]
) -> SparseEncoder:
    file, size = saved["file"], saved["num_embeddings"]
    known = None if file is None else vocabulary(file, size - 1)
    return SparseEncoder(spec, saved["is_list"], saved["kind"], size, known, tuple(saved["boundaries"]))


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
        checksum = values.pop("checksum")
    except (FileNotFoundError, NotADirectoryError):
        raise EncoderError(f"{path}: no such file; `tesserec data prepare` makes encoders") from None
    except (ValueError, KeyError, AttributeError):
        raise EncoderError(f"{path}: damaged; prepare the data again") from None
    if values.get("format_version") != FORMAT_VERSION:
        got = values.get("format_version")
        raise EncoderError(f"{path}: format version {got}; this release reads {FORMAT_VERSION}")
    if checksum != _digest(values):
        raise EncoderError(f"{path}: damaged or edited; prepare the data again")
    return values


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
