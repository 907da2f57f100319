"""Rows per second from Parquet into shuffled batches of 2,048, without a model, beside hand-written readers.

    python benchmarks/read_parquet.py [--rows 4194304] [--repeats 5] [--peer-python PATH_WITH_TORCH]

Two sets, in row groups of 65,536: `single` (label, 13 float32, 26 int64 ids) and `multi` (8 ids and three
lists of mean length 10 instead). Every reader does the same work: row groups permuted, rows permuted in
buffers of four row groups, batches of a dense (B, 13) float32 array, ids and labels.

    tesserec      read_batches
    hand-written  pyarrow → numpy, one loop, Arrow's own threads
    pandas        the same with a DataFrame as the buffer
    torch         DataLoader(num_workers=2) over an IterableDataset that reads row groups (single only)

Readers take turns; one JSON line per case with the median, and the ratio to the hand-written loop.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

GROUP, BUFFER_GROUPS, BATCH = 65_536, 4, 2048
CARDINALITIES = (
    *(1460, 583, 100000, 100000, 305, 24, 12517, 633, 3, 93145, 5683, 100000, 3194),
    *(27, 14992, 100000, 10, 5652, 2173, 4, 100000, 18, 15, 100000, 105, 100000),
)
DENSE = [f"I{i}" for i in range(1, 14)]
SINGLE = [f"C{i}" for i in range(1, 27)]
LISTS = ["M1", "M2", "M3"]
LIST_IDS = 20_000


def make(path: Path, rows: int, *, lists: bool) -> None:
    """Write one set, row group by row group."""
    rng = np.random.default_rng(0)

    def ids(count: int, size: int) -> Any:
        return np.minimum((count + 1) ** rng.random(size) - 1, count - 1).astype(np.int64)

    def columns(size: int) -> pa.Table:
        table: dict[str, Any] = {"label": (rng.random(size) < 0.25).astype(np.float32)}
        table |= {name: np.log1p(rng.geometric(0.05, size)).astype(np.float32) for name in DENSE}
        table |= {n: ids(c, size) for n, c in zip(SINGLE[: 8 if lists else 26], CARDINALITIES, strict=False)}
        for name in LISTS if lists else ():
            offsets = np.concatenate([[0], rng.poisson(10, size).cumsum()]).astype(np.int32)
            table[name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids(LIST_IDS, offsets[-1])))
        return pa.table(table)

    with pq.ParquetWriter(path, columns(0).schema) as writer:
        for start in range(0, rows, GROUP):
            writer.write_table(columns(min(GROUP, rows - start)))


def buffers(path: Path, epoch: int) -> Iterator[tuple[Any, Any]]:
    """(four row groups as a table, order of its rows): the shuffle that every reader does."""
    rng, file = np.random.default_rng([0, epoch]), pq.ParquetFile(path, memory_map=True)
    groups = rng.permutation(file.num_row_groups).tolist()
    for at in range(0, len(groups), BUFFER_GROUPS):
        table = file.read_row_groups(groups[at : at + BUFFER_GROUPS])
        yield table, rng.permutation(table.num_rows)


def read_tesserec(path: Path, epoch: int) -> int:
    from tesserec.dataio.dataset import Dataset, DatasetInfo, SparseFeature, Split
    from tesserec.dataio.stream import read_batches

    names = [name for name in pq.read_schema(path).names if name[0] in "CM"]
    limits = dict(zip(SINGLE, CARDINALITIES, strict=True)) | dict.fromkeys(LISTS, LIST_IDS)
    sparse = tuple(SparseFeature(name, limits[name], name in LISTS) for name in names)
    splits = {"train": Split((path.name,), pq.read_metadata(path).num_rows)}
    info = DatasetInfo("bench", ("label",), dense=tuple(DENSE), sparse=sparse, splits=splits)
    batches = read_batches(Dataset(path.parent, info), "train", BATCH, seed=0, epoch=epoch)
    return sum(batch.batch_size for batch in batches)


def read_by_hand(path: Path, epoch: int) -> int:
    """Whole columns are put in their new order once per buffer; batches are slices of that."""
    rows = 0
    for table, order in buffers(path, epoch):
        dense = np.stack([table[name].to_numpy()[order] for name in DENSE], axis=1)
        labels = table["label"].to_numpy()[order]
        ids = [table[name].to_numpy()[order] for name in table.column_names if name[0] == "C"]
        lists = [
            lists_by_hand(table[name].combine_chunks(), order)
            for name in table.column_names
            if name[0] == "M"
        ]
        for lo in range(0, len(order) - BATCH + 1, BATCH):
            hi = lo + BATCH
            values = [column[lo:hi] for column in ids]
            lengths = [np.ones(BATCH * len(ids), np.int64)]
            for ends, flat in lists:
                values.append(flat[ends[lo] : ends[hi]])
                lengths.append(np.diff(ends[lo : hi + 1]))
            batch = (dense[lo:hi], labels[lo:hi], np.concatenate(values), np.cumsum(np.concatenate(lengths)))
            rows += len(batch[0])
    return rows


def lists_by_hand(column: Any, order: Any) -> tuple[Any, Any]:
    """A list column in a new order: offsets, values."""
    offsets, flat = column.offsets.to_numpy(), column.values.to_numpy()
    lengths = np.diff(offsets)[order]
    ends = np.concatenate([[0], np.cumsum(lengths)])
    return ends, flat[np.repeat(offsets[:-1][order] - ends[:-1], lengths) + np.arange(ends[-1])]


def read_pandas(path: Path, epoch: int) -> int:
    rows = 0
    for table, order in buffers(path, epoch):
        frame = table.to_pandas().iloc[order]
        ids = [name for name in frame.columns if name[0] == "C"]
        lists = [name for name in frame.columns if name[0] == "M"]
        for lo in range(0, len(order) - BATCH + 1, BATCH):
            part = frame.iloc[lo : lo + BATCH]
            values = [
                part[ids].to_numpy().T.ravel(),
                *(np.concatenate(part[name].to_numpy()) for name in lists),
            ]
            lengths = [part[name].map(len).to_numpy() for name in lists]
            batch = (part[DENSE].to_numpy(), part["label"].to_numpy(), np.concatenate(values), lengths)
            rows += len(batch[0])
    return rows


def read_torch(path: Path, epoch: int) -> int:
    """DataLoader with two workers, each reading every other buffer; it collates rows one by one."""
    import torch
    from torch.utils.data import DataLoader, IterableDataset, get_worker_info

    class Rows(IterableDataset):  # type: ignore[misc, type-arg, unused-ignore]
        def __iter__(self) -> Iterator[Any]:
            worker = get_worker_info()
            for number, (table, order) in enumerate(buffers(path, epoch)):
                if number % worker.num_workers == worker.id:
                    dense = np.stack([table[name].to_numpy()[order] for name in DENSE], axis=1)
                    ids = np.stack([table[name].to_numpy()[order] for name in SINGLE], axis=1)
                    yield from zip(dense, ids, table["label"].to_numpy()[order], strict=True)

    loader = DataLoader(Rows(), BATCH, num_workers=2, drop_last=True)
    torch.set_num_threads(1)
    return sum(len(dense) for dense, _, _ in loader)


READERS: dict[str, Callable[[Path, int], int]] = {
    "tesserec": read_tesserec,
    "hand-written": read_by_hand,
    "pandas": read_pandas,
    "torch DataLoader": read_torch,
}


def timed(reader: str, path: Path, epoch: int) -> float:
    """Rows per second of one epoch in this process."""
    start = time.perf_counter()
    rows = READERS[reader](path, epoch)
    return rows / (time.perf_counter() - start)


def peer(python: str, reader: str, path: Path) -> float:
    """The same in another environment, imports not counted."""
    command = [python, __file__, "--run", reader, "--path", str(path)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=64 * GROUP)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="keep the files here")
    parser.add_argument("--peer-python", help="a Python with pandas or torch, when this one lacks them")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(timed(options.run, options.path, 0))
        return
    with tempfile.TemporaryDirectory() as temporary:
        compare(options.folder or Path(temporary), options)


def compare(folder: Path, options: argparse.Namespace) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for case in ("single", "multi"):
        path = folder / f"{case}-{options.rows}.parquet"
        if not path.exists():
            make(path, options.rows, lists=case == "multi")
        readers = [name for name in READERS if case == "single" or name != "torch DataLoader"]
        results: dict[str, list[float]] = {name: [] for name in readers}
        for repeat in range(-1, options.repeats):  # the first round warms caches and is not counted
            for name in readers:
                speed = run(name, path, repeat + 1, options.peer_python)
                if speed is not None and repeat >= 0:
                    results[name].append(speed)
        report(case, options.rows, {name: speeds for name, speeds in results.items() if speeds})


def run(reader: str, path: Path, epoch: int, peer_python: str | None) -> float | None:
    """Rows per second, or None where the peer is not installed."""
    needs = {"pandas": "pandas", "torch DataLoader": "torch"}.get(reader)
    if needs is None or importlib.util.find_spec(needs):
        return timed(reader, path, epoch)
    if peer_python is None:
        return None
    return peer(peer_python, reader, path)


def report(case: str, rows: int, results: dict[str, list[float]]) -> None:
    medians = {name: statistics.median(speeds) for name, speeds in results.items()}
    for name, speed in medians.items():
        line = {"benchmark": "read_parquet", "case": case, "reader": name, "rows": rows, "batch_size": BATCH}
        line |= {
            "rows_per_second": round(speed),
            "of_hand_written": round(speed / medians["hand-written"], 3),
        }
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
