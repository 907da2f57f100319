"""A service of made-up models that answers as the real one does: the page and the client, without a model.

`python -m tests.serve.fake 8099` serves it to a browser.
"""

from __future__ import annotations

import json
import math
import random
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "serve" / "page"
MEDIA = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
GOLDEN = "golden row 17: served 0.8123, trained 0.7421; they may be 1e-05 apart"
ANY = ["string", "integer", "null"]
NUMBER = {"type": ["number", "null"]}


def version(number: str, state: str, error: str = "") -> dict[str, Any]:
    """A version as GET /v1/models tells it."""
    auc = 0.78 + int(number) / 500
    return {
        "version": number,
        "state": state,
        "error": error,
        "created": f"2026-01-{10 + int(number)}T08:00:00Z",
        "model": "dcnv2",
        "tables": "int8",
        "nbytes": 2_345_678,
        "metrics": {"valid_auc": auc, "test_auc": auc - 0.003, "test_log_loss": 0.5472},
        "verified": number != "2",
        "candidate_id": "item_id",
        "delta_sequence": 1704,
        "staleness_seconds": 0.8,
    }


def films() -> dict[str, Any]:
    """A model with five versions, of which two share the requests."""
    states = [("5", "failed", GOLDEN), ("4", "ready", ""), ("3", "ready", ""), ("2", "ready", "")]
    return {
        "name": "ml100k",
        "live": "3",
        "previous": "2",
        "split": {"3": 90, "2": 10},
        "shadow": {"version": "4", "percent": 10},
        "versions": [*(version(*state) for state in states), version("1", "unloaded")],
    }


def ads() -> dict[str, Any]:
    """A model with one version."""
    alone = films() | {"live": "1", "previous": None, "split": {}, "shadow": None}
    return alone | {"name": "ads", "versions": [version("1", "ready")]}


def shares(model: dict[str, Any]) -> dict[str, float]:
    """Percent of the requests by version."""
    return model["split"] or {model["live"]: 100}


def told(model: dict[str, Any]) -> dict[str, Any]:
    """A model as GET /v1/models tells it."""
    versions = [one | {"percent": shares(model).get(one["version"], 0)} for one in model["versions"]]
    return model | {"serving": model["live"], "versions": versions, "refused": []}


FILMS = {
    "242": ("1997", "Comedy"),
    "302": ("1997", "Crime Film-Noir Thriller"),
    "51": ("1994", "Drama War"),
    "346": ("1997", "Crime Drama"),
    "474": ("1963", "Sci-Fi War"),
    "265": ("1990", "Action Thriller"),
}


def films_example() -> dict[str, Any]:
    """Schema and example with few columns, one of them a list."""
    context = {"user_id": "196", "age": "49", "gender": "M", "occupation": "writer", "timestamp": 881250949}
    columns: dict[str, Any] = {name: {"type": ANY} for name in [*context, "item_id", "release_year"]}
    columns["class"] = {"type": ["array", "null"], "items": {"type": ["string", "integer"]}}
    columns["timestamp"] = NUMBER
    rows = [
        {"item_id": i, "release_year": year, "class": kinds.split()} for i, (year, kinds) in FILMS.items()
    ]
    return {"schema": {"properties": columns}, "input_example": {"context": context, "candidates": rows}}


def ads_example() -> dict[str, Any]:
    """Schema and example with as many columns as Criteo's."""
    numbers = {f"I{i}": i * 3 for i in range(1, 14)}
    context = numbers | {f"C{i}": f"{i * 7919:08x}" for i in range(1, 21)}
    rows = [{f"C{i}": f"{i * n * 104729:08x}" for i in range(21, 27)} for n in range(1, 13)]
    columns = {name: NUMBER if name in numbers else {"type": ANY} for name in [*context, *rows[0]]}
    return {"schema": {"properties": columns}, "input_example": {"context": context, "candidates": rows}}


EXAMPLES = {"ads": ads_example, "ml100k": films_example}


class Service:
    """The state behind the answers. token: what /v1 asks for; broken: it answers 503 to everything."""

    def __init__(self, models: list[dict[str, Any]], token: str = ""):
        self.models = {model["name"]: model for model in models}
        self.token, self.broken, self.started = token, False, time.time()
        self.asked: list[tuple[str, str, Any]] = []

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON."""
        self.asked.append((method, path, body))
        if self.broken:
            return problem(503, "not-ready", "Nothing is loaded yet.")
        if path == "/v1/status":
            return 200, self.status()
        if path == "/v1/models":
            return 200, {"models": [told(model) for model in self.models.values()]}
        found = re.fullmatch(r"/v1/models/([^/:]+)(?:/versions/(\d+))?(?::(\w+)|/(traffic))?", path)
        if found is None or found[1] not in self.models:
            return problem(404, "not-found", f"There is no {path}.")
        model, verb = self.models[found[1]], found[3] or found[4]
        if verb == "rank":
            return self.rank(model, found[2] or model["live"], body)
        if verb is not None:
            self.change(model, verb, found[2], body)
        more = EXAMPLES.get(model["name"], films_example)() if method == "GET" else {}
        return 200, told(model) | more

    def change(self, model: dict[str, Any], verb: str, number: str | None, body: Any) -> None:
        """What a management call does."""
        if verb == "traffic":
            model |= body
        elif verb in ("promote", "rollback"):
            to = number or model["previous"]
            model |= {"previous": model["live"], "live": to, "split": {}}
        else:
            (one,) = (one for one in model["versions"] if one["version"] == number)
            one |= {"state": "ready" if verb == "load" else "unloaded", "error": ""}

    def rank(self, model: dict[str, Any], number: str, body: Any) -> tuple[int, Any]:
        """Scores from a hash of the values; `nonsense` is refused by its path."""
        results = []
        for index, row in enumerate(body["candidates"]):
            for column, value in row.items():
                if value == "nonsense":
                    path = f"candidates[{index}].{column}"
                    return problem(422, "invalid-request", f"{path}: nonsense", field=path)
            seed = json.dumps([number, body["context"], row], sort_keys=True)
            name = row.get("id", row.get("item_id", index))
            results.append({"id": name, "index": index, "score": random.Random(seed).random() ** 2})
        results.sort(key=lambda one: (-one["score"], one["index"]))
        warnings = [] if "item_id" in row else ["C26: 2 ids are unknown"]
        return 200, {"model": model["name"], "version": number, "results": results, "warnings": warnings}

    def status(self) -> dict[str, Any]:
        """Figures that move."""
        now = time.time() // 2 * 2
        times = [now - 2 * i for i in range(149, -1, -1)]
        wave = [400 + 40 * math.sin(t / 30) + 25 * random.Random(t).random() for t in times]
        tail = [0.0024 + 0.0011 * random.Random(t + 1).random() ** 3 for t in times]
        history = {
            "interval_seconds": 2,
            "end": now,
            "requests_per_second": wave,
            "errors_per_second": [0] * 150,
            "p50_seconds": [0.0008 + 0.0001 * math.sin(t / 40) for t in times],
            "p95_seconds": [0.6 * value for value in tail],
            "p99_seconds": tail,
            "staleness_seconds": [t % 7 / 7 + 0.2 for t in times],
        }
        service = {
            "version": "0.1.0",
            "worker": 4711,
            "workers": 1,
            "uptime_seconds": 8000 + now - self.started,
            "ready": True,
            "draining": False,
            "tokens": bool(self.token),
            "memory_bytes": 1_234_567_890,
            "memory_budget_bytes": 8_000_000_000,
        }
        models = [
            {
                **model,
                "history": history,
                "versions": [figures(v, percent, wave[-1]) for v, percent in shares(model).items()],
            }
            for model in self.models.values()
        ]
        return {"service": service, "queue": {"requests": 2, "rows": 200}, "time": now, "models": models}


def figures(number: str, percent: float, rate: float) -> dict[str, Any]:
    """A version as GET /v1/status tells it."""
    medians = {"total": 0.00081, "decode": 0.00013, "queue": 0.00006, "score": 0.00033, "answer": 0.00003}
    trained = [round(1000 * math.exp(-(((i - 8) / 5) ** 2))) for i in range(20)]
    return {
        "version": number,
        "requests_per_second": rate * percent / 100,
        "candidates_per_second": rate * percent,
        "errors_per_second": 0.0,
        "latency_seconds": {stage: {"p50": t, "p95": 2 * t, "p99": 4 * t} for stage, t in medians.items()},
        "staleness_seconds": 0.8,
        "delta_sequence": 1704,
        "delta_error": "",
        "unknown_ids": {"user_id": 12, "item_id": 340, "occupation": 0},
        "missing_values": {"age": 31},
        "drift_psi": 0.134,
        "score_histogram": {
            "edges": [i / 20 for i in range(21)],
            "counts": [round(count * (0.7 + i / 30)) for i, count in enumerate(trained)],
            "training_counts": trained,
        },
    }


def problem(status: int, kind: str, detail: str, **more: Any) -> tuple[int, Any]:
    """An error as the real service tells it."""
    return status, {
        "type": f"urn:tesserec:problem:{kind}",
        "title": kind,
        "status": status,
        "detail": detail,
        **more,
    }


class _Handler(BaseHTTPRequestHandler):
    service: Service

    def handle_any(self) -> None:
        """Files of the page, else what the service answers."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.path.startswith("/v1/"):
            return self.send_file()
        given = self.headers.get("Authorization", "")
        if self.service.token and given != f"Bearer {self.service.token}":
            status, answer = problem(401, "unauthorized", "A bearer token is needed.")
        else:
            status, answer = self.service.answer(self.command, self.path, json.loads(body or b"null"))
        return self.send(status, "application/json", json.dumps(answer).encode())

    def send_file(self) -> None:
        """A file of the page."""
        name = self.path.partition("?")[0].removeprefix("/page/").lstrip("/") or "index.html"
        path = PAGE / name
        if path.parent != PAGE or not path.is_file():
            return self.send(404, "text/plain", b"not found")
        return self.send(200, MEDIA[path.suffix], path.read_bytes())

    do_GET = do_POST = do_PUT = handle_any

    def send(self, status: int, media: str, content: bytes) -> None:
        """One answer."""
        self.send_response(status)
        for name, value in (
            ("Content-Type", media),
            ("Content-Length", len(content)),
            ("Content-Security-Policy", POLICY),
        ):
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def serving(service: Service, port: int = 0) -> Iterator[str]:
    """The service's address while it runs."""
    handler = type("Handler", (_Handler,), {"service": service})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    with serving(Service([films(), ads()]), int(sys.argv[1])) as address:
        print(address)
        threading.Event().wait()
