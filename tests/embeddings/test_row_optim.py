"""Row optimizers equal their formula row by row, touch nothing else, and resume exactly."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tesserec.autograd import Tensor
from tesserec.autograd.module import StateError
from tesserec.autograd.workers import num_threads, set_num_threads
from tesserec.embeddings import (
    ROW_OPTIMIZERS,
    Constant,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    KeyedJaggedTensor,
    Normal,
    Origin,
    Pool,
    RowAdagrad,
    RowFTRL,
    RowGrad,
    RowSGD,
)
from tests import naive
from tests.embeddings import golden

MAKE: Any = ROW_OPTIMIZERS
COMMON: dict[str, Any] = {"lr": 0.05, "weight_decay": 0.0, "decay": "l2", "clip": np.inf, "max_norm": np.inf}
OWN: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.0},
    "adagrad": {"eps": 1e-6},
    "rowwise_adagrad": {"eps": 1e-6},
    "rowwise_adagrad_counter": {
        "eps": 1e-6,
        "half_life": 3.0,
        "tail": 1.5,
        "most": 5.0,
        "power": 0.7,
        "bounds": (1.1, 1.3),
    },
    "adam": {"eps": 1e-8},
    "adamw": {"eps": 1e-8},
    "partial_rowwise_adam": {"eps": 1e-8},
    "lamb": {"eps": 1e-8},
    "partial_rowwise_lamb": {"eps": 1e-8},
    "lars_sgd": {"momentum": 0.9, "trust": 0.3},
    "ftrl": {"beta": 0.5, "l1": 0.2, "l2": 0.3},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "l2": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "decay": "decoupled"},
    "clip": {"clip": 0.3},
    "max_norm": {"max_norm": 1.5},
    "all": {"weight_decay": 0.1, "decay": "decoupled", "clip": 0.3, "max_norm": 1.5},
}
GOLDEN: dict[str, Any] = json.loads(golden.GOLDEN.read_text())
every_optimizer = pytest.mark.parametrize("name", list(ROW_OPTIMIZERS))


def collection_of(
    width: int, rows: tuple[int, int] = (9, 200), data_type: Any = "float32"
) -> EmbeddingBagCollection:
    tables = [
        EmbeddingBagConfig("a", rows[0], width, ("x", "y"), data_type=data_type, init=Normal(1)),
        EmbeddingBagConfig("b", rows[1], width, ("z",), data_type=data_type, init=Normal(1)),
    ]
    return EmbeddingBagCollection(tables, seed=0)


def batch_of(collection: EmbeddingBagCollection, seed: int, size: int = 20) -> KeyedJaggedTensor:
    """Many duplicate ids."""
    rng = np.random.default_rng(seed)
    a, b = (table.num_embeddings for table in collection.table_set.tables)
    ids = {"x": rng.integers(0, a, size), "y": rng.integers(0, a, size), "z": rng.integers(0, b, size)}
    return KeyedJaggedTensor.from_dense(ids)


def train(collection: EmbeddingBagCollection, optimizer: Any, seeds: range, size: int = 20) -> None:
    for seed in seeds:
        values = collection(batch_of(collection, seed, size)).values
        (values * values * values).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def check_steps(name: str, options: dict[str, Any], width: int, data_type: Any = "float32") -> None:
    """Five steps equal the oracle's, each on its own, and nothing else moves."""
    collection = collection_of(width, data_type=data_type)
    pool: Any = collection.pools[0]
    optimizer = MAKE[name](collection.named_parameters(), **options)
    wanted = pool.data.astype(np.float64)
    slots = ("total", "mean", "square", "velocity", "linear", "seen", "count")
    states: list[dict[str, Any]] = [{slot: np.zeros(width) for slot in slots} for _ in wanted]
    for step in range(1, 6):
        values = collection(batch_of(collection, step)).values
        (values * values * values).sum().backward()
        grad = pool.grad.to_dense().astype(np.float64)
        for r in pool.grad.rows:
            naive.row_update(name, wanted[r], grad[r], states[r], step, options)
        before = pool.data.copy()
        optimizer.step()
        untouched = np.setdiff1d(np.arange(len(before)), pool.grad.rows)
        assert np.array_equal(pool.data[untouched], before[untouched])
        rtol, atol = (1e-9, 1e-9) if data_type == "float64" else (3e-4, 3e-5)
        np.testing.assert_allclose(pool.data, wanted, rtol=rtol, atol=atol)
        optimizer.zero_grad()
        pool.data[...] = wanted  # no drift: each step is compared on its own


@every_optimizer
@pytest.mark.parametrize("setting", list(SETTINGS))
def test_steps_equal_oracle(name: str, setting: str) -> None:
    check_steps(name, COMMON | OWN[name] | SETTINGS[setting], 16)


@every_optimizer
@pytest.mark.parametrize("width", [1, 3, 33, 300])
def test_any_width_and_type_equals_oracle(name: str, width: int) -> None:
    check_steps(name, COMMON | OWN[name], width, "float64" if width == 3 else "float32")


def test_momentum_equals_oracle() -> None:
    check_steps("sgd", COMMON | {"momentum": 0.9}, 16)


@pytest.mark.parametrize("case", list(GOLDEN))
def test_equals_torch_and_fbgemm(case: str) -> None:
    """Against their results as `benchmarks/check_optimizers.py` found them."""
    np.testing.assert_allclose(golden.our_rows(case), GOLDEN[case], atol=golden.TOLERANCE)


def one_step(name: str, setting: str, kjts: list[KeyedJaggedTensor], looked_at: bool = False) -> Any:
    """Rows after a step with the gradients of all batches, which are slices of one."""
    collection = collection_of(16)
    optimizer = MAKE[name](collection.named_parameters(), **COMMON | OWN[name] | SETTINGS[setting])
    for _ in range(2):
        for kjt in kjts:
            values = collection(kjt).values
            (values * values).sum().backward()
        if looked_at:
            assert np.isfinite(collection.pools[0].grad.values).all()
        optimizer.step()
        optimizer.zero_grad()
    return collection.pools[0].data


@every_optimizer
@pytest.mark.parametrize("setting", ["plain", "all"])
def test_micro_batches_and_looking_change_no_bit(name: str, setting: str) -> None:
    whole = batch_of(collection_of(16), 0, 50)
    wanted = one_step(name, setting, [whole])
    assert np.array_equal(wanted, one_step(name, setting, [whole], looked_at=True))
    parts = [whole.select(lo, min(lo + 16, 50)) for lo in range(0, 50, 16)]
    assert np.array_equal(wanted, one_step(name, setting, parts))


@every_optimizer
def test_two_losses_step_once(name: str) -> None:
    results = []
    for apart in (True, False):
        collection = collection_of(16)
        optimizer = MAKE[name](collection.named_parameters(), **COMMON | OWN[name])
        values = collection(batch_of(collection, 0)).values
        first, second = (values * values).sum(), (values * 3.0).sum()
        if apart:
            first.backward(retain_graph=True)
            second.backward()
        else:
            (first + second).backward()
        optimizer.step()
        results.append(collection.pools[0].data)
    np.testing.assert_allclose(results[0], results[1], rtol=1e-3, atol=1e-4)


def test_tables_have_learning_rates_of_their_own() -> None:
    moves = {}
    for factors in ({}, {"b": 0.5}, {"a": 0.0}):
        collection = collection_of(3)
        before = collection.pools[0].data.copy()
        optimizer = MAKE["adagrad"](collection.named_parameters(), lr=0.1, table_lr=factors)
        train(collection, optimizer, range(1))
        moves[str(factors)] = collection.pools[0].data - before
    plain, half_b, no_a = moves.values()
    np.testing.assert_allclose(half_b[:9], plain[:9], atol=1e-6)
    np.testing.assert_allclose(half_b[9:], plain[9:] / 2, atol=1e-6)
    assert not no_a[:9].any() and np.array_equal(no_a[9:], plain[9:])


def test_ftrl_makes_elements_exactly_zero() -> None:
    tables = [EmbeddingBagConfig("a", 50, 16, ("x",), init=Constant(0))]
    collection = EmbeddingBagCollection(tables, seed=0)
    optimizer = RowFTRL([("pool", collection.pools[0])], lr=0.1, l1=1.0)
    rng = np.random.default_rng(0)
    for _ in range(3):
        values = collection(KeyedJaggedTensor.from_dense({"x": np.arange(50)})).values
        values.backward(rng.standard_normal((50, 16)).astype(np.float32))
        optimizer.step()
        optimizer.zero_grad()
    zeros = np.mean(collection.pools[0].data == 0)
    assert 0.2 < zeros < 0.8


@pytest.mark.parametrize("data_type", ["float16", "bfloat16"])
@pytest.mark.parametrize("width", [3, 16, 40])
def test_narrow_rows_are_rounded_at_random_with_the_right_mean(data_type: Any, width: int) -> None:
    """10 steps of a sixteenth of the distance to the next number: rounding to nearest would stay put."""
    rows, gap = 4000, 2.0 ** (-10 if data_type == "float16" else -7)
    tables = [EmbeddingBagConfig("a", rows, width, ("x",), data_type=data_type, init=Constant(1))]
    kjt = KeyedJaggedTensor.from_dense({"x": np.arange(rows, dtype=np.int32)})

    def moved(seed: int) -> Any:
        collection = EmbeddingBagCollection(tables, seed=0)
        optimizer = RowSGD([("pool", collection.pools[0])], lr=1.0, seed=seed)
        for _ in range(10):
            collection(kjt).values.backward(np.full((rows, width), -gap / 16, np.float32))
            optimizer.step()
            optimizer.zero_grad()
        return (collection(kjt).values.numpy() - 1) / gap

    first = moved(0)
    assert set(np.unique(first)) <= set(range(11)) and np.std(first) > 0.5
    assert np.mean(first) == pytest.approx(10 / 16, abs=5 * np.std(first) / np.sqrt(first.size))
    assert np.abs(np.mean(first, 0) - 10 / 16).max() < 6 * np.std(first) / np.sqrt(rows)
    assert np.array_equal(first, moved(0)) and not np.array_equal(first, moved(1))


@every_optimizer
@pytest.mark.parametrize("data_type", ["float16", "bfloat16"])
def test_narrow_rows_are_within_one_step_of_the_oracle(name: str, data_type: Any) -> None:
    """The state is exact; a row is one of the two neighbours of what it should be."""
    narrow, wide = collection_of(16, data_type=data_type), collection_of(16)
    kjt = batch_of(wide, 0)
    wide.pools[0].data[...] = all_rows(narrow)
    states, after = [], []
    for collection in (narrow, wide):
        optimizer = MAKE[name](collection.named_parameters(), **COMMON | OWN[name] | {"lr": 0.01})
        collection(kjt).values.sum().backward()
        optimizer.step()
        states.append(optimizer.state_dict())
        after.append(all_rows(collection))
    for slot, array in states[1].items():
        np.testing.assert_allclose(states[0][slot], array, rtol=1e-6)
    tolerance = 2.0 ** (-10 if data_type == "float16" else -7)
    np.testing.assert_allclose(after[0], after[1], rtol=tolerance, atol=1e-6)


def all_rows(collection: EmbeddingBagCollection) -> Any:
    """(R, D) float32."""
    data = collection.pools[0].data
    if data.dtype == np.uint16:  # bfloat16 is the upper half of a float32
        return (data.astype(np.uint32) << 16).view(np.float32)
    return data.astype(np.float32)


@every_optimizer
def test_any_number_of_threads_gives_the_same_bits(name: str) -> None:
    results, before = [], num_threads()
    try:
        for threads in (1, 2, 4):
            set_num_threads(threads)
            collection = collection_of(16, (3000, 50_000))
            optimizer = MAKE[name](collection.named_parameters(), lr=0.1)
            train(collection, optimizer, range(3), 20_000)
            results.append(collection.pools[0].data)
    finally:
        set_num_threads(before)
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


@every_optimizer
def test_resumes_exactly(name: str) -> None:
    straight, broken = collection_of(3), collection_of(3)
    make = MAKE[name]
    train(straight, make(straight.named_parameters(), lr=0.05, weight_decay=0.02), range(6))
    first = make(broken.named_parameters(), lr=0.05, weight_decay=0.02)
    train(broken, first, range(3))
    second = make(broken.named_parameters(), lr=0.05, weight_decay=0.02)
    second.load_state_dict({key: np.array(value) for key, value in first.state_dict().items()})
    train(broken, second, range(3, 6))
    assert np.array_equal(straight.pools[0].data, broken.pools[0].data)


def test_state_can_be_cut_by_table() -> None:
    collection = collection_of(3)
    pool: Any = collection.pools[0]
    optimizer = RowAdagrad([("pool", pool)], lr=0.1, initial=0.5)
    state = optimizer.state_dict()
    assert list(state) == ["steps", "total.pool"]
    assert [len(state["total.pool"][table.rows]) for table in pool.tables] == [9, 200]
    assert (state["total.pool"] == 0.5).all()
    with pytest.raises(StateError, match=r"missing 'total\.pool'"):
        optimizer.load_state_dict({"steps": 1})


def test_adagrad_is_gentler_on_frequent_rows() -> None:
    collection = collection_of(3)
    pool: Any = collection.pools[0]
    assert isinstance(pool, Pool)
    optimizer = RowAdagrad([("pool", pool)], lr=1.0)
    moves = []
    for _ in range(2):
        before = pool.data[0].copy()
        collection(KeyedJaggedTensor.from_dense({"x": [0], "y": [1], "z": [0]})).values.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        moves.append(np.abs(pool.data[0] - before))
    np.testing.assert_allclose(moves[0], 1.0, rtol=1e-5)
    np.testing.assert_allclose(moves[1], 0.5**0.5, rtol=1e-5)


def test_options_are_checked() -> None:
    pools = [("pool", collection_of(3).pools[0])]
    for options, message in (
        ({"table_lr": {"c": 1.0}}, "no table 'c'; have a, b"),
        ({"decay": "l1"}, "decay: got 'l1'"),
        ({"clip": 0.0}, "clip: got 0.0"),
        ({"max_norm": -1.0}, "max_norm: got -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            MAKE["sgd"](pools, lr=0.1, **options)


@every_optimizer
def test_an_optimizer_knows_what_it_looks_at(name: str) -> None:
    """Whether a row's update depends on other columns of it is found out by changing these."""
    for setting, options in SETTINGS.items():
        moved = []
        for factor in (1, 3):
            collection = collection_of(32)
            pool: Any = collection.pools[0]
            optimizer = MAKE[name]([("pool", pool)], **COMMON | OWN[name] | options)
            for step in range(2):
                rows, values = np.arange(5), np.random.default_rng(step).standard_normal((5, 32))
                values[:, 16:] *= factor**step
                pool.grad = RowGrad.from_rows(pool.bounds, rows, values.astype(np.float32))
                optimizer.step()
            moved.append(pool.data[:5, :16].copy())
        looks = optimizer.looks_at()
        assert np.array_equal(moved[0], moved[1]) == (not looks), setting
        assert setting not in ("max_norm", "all") or {"gradient", "weights"} <= set(looks)
        assert setting != "l2" or not looks or "weights" in looks


def test_sharded_pools_may_lack_tables_that_others_have() -> None:
    config = EmbeddingBagConfig("a", 10, 4, ("x",))
    origins = [Origin(config, (5, 10), (0, 4))]
    pool = Pool([origin.config for origin in origins], seed=0, origins=origins)
    factors = RowSGD([("pool", pool)], lr=0.1, table_lr={"a": 0.5, "b": 2.0}).tables["pool"]["factor"]
    assert factors.tolist() == [0.5] and RowSGD([], lr=0.1, table_lr={"b": 2.0}).pools == {}


def test_only_pools_are_taken_and_pools_without_gradient_left_alone() -> None:
    with pytest.raises(TypeError, match="'w' is no Pool"):
        MAKE["sgd"]([("w", Tensor([1.0], requires_grad=True))], lr=0.1)
    collection = collection_of(3)
    before = collection.pools[0].data.copy()
    RowSGD([("pool", collection.pools[0])], lr=0.1).step()
    assert np.array_equal(collection.pools[0].data, before)
