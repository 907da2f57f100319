"""The least bytes that a sharded lookup can send, and what TorchRec's dense exchange sends, by formula.

Both are of one step: forward and backward, summed over all ranks; what a rank gives to itself is nothing.

The minimum, where bags are neither compressed nor compared with each other: for every rank's samples and each
rectangle that another rank holds for it,

- ids: those inside its rows, each in the fewest of 1, 2, 4 bytes that tell its rows apart; `packed`: of 1, 2,
  3, 4;
- lengths: one byte for each touched bag, unless all bags of the table have one id;
- vectors: width x item for each touched bag, there and, as gradients, back;
- replicas: every holder's distinct touched rows, id and gradient, to each of the other holders, or, where it
  is less, to one of them that sums (they take turns by row), and the sums to all.

TorchRec (1.8, `distributed/sharding`): int64 ids; an int32 length for each bag and rectangle, touched or not;
one vector for every bag and rectangle, by all-to-all where tables are whole in rows (`tw_sharding`,
`cw_sharding`), by reduce-scatter where they are not (`rw_sharding`); backward the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tesserec.sharding.plan import Rectangle, ShardingPlan

Ids = npt.NDArray[np.int64]  # (B, L)
ITEM = 4


@dataclass(frozen=True)
class Sent:
    """Bytes. ids: with lengths; vectors: one way; replicas: their gradients."""

    ids: float
    vectors: float
    replicas: float = 0

    @property
    def total(self) -> float:
        return self.ids + 2 * self.vectors + self.replicas

    def __add__(self, other: Sent) -> Sent:
        return Sent(self.ids + other.ids, self.vectors + other.vectors, self.replicas + other.replicas)


def minimum(plan: ShardingPlan, batch: Mapping[str, Ids], *, packed: bool = False) -> Sent:
    """The least, for the ids of a global batch of each table, (B, L)."""
    least = Sent(0, 0)
    widths = (1, 2, 3, 4) if packed else (1, 2, 4)
    for table, ids in batch.items():
        for rectangle, ranks in plan.rectangles(table).items():
            served = {rank: _inside(rectangle, part) for rank, part in _parts(ids, plan.num_ranks)}
            (top, bottom), _ = rectangle
            id_bytes = next(n for n in widths if bottom - top <= 256**n)
            least += _asked(rectangle, ranks, served, id_bytes, 0 if ids.shape[1] == 1 else 1)
            least += _between_replicas(rectangle, ranks, served, id_bytes)
    return least


def torchrec(plan: ShardingPlan, batch: Mapping[str, Ids]) -> Sent:
    """What TorchRec sends under a plan without replicas."""
    sent = Sent(0, 0)
    for table, ids in batch.items():
        for (rows, cols), [holder] in plan.rectangles(table).items():
            for rank, part in _parts(ids, plan.num_ranks):
                if rank != holder:
                    inside = int(((part >= rows[0]) & (part < rows[1])).sum())
                    sent += Sent(8 * inside + 4 * len(part), len(part) * (cols[1] - cols[0]) * ITEM)
    return sent


def _parts(ids: Ids, num_ranks: int) -> Iterator[tuple[int, Ids]]:
    return enumerate(np.split(ids, num_ranks))


def _inside(rectangle: Rectangle, part: Ids) -> tuple[int, Ids]:
    """Touched bags, and the ids inside its rows."""
    (top, bottom), _ = rectangle
    inside = (part >= top) & (part < bottom)
    return int(inside.any(1).sum()), part[inside]


def _asked(
    rectangle: Rectangle, ranks: list[int], served: dict[int, tuple[int, Ids]], id_bytes: int, length: int
) -> Sent:
    """What ranks that do not hold the rectangle send to one that does, and get. length: bytes of one."""
    _, cols = rectangle
    asked = [bags_ids for rank, bags_ids in served.items() if rank not in ranks]
    bags, ids = sum(bags for bags, _ in asked), sum(len(ids) for _, ids in asked)
    return Sent(ids * id_bytes + bags * length, bags * (cols[1] - cols[0]) * ITEM)


def _between_replicas(
    rectangle: Rectangle, ranks: list[int], served: dict[int, tuple[int, Ids]], id_bytes: int
) -> Sent:
    if len(ranks) == 1:
        return Sent(0, 0)
    rows, cols = rectangle
    of_holder: dict[int, list[Ids]] = {}
    for rank, (_, ids) in served.items():
        of_holder.setdefault(rank if rank in ranks else ranks[rank % len(ranks)], []).append(ids)
    touched = {holder: np.unique(np.concatenate(parts)) for holder, parts in of_holder.items()}
    others, union = len(ranks) - 1, len(np.unique(np.concatenate(list(touched.values()))))
    told = others * sum(map(len, touched.values()))
    turns = enumerate(sorted(touched))
    summed = sum(int(((touched[holder] - rows[0]) % len(ranks) != turn).sum()) for turn, holder in turns)
    each = id_bytes + (cols[1] - cols[0]) * ITEM
    return Sent(0, 0, min(told, summed + union * others) * each)
