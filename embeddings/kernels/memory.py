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
float32_at = _pointer_to(types.float32)


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
        byte, int32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, int32, int32, int32]), "llvm.prefetch.p0"
        )
        read, keep, data = (ir.Constant(int32, value) for value in (0, 3, 1))
        builder.call(function, [builder.inttoptr(args[0], byte), read, keep, data])
        return context.get_dummy_value()

    return types.void(types.int64), codegen
