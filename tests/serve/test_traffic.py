from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tesserec.serve.traffic import choose, falls_within, unit

KEYS = [f"user {i}" for i in range(20_000)]
SHARES = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 100), min_size=1).map(
    lambda shares: list(shares.items())
)


@pytest.mark.parametrize("shares", [[("a", 90), ("b", 10)], [("a", 1), ("b", 1), ("c", 2)], [("a", 7)]])
@pytest.mark.parametrize("keyed", [True, False])
def test_requests_are_shared_out_by_the_shares(shares: list[tuple[str, float]], keyed: bool) -> None:
    counted = Counter(choose(key if keyed else None, shares) for key in KEYS)
    total = sum(share for _, share in shares)
    for position, (_, share) in enumerate(shares):
        assert counted[position] / len(KEYS) == pytest.approx(share / total, abs=0.015)


@given(st.text(), SHARES)
def test_a_key_always_meets_the_same_version_whatever_the_order(
    key: str, shares: list[tuple[str, float]]
) -> None:
    assert shares[choose(key, shares)] == shares[::-1][choose(key, shares[::-1])]


@given(st.text(), SHARES, st.floats(1, 10))
def test_raising_a_share_moves_keys_to_it_and_no_others(
    key: str, shares: list[tuple[str, float]], factor: float
) -> None:
    (label, share), *others = shares
    before, after = choose(key, shares), choose(key, [(label, share * factor), *others])
    assert after in (before, 0)


def test_hashes_are_the_same_for_ever() -> None:
    assert unit("m/1", "user") == pytest.approx(0.9959453756530638, abs=1e-15)
    chosen = [choose(key, [("m/1", 50), ("m/2", 50)]) for key in KEYS[:12]]
    assert chosen == [1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("percent", [0, 10, 100])
@pytest.mark.parametrize("keyed", [True, False])
def test_so_many_percent_of_the_keys_fall_within(percent: float, keyed: bool) -> None:
    inside = sum(falls_within("shadow", key if keyed else None, percent) for key in KEYS)
    assert inside / len(KEYS) == pytest.approx(percent / 100, abs=0.01)


def test_splits_of_different_models_are_independent() -> None:
    first = {key for key in KEYS if falls_within("one", key, 50)}
    both = sum(falls_within("two", key, 50) for key in first)
    assert both / len(first) == pytest.approx(0.5, abs=0.02)
