"""Blocks of codes: rows of 8-, 4- or 2-bit codes, widened in vector registers and added to a block of sums.

A row is a header of 4 bytes, the bits of two bfloat16 numbers, scale (low) and bias (high), and its codes, 16
columns after the other. The codes of 16 columns are the fields of 2·bits bytes: column c is in byte
c % (2·bits), from bit c // (2·bits) · bits on. So one load, one shift by lane and one mask give a vector of
16 codes, whatever their bits. A value is scale·code + bias.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import register_model

from tesserec.embeddings.kernels.blocks import Block, BlockModel, splat
from tesserec.embeddings.kernels.memory import call_llvm, intrinsic

HEADER = 4  # bytes
GROUP = 16  # columns whose codes lie together
INT32 = ir.IntType(32)
literal_intrinsic: Any = numba_intrinsic(prefer_literal=True)


class Codes(Block):
    """Numba's type of a block of `count` vectors of sums of `bits`-bit codes; count 0 for a tail."""

    def __init__(self, bits, count):
        super().__init__(types.uint8, count)
        self.name, self.bits = f"Codes({bits}, {count})", bits


register_model(Codes)(BlockModel)


@literal_intrinsic
def codes(typing_context, bits):
    """An empty tail of `bits`-bit codes; it says to compiled code what `bits` is."""
    block = Codes(bits.literal_value, 0)
    return block(bits), lambda context, builder, signature, args: context.get_constant_null(block)


@literal_intrinsic
def zeros(typing_context, like, count):
    """Zeros in a block of `count` vectors for codes as those of `like`."""
    block = Codes(like.bits, count.literal_value)
    return block(like, count), lambda context, builder, signature, args: context.get_constant_null(block)


@intrinsic
def bits_of(typing_context, block):
    """Bits of a code."""
    return types.int64(block), lambda context, builder, signature, args: ir.Constant(
        ir.IntType(64), block.bits
    )


@intrinsic
def header_numbers(typing_context, header):
    """The bits of a header -> (scale, bias)."""
    pair = types.UniTuple(types.float32, 2)

    def codegen(context, builder, signature, args):
        scale = builder.shl(args[0], ir.Constant(INT32, 16))
        bias = builder.and_(args[0], ir.Constant(INT32, 0xFFFF0000))
        numbers = [builder.bitcast(bits, ir.FloatType()) for bits in (scale, bias)]
        return context.make_tuple(builder, pair, numbers)

    return pair(types.uint32), codegen


@intrinsic
def add_codes(typing_context, block, address, scale):
    """block + scale·the codes that begin at `address`. Reads 16 columns at a time, also for a tail."""

    def codegen(context, builder, signature, args):
        factor = splat(builder, block.vector, args[2])

        def add(old, k):
            place = builder.add(args[1], ir.Constant(args[1].type, 2 * block.bits * k))
            new = _codes_at(builder, block, place)
            return call_llvm(builder, f"llvm.fma.v{GROUP}f32", old.type, factor, new, old)

        return _each(builder, block, args[0], add)

    return block(block, types.int64, types.float32), codegen


@intrinsic
def add_number(typing_context, block, number):
    """block + number, in every column."""

    def codegen(context, builder, signature, args):
        number = splat(builder, block.vector, args[1])
        return _each(builder, block, args[0], lambda old, k: builder.fadd(old, number))

    return block(block, types.float32), codegen


def _each(builder, block, old, change):
    """Vector k of the result is change(vector k of `old`, k)."""
    for k in block.places:
        old = builder.insert_value(old, change(builder.extract_value(old, k), k), k)
    return old


def _codes_at(builder, block, address):
    """The 16 codes at `address` as a vector of floats."""
    size, group = 2 * block.bits, ir.VectorType(INT32, GROUP)
    stored = builder.inttoptr(address, ir.VectorType(ir.IntType(8), size).as_pointer())
    fields = builder.load(stored, align=1)
    order = ir.Constant(group, [column % size for column in range(GROUP)])
    fields = builder.zext(builder.shuffle_vector(fields, fields, order), group)
    if block.bits < 8:
        shifts = ir.Constant(group, [column // size * block.bits for column in range(GROUP)])
        mask = ir.Constant(group, [(1 << block.bits) - 1] * GROUP)
        fields = builder.and_(builder.lshr(fields, shifts), mask)
    return builder.sitofp(fields, block.vector)
