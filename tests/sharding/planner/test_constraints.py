"""Constraints that cannot be are refused by the key that is wrong; the others say what each table may be."""

from __future__ import annotations

import pytest

from tesserec.sharding.planner.constraints import Constraints, ConstraintsError, ParameterConstraints
from tests.sharding.planner.cases import topology

NAMES = ("inputs.sparse.user", "inputs.sparse.item", "inputs.sparse.item_category")


def test_full_names_come_before_patterns_and_these_in_order() -> None:
    asked = Constraints(
        {
            "item*": ParameterConstraints(kinds=("row_wise",)),
            "*": ParameterConstraints(max_pieces=4),
            "inputs.sparse.item": ParameterConstraints(kinds=("table_wise",)),
        },
        default=ParameterConstraints(min_width=16),
    )
    found = asked.of(NAMES, topology(4))
    assert found["inputs.sparse.item"].kinds == ("table_wise",)
    assert found["inputs.sparse.item_category"].kinds == ("row_wise",)
    assert found["inputs.sparse.user"].max_pieces == 4
    assert all(one.min_width == 16 for one in found.values())


@pytest.mark.parametrize(
    ("table", "asked", "message", "key"),
    [
        ("usr", {}, "did you mean 'user'", ("tables", "usr")),
        ("user", {"ranks": (0, 7)}, "rank 7: ranks are 0 to 3", ("tables", "user", "ranks")),
        ("user", {"hosts": (2,)}, "host 2: hosts are 0 to 1", ("tables", "user", "hosts")),
        ("user", {"tiers": ("ram",)}, "no tier 'ram'; there are hbm", ("tables", "user", "tiers")),
        ("user", {"kinds": ("data_parallel",), "max_replicas": 2}, "max_replicas is 2", ("tables", "user")),
        ("user", {"kinds": ("data_parallel",), "ranks": (0,)}, "ranks are 0", ("tables", "user")),
        ("user", {"kinds": ("row_wise",), "max_pieces": 1}, "more than one piece", ("tables", "user")),
        ("user", {"ranks": (0,), "hosts": (1,)}, "is on hosts", ("tables", "user")),
    ],
)
def test_what_cannot_be_is_refused_with_its_key(
    table: str, asked: dict[str, tuple[int, ...]], message: str, key: tuple[str, ...]
) -> None:
    constraints = Constraints({table: ParameterConstraints(**asked)})  # type: ignore[arg-type]
    with pytest.raises(ConstraintsError, match=message) as refused:
        constraints.of(NAMES, topology(4, 2))
    assert refused.value.key == key
