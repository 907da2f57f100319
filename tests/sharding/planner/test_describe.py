"""What is said of a plan's tables: the kind that made them, whoever made them."""

from __future__ import annotations

import pytest

from tesserec.sharding.placement import make_plan
from tesserec.sharding.plan import Shard, ShardingPlan, row_wise
from tesserec.sharding.planner.describe import placement_of

SHAPE = (1000, 16)
HOSTS = [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("table_wise:3", "whole on rank 3"),
        ("data_parallel", "whole on all 4 ranks"),
        ("row_wise", "rows over all 4 ranks"),
        ("column_wise", "columns over all 4 ranks"),
        ("table_row_wise:1", "rows over the 2 ranks of host 1"),
        ("table_column_wise:0", "columns over the 2 ranks of host 0"),
        ("grid_shard", "2 × 2 rows × columns over all 4 ranks"),
        ("hot_cold:50", "50 hot rows on all 4 ranks, the others in rows"),
    ],
)
def test_every_kind_is_told_from_its_rectangles(kind: str, words: str) -> None:
    plan = make_plan({"t": SHAPE}, 4, default=kind, hosts=HOSTS)
    found = placement_of(plan.rectangles("t"), SHAPE, HOSTS)
    assert (found.kind, found.words) == (kind.partition(":")[0], words)


def test_uneven_rows_say_how_uneven() -> None:
    plan = ShardingPlan(row_wise("t", SHAPE, range(2), [100]), 2)
    assert (
        placement_of(plan.rectangles("t"), SHAPE, [0, 0]).words == "rows over both ranks (10 to 90 % of them)"
    )


def test_anything_else_is_mixed() -> None:
    shards = [Shard("t", (0, 500), (0, 16), 0), Shard("t", (500, 1000), (0, 8), 1)]
    shards.append(Shard("t", (500, 1000), (8, 16), 2))
    plan = ShardingPlan(tuple(shards), 4)
    found = placement_of(plan.rectangles("t"), SHAPE, HOSTS)
    assert (found.kind, found.words, found.ranks) == ("mixed", "3 pieces on ranks 0, 1, 2", (0, 1, 2))
