"""What training says it has changed is all that it has changed, for every row optimizer, plan and rank."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.autograd.module import Module
from tesserec.dataio.config import ConfigError
from tesserec.embeddings.collection import EmbeddingBagCollection, dense_state
from tesserec.embeddings.config import EmbeddingBagConfig
from tesserec.embeddings.jagged import KeyedJaggedTensor
from tesserec.embeddings.kernels.touched import count_rows, take_rows
from tesserec.embeddings.row_optim import ROW_OPTIMIZERS
from tesserec.sharding.comm import Comm, LocalComm
from tesserec.sharding.threads import run_ranks
from tesserec.train.config import TrainConfig
from tesserec.train.learner import load_model
from tesserec.train.loop import Interrupted, Trainer
from tesserec.train.publishing import Publishing
from tesserec.train.run import RunFolder
from tesserec.train.tables import held_tables
from tesserec.train.touched import Changes, Touched
from tests.train.conftest import never

Configure = Callable[..., TrainConfig]
Arrays = dict[str, npt.NDArray[Any]]


class Copy:
    """A model that knows of training only what is published."""

    def __init__(self, run: RunFolder, *, every: float = 0.0, whole_every: int | None = None):
        self.run, self.arrays = run, Arrays()
        self.told: list[str] = []
        self.touched: list[int] = []
        self.publishing = Publishing(self.whole, self.changed, every, whole_every)

    def whole(self, model: Module, step: int) -> None:
        self.arrays = weights_of(model)
        self.told.append("whole")

    def changed(self, changes: Changes, step: int, last: bool) -> None:
        for name, (rows, values) in changes.tables.items():
            assert (np.diff(rows) > 0).all()
            self.arrays[name][rows] = values
        for name, array in changes.dense.items():
            self.arrays[name][...] = array
        self.touched.append(sum(len(rows) for rows, _ in changes.tables.values()))
        self.told.append(f"last {step}" if last else str(step))


def last_of(run: RunFolder) -> Arrays:
    """The weights of the last checkpoint."""
    return weights_of(load_model(run, "last"))


def weights_of(model: Module) -> Arrays:
    """Copies, as numbers."""
    tables = {held.table: held.pool.values(held.place.rows) for held in held_tables(model)}
    return tables | {name: array.copy() for name, array in dense_state(model).items()}


def published(
    config: TrainConfig, ranks: int = 1, *, resume: bool = False, stop: Any = never, **options: Any
) -> Copy:
    """What a run has told; it is finished or stopped."""
    assert config.output is not None
    copy = Copy(RunFolder(config.output), **options)

    def run(comm: Comm) -> None:
        trainer = Trainer(
            config,
            resume=resume,
            comm=comm,
            should_stop=lambda: stop(trainer.state),
            publishing=copy.publishing,
        )
        with suppress(Interrupted):
            trainer.fit()

    run(LocalComm()) if ranks == 1 else run_ranks(ranks, run)
    return copy


def assert_equal(got: Arrays, wanted: Arrays) -> None:
    assert got.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(got[name], wanted[name], name)


OPTIONS = {"sgd": {"momentum": 0.9, "max_norm": 0.5}, "ftrl": {"l1": 0.01}}


@pytest.mark.parametrize("name", ROW_OPTIMIZERS)
def test_changes_are_all_that_a_row_optimizer_changes(configure: Configure, name: str) -> None:
    rows = {"name": name, "lr": 0.1, "weight_decay": 0.01, **OPTIONS.get(name, {})}
    copy = published(configure(optimizer__rows=rows, train__epochs=1))
    assert_equal(copy.arrays, last_of(copy.run))
    assert copy.told == ["whole", *map(str, range(1, 10)), "10", "last 10"]


PLANS = ["data_parallel", "table_wise", "row_wise", "column_wise", "grid_shard", "hot_cold:5"]


@pytest.mark.parametrize(("ranks", "kind"), [*((2, kind) for kind in PLANS), (4, "grid_shard")])
def test_ranks_say_together_what_one_says(configure: Configure, ranks: int, kind: str) -> None:
    epochs = {"train__epochs": 1, "train__deterministic": "bitwise"}
    alone = published(configure("alone", **epochs))
    copy = published(configure("many", sharding={"default": kind}, **epochs), ranks)
    assert_equal(copy.arrays, last_of(copy.run))
    assert copy.touched == alone.touched
    assert_equal(copy.arrays, alone.arrays)


def test_dense_parameters_in_parts_are_told_whole(configure: Configure) -> None:
    copy = published(configure(sharding={"dense": "sharded"}, train__epochs=1), 2)
    assert_equal(copy.arrays, last_of(copy.run))


@pytest.mark.parametrize("data_type", ["float16", "bfloat16"])
def test_half_precision_rows_are_told_as_they_are(configure: Configure, data_type: str) -> None:
    copy = published(configure(model__data_type=data_type, train__epochs=1))
    assert_equal(copy.arrays, last_of(copy.run))


def test_publishing_changes_no_bit(configure: Configure, train: Callable[..., Trainer]) -> None:
    plain = train("plain")
    copy = published(configure("told"), whole_every=4)
    assert_equal(last_of(copy.run), last_of(plain.run))
    assert copy.run.metrics.read_bytes() == plain.run.metrics.read_bytes()


def test_a_run_that_goes_on_tells_the_whole_model_first(configure: Configure) -> None:
    config = configure(train__epochs=1)
    first = published(config, stop=lambda state: state.step == 4)
    assert first.told[-2:] == ["3", "last 4"]
    assert_equal(first.arrays, last_of(first.run))
    second = published(config, resume=True)
    assert second.told[:3] == ["whole", "4", "5"]
    assert_equal(second.arrays, last_of(second.run))


def test_the_whole_model_is_told_after_so_many_changes(configure: Configure) -> None:
    copy = published(configure(train__epochs=1), whole_every=4)
    wanted = ["whole", "1", "2", "3", "4", "whole", "5", "6", "7", "8", "whole", "9", "10", "last 10"]
    assert copy.told == wanted
    assert_equal(copy.arrays, last_of(copy.run))


def test_between_changes_is_time(configure: Configure) -> None:
    copy = published(configure(train__epochs=1), every=3600)
    assert copy.told == ["whole", "last 10"]
    assert_equal(copy.arrays, last_of(copy.run))


def test_groups_of_replicas_are_refused(configure: Configure) -> None:
    config = configure(sharding={"replica_groups": 2})

    def run(comm: Comm) -> None:
        with pytest.raises(ConfigError, match="replica_groups: is 2"):
            Trainer(config, comm=comm, publishing=Publishing(lambda *_: None, lambda *_: None))

    run_ranks(2, run)


@settings(deadline=None)  # kernels are compiled
@given(st.lists(st.lists(st.lists(st.integers(0, 129), max_size=5), min_size=1, max_size=4), max_size=4))
def test_rows_are_those_that_gradients_name(batches: list[list[list[int]]]) -> None:
    """Of two tables in one pool, read by ids of 32 and of 64 bits."""
    tables = [EmbeddingBagConfig(name, 130, 2, (name,)) for name in "ab"]
    model = EmbeddingBagCollection(tables, seed=0)
    touched, wanted = Touched(model), {name: set[int]() for name in "ab"}
    for number, bags in enumerate(batches):
        kind = (np.int32, np.int64)[number % 2]
        half = [bag[::2] for bag in bags]
        lengths = [[len(bag) for bag in column] for column in (bags, half)]
        values = np.array([row for column in (bags, half) for bag in column for row in bag], kind)
        model(KeyedJaggedTensor.from_lengths("ab", values, lengths)).values.sum().backward()
        (pool,) = model.pools
        touched.note({pool: pool.grad})
        pool.grad = None
        wanted["a"] |= {row for bag in bags for row in bag}
        wanted["b"] |= {row for bag in half for row in bag}
    found = {
        name: [int(row) for piece in pieces for row in piece.rows] for name, pieces in touched.take().items()
    }
    assert found == {name: sorted(rows) for name, rows in wanted.items() if rows}
    assert not touched.take()


@settings(deadline=None)
@given(st.integers(1, 300), st.data())
def test_bits_become_numbers_once(size: int, data: st.DataObject) -> None:
    rows = sorted(data.draw(st.sets(st.integers(0, size - 1))))
    bits = np.zeros(-(-size // 64), np.uint64)
    for row in rows:
        bits[row // 64] |= np.uint64(1 << row % 64)
    found = np.empty(count_rows(bits), np.int64)
    take_rows(bits, found)
    assert found.tolist() == rows
    assert not bits.any()
