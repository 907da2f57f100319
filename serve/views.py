"""The JSON of models and versions, as the API documents it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from tesserec.serve.metrics import staleness_of
from tesserec.serve.state import Shadow
from tesserec.serve.status import ModelStatus, State, VersionStatus
from tesserec.serve.version import Version

VERSION_EXAMPLE: dict[str, Any] = {
    "version": "3",
    "state": "ready",
    "error": "",
    "live": True,
    "percent": 100.0,
    "shadow_percent": 0.0,
    "verified": True,
    "created": "2026-01-12T08:00:00Z",
    "model": "dcnv2",
    "tables": "int8",
    "nbytes": 2345678,
    "metrics": {"test_auc": 0.7866},
    "candidate_id": "item_id",
    "delta_sequence": 1704,
    "delta_error": "",
    "staleness_seconds": 0.8,
}
MODEL_EXAMPLE: dict[str, Any] = {
    "name": "ml100k",
    "live": "3",
    "serving": "3",
    "previous": "2",
    "split": {},
    "shadow": None,
    "versions": [VERSION_EXAMPLE],
    "refused": [],
}


class VersionView(BaseModel):
    """A version. What is only known of loaded versions is empty, 0 or null for others.

    percent: of the requests that go to it; shadow_percent: that it scores besides. verified: all bytes of its
    tables were read and are sound. model: its architecture. tables: how rows are stored. nbytes: of tables
    and id maps. delta_sequence: the last row delta applied; staleness_seconds: age of the newest training
    step in it, null where it follows no deltas.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [VERSION_EXAMPLE]})

    version: str
    state: State
    error: str
    live: bool
    percent: float
    shadow_percent: float
    verified: bool
    created: str = ""
    model: str = ""
    tables: str = ""
    nbytes: int = 0
    metrics: dict[str, Any] = {}
    candidate_id: str | None = None
    delta_sequence: int = 0
    delta_error: str = ""
    staleness_seconds: float | None = None

    @classmethod
    def of(cls, status: VersionStatus) -> VersionView:
        """What is known of a version."""
        view = cls(
            version=status.number,
            state=status.state,
            error=status.error,
            live=status.live,
            percent=status.percent,
            shadow_percent=status.shadow_percent,
            verified=status.verified,
        )
        return view if status.version is None else view.model_copy(update=_loaded(status.version))


class ModelView(BaseModel):
    """A model and its versions, newest first.

    live: the version that was decided on; serving: what answers in this moment, another one where the live
    one is still being loaded. previous: what a rollback would make live. refused: folders that are no
    versions.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [MODEL_EXAMPLE]})

    name: str
    live: str | None
    serving: str | None
    previous: str | None
    split: dict[str, float]
    shadow: Shadow | None
    versions: list[VersionView]
    refused: list[str]

    @classmethod
    def of(cls, status: ModelStatus) -> ModelView:
        """What is known of a model."""
        versions = sorted(status.versions, key=lambda v: int(v.number), reverse=True)
        return cls(
            name=status.name,
            live=status.live,
            serving=status.serving,
            previous=status.history[-1] if status.history else None,
            split=status.split,
            shadow=status.shadow,
            versions=[VersionView.of(version) for version in versions],
            refused=list(status.refused),
        )


def _loaded(version: Version) -> dict[str, Any]:
    artefact, follower = version.artefact, version.follower
    return {
        "created": artefact.created,
        "model": artefact.model_spec.name,
        "tables": artefact.data_type,
        "nbytes": version.nbytes,
        "metrics": artefact.metrics,
        "candidate_id": artefact.candidate_id,
        "delta_sequence": follower.sequence,
        "delta_error": follower.problem,
        "staleness_seconds": staleness_of(version),
    }


class ModelsView(BaseModel):
    """All models, by name."""

    models: list[ModelView]


class Detail(BaseModel):
    """What requests look like. row_schema: JSON Schema of a raw row; input_example: a body for `:rank`."""

    row_schema: dict[str, Any] = Field({}, serialization_alias="schema")
    input_example: dict[str, Any] = {}


class ModelDetail(ModelView, Detail):
    """A model, and what its requests look like."""


class VersionDetail(VersionView, Detail):
    """A version, and what its requests look like."""


class Traffic(BaseModel):
    """How requests are shared out. split: percent by version; empty: all to the live one."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"split": {"3": 90, "2": 10}, "shadow": {"version": "4", "percent": 10}}]
        },
    )

    split: dict[str, Annotated[float, Field(gt=0, le=100)]] = {}
    shadow: Shadow | None = None
