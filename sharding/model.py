"""shard(model): the same model, its tables spread over ranks by a plan, its dense parameters data-parallel.

Every rank runs the same program on its part of the global batch. A step, in which every line with `sharded`
is collective but that of the model itself:

    dist = sharded.input_dist(sparse)                     # may run ahead, on a thread of its own
    looked = sharded.look_up(dist)
    reduction = sharded.reduction(num_slices)
    for k, (lo, hi) in enumerate(slices):                 # on worker threads; sharded may be compiled
        logits = sharded(dense[lo:hi], looked.select(lo, hi))
        parts.append(gradients(loss_of(logits), 1 / total_weight, take=reduction.take(k)))
    accumulate(sharded.exchange(sum_of_slices(parts)))
    sharded.step(optimizers)

Gradients are summed over ranks: the loss is divided by what the whole global batch has. In a loop that is not
cut up so, `sharded(dense, sparse)` and `loss.backward()` do all of it, for the rank's whole batch at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal

from tesserec.autograd.compiler.capture import Sealed, Uncapturable
from tesserec.autograd.exact import NOTHING, total_of
from tesserec.autograd.module import Module
from tesserec.autograd.optim import Optimizer, clip_grad_norm, squares_of
from tesserec.autograd.tensor import (
    Array,
    Gradients,
    Node,
    Take,
    Tensor,
    backpropagate,
    is_grad_enabled,
)
from tesserec.embeddings.collection import EmbeddingBagCollection, EmbeddingCollection, named_collections
from tesserec.embeddings.jagged import KeyedJaggedTensor
from tesserec.embeddings.pool import Origin, Pool
from tesserec.embeddings.row_optim import RowOptimizer
from tesserec.sharding.codecs import Codecs
from tesserec.sharding.collection import ShardedEmbeddingBagCollection, ShardedEmbeddingCollection
from tesserec.sharding.columns import SplitRows
from tesserec.sharding.comm import Comm
from tesserec.sharding.dense import DenseReplicas, DenseShards, Reduction
from tesserec.sharding.dist import Dist
from tesserec.sharding.exchange import Exchange
from tesserec.sharding.plan import PlanError, ShardingPlan
from tesserec.sharding.replicas import Groups, Replicas
from tesserec.sharding.slabs import LookedUp, Slabs
from tesserec.sharding.timeline import span

Sharded = ShardedEmbeddingBagCollection | ShardedEmbeddingCollection
Dense = Literal["replicated", "sharded"]
MakeDense = Callable[[Mapping[str, Tensor], Comm], DenseReplicas]

USUAL_TIERS = ("dram", "ram")  # what plans may call a rank's own memory

DENSE: Mapping[Dense, MakeDense] = {"replicated": DenseReplicas, "sharded": DenseShards}


class ShardError(ValueError):
    """A model that cannot be sharded as asked; the message says why, and what to do."""


def shard(
    model: Module,
    plan: ShardingPlan,
    comm: Comm,
    *,
    bitwise: bool = False,
    codecs: Codecs | None = None,
    dense: Dense | MakeDense = "replicated",
    replicas: Replicas | None = None,
    local_batches: bool = False,
) -> ShardedModel:
    """`model` over the ranks of `comm`. Collective. Takes the model over: its collections are replaced.

    The model is the same on all ranks, made from one seed; of one made under `planning()`, no rank ever has
    more than its shards. It may be compiled, before or after.

    bitwise: the numbers do not depend on plan and ranks, to the last bit. codecs: how vectors and their
    gradients travel. dense: whether every rank keeps all dense parameters, or a part of each (ZeRO); with
    buckets of other sizes, `partial(DenseShards, bucket_bytes=…)`. replicas: groups of ranks that each hold
    the whole plan. local_batches: layers that couple samples may see just the rank's part of a batch.

    PlanError where the plan does not fit, DenseError where ranks differ, ShardError for the rest.
    """
    if comm.size > 1 and not local_batches:
        _check_uncoupled(model)
    groups = Groups(comm, replicas or Replicas(1))
    if bitwise and groups.count > 1:
        raise ShardError(
            "bitwise: groups of replicas train tables apart, which is not the same; wanted one group"
        )
    _check_plan(plan, model, groups)
    found = dict(named_collections(model))
    if not found:
        raise ShardError(f"{type(model).__name__} has no collection of embedding tables: nothing to shard")
    new = {id(old): _sharded(old, plan, groups.group, prefix, bitwise) for prefix, old in found.items()}
    _swap(model, new)
    model = new.get(id(model), model)
    named = {name: p for name, p in model.named_parameters() if not isinstance(p, Pool)}
    make = DENSE[dense] if isinstance(dense, str) else dense
    held = (make if comm.size > 1 else DenseReplicas)(named, comm.duplicate())
    return ShardedModel(model, plan, comm, groups, codecs or Codecs(), held)


class ShardedModel(Module):
    """A model whose tables lie on many ranks; see the module's docstring. Made by `shard`.

    Parameters are what this rank updates: its pools, and its own of the dense ones; their names, and those of
    the state, are the model's. Methods are collective where they say so.
    """

    def __init__(
        self,
        model: Module,
        plan: ShardingPlan,
        comm: Comm,
        groups: Groups,
        codecs: Codecs,
        dense: DenseReplicas,
    ):
        self.model, self.plan, self.comm, self.groups, self.dense = model, plan, comm, groups, dense
        self.collections = {
            prefix: collection
            for prefix, collection in named_collections(model)
            if isinstance(collection, Sharded)
        }
        shards = [collection.shards for collection in self.collections.values()]
        self.lookups = Exchange(shards, groups.group, codecs=codecs)
        self.ids_comm = groups.group.duplicate()
        prefixes = {pool: prefix for prefix, c in self.collections.items() for pool in c.pools}
        self.split_rows = SplitRows(groups.group, plan, prefixes)
        self._reduction: Reduction | None = None
        self._dist: Dist | None = None

    @property
    def training(self) -> bool:  # type: ignore[override]
        return self.model.training

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """Those of the model: the names of the state are the same."""
        return self.model.named_modules()

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """What this rank updates, by the model's names; of dense parameters that are sharded, a flat part."""
        for name, parameter in self.model.named_parameters():
            yield name, self.dense.own.get(name, parameter)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """What the model returns for these inputs; collective if a KeyedJaggedTensor is among them."""
        batches = [x for x in (*inputs, *named.values()) if isinstance(x, KeyedJaggedTensor)]
        if not batches:
            _refuse_sealed((*inputs, *named.values()))
            return self.model(*inputs, **named)
        if len(batches) > 1:
            raise ShardError(
                f"a sharded model got {len(batches)} KeyedJaggedTensors, wanted one: concat them"
            )
        dist = self.input_dist(batches[0])
        looked, self._dist = self.look_up(dist), None
        given = [looked if x is batches[0] else x for x in inputs]
        output = self.model(*given, **{n: looked if x is batches[0] else x for n, x in named.items()})
        return self._with_history(output, dist) if is_grad_enabled() else output

    @property
    def may_run_ahead(self) -> bool:
        """Whether `input_dist` of a batch may be called on another thread while the one before is in use."""
        return self.lookups.may_run_ahead

    def input_dist(self, kjt: KeyedJaggedTensor) -> Dist:
        """The rank's part of a batch, its ids sent to their rows. Collective, on a channel of its own."""
        if not self.may_run_ahead:
            self._gather_dense()
        return self.lookups.input_dist(kjt, self.ids_comm)

    def look_up(self, dist: Dist) -> LookedUp:
        """What takes the place of the KeyedJaggedTensor among the model's inputs. Collective."""
        gathering = self.dense.gather()
        looked = self.lookups.look_up(dist)
        if gathering is not None:
            gathering.result()
        self._dist = dist
        return looked

    def reduction(self, slices: int) -> Reduction | None:
        """What the slices' gradients are to be offered to, to be summed over ranks early; None on one rank.

        `exchange` brings it to its end.
        """
        self._reduction = Reduction(self.dense, slices) if self.comm.size > 1 else None
        return self._reduction

    def exchange(self, grads: Gradients) -> Gradients:
        """The gradients of this rank's parameters, from those of the rank's batch that was looked up last.

        grads: summed over its slices, without what the `reduction` has taken. Collective.
        """
        reduction, self._reduction = self._reduction, None
        dist, self._dist = self._dist, None
        if dist is None:
            raise ShardError("exchange: no batch was looked up since the last one")
        return self._exchange(grads, dist, reduction)

    def clip_grad_norm(self, max_norm: float) -> float:
        """The norm of the gradients of all ranks, before they are scaled down to at most `max_norm`.

        Collective. ValueError, on all ranks, if it is not finite. Groups of replicas count with their mean.
        """
        return clip_grad_norm(self.parameters(), max_norm, squares=self._sum_of_squares)

    def step(self, optimizers: Sequence[Optimizer | RowOptimizer]) -> None:
        """Let each optimizer take its step, and forget the gradients. Collective."""
        for optimizer in optimizers:
            if isinstance(optimizer, RowOptimizer):
                self.groups.note(optimizer)
                self.split_rows.step(optimizer)
                self.groups.average(optimizer)
            else:
                optimizer.step()
            optimizer.zero_grad()

    def synchronize(self, optimizers: Sequence[Optimizer | RowOptimizer]) -> None:
        """Make groups of replicas equal, as they are to be in a checkpoint. Collective."""
        for optimizer in optimizers:
            if isinstance(optimizer, RowOptimizer):
                self.groups.average(optimizer, now=True)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, dense parameters and the state have all their numbers; what is written there is kept.

        Collective on entry. Only needed where `dense` is "sharded".
        """
        self._gather_dense()
        yield
        self.dense.release(changed=True)

    def _gather_dense(self) -> None:
        gathering = self.dense.gather()
        if gathering is not None:
            gathering.result()

    def _sum_of_squares(self, parameters: Sequence[Tensor]) -> float:
        """Σ g² of all ranks: what several have counts once."""
        count = self.groups.count
        dense = squares_of(p for p in parameters if not isinstance(p, Pool)) * count
        rows = (p.grad.squares(self._first_here[p]) for p in parameters if isinstance(p, Pool))
        own = sum(rows, NOTHING.copy())
        if isinstance(self.dense, DenseShards):
            own, dense = own + dense, NOTHING
        return total_of(self.comm.all_reduce(own) + dense) / count

    @cached_property
    def _first_here(self) -> dict[Pool, list[int]]:
        """Of each pool the tables that no rank before this one holds."""
        return {
            pool: [t for t, table in enumerate(pool.tables) if self._is_first(prefix, table.origin)]
            for prefix, collection in self.collections.items()
            for pool in collection.pools
        }

    def _is_first(self, prefix: str, origin: Origin) -> bool:
        holders = self.plan.rectangles(prefix + origin.table.name)[origin.rows, origin.cols]
        return holders[0] == self.groups.group.rank

    def _exchange(self, grads: Gradients, dist: Dist, reduction: Reduction | None) -> Gradients:
        slabs = {leaf: self.groups.scaled(g) for leaf, g in grads.items() if isinstance(g, Slabs)}
        found = self.lookups.row_grads(dist, slabs)
        rows = {leaf: g for leaf, g in found.items() if isinstance(leaf, Pool)}
        rest = {leaf: g for leaf, g in (*grads.items(), *found.items()) if leaf not in slabs.keys() | rows}
        if self.comm.size > 1:
            reduction = reduction or Reduction(self.dense, 1)
            for leaf, g in rest.items():
                reduction.take(0)(leaf, g)
            with span("reduction"):
                rest = reduction.finish()
            self.dense.release()
        return rows | rest

    def _with_history(self, output: Any, dist: Dist) -> Tensor:
        """`output`, whose gradient goes back to this rank's parameters by an `exchange`."""
        if not isinstance(output, Tensor) or output.node is None:
            kind = type(output).__name__
            raise ShardError(f"the model returns a {kind}, wanted one Tensor that depends on its parameters")

        def joint(g: Array, take: Take | None) -> Gradients:
            return self._exchange(backpropagate(output, g), dist, None)

        result = Tensor(output.data)
        result.requires_grad, result.node = True, Node("sharded", list(self.parameters()), joint=joint)
        return result


def table_shapes(model: Module) -> dict[str, tuple[int, int]]:
    """{table, by its name in the model's state: (num_embeddings, embedding_dim)}: what a plan is made for."""
    return {
        prefix + table.name: (table.num_embeddings, table.embedding_dim)
        for prefix, collection in named_collections(model)
        for table in collection.table_set.tables
    }


def _check_plan(plan: ShardingPlan, model: Module, groups: Groups) -> None:
    if plan.num_ranks != groups.group.size:
        of = "each group of replicas has" if groups.count > 1 else "there are"
        wanted = f"as many as {of}, {groups.group.size}"
        raise PlanError(f"the plan is for {plan.num_ranks} ranks, wanted {wanted}: make one for these")
    plan.check(table_shapes(model))
    for table, tier in plan.tiers.items():
        if tier not in USUAL_TIERS:
            raise PlanError(
                f"table {table!r} is to lie in {tier!r}: ranks keep rows in {' or '.join(USUAL_TIERS)} only; "
                "make the plan without that tier"
            )


def _check_uncoupled(model: Module) -> None:
    for module in model.modules():
        if module.couples_samples:
            raise ShardError(
                f"{type(module).__name__} couples the samples of a batch, of which a rank has a part: leave "
                "it out, or let it see that part by local_batches=True; results then depend on the ranks"
            )


def _sharded(
    collection: EmbeddingBagCollection | EmbeddingCollection,
    plan: ShardingPlan,
    comm: Comm,
    prefix: str,
    bitwise: bool,
) -> Sharded:
    if isinstance(collection, EmbeddingBagCollection):
        return ShardedEmbeddingBagCollection(collection, plan, comm, prefix=prefix, bitwise=bitwise)
    return ShardedEmbeddingCollection(collection, plan, comm, prefix=prefix, bitwise=bitwise)


def _swap(model: Module, new: Mapping[int, Module]) -> None:
    """Put `new` in the place of the modules of these identities, wherever they are below `model`."""
    for module in list(model.modules()):
        for name, value in vars(module).items():
            vars(module)[name] = _swapped(value, new)


def _swapped(value: Any, new: Mapping[int, Module]) -> Any:
    if isinstance(value, Module):
        return new.get(id(value), value)
    if isinstance(value, dict):
        value.update({key: _swapped(child, new) for key, child in value.items()})
    elif isinstance(value, list):
        value[:] = [_swapped(child, new) for child in value]
    elif type(value) is tuple:
        return tuple(_swapped(child, new) for child in value)
    return value


def _refuse_sealed(inputs: Sequence[Any]) -> None:
    """A compiled model would look up each slice by itself, in an order of its own."""
    if any(isinstance(x, Sealed) and isinstance(x.value, KeyedJaggedTensor) for x in inputs):
        raise Uncapturable("a sharded model looks up whole batches: shard the compiled model instead")
