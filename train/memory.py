"""How much memory the tables of a training run take, from its config and data set's description alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pyarrow.parquet as pq

from tesserec.dataio.dataset import Dataset
from tesserec.embeddings.memory import MemoryReport, TableMemory, memory_report, planning
from tesserec.train.config import ShardingSection, TrainConfig
from tesserec.train.learner import Learner
from tesserec.train.tables import plan_for


def run_memory(
    config: TrainConfig, dataset: Dataset, hosts: Sequence[int] = (0,), rank: int = 0
) -> MemoryReport:
    """What the run's tables, their optimizer and its batches take on `rank`. No table is allocated.

    hosts: the host of each rank; those of one host share its memory evenly.
    """
    alone = config.model_copy(update={"sharding": ShardingSection()})
    with planning():
        learner = Learner(alone, dataset.info, total_steps=1)
    lengths = bag_lengths(dataset, config.data.train)
    batch_size = config.data.batch_size // len(hosts)
    report = memory_report(learner.model, learner.optimizers, batch_size=batch_size, bag_lengths=lengths)
    if len(hosts) == 1:
        return report
    plan = plan_for(config.sharding, learner.model, hosts)
    held = Counter[str]()
    for shard in plan.on(rank % plan.num_ranks):
        held[shard.table] += shard.size
    tables = sorted(
        (_part(table, held[table.table]) for table in report.tables), key=lambda t: -t.total_bytes
    )
    beside, have = list(hosts).count(hosts[rank]), report.available_bytes
    return replace(report, tables=tuple(tables), available_bytes=None if have is None else have // beside)


def _part(table: TableMemory, elements: int) -> TableMemory:
    """A table of which a rank holds so many elements."""
    whole = table.num_embeddings * table.embedding_dim
    rows, state = (size * elements // whole for size in (table.rows_bytes, table.state_bytes))
    return replace(table, rows_bytes=rows, state_bytes=state)


def bag_lengths(dataset: Dataset, split: str) -> Mapping[str, float]:
    """{feature: mean number of ids of a sample} of the features that are lists, from the files' metadata.

    An empty list counts as one id there.
    """
    ids = {feature.name: 0 for feature in dataset.info.sparse if feature.is_list}
    for path in dataset.files(split) if ids else ():
        metadata = pq.read_metadata(path)
        for g in range(metadata.num_row_groups):
            group = metadata.row_group(g)
            for c in range(group.num_columns):
                name = group.column(c).path_in_schema.split(".")[0]
                if name in ids:
                    ids[name] += group.column(c).num_values
    return {name: count / max(1, dataset.split(split).rows) for name, count in ids.items()}
