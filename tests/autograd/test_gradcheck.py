"""gradcheck finds a wrong pullback and says where it is worst."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tesserec.autograd import GradcheckError, Tensor, gradcheck, op
from tesserec.autograd.ops.elementwise import Result


@op
def wrong_cube(x: Any) -> Result:
    return x**3, (lambda g: g * 3 * x**2 + (x == 2),)


def test_the_worst_element_is_named() -> None:
    with pytest.raises(
        GradcheckError, match=r"input 0, element \(1, 0\): the pullback gives .* differences give"
    ):
        gradcheck(wrong_cube, [[[1.0, 3.0], [2.0, 4.0]]])


def test_an_input_without_influence_has_gradient_0() -> None:
    gradcheck(lambda x, y: x * 2.0, [np.ones(2), np.ones(3)])


def test_tensors_are_restored_and_must_be_float64_leaves() -> None:
    x = Tensor(np.array([0.1, 0.7]), requires_grad=True)
    gradcheck(lambda t: t * t, [x])
    np.testing.assert_array_equal(x.data, [0.1, 0.7])
    with pytest.raises(ValueError, match="input 0 must be a float64 leaf"):
        gradcheck(lambda t: t * t, [Tensor([1.0], requires_grad=True)])
