"""The versions that a process has in memory, and those that it should have.

All of it is done under the repository's lock, and nothing here takes long.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest

from tesserec.serve.places import Found, Place, Signature
from tesserec.serve.route import Route, route_of
from tesserec.serve.state import ModelState, ServiceState, may_go_live, needed, spare
from tesserec.serve.status import ModelStatus, State, VersionStatus
from tesserec.serve.version import Version


class NoRoom(ValueError):
    """A version that does not fit into the memory that may be used."""


@dataclass(slots=True, eq=False)
class Slot:
    """A version that is on disk, in memory, or both.

    error: why it is not to be loaded; no_room: only because memory was full. asked: how often it was asked
    for, when that was last looked at. signature: of the files that failed. verified: its tables are sound.
    """

    place: Place
    state: State = "found"
    error: str = ""
    no_room: bool = False
    signature: Signature = ()
    version: Version | None = None
    verified: bool = False
    asked: int = 0

    def reset(self) -> None:
        """Neither in memory nor failed."""
        self.state, self.error, self.no_room, self.signature = "found", "", False, ()
        self.version, self.verified = None, False

    def put(self, version: Version) -> None:
        """In memory, and fit to answer."""
        self.reset()
        self.state, self.version = "ready", version

    def fail(self, error: str, *, no_room: bool = False, signature: Signature = ()) -> None:
        """Not to be used: why."""
        self.reset()
        self.state, self.error, self.no_room, self.signature = "failed", error, no_room, signature

    def give_way(self, place: Place) -> None:
        """Out of memory, for the sake of another version."""
        self.reset()
        self.error, self.no_room = f"it made room for {place}", True

    def obey(self, decided: ModelState) -> None:
        """Take over what all workers know: that it failed, or that it is asked for again."""
        asked = decided.loaded.get(self.place.number, 0)
        if asked != self.asked and self.version is None and self.error:
            self.reset()
        self.asked = asked
        error = decided.failed.get(self.place.number)
        if error is not None and self.state != "failed":
            self.fail(error)


@dataclass(slots=True)
class Shelf:
    """slots: model -> version -> slot, by rising number; routes: model -> where its requests go.

    memory_bytes: what all versions may take together. `routes` is replaced, never changed: it is read without
    the lock.
    """

    memory_bytes: int | None
    auto_promote: bool
    slots: dict[str, dict[str, Slot]] = field(default_factory=dict)
    refused: dict[str, tuple[str, ...]] = field(default_factory=dict)
    routes: dict[str, Route] = field(default_factory=dict)

    def take(self, found: Found) -> None:
        """What is on disk now. Versions that are in memory stay, also when their folders have gone."""
        self.refused = found.refused
        for model in sorted(found.places.keys() | self.slots.keys()):
            places, slots = found.places.get(model, {}), self.slots.get(model, {})
            kept = {number: slot for number, slot in slots.items() if slot.version or number in places}
            added = {number: Slot(place) for number, place in places.items() if number not in kept}
            self.slots[model] = dict(sorted((kept | added).items(), key=lambda item: int(item[0])))
        self.slots = {model: slots for model, slots in self.slots.items() if slots}

    def arrange(self, state: ServiceState) -> None:
        """Make the routes anew, and drop what is no longer wanted; nothing that requests go to."""
        routes, held = {}, len(self.loaded())
        for model, slots in self.slots.items():
            decided, before = state.model(model), self.routes.get(model)
            for slot in slots.values():
                slot.obey(decided)
            ready = {number: slot.version for number, slot in slots.items() if slot.version}
            route = route_of(decided, ready, before.live if before else None)
            if route is not None:
                routes[model] = route
        self.routes = routes
        for slot in self._idle():
            if slot not in self._wanted(state, slot.place.model):
                slot.reset()
        if len(self.loaded()) < held:  # there may be room now for those that had none
            for slot in self._all():
                if slot.no_room:
                    slot.reset()

    def missing(self, state: ServiceState) -> Slot | None:
        """What should be loaded next."""
        return next((slot for slot in self._by_urgency(state) if slot.version is None), None)

    def unverified(self, state: ServiceState) -> Slot | None:
        """What should be verified next."""
        return next((slot for slot in self._by_urgency(state) if slot.version and not slot.verified), None)

    def newest(self, state: ServiceState) -> list[Place]:
        """Versions that should go live by themselves."""
        ready = (slot.place for slot in self._all() if slot.version and self.auto_promote)
        return [place for place in ready if may_go_live(state.model(place.model), place.number)]

    def failed(self) -> list[Slot]:
        """What failed here, and may have been mended."""
        return [slot for slot in self._all() if slot.state == "failed" and slot.signature]

    def loaded(self) -> list[Version]:
        """What is in memory."""
        return [slot.version for slot in self._all() if slot.version is not None]

    def admit(self, slot: Slot, nbytes: int, state: ServiceState) -> None:
        """Make room for `nbytes`, at the cost of versions that only wait for a rollback. NoRoom."""
        if self.memory_bytes is None:
            return
        lacking = sum(version.nbytes for version in self.loaded()) + nbytes - self.memory_bytes
        waiting = self._waiting(state) if slot in self._needed(state, slot.place.model) else []
        if lacking > sum(_nbytes(other) for other in waiting):
            raise NoRoom(self._full(slot.place, nbytes))
        for other in waiting:
            if lacking > 0:
                lacking -= _nbytes(other)
                other.give_way(slot.place)

    def status(self, state: ServiceState, model: str) -> ModelStatus:
        """All there is to know about a model."""
        decided, route, slots = state.model(model), self.routes.get(model), self.slots[model]
        return ModelStatus(
            name=model,
            live=decided.live,
            serving=route.live.number if route else None,
            history=decided.history,
            split=decided.split,
            shadow=decided.shadow,
            versions=tuple(_status(slot, decided, route) for slot in slots.values()),
            refused=self.refused.get(model, ()),
        )

    def unsettled(self, state: ServiceState, model: str) -> str:
        """Why a model does not answer as was decided; "" when it does, or a version that would failed."""
        slots, decided = self.slots.get(model, {}), state.model(model)
        awaited = [n for n in (decided.serving() if model in self.routes else slots) if n in slots]
        told = [f"version {n} {_told(slots[n])}" for n in awaited if slots[n].version is None]
        if model in self.routes and all(slots[n].state in ("ready", "failed") for n in awaited):
            return ""
        if decided.live is None and not self.auto_promote:
            told.append("no version is live: load one, then promote it")
        if decided.live not in (None, *slots):
            told.append(f"version {decided.live} is live but not there: put it back, or promote another one")
        return "; ".join(told) or "no version is there, or one is about to go live"

    def _all(self) -> Iterator[Slot]:
        return (slot for slots in self.slots.values() for slot in slots.values())

    def _unusable(self, model: str) -> list[str]:
        return [number for number, slot in self.slots[model].items() if slot.error]

    def _needed(self, state: ServiceState, model: str) -> list[Slot]:
        """Versions of a model that must be in memory, the most urgent first."""
        slots = self.slots[model]
        numbers = needed(state.model(model), slots, self._unusable(model), auto_promote=self.auto_promote)
        return [slots[number] for number in numbers]

    def _wanted(self, state: ServiceState, model: str) -> list[Slot]:
        """The needed versions, and the one that a rollback would go to."""
        slots, first = self.slots[model], self._needed(state, model)
        spares = (slots[number] for number in spare(state.model(model), slots, self._unusable(model)))
        return first + [slot for slot in spares if slot not in first]

    def _by_urgency(self, state: ServiceState) -> Iterator[Slot]:
        """All wanted versions: the most urgent one of each model first."""
        wanted = (self._wanted(state, model) for model in self.slots)
        return (slot for rank in zip_longest(*wanted) for slot in rank if slot is not None)

    def _idle(self) -> list[Slot]:
        """What is in memory, but no requests go to."""
        answering = {version for route in self.routes.values() for version in route.all()}
        return [slot for slot in self._all() if slot.version and slot.version not in answering]

    def _waiting(self, state: ServiceState) -> list[Slot]:
        """What is in memory only for a rollback."""
        return [slot for slot in self._idle() if slot not in self._needed(state, slot.place.model)]

    def _full(self, place: Place, nbytes: int) -> str:
        assert self.memory_bytes is not None
        held = ", ".join(f"{slot.place} {_mib(_nbytes(slot))}" for slot in self._all() if slot.version)
        return (
            f"{place} takes {_mib(nbytes)} of memory; of {_mib(self.memory_bytes)} that versions may take, "
            f"others have {held or 'none'}: unload one, or allow more"
        )


def _nbytes(slot: Slot) -> int:
    return slot.version.nbytes if slot.version else 0


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB"


def _told(slot: Slot) -> str:
    """`is loading`, `failed: …`."""
    return f"failed: {slot.error}" if slot.state == "failed" else f"is {slot.state}"


def _status(slot: Slot, decided: ModelState, route: Route | None) -> VersionStatus:
    number, version = slot.place.number, slot.version
    left = slot.state == "found" and number in decided.unloaded
    return VersionStatus(
        number=number,
        state="unloaded" if left else slot.state,
        error=slot.error,
        live=number == decided.live,
        percent=route.percent(version) if route and version else 0.0,
        shadow_percent=route.shadow_percent(version) if route and version else 0.0,
        verified=slot.verified,
        version=version,
    )
