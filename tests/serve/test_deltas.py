"""A follower comes to what was published, each delta at once, or stands still and says why."""

from __future__ import annotations

import copy
import shutil
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tesserec.autograd.module import Module
from tesserec.embeddings.collection import dense_state, named_collections
from tesserec.embeddings.quantize import QuantizedType, quantize
from tesserec.models.features import Features
from tesserec.models.registry import build_model
from tesserec.serve.deltas import Delta, Follower, Header, base_checksum, delta_path, read_delta, write_delta
from tesserec.serve.publish import DeltaWriter, next_version

Array = npt.NDArray[Any]
USERS, ITEMS, WIDTH = 50, 9, 12
ONE = np.ones((1, WIDTH), np.float32)
USER, ITEM = "inputs.sparse.user", "inputs.sparse.item"


class Scorer:
    """Stands for an engine and its lock: what a reader could see, whenever it may look."""

    def __init__(self, model: Module):
        self.model, self.locked, self.seen = model, False, [weights(model)]
        self.refreshed = 0

    def refresh(self) -> None:
        assert self.locked
        self.refreshed += 1

    def __enter__(self) -> None:
        assert equal(weights(self.model), self.seen[-1])
        self.locked = True

    def __exit__(self, *_: object) -> None:
        self.locked = False
        self.seen.append(weights(self.model))


def weights(model: Module) -> dict[str, Array]:
    """Copies of all that a model knows, as it is stored."""
    pools = {prefix + str(i): p.data for prefix, c in named_collections(model) for i, p in enumerate(c.pools)}
    return {name: array.copy() for name, array in (pools | dense_state(model)).items()}


def equal(a: dict[str, Array], b: dict[str, Array]) -> bool:
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


def new_model(seed: int = 0) -> Module:
    features = Features(3, {"user": USERS, "item": ITEMS}, "sum", {}, "float32")
    return build_model(
        "dlrm", features, seed=seed, options={"embedding_dim": WIDTH, "bottom": [4], "top": [4]}
    )


def new_artefact(path: Path, about: str = "") -> Path:
    """As much of one as a follower looks at."""
    path.mkdir(parents=True)
    (path / "manifest.json").write_text("{" + about + "}")
    return path


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    return new_artefact(tmp_path / "1")


def follow(artefact: Path, model: Module) -> tuple[Follower, Scorer]:
    scorer = Scorer(model)
    follower = Follower(artefact, model, scorer, scorer)
    scorer.seen = scorer.seen[:1]  # without what warms up
    return follower, scorer


def rows_of(rng: np.random.Generator, size: int) -> tuple[Array, Array]:
    """Some rows of a table, and values for them."""
    rows = np.sort(rng.choice(size, rng.integers(1, size), replace=False))
    return rows, rng.standard_normal((len(rows), WIDTH)).astype(np.float32)


class Trainer:
    """Changes a model as training does, and publishes it."""

    def __init__(self, artefact: Path, seed: int = 0):
        self.model, self.writer = new_model(), DeltaWriter(artefact)
        self.rng = np.random.default_rng(seed)

    def step(self, **about: Any) -> None:
        tables = {USER: rows_of(self.rng, USERS), ITEM: rows_of(self.rng, ITEMS)}
        tables = {name: tables[name] for name in self.rng.permutation(list(tables))[: self.rng.integers(3)]}
        state, dense = self.model.state_dict(), dense_state(self.model)
        for name, (rows, values) in tables.items():
            state[name][rows] = values
        for array in dense.values():
            array += self.rng.standard_normal(array.shape).astype(np.float32)
        self.writer.write(
            tables, dense, **({"step": self.writer.sequence + 1, "newest": time.time()} | about)
        )


def write(artefact: Path, **changes: Any) -> None:
    """A first delta of one row, but for what is changed of it and of its header."""
    content: dict[str, Any] = {"tables": {ITEM: (np.array([2]), ONE)}, "dense": {}}
    content |= {name: changes.pop(name) for name in content.keys() & changes}
    base = base_checksum(artefact)
    about: dict[str, Any] = {
        "sequence": 1,
        "base": base,
        "previous": base,
        "step": 1,
        "newest": 1.0,
    } | changes
    write_delta(artefact, Delta(Header(**about), **content))


names = st.text(max_size=5)
dense_arrays = hnp.arrays(
    st.sampled_from([np.float32, np.int64, np.uint8]), hnp.array_shapes(min_dims=0, max_side=3)
)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(names, st.integers(1, 9)), st.dictionaries(names, dense_arrays), st.booleans())
def test_a_delta_reads_back(
    tmp_path_factory: pytest.TempPathFactory, widths: dict[str, int], dense: dict[str, Array], last: bool
) -> None:
    folder = tmp_path_factory.mktemp("delta")
    rng = np.random.default_rng(len(widths))
    tables = {
        n: (np.arange(width), rng.random((width, 8 * width), np.float32)) for n, width in widths.items()
    }
    header = Header(7, "base", "previous", 3, 0.5, last)
    checksum = write_delta(folder, Delta(header, tables, dense))
    found, read = read_delta(delta_path(folder, 7))
    assert (found.header, read) == (header, checksum)
    assert list(found.tables) == list(tables) and list(found.dense) == list(dense)
    for name, (rows, values) in tables.items():
        np.testing.assert_array_equal(found.tables[name][0], rows)
        np.testing.assert_array_equal(found.tables[name][1], values)
    for name, array in dense.items():
        assert found.dense[name].dtype == array.dtype
        np.testing.assert_array_equal(found.dense[name], array)


@pytest.mark.parametrize("data_type", ["float32", *get_args(QuantizedType)])
def test_a_follower_comes_to_what_training_has(artefact: Path, data_type: Any) -> None:
    """However tables are stored: rows are what they would be if the whole model were stored now."""

    def converted(model: Module) -> Module:
        return copy.deepcopy(model) if data_type == "float32" else quantize(model, data_type)

    trainer = Trainer(artefact)
    model = converted(trainer.model)
    follower, scorer = follow(artefact, model)
    for count in (1, 0, 3):
        for _ in range(count):
            trainer.step()
        assert follower.poll() == count
        assert equal(weights(model), weights(converted(trainer.model)))
    assert (follower.sequence, follower.problem, scorer.refreshed) == (4, "", 4)

    again = converted(new_model())
    assert follow(artefact, again)[0].poll() == 4  # what a restart does
    assert equal(weights(again), weights(model))


def test_a_reader_sees_all_of_a_delta_or_nothing(artefact: Path) -> None:
    trainer = Trainer(artefact)
    follower, scorer = follow(artefact, new_model())
    wanted = [weights(trainer.model)]
    for _ in range(4):
        trainer.step()
        wanted.append(weights(trainer.model))
    follower.poll()
    assert len(scorer.seen) == len(wanted)
    assert all(equal(*pair) for pair in zip(scorer.seen, wanted, strict=True))


def test_a_mapped_file_stays_as_it_is(artefact: Path, tmp_path: Path) -> None:
    trainer = Trainer(artefact)
    model = new_model()
    (pool,) = (pool for _, collection in named_collections(model) for pool in collection.pools)
    np.save(tmp_path / "rows.npy", pool.data)
    before = (tmp_path / "rows.npy").read_bytes()
    pool.data = np.load(tmp_path / "rows.npy", mmap_mode="c")
    follower, _ = follow(artefact, model)
    trainer.step()
    trainer.step()
    assert follower.poll() == 2
    assert equal(weights(model), weights(trainer.model))
    assert (tmp_path / "rows.npy").read_bytes() == before


def test_a_missing_delta_is_waited_for(artefact: Path, tmp_path: Path) -> None:
    trainer = Trainer(artefact)
    model = new_model()
    follower, _ = follow(artefact, model)
    for _ in range(4):
        trainer.step()
    shutil.move(delta_path(artefact, 2), tmp_path / "aside")
    assert follower.poll() == 1
    for _ in range(2):
        assert follower.poll() == 0
        assert "000000002.arrow: missing, but there is 000000003.arrow" in follower.problem
    shutil.move(tmp_path / "aside", delta_path(artefact, 2))
    assert follower.poll() == 3
    assert (follower.problem, follower.sequence) == ("", 4)
    assert equal(weights(model), weights(trainer.model))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_damaged_byte_gets_through(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    artefact = new_artefact(tmp_path_factory.mktemp("damaged") / "1")
    write(artefact)
    path = delta_path(artefact, 1)
    content = path.read_bytes()
    at = data.draw(st.integers(0, len(content) - 1), label="at")
    if data.draw(st.booleans(), label="cut"):
        path.write_bytes(content[:at])
    else:
        bit = 1 << data.draw(st.integers(0, 7), label="bit")
        path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
    model = new_model()
    follower, _ = follow(artefact, model)
    for _ in range(2):
        assert follower.poll() == 0
    assert str(path) in follower.problem and "damaged" in follower.problem
    assert equal(weights(model), weights(new_model()))
    path.write_bytes(content)
    assert follower.poll() == 1
    assert follower.problem == ""


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "previous": ({"previous": "00000000"}, "previous is 00000000, wanted "),
    "base": ({"base": "00000000"}, "base is 00000000, wanted "),
    "table": ({"tables": {"other": (np.array([2]), ONE)}}, f"table 'other', wanted one of {USER}"),
    "width": ({"tables": {ITEM: (np.array([2]), ONE[:, 1:])}}, f"width {WIDTH - 1}, wanted {WIDTH}"),
    "row": (
        {"tables": {ITEM: (np.array([ITEMS]), ONE)}},
        f"rows {ITEMS} to {ITEMS}, wanted 0 to {ITEMS - 1}",
    ),
    "negative": ({"tables": {ITEM: (np.array([-1]), ONE)}}, "rows -1 to -1"),
    "twice": ({"tables": {ITEM: (np.array([2, 2]), np.repeat(ONE, 2, 0))}}, "increasing"),
    "nan": ({"tables": {ITEM: (np.array([2]), ONE * np.nan)}}, "row 2 has a value that is not finite"),
    "name": ({"dense": {"other": ONE}}, "dense array 'other'"),
    "shape": ({"dense": {"top.layers.0.bias": ONE}}, r"top.layers.0.bias is float32 \(1, 12\), wanted"),
    "dense": ({"dense": {"top.layers.0.bias": np.full(4, np.inf, np.float32)}}, "not finite"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_delta_that_does_not_fit_is_refused(artefact: Path, case: str) -> None:
    changes, message = BAD[case]
    write(artefact, **dict(changes))
    model = new_model()
    follower, _ = follow(artefact, model)
    assert follower.poll() == 0
    with pytest.raises(ValueError, match=message):
        raise ValueError(follower.problem)
    assert follower.sequence == 0
    assert equal(weights(model), weights(new_model()))


def test_what_cannot_be_quantized_is_refused(artefact: Path) -> None:
    write(artefact, tables={ITEM: (np.array([2]), ONE * 2e38)})
    model = quantize(new_model(), "int8")
    follower, _ = follow(artefact, model)
    assert follower.poll() == 0
    assert "cannot be quantized" in follower.problem


def test_deltas_of_another_artefact_are_refused(artefact: Path, tmp_path: Path) -> None:
    other = new_artefact(tmp_path / "2", "other")
    Trainer(other).step()
    shutil.copytree(other / "deltas", artefact / "deltas")
    follower, _ = follow(artefact, new_model())
    assert follower.poll() == 0
    assert f"base is {base_checksum(other)}, wanted {base_checksum(artefact)}" in follower.problem


def test_deltas_in_another_order_are_refused(artefact: Path) -> None:
    trainer = Trainer(artefact)
    for _ in range(3):
        trainer.step()
    shutil.copy(delta_path(artefact, 3), delta_path(artefact, 2))
    follower, _ = follow(artefact, new_model())
    assert follower.poll() == 1
    assert "sequence is 3, wanted 2" in follower.problem


def test_a_file_of_another_kind_is_no_delta(artefact: Path) -> None:
    write(artefact)
    path = delta_path(artefact, 1)
    shutil.copy(Path(__file__), path)
    follower, _ = follow(artefact, new_model())
    assert follower.poll() == 0
    assert str(path) in follower.problem


def test_staleness_is_the_age_of_the_newest_step(artefact: Path) -> None:
    follower, _ = follow(artefact, new_model())
    assert follower.staleness() == 0  # no training publishes here
    trainer = Trainer(artefact)
    follower, _ = follow(artefact, new_model())
    assert 0 <= follower.staleness() < 60  # as old as the artefact
    trainer.step(newest=time.time() - 1000)
    follower.poll()
    assert 1000 <= follower.staleness() < 1060
    trainer.step(last=True)
    follower.poll()
    assert follower.staleness() == 0  # training has ended, and nothing is newer


@pytest.mark.parametrize(
    ("there", "wanted"), [([], "1"), (["1", "2"], "3"), (["9", "10"], "11"), (["3", "old", "²", ".4"], "4")]
)
def test_versions_count_up(tmp_path: Path, there: list[str], wanted: str) -> None:
    for name in there:
        (tmp_path / "model" / name).mkdir(parents=True)
    assert next_version(tmp_path / "model") == tmp_path / "model" / wanted
