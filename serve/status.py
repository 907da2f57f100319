"""What there is to know about models and versions, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tesserec.serve.state import Shadow
from tesserec.serve.version import Version

State = Literal["found", "loading", "warming", "ready", "failed", "unloaded"]


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One version.

    error: why it failed, or is not loaded. live: requests that nothing else claims go to it. percent: of the
    model's requests go to it, shadow_percent: are scored by it besides. verified: its tables were read and
    are sound. version: None unless it is ready.
    """

    number: str
    state: State
    error: str
    live: bool
    percent: float
    shadow_percent: float
    verified: bool
    version: Version | None


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model.

    live: what was decided; serving: what answers here and now, another one while the live one is still being
    loaded, or failed. history: what was live before, oldest first. refused: folders that are no versions.
    """

    name: str
    live: str | None
    serving: str | None
    history: tuple[str, ...]
    split: dict[str, float]
    shadow: Shadow | None
    versions: tuple[VersionStatus, ...]
    refused: tuple[str, ...]
