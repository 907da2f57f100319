"""What LLVM can say and Numba cannot: float32 vectors as wide as the processor's registers.

Addresses are integers, distances bytes.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic
from numba.np.numpy_support import carray
from numpy.lib.stride_tricks import as_strided

from tesserec.autograd.kernels.jit import inlined, kernel

intrinsic: Any = numba_intrinsic  # compiled callers do not pass the typing context

_host = llvm.get_host_cpu_features()
LANES = 16 if _host.get("avx512f") else 8 if _host.get("avx2") else 4  # numbers that a register holds
REGISTER = 4 * LANES  # bytes
SQUARE = REGISTER * LANES  # bytes of LANES registers
TALL = 6 if LANES == 8 else 12  # rows of a full tile: two registers each, and nearly all registers are used

_I32, _I64, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_ALIGN = 4


@inlined
def address(array):
    """Where its elements begin, as a signed integer: arithmetic with unsigned ones would end in floats."""
    return np.int64(array.ctypes.data)


@inlined
def loose(array):
    """The same array as one of any strides, so that what takes it is compiled once, not for each layout."""
    return as_strided(array, array.shape, array.strides)


@intrinsic
def pointer_like(typing_context, array, at):
    """An address as a pointer to items of the type of `array`."""
    pointer = types.CPointer(array.dtype)

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[1], context.get_value_type(pointer))

    return pointer(array, at), codegen


@inlined
def row(array, r):
    """array[r] as a contiguous array, whatever the distance between rows; its other axes must be packed."""
    return carray(pointer_like(array, address(array) + r * array.strides[0]), array.shape[1:])


@kernel
def aligned(size):
    """`size` float32 numbers that begin where a register may."""
    space = np.empty(size + LANES, np.float32)
    skip = -address(space) % REGISTER // 4
    return space[skip : skip + size]


@intrinsic
def floats(typing_context, at):
    """Address `at` as a pointer to float32, to be indexed."""
    pointer = types.CPointer(types.float32)

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(pointer))

    return pointer(at), codegen


@intrinsic(prefer_literal=True)
def copy(typing_context, count, source, target):
    """`count` numbers, a literal, from one address to another, through registers."""
    block = ir.VectorType(_FLOAT, count.literal_value)

    def codegen(context, builder, signature, args):
        _store(builder, _load(builder, args[1], 0, block), args[2], 0)
        return context.get_dummy_value()

    return types.void(count, source, target), codegen


@intrinsic
def transpose(typing_context, source, row_bytes, target, target_row_bytes):
    """target[j, i] = source[i, j] for a square of LANES each way."""

    def codegen(context, builder, signature, args):
        source, step, target, stride = args
        rows = [_load(builder, source, builder.mul(step, _I64(i))) for i in range(LANES)]
        size = 1
        while size < LANES:  # swap two corners of every square of twice this size
            upper = [c if not c & size else LANES + c - size for c in range(LANES)]
            lower = [LANES + c if c & size else c + size for c in range(LANES)]
            for i in range(LANES):
                if not i & size:
                    pair = rows[i], rows[i + size]
                    rows[i], rows[i + size] = (_shuffle(builder, *pair, order) for order in (upper, lower))
            size *= 2
        for i in range(LANES):
            _store(builder, rows[i], target, builder.mul(stride, _I64(i)))
        return context.get_dummy_value()

    return types.void(source, row_bytes, target, target_row_bytes), codegen


@intrinsic(prefer_literal=True)
def tile(typing_context, rows, registers, left, right, out, terms, width, accumulate, ahead):
    """out[i, :width] = Σ_k left[i, k]·right[k, :width], added to `out` if `accumulate`, for i < rows.

    rows, registers of a row: literals. left: (address, bytes from row to row, from k to k); right: (address,
    bytes from k to k), read in whole registers; out: (address, bytes from row to row). All sums stay in
    registers, and each runs over k in order, whatever tile it is in. ahead: (address, bytes from k to k) of
    what is asked for on the way, because it is wanted next.
    """

    def codegen(context, builder, signature, args):
        start, down, step = cgutils.unpack_tuple(builder, args[2])

        def factor(i, k):
            at = builder.add(builder.mul(down, _I64(i)), builder.mul(step, k))
            return _load(builder, start, at, _FLOAT)

        def ask(k):
            _prefetch(builder, next_left, builder.mul(next_step, k), write=False)

        next_left, next_step = cgutils.unpack_tuple(builder, args[8])
        _tile(builder, rows.literal_value, registers.literal_value, factor, ask, args[3:8])
        return context.get_dummy_value()

    return types.void(rows, registers, left, right, out, terms, width, accumulate, ahead), codegen


@intrinsic(prefer_literal=True)
def scattered_tile(typing_context, rows, registers, left, right, out, terms, width, accumulate):
    """`tile` where each left[i, k] has an offset of its own, in bytes: an int64 of a matrix.

    left: (address, address of the offsets, bytes from row to row of these).
    """

    def codegen(context, builder, signature, args):
        start, places, down = cgutils.unpack_tuple(builder, args[2])

        def factor(i, k):
            at = builder.add(builder.mul(down, _I64(i)), builder.mul(_I64(8), k))
            return _load(builder, start, _load(builder, places, at, _I64), _FLOAT)

        _tile(builder, rows.literal_value, registers.literal_value, factor, lambda k: None, args[3:])
        return context.get_dummy_value()

    return types.void(rows, registers, left, right, out, terms, width, accumulate), codegen


@intrinsic(prefer_literal=True)
def listed_tile(typing_context, rows, registers, left, right, out, terms, width, accumulate):
    """`tile` over listed k only: Σ left[i, k]·right[k, :width] over the first `terms` of a list.

    left: (address, bytes from row to row, address of the list, int64); a row of it is packed.
    """

    def codegen(context, builder, signature, args):
        start, down, listed = cgutils.unpack_tuple(builder, args[2])

        def place(t):
            return _load(builder, listed, builder.mul(_I64(8), t), _I64)

        def factor(i, t):
            at = builder.add(builder.mul(down, _I64(i)), builder.mul(_I64(4), place(t)))
            return _load(builder, start, at, _FLOAT)

        _tile(builder, rows.literal_value, registers.literal_value, factor, lambda t: None, args[3:], place)
        return context.get_dummy_value()

    return types.void(rows, registers, left, right, out, terms, width, accumulate), codegen


def _tile(builder, rows, registers, factor, ask, args, place=lambda k: k):
    """The sums of a tile, in registers. factor(i, k) loads a number of its left side, ask(k) looks ahead.

    place(k): which line of its right side.
    """
    cells = list(product(range(rows), range(registers)))
    (right, step), (out, down) = (cgutils.unpack_tuple(builder, pair) for pair in args[:2])
    terms, width, accumulate = args[2:]
    offsets = {(i, v): builder.add(builder.mul(down, _I64(i)), _I64(v * REGISTER)) for i, v in cells}
    masks = [_first(builder, builder.sub(width, _I64(v * LANES))) for v in range(registers)]
    for cell in cells:
        _prefetch(builder, out, offsets[cell], write=True)

    def fetch():
        return [_masked_load(builder, out, offsets[cell], masks[cell[1]]) for cell in cells]

    def body(k, sums):
        ask(k)
        line = builder.add(right, builder.mul(step, place(k)))
        columns = [_load(builder, line, v * REGISTER) for v in range(registers)]
        factors = [_spread(builder, factor(i, k)) for i in range(rows)]
        return [
            _call(builder, "llvm.fmuladd", _VECTOR, factors[i], columns[v], total)
            for (i, v), total in zip(cells, sums, strict=True)
        ]

    sums = _summed(builder, len(cells), terms, accumulate, fetch, body)
    whole = builder.icmp_signed(">=", width, _I64(registers * LANES))
    with builder.if_else(whole) as (then, otherwise):
        with then:
            for cell, total in zip(cells, sums, strict=True):
                _store(builder, total, out, offsets[cell])
        with otherwise:
            for cell, total in zip(cells, sums, strict=True):
                _masked_store(builder, total, out, offsets[cell], masks[cell[1]])


@intrinsic(prefer_literal=True)
def lane_dots(typing_context, columns, left, right, out, column_bytes, terms, accumulate):
    """out[c] = Σ_t left[t]·right[c, t], lane by lane, added to `out` if `accumulate`.

    columns: a literal, how many sums stay in registers. left, right, out: addresses of registers, one after
    the other, but from column to column of `right` it is `column_bytes`.
    """
    count = columns.literal_value

    def codegen(context, builder, signature, args):
        _, left, right, out, column_bytes, terms, accumulate = args

        def fetch():
            return [_load(builder, out, c * REGISTER) for c in range(count)]

        def body(t, sums):
            at = builder.mul(t, _I64(REGISTER))
            one, line = _load(builder, left, at), builder.add(right, at)
            others = [_load(builder, line, builder.mul(column_bytes, _I64(c))) for c in range(count)]
            return [
                _call(builder, "llvm.fmuladd", _VECTOR, one, other, total)
                for other, total in zip(others, sums, strict=True)
            ]

        for c, total in enumerate(_summed(builder, count, terms, accumulate, fetch, body)):
            _store(builder, total, out, c * REGISTER)
        return context.get_dummy_value()

    signature = types.void(columns, left, right, out, column_bytes, terms, accumulate)
    return signature, codegen


def _summed(builder, count, terms, accumulate, fetch, body):
    """So many sums, in registers: from fetch() if `accumulate`, else 0, through sums = body(k, sums)."""
    start = builder.block
    fetching, head, adding, end = (builder.append_basic_block() for _ in range(4))
    builder.cbranch(builder.trunc(accumulate, ir.IntType(1)), fetching, head)

    builder.position_at_end(fetching)
    held = fetch()
    builder.branch(head)

    builder.position_at_end(head)
    k = builder.phi(_I64)
    sums = [builder.phi(_VECTOR) for _ in range(count)]
    zero = ir.Constant(_VECTOR, [0.0] * LANES)
    for block, first in ((start, [zero] * count), (fetching, held)):
        k.add_incoming(_I64(0), block)
        for total, value in zip(sums, first, strict=True):
            total.add_incoming(value, block)
    builder.cbranch(builder.icmp_signed("<", k, terms), adding, end)

    builder.position_at_end(adding)
    for total, value in zip(sums, body(k, sums), strict=True):
        total.add_incoming(value, adding)
    k.add_incoming(builder.add(k, _I64(1)), adding)
    builder.branch(head)

    builder.position_at_end(end)
    return sums


def _pointer(builder, address, offset, kind):
    offset = _I64(offset) if isinstance(offset, int) else offset
    return builder.inttoptr(builder.add(address, offset), kind.as_pointer())


def _load(builder, address, offset, kind=_VECTOR):
    return builder.load(_pointer(builder, address, offset, kind), align=_ALIGN)


def _store(builder, value, address, offset):
    builder.store(value, _pointer(builder, address, offset, value.type), align=_ALIGN)


def _prefetch(builder, address, offset, *, write):
    at = _pointer(builder, address, offset, ir.IntType(8))
    keep, data = _I32(3), _I32(1)
    kind = ir.FunctionType(ir.VoidType(), [at.type, _I32, _I32, _I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [at, _I32(int(write)), keep, data])


def _masked_load(builder, address, offset, mask):
    at = _pointer(builder, address, offset, _VECTOR)
    rest = ir.Constant(_VECTOR, [0.0] * LANES)
    return _call(builder, "llvm.masked.load", _VECTOR, at, _I32(_ALIGN), mask, rest)


def _masked_store(builder, value, address, offset, mask):
    at = _pointer(builder, address, offset, _VECTOR)
    _call(builder, "llvm.masked.store", ir.VoidType(), value, at, _I32(_ALIGN), mask)


def _call(builder, name, result, *values):
    """A call of the LLVM intrinsic for registers of floats."""
    kind = ir.FunctionType(result, [value.type for value in values])
    pointer = ".p0" if "masked" in name else ""
    full_name = f"{name}.v{LANES}f32{pointer}"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, full_name), values)


def _shuffle(builder, x, y, order):
    lanes = ir.Constant(ir.VectorType(_I32, len(order)), order)
    return builder.shuffle_vector(x, y, lanes)


def _spread(builder, value):
    """A register with `value` in every lane."""
    undefined = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    one = builder.insert_element(undefined, value, _I32(0))
    return _shuffle(builder, one, undefined, [0] * LANES)


def _first(builder, count):
    """The mask of the first `count` lanes."""
    numbers = ir.Constant(ir.VectorType(_I64, LANES), list(range(LANES)))
    return builder.icmp_signed("<", numbers, _spread(builder, count))
