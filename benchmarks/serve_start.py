"""How soon an artefact is ready to rank, cold and warm, and how much memory processes that share it take.

    python -m benchmarks.serve_start --folder /some/disk --dim 76

makes FOLDER/ids and FOLDER/words, untrained DLRMs with Criteo-Kaggle's tables (10.3 GB at width 76): one
takes raw ids as they are, the other knows 33.8 million of them by its vocabularies. FOLDER/tiny has hardly
any rows: what it takes to start without. Cold: nothing of the artefact is in the system's cache of files.
`ready_s`: from the start of `tesserec serve` to the first 200 of /readyz, for which the golden rows are
scored. `load_s`: what of that depends on the artefact, in a bare process: `open` (manifest, checksums of
all but the tables), `model` (mapped) and `golden` (scored).

Then three processes read every page of the tables, and one writes to a hundredth of the rows: RSS counts what
is shared for each, PSS shares it out. Prints JSON lines; a table on stderr.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.harness import Report, Side, serve
from benchmarks.ours.serve import FilledRows, encoder, golden, planned, spec
from benchmarks.ours.serve import write as write_small
from benchmarks.serve_cases import KEYS, MODEL, OWN
from tesserec.dataio.encoder import Encoder
from tesserec.dataio.schema import Sparse
from tesserec.dataio.sparse import SparseEncoder
from tesserec.dataio.vocabulary import Vocabulary, write_arrow
from tesserec.embeddings.collection import named_collections
from tesserec.serve.artefact import Artefact, Content, write_artefact
from tesserec.serve.golden import check_scores, score_rows

PAGE = 4096
WRITTEN = 100  # one row of so many
PROCESSES = 3
TINY = 1000  # rows of a table, at most: what starting takes whatever the size


def key_of(ids: Any) -> Any:
    """A raw id for each id but 0: any odd factor mod 2⁵² gives each its own."""
    return ids * 0x9E3779B97F4A7 % (1 << 52)


def with_words(plain: Encoder, folder: Path) -> Encoder:
    """The encoder that knows all ids but 0 by a vocabulary; its words are in `folder`."""
    known = []
    for i, feature in enumerate(plain.sparse):
        keys = key_of(np.arange(1, feature.num_embeddings))
        file = folder / f"{i:03d}.arrow"
        write_arrow(file, pa.table({"key": keys, "count": np.ones(len(keys), np.uint32)}))
        name = feature.spec.name
        sparse = Sparse(column=name, name=name, type="int")
        vocabulary = Vocabulary.open(file)
        known.append(SparseEncoder(sparse, False, "int", feature.num_embeddings, vocabulary))
    schema = plain.schema.model_copy(update={"sparse": tuple(one.spec for one in known)})
    return Encoder(schema, plain.dense, tuple(known))


def write(path: Path, dim: int, *, words: bool) -> None:
    """Write an artefact, unless it is there."""
    if path.exists():
        return
    made, rows = spec(dim), golden(None)
    with tempfile.TemporaryDirectory() as folder:
        chosen = encoder(made.features.sparse)
        if words:
            chosen = with_words(chosen, Path(folder))
            for name in KEYS:
                place = rows.schema.get_field_index(name)
                rows = rows.set_column(place, name, pa.array(key_of(rows.column(name).to_numpy())))
        chosen.save(Path(folder) / "encoder")
        saved = Path(folder) / "encoder"
        content = Content(MODEL, made, planned(made), saved, rows, candidate_columns=OWN, rows=FilledRows)
        write_artefact(path, content)


class Mapped:
    """A process that has an artefact mapped."""

    def load(self, path: str) -> dict[str, float]:
        """Seconds of each part of loading."""
        start = time.perf_counter()
        artefact = Artefact.open(path)
        opened = time.perf_counter()
        self.model = artefact.model()
        mapped = time.perf_counter()
        rows, scores = artefact.golden()
        check_scores(artefact.path, score_rows(self.model, artefact.encoder, rows), scores)
        ready = time.perf_counter()
        return {"open": opened - start, "model": mapped - opened, "golden": ready - mapped}

    def read_all(self) -> int:
        """Read a byte of every page of the tables."""
        return sum(int(memory[::PAGE].sum(dtype=np.int64)) for memory in self._tables())

    def write_some(self) -> None:
        """Write to one row of WRITTEN, as many deltas would."""
        for _, collection in named_collections(self.model):
            for pool in collection.pools:
                pool.data[::WRITTEN] += 1

    def _tables(self) -> Iterator[Any]:
        for _, collection in named_collections(self.model):
            for pool in collection.pools:
                yield pool.data.reshape(-1).view(np.uint8)


def make_cold(path: Path) -> None:
    """Take the artefact out of the system's cache of files."""
    for file in path.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


@contextmanager
def served(path: Path) -> Iterator[float]:
    """Yield the seconds after which `tesserec serve` is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tesserec", "serve", str(path), "--port", str(port)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not is_ready(port):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)}: left with {process.returncode}")
            time.sleep(0.005)
        yield time.perf_counter() - start
    finally:
        process.terminate()
        process.wait()


def is_ready(port: int) -> bool:
    """Whether /readyz answers 200."""
    connection = HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def memory(side: Side) -> dict[str, float]:
    """GB of a process: resident, its share of them, and what it has alone."""
    lines = Path(f"/proc/{side.process.pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    private = kib["Private_Clean"] + kib["Private_Dirty"]
    names = {"rss_gb": kib["Rss"], "pss_gb": kib["Pss"], "private_gb": private}
    return {name: round(value * 1024 / 1e9, 3) for name, value in names.items()}


def starts(report: Report, path: Path, turns: int) -> None:
    """Start the service and a bare process, cold and warm."""
    size = Artefact.open(path).nbytes
    for state in ("cold", "warm"):
        for _ in range(turns):
            if state == "cold":
                make_cold(path)
            with served(path) as ready:
                pass
            if state == "cold":
                make_cold(path)
            with Side(sys.executable, "benchmarks.serve_start", "--side") as side:
                load = side("load", path=str(path))
            parts = {name: round(seconds, 3) for name, seconds in load.items()}
            more = {"ready_s": round(ready, 2), "load_s": round(sum(load.values()), 3), **parts}
            report.add({"artefact": path.name, "gb": round(size / 1e9, 2), "files": state, **more})


def shares(report: Report, path: Path) -> None:
    """Memory of several processes that have read all tables, and of one that wrote."""
    with ExitStack() as stack:
        sides = [Side(sys.executable, "benchmarks.serve_start", "--side") for _ in range(PROCESSES)]
        for side in sides:
            stack.enter_context(side)
            side("load", path=str(path))
            side("read_all")
        for number, side in enumerate(sides):
            report.add({"artefact": path.name, "process": number, "after": "reading all", **memory(side)})
        sides[0]("write_some")
        for number, side in enumerate(sides[:2]):
            report.add({"artefact": path.name, "process": number, "after": "0 wrote 1 %", **memory(side)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where the artefacts are, or are to be made")
    parser.add_argument("--dim", type=int, default=76)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    if args.side:
        serve(Mapped())
        return
    with Report("serve_start") as report:
        tiny = args.folder / "tiny"
        if not tiny.exists():
            write_small(tiny, args.dim, TINY)
        starts(report, tiny, args.turns)
        for name in ("ids", "words"):
            write(args.folder / name, args.dim, words=name == "words")
            starts(report, args.folder / name, args.turns)
        shares(report, args.folder / "words")


if __name__ == "__main__":
    main()
