"""Numbers as features: fitted on training rows, applied to any."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.dataio.columns import Floats, Keys, Mask, numbers, refuse
from tesserec.dataio.schema import Dense, SchemaError


@dataclass(frozen=True, slots=True)
class DenseEncoder:
    """Raw number x → (t(fill(x)) - shift)·scale, t being log1p or nothing. fill None: missing is an error."""

    spec: Dense
    fill: float | None = None
    shift: float = 0.0
    scale: float = 1.0

    @property
    def state(self) -> dict[str, Any]:
        """What was fitted; DenseEncoder(spec, **state) is this encoder."""
        return {name: value for name, value in asdict(self).items() if name != "spec"}

    def encode(self, column: Any) -> npt.NDArray[np.float32]:
        """Raw column → (n,) float32, finite."""
        values = numbers(column, self.spec.column)
        missing = np.isnan(values)
        if self.fill is None:
            refuse(
                missing,
                column,
                self.spec.column,
                "a number; state `fill: 0` or `fill: mean` for missing ones",
            )
        else:
            values = np.where(missing, self.fill, values)
        if self.spec.transform == "log1p":
            values = np.copysign(np.log1p(np.abs(values)), values)
        with np.errstate(over="ignore"):  # refused below
            encoded = ((values - self.shift) * self.scale).astype(np.float32)
        refuse(np.isinf(encoded), column, self.spec.column, "a number that fits float32")
        return encoded


class DenseFitter:
    """Streams a column's training rows into count, mean, squared deviations, least and largest value."""

    def __init__(self, spec: Dense) -> None:
        self.spec = spec
        self._count, self._mean, self._squares = 0, 0.0, 0.0
        self._least, self._largest = np.inf, -np.inf

    def update(self, column: Any, rows: Keys, train: Mask) -> None:
        """See one batch. Statistics are merged as by Chan, Golub and LeVeque (1979)."""
        if self.spec.fill != "mean" and self.spec.transform in ("none", "log1p"):
            return
        values = numbers(column, self.spec.column)
        values = values[train & ~np.isnan(values)]
        if len(values):
            self._merge(values)

    def _merge(self, values: Floats) -> None:
        count, mean = len(values), float(values.mean())
        total, apart = self._count + count, mean - self._mean
        self._squares += float(np.square(values - mean).sum()) + apart**2 * self._count * count / total
        self._mean += apart * count / total
        self._count = total
        self._least = min(self._least, float(values.min()))
        self._largest = max(self._largest, float(values.max()))

    def finish(self) -> DenseEncoder:
        """The fitted encoder. SchemaError when statistics are wanted of a column without values."""
        spec, fill = self.spec, self.spec.fill
        if self._count == 0 and (fill == "mean" or spec.transform in ("minmax", "standardize")):
            raise SchemaError(
                f"column {spec.column!r}: no training row holds a number, so it has no statistics"
            )
        fill = self._mean if fill == "mean" else fill
        if spec.transform == "minmax":
            return DenseEncoder(spec, fill, self._least, _inverse(self._largest - self._least))
        if spec.transform == "standardize":
            return DenseEncoder(spec, fill, self._mean, _inverse((self._squares / self._count) ** 0.5))
        return DenseEncoder(spec, fill)


def _inverse(width: float) -> float:
    """1 / width, or 0 for a constant column."""
    return 1 / width if width > 0 else 0.0
