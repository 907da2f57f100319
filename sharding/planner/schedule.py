"""Schedule: how the loads of ranks become the time of a step.

A load is seconds of one rank in one column. Columns add up to lanes: what one rank, or one of its links, does
between two collectives. Lanes of one phase run side by side, phases one after the other, and every phase ends
for all when the last is done. What goes on beside (batches are read, ids of the next one travel, dense
gradients are summed) takes time only where cores or links have none to spare:

    main = Σ over phases of max over ranks and lanes of the phase
    step = max(main + what is left of the dense sums, the busiest rank's cores, the busiest link, ids' way)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

# {lane: phase}: the phases of the main line in their order; -1 for what goes on beside it
LANES: Mapping[str, int] = {
    "rows": 0,  # the update of a step and the lookups of the next, without a collective between
    "vectors_inside": 1,
    "vectors_network": 1,
    "compute": 2,  # vectors added up, the dense model, gradients packed
    "grads_inside": 3,
    "grads_network": 3,
    "sums": 4,  # of replicas' gradients
    "replicas_inside": 5,
    "replicas_network": 5,
    "split": 6,  # gradients of rows in columns
    "columns_inside": 7,
    "columns_network": 7,
    "read": -1,
    "route": -1,
    "ids_inside": -1,
    "ids_network": -1,
    "reduction": -1,  # adding up dense gradients
    "reduction_inside": -1,
    "reduction_network": -1,
}
NUM_PHASES = 8

# {column: (stage of the timeline, lane)}
COLUMNS: Mapping[str, tuple[str, str]] = {
    "read": ("read", "read"),
    "route": ("input_dist", "route"),
    "ids_inside": ("input_dist", "ids_inside"),
    "ids_network": ("input_dist", "ids_network"),
    "lookup": ("look_up", "rows"),
    "vectors_inside": ("look_up", "vectors_inside"),
    "vectors_network": ("look_up", "vectors_network"),
    "add": ("look_up", "compute"),
    "dense": ("compute", "compute"),
    "rest": ("rest", "compute"),
    "pack": ("row_grads", "compute"),
    "grads_inside": ("row_grads", "grads_inside"),
    "grads_network": ("row_grads", "grads_network"),
    "sums": ("row_grads", "sums"),
    "replicas_inside": ("row_grads", "replicas_inside"),
    "replicas_network": ("row_grads", "replicas_network"),
    "reduction": ("reduction", "reduction"),
    "reduction_inside": ("reduction", "reduction_inside"),
    "reduction_network": ("reduction", "reduction_network"),
    "split": ("update", "split"),
    "columns_inside": ("update", "columns_inside"),
    "columns_network": ("update", "columns_network"),
    "update": ("update", "rows"),
}
STAGES = ("read", "input_dist", "look_up", "compute", "row_grads", "reduction", "update", "rest")

COLUMN = {name: k for k, name in enumerate(COLUMNS)}
LANE = {name: k for k, name in enumerate(LANES)}
LANE_OF = np.array([LANE[lane] for _, lane in COLUMNS.values()])
PHASE_OF = np.array(list(LANES.values()))
INSIDE = np.array([lane.endswith("_inside") for lane in LANES])
NETWORK = np.array([lane.endswith("_network") for lane in LANES])
TO_LANES: Numbers = (LANE_OF[:, None] == np.arange(len(LANES))).astype(np.float64)  # (K, J)

_CALLING = {1: "look_up", 3: "row_grads", 5: "row_grads", 7: "update"}  # {phase of messages: stage}
BACKWARD = 2 / 3  # of the dense model's time: as long as dense gradients are summed beside it


def lanes_of(loads: Numbers) -> Numbers:
    """(…, K) seconds by column -> (…, J) by lane."""
    return loads @ TO_LANES


@dataclass(frozen=True)
class Bound:
    """What a step cannot be faster than. who: "compute of rank 3", in words; seconds: of it."""

    name: str
    seconds: float
    who: str


@dataclass(frozen=True, eq=False)
class Schedule:
    """phase_seconds: (P,) what a phase takes where nothing is moved but anything is; cores: (W, J) whether a
    lane keeps the rank's cores busy. dense_seconds: (W,) of forward and backward.
    """

    phase_seconds: Numbers
    cores: Numbers
    ids_seconds: float
    dense_seconds: Numbers

    def step(self, loads: Numbers) -> float:
        """Seconds of a step, of (W, K) loads by column or (W, J) by lane."""
        lanes = loads if loads.shape[-1] == len(LANES) else lanes_of(loads)
        return self._total(self._phases(lanes), lanes)[0]

    def bounds(self, loads: Numbers) -> list[Bound]:
        """The critical path: phases in order, and what the rest of the step waits for. Sums to `step`."""
        lanes = lanes_of(loads)
        phases = self._phases(lanes)
        step, why = self._total(phases, lanes)
        path = [self._bound(p, float(t), lanes) for p, t in enumerate(phases) if t > 0]
        rest = step - float(phases.sum())
        return [*path, Bound(why[0], rest, why[1])] if rest > 1e-12 * step else path

    def calls(self, loads: Numbers) -> dict[str, float]:
        """{stage: seconds that its collectives take for nothing}, of those that move anything."""
        lanes = lanes_of(loads).max(axis=0)
        found = dict.fromkeys(STAGES, 0.0)
        found["input_dist"] = self.ids_seconds * (len(loads) > 1)
        for phase, stage in _CALLING.items():
            found[stage] += float(self.phase_seconds[phase]) * bool(lanes[self._lanes_of_phase[phase]].any())
        return found

    @cached_property
    def _lanes_of_phase(self) -> list[npt.NDArray[np.int64]]:
        return [np.flatnonzero(p == PHASE_OF) for p in range(NUM_PHASES)]

    def _phases(self, lanes: Numbers) -> Numbers:
        busiest = lanes.max(axis=0)
        found = np.array([busiest[mine].max() for mine in self._lanes_of_phase])
        return found + self.phase_seconds * (found > 0)

    def _total(self, phases: Numbers, lanes: Numbers) -> tuple[float, tuple[str, str]]:
        """(seconds, (what is waited for beside the main line, whose))."""
        main = float(phases.sum())
        sums = lanes[:, [LANE["reduction"], LANE["reduction_inside"], LANE["reduction_network"]]]
        late = sums.sum(axis=1) - BACKWARD * self.dense_seconds - phases[3:6].sum()
        cores = (lanes * self.cores).sum(axis=1)
        ids = lanes[:, [LANE["route"], LANE["ids_inside"], LANE["ids_network"]]].sum(axis=1)
        found = [
            (main + max(0.0, float(late.max())), ("reduction", _rank(late))),
            (float(cores.max()), ("beside", f"cores of {_rank(cores)}")),
            (self.ids_seconds + float(ids.max()), ("input_dist", _rank(ids))),
        ]
        for kind, name in ((INSIDE, "inside its host"), (NETWORK, "over the network")):
            link = lanes[:, kind].sum(axis=1)
            found.append((float(link.max()), ("beside", f"link of {_rank(link)} {name}")))
        return max(found, key=lambda pair: pair[0])

    def _bound(self, phase: int, seconds: float, lanes: Numbers) -> Bound:
        mine = self._lanes_of_phase[phase]
        rank, lane = np.unravel_index(int(lanes[:, mine].argmax()), (len(lanes), len(mine)))
        name = list(LANES)[mine[lane]]
        stage, _, link = name.partition("_")
        where = {"": "", "inside": ", link inside its host", "network": ", network"}[link]
        return Bound(stage, seconds, f"rank {rank}{where}")


def _rank(seconds: Numbers) -> str:
    return f"rank {int(seconds.argmax())}"
