"""Bodies that are none, and nearly some: every one of 10,000 is answered, none by a 5xx, and memory stays.

    python -m benchmarks.serve_fuzz ARTEFACT_OR_REPOSITORY [--bodies 10000] [--seed 1]

Most of them are the model's example with a piece changed, lost, doubled or swapped for another value; the
rest are random bytes, deep and long JSON, cut and damaged Arrow streams, and bodies beyond the limit. Prints
one JSON line.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa

JSON, ARROW = "application/json", "application/vnd.apache.arrow.stream"
ODD: list[Any] = [
    None, True, -1, 0, 2**31, 2**63, -(2**63), 10**400, 1e308, 0.1, "", "x", "\0", "é" * 300, "9" * 5000,
    [], {}, [[]], [None], {"a": {}}, [1] * 2000, ["t"] * 2000,
]  # fmt: skip
RAW = [b"NaN", b"1e999", b"-", b"1" * 100_000, b'"\\ud800"', b"\xff\xfe", b"[" * 50_000, b'{"a":' * 50_000]


def changed(value: Any, rng: random.Random) -> Any:
    """The value with something in it replaced, left out, doubled or renamed."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        rest = {other: inner for other, inner in value.items() if other != key}
        act = rng.random()
        if act < 0.1:
            return rest
        return {
            **rest,
            key if act < 0.9 else rng.choice(["", "x", "id", key + "_"]): changed(value[key], rng),
        }
    if isinstance(value, list) and value and rng.random() < 0.8:
        i = rng.randrange(len(value))
        return [*value[:i], changed(value[i], rng), *value[i + rng.randrange(2) :]]
    return rng.choice(ODD)


def nearly_json(example: Any, rng: random.Random) -> bytes:
    """The example, changed a little, as text that may be cut, damaged, or have what JSON has not."""
    for _ in range(rng.randint(1, 4)):
        example = changed(example, rng)
    text = json.dumps(example).encode()
    act = rng.random()
    if act < 0.15:
        return text[: rng.randrange(len(text) + 1)]
    if act < 0.3:
        i = rng.randrange(len(text) + 1)
        return text[:i] + rng.choice([*RAW, rng.randbytes(3)]) + text[i:]
    return text


def nearly_arrow(example: dict[str, Any], rng: random.Random) -> bytes:
    """The example as an Arrow stream with a column changed, or with damaged bytes."""
    rows = example["candidates"]
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    odd = [
        [None] * len(rows),
        list(range(len(rows))),
        ["x"] * len(rows),
        [[1]] * len(rows),
        [b"x"] * len(rows),
    ]
    columns[rng.choice([*columns, "other"])] = rng.choice([*odd, *columns.values()])
    table = pa.table(columns).replace_schema_metadata(
        {"request": nearly_json({"context": example["context"]}, rng)}
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    data = bytearray(sink.getvalue().to_pybytes())
    for _ in range(rng.choice([0, 1, 1, 20])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data[: rng.choice([len(data), len(data), rng.randrange(len(data))])])


def bodies(example: dict[str, Any], limit: int, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """(media type, body) without end."""
    kinds: list[tuple[float, str, Callable[[], bytes]]] = [
        (50, JSON, lambda: nearly_json(example, rng)),
        (20, JSON, lambda: nearly_json({"rows": example["candidates"]}, rng)),
        (10, JSON, lambda: rng.randbytes(rng.randrange(2000))),
        (5, JSON, lambda: rng.choice(RAW)),
        (12, ARROW, lambda: nearly_arrow(example, rng)),
        (2, ARROW, lambda: rng.randbytes(rng.randrange(2000))),
        (1, JSON, lambda: b" " * (limit + rng.randint(-1, 1 << 20))),
    ]
    while True:
        _, kind, make = rng.choices(kinds, [weight for weight, *_ in kinds])[0]
        yield kind, make()


def peak_bytes(pid: int) -> int:
    """The most memory that a process ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) << 10


def started(path: Path) -> tuple[subprocess.Popen[str], httpx.Client]:
    """A service of its own that is ready, and a client of it."""
    command = [sys.executable, "-m", "tesserec", "serve", str(path), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    client = httpx.Client(base_url=process.stderr.readline().split()[-1], timeout=60)
    for _ in range(600):
        ready = client.get("/readyz")
        if ready.status_code == 200:
            return process, client
        time.sleep(0.1)
    process.terminate()
    raise SystemExit(f"the service did not become ready: {ready.text}")


def main() -> None:
    """Ask, count, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--bodies", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    process, client = started(options.path)
    try:
        name = client.get("/v1/models").json()["models"][0]["name"]
        example = client.get(f"/v1/models/{name}").json()["input_example"]
        for _ in range(100):
            client.post(f"/v1/models/{name}:rank", json=example).raise_for_status()
        before, begun = peak_bytes(process.pid), time.perf_counter()
        statuses: collections.Counter[int] = collections.Counter()
        made = bodies(example, 4 << 20, random.Random(options.seed))
        for number, (kind, body) in zip(range(options.bodies), made, strict=False):
            verb = "rank" if number % 3 else "predict"
            response = client.post(f"/v1/models/{name}:{verb}", content=body, headers={"content-type": kind})
            statuses[response.status_code] += 1
            if response.status_code >= 500:
                print(f"{verb} {kind} {body[:2000]!r}: {response.text}", file=sys.stderr)
        line = {
            "bodies": options.bodies,
            "seed": options.seed,
            "statuses": dict(sorted(statuses.items())),
            "server_errors": sum(count for status, count in statuses.items() if status >= 500),
            "seconds": round(time.perf_counter() - begun, 1),
            "peak_mib_before": before >> 20,
            "peak_mib_after": peak_bytes(process.pid) >> 20,
        }
        print(json.dumps(line))
    finally:
        client.close()
        process.terminate()
        print(f"the service ended with status {process.wait(30)}", file=sys.stderr)


if __name__ == "__main__":
    main()
