"""The tape: what a Tensor holds, how gradients flow and add up, and what a first mistake is told."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tesserec.autograd import Tensor, accumulate, gradients, is_grad_enabled, no_grad, op, ops
from tesserec.autograd.ops.elementwise import Result


def leaf(*shape: int) -> Tensor:
    return Tensor(np.ones(shape, np.float32), requires_grad=True)


def test_lists_and_integers_become_float32_and_float_arrays_are_kept() -> None:
    assert Tensor([1, 2]).dtype == Tensor(3.0).dtype == Tensor(np.arange(2)).dtype == np.float32
    assert Tensor(np.float64(1)).dtype == np.float32
    array = np.ones(2)
    assert Tensor(array).data is array
    assert Tensor(array, dtype=np.float32).dtype == np.float32


def test_operators_are_ops() -> None:
    x = Tensor([2.0, 4.0], requires_grad=True)
    one, eye = np.ones(2, np.float32), np.eye(2, dtype=np.float32)
    column = x.reshape(2, 1)
    for result, value in [
        (x + 1, [3, 5]), (1 + x, [3, 5]), (x - 1, [1, 3]), (1 - x, [-1, -3]),
        (x * 2, [4, 8]), (2 * x, [4, 8]), (x / 2, [1, 2]), (8 / x, [4, 2]),
        (x**2, [4, 16]), (-x, [-2, -4]), (x[1:], [4]), (x.sum(), 6), (x.mean(), 3),
        (one + x, [3, 5]), (one * x, [2, 4]), (column.T, [[2, 4]]), (eye @ column, [[2], [4]]),
    ]:  # fmt: skip
        assert isinstance(result, Tensor)
        np.testing.assert_array_equal(result.data, value)
    assert len(x) == 2
    assert x.sum().item() == float(x.sum()) == 6


def test_python_control_flow_sees_numbers() -> None:
    x = Tensor(3.0, requires_grad=True)
    y = x * x if x > 2 and x <= 3 and not x < 0 and x >= 1 else -x
    y.backward()
    assert x.grad == 6


def test_a_shared_input_gets_the_sum() -> None:
    x = leaf(2, 2)
    y = x * 3.0
    ops.concat(y, y, y, x).backward(np.ones((2, 8)))
    np.testing.assert_array_equal(x.grad, np.full((2, 2), 10))


def test_backward_adds_to_grad() -> None:
    x = leaf(3)
    for _ in range(3):
        (x * 2.0).sum().backward()
    np.testing.assert_array_equal(x.grad, [6, 6, 6])


def test_scalar_parameters_work() -> None:
    x = Tensor(2.0, requires_grad=True)
    for _ in range(2):
        (x * x + x + x).backward()
    assert isinstance(x.grad, np.ndarray)
    assert x.grad == 12


def test_gradients_touches_no_leaf_and_gives_arrays_of_its_own() -> None:
    x, y = leaf(2), leaf(2)
    seed = np.ones(2, np.float32)
    grads = gradients(x + y, seed)
    assert x.grad is None
    assert set(grads) == {x, y}
    grads[x] *= 5
    np.testing.assert_array_equal(grads[y], [1, 1])
    np.testing.assert_array_equal(seed, [1, 1])

    @op
    def holding(x: Any) -> Result:  # as a RowGrad holds the gradient it was given
        return x, (lambda g: [g],)

    grads = gradients(holding(x) + y, seed)
    grads[y] *= 5
    np.testing.assert_array_equal(grads[x][0], [1, 1])
    gradients(x.reshape(2, 1), np.ones((2, 1)))[x][0] = 7  # writable, though sums and reshapes pass views on
    gradients(x.sum())[x][0] = 7


def test_accumulate_needs_only_plus() -> None:
    class Rows(list[int]):
        def __add__(self, other: Any) -> Any:
            return Rows([*self, *other])

    @op
    def lookup(table: Any, *, ids: list[int]) -> Result:
        return table[ids], (lambda g: Rows(ids),)

    table = leaf(5, 2)
    accumulate(gradients(lookup(table, ids=[1]).sum() + lookup(table, ids=[2]).sum()))
    lookup(table, ids=[3]).sum().backward()
    assert sorted(table.grad) == [1, 2, 3]


def test_many_slices_share_one_buffer() -> None:
    x = leaf(4, 6)
    y = x * 1.0
    pieces = [y[:, i] for i in range(6)] + [y[np.array([0, 0])], y * 2.0]
    sum((p.sum() for p in pieces[1:]), pieces[0].sum()).backward()
    want = np.full((4, 6), 3.0)
    want[0] += 2
    np.testing.assert_array_equal(x.grad, want)


def test_deep_graphs_do_not_recurse() -> None:
    x = t = leaf(1)
    for _ in range(20_000):
        t = t + 1.0
    t.backward()
    assert x.grad == 1
    del t


def test_the_graph_is_released_unless_retained() -> None:
    x = leaf(2)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_array_equal(x.grad, [4, 4])
    with pytest.raises(ValueError, match="run the forward pass again"):
        y.backward()


def test_two_losses_of_one_graph_are_told_to_be_summed() -> None:
    x = leaf(2)
    h = x * x
    first, second = h.sum(), h.mean()
    first.backward()
    with pytest.raises(ValueError, match="sum the losses and differentiate once"):
        second.backward()


def test_backward_needs_a_scalar() -> None:
    with pytest.raises(ValueError, match=r"needs a scalar, got shape \(2, 3\).*\.sum\(\)"):
        (leaf(2, 3) * 2.0).backward()
    with pytest.raises(ValueError, match=r"grad has shape \(3,\), the tensor has shape \(2, 3\)"):
        (leaf(2, 3) * 2.0).backward(np.ones(3))


def test_backward_without_parameters() -> None:
    with pytest.raises(ValueError, match="nothing to differentiate"):
        Tensor([1.0]).sum().backward()
    with no_grad():
        loss = leaf(2).sum()
    with pytest.raises(ValueError, match="under no_grad"):
        loss.backward()


def test_wrong_shapes_name_the_op_and_its_arguments() -> None:
    with pytest.raises(ValueError, match=r"add\(x float32 \(2, 3\), y float32 \(4,\)\): .*broadcast"):
        leaf(2, 3) + leaf(4)
    with pytest.raises(ValueError, match=r"linear\(x float32 \(2, 3\), w float32 \(5, 4\), b None\).*fan_in"):
        ops.linear(leaf(2, 3), leaf(5, 4), None)
    with pytest.raises(ValueError, match=r"concat\(argument 0 float32 \(2,\)"):
        ops.concat(leaf(2), leaf(2), axis=1)
    with pytest.raises(ValueError, match=r"sum\(x float32 \(2, 3\)\): axis 2 is out of bounds"):
        leaf(2, 3).sum(axis=2)


def test_mixed_float_types_say_which_to_cast() -> None:
    with pytest.raises(
        ValueError, match=r"multiply\(x float32 \(2,\), y float64 \(2,\)\).*astype\(np.float32\)"
    ):
        leaf(2) * np.ones(2)


def test_tensors_are_not_changed_in_place() -> None:
    x = leaf(2)
    before = x
    x += 1.0
    np.testing.assert_array_equal(before.data, [1, 1])
    with pytest.raises(TypeError, match=r"ops.where"):
        x[0] = 1.0


def test_a_tensor_with_history_is_no_array() -> None:
    with pytest.raises(TypeError, match=r"\.numpy\(\)"):
        np.asarray(leaf(2))
    np.testing.assert_array_equal(np.asarray(leaf(2).detach()), [1, 1])


def test_a_wrong_pullback_is_caught() -> None:
    @op
    def broken(x: Any) -> Result:
        return x.sum(), (lambda g: g,)

    with pytest.raises(RuntimeError, match=r"op 'broken' returned float32 \(\) .* \(2,\)"):
        broken(leaf(2)).backward()


def test_no_grad_is_for_one_thread_and_ends() -> None:
    @no_grad()
    def inside() -> bool:
        return is_grad_enabled() or (leaf(2) * 2.0).requires_grad

    with ThreadPoolExecutor(1) as other, no_grad():
        assert other.submit(is_grad_enabled).result()
        assert not is_grad_enabled()
    assert is_grad_enabled()
    assert not inside()
    assert is_grad_enabled()


def test_repr_shows_numbers_and_origin() -> None:
    assert repr(Tensor([1.0, 2.0], requires_grad=True)) == (
        "Tensor([1., 2.], shape=(2,), dtype=float32, requires_grad=True)"
    )
    assert "node=sum" in repr(leaf(2).sum())


def test_subclasses_are_tensors() -> None:
    class Pool(Tensor):
        def __init__(self, rows: int):
            super().__init__(np.ones((rows, 2), np.float32), requires_grad=True)
            self.tables = ["t"]

    pool = Pool(3)
    ops.gather(pool, index=np.array([1, 1])).sum().backward()
    np.testing.assert_array_equal(pool.grad, [[0, 0], [2, 2], [0, 0]])
