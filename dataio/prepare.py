"""Raw files → a data set: the split is settled, pass 1 fits on training rows, pass 2 encodes and writes.

Memory holds the counting tables and a few batches, whatever the size of the files. The folder appears whole
or not at all.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from tesserec.dataio.ahead import ahead
from tesserec.dataio.atomic import atomic_folder
from tesserec.dataio.columns import Keys
from tesserec.dataio.dataset import INFO_FILE, Dataset, DatasetInfo, SparseFeature, Split, write_dataset_info
from tesserec.dataio.encoder import Encoder, EncoderFitter
from tesserec.dataio.raw import RawBatch, read_raw
from tesserec.dataio.schema import RawType, Schema, SchemaError
from tesserec.dataio.splits import SPLITS, Assign, Codes, fit_split

ROW_GROUP = 1 << 16
DEFAULT_MEMORY = 5 << 28  # 1.25 GiB of counting tables keep a run below 2 GB
Progress = Callable[[str, int, int | None], None]  # (stage, rows done, rows in all when known)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A finished preparation. oov: split → feature → how many of its ids were 0."""

    dataset: Dataset
    rows: Mapping[str, int]
    oov: Mapping[str, Mapping[str, int]]
    seconds: float


def prepare(
    files: Sequence[str | Path],
    schema: Schema,
    out: str | Path,
    *,
    overwrite: bool = False,
    threads: int | None = None,
    memory_bytes: int = DEFAULT_MEMORY,
    progress: Progress | None = None,
) -> Prepared:
    """Raw files → data set in the folder `out`: train, valid and test Parquet files and the fitted encoder.

    Only a data set may be overwritten. `memory_bytes` bounds the counting tables of vocabularies. Raises
    SchemaError naming file, line, column and value of what is not as the schema says, and leaves nothing.
    """
    start, out = time.perf_counter(), Path(out)
    _refuse_to_destroy(out, files, overwrite)
    with atomic_folder(out) as folder, ThreadPoolExecutor(threads or os.cpu_count()) as executor:
        job = _Job(files, schema, executor, progress or (lambda stage, done, total: None))
        scratch = folder / "scratch"
        scratch.mkdir()
        assign = fit_split(schema.split, partial(job.read, stage="split"))
        encoder = job.fit(assign, scratch, memory_bytes)
        encoder.save(folder / "encoder")
        written = dict(zip(SPLITS, job.write(encoder, assign, folder), strict=True))
        shutil.rmtree(scratch)
        rows = {split: writer.rows for split, writer in written.items()}
        write_dataset_info(folder, _describe(encoder, rows))
    oov = {split: writer.oov for split, writer in written.items()}
    return Prepared(Dataset.open(out), rows, oov, time.perf_counter() - start)


def _refuse_to_destroy(out: Path, files: Sequence[str | Path], overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / INFO_FILE).is_file():
        raise SchemaError(f"{out}: exists and is no data set; choose another folder")
    if not overwrite:
        raise SchemaError(f"{out}: holds a data set already; choose another folder, or overwrite it")
    inside = [file for file in files if out.resolve() in Path(file).resolve().parents]
    if inside:
        raise SchemaError(f"{inside[0]}: lies in the folder {out} that would be overwritten; move it")


@dataclass
class _Job:
    """The files of one preparation, read as often as needed."""

    files: Sequence[str | Path]
    schema: Schema
    executor: Executor
    progress: Progress
    total: int | None = None

    def read(self, columns: Mapping[str, RawType], stage: str) -> Iterator[tuple[RawBatch, Keys]]:
        """Batches with the numbers of their rows over all files, read ahead on a thread."""
        done = 0
        batches = read_raw(self.files, columns, self.schema.format)
        with closing(ahead(repeat(partial(next, batches, None)), workers=1, depth=2)) as coming:
            for raw in coming:
                if raw is None:
                    break
                yield raw, np.arange(done, done + raw.batch.num_rows)
                done += raw.batch.num_rows
                self.progress(stage, done, self.total)
        self.total = done

    def fit(self, assign: Assign, scratch: Path, memory_bytes: int) -> Encoder:
        """Pass 1."""
        fitter = EncoderFitter(self.schema, scratch, memory_bytes)
        trained = 0
        for raw, rows in self.read(self.schema.columns(), "fit"):
            with raw.located():
                train = assign(raw.batch, rows) == SPLITS.index("train")
                fitter.update(raw.batch, rows, train, self.executor)
            trained += int(train.sum())
        if not trained:
            raise SchemaError(f"none of {self.total} rows is for training; look at `split` of the schema")
        return fitter.finish()

    def write(self, encoder: Encoder, assign: Assign, folder: Path) -> list[_SplitWriter]:
        """Pass 2 → what was written, by split. One batch is written while the next is encoded."""
        with ExitStack() as stack:
            writers = [_SplitWriter(folder / f"{split}.parquet", encoder) for split in SPLITS]
            for writer in writers:
                stack.enter_context(writer)
            background = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="write"))
            written: Future[None] | None = None
            for raw, rows in self.read(self.schema.columns(), "write"):
                with raw.located():
                    codes = assign(raw.batch, rows)
                    encoded = encoder.encode(raw.batch, executor=self.executor)
                if written is not None:
                    written.result()
                written = background.submit(_write_parts, encoded, codes, writers)
            if written is not None:
                written.result()
        return writers


def _write_parts(encoded: pa.RecordBatch, codes: Codes, writers: Sequence[_SplitWriter]) -> None:
    for code, writer in enumerate(writers):
        writer.add(encoded.filter(pa.array(codes == code)))


class _SplitWriter:
    """One split's Parquet file, in row groups of equal size. No rows, no file."""

    def __init__(self, path: Path, encoder: Encoder) -> None:
        self.rows = 0
        self.oov: Counter[str] = Counter()
        self._path, self._encoder = path, encoder
        self._held: list[pa.RecordBatch] = []
        self._file: Any = None

    def __enter__(self) -> _SplitWriter:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None and self._held:
            self._write(self.rows % ROW_GROUP)
        if self._file is not None:
            self._file.close()

    def add(self, batch: pa.RecordBatch) -> None:
        """Take rows; write as many as fill row groups."""
        if not batch.num_rows:
            return
        held = self.rows % ROW_GROUP + batch.num_rows
        self.rows += batch.num_rows
        self.oov.update(self._encoder.count_oov(batch))
        self._held.append(batch)
        if held >= ROW_GROUP:
            self._write(held - held % ROW_GROUP)

    def _write(self, rows: int) -> None:
        table = pa.Table.from_batches(self._held)
        if self._file is None:
            self._file = pa.parquet.ParquetWriter(
                self._path, table.schema, use_dictionary=False, compression="lz4"
            )
        self._file.write_table(table.slice(0, rows), row_group_size=ROW_GROUP)
        self._held = table.slice(rows).to_batches()


def _describe(encoder: Encoder, rows: Mapping[str, int]) -> DatasetInfo:
    schema = encoder.schema
    return DatasetInfo(
        name=schema.name,
        labels=tuple(label.name for label in schema.labels),
        weight="weight" if schema.weight else None,
        group="group" if schema.group else None,
        dense=tuple(dense.name for dense in schema.dense),
        sparse=tuple(SparseFeature(f.spec.name, f.num_embeddings, f.is_list) for f in encoder.sparse),
        keep=tuple(keep.name for keep in schema.keep),
        splits={split: Split((f"{split}.parquet",), count) for split, count in rows.items() if count},
    )
