"""Layout: what an exchange knows before there is a batch: who reads what, and where it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.embeddings.kernels.lookup import LANE
from tesserec.sharding.route import Piece, Wiring
from tesserec.sharding.shards import Shards

Array = npt.NDArray[Any]


class Layout:
    """The shards of some collections on one rank, and the wires to the others.

    readers:  (shards, number there) of all readers of all collections.
    pieces:   what they have to do with each rectangle: the same on every rank.
    pools, dtypes, outlets: of all collections. outlet_of, shift: (S,) the number of each reader's outlet, and
              where its columns begin there, in bytes.
    apart:    the readers whose ids travel one by one.
    arriving: LANE in the local pools for each wire that ends here. arriving_pool: the number of the pool
              of each.
    direct:   LANE for what is looked up where it is, beside its pool, reader and first column, in bytes.
    """

    def __init__(self, shards: Sequence[Shards], rank: int, num_ranks: int):
        self.shards, self.rank = list(shards), rank
        self.readers = [(part, k) for part in self.shards for k in range(len(part.readers))]
        ends = np.cumsum([0, *(len(part.readers) for part in self.shards)]).tolist()
        self.pieces = [q for part, end in zip(self.shards, ends, strict=False) for q in part.pieces(end)]
        sizes = [part.readers[k].table.config.num_embeddings for part, k in self.readers]
        self.wiring = Wiring(self.pieces, rank, num_ranks, sizes)
        self.pools = [pool for part in self.shards for pool in part.pools]
        self.outlets = [outlet for part in self.shards for outlet in part.outlets]
        self.outlet_of, self.shift = self._outputs()
        self.dtypes = list(dict.fromkeys(part.dtype for part in self.shards))
        self.apart = list(dict.fromkeys(piece.reader for piece in self.pieces if piece.apart))
        self.arriving, self.arriving_pool = self._local_lanes(self.wiring.got_pieces)
        self.direct, self.direct_pool = self._local_lanes(self.wiring.direct)
        self.direct_reader = np.array([piece.reader for piece in self.wiring.direct], np.int64)
        self.direct_shift = np.array([q.rectangle.cols[0] * q.itemsize for q in self.wiring.direct], np.int64)

    def first_pool(self, part: Shards) -> int:
        """The number of its first pool."""
        return sum(len(other.pools) for other in self.shards[: self.shards.index(part)])

    def columns_of(self, k: int) -> slice:
        """Those of reader k in its output."""
        part, reader = self.readers[k]
        return slice(part.columns[reader], part.columns[reader] + part.readers[reader].width)

    def direct_lanes(self, lanes: Array) -> Array:
        """What is looked up where it is: of `lanes`, as lanes of the local pools."""
        direct = lanes[self.direct_reader]
        for name in ("table", "first_row", "num_rows", "turn"):
            direct[name] = self.direct[name]
        direct["grad"] += self.direct_shift
        return direct

    def _outputs(self) -> tuple[Array, Array]:
        ends = np.cumsum([0, *(len(part.outlets) for part in self.shards)]).tolist()
        first = dict(zip(self.shards, ends, strict=False))
        outlet_of = [first[part] + part.output[k] for part, k in self.readers]
        shift = [part.columns[k] * part.dtype.itemsize for part, k in self.readers]
        return np.array(outlet_of), np.array(shift)

    def _local_lanes(self, pieces: Sequence[Piece]) -> tuple[Array, Array]:
        lanes, pools = np.zeros(len(pieces), LANE), np.zeros(len(pieces), np.int64)
        for i, piece in enumerate(pieces):
            part, k = self.readers[piece.reader]
            pool, position = part.place[piece.rectangle]
            table = part.pools[pool].tables[position]
            lanes[i]["table"], lanes[i]["first_row"] = position, table.first_row
            lanes[i]["num_rows"], lanes[i]["mean"] = table.config.num_embeddings, piece.mean
            lanes[i]["turn"] = part.order[k] + piece.rectangle.cols[0]
            pools[i] = self.first_pool(part) + pool
        return lanes, pools
