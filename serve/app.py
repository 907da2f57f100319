"""The HTTP surface, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route

from tesserec import __version__
from tesserec.serve.access import AccessLog, Gate
from tesserec.serve.openapi import PROBLEM, document
from tesserec.serve.problems import BadBody, NotAllowed, NotFound, Problem, Unprocessable
from tesserec.serve.repository import Repository
from tesserec.serve.routes import PREDICT, RANK, Scoring
from tesserec.serve.routes_models import model_routes
from tesserec.serve.routes_service import service_routes
from tesserec.serve.service import Service
from tesserec.serve.settings import ServeSettings

_HTTP_PROBLEMS: dict[int, type[Problem]] = {400: BadBody, 404: NotFound, 405: NotAllowed}


def create_app(repository: Repository, settings: ServeSettings, counts: Path | None = None) -> FastAPI:
    """An app around a repository that is not started yet: it is, while the app runs.

    `app.state.service` is the Service. counts: the folder in which several workers share what they counted.
    No globals: two apps in one process do not meet.
    """
    service, on = Service(repository, settings, counts), settings.otel

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="Tesserec ranking service",
        version=__version__,
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": on, "metrics": on, "logs": on, "auto_configure": on},
    )
    app.state.service = service
    for path in ("/v1/models/{name}", "/v1/models/{name}/versions/{version}"):
        app.router.routes.append(Route(f"{path}:rank", Scoring(service, RANK), methods=["POST"]))
        app.router.routes.append(Route(f"{path}:predict", Scoring(service, PREDICT), methods=["POST"]))
    app.include_router(model_routes(service))
    app.include_router(service_routes(service))
    log = None if settings.access_log is None else AccessLog(settings.access_log)
    app.add_middleware(Gate, tokens=service.tokens, log=log, answers=service.metrics.answers)
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)

    def openapi() -> dict[str, Any]:
        versions = [
            status.version
            for model in repository.models()
            for status in model.versions
            if status.version is not None and status.number == model.serving
        ]
        return document(app, versions, settings.limits, tokens=service.tokens is not None)

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _answer(problem: Problem) -> JSONResponse:
    return JSONResponse(problem.to_json(), problem.status, problem.headers(), PROBLEM)


def _problem(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Problem)
    return _answer(error)


def _invalid(request: Request, error: Exception) -> JSONResponse:
    """The first thing that was wrong with a body of a management route."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _answer(BadBody(f"the body is not JSON: {first['ctx']['error']}"))
    field = ".".join(str(part) for part in first["loc"][1:])
    return _answer(Unprocessable(f"{field or 'the body'}: {first['msg']}", field=field))


def _http(request: Request, error: Exception) -> JSONResponse:
    """What Starlette refuses; or a problem that it met while it read a body."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, Problem):
        return _answer(error.__cause__)
    problem = _HTTP_PROBLEMS.get(error.status_code, Problem)(
        f"{request.method} {request.url.path}: {error.detail}"
    )
    response = _answer(problem)
    response.headers.update(error.headers or {})
    return response
