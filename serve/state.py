"""What is live, what was, and who gets how much: the one file that all workers follow and a restart reads.

`state.json` is replaced whole, under a lock, and is on the disk before a change is acknowledged. What a
change makes of a state, and which versions a state wants in memory, are functions of values.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field

from tesserec.dataio.atomic import atomic_file
from tesserec.dataio.config import ConfigError, StrictModel, parse_config

_HISTORY = 16  # how many versions back a rollback can go


class StateError(ValueError):
    """A state file that cannot be read."""


class Shadow(StrictModel):
    """A version that scores `percent` of the requests besides; its scores go to nobody."""

    version: str
    percent: float = Field(gt=0, le=100)


class ModelState(StrictModel):
    """What was decided about one model.

    history: what was live before, oldest first. highest: the largest number that ever was live, or had a part
    in the traffic; only larger ones are promoted by themselves. split: version -> percent of the requests;
    what it leaves, and the share of a version that cannot answer, is the live version's. loaded: version ->
    how often it was asked for since it was last unloaded. failed: version -> why it must not be used.
    """

    live: str | None = None
    history: tuple[str, ...] = ()
    highest: int = 0
    split: dict[str, float] = Field(default_factory=dict)
    shadow: Shadow | None = None
    loaded: dict[str, int] = Field(default_factory=dict)
    unloaded: tuple[str, ...] = ()
    failed: dict[str, str] = Field(default_factory=dict)

    def chain(self) -> tuple[str, ...]:
        """The live version, then what to fall back to, nearest first."""
        return (*([self.live] if self.live else []), *reversed(self.history))

    def serving(self) -> tuple[str, ...]:
        """Versions that requests go to by what was decided: live, split, shadow."""
        return (*self.chain()[:1], *self.split, *([self.shadow.version] if self.shadow else []))


class ServiceState(StrictModel):
    """Everything that was decided; `revision` counts the changes."""

    format_version: Literal[1] = 1
    revision: int = 0
    models: dict[str, ModelState] = Field(default_factory=dict)

    def model(self, name: str) -> ModelState:
        """What was decided about a model: at first, nothing."""
        return self.models.get(name, ModelState())


def promoted(state: ModelState, number: str) -> ModelState:
    """`number` live, alone; what was live can be rolled back to."""
    history = [v for v in (*state.history, state.live) if v not in (number, None)]
    return _live(state, number, history).model_copy(
        update={
            "highest": max(state.highest, int(number)),
            "unloaded": tuple(v for v in state.unloaded if v != number),
        }
    )


def may_go_live(state: ModelState, number: str) -> bool:
    """Whether `number` goes live unasked: newer than all that were live or tried, and no split is set."""
    return int(number) > state.highest and not state.split and number not in state.failed


def promoted_unasked(state: ModelState, number: str) -> ModelState:
    """`number` live if it may go live unasked; else as it was."""
    return promoted(state, number) if may_go_live(state, number) else state


def rolled_back(state: ModelState) -> ModelState:
    """What was live before, live again; as it was when there is no such version."""
    if not state.history:
        return state
    return _live(state, state.history[-1], state.history[:-1])


def with_failed(state: ModelState, number: str, reason: str) -> ModelState:
    """`number` never used again unless it is loaded on request.

    Were it live, the one before it now is; without one, if it was the newest, all is as at a first start.
    """
    state = state.model_copy(update={"failed": {**state.failed, number: reason}})
    usable = [v for v in state.history if v not in state.failed]
    if number != state.live:
        return state
    if usable:
        return _live(state, usable[-1], usable[:-1])
    if int(number) == state.highest:
        return _live(state, None, ()).model_copy(update={"highest": 0})
    return state


def with_loaded(state: ModelState, number: str) -> ModelState:
    """`number` kept in memory, whatever was said or found about it before."""
    return state.model_copy(
        update={
            "loaded": {**state.loaded, number: state.loaded.get(number, 0) + 1},
            "unloaded": tuple(v for v in state.unloaded if v != number),
            "failed": {v: why for v, why in state.failed.items() if v != number},
        }
    )


def with_unloaded(state: ModelState, number: str) -> ModelState:
    """`number` not kept in memory, unless it must answer requests."""
    return state.model_copy(
        update={
            "loaded": {v: times for v, times in state.loaded.items() if v != number},
            "unloaded": (*(v for v in state.unloaded if v != number), number),
        }
    )


def with_traffic(state: ModelState, split: Mapping[str, float], shadow: Shadow | None) -> ModelState:
    """Requests shared out by `split`, in percent; all to the live version when it is empty.

    What was tried in this way goes live when it is promoted, not by itself.
    """
    tried = [*split, *([shadow.version] if shadow else [])]
    highest = max(map(int, tried), default=0)
    return state.model_copy(
        update={"split": dict(split), "shadow": shadow, "highest": max(highest, state.highest)}
    )


def needed(
    state: ModelState, there: Collection[str], failed: Collection[str], *, auto_promote: bool
) -> list[str]:
    """Versions that must be in memory, the most urgent first.

    Of those that are there and did not fail: the live one (or what to fall back to), those that the split and
    the shadow name, the newest if it is to be promoted, and what was loaded on request.
    """
    usable = [v for v in there if v not in failed and v not in state.failed]
    live = [v for v in state.chain() if v in usable][:1]
    newer = [v for v in usable if int(v) > state.highest and v not in state.unloaded]
    newest = [max(newer, key=int)] if newer and auto_promote else []
    return [v for v in dict.fromkeys((*live, *state.serving(), *newest, *state.loaded)) if v in usable]


def spare(state: ModelState, there: Collection[str], failed: Collection[str]) -> list[str]:
    """The version that a rollback would go to, if it may be used: kept in memory as long as there is room."""
    usable = [v for v in state.chain() if v in there and v not in failed and v not in state.failed]
    return [v for v in usable[1:2] if v not in state.unloaded]


def _live(state: ModelState, number: str | None, history: Collection[str]) -> ModelState:
    shadow = None if state.shadow and state.shadow.version == number else state.shadow
    return state.model_copy(
        update={"live": number, "history": tuple(history)[-_HISTORY:], "split": {}, "shadow": shadow}
    )


class StateStore(Protocol):
    """Where the state is kept."""

    def read(self) -> ServiceState:
        """The state as it is now."""

    def change(self, name: str, change: Callable[[ModelState], ModelState]) -> ServiceState:
        """The state after `change` of one model; it lasts when this returns."""


class StateInMemory:
    """The state of a service that has nothing to remember."""

    def __init__(self) -> None:
        self._state = ServiceState()
        self._lock = threading.Lock()

    def read(self) -> ServiceState:
        """The state as it is now."""
        return self._state

    def change(self, name: str, change: Callable[[ModelState], ModelState]) -> ServiceState:
        """The state after `change` of one model."""
        with self._lock:
            self._state = _changed(self._state, name, change)
            return self._state


class StateFile:
    """The state in a file that several processes change and follow."""

    def __init__(self, path: Path):
        self.path = path
        self._last: tuple[tuple[int, ...], ServiceState] = ((), ServiceState())  # what was read of which file

    def read(self) -> ServiceState:
        """The state as it is now; without a file, that of a first start. StateError for a damaged one."""
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return ServiceState()
        file = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        seen, state = self._last
        if file != seen:
            state = _parse(self.path)
            self._last = file, state
        return state

    def change(self, name: str, change: Callable[[ModelState], ModelState]) -> ServiceState:
        """The state after `change` of one model: on the disk, and nobody else's change is lost.

        `change` may raise: then nothing is written.
        """
        with self._locked():
            before = _parse(self.path) if self.path.exists() else ServiceState()
            after = _changed(before, name, change)
            if after is not before:
                with atomic_file(self.path) as file:
                    file.write_text(json.dumps(after.model_dump(mode="json"), indent=2) + "\n")
            return after

    @contextmanager
    def _locked(self) -> Iterator[None]:
        handle = os.open(self.path.with_name(f"{self.path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _changed(state: ServiceState, name: str, change: Callable[[ModelState], ModelState]) -> ServiceState:
    """The next revision; the same object when `change` changes nothing."""
    before = state.model(name)
    after = change(before)
    if after == before:
        return state
    return ServiceState(revision=state.revision + 1, models={**state.models, name: after})


def _parse(path: Path) -> ServiceState:
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
        return parse_config(values, ServiceState, str(path))
    except (ConfigError, ValueError) as error:
        raise StateError(
            f"{path}: not a state of this release ({error}); put a good one in its place, or remove it: "
            "the service then starts as if for the first time"
        ) from None
