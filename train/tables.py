"""The tables of a model as checkpoints see them: the rectangles that are on this rank, and their memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tesserec.autograd.module import Module
from tesserec.dataio.config import ConfigError
from tesserec.embeddings.collection import named_collections
from tesserec.embeddings.pool import Pool, PoolTable
from tesserec.embeddings.row_optim import RowOptimizer
from tesserec.embeddings.spans import Span
from tesserec.sharding.collection import ShardedEmbeddingBagCollection, ShardedEmbeddingCollection
from tesserec.sharding.model import table_shapes
from tesserec.sharding.placement import make_plan
from tesserec.sharding.plan import ShardingPlan
from tesserec.train.checkpoint import Array, Rect, array_path
from tesserec.train.config import ShardingSection


@dataclass(frozen=True, slots=True)
class Held:
    """A rectangle of a table that is here: the table's name in the model's state, and where in which pool.

    first: whether, of the ranks that hold it, this is the one that saves it.
    """

    table: str
    pool: Pool
    place: PoolTable
    first: bool

    def rect(self, stack: Array) -> Rect:
        """The rectangle in `stack`, (R, D) or (R,) of the pool: its rows, or what is kept about them."""
        whole, (rows, cols) = self.place.origin.table, (self.place.origin.rows, self.place.origin.cols)
        if stack.ndim == 1:  # a number for each row, which all that have a part of the row keep
            writes = self.first and cols[0] == 0
            return Rect(stack[self.place.rows], rows, None, (whole.num_embeddings,), writes)
        shape = whole.num_embeddings, whole.embedding_dim
        return Rect(stack[self.place.rows], rows, cols, shape, self.first)


def held_tables(model: Module) -> Iterator[Held]:
    """All rectangles that are here, of all tables."""
    for prefix, collection in named_collections(model):
        savers = _savers(collection)
        for pool in collection.pools:
            for place in pool.tables:
                origin = place.origin
                first = savers.get((origin.table.name, origin.rows, origin.cols), True)
                yield Held(prefix + origin.table.name, pool, place, first)


def _savers(collection: Module) -> dict[tuple[str, Span, Span], bool]:
    """{(table, rows, columns) of each rectangle that is here: whether this rank saves it}."""
    if not isinstance(collection, ShardedEmbeddingBagCollection | ShardedEmbeddingCollection):
        return {}
    held, rank = collection.rectangles(), collection.shards.rank
    return {(r.table, r.rows, r.cols): r.ranks[0] == rank for r, _ in held}


def table_rects(model: Module) -> dict[str, list[Rect]]:
    """{path in a checkpoint: the rectangles here} of every table."""
    found: dict[str, list[Rect]] = {array_path("tables", table): [] for table in table_shapes(model)}
    for held in held_tables(model):
        found[array_path("tables", held.table)].append(held.rect(held.pool.data))
    return found


def state_rects(model: Module, optimizer: RowOptimizer) -> dict[str, list[Rect]]:
    """{path in a checkpoint: the rectangles here} of all that `optimizer` keeps about every table."""
    found: dict[str, list[Rect]] = {
        array_path("rows", f"{table}.{slot}"): [] for table in table_shapes(model) for slot in optimizer.slots
    }
    state = {id(optimizer.pools[name]): slots for name, slots in optimizer.state.items()}
    for held in held_tables(model):
        for slot, stack in state[id(held.pool)].items():
            found[array_path("rows", f"{held.table}.{slot}")].append(held.rect(stack))
    return found


def plan_for(section: ShardingSection, model: Module, hosts: Sequence[int]) -> ShardingPlan:
    """The plan that the config asks for. hosts: the host of each rank. ConfigError, PlanError."""
    shapes, ranks = table_shapes(model), len(hosts) // section.replica_groups
    if section.plan is None:
        return make_plan(shapes, ranks, section.tables, section.default, hosts[:ranks])
    plan = ShardingPlan.load(section.plan)
    if plan.num_ranks != ranks:
        raise ConfigError(
            f"key sharding.plan: {section.plan} is for {plan.num_ranks} ranks, wanted {ranks}: "
            "make one for so many, or leave it out"
        )
    plan.check(shapes)
    return plan
