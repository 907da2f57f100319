"""DLRM at Criteo-Kaggle table sizes, trained from Parquet, beside torch `nn.EmbeddingBag(sparse=True)`.

    python -m benchmarks.dlrm_parquet --peer-python /path/to/peer/.venv/bin/python

Both read the same file (13 float32, 26 int64 log-uniform ids, a label; row groups of 64 k), shuffle, and
train the same model (bottom 512-256-D, top 512-256-1, SGD) in batches of 2,048. They take turns in one run;
a JSON line gives samples/s of the median turn, the median ratio of paired turns, and peak memory. Without
--peer-python only ours runs.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import tesserec
from benchmarks.cases import KAGGLE
from tesserec.autograd.optim import SGD
from tesserec.autograd.workers import one_thread_blas
from tesserec.dataio.batch import Batch
from tesserec.dataio.dataset import Dataset, DatasetInfo, SparseFeature, Split
from tesserec.dataio.stream import read_batches
from tesserec.embeddings.pool import Pool
from tesserec.embeddings.row_optim import RowSGD
from tesserec.models import Features, build_model
from tesserec.train.step import StepOptions, apply_gradients, loss_and_gradients

LR = 0.01


def write_data(path: Path, rows: int) -> None:
    """`rows` rows of the shape above; the label depends on nothing."""
    names = ["label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]
    types = [pa.float32()] * 14 + [pa.int64()] * 26
    with pq.ParquetWriter(path, pa.schema(list(zip(names, types, strict=True)))) as writer:
        for group in range(-(-rows // 65536)):
            rng, n = np.random.default_rng([0, group]), min(65536, rows - group * 65536)
            columns = [(rng.random(n) < 0.25).astype(np.float32)]
            columns += [rng.random(n, dtype=np.float32) for _ in range(13)]
            columns += [np.minimum(size ** rng.random(n) - 1, size - 1).astype(np.int64) for size in KAGGLE]
            writer.write_table(pa.table(dict(zip(names, columns, strict=True))), row_group_size=65536)


def batches(folder: Path, rows: int, batch_size: int) -> Iterator[Batch]:
    """Shuffled batches, epoch after epoch, for ever."""
    sparse = tuple(SparseFeature(f"C{i}", size) for i, size in enumerate(KAGGLE, 1))
    dense = tuple(f"I{i}" for i in range(1, 14))
    splits = {"train": Split(("train.parquet",), rows)}
    info = DatasetInfo("kaggle", labels=("label",), dense=dense, sparse=sparse, splits=splits)
    epoch = 0
    while True:
        yield from read_batches(Dataset(folder, info), "train", batch_size, seed=0, epoch=epoch)
        epoch += 1


def ours(folder: Path, rows: int, dim: int, batch_size: int) -> Callable[[int], dict[str, float]]:
    """A function that trains so many steps and says how long they took."""
    features = Features(13, {f"C{i}": size for i, size in enumerate(KAGGLE, 1)}, pooling="sum")
    layers = {"embedding_dim": dim, "bottom": (512, 256), "top": (512, 256)}
    model = build_model("dlrm", features, seed=0, options=layers)
    pools = [(n, p) for n, p in model.named_parameters() if isinstance(p, Pool)]
    dense = [(n, p) for n, p in model.named_parameters() if not isinstance(p, Pool)]
    optimizers, options = (SGD(dense, lr=LR), RowSGD(pools, lr=LR)), StepOptions(seed=0)
    compiled, stream = tesserec.compile(model), enumerate(batches(folder, rows, batch_size))

    def run(steps: int) -> dict[str, float]:
        start, loss = time.perf_counter(), 0.0
        with one_thread_blas():
            for _ in range(steps):
                step, batch = next(stream)
                loss, grads = loss_and_gradients(compiled, batch, step, options)
                apply_gradients(grads, optimizers, options)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"seconds": time.perf_counter() - start, "loss": loss, "peak_bytes": peak}

    return run


@contextmanager
def torch_peer(
    python: str, folder: Path, dim: int, batch_size: int
) -> Iterator[Callable[[int], dict[str, float]]]:
    """The same of the peer, in its own environment, while inside."""
    script = Path(__file__).parent / "peers" / "dlrm_torch.py"
    command = [python, str(script), str(folder / "train.parquet"), "--tables", json.dumps(KAGGLE)]
    command += ["--dim", str(dim), "--batch-size", str(batch_size), "--lr", str(LR)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        stdin, stdout = process.stdin, process.stdout
        print(stdout.readline(), end="")

        def run(steps: int) -> dict[str, float]:
            print(f"run {steps}", file=stdin, flush=True)
            answer: dict[str, float] = json.loads(stdout.readline())
            return answer

        yield run
        stdin.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=60, help="steps in a turn")
    parser.add_argument("--peer-python", help="python of an environment with torch")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder / "train.parquet", args.rows)
        for dim in args.dims:
            with ExitStack() as stack:
                sides = {"tesserec": ours(folder, args.rows, dim, args.batch_size)}
                if args.peer_python:
                    peer = torch_peer(args.peer_python, folder, dim, args.batch_size)
                    sides["torch"] = stack.enter_context(peer)
                for run in sides.values():  # compile, touch the tables, fill the pipeline
                    run(10)
                turns: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
                for _ in range(args.turns):
                    for side, run in sides.items():
                        turns[side].append(run(args.steps))
            print(json.dumps(summary(turns, dim, args.steps * args.batch_size)), flush=True)


def summary(turns: dict[str, list[dict[str, float]]], dim: int, samples: int) -> dict[str, object]:
    """Samples per second of the median turn, the median of the ratios of paired turns, peak memory."""
    line: dict[str, object] = {"case": "dlrm_parquet", "dim": dim}
    for side, results in turns.items():
        line[f"{side}_samples_per_s"] = round(samples / statistics.median(r["seconds"] for r in results))
        line[f"{side}_peak_GB"] = round(results[-1]["peak_bytes"] / 1e9, 2)
    if "torch" in turns:
        pairs = zip(turns["tesserec"], turns["torch"], strict=True)
        line["ratio"] = round(statistics.median(b["seconds"] / a["seconds"] for a, b in pairs), 3)
    return line


if __name__ == "__main__":
    main()
