"""Reading and changing models and versions. Changes are on the disk before they are answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Path

from tesserec.serve.openapi import problems
from tesserec.serve.problems import BadBody, Conflict, NotFound, TooLarge, Unprocessable
from tesserec.serve.service import Service
from tesserec.serve.version import Version
from tesserec.serve.views import (
    Detail,
    ModelDetail,
    ModelsView,
    ModelView,
    Traffic,
    VersionDetail,
    VersionView,
)

Name = Annotated[str, Path(description="A model's name.", examples=["ml100k"])]
Number = Annotated[str, Path(description="A version's number.", examples=["3"])]


def model_routes(service: Service) -> APIRouter:
    """`/v1/models`, and what is below it but for the hot routes."""
    router = APIRouter(prefix="/v1/models", tags=["models"])
    repository = service.repository
    change = problems(NotFound, Conflict)

    @router.get("")
    def models() -> ModelsView:
        """All models and their versions."""
        return ModelsView(models=[ModelView.of(model) for model in repository.models()])

    @router.get("/{name}", responses=problems(NotFound))
    def model(name: Name) -> ModelDetail:
        """One model; the schema of its rows and an example are those of the version that answers."""
        status = repository.model(name)
        serving = next((v.version for v in status.versions if v.number == status.serving), None)
        return ModelDetail(**dict(ModelView.of(status)), **_detail(serving))

    @router.get("/{name}/versions/{version}", responses=problems(NotFound))
    def version(name: Name, version: Number) -> VersionDetail:
        """One version; what its requests look like is known when it is ready."""
        statuses = repository.model(name).versions
        status = next((status for status in statuses if status.number == version), None)
        if status is None:
            raise NotFound(f"model {name!r} has no version {version!r}")
        return VersionDetail(**dict(VersionView.of(status)), **_detail(status.version))

    def changing(path: str, act: Callable[[str, str], object], text: str) -> None:
        def changed(name: Name, version: Number) -> ModelView:
            act(name, version)
            return ModelView.of(repository.model(name))

        changed.__name__ = path
        router.post(f"/{{name}}/versions/{{version}}:{path}", responses=change, description=text)(changed)

    changing("load", repository.load, "Ask for a version in memory. It is loaded when its state is `ready`.")
    changing("unload", repository.unload, "Drop a version from memory, unless requests go to it.")
    changing("promote", repository.promote, "Make a version that is ready live, alone.")

    @router.post("/{name}:rollback", responses=change)
    def rollback(name: Name) -> ModelView:
        """Make the version that was live before live again."""
        return ModelView.of(repository.rollback(name))

    @router.put("/{name}/traffic", responses=problems(BadBody, NotFound, Conflict, TooLarge, Unprocessable))
    def traffic(name: Name, wanted: Traffic) -> ModelView:
        """Share the requests out among versions that are ready, and have one score some of them unseen.

        A request's share is drawn by a stable hash of its key: the same key always meets the same version.
        """
        return ModelView.of(repository.set_traffic(name, wanted.split, wanted.shadow))

    return router


def _detail(version: Version | None) -> dict[str, Any]:
    if version is None:
        return {}
    return dict(
        Detail(row_schema=version.decoder.json_schema(), input_example=version.artefact.input_example())
    )
