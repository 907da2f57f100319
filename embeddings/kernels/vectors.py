"""Vectors: 64 bytes of real numbers in a register, with the arithmetic of numbers, for formulas over rows.

A vector is a block of one (`blocks.py`). Where a row ends within a vector, the numbers beyond are read as 0
and not written.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.extending import overload

from tesserec.embeddings.kernels.blocks import (
    Block,
    first_columns,
    load_vector,
    short_name,
    splat,
    store_vector,
)
from tesserec.embeddings.kernels.memory import call_llvm, intrinsic
from tesserec.embeddings.kernels.rows import BITS, INT32, narrow, noise_vector, real_type, widen


@intrinsic
def lanes(typing_context, like):
    """Numbers in a vector."""
    number = Block(like.dtype, 1).lanes
    return types.int64(like), lambda context, builder, signature, args: ir.Constant(ir.IntType(64), number)


@intrinsic
def itemsize(typing_context, like):
    """Bytes of a number stored as those of `like`."""
    number = like.dtype.bitwidth // 8
    return types.int64(like), lambda context, builder, signature, args: ir.Constant(ir.IntType(64), number)


@intrinsic
def load(typing_context, like, address):
    """The vector at `address`, of real numbers as in `like`."""
    vector = Block(real_type(like.dtype), 1)

    def codegen(context, builder, signature, args):
        return _wrap(builder, vector, load_vector(builder, vector, args[1], 0, None))

    return vector(like, types.int64), codegen


@intrinsic
def store(typing_context, address, vector):
    """Write `vector` to `address`."""

    def codegen(context, builder, signature, args):
        store_vector(builder, vector, args[0], 0, None, builder.extract_value(args[1], 0))
        return context.get_dummy_value()

    return types.void(types.int64, vector), codegen


@intrinsic
def load_part(typing_context, like, address, columns):
    """The vector at `address`, of numbers stored as those of `like`; those from `columns` on are 0."""
    vector = Block(real_type(like.dtype), 1)

    def codegen(context, builder, signature, args):
        stored = load_vector(builder, Block(like.dtype, 0), args[1], 0, args[2])
        return _wrap(builder, vector, widen(builder, like.dtype, stored))

    return vector(like, types.int64, types.int64), codegen


@intrinsic
def store_part(typing_context, like, address, columns, vector, key, first):
    """Write the first `columns` numbers of `vector` to `address`, stored as those of `like`.

    Rounded as by `put`, with the noise of stream `key` from number `first` on.
    """

    def codegen(context, builder, signature, args):
        value, noise = builder.extract_value(args[3], 0), None
        if like.dtype in BITS:
            noise = noise_vector(builder, vector.lanes, *args[4:])
        value = narrow(builder, like.dtype, value, noise)
        place, mask = (
            builder.inttoptr(args[1], value.type.as_pointer()),
            first_columns(builder, vector, args[2]),
        )
        name, align = f"llvm.masked.store.{short_name(value.type)}.p0", INT32(like.dtype.bitwidth // 8)
        call_llvm(builder, name, ir.VoidType(), value, place, align, mask)
        return context.get_dummy_value()

    return types.void(like, types.int64, types.int64, vector, types.uint64, types.int64), codegen


@intrinsic
def zeros(typing_context, like):
    """A vector of zeros."""
    vector = Block(real_type(like.dtype), 1)
    return vector(like), lambda context, builder, signature, args: context.get_constant_null(vector)


def _wrap(builder, vector, value):
    return builder.insert_value(ir.Constant(ir.ArrayType(vector.vector, 1), ir.Undefined), value, 0)


def _spread(builder, vector, kind, value):
    """`value`, of numba type `kind`, as an LLVM vector."""
    return (
        builder.extract_value(value, 0) if isinstance(kind, Block) else splat(builder, vector.vector, value)
    )


def _function(emit):
    """A function of compiled code of vectors and numbers, at least one a vector; emit(builder, *vectors)."""

    def typed(*kinds):
        vector = next(kind for kind in kinds if isinstance(kind, Block))
        inputs = [kind if isinstance(kind, Block) else vector.real for kind in kinds]

        def codegen(context, builder, signature, args):
            values = [_spread(builder, vector, *item) for item in zip(signature.args, args, strict=True)]
            return _wrap(builder, vector, emit(builder, *values))

        return vector(*inputs), codegen

    return typed


def _binary(emit):
    typed = _function(emit)
    return intrinsic(lambda typing_context, x, y: typed(x, y))


def _llvm(name):
    """emit for an LLVM intrinsic function."""
    return lambda builder, *v: call_llvm(builder, f"llvm.{name}.{short_name(v[0].type)}", v[0].type, *v)


_root, _size, _sign = _function(_llvm("sqrt")), _function(_llvm("fabs")), _function(_llvm("copysign"))
_low = _function(lambda builder, x, y: builder.select(builder.fcmp_ordered("<", x, y), x, y))
_high = _function(lambda builder, x, y: builder.select(builder.fcmp_ordered(">", x, y), x, y))


@intrinsic
def sqrt(typing_context, x):
    return _root(x)


@intrinsic
def size(typing_context, x):
    """|x|."""
    return _size(x)


@intrinsic
def sign_like(typing_context, x, y):
    """x with the sign of y."""
    return _sign(x, y)


@intrinsic
def lower(typing_context, x, y):
    """The lesser of x and y; y where x is NaN."""
    return _low(x, y)


@intrinsic
def higher(typing_context, x, y):
    """The greater of x and y; y where x is NaN."""
    return _high(x, y)


@intrinsic
def total(typing_context, x):
    """Sum of the numbers of x, by halves."""

    def codegen(context, builder, signature, args):
        value, count = builder.extract_value(args[0], 0), x.lanes
        while count > 1:
            count //= 2
            order = ir.VectorType(INT32, count)
            halves = (ir.Constant(order, list(range(lo, lo + count))) for lo in (0, count))
            value = builder.fadd(*(builder.shuffle_vector(value, value, half) for half in halves))
        return builder.extract_element(value, ir.Constant(INT32, 0))

    return x.real(x), codegen


def _operator(name, emit):
    function = _binary(emit)

    @overload(name)
    def applied(x, y):
        if isinstance(x, Block) or isinstance(y, Block):
            return lambda x, y: function(x, y)
        return None


_operator(operator.add, lambda builder, x, y: builder.fadd(x, y))
_operator(operator.sub, lambda builder, x, y: builder.fsub(x, y))
_operator(operator.mul, lambda builder, x, y: builder.fmul(x, y))
_operator(operator.truediv, lambda builder, x, y: builder.fdiv(x, y))
