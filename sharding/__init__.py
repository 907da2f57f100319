"""Tables larger than one process: plans of rectangles, communicators, sharded models.

`shard` a model by a plan, which `make_plan` or the constructors of `plan` make, over the ranks of a `Comm`:
`world()`, or threads of this process by `run_ranks`. Names are imported when they are first used, because
the command line starts ranks by `launch` without the numerical libraries.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tesserec.sharding.codecs import Codecs as Codecs
    from tesserec.sharding.collection import ShardedEmbeddingBagCollection as ShardedEmbeddingBagCollection
    from tesserec.sharding.collection import ShardedEmbeddingCollection as ShardedEmbeddingCollection
    from tesserec.sharding.comm import Comm as Comm
    from tesserec.sharding.comm import CommError as CommError
    from tesserec.sharding.comm import LocalComm as LocalComm
    from tesserec.sharding.comm import PeerError as PeerError
    from tesserec.sharding.comm import world as world
    from tesserec.sharding.dense import DenseError as DenseError
    from tesserec.sharding.dense import DenseReplicas as DenseReplicas
    from tesserec.sharding.dense import DenseShards as DenseShards
    from tesserec.sharding.in_step import lockstep as lockstep
    from tesserec.sharding.model import ShardedModel as ShardedModel
    from tesserec.sharding.model import ShardError as ShardError
    from tesserec.sharding.model import shard as shard
    from tesserec.sharding.model import table_shapes as table_shapes
    from tesserec.sharding.placement import make_plan as make_plan
    from tesserec.sharding.plan import PlanError as PlanError
    from tesserec.sharding.plan import Shard as Shard
    from tesserec.sharding.plan import ShardingPlan as ShardingPlan
    from tesserec.sharding.plan import column_wise as column_wise
    from tesserec.sharding.plan import data_parallel as data_parallel
    from tesserec.sharding.plan import grid_shard as grid_shard
    from tesserec.sharding.plan import hot_cold as hot_cold
    from tesserec.sharding.plan import row_wise as row_wise
    from tesserec.sharding.plan import table_column_wise as table_column_wise
    from tesserec.sharding.plan import table_row_wise as table_row_wise
    from tesserec.sharding.plan import table_wise as table_wise
    from tesserec.sharding.replicas import Replicas as Replicas
    from tesserec.sharding.threads import run_ranks as run_ranks
    from tesserec.sharding.watchdog import patience as patience
    from tesserec.sharding.watchdog import watch as watch

_HOMES = {
    "codecs": "Codecs",
    "collection": "ShardedEmbeddingBagCollection ShardedEmbeddingCollection",
    "comm": "Comm CommError LocalComm PeerError world",
    "dense": "DenseError DenseReplicas DenseShards",
    "in_step": "lockstep",
    "model": "ShardError ShardedModel shard table_shapes",
    "placement": "make_plan",
    "plan": "PlanError Shard ShardingPlan column_wise data_parallel grid_shard hot_cold row_wise "
    "table_column_wise table_row_wise table_wise",
    "replicas": "Replicas",
    "threads": "run_ranks",
    "watchdog": "patience watch",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
