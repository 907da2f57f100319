"""An artefact: all that ranking with a model needs, in one folder, every byte of it checked.

    manifest.json           what the model is, and the size and checksums of every file; written last
    encoder/                raw values → ids and numbers, by the code that prepared the training data
    id_maps/*.slots         known ids → numbers; mapped into memory as they are
    tables/*.npy            the tables of one width and type, stacked; mapped into memory as they are
    dense.safetensors       all other weights
    golden.arrow            raw rows, and the scores that the trainer gives them

It comes into being whole, and never changes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from safetensors.numpy import load, save

from tesserec.autograd.module import Module, StateError, copy_state
from tesserec.dataio.atomic import atomic_folder
from tesserec.dataio.encoder import Encoder, EncoderError
from tesserec.embeddings.allocation import planning
from tesserec.embeddings.collection import dense_state, named_collections
from tesserec.embeddings.pool import Pool, Rows
from tesserec.embeddings.quantize import BITS, QuantizedPool, with_pools
from tesserec.models.features import ModelError
from tesserec.serve import golden
from tesserec.serve.id_maps import open_encoder, write_id_maps
from tesserec.serve.manifest import (
    NO_SCORES,
    ArtefactError,
    FileSum,
    Histogram,
    Manifest,
    PoolFile,
    TableRows,
    check_file,
    check_sizes,
    file_sum,
    read_checked,
    read_manifest,
    write_manifest,
)
from tesserec.serve.mapped import map_rows, verify_rows, write_rows
from tesserec.serve.spec import ModelSpec

__all__ = ["Artefact", "ArtefactError", "Content", "Histogram", "ModelSpec", "Rows", "write_artefact"]

_DENSE, _ENCODER, _TABLES = "dense.safetensors", "encoder/encoder.json", "tables"
_SHOWN = 3  # candidates of an example


def data_of(pool: Pool) -> Rows:
    """The rows of a pool as they are stored."""
    return pool.data


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """What an artefact is made of.

    model: as trained, its tables stored as they are to be served. encoder: the folder of a saved one.
    golden: raw rows, the columns that features read. scores: (n,) the trainer's probabilities for them; None
    for a model that comes from no trainer: what the artefact itself gives. candidate_id: the raw column that
    names a candidate; candidate_columns: those that differ between candidates, for examples. deviation: how
    far golden scores are from those of the model as trained, at most. rows: where the rows of a pool come
    from, if its data are not there: (R, D) of its shape and type, or what gives them when cut by rows.
    """

    name: str
    spec: ModelSpec
    model: Module
    encoder: Path
    golden: pa.RecordBatch
    scores: npt.NDArray[np.float32] | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    histogram: Histogram = NO_SCORES
    candidate_id: str | None = None
    candidate_columns: tuple[str, ...] = ()
    deviation: float = 0.0
    rows: Callable[[Pool], Rows] = data_of


@dataclass(frozen=True, slots=True, eq=False)
class Artefact:
    """An artefact on disk, whose manifest, encoder and dense weights are sound; tables are not read yet.

    checksum: of the manifest, and so of everything. encoder: of features alone; requests have no labels.
    """

    path: Path
    checksum: str
    manifest: Manifest
    model_spec: ModelSpec
    encoder: Encoder
    dense: Mapping[str, npt.NDArray[Any]]

    @classmethod
    def open(cls, path: str | Path) -> Artefact:
        """The artefact at `path`. ArtefactError: which file, what was got and what wanted."""
        path = Path(path)
        manifest, checksum = read_manifest(path)
        check_sizes(path, {name: file.size for name, file in manifest.files.items()})
        check_sizes(path, {pool.file: pool.size for pool in manifest.pools})
        dense = load(read_checked(path / _DENSE, manifest.files[_DENSE]))
        check_file(path / _ENCODER, manifest.files[_ENCODER])
        try:
            encoder = open_encoder(path, manifest.files)
        except EncoderError as error:
            raise ArtefactError(str(error)) from None
        artefact = cls(path, checksum, manifest, ModelSpec.from_json(manifest.model), encoder, dense)
        artefact._check_encoder()
        return artefact

    @property
    def name(self) -> str:
        """What the model was called at its export."""
        return self.manifest.name

    @property
    def created(self) -> str:
        """When, ISO 8601."""
        return self.manifest.created

    @property
    def data_type(self) -> str:
        """How rows are stored: "float32", "float16", "int8", …"""
        return self.manifest.data_type

    @property
    def metrics(self) -> dict[str, Any]:
        """Of the model, by its trainer."""
        return self.manifest.metrics

    @property
    def candidate_id(self) -> str | None:
        """The raw column that names a candidate."""
        return self.manifest.candidate_id

    @property
    def score_histogram(self) -> Histogram:
        """Of the scores of the validation split."""
        return self.manifest.histogram

    @property
    def table_bytes(self) -> int:
        """Bytes of all rows."""
        return sum(pool.nbytes for pool in self.manifest.pools)

    @property
    def nbytes(self) -> int:
        """Bytes of tables and id maps in memory."""
        maps = (f.vocabulary.table.nbytes for f in self.encoder.sparse if f.vocabulary is not None)
        return self.table_bytes + sum(maps)

    def model(self) -> Module:
        """The model, in evaluation mode, over tables that are mapped: nothing of them is read yet.

        Rows can be written to; pages that are get a copy of their own in this process. ArtefactError.
        """
        return _mapped_model(self.path, self.model_spec, self.manifest.pools, self.dense)

    def golden(self) -> tuple[pa.RecordBatch, npt.NDArray[np.float32]]:
        """(raw rows, (n,) the trainer's probabilities for them). ArtefactError."""
        return golden.read_golden(read_checked(self.path / golden.FILE, self.manifest.files[golden.FILE]))

    def input_example(self) -> dict[str, Any]:
        """{"context": {column: value, …}, "candidates": [{…}, …]}, raw values of golden rows."""
        rows = self.golden()[0].slice(0, _SHOWN).to_pylist()
        own = self.manifest.candidate_columns or tuple(rows[0])
        context = {column: value for column, value in rows[0].items() if column not in own}
        return {"context": context, "candidates": [{column: row[column] for column in own} for row in rows]}

    def verify_tables(
        self,
        each: Callable[[int], None] = lambda nbytes: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Read all tables, and words of vocabularies. ArtefactError for what is not as it was written.

        each: called with the bytes of every block of a table that was read; before one, `stop` ends it.
        """
        for pool in self.manifest.pools:
            verify_rows(self.path / pool.file, pool, each, stop)
        for name, file in self.manifest.files.items():
            if not stop():
                check_file(self.path / name, file)

    def _check_encoder(self) -> None:
        """ArtefactError unless the encoder gives what the model reads, and ids inside its tables."""
        features = self.model_spec.features
        got = len(self.encoder.dense), {f.spec.name: f.num_embeddings for f in self.encoder.sparse}
        if got != (features.num_dense, dict(features.sparse)) or list(got[1]) != list(features.sparse):
            raise ArtefactError(
                f"{self.path / 'encoder'}: gives {got[0]} dense columns and ids {got[1]}, wanted "
                f"{features.num_dense} and {dict(features.sparse)}: it is not the encoder of this model"
            )


def write_artefact(path: str | Path, content: Content) -> None:
    """Write the artefact folder `path`, durably; it appears when it has proved itself, or not at all.

    Tables are written a block at a time: nothing holds a copy. ArtefactError when `path` exists, or when what
    was written does not give the golden rows their scores.
    """
    path = Path(path)
    if path.exists():
        raise ArtefactError(f"{path}: exists; versions never change: choose another path, or remove it")
    with atomic_folder(path) as folder:
        shutil.copytree(content.encoder, folder / "encoder")
        write_id_maps(folder)
        (folder / _TABLES).mkdir()
        pools = tuple(_write_pools(folder, content))
        dense = {name: np.ascontiguousarray(array) for name, array in dense_state(content.model).items()}
        (folder / _DENSE).write_bytes(save(dense))
        sums, model = _sums_of(folder), _mapped_model(folder, content.spec, pools, dense)
        scores = golden.score_rows(model, open_encoder(folder, sums), content.golden)
        if content.scores is not None:
            golden.check_scores(path, scores, content.scores)
            scores = content.scores
        golden.write_golden(folder, content.golden, scores)
        sums[golden.FILE] = file_sum(folder / golden.FILE)
        write_manifest(folder, _manifest(content, pools, sums))


def _write_pools(folder: Path, content: Content) -> Iterator[PoolFile]:
    for prefix, pool in _named_pools(content.model):
        rows, width = content.rows(pool), pool.tables[0].config.embedding_dim
        if (rows.shape, rows.dtype) != (pool.shape, pool.dtype):
            raise ArtefactError(
                f"{pool}: its rows are {rows.shape} {rows.dtype}, wanted {pool.shape} {pool.dtype}"
            )
        file = f"{_TABLES}/{quote(prefix, safe='')}{width}-{pool.data_type}.npy"
        described = pool.data_type, width, rows.dtype.str, (pool.shape[0], pool.shape[1])
        yield PoolFile(file, *described, _tables_of(prefix, pool), *write_rows(folder / file, rows))


def _manifest(content: Content, pools: tuple[PoolFile, ...], files: dict[str, FileSum]) -> Manifest:
    return Manifest(
        name=content.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        data_type=max(pools, key=lambda pool: pool.nbytes).data_type,
        model=content.spec.to_json(),
        metrics=dict(content.metrics),
        candidate_id=content.candidate_id,
        candidate_columns=content.candidate_columns,
        histogram=content.histogram,
        deviation=content.deviation,
        pools=pools,
        files=files,
    )


def _sums_of(folder: Path) -> dict[str, FileSum]:
    """Of all files that hold no table."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent.name != _TABLES]
    return {path.relative_to(folder).as_posix(): file_sum(path) for path in paths}


def _mapped_model(
    folder: Path, spec: ModelSpec, pools: Sequence[PoolFile], dense: Mapping[str, npt.NDArray[Any]]
) -> Module:
    """The model of an artefact in `folder`; see `Artefact.model`."""
    try:
        with planning():
            planned = spec.build()
    except ModelError as error:
        raise ArtefactError(f"{folder}: {error}") from None
    model = with_pools(planned, dict(_mapped_pools(folder, planned, pools)))
    try:
        copy_state(dense, dense_state(model), str(folder / _DENSE))
    except StateError as error:
        raise ArtefactError(str(error)) from None
    return model


def _mapped_pools(folder: Path, model: Module, pools: Sequence[PoolFile]) -> Iterator[tuple[Pool, Pool]]:
    """(a pool of the model, the same with its rows mapped)."""
    files = {pool.tables: pool for pool in pools}
    for prefix, pool in _named_pools(model):
        found = files.get(_tables_of(prefix, pool))
        if found is None:
            names = ", ".join(table.name for table in _tables_of(prefix, pool))
            raise ArtefactError(f"{folder}: no file has the tables {names}, as the model's code wants them")
        yield pool, stored_as(pool, found.data_type, map_rows(folder / found.file, found))


def stored_as(pool: Pool, data_type: Any, rows: npt.NDArray[Any]) -> Pool:
    """The tables of `pool`, with `rows` that are stored as `data_type`, not copied. TableError."""
    if data_type in BITS:
        return QuantizedPool.over_codes(pool, rows, BITS[data_type])
    tables: Any = [replace(table.config, data_type=data_type) for table in pool.tables]
    return Pool.over(tables, rows)


def _named_pools(model: Module) -> Iterator[tuple[str, Pool]]:
    """(what the names of its tables begin with in the model's state, pool)."""
    return ((prefix, pool) for prefix, collection in named_collections(model) for pool in collection.pools)


def _tables_of(prefix: str, pool: Pool) -> tuple[TableRows, ...]:
    return tuple(
        TableRows(prefix + table.config.name, table.rows.start, table.rows.stop) for table in pool.tables
    )
