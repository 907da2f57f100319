"""What the API's two ends of the engine agree on: a request as arrays, and how its columns are shared out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.embeddings.jagged import KeyedJaggedTensor


@dataclass(frozen=True, slots=True)
class Split:
    """Which of a model's columns a request gives once, as its context; each candidate has the others.

    dense: positions among the model's dense columns, increasing; sparse: among its sparse features.
    """

    dense: tuple[int, ...]
    sparse: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """n rows of some columns. dense: (n, columns) float32. sparse: n samples; None without features."""

    dense: npt.NDArray[np.float32]
    sparse: KeyedJaggedTensor | None

    @property
    def num_rows(self) -> int:
        """n."""
        return len(self.dense)


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """One request: `context`, one row of the split's columns, and `rows`, K candidates with all others.

    The keys of `sparse` are feature names in the model's order. Ids are inside their tables.
    """

    split: Split
    context: Part
    rows: Part
    names: list[Any]  # what each candidate is called in the answer
    top_k: int | None = None
    warnings: tuple[str, ...] = ()
