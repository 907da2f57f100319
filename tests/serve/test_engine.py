"""The engine gives the probabilities of the model it was made from, however columns are shared out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.autograd import BatchNorm1d, Linear, Module, Tensor, no_grad, ops
from tesserec.autograd.kernels.linear import IDENTITY, RELU, SIGMOID, TANH
from tesserec.embeddings import EmbeddingBagCollection, PositionWeighted, quantize
from tesserec.embeddings.jagged import KeyedJaggedTensor
from tesserec.models import Features, build_model, model_names
from tesserec.serve.engine import KEPT, Engine, materialise
from tesserec.serve.kernels.layer import layer, packed_weights
from tesserec.serve.query import Part, Query, Split

Array = npt.NDArray[Any]
NAMES = ("a", "b", "c", "d", "e")
SIZES = dict(zip(NAMES, (3, 50, 7, 20, 1), strict=True))
DENSE = 3
OPTIONS: dict[str, dict[str, Any]] = {
    "dcn": {"batch_norm": True},
    "dcnv2": {"structure": "parallel", "low_rank": {"rank": 3, "experts": 2}},
    "dnn": {"batch_norm": True, "hidden": (40, 20), "dropout": 0.3},
    "dlrm": {"bottom": (20, 33), "top": (40, 17), "embedding_dim": 20},
}


def features(num_dense: int = DENSE, **options: Any) -> Features:
    return Features(num_dense, SIZES, **options)


def lively(model: Module, seed: int = 0) -> Module:
    """The model with weights that let every input matter."""
    rng = np.random.default_rng(seed)
    for array in model.state_dict().values():
        drawn = rng.normal(0, 0.3, array.shape)
        array[...] = np.abs(drawn) if array.ndim == 1 else drawn  # a variance is not negative
    return model


def part(rng: np.random.Generator, num_dense: int, keys: Sequence[str], rows: int, longest: int) -> Part:
    def bag(key: str) -> list[int]:
        ids: list[int] = rng.integers(0, SIZES[key], rng.integers(0, longest + 1)).tolist()
        return ids

    bags = {key: [bag(key) for _ in range(rows)] for key in keys}
    sparse = KeyedJaggedTensor.from_dict(bags) if keys else None
    return Part(rng.normal(size=(rows, num_dense)).astype(np.float32), sparse)


def queries(
    split: Split, counts: Sequence[int], *, num_dense: int = DENSE, longest: int = 1, seed: int = 0
) -> list[Query]:
    """Random ones with so many candidates each."""
    rng = np.random.default_rng(seed)
    context = [NAMES[i] for i in split.sparse]
    own = [name for name in NAMES if name not in context]
    shared = len(split.dense)
    parts = [
        (part(rng, shared, context, 1, longest), part(rng, num_dense - shared, own, n, longest))
        for n in counts
    ]
    return [Query(split, context, rows, []) for context, rows in parts]


def expected(model: Module, features: Features, asked: Sequence[Query]) -> Array:
    rows = materialise(asked, features)
    if not rows.num_rows:
        return np.empty(0, np.float32)
    with no_grad():
        return ops.sigmoid(model(rows.dense, rows.sparse)).data


def check(model: Module, features: Features, asked: Sequence[Query], **options: Any) -> Engine:
    engine = Engine(model, features, **options)
    check_scores(engine, asked)
    return engine


def check_scores(engine: Engine, asked: Sequence[Query]) -> None:
    wanted = expected(engine.model, engine.features, asked)
    np.testing.assert_allclose(engine.score(asked), wanted, rtol=1e-4, atol=2e-6)


splits = st.builds(
    lambda dense, sparse: Split(tuple(sorted(dense)), tuple(sorted(sparse))),
    st.sets(st.integers(0, DENSE - 1)),
    st.sets(st.integers(0, len(NAMES) - 1)),
)
SPLITS = {
    "some": Split((0, 2), (1, 3)),
    "nothing": Split((), ()),
    "everything": Split((0, 1, 2), (0, 1, 2, 3, 4)),
    "dense": Split((0, 1, 2), ()),
    "one": Split((), (4,)),
}


@pytest.mark.parametrize("name", model_names())
@settings(max_examples=12, deadline=None)
@given(split=splits, counts=st.lists(st.integers(0, 30), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_scores_are_the_models(name: str, split: Split, counts: list[int], seed: int) -> None:
    model = lively(build_model(name, features(), seed=1, options=OPTIONS.get(name)), seed)
    assert check(model, features(), queries(split, counts, seed=seed), max_rows=16).why_eager is None


@pytest.mark.parametrize("pooling", ["sum", "mean"])
@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
def test_lists_of_ids_are_pooled(split: Split, pooling: str) -> None:
    inputs = features(pooling=pooling)
    check(lively(build_model("deepfm", inputs, seed=1)), inputs, queries(split, (9, 2), longest=4))


@pytest.mark.parametrize("name", model_names())
def test_models_without_dense_columns(name: str) -> None:
    model = lively(build_model(name, features(0), seed=1))
    for split in (Split((), (1, 3)), Split((), ()), Split((), (0, 1, 2, 3, 4))):
        check(model, features(0), queries(split, (5, 8), num_dense=0))


@pytest.mark.parametrize("data_type", ["float16", "bfloat16", "int8", "int4", "int2"])
def test_tables_of_any_type(data_type: Any) -> None:
    model = quantize(lively(build_model("dlrm", features(), seed=1)), data_type)
    assert check(model, features(), queries(SPLITS["some"], (5, 1, 8), longest=3)).why_eager is None


def test_ids_may_be_narrow_or_shared_bags() -> None:
    model, (query,) = lively(build_model("fm", features(), seed=1)), queries(SPLITS["some"], (6,))
    sparse: Any = query.rows.sparse
    narrow = KeyedJaggedTensor(sparse.keys, sparse.values.astype(np.int32), sparse.offsets)
    order = np.array([4, 0, 4])
    shared = KeyedJaggedTensor.from_dict(sparse.to_dict(), dict.fromkeys(sparse.keys, order))
    engine = Engine(model, features())
    scores = engine.score([query])
    narrow_scores = engine.score([with_rows(query, Part(query.rows.dense, narrow))])
    shared_scores = engine.score([with_rows(query, Part(query.rows.dense[order], shared))])
    np.testing.assert_array_equal(narrow_scores, scores)
    np.testing.assert_allclose(shared_scores, scores[order], rtol=1e-6)


def with_rows(query: Query, rows: Part) -> Query:
    return Query(query.split, query.context, rows, [])


@settings(max_examples=20, deadline=None)
@given(counts=st.lists(st.integers(0, 40), max_size=5), most=st.integers(1, 50))
def test_neither_company_nor_pieces_change_a_score(counts: list[int], most: int) -> None:
    model = lively(build_model("dlrm", features(), seed=1))
    asked = queries(SPLITS["some"], counts)
    alone = [Engine(model, features()).score([query]) for query in asked]
    got = Engine(model, features(), max_rows=most).score(asked)
    np.testing.assert_allclose(got, np.concatenate([np.empty(0, np.float32), *alone]), rtol=1e-5)
    assert got.dtype == np.float32


@pytest.mark.parametrize("name", ["dlrm", "dnn", "dcnv2", "fm"])
def test_changed_parameters_count_after_a_refresh(name: str) -> None:
    model = lively(build_model(name, features(), seed=1, options=OPTIONS.get(name)))
    asked = queries(SPLITS["some"], (5, 8))
    engine = check(model, features(), asked)
    lively(model, seed=7)
    for module in model.modules():
        for bias in [module.bias] if isinstance(module, Linear) and module.bias is not None else []:
            bias.data = bias.data + np.float32(0.1)
    engine.refresh()
    check_scores(engine, asked)


def test_changed_rows_count_at_once() -> None:
    model = lively(build_model("dlrm", features(), seed=1))
    asked = queries(SPLITS["some"], (5, 8))
    engine = check(model, features(), asked)
    for module in model.modules():
        for pool in module.pools if isinstance(module, EmbeddingBagCollection) else ():
            pool.data *= -2
    check_scores(engine, asked)


def test_more_splits_than_programs() -> None:
    model = lively(build_model("dlrm", features(), seed=1))
    engine = Engine(model, features())
    engine.warm_up([SPLITS["some"]])
    for i in range(2 * KEPT):
        split = Split((0,) if i % 2 else (), tuple(k for k in range(len(NAMES)) if i >> k & 1))
        asked = queries(split, (4, 7), seed=i)
        check_scores(engine, asked)
    assert len(engine.programs) == KEPT


def test_ids_of_other_features_are_refused() -> None:
    (query,) = queries(SPLITS["some"], (6,))
    engine = Engine(build_model("dlrm", features(), seed=1), features())
    with pytest.raises(ValueError, match="wanted keys \\['a', 'c', 'e'\\]"):
        engine.score([with_rows(query, Part(query.rows.dense, query.context.sparse))])


class Own(Module):
    """A model of a user's own: `fn` of the vectors (B, F, 4), the dense values, and a weight."""

    def __init__(self, fn: Callable[..., Tensor], collection: EmbeddingBagCollection | None = None):
        self.fn = fn
        self.sparse = collection or EmbeddingBagCollection(features().tables(4), seed=1)
        self.weight = Tensor(np.ones((len(NAMES), 4), np.float32), requires_grad=True)
        self.norm = BatchNorm1d(4)

    def forward(self, dense: Array, sparse: KeyedJaggedTensor) -> Tensor:
        return self.fn(self, self.sparse(sparse).stack(), ops.reshape(dense, shape=(-1, DENSE)))


def attention(m: Own, v: Tensor, dense: Tensor) -> Tensor:
    """Fields weighed by a softmax over them."""
    weights = ops.softmax((v * m.weight).sum(axis=2), axis=1).reshape(-1, len(NAMES), 1)
    return (weights * v).sum(axis=1).sum(axis=1) + dense.sum(axis=1)


def sliced(m: Own, v: Tensor, dense: Tensor) -> Tensor:
    """Columns here and there, forwards and backwards."""
    ends = ops.concat(v[:, 1], v[:, 3:].reshape(-1, 8), dense[:, ::-1], v[:, ::2].reshape(-1, 12))
    return ends.sum(axis=1) + dense[:, 1] * dense[:, 0] - v[:, 2, 1]


def transposed(m: Own, v: Tensor, dense: Tensor) -> Tensor:
    """Samples on another axis."""
    by_field = ops.matmul(v.transpose(1, 0, 2), m.weight.T)
    return by_field.sum(axis=2).sum(axis=0)


def elementwise(m: Own, v: Tensor, dense: Tensor) -> Tensor:
    """Shapes that broadcast, parameters by field, functions of one argument."""
    scaled = ops.sigmoid(ops.exp(v) * m.weight - 2.0 / m.weight) + ops.clip(v, low=-0.1, high=0.1)
    wide = ops.maximum(scaled.reshape(-1, 20), dense.sum(axis=1, keepdims=True))
    twice = ops.stack(dense, dense).sum(axis=(1, 2))
    value: Tensor = m.norm(wide[:, 2:6]).mean(axis=1)
    return value + ops.relu(wide).sum(axis=-1) + twice


def contexts_only(m: Own, v: Tensor, dense: Tensor) -> Tensor:
    """Of what is shared in most splits."""
    return ops.tanh(v[:, 1]).sum(axis=1) * 3.0


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("fn", [attention, sliced, transposed, elementwise, contexts_only])
def test_ops_without_a_rule_run_as_they_are(fn: Any, split: Split) -> None:
    model = lively(Own(fn))
    assert check(model, features(), queries(split, (5, 1, 8), longest=2)).why_eager is None


def reads_data(m: Own, v: Tensor, dense: Tensor) -> Tensor:
    return v.sum(axis=(1, 2)) * float(dense.data.mean() > -9)


def mixes_samples(m: Own, v: Tensor, dense: Tensor) -> Tensor:
    return v.sum(axis=(1, 2)) - v.mean() * 0.0


@pytest.mark.parametrize("fn", [reads_data, mixes_samples])
def test_models_that_cannot_be_captured_run_as_they_are(fn: Any) -> None:
    assert check(lively(Own(fn)), features(), queries(SPLITS["some"], (5, 8))).why_eager


def test_a_processor_of_ids_is_used() -> None:
    processor = PositionWeighted({"b": 3})
    collection = EmbeddingBagCollection(features().tables(4), seed=1, processor=processor)
    model = lively(Own(attention, collection))
    assert check(model, features(), queries(SPLITS["some"], (5,), longest=3)).why_eager


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    shape=st.tuples(st.integers(0, 70), st.integers(1, 70)),
    activation=st.sampled_from([IDENTITY, RELU, SIGMOID, TANH]),
    skip=st.booleans(),
    zeros=st.floats(0, 1),
)
def test_layer(counts: list[int], shape: tuple[int, int], activation: int, skip: bool, zeros: float) -> None:
    rng, rows = np.random.default_rng(0), sum(counts)
    x, w = (rng.normal(size=s).astype(np.float32) for s in ((rows, shape[0]), shape[::-1]))
    shift = rng.normal(size=(len(counts), shape[1])).astype(np.float32)
    x[rng.random(x.shape) < zeros] = 0
    starts, weights = np.cumsum([0, *counts]), packed_weights(w)
    out = np.full((rows + 1, shape[1]), 7, np.float32)
    places = [(a.ctypes.data, a.strides[0]) for a in (x, shift, out)]
    layer(places[0], weights.ctypes.data, *places[1:], rows, starts, shape, activation, skip)
    z = x.astype(np.float64) @ w.T + np.repeat(shift, counts, axis=0)
    functions = {IDENTITY: z, RELU: np.maximum(z, 0), SIGMOID: 1 / (1 + np.exp(-z)), TANH: np.tanh(z)}
    np.testing.assert_allclose(out[:-1], functions[activation], rtol=1e-4, atol=1e-4)
    assert (out[-1] == 7).all()


def test_a_layer_skips_no_nan() -> None:
    x, out = np.zeros((2, 20), np.float32), np.empty((2, 30), np.float32)
    x[1, 3] = np.nan
    w, shift = packed_weights(np.ones((30, 20), np.float32)), np.zeros((1, 30), np.float32)
    places = [(a.ctypes.data, a.strides[0]) for a in (x, shift, out)]
    layer(places[0], w.ctypes.data, *places[1:], 2, np.array([0, 2]), (20, 30), IDENTITY, True)
    assert np.isnan(out[1]).all()
