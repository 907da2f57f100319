"""Learning-rate schedules: pure functions of the step that give a factor of the base rate.

optimizer.lr = base_lr * linear_warmup(step, warmup=1000) * cosine(step, total=100_000)
"""

from __future__ import annotations

import math
from collections.abc import Mapping


def constant(step: int) -> float:
    """1."""
    return 1.0


def linear_warmup(step: int, *, warmup: int) -> float:
    """(step + 1) / warmup, then 1: the first step already moves, step warmup - 1 has the full rate."""
    return min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0


def cosine(step: int, *, total: int, floor: float = 0.0) -> float:
    """Half a cosine from 1 at step 0 to `floor` at `total` and after. Loshchilov & Hutter 2017."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * _progress(step, total)))


def step_decay(step: int, *, every: int, gamma: float = 0.1) -> float:
    """gamma^⌊step / every⌋."""
    return float(gamma ** (step // every))


def poly(step: int, *, total: int, power: float = 2.0, floor: float = 0.0) -> float:
    """(1 - step / total)^power, from 1 to `floor`, as MLPerf's DLRM decays."""
    return floor + (1 - floor) * math.pow(1 - _progress(step, total), power)


def _progress(step: int, total: int) -> float:
    return min(1.0, max(0, step) / max(total, 1))


class ReduceOnPlateau:
    """A factor that falls by `gamma` when the metric has not improved for more than `patience` reports.

    Improved: better than the best by more than `threshold`. mode: "min" (a loss) or "max" (an AUC).
    """

    def __init__(
        self,
        *,
        mode: str = "min",
        gamma: float = 0.1,
        patience: int = 2,
        threshold: float = 1e-4,
        floor: float = 0.0,
    ):
        if mode not in ("min", "max"):
            raise ValueError(f"ReduceOnPlateau: mode {mode!r}, wanted 'min' or 'max'")
        self.sign = 1.0 if mode == "min" else -1.0
        self.gamma = gamma
        self.patience = patience
        self.threshold = threshold
        self.floor = floor
        self.factor = 1.0
        self.best = math.inf
        self.waited = 0

    def update(self, metric: float) -> float:
        """The factor to go on with, after one more report of the metric."""
        if self.sign * metric < self.best - self.threshold:
            self.best, self.waited = self.sign * metric, 0
        else:
            self.waited += 1
        if self.waited > self.patience:
            self.factor, self.waited = max(self.factor * self.gamma, self.floor), 0
        return self.factor

    def state_dict(self) -> dict[str, float]:
        return {"factor": self.factor, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.factor, self.best, self.waited = state["factor"], state["best"], int(state["waited"])
