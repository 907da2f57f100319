"""Schedules: known values, pure in the step."""

from __future__ import annotations

import math

import pytest

from tesserec.autograd.schedules import ReduceOnPlateau, constant, cosine, linear_warmup, poly, step_decay


def test_known_values() -> None:
    assert constant(7) == 1
    assert [linear_warmup(s, warmup=4) for s in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1, 1, 1]
    assert linear_warmup(0, warmup=0) == 1
    assert [cosine(s, total=10) for s in (0, 5, 10, 50)] == pytest.approx([1, 0.5, 0, 0])
    assert cosine(10, total=10, floor=0.1) == pytest.approx(0.1)
    assert cosine(2, total=8) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert [step_decay(s, every=3, gamma=0.5) for s in (0, 2, 3, 6)] == [1, 1, 0.5, 0.25]
    assert [poly(s, total=4) for s in (0, 2, 4, 9)] == [1, 0.25, 0, 0]
    assert poly(2, total=4, power=1, floor=0.2) == pytest.approx(0.6)


def test_plateau_waits_then_reduces_then_waits_again() -> None:
    plateau = ReduceOnPlateau(mode="max", gamma=0.5, patience=1, threshold=0.01, floor=0.25)
    factors = [plateau.update(auc) for auc in (0.7, 0.705, 0.704, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8)]
    assert factors == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.25]


def test_plateau_goes_on_from_its_state() -> None:
    plateau, other = ReduceOnPlateau(patience=2), ReduceOnPlateau(patience=2)
    for loss in (1.0, 1.0, 1.0):
        plateau.update(loss)
    other.load_state_dict(plateau.state_dict())
    assert plateau.update(1.0) == other.update(1.0) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="wanted 'min' or 'max'"):
        ReduceOnPlateau(mode="auc")
