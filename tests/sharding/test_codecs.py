"""Codecs: what arrives is the nearest that the bytes can say, and how many they are is known before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.autograd.workers import num_threads, set_num_threads
from tesserec.sharding.codecs import CODECS, Codec, Codecs
from tests.naive import Array

every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
lossy = pytest.mark.parametrize("codec", [c for c in CODECS.values() if not c.is_exact], ids=lambda c: c.name)


def sent(codec: Codec, values: Array, rows: Any, widths: Any) -> Array:
    """What arrives, over buffers that were used before."""
    rows, widths = np.array(rows), np.array(widths)
    data, out = np.full(int(codec.bytes(rows, widths).sum()), 77, np.uint8), np.full_like(values, 7)
    assert codec.encode(values, rows, widths, data) is data and codec.decode(data, rows, widths, out) is out
    assert np.array_equal(codec.encode(values, rows, widths), data)
    assert np.array_equal(codec.decode(data, rows, widths), out, equal_nan=True)
    return out


def oracle(name: str, block: Array) -> Array:
    """What arrives of a block (n, D)."""
    if name == "fp16":
        top = np.abs(block).max(initial=0)
        lift = 2.0 ** (14 - np.floor(np.log2(top))) if top else 1.0
        return ((block * lift).astype(np.float16) / lift).astype(np.float32)
    if name == "bf16":  # 8 bits: of x's neighbours, the one nearer; on a tie the even one
        bits = block.view(np.uint32).astype(np.int64)
        low = bits & 0xFFFF
        up = (low > 0x8000) | ((low == 0x8000) & (bits >> 16 & 1 == 1))
        rounded: Array = (bits - low + (up << 16)).astype(np.uint32).view(np.float32)
        return rounded
    if name == "int8":
        out = np.zeros_like(block)
        for row, to in zip(block, out, strict=True):
            exact = np.abs(row).max() / np.float32(127)
            scale = np.float32(np.uint32((int(exact.view(np.uint32)) + 0xFFFF) & 0xFFFF0000).view(np.float32))
            to[:] = np.rint(row * (np.float32(1) / scale)) * scale if exact else 0
        return out
    return block


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), max_size=5),
    st.integers(0, 100),
    st.sampled_from(list(CODECS)),
)
def test_equals_oracle(blocks: list[tuple[int, int]], seed: int, name: str) -> None:
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(shape) * 10.0 ** rng.integers(-30, 30) for shape in blocks]
    values = np.concatenate([np.zeros(0), *(a.ravel() for a in arrays)]).astype(np.float32)
    rows, widths = np.array(blocks, np.int64).reshape(-1, 2).T
    out, at = sent(CODECS[name], values, rows, widths), 0
    for n, width in blocks:
        part = slice(at, at + n * width)
        assert np.array_equal(out[part], oracle(name, values[part].reshape(n, width)).ravel())
        at += n * width


@pytest.mark.parametrize(
    ("name", "most"), [("fp32", 0), ("fp16", 2**-11), ("bf16", 2**-8), ("int8", 1 / 253)]
)
@pytest.mark.parametrize("scale", [1e-30, 1e-7, 1.0, 1e30])
def test_errors_are_bounded(name: str, most: float, scale: float) -> None:
    values = (np.random.default_rng(0).standard_normal((50, 16)) * scale).astype(np.float32)
    wrong = np.abs(sent(CODECS[name], values.ravel(), [50], [16]).reshape(50, 16) - values)
    top = np.abs(values).max(1, keepdims=True) if name == "int8" else np.abs(values)
    tiny = np.abs(values).max() * 2.0**-39  # what fp16 can still say beside the greatest of the block
    assert np.all(wrong <= most * top * (1 + 2**-7) + tiny * (name == "fp16"))
    assert CODECS[name].error(values) <= 1.3 * most


def test_sizes() -> None:
    for name, wanted in (
        ("fp32", 4 * 6 * 16),
        ("fp16", 2 * 6 * 16 + 2),
        ("bf16", 2 * 6 * 16),
        ("int8", 6 * 18),
    ):
        assert CODECS[name].bytes(6, 16) == wanted and CODECS[name].bytes(0, 16) == 0
        sizes = CODECS[name].bytes(np.array([6, 0]), np.array([16, 3]))
        assert sizes.tolist() == [wanted, 0]


@every_codec
def test_zeros_and_the_smallest_numbers_arrive(codec: Codec) -> None:
    assert not sent(codec, np.zeros(12, np.float32), [3], [4]).any()
    least = sent(codec, np.full(4, 1e-40, np.float32), [1], [4])
    assert np.all(np.abs(least - 1e-40) <= 1e-40)


@every_codec
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_does_not_arrive_as_if_it_were(codec: Codec, bad: float) -> None:
    values = np.ones((3, 4), np.float32)
    values[1, 2] = bad
    out = sent(codec, values.ravel(), [3], [4]).reshape(3, 4)
    assert not np.isfinite(out[1, 2])
    np.testing.assert_allclose(out[[0, 2]], values[[0, 2]], rtol=1 / 253)


@every_codec
def test_the_greatest_numbers_arrive(codec: Codec) -> None:
    values = np.array([3e38, -3e38, 1e38, 0], np.float32)
    np.testing.assert_allclose(sent(codec, values, [1], [4]), values, rtol=0.01)


@every_codec
def test_any_number_of_threads_gives_the_same_bits(codec: Codec) -> None:
    values = np.random.default_rng(0).standard_normal(64 * 8000).astype(np.float32)
    rows, widths = np.full(64, 500), np.full(64, 16)
    results, before = [], num_threads()
    try:
        for threads in (1, 4):
            set_num_threads(threads)
            results.append(sent(codec, values, rows, widths))
    finally:
        set_num_threads(before)
    assert np.array_equal(results[0], results[1])


@lossy
def test_float64_is_refused(codec: Codec) -> None:
    with pytest.raises(ValueError, match=f"codec '{codec.name}' got float64, wanted float32"):
        codec.encode(np.zeros(4), np.array([1]), np.array([4]))


def test_codecs_are_named() -> None:
    assert Codecs().are_exact and not Codecs(backward="fp16").are_exact
    assert Codecs("int8").for_values is CODECS["int8"] and Codecs("int8").for_gradients is CODECS["fp32"]
    with pytest.raises(ValueError, match="backward codec: got 'int4', wanted one of fp32, fp16, bf16, int8"):
        Codecs(backward="int4")  # type: ignore[arg-type]
