"""Sharded collections: take the place of those of a model, whose tables they share out by a plan.

In a training step an `Exchange` looks up the whole batch before the model runs, and a collection only hands
out rows of what was looked up (`LookedUp`): no communication inside a model. Given a plain batch, it does all
stages by itself, for loops of a user's own.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd.compiler.capture import opaque
from tesserec.autograd.tensor import Gradients, Node, Tensor, is_grad_enabled, shared
from tesserec.embeddings.collection import EmbeddingBagCollection, EmbeddingCollection
from tesserec.embeddings.jagged import JaggedTensor, KeyedJaggedTensor
from tesserec.embeddings.keyed_tensor import KeyedTensor
from tesserec.sharding.codecs import Codecs
from tesserec.sharding.comm import Comm
from tesserec.sharding.exchange import Exchange
from tesserec.sharding.plan import ShardingPlan
from tesserec.sharding.route import Holding
from tesserec.sharding.shards import Shards
from tesserec.sharding.slabs import AllSlabs, LookedUp

Array = npt.NDArray[Any]


class ShardedEmbeddingBagCollection(EmbeddingBagCollection):
    """What `collection` does, with its tables shared out among the ranks of `comm` by `plan`.

    collection: made in `planning`, its tables then get the values that they always get; or with tables in
    memory, which are copied. prefix: what stands before the names of its tables in the plan. bitwise: results
    and gradients have the bits of the unsharded collection. codecs: how vectors and gradients travel.
    """

    def __init__(
        self,
        collection: EmbeddingBagCollection,
        plan: ShardingPlan,
        comm: Comm,
        *,
        prefix: str = "",
        bitwise: bool = False,
        codecs: Codecs | None = None,
    ):
        self.shards = Shards(collection, plan, comm.rank, prefix=prefix, bitwise=bitwise)
        self.table_set, self.pools = self.shards.table_set, self.shards.pools
        self.processor = collection.processor
        self.keys, self.lengths = collection.keys, collection.lengths
        self.exchange = Exchange([self.shards], comm, codecs=codecs)

    @property
    def outlet(self) -> Tensor:
        """The leaf that gets the gradient of the output, as Slabs."""
        return self.shards.outlets[0]

    def local_state(self) -> dict[str, Array]:
        """{table, or rectangle of it: its rows}, of what is on this rank; views."""
        return self.shards.state()

    def rectangles(self) -> list[tuple[Holding, Array]]:
        """(which rectangle of which table, its rows) of all that is on this rank; views."""
        return self.shards.held()

    def forward(self, kjt: KeyedJaggedTensor | LookedUp) -> KeyedTensor:
        shape = kjt.batch_size, sum(self.lengths)
        pooled = opaque(self._vectors, kjt, shape=shape, dtype=self.shards.dtype, leaves=[self.outlet])
        return KeyedTensor(self.keys, self.lengths, pooled)

    def _vectors(self, kjt: KeyedJaggedTensor | LookedUp, out: Array | None = None) -> Tensor:
        """(B, ΣD). out: where a compiled model wants a copy."""
        if isinstance(kjt, LookedUp):
            return kjt.tensor(self.outlet)
        if out is not None:
            raise RuntimeError(
                "a compiled model runs in slices, which cannot communicate: shard the model with "
                "`sharding.shard`, or do not compile it"
            )
        return looked_up(self.exchange, kjt).tensor(self.outlet)


class ShardedEmbeddingCollection(EmbeddingCollection):
    """What `collection` does, with its tables shared out; see `ShardedEmbeddingBagCollection`."""

    def __init__(
        self,
        collection: EmbeddingCollection,
        plan: ShardingPlan,
        comm: Comm,
        *,
        prefix: str = "",
        bitwise: bool = False,
        codecs: Codecs | None = None,
    ):
        self.shards = Shards(collection, plan, comm.rank, prefix=prefix, bitwise=bitwise)
        self.table_set, self.pools = self.shards.table_set, self.shards.pools
        self.exchange = Exchange([self.shards], comm, codecs=codecs)

    def local_state(self) -> dict[str, Array]:
        """{table, or rectangle of it: its rows}, of what is on this rank; views."""
        return self.shards.state()

    def rectangles(self) -> list[tuple[Holding, Array]]:
        """(which rectangle of which table, its rows) of all that is on this rank; views."""
        return self.shards.held()

    def forward(self, kjt: KeyedJaggedTensor | LookedUp) -> dict[str, JaggedTensor]:
        looked = kjt if isinstance(kjt, LookedUp) else looked_up(self.exchange, kjt)
        found = {}
        for reader, outlet in zip(self.table_set.outputs, self.shards.outlets, strict=True):
            bags: Any = looked.outputs[outlet].bags
            found[reader.name] = JaggedTensor(looked.tensor(outlet), bags.offsets, bags.weights)
        return found


def looked_up(exchange: Exchange, kjt: KeyedJaggedTensor) -> LookedUp:
    """All stages at once: a batch that was looked up, and whose gradient goes back to the shards by itself.

    Collective, and so is going back.
    """
    dist = exchange.input_dist(kjt)
    looked = exchange.look_up(dist)
    if not is_grad_enabled():
        return looked

    def way_back(slabs: Any) -> Gradients:
        return exchange.gradients(dist, slabs.slabs)

    back = shared(way_back)
    hub = Tensor(np.zeros(0, np.float32), requires_grad=True)  # also where a rank has nothing to train
    pools = [pool for pool in exchange.layout.pools if pool.requires_grad]
    leaves = [hub, *pools, *dict.fromkeys(dist.weights.values())]
    entry = Tensor(hub.data, requires_grad=True)
    entry.node = Node("exchange", leaves, [partial(_pick, back, leaf) for leaf in leaves])
    return replace(looked, inlets={outlet: _inlet(entry, outlet) for outlet in looked.outputs})


def _pick(back: Any, leaf: Tensor, slabs: AllSlabs) -> Any:
    found = back(slabs).get(leaf)
    return np.zeros_like(leaf.data) if found is None else found


def _inlet(entry: Tensor, outlet: Tensor) -> Tensor:
    """Stands for `outlet`, and passes its Slabs on."""

    def named(slabs: Any) -> AllSlabs:
        return AllSlabs({outlet: slabs})

    inlet = Tensor(np.zeros(0, outlet.dtype), requires_grad=True)
    inlet.node = Node("looked_up", [entry], [named])
    return inlet
