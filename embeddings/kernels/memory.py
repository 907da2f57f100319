"""Memory by address: how one kernel call reads arrays that lie anywhere, and asks for rows ahead of time.

A step has as many id and gradient arrays as it has slices. A kernel that takes them by address sees all of
them in one call, without a copy; whoever passes an address keeps the array alive.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as numba_intrinsic

LINE = 64  # bytes of a cache line
intrinsic: Any = numba_intrinsic  # compiled callers do not pass the typing context


def _pointer_to(item):
    """A function of compiled code: integer address -> pointer to `item`, to be indexed."""

    @intrinsic
    def pointer(typing_context, address):
        def codegen(context, builder, signature, args):
            return builder.inttoptr(args[0], context.get_value_type(types.CPointer(item)))

        return types.CPointer(item)(address), codegen

    return pointer


int64_at = _pointer_to(types.int64)
int32_at = _pointer_to(types.int32)
uint8_at = _pointer_to(types.uint8)
uint16_at = _pointer_to(types.uint16)
uint32_at = _pointer_to(types.uint32)
uint64_at = _pointer_to(types.uint64)
float32_at = _pointer_to(types.float32)
float64_at = _pointer_to(types.float64)


@intrinsic
def like_at(typing_context, array, address):
    """`address` as a pointer to items of the type of `array`."""
    pointer = types.CPointer(array.dtype)

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[1], context.get_value_type(pointer))

    return pointer(array, address), codegen


@intrinsic
def prefetch(typing_context, address):
    """Ask for the cache line at `address`, which need not be valid memory."""

    def codegen(context, builder, signature, args):
        fetch(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def fetch(builder, address):
    """Emit a prefetch of the cache line at `address` into the second level of cache, for reading.

    Not into the first: a core can wait for twice as many lines on their way to the second (Zen 4: 5 ns per
    random line instead of 9).
    """
    read, second, data = (ir.Constant(ir.IntType(32), value) for value in (0, 2, 1))
    place = builder.inttoptr(address, ir.IntType(8).as_pointer())
    call_llvm(builder, "llvm.prefetch.p0", ir.VoidType(), place, read, second, data)


def call_llvm(builder, name, result, *args):
    """Emit a call of an intrinsic function of LLVM."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)
