"""The ranking service: artefacts, the engine that scores with them, the REST API and its client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tesserec.serve.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> Any:
    """The clients come with httpx, which the service does not need: import it when they are asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tesserec.serve import client

    return getattr(client, name)
