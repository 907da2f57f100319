"""How much memory the tables of a training run take, from its config and data set's description alone."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow.parquet as pq

from tesserec.dataio.dataset import Dataset
from tesserec.embeddings.memory import MemoryReport, memory_report, planning
from tesserec.train.config import TrainConfig
from tesserec.train.learner import Learner


def run_memory(config: TrainConfig, dataset: Dataset) -> MemoryReport:
    """What the run's tables, their optimizer and its batches take. No table is allocated."""
    with planning():
        learner = Learner(config, dataset.info, total_steps=1)
    lengths = bag_lengths(dataset, config.data.train)
    batch_size = config.data.batch_size
    return memory_report(learner.model, learner.optimizers, batch_size=batch_size, bag_lengths=lengths)


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
