"""Where the requests of a model go: decided once for many requests, then only looked up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tesserec.serve.state import ModelState
from tesserec.serve.traffic import choose, falls_within
from tesserec.serve.version import Version


@dataclass(frozen=True, slots=True)
class Route:
    """live: answers what nothing else claims. shares: (label, percent) of each of `versions`."""

    live: Version
    shares: tuple[tuple[str, float], ...]
    versions: tuple[Version, ...]
    shadow: tuple[Version, float] | None

    def pick(self, key: str | None) -> Version:
        """The version that answers a request with this key."""
        return self.versions[choose(key, self.shares)] if self.shares else self.live

    def shadow_of(self, key: str | None) -> Version | None:
        """The version that scores such a request besides."""
        if self.shadow is None:
            return None
        version, percent = self.shadow
        return version if falls_within(f"shadow of {version.model}", key, percent) else None

    def all(self) -> tuple[Version, ...]:
        """All versions that requests go to."""
        return (self.live, *self.versions, *([self.shadow[0]] if self.shadow else []))

    def percent(self, version: Version) -> float:
        """Of the requests that the version answers."""
        shares = zip(self.versions, self.shares, strict=True)
        own = {held.number: percent for held, (_, percent) in shares} or {self.live.number: 100.0}
        return own.get(version.number, 0.0)

    def shadow_percent(self, version: Version) -> float:
        """Of the requests that the version scores besides."""
        return self.shadow[1] if self.shadow and self.shadow[0] is version else 0.0


def route_of(state: ModelState, ready: Mapping[str, Version], before: Version | None) -> Route | None:
    """The route by what was decided and what is ready; None when nothing can answer.

    The live version, or what to fall back to; until one of them is ready, what was live `before`. The share
    of a version that is not ready is the live version's.
    """
    live = next((ready[v] for v in state.chain() if v in ready), before)
    if live is None or ready.get(live.number) is not live:
        return None
    percents = {number: percent for number, percent in state.split.items() if number in ready}
    rest = 100 - sum(percents.values())
    if percents and rest > 1e-9:
        percents[live.number] = percents.get(live.number, 0) + rest
    shares = tuple((f"{live.model}/{number}", percent) for number, percent in percents.items())
    shadow = state.shadow and ready.get(state.shadow.version)
    return Route(
        live,
        shares,
        tuple(ready[number] for number in percents),
        (shadow, state.shadow.percent) if shadow and state.shadow else None,
    )
