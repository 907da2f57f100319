"""Quantized tables: lookups equal dequantize-then-lookup, and errors are as small as the bits allow."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.autograd import MLP, Module, Tensor, ops
from tesserec.autograd.workers import num_threads, set_num_threads
from tesserec.embeddings import (
    Constant,
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    Normal,
    TableError,
)
from tesserec.embeddings.quantize import (
    BITS,
    QuantizedPool,
    deviations,
    quantize,
    row_bytes,
    with_pools,
)
from tests import naive
from tests.embeddings.strategies import batches, limits, table_sets

Array = npt.NDArray[Any]
INTEGERS: Any = tuple(BITS)


def collection(width: int, rows: int = 50, **options: Any) -> EmbeddingBagCollection:
    options = {"init": Normal(0.1), **options}
    return EmbeddingBagCollection([EmbeddingBagConfig("t", rows, width, ("f",), **options)], seed=1)


def stored(module: Any) -> Array:
    """Values of the only table."""
    pool = module.pools[0]
    return np.asarray(pool.values(slice(0, len(pool))))


def with_values_of(module: Any, other: Any) -> Any:
    """`module`, its rows set to the values that `other` stores."""
    for pool, source in zip(module.pools, other.pools, strict=True):
        pool.data[:] = source.values(slice(0, len(source)))
    return module


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(INTEGERS))
def test_lookup_equals_dequantize_then_lookup(data: Any, data_type: Any) -> None:
    tables = data.draw(table_sets())
    kjt = data.draw(batches(limits(tables), shared=True))
    plain = EmbeddingBagCollection(tables, seed=3)
    quantized = quantize(plain, data_type)
    got, wanted = quantized(kjt), with_values_of(plain, quantized)(kjt)
    assert got.keys == wanted.keys and got.values.dtype == np.float32
    np.testing.assert_allclose(got.values.numpy(), wanted.values.numpy(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("data_type", INTEGERS)
@pytest.mark.parametrize("width", [5, 16, 17, 31, 48, 100, 256, 300, 1000])
def test_every_width(width: int, data_type: Any) -> None:
    plain = collection(width)
    quantized = quantize(plain, data_type)
    kjt = KeyedJaggedTensor.from_dict({"f": [[7], [], [49, 0, 3], [1] * 200]})
    got, wanted = quantized(kjt).values.numpy(), with_values_of(plain, quantized)(kjt).values.numpy()
    np.testing.assert_array_equal(got[:2], wanted[:2])
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("data_type", INTEGERS)
def test_sequences(data_type: Any) -> None:
    plain = EmbeddingCollection([EmbeddingConfig("t", 9, 24, ("f",), init=Normal(1))], seed=0)
    quantized = quantize(plain, data_type)
    got = quantized(KeyedJaggedTensor.from_dict({"f": [[3, 8], [], [0]]}))["f"]
    np.testing.assert_array_equal(got.values.numpy(), stored(quantized)[[3, 8, 0]])


@pytest.mark.parametrize("data_type", INTEGERS)
def test_rows_are_stored_as_documented(data_type: Any) -> None:
    quantized = quantize(collection(21, rows=30), data_type)
    state = quantized.state_dict()["t"]
    assert state.shape == (30, row_bytes(21, BITS[data_type])) and state.dtype == np.uint8
    wanted = np.array([naive.dequantized(row, 21, BITS[data_type]) for row in state])
    np.testing.assert_array_equal(stored(quantized), wanted)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e30])
@pytest.mark.parametrize("shift", [0.0, 100.0, -3.0])
def test_int8_is_off_by_no_more_than_half_a_step(scale: float, shift: float) -> None:
    plain = collection(40)
    plain.pools[0].data[:] = (plain.pools[0].data + shift) * scale
    before = plain.pools[0].data.astype(np.float64)
    off = np.abs(stored(quantize(plain, "int8")) - before).max(axis=1)
    low, high = before.min(axis=1), before.max(axis=1)
    step = (high - low + abs(low) / 128) / 255 * (1 + 1 / 128)  # bias and scale are bfloat16
    assert (off <= 0.5 * step + 1e-6 * np.abs(before).max(axis=1)).all()


@pytest.mark.parametrize(("data_type", "gain"), [("int4", 1.0), ("int2", 1.3)])
def test_few_bits_err_less_than_from_least_to_greatest(data_type: Any, gain: float) -> None:
    plain = collection(64, rows=500)
    before = plain.pools[0].data
    rms = np.sqrt(np.mean((stored(quantize(plain, data_type)) - before) ** 2))
    low = before.min(axis=1, keepdims=True)
    step = np.ptp(before, axis=1, keepdims=True) / (2 ** BITS[data_type] - 1)
    simple = np.sqrt(np.mean((low + step * np.rint((before - low) / step) - before) ** 2))
    assert rms * gain < simple


@pytest.mark.parametrize("data_type", INTEGERS)
@pytest.mark.parametrize("value", [0.0, 0.7, -0.7, 1e-38, -3e37])
def test_constant_rows(value: float, data_type: Any) -> None:
    quantized = quantize(collection(16, init=Constant(value)), data_type)
    np.testing.assert_allclose(stored(quantized), np.float32(value), rtol=2**-14, atol=1e-36)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2e38])
def test_not_finite_is_an_error(bad: float) -> None:
    tables = [EmbeddingBagConfig(name, 9, 16, (name,)) for name in "ab"]
    plain = EmbeddingBagCollection(tables, seed=0)
    plain.pools[0].table("b")[4, 15] = bad
    with pytest.raises(TableError, match="table 'b': row 4 "):
        quantize(plain, "int8")


@pytest.mark.parametrize("data_type", [*INTEGERS, "float16", "bfloat16"])
def test_deviations(data_type: Any) -> None:
    tables = [EmbeddingBagConfig(name, 40, 32, (name,), init=Normal(0.1)) for name in "ab"]
    plain = EmbeddingBagCollection(tables, seed=0)
    quantized = quantize(plain, data_type)
    for found, table in zip(deviations(plain, quantized), plain.pools[0].tables, strict=True):
        before = plain.pools[0].data[table.rows].astype(np.float64)
        off = quantized.pools[0].values(table.rows) - before
        assert (found.table, found.data_type) == (table.config.name, data_type)
        assert found.row_bytes == quantized.pools[0].data.strides[0] < found.row_bytes_before == 128
        assert found.max == np.abs(off).max() > 0
        assert found.rms == pytest.approx(np.sqrt(np.mean(off**2)))
        assert found.relative == pytest.approx(np.sqrt(np.sum(off**2) / np.sum(before**2)))


@pytest.mark.parametrize("data_type", ["float16", "bfloat16"])
def test_half_precision_is_the_nearest(data_type: Any) -> None:
    plain = collection(8)
    converted = quantize(plain, data_type)
    bits = 11 if data_type == "float16" else 8
    assert (np.abs(stored(converted) / plain.pools[0].data - 1) <= 2.0**-bits).all()
    kjt = KeyedJaggedTensor.from_dict({"f": [[7], [1, 2]]})
    got, wanted = converted(kjt).values.numpy(), with_values_of(plain, converted)(kjt).values.numpy()
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_narrow_tables_stay_float32() -> None:
    quantized = quantize(collection(1), "int8")
    assert not isinstance(quantized.pools[0], QuantizedPool) and quantized.pools[0].dtype == np.float32
    np.testing.assert_array_equal(stored(quantized), stored(collection(1)))


def test_float64_tables() -> None:
    plain = collection(16, data_type="float64")
    got = quantize(plain, "int8")(KeyedJaggedTensor.from_dict({"f": [[7], [1, 2]]})).values
    assert got.dtype == np.float32
    np.testing.assert_allclose(got.numpy()[0], plain.pools[0].data[7], atol=2e-3)


class Model(Module):
    def __init__(self) -> None:
        self.tables = [collection(16), collection(2)]
        self.mlp = MLP((18, 4, 1), rng=np.random.default_rng(0), dropout=0.5)

    def forward(self, kjt: KeyedJaggedTensor) -> Array:
        result: Array = self.mlp(ops.concat(*(table(kjt).values for table in self.tables), axis=1)).numpy()
        return result


def test_models_are_copied_for_inference() -> None:
    model, kjt = Model(), KeyedJaggedTensor.from_dict({"f": [[7], [1, 2]]})
    quantized = quantize(model, "int8")
    before = quantized(kjt)
    assert model.training and not quantized.training
    assert [name for name, _ in quantized.named_parameters()] == [
        f"mlp.{p}" for p, _ in model.mlp.named_parameters()
    ]
    assert [found.table for found in deviations(model, quantized)] == ["tables.0.t", "tables.1.t"]
    np.testing.assert_allclose(before, model.eval()(kjt), atol=1e-2)
    for parameter in model.parameters():
        parameter.data[:] = 0
    np.testing.assert_array_equal(quantized(kjt), before)


def test_weights_get_no_gradient() -> None:
    quantized = quantize(collection(16), "int8")
    weights = Tensor([1, 1, 1], requires_grad=True)
    kjt = KeyedJaggedTensor.from_lengths(["f"], [1, 2, 3], [2, 1], weights)
    assert not any(p.requires_grad for p in quantized.pools)
    with pytest.raises(TypeError, match="for inference"):
        quantized(kjt).values.sum().backward()


def test_state_can_be_loaded() -> None:
    quantized, other = quantize(collection(16), "int4"), quantize(collection(16, init=Constant(1)), "int4")
    other.load_state_dict(quantized.state_dict())
    np.testing.assert_array_equal(stored(other), stored(quantized))


def test_same_bits_for_any_number_of_threads() -> None:
    plain, rng = collection(20, rows=3000), np.random.default_rng(0)
    kjt = KeyedJaggedTensor.from_lengths(["f"], rng.integers(0, 3000, 40_000), np.full(4000, 10))
    before, found = num_threads(), []
    try:
        for threads in (1, 3):
            set_num_threads(threads)
            found.append(quantize(plain, "int8")(kjt).values.numpy())
    finally:
        set_num_threads(before)
    np.testing.assert_array_equal(*found)


def test_unknown_type_is_an_error() -> None:
    kind: Any = "int3"
    with pytest.raises(TableError, match="'int3', wanted one of int8, "):
        quantize(collection(16), kind)


@pytest.mark.parametrize("data_type", INTEGERS)
def test_codes_that_are_elsewhere_are_looked_up_there(data_type: Any) -> None:
    plain = collection(24)
    quantized = quantize(plain, data_type)
    pool, bits = plain.pools[0], BITS[data_type]
    memory = np.zeros(quantized.pools[0].data.nbytes + 64, np.uint8)
    codes = memory[:-64].reshape(quantized.pools[0].shape)
    over = with_pools(plain, {pool: QuantizedPool.over_codes(pool, codes, bits)})
    codes[:] = quantized.pools[0].data
    kjt = KeyedJaggedTensor.from_dict({"f": [[7], [], [49, 0, 3]]})
    np.testing.assert_array_equal(over(kjt).values.numpy(), quantized(kjt).values.numpy())
    for wrong in (codes[1:], codes.astype(np.int16)):
        with pytest.raises(TableError, match="its codes are"):
            QuantizedPool.over_codes(pool, wrong, bits)


def test_half_rows_become_float32_as_they_are() -> None:
    half = collection(16, data_type="float16")
    whole = quantize(half, "float32")
    assert whole.pools[0].data_type == "float32"
    np.testing.assert_array_equal(stored(whole), stored(half))
