"""What the names of phases, stages and parts of memory mean, for who has not read the engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tesserec.sharding.planner.report.markup import Markup, folded, join, tag
from tesserec.sharding.planner.report.words import spoken

PHASES = {
    "rows": "the update of a step and the lookups of the next",
    "vectors": "pooled rows on their way to who asked",
    "compute": "the dense model, forward and backward",
    "grads": "gradients of the pooled rows on their way back",
    "sums": "gradients of replicas added up",
    "replicas": "sums on their way to the other replicas",
    "split": "gradients of rows whose columns lie apart added up",
    "columns": "these sums on their way to who has the other columns",
    "reduction": "gradients of the dense model that come later than all above",
    "input_dist": "ids of the next batch that take longer than all above",
    "read": "reading data that takes longer than all above",
    "beside": "what overlaps in time but not on the same cores or link",
}
STAGES = {
    "read": "files are read and decoded",
    "input_dist": "ids go to the ranks that hold their rows",
    "look_up": "rows are read and pooled, and sent to who asked",
    "compute": "the dense model runs forward and backward",
    "row_grads": "gradients of pooled rows go to the ranks that hold the rows",
    "reduction": "gradients of the dense model are summed over ranks",
    "update": "rows and their state are written",
    "rest": "what lies between stages, and waiting for others that are late by chance",
}
PARTS = {
    "rows": "rows of the tables, replicas included",
    "state": "what the row optimizer keeps about them",
    "input": "ids of a batch, and where they go",
    "output": "pooled rows and their gradients",
    "activations": "what the dense model keeps for its way back",
    "pipeline": "batches that are read or sent ahead",
    "dense": "parameters of the dense model, their gradients and state",
    "reserve": "the process itself and its libraries",
}


def glossary(names: Iterable[str], meanings: Mapping[str, str]) -> Markup:
    """What those of `names` mean that are known, folded."""
    known = [name for name in names if name in meanings]
    entries = join(join([tag("dt", spoken(name)), tag("dd", meanings[name])]) for name in known)
    return folded("What these are", tag("dl", entries, cls="sources")) if known else Markup()
