"""Blocks: some columns of a row in vector registers, to which rows are added.

A block is `count` vectors of 64 bytes, whatever the CPU's own vectors are; `tail` is one vector of which the
first `columns` numbers count. Rows of any width are summed block after block, so nothing is compiled for a
width. Numbers are real (see `rows.py`), however rows are stored.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core.datamodel.models import PrimitiveModel
from numba.extending import register_model

from tesserec.embeddings.kernels.memory import LINE, call_llvm, fetch, intrinsic
from tesserec.embeddings.kernels.rows import real_type, widen

INT32, INT64 = ir.IntType(32), ir.IntType(64)


class Block(types.Type):
    """Numba's type of a block of `count` vectors, for rows stored as `dtype`; count 0 for a tail."""

    def __init__(self, dtype, count):
        super().__init__(name=f"Block({dtype}, {count})")
        self.dtype, self.count, self.real = dtype, count, real_type(dtype)
        self.lanes = LINE * 8 // self.real.bitwidth  # numbers in a vector
        element = ir.DoubleType() if self.real == types.float64 else ir.FloatType()
        self.vector = ir.VectorType(element, self.lanes)
        self.places = range(max(1, count))


@register_model(Block)
class BlockModel(PrimitiveModel):
    def __init__(self, manager, block):
        super().__init__(manager, block, ir.ArrayType(block.vector, len(block.places)))


def _zeros(count):
    """A function of compiled code: an array -> zeros in a block for its rows."""

    @intrinsic
    def zeros(typing_context, like):
        block = Block(like.dtype, count)
        return block(like), lambda context, builder, signature, args: context.get_constant_null(block)

    return zeros


tail = _zeros(0)
block_1, block_2, block_4, block_8, block_16 = (_zeros(count) for count in (1, 2, 4, 8, 16))


@intrinsic
def span(typing_context, block):
    """Columns in a block."""

    def codegen(context, builder, signature, args):
        return INT64(len(block.places) * block.lanes)

    return types.int64(block), codegen


@intrinsic
def add(typing_context, block, address, columns):
    """block + the columns of a row that begin at `address`."""

    def codegen(context, builder, signature, args):
        return _each(builder, block, args, lambda old, new: builder.fadd(old, new))

    return block(block, types.int64, types.int64), codegen


@intrinsic
def add_scaled(typing_context, block, address, columns, scale):
    """block + scale·the columns of a row that begin at `address`, rounded once."""

    def codegen(context, builder, signature, args):
        factor = splat(builder, block.vector, args[3])
        name = f"llvm.fma.{short_name(block.vector)}"
        return _each(
            builder, block, args, lambda old, new: call_llvm(builder, name, old.type, factor, new, old)
        )

    return block(block, types.int64, types.int64, block.real), codegen


@intrinsic
def save(typing_context, block, address, columns, scale):
    """Write scale·block, as real numbers, from `address` on."""

    def codegen(context, builder, signature, args):
        factor = splat(builder, block.vector, args[3])
        for k in block.places:
            value = builder.fmul(builder.extract_value(args[0], k), factor)
            store_vector(builder, block, args[1], k, args[2], value)
        return context.get_dummy_value()

    return types.void(block, types.int64, types.int64, block.real), codegen


@intrinsic
def ask(typing_context, block, address, columns):
    """Prefetch the columns of a row that begin at `address`."""

    def codegen(context, builder, signature, args):
        size = block.dtype.bitwidth // 8
        for begin in range(0, len(block.places) * block.lanes * size, LINE):
            fetch(builder, builder.add(args[1], INT64(begin)))
        if block.count == 0:
            fetch(builder, builder.add(args[1], builder.mul(builder.sub(args[2], INT64(1)), INT64(size))))
        return context.get_dummy_value()

    return types.void(block, types.int64, types.int64), codegen


def _each(builder, block, args, combine):
    """args: block, address, columns. Each vector of the block combined with that of the row."""
    result = args[0]
    for k in block.places:
        row = widen(builder, block.dtype, load_vector(builder, block, args[1], k, args[2]))
        result = builder.insert_value(result, combine(builder.extract_value(args[0], k), row), k)
    return result


def splat(builder, kind, number):
    """The vector that has `number` everywhere."""
    vector = builder.insert_element(kind(ir.Undefined), number, INT32(0))
    return builder.shuffle_vector(vector, vector, ir.VectorType(INT32, kind.count)([0] * kind.count))


def _place(builder, address, begin, kind):
    """Pointer to a vector, `begin` bytes after `address`."""
    return builder.inttoptr(builder.add(address, INT64(begin)), kind.as_pointer())


def first_columns(builder, block, columns):
    """The first `columns` of a vector's numbers."""
    kind = ir.VectorType(INT32, block.lanes)
    limit = splat(builder, kind, builder.trunc(columns, INT32))
    return builder.icmp_unsigned("<", kind(list(range(block.lanes))), limit)


def load_vector(builder, block, address, k, columns):
    """Vector `k` of a row, as stored."""
    size = block.dtype.bitwidth // 8
    element = ir.IntType(16) if size == 2 else block.vector.element
    kind = ir.VectorType(element, block.lanes)
    place = _place(builder, address, k * block.lanes * size, kind)
    if block.count:
        return builder.load(place, align=size)
    name, mask = f"llvm.masked.load.{short_name(kind)}.p0", first_columns(builder, block, columns)
    return call_llvm(builder, name, kind, place, INT32(size), mask, kind(None))


def store_vector(builder, block, address, k, columns, value):
    size = block.real.bitwidth // 8
    place = _place(builder, address, k * LINE, block.vector)
    if block.count:
        builder.store(value, place, align=size)
        return
    name, mask = f"llvm.masked.store.{short_name(block.vector)}.p0", first_columns(builder, block, columns)
    call_llvm(builder, name, ir.VoidType(), value, place, INT32(size), mask)


def short_name(vector):
    """A vector type in the name of an LLVM intrinsic."""
    element = {ir.FloatType(): "f32", ir.DoubleType(): "f64", ir.IntType(16): "i16"}[vector.element]
    return f"v{vector.count}{element}"
