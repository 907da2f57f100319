"""A compiled model gives the numbers of the model it was made from, or runs as that model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tesserec
from tesserec.autograd import (
    MLP,
    BatchNorm1d,
    CompiledModel,
    Dropout,
    Linear,
    Module,
    Tensor,
    compile,
    gradients,
    no_grad,
    num_threads,
    opaque,
    ops,
    random_stream,
    set_num_threads,
)

Array = npt.NDArray[Any]
B, W = 12, 4


def numbers(shape: tuple[int, ...] = (B, W), seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class Function(Module):
    """A model from a function of its weights and input."""

    def __init__(self, fn: Callable[..., Tensor], *weights: Array):
        self.fn = fn
        self.weights = [Tensor(w, requires_grad=True) for w in weights]

    def forward(self, *inputs: Any) -> Tensor:
        return self.fn(*self.weights, *inputs)


def dropping() -> Module:
    return MLP((W, 8, 8, 1), rng=rng(), dropout=0.3)


def outcome(model: Module, x: Any, seed: int = 5) -> tuple[Array, list[Array]]:
    """The value, and the gradient of each parameter, of a model under a stream of its own."""
    with random_stream(rng(seed)):
        y = model(x)
    direction = numbers(y.shape, seed=1)
    grads = gradients(y, direction)
    return y.data, [np.asarray(grads.get(p, np.zeros(p.shape))) for p in model.parameters()]


def assert_same(model: Module, compiled: Module, x: Any, times: int = 2) -> None:
    value, grads = outcome(model, x)
    for _ in range(times):
        again, again_grads = outcome(compiled, x)
        np.testing.assert_allclose(again, value, rtol=1e-5, atol=1e-6)
        for mine, wanted in zip(again_grads, grads, strict=True):
            np.testing.assert_allclose(mine, wanted, rtol=1e-5, atol=2e-5)


def captured(model: Module) -> CompiledModel:
    """`model` compiled, in one slice."""
    return compile(model, slice_size=10**6)


def in_threes(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Layers over the last of three axes; one reads a part of what the other reads."""
    z = x.reshape(-1, 2, 2) * 1.0
    both = ops.linear(ops.concat(z, y.reshape(-1, 2, 2), axis=1), w[:2, :2])
    return both[:, 1:3].reshape(-1, W) + ops.linear(z, w[1:3, :2]).reshape(-1, W)


def crossed_in_place(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """A cross step whose inputs lie in, and get gradients from, a place in a wider array."""
    z = x.reshape(-1, 2, 2) * 2.0
    return ops.concat(z, z * y.reshape(-1, 2, 2) + z, axis=1).reshape(-1, 2, W)[:, 1]


STEPS: list[Callable[..., Tensor]] = [
    lambda w, x, y: ops.add(x, y),
    lambda w, x, y: x - y,
    lambda w, x, y: x * y,
    lambda w, x, y: x * y + x,
    lambda w, x, y: ops.linear(x, w) * y + x,
    lambda w, x, y: ops.relu(ops.linear(x, w, w[0])),
    lambda w, x, y: ops.sigmoid(ops.linear(x, w)),
    lambda w, x, y: ops.linear_relu(x, w, w[1]),
    lambda w, x, y: ops.tanh(x),
    lambda w, x, y: ops.linear(ops.concat(x, y, x, axis=1), ops.concat(w, w, w, axis=1)),
    lambda w, x, y: ops.stack(x, y, x, axis=1).sum(axis=1),
    lambda w, x, y: ops.stack(x, y, axis=0)[1] * 0.5,
    lambda w, x, y: ops.concat(x.reshape(-1, 2, 2), y.reshape(-1, 2, 2), axis=1).reshape(-1, 2, W)[:, 0],
    lambda w, x, y: ops.concat(x.reshape(-1, 2, 2), y.reshape(-1, 2, 2), axis=2)[:, 1],
    lambda w, x, y: ops.concat(x[:, 2:], y[:, :2], axis=1),
    lambda w, x, y: x.T.T + y.reshape(-1).reshape(-1, W),
    lambda w, x, y: ops.factorization(ops.stack(x, y, axis=1)),
    lambda w, x, y: ops.concat(ops.pairwise_dot(ops.stack(x, y, w[0] * x, axis=1)), y[:, 3:], axis=1),
    lambda w, x, y: ops.softmax(x, axis=1) @ w,
    in_threes,
    crossed_in_place,
    lambda w, x, y: x * y[:, :1] + w[2],
    lambda w, x, y: x.mean(axis=0) + y,
    lambda w, x, y: x.sum(axis=-1, keepdims=True) * y + ops.stack(x, y, axis=2).sum(axis=(0, 2)) * 0.1,
    lambda w, x, y: x.sum() * 0.1 + y,
    lambda w, x, y: 1.0 - x / (2 + ops.absolute(y)),
    lambda w, x, y: ops.concat(x, y, axis=0)[::2],
]


@given(seed=st.integers(0, 2**32), plan=st.lists(st.integers(0, len(STEPS) - 1), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_any_composition_of_ops(seed: int, plan: list[int]) -> None:
    """Values read often or never, twice by one op, through views, in columns of others, at the end."""
    chance = rng(seed)
    reads = [chance.integers(0, i + 2, 2) for i in range(len(plan))]

    def forward(w: Tensor, start: Tensor, x: Tensor) -> Tensor:
        values = [start * x, x + w[3]]
        for step, (i, j) in zip(plan, reads, strict=True):
            value = STEPS[step](w, values[i], values[j])
            values.append(ops.tanh(value) if seed % 2 else value)
        return values[-1] + values[-2] if seed % 3 else values[-1]

    model = Function(forward, numbers((W, W), 1) * 0.5, numbers((B, W), 2) * 0.5)
    compiled = captured(model)
    assert_same(model, compiled, numbers(seed=3) * 0.5)
    assert compiled.why_eager is None


@pytest.mark.parametrize("size", [1, 5, 6, B, 99])
def test_slices_sum_to_the_whole_batch(size: int) -> None:
    model = MLP((W, 8, 1), rng=rng())
    assert_same(model, compile(model, slice_size=size), numbers())


@pytest.mark.parametrize("seed", [0, 1])
def test_dropout_draws_as_the_model_does(seed: int) -> None:
    """The same numbers from the same stream, which moves on as far; also where the way back is gone twice."""
    model = dropping()
    compiled = captured(model)
    for x in (numbers(), numbers(seed=2)):
        value, grads = outcome(model, x, seed)
        again, again_grads = outcome(compiled, x, seed)
        np.testing.assert_allclose(again, value, rtol=1e-5)
        for mine, wanted in zip(again_grads, grads, strict=True):
            np.testing.assert_allclose(mine, wanted, rtol=1e-4, atol=1e-6)
    ends = []
    for each in (model, compiled):
        stream = rng(seed)
        with random_stream(stream):
            each(numbers())
        ends.append(stream.random())
    assert ends[0] == ends[1]


def test_same_bits_for_any_number_of_threads() -> None:
    before, results = num_threads(), []
    compiled = compile(dropping(), slice_size=3)
    try:
        for n in (1, 2, 3):
            set_num_threads(n)
            results.append(outcome(compiled, numbers()))
    finally:
        set_num_threads(before)
    for value, grads in results[1:]:
        np.testing.assert_array_equal(value, results[0][0])
        for mine, wanted in zip(grads, results[0][1], strict=True):
            np.testing.assert_array_equal(mine, wanted)


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_captured_with_its_running_averages(training: bool) -> None:
    twins = []
    for _ in range(2):
        twins.append(MLP((W, 8, 1), rng=rng(), batch_norm=True).train(training))
    compiled = compile(twins[1], slice_size=5 if training else 10**6)  # it couples samples: one slice
    for seed in range(3):
        value, _ = outcome(twins[0], numbers(seed=seed))
        again, _ = outcome(compiled, numbers(seed=seed))
        np.testing.assert_allclose(again, value, rtol=1e-4, atol=1e-6)
    for name, array in twins[0].state_dict().items():
        np.testing.assert_allclose(twins[1].state_dict()[name], array, rtol=1e-5, atol=1e-6)
    assert compiled.why_eager is None


def test_several_losses_and_retained_graphs() -> None:
    model = dropping()
    compiled = compile(model, slice_size=5)
    with random_stream(rng()):
        y = compiled(numbers())
    whole = gradients((y * y).sum() + y.sum(), retain_graph=True)
    parts = [gradients((y * y).sum(), retain_graph=True), gradients(y.sum())]
    for p in model.parameters():
        np.testing.assert_allclose(parts[0][p] + parts[1][p], whole[p], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="already differentiated"):
        y.sum().backward()


def test_gradients_and_values_belong_to_the_caller() -> None:
    model = MLP((W, 8, 1), rng=rng())
    compiled = compile(model, slice_size=5)
    value, grads = outcome(compiled, numbers())
    kept = value.copy(), [g.copy() for g in grads]
    for array in (value, *grads):
        array.fill(np.nan)
    again, again_grads = outcome(compiled, numbers())
    np.testing.assert_array_equal(again, kept[0])
    for mine, wanted in zip(again_grads, kept[1], strict=True):
        np.testing.assert_array_equal(mine, wanted)


def test_workspaces_are_used_again() -> None:
    """After a way back, after a result that nobody wanted, without gradients, and after an error."""
    compiled = captured(dropping())
    x = numbers()
    for _ in range(3):
        outcome(compiled, x)
        with random_stream(rng()):
            compiled(x)
        with pytest.raises(RuntimeError, match="no stream is open"):
            compiled(x)
        with no_grad(), random_stream(rng()):
            compiled(x)
    assert sorted(len(program.workspaces) for _, program in compiled.programs) == [1, 1]


def test_many_threads_may_call_it() -> None:
    model = MLP((W, 8, 1), rng=rng())
    compiled = captured(model)
    wanted = [outcome(model, numbers(seed=i))[0] for i in range(8)]
    got: dict[int, Array] = {}

    def work(i: int) -> None:
        for _ in range(20):
            got[i] = outcome(compiled, numbers(seed=i))[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        np.testing.assert_allclose(got[i], wanted[i], rtol=1e-5)


def to_float64(model: Module) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data.astype(np.float64)


CHANGES: dict[str, Callable[[Any], None]] = {
    "a weight": lambda model: model.layers[0].weight.data.fill(0.1),
    "the array of a weight": lambda model: setattr(model.layers[0].weight, "data", numbers((8, W), 3)),
    "a weight's type": to_float64,
    "an attribute": lambda model: setattr(model.dropout, "p", 0.9),
    "the mode": lambda model: model.eval(),
    "the mode of a part": lambda model: model.dropout.eval(),
    "a layer": lambda model: setattr(model, "layers", [Linear(W, 1, rng=rng(3))]),
    "a layer in a list": lambda model: model.layers.__setitem__(0, Linear(W, 8, rng=rng(3))),
    "a list": lambda model: model.activations.__setitem__(0, "tanh"),
    "what is trained": lambda model: setattr(model.layers[0].weight, "requires_grad", False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_in_the_model_is_noticed(change: str) -> None:
    model = dropping()
    compiled = captured(model)
    outcome(compiled, numbers())
    CHANGES[change](model)
    if change == "a layer":
        model.activations = []  # type: ignore[attr-defined]
    x = numbers().astype(next(iter(model.parameters())).dtype)
    assert_same(model, compiled, x)


def test_shapes_and_types_have_programs_of_their_own() -> None:
    model = MLP((W, 8, 1), rng=rng())
    compiled = captured(model)
    for size in (*range(1, 12), 3, 1):
        assert_same(model, compiled, numbers((size, W)), times=1)
    assert_same(model, compiled, Tensor(numbers()))
    assert_same(model, compiled, np.asfortranarray(numbers()))
    assert len(compiled.programs) <= 8
    with pytest.raises(ValueError, match=r"linear_relu\(x float32 \(12, 5\)"):
        compiled(numbers((B, 5)))


class Branching(Module):
    buffers: ClassVar = ("mean",)

    def __init__(self, how: str):
        self.layer = Linear(W, 1, rng=rng())
        self.how = how
        self.calls = 0
        self.mean = np.zeros(W, np.float32)
        self.constant = np.ones(W, np.float32)

    def forward(self, x: Any) -> Any:
        if self.how == "branch" and ops.sum(x) > 0:
            return self.layer(-x)
        if self.how == "item":
            return self.layer(x) * ops.sum(x).item()
        if self.how == "numpy":
            return self.layer(np.log1p(np.abs(x)))
        if self.how == "fresh array":
            return self.layer(x * (self.mean + 1))
        if self.how == "array attribute":
            return self.layer(x * self.constant)
        if self.how == "keyword array":
            return self.layer(x)[np.arange(3)]
        if self.how == "own generator":
            return ops.dropout(self.layer(x), p=0.5, rng=np.random.default_rng(0))
        if self.how == "attribute":
            self.calls += 1
        if self.how == "tuple":
            return self.layer(x), x
        return self.layer(x)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("branch", "reads .data of a Tensor"),
        ("item", "reads .data of a Tensor"),
        ("numpy", "TypeError"),
        ("fresh array", "multiply is given a ndarray that is neither"),
        ("array attribute", "multiply is given a ndarray that is neither"),
        ("keyword array", "getitem is given a ndarray by keyword"),
        ("own generator", "dropout draws from a generator of its own"),
        ("attribute", "forward changes an attribute of a module"),
        ("tuple", "forward returns a tuple"),
    ],
)
def test_what_cannot_be_captured_runs_as_it_is(how: str, why: str) -> None:
    compiled = captured(Branching(how))
    with pytest.warns(UserWarning, match=f"Branching runs as it is, not compiled: .*{why}"):
        compiled(numbers())
    for x in (numbers(), -numbers()):
        mine, wanted = compiled(x), Branching(how)(x)
        np.testing.assert_array_equal(
            *(y[0].data if isinstance(y, tuple) else y.data for y in (mine, wanted))
        )
    assert why in str(compiled.why_eager)


def test_one_row_per_sample_is_needed_to_cut_a_batch() -> None:
    model = Function(lambda w, x: (x * w).sum(), numbers((W,)))
    assert_same(model, captured(model), numbers())
    compiled = compile(model, slice_size=5)
    with pytest.warns(UserWarning, match=r"forward gives \(\) for 5 samples"):
        assert_same(model, compiled, numbers())


def test_dense_values_as_fields() -> None:
    """(F, D) times (B, F, 1), in a place of a wider array and read twice."""

    def forward(w: Tensor, x: Tensor) -> Tensor:
        fields = w * x[:, :, None]
        return ops.concat(fields, x[:, :, None] * w, fields, axis=1).reshape(len(x), -1)

    model = Function(forward, numbers((W, 3)))
    assert_same(model, captured(model), numbers())


def test_numbers_of_all_kinds_are_inputs() -> None:
    model = Function(lambda w, x, scale, y: ops.linear(x, w) * scale + y, numbers((W, W)))
    compiled = captured(model)
    for scale in (0.5, 2, np.float32(3)):
        a, b = (m(numbers(), scale, Tensor(numbers(seed=1))) for m in (model, compiled))
        np.testing.assert_allclose(b.data, a.data, rtol=1e-6)


def test_other_inputs_are_for_the_model_alone() -> None:
    model = Function(lambda w, inputs: ops.linear(inputs["x"], w), numbers((W, W)))
    compiled = captured(model)
    with pytest.warns(UserWarning, match="an input is a dict, wanted arrays"):
        np.testing.assert_array_equal(compiled({"x": numbers()}).data, model({"x": numbers()}).data)


def test_a_buffer_that_is_replaced_is_noticed() -> None:
    norm = BatchNorm1d(1).eval()
    compiled = captured(norm)
    x = numbers((B, 1))
    assert_same(norm, compiled, x)
    norm.running_mean = norm.running_mean.copy()  # equal, but another one
    assert_same(norm, compiled, x)
    norm.running_mean += 1
    assert_same(norm, compiled, x)


def test_state_and_modes_are_the_models() -> None:
    model = dropping()
    compiled = tesserec.compile(model)
    assert list(compiled.state_dict()) == list(model.state_dict())
    assert list(compiled.named_parameters()) == list(model.named_parameters())
    compiled.eval()
    assert not compiled.training and not model.dropout.training  # type: ignore[attr-defined]
    compiled.load_state_dict({name: array + 1 for name, array in model.state_dict().items()})
    assert_same(model, compiled, numbers())
    assert_same(model, captured(compiled), numbers())  # compiled twice


class Bags:
    """What an opaque function takes: not an array."""

    keys = ("a",)

    def __init__(self, values: Array):
        self.values = values

    @property
    def batch_size(self) -> int:
        return len(self.values)

    def select(self, lo: int, hi: int) -> Bags:
        return Bags(self.values[lo:hi])


class Looking(Module):
    """A model with an opaque part. wrong: what it does that it must not."""

    def __init__(self, wrong: str = ""):
        self.weight = Tensor(numbers((W,)), requires_grad=True)
        self.layer = Linear(2 * W, 1, rng=rng())
        self.wrong = wrong

    def forward(self, bags: Bags) -> Any:
        given = Bags(bags.values) if self.wrong == "own input" else bags
        leaves = [self.layer.weight if self.wrong == "leaf" else self.weight]
        x = opaque(self._scaled, given, shape=(bags.batch_size, W), dtype=np.float32, leaves=leaves)
        if self.wrong == "reads":
            x = x * float(bags.values.sum())
        return self.layer(ops.concat(x, x * x, axis=1))

    def _scaled(self, bags: Bags, out: Array | None = None) -> Tensor:
        scaled: Tensor = self.weight * bags.values
        return scaled[:1] if self.wrong == "shape" else scaled


def test_opaque_parts_are_called_with_the_batch() -> None:
    model = Looking()
    for size in (5, 99):
        compiled = compile(model, slice_size=size)
        for seed in range(3):
            assert_same(model, compiled, Bags(numbers(seed=seed)))
        assert compiled.why_eager is None


@pytest.mark.parametrize("wrong", ["own input", "reads"])
def test_inputs_that_are_no_arrays_are_for_opaque_parts_only(wrong: str) -> None:
    with pytest.warns(UserWarning, match="forward reads .values of a Bags, which depends on the batch"):
        assert_same(Looking(wrong), compile(Looking(wrong), slice_size=99), Bags(numbers()))


def test_an_opaque_part_keeps_its_word() -> None:
    with pytest.raises(ValueError, match=r"gave float32 \(1, 4\), .* \(12, 4\)"):
        compile(Looking("shape"), slice_size=99)(Bags(numbers()))


def test_gradients_to_other_leaves_than_declared_are_not_lost() -> None:
    compiled = compile(Looking("leaf"), slice_size=99)
    with pytest.warns(UserWarning, match="an input holds a Tensor that requires a gradient"):
        assert_same(Looking("leaf"), compiled, Bags(numbers()))


def test_joined_values_are_computed_where_they_are_joined() -> None:
    """No copies for concat but that of the input, and that of a value which lies in another place already."""
    model = Function(
        lambda w, x: ops.concat(z := ops.linear(x, w), ops.concat(z, ops.linear(z, w), x, axis=1), axis=1),
        numbers((W, W)),
    )
    compiled = captured(model)
    assert_same(model, compiled, numbers())
    [(_, program)] = compiled.programs
    assert [fn for fn, _ in program.forward_calls].count(np.copyto) == 2


def test_memory_is_shared_by_what_is_not_needed_at_once() -> None:
    def deep(w: Tensor, x: Tensor) -> Tensor:
        y = ops.linear(x, w)
        for _ in range(20):
            y = ops.linear(y, w)
        return y

    model = Function(deep, numbers((W, W)))
    compiled = captured(model)
    with no_grad():
        compiled(numbers())
    [(_, program)] = compiled.programs
    assert program.size <= 2 * B * W * 4 + 64


def test_compiling_refuses_a_wrong_slice_size() -> None:
    with pytest.raises(ValueError, match="slice_size is 0"):
        compile(Dropout(0.5), slice_size=0)
    assert BatchNorm1d(2).couples_samples
