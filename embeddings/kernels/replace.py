"""Rows replaced while others read the table: what takes long comes before, what is left is a copy."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types

from tesserec.embeddings.kernels.jit import kernel
from tesserec.embeddings.kernels.memory import LINE, call_llvm, intrinsic, prefetch

PAGE = 4096  # bytes, the least that systems have
AHEAD = 16  # rows between the one that is asked for and the one that is written


@kernel
def own_pages(data, rows, nothing):
    """Write to every page that the rows lie on, and change none: mapped copy-on-write, each is copied now.

    data: (R, stride) u1; rows: (U,) i8. nothing: 0, which a compiler that knew it would leave out.
    """
    last = data.shape[1] - 1
    for i in range(rows.shape[0]):
        row = data[np.uint64(rows[i])]
        for at in range(0, last, PAGE):
            row[np.uint64(at)] ^= nothing
        row[np.uint64(last)] ^= nothing


@kernel
def replace_rows(new, rows, data):
    """data[rows] = new. new: (U, stride) u1; rows: (U,) i8; data: (R, stride) u1."""
    stride, begin, last = data.shape[1], data.ctypes.data, rows.shape[0] - 1
    for i in range(rows.shape[0]):
        ahead = begin + rows[min(i + AHEAD, last)] * stride
        for line in range(0, stride, LINE):
            prefetch(ahead + line)
        _copy(begin + rows[i] * stride, new.ctypes.data + i * stride, stride)


@intrinsic
def _copy(typing_context, target, source, size):
    """Copy `size` bytes between addresses."""

    def codegen(context, builder, signature, args):
        pointers = (builder.inttoptr(arg, ir.IntType(8).as_pointer()) for arg in args[:2])
        volatile = ir.Constant(ir.IntType(1), 0)
        call_llvm(builder, "llvm.memcpy.p0.p0.i64", ir.VoidType(), *pointers, args[2], volatile)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen
