"""What a request is warned of: ids that the model does not know, and values that are missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tesserec.serve.encode import Encoded, PartEncoder


def remarks(part: PartEncoder, encoded: Encoded, values: Sequence[Any], place: str) -> list[str]:
    """Sentences about what was encoded. values: of each column of `part`; place: the path of row {}."""
    said, names = [], [column.name for column in part.columns]
    for number, feature in enumerate(part.features):
        unknown, missing, first = encoded.seen[number].tolist()
        name = feature.spec.column
        if unknown:
            row = _row(encoded, number - len(part.dense), first)
            value = values[names.index(name)][row]
            shown = value.as_py() if isinstance(value, pa.Scalar) else value
            more = f" ({unknown} such ids in all)" if unknown > 1 else ""
            said.append(f"{place.format(row)}.{name}: {shown!r} is unknown to {feature.spec.name}{more}")
        if missing:
            where = place.removesuffix("[{}]")
            said.append(f"{where}: {name} is missing in {missing} of {encoded.part.num_rows}")
    return said


def _row(encoded: Encoded, feature: int, place: int) -> int:
    """The row that has the id at `place` among those of a sparse feature."""
    assert encoded.part.sparse is not None
    num_rows = encoded.part.num_rows
    bags = encoded.part.sparse.offsets[feature * num_rows :][: num_rows + 1]
    return int(np.searchsorted(bags - bags[0], place, side="right")) - 1
