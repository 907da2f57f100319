"""About the service: probes, metrics, what the page shows, and the page."""

from __future__ import annotations

import hashlib
import mimetypes
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel

from tesserec import __version__
from tesserec.serve.counts import joined
from tesserec.serve.live import models_live
from tesserec.serve.openapi import problems
from tesserec.serve.problems import NotFound, NotReady
from tesserec.serve.scrape import CONTENT_TYPE, metrics_text
from tesserec.serve.service import Service
from tesserec.serve.status import ModelStatus
from tesserec.serve.version import Version

PAGE = Path(__file__).parent / "page"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Alive(BaseModel):
    """status: always "ok"."""

    status: str = "ok"


class Status(BaseModel):
    """What the page shows. models: rates and quantiles of the last ten seconds, and the last five minutes, by
    model and version; times in seconds, sizes in bytes, null where nothing was measured."""

    service: dict[str, Any]
    queue: dict[str, int]
    time: float
    models: list[dict[str, Any]]


def service_routes(service: Service) -> APIRouter:
    """`/livez`, `/readyz`, `/metrics`, `/v1/status`, and the page at `/`."""
    router = APIRouter(tags=["service"])

    @router.get("/livez")
    async def livez() -> Alive:
        """Whether the process answers."""
        return Alive()

    @router.get("/readyz", responses=problems(NotReady))
    def readyz() -> Alive:
        """Whether every model can answer, and the service is not about to end."""
        reasons = service.unready
        if reasons:
            told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
            raise NotReady(told, retry_after=1)
        return Alive()

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        """Metrics in Prometheus's text format, of all workers."""
        workers = service.metrics.everywhere(service.counts())
        text = await run_in_threadpool(metrics_text, workers, joined(workers))
        return Response(text, media_type=CONTENT_TYPE)

    @router.get("/v1/status")
    async def status() -> Status:
        """What happened lately, of all workers."""
        here = service.counts()
        workers = service.metrics.everywhere(here)
        now, models = time.time(), await run_in_threadpool(service.repository.models)
        return Status(
            service={
                "version": __version__,
                "worker": here.pid,
                "workers": service.settings.workers,
                "started": datetime.fromtimestamp(here.started, UTC).isoformat(timespec="seconds"),
                "uptime_seconds": now - here.started,
                "ready": here.ready,
                "draining": service.draining,
                "tokens": service.tokens is not None,
                "memory_bytes": sum(version.nbytes for version in _loaded(models)),
                "memory_budget_bytes": service.settings.memory_bytes,
            },
            queue={
                "requests": sum(worker.queue_requests for worker in workers),
                "rows": sum(worker.queue_rows for worker in workers),
                "max_rows": service.settings.queue.max_rows * service.settings.workers,
            },
            time=now,
            models=await run_in_threadpool(models_live, models, joined(workers), now),
        )

    pages = {path.name: _page(path) for path in sorted(PAGE.iterdir()) if path.is_file()}

    @router.get("/openapi.json", include_in_schema=False)
    def openapi(request: Request) -> dict[str, Any]:
        document: dict[str, Any] = request.app.openapi()
        return document

    @router.get("/", include_in_schema=False)
    @router.get("/page/{file}", include_in_schema=False)
    async def page(request: Request, file: str = "index.html") -> Response:
        if file not in pages:
            raise NotFound(f"the page has no file {file!r}")
        content, headers = pages[file]
        fresh = request.headers.get("if-none-match") == headers["ETag"]
        return Response(None if fresh else content, 304 if fresh else 200, headers)

    return router


def _loaded(models: Sequence[ModelStatus]) -> list[Version]:
    return [status.version for model in models for status in model.versions if status.version is not None]


def _page(path: Path) -> tuple[bytes, dict[str, str]]:
    """A file of the page and the headers that it goes with."""
    content = path.read_bytes()
    headers = {
        "Content-Type": mimetypes.types_map.get(path.suffix, "application/octet-stream"),
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
        "ETag": f'"{hashlib.sha256(content).hexdigest()[:16]}"',
    }
    return content, headers
