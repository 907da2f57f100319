"""A folder of models and versions, watched: new versions are loaded, proved and swapped in.

Requests meet an immutable route and hold the version that they were given, so that nothing that happens here
can fail them. What was decided is in state.json (tesserec.serve.state), which several workers share: each
loads what it says, and serves what it says as soon as that is ready.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tesserec.dataio.config import did_you_mean
from tesserec.serve.artefact import Artefact
from tesserec.serve.decode import Limits
from tesserec.serve.manifest import read_manifest
from tesserec.serve.places import MANIFEST, Found, Place, Signature, find_versions, signature
from tesserec.serve.problems import Conflict, NotFound, NotReady, Unprocessable
from tesserec.serve.shelf import NoRoom, Shelf, Slot
from tesserec.serve.state import (
    ModelState,
    Shadow,
    StateFile,
    StateInMemory,
    StateStore,
    promoted,
    promoted_unasked,
    rolled_back,
    with_failed,
    with_loaded,
    with_traffic,
    with_unloaded,
)
from tesserec.serve.status import ModelStatus, VersionStatus
from tesserec.serve.version import Version

Admit = Callable[[int], None]  # told how many bytes of memory are needed; raises where there is no room
Loader = Callable[[Place, Admit], Version]

_LOG = logging.getLogger("tesserec.serve")
_RETRY_SECONDS = 1


@dataclass(frozen=True, slots=True)
class RepositorySettings:
    """memory_bytes: what all loaded versions may take; None: no limit. auto_promote: a new version goes live
    when it is ready. poll_seconds: between looks at folders, deltas and state. limits, max_rows: of decoders
    and engines.
    """

    memory_bytes: int | None = None
    auto_promote: bool = True
    poll_seconds: float = 0.25
    limits: Limits = field(default_factory=Limits)
    max_rows: int = 1024


def load_version(settings: RepositorySettings, place: Place, admit: Admit) -> Version:
    """The version at `place`; `admit` is asked before it takes memory. ArtefactError."""
    artefact = Artefact.open(place.path)
    admit(artefact.nbytes)
    return Version(place, artefact, limits=settings.limits, max_rows=settings.max_rows)


class Repository:
    """The models under a folder, or the one artefact that it is; then nothing is remembered on disk.

    A method that changes something has it on the disk, and in effect here, when it returns. All of them may
    be called by any thread; those that change something wait for the disk.
    """

    def __init__(self, path: Path, settings: RepositorySettings, loader: Loader | None = None):
        """ArtefactError, RepositoryError, StateError: what of the folder cannot be served."""
        self._path, self._settings = path, settings
        self._loader = loader or partial(load_version, settings)
        alone = (path / MANIFEST).is_file()
        self._only = Place(read_manifest(path)[0].name, "1", path) if alone else None
        self._store: StateStore = StateInMemory() if alone else StateFile(path / "state.json")
        self._lock = threading.Lock()  # of the shelf
        self._shelf = Shelf(settings.memory_bytes, settings.auto_promote)
        self._stopping = threading.Event()
        steps = (self._watch, self._load_next, self._follow, self._verify_next)
        self._threads = [threading.Thread(target=self._repeat, args=(step,), daemon=True) for step in steps]
        self._settled: set[str] = set()  # models that have answered as was decided
        self._state = self._store.read()  # as it was last followed
        found = self._find()
        self._take(found)
        decided = {name for name, model in self._state.models.items() if model.live}
        self._expected = decided or set(found.places)

    def start(self) -> None:
        """Go on looking, loading, following deltas and verifying in the background."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End what goes on in the background."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def pick(self, name: str, key: str | None) -> Version:
        """The version that answers a request with this key. NotFound, NotReady."""
        route = self._shelf.routes.get(name)
        if route is None:
            raise self._absent(name)
        return route.pick(key)

    def shadow(self, name: str, key: str | None) -> Version | None:
        """The version that scores such a request besides."""
        route = self._shelf.routes.get(name)
        return None if route is None else route.shadow_of(key)

    def version(self, name: str, number: str) -> Version:
        """A given version. NotFound, NotReady."""
        with self._lock:
            slot = self._slot(name, number)
            if slot.version is None:
                raise NotReady(f"{_standing(slot)}; ask for it by :load", retry_after=_RETRY_SECONDS)
            return slot.version

    def models(self) -> list[ModelStatus]:
        """All models, by name."""
        with self._lock:
            return [self._shelf.status(self._state, name) for name in sorted(self._shelf.slots)]

    def model(self, name: str) -> ModelStatus:
        """One model. NotFound."""
        with self._lock:
            self._slots(name)
            return self._shelf.status(self._state, name)

    def not_ready(self) -> dict[str, str]:
        """Model -> why it cannot answer yet. The service is ready when there is none."""
        with self._lock:
            live = {name for name, model in self._state.models.items() if model.live}
            reasons = {name: self._reason(name) for name in sorted(self._expected | live)}
            return {name: why for name, why in reasons.items() if why} if reasons else self._empty()

    def load(self, name: str, number: str) -> VersionStatus:
        """Ask for a version in memory, where it stays; that goes on in the background. NotFound."""

        def change(state: ModelState) -> ModelState:
            return with_loaded(state, number)

        with self._lock:
            self._slot(name, number)
        self._change(name, change)
        return self._version_status(name, number)

    def unload(self, name: str, number: str) -> VersionStatus:
        """Drop a version from memory. NotFound; Conflict while requests go to it."""

        def change(state: ModelState) -> ModelState:
            if number in state.serving():
                told = f"requests go to version {number} of {name!r}"
                raise Conflict(f"{told}: promote another one, or take it out of the traffic, first")
            return with_unloaded(state, number)

        with self._lock:
            self._slot(name, number)
        self._change(name, change)
        return self._version_status(name, number)

    def promote(self, name: str, number: str) -> ModelStatus:
        """Make a ready version live, and let all requests go to it. NotFound; Conflict unless it is ready."""

        def change(state: ModelState) -> ModelState:
            self._check_ready(name, number)
            return promoted(state, number)

        self._change(name, change)
        return self.model(name)

    def rollback(self, name: str) -> ModelStatus:
        """Make the version before the live one live again. NotFound; Conflict unless it is ready."""

        def change(state: ModelState) -> ModelState:
            if not state.history:
                raise Conflict(f"nothing was live of {name!r} before version {state.live}")
            self._check_ready(name, state.history[-1])
            return rolled_back(state)

        self._change(name, change)
        return self.model(name)

    def set_traffic(self, name: str, split: Mapping[str, float], shadow: Shadow | None) -> ModelStatus:
        """Share the requests out, in percent by version; with an empty split all go to the live version.

        NotFound; Conflict for a version that is not ready; Unprocessable for shares that are no shares.
        """
        _check_shares(split)

        def change(state: ModelState) -> ModelState:
            for number in (*split, *([shadow.version] if shadow else [])):
                self._check_ready(name, number)
            if state.live is None:
                raise Conflict(f"no version of {name!r} is live: promote one first")
            return with_traffic(state, split, shadow)

        self._change(name, change)
        return self.model(name)

    def _change(self, name: str, change: Callable[[ModelState], ModelState]) -> None:
        """Decide, durably; then do so. NotFound."""
        with self._lock:
            self._slots(name)
        self._store.change(name, change)
        self._apply()

    def _apply(self) -> None:
        """Do what was decided, here or by another worker."""
        with self._lock:
            self._state = self._store.read()
            self._shelf.arrange(self._state)

    def _repeat(self, step: Callable[[], bool]) -> None:
        """Take a step until there is nothing to do, look again a little later, and so on until the end."""
        problem = ""
        while not self._stopping.is_set():
            busy = False
            try:
                busy, problem = step(), ""
            except Exception as error:  # of a full disk, a damaged state.json: go on serving what there is
                if str(error) != problem:
                    _LOG.exception("%s: this is tried until it succeeds", self._path)
                problem = str(error)
            if not busy:
                self._stopping.wait(self._settings.poll_seconds)

    def _watch(self) -> bool:
        """See what is new on disk, and what others have decided."""
        found = self._find()
        with self._lock:
            failed = [(slot, slot.signature) for slot in self._shelf.failed()]
        mended = [slot for slot, before in failed if signature(slot.place.path) != before]
        self._take(found)
        with self._lock:
            for slot in mended:
                if slot.state == "failed":
                    slot.reset()
        self._apply()
        self._promote_newest()
        return False

    def _take(self, found: Found) -> None:
        """Know what is on disk, and say what of it is no version."""
        with self._lock:
            known = {text for texts in self._shelf.refused.values() for text in texts}
            self._shelf.take(found)
        for text in {text for texts in found.refused.values() for text in texts} - known:
            _LOG.warning("%s", text)

    def _load_next(self) -> bool:
        """Load the version that is wanted most -> whether there was one."""
        with self._lock:
            slot = self._shelf.missing(self._state)
            if slot is None:
                return False
            slot.state = "loading"
        _LOG.info("%s is loading (the first one on a machine compiles kernels, up to a minute)", slot.place)
        files = signature(slot.place.path)
        try:
            version = self._loader(slot.place, partial(self._admit, slot))
            slot.state = "warming"
            version.warm_up()
        except Exception as error:  # a model's own code may raise anything
            self._fail(slot, error, files)
        else:
            with self._lock:
                slot.put(version)
            _LOG.info("%s is ready", slot.place)
        self._apply()
        self._promote_newest()
        return True

    def _admit(self, slot: Slot, nbytes: int) -> None:
        with self._lock:
            self._shelf.admit(slot, nbytes, self._state)

    def _fail(self, slot: Slot, error: Exception, files: Signature) -> None:
        expected = isinstance(error, ValueError)
        told = str(error) if expected else f"{type(error).__name__}: {error}"
        _LOG.warning("%s failed: %s", slot.place, told, exc_info=None if expected else error)
        with self._lock:
            slot.fail(told, no_room=isinstance(error, NoRoom), signature=files)

    def _promote_newest(self) -> None:
        with self._lock:
            places = self._shelf.newest(self._state)
        for place in places:
            self._change(place.model, partial(promoted_unasked, number=place.number))
            _LOG.info("%s is live", place)

    def _follow(self) -> bool:
        """Apply the deltas that have come."""
        with self._lock:
            versions = self._shelf.loaded()
        for version in versions:
            version.follower.poll()
        return False

    def _verify_next(self) -> bool:
        """Read all tables of the most important version that is not verified -> whether there was one."""
        _give_way()
        with self._lock:
            slot = self._shelf.unverified(self._state)
            if slot is None or slot.version is None:
                return False
            version = slot.version
        try:
            version.verify(lambda: self._stopping.is_set() or slot.version is not version)
        except (ValueError, OSError) as error:
            _LOG.warning("%s failed: %s", slot.place, error)
            reason = str(error)
            self._change(slot.place.model, partial(with_failed, number=slot.place.number, reason=reason))
            return True
        with self._lock:
            slot.verified = slot.version is version
        return True

    def _find(self) -> Found:
        if self._only is None:
            return find_versions(self._path)
        return Found({self._only.model: {self._only.number: self._only}})

    def _reason(self, name: str) -> str:
        """Why a model cannot answer; once it has answered as was decided, an older version will do."""
        if name in self._settled and name in self._shelf.routes:
            return ""
        reason = self._shelf.unsettled(self._state, name)
        if not reason:
            self._settled.add(name)
        return reason

    def _empty(self) -> dict[str, str]:
        refused = [text for texts in self._shelf.refused.values() for text in texts]
        return {} if self._shelf.routes else {str(self._path): "; ".join(["no model is there yet", *refused])}

    def _absent(self, name: str) -> NotFound | NotReady:
        with self._lock:
            try:
                self._slots(name)
            except NotFound as error:
                return error
            reason = self._shelf.unsettled(self._state, name)
        return NotReady(f"model {name!r} cannot answer: {reason}", retry_after=_RETRY_SECONDS)

    def _slots(self, name: str) -> dict[str, Slot]:
        if name not in self._shelf.slots:
            near = did_you_mean(name, self._shelf.slots)
            raise NotFound(f"no model {name!r}{near}")
        return self._shelf.slots[name]

    def _slot(self, name: str, number: str) -> Slot:
        slots = self._slots(name)
        if number not in slots:
            raise NotFound(f"model {name!r} has no version {number!r}; it has {', '.join(slots)}")
        return slots[number]

    def _check_ready(self, name: str, number: str) -> None:
        with self._lock:
            slot = self._slot(name, number)
            if slot.version is None:
                raise Conflict(f"{_standing(slot)}; wanted one that is ready: ask for it by :load, and wait")

    def _version_status(self, name: str, number: str) -> VersionStatus:
        return next(version for version in self.model(name).versions if version.number == number)


def _give_way() -> None:
    """Let all other threads run before this one, on systems where threads have priorities of their own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _standing(slot: Slot) -> str:
    why = f": {slot.error}" if slot.error else ""
    return f"version {slot.place.number} of {slot.place.model!r} is {slot.state}{why}"


def _check_shares(split: Mapping[str, float]) -> None:
    """Unprocessable unless the percents are above 0 and make 100 together."""
    for number, percent in split.items():
        if not 0 < percent <= 100:  # nor NaN
            raise Unprocessable(
                f"{percent} percent, wanted more than 0, at most 100", field=f"split.{number}"
            )
    total = math.fsum(split.values())
    if split and not math.isclose(total, 100, abs_tol=1e-6):
        raise Unprocessable(f"the shares make {total:g} percent together, wanted 100", field="split")
