"""How rows are stored, and how kernels read and write them: one way to say it for all storage types.

A kernel knows how rows are stored by the type of their array (`like`): float32, float64, int16 for the bits
of float16 and uint16 for those of bfloat16; `stored` gives that view of a pool's data. Whatever the storage,
it computes in `real` numbers: float64 for float64 rows, else float32. Elements are read and written by the
address of their row and their column, in loops that LLVM vectorises.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from tesserec.embeddings.kernels.jit import kernel
from tesserec.embeddings.kernels.memory import intrinsic

BITS: Any = {types.int16: 13, types.uint16: 16}  # of a float32 that float16 and bfloat16 do without
FLOAT, HALF, INT16, INT32 = ir.FloatType(), ir.HalfType(), ir.IntType(16), ir.IntType(32)


def stored(data: Any) -> Any:
    """`data` as kernels take it: float16 as int16, other types as they are. A view."""
    return data.view(np.int16) if data.dtype == np.float16 else data


def compute_dtype(dtype: Any) -> Any:
    """The dtype of `real` numbers for rows stored as `dtype`."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def real_type(dtype):
    """The same for Numba's types."""
    return types.float64 if dtype == types.float64 else types.float32


def widen(builder, dtype, value):
    """`value`, an element or a vector of elements of storage `dtype`, as real numbers."""
    if dtype not in BITS:
        return value
    if dtype == types.int16:
        return builder.fpext(builder.bitcast(value, _same_shape(value, HALF)), _same_shape(value, FLOAT))
    shift = builder.zext(value, _same_shape(value, INT32))
    shift = builder.shl(shift, _constant(shift.type, 16))
    return builder.bitcast(shift, _same_shape(value, FLOAT))


def _same_shape(value, element):
    """`element`, or the vector of it that is as long as `value`."""
    return ir.VectorType(element, value.type.count) if isinstance(value.type, ir.VectorType) else element


def _constant(kind, number):
    return ir.Constant(kind, [number] * kind.count if isinstance(kind, ir.VectorType) else number)


def _element(context, builder, dtype, address, d):
    """Pointer to element `d` of the row at `address`."""
    row = builder.inttoptr(address, context.get_value_type(types.CPointer(dtype)))
    return builder.gep(row, [d])


@intrinsic
def real(typing_context, like, value):
    """`value` as a real number."""
    kind = real_type(like.dtype)
    return kind(like, kind), lambda context, builder, signature, args: args[1]


@intrinsic
def get(typing_context, like, address, d):
    """Element `d` of the row at `address`, as a real number."""

    def codegen(context, builder, signature, args):
        return widen(builder, like.dtype, builder.load(_element(context, builder, like.dtype, *args[1:])))

    return real_type(like.dtype)(like, types.int64, types.int64), codegen


@intrinsic
def _store(typing_context, like, address, d, bits):
    def codegen(context, builder, signature, args):
        builder.store(args[3], _element(context, builder, like.dtype, *args[1:3]))
        return context.get_dummy_value()

    return types.void(like, types.int64, types.int64, like.dtype), codegen


@intrinsic
def _stochastic(typing_context, like, value, noise):
    """`value` as stored: to one of its two neighbours, by `noise`."""
    dtype, kind = like.dtype, real_type(like.dtype)

    def codegen(context, builder, signature, args):
        return narrow(builder, dtype, args[1], args[2])

    return dtype(like, kind, types.uint32), codegen


def narrow(builder, dtype, value, noise):
    """`value`, a real number or a vector, as stored: one of its two neighbours, by `noise` (int32)."""
    if dtype not in BITS:
        return value
    unused, bits, real = BITS[dtype], _same_shape(value, INT32), value.type
    if dtype == types.int16:  # below 2⁻¹⁴ float16 is fixed point: add ±2⁻¹⁴ to have as many bits unused
        raw = builder.bitcast(value, bits)
        size = builder.bitcast(builder.and_(raw, _constant(bits, (1 << 31) - 1)), real)
        sign = builder.and_(raw, _constant(bits, 1 << 31))
        least = builder.bitcast(builder.or_(sign, _constant(bits, 0x38800000)), real)
        tiny = builder.fcmp_ordered("<", size, _constant(real, 2.0**-14))
        base = builder.select(tiny, least, builder.bitcast(sign, real))
        value = builder.fadd(value, base)
    raw = builder.add(builder.bitcast(value, bits), builder.lshr(noise, _constant(bits, 32 - unused)))
    if dtype == types.uint16:
        return builder.trunc(builder.lshr(raw, _constant(bits, 16)), _same_shape(value, INT16))
    raw = builder.and_(raw, _constant(bits, (1 << 32) - (1 << unused)))
    raw = builder.or_(builder.bitcast(builder.fsub(builder.bitcast(raw, real), base), bits), sign)
    half = builder.fptrunc(builder.bitcast(raw, real), _same_shape(value, HALF))
    return builder.bitcast(half, _same_shape(value, INT16))


@intrinsic
def _nearest(typing_context, like, value):
    """`value` as stored: to the nearest, ties to even."""
    dtype, kind = like.dtype, real_type(like.dtype)

    def codegen(context, builder, signature, args):
        if dtype == types.int16:
            return builder.bitcast(builder.fptrunc(args[1], HALF), INT16)
        if dtype == types.uint16:
            bits, shift, one = builder.bitcast(args[1], INT32), INT32(16), INT32(1)
            odd = builder.and_(builder.lshr(bits, shift), one)
            bits = builder.add(bits, builder.add(odd, INT32(0x7FFF)))
            return builder.trunc(builder.lshr(bits, shift), INT16)
        return args[1]

    return dtype(like, kind), codegen


@kernel
def put(like, address, d, value, noise):
    """Element `d` of the row at `address` = `value`.

    float16 and bfloat16 take one of the two neighbours of `value`, the nearer one the more often, so that the
    mean is `value`: `noise` (uint32) decides. What they can hold is stored as it is.
    """
    _store(like, address, d, _stochastic(like, value, noise))


@kernel
def put_nearest(like, address, d, value):
    """Element `d` of the row at `address` = the number nearest to `value` that it can hold."""
    _store(like, address, d, _nearest(like, value))


@kernel
def noise_key(seed, step, row):
    """64 bits that name the noise of a row at a step. SplitMix64's finalizer (Steele, Lea & Flood 2014)."""
    z = np.uint64(seed) + np.uint64(step) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30)) ^ np.uint64(row)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@kernel
def noise(key, d):
    """uint32 number `d` of the stream `key` (uint64). Mixed by lowbias32 (Wellons 2018, hash-prospector)."""
    x = np.uint32(np.uint32(key) + np.uint32(d) * np.uint32(0x9E3779B9))
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x ^= np.uint32(key >> np.uint64(32))
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))


def noise_vector(builder, count, key, first):
    """Emit noise(key, d) for the `count` numbers d from `first` on; only the upper 16 bits are right."""
    kind, step = ir.VectorType(INT32, count), 0x9E3779B9

    def each(value):
        one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, INT32(0))
        return builder.shuffle_vector(one, one, ir.Constant(kind, [0] * count))

    def mixed(x, shift, factor):
        return builder.mul(builder.xor(x, builder.lshr(x, _constant(kind, shift))), _constant(kind, factor))

    low, high = builder.trunc(key, INT32), builder.trunc(builder.lshr(key, key.type(32)), INT32)
    begin = builder.add(low, builder.mul(builder.trunc(first, INT32), INT32(step)))
    x = builder.add(each(begin), ir.Constant(kind, [d * step % 2**32 for d in range(count)]))
    return mixed(builder.xor(mixed(x, 16, 0x7FEB352D), each(high)), 15, 0x846CA68B)


@kernel
def load_rows(rows, out):
    """out = rows, as real numbers. rows: (n, D) stored; out: (n, D)."""
    for r in range(rows.shape[0]):
        address = rows.ctypes.data + r * rows.strides[0]
        for d in range(rows.shape[1]):
            out[np.uint64(r), np.uint64(d)] = get(rows, address, d)


@kernel
def store_rows(values, rows):
    """rows = values, each the nearest that the storage can hold. values: (n, D) real; rows: (n, D) stored."""
    for r in range(rows.shape[0]):
        address = rows.ctypes.data + r * rows.strides[0]
        for d in range(rows.shape[1]):
            put_nearest(rows, address, d, values[np.uint64(r), np.uint64(d)])
