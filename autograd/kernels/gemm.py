"""Matrix products in compiled code: panels of one factor, and tiles whose sums stay in registers.

Faster than numpy's BLAS at the sizes of a ranking model, because nothing is packed that need not be: of a
batch times a weight matrix only the weights (Goto & van de Geijn 2008 pack both). Serial: threads are the
caller's. A sum runs over k in order, so a row of the result has the same bits in any batch.

The float32 core is compiled once, as two C functions that kernels find by name, as they would find a BLAS.
float64, which only checks need, takes plain loops.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from numba import cfunc, types

from tesserec.autograd.kernels.jit import dot_kernel, inlined, kernel
from tesserec.autograd.kernels.vector import LANES, TALL, address, aligned, copy, floats, row, tile, transpose

WIDE = 2 * LANES  # columns of a panel
NEAR = 64 << 10  # numbers of `a` that meet one panel after the other while they stay in the L2 cache
DEEP = 512  # terms of a sum before it is written, to be read again
FEW = 16  # lines packed at once, so that each cache line is read once


@kernel
def gemm(a, b, out, accumulate):
    """out = a·b, added to `out` if `accumulate`: (M, K), (K, N) -> (M, N).

    Of each of a and b one axis is packed; of out the rows are. No two overlap.
    """
    if a.itemsize == 8:
        _plain(a, b, out, accumulate)
    elif not in_panels(out) and a.strides[1] == 4 and b.strides[0] == 4:
        _dots(a, b, out, accumulate)
    else:
        if not accumulate and a.shape[1] == 0:
            out[:] = 0
        for k in range(0, a.shape[1], DEEP):
            part = b[k : k + DEEP]
            multiply(a[:, k : k + DEEP], part, pack(part, len(a)), out, accumulate or k > 0)


@inlined
def in_panels(out):
    """Whether `pack` and `multiply` make `out`, rather than `gemm` without them."""
    return out.itemsize == 4 and out.shape[1] >= 4


@kernel
def pack(b, rows):
    """The columns of b (K, N) as `multiply` reads them, to be multiplied with so many rows; float32.

    For a few rows packing does not pay: panels that can be read where they are stay there.
    """
    K, N = b.shape
    first = N // WIDE * WIDE if rows <= 2 * TALL and b.strides[1] == 4 else 0
    panels = aligned(K * padded(N - first))
    _call_pack(K, N, first, address(b), b.strides[0], b.strides[1], address(panels))
    return panels


@kernel
def multiply(a, b, panels, out, accumulate):
    """out = a·b, added to `out` if `accumulate`, where panels = pack(b, …); float32."""
    M, K = a.shape
    tiles = aligned(0 if a.strides[1] == 4 else min(_block(K), M) * K)
    _multiply_with(tiles, a, b, panels, out, accumulate)


@kernel
def _multiply_with(tiles, a, b, panels, out, accumulate):
    """Arrays end with their last use, and a use of the address does not count: a call keeps them."""
    K, N = b.shape
    first = 0 if len(panels) == K * padded(N) else N // WIDE * WIDE
    _call_multiply(
        len(a), K, N,
        address(a), a.strides[0], a.strides[1], address(tiles),
        address(b), b.strides[0], first, address(panels),
        address(out), out.strides[0], accumulate,
    )  # fmt: skip


@dot_kernel
def _dots(a, b, out, accumulate):
    """`gemm` for a few columns, which are read where they are: both factors packed along k."""
    columns = b.T
    for i in range(out.shape[0]):
        ai, o = row(a, i), row(out, i)
        for j in range(o.shape[0]):
            bj = row(columns, j)
            dot = o.dtype.type(0)
            for k in range(ai.shape[0]):
                dot += ai[k] * bj[k]
            o[j] = o[j] + dot if accumulate else dot


@kernel
def _plain(a, b, out, accumulate):
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            total = out[i, j] if accumulate else out.dtype.type(0)
            for k in range(a.shape[1]):
                total += a[i, k] * b[k, j]
            out[i, j] = total


@inlined
def padded(width):
    """Columns of whole registers."""
    return -(-width // LANES) * LANES


@inlined
def _block(K):
    """Rows that meet one panel after the other."""
    return max(NEAR // max(K, 1) // TALL, 1) * TALL


@inlined
def tile_height(left):
    """Rows of the next tile, when so many are left."""
    return TALL if left >= TALL else 4 if left >= 4 else 1


def _pack(K, N, first, b, down, right, panels):
    """Panels of WIDE columns from `first` on, k by k; the last one padded with zeros to whole registers."""
    few = FEW if right == 4 else max(K, 1)
    for k in range(0, K, few):
        for j in range(first, N, WIDE):
            width = min(N - j, WIDE)
            source = b + k * down + j * right
            target = panels + ((j - first) * K + k * padded(width)) * 4
            if right == 4:
                _pack_lines(min(K - k, few), width, source, down, target)
            else:
                _pack_columns(min(K - k, few), width, source, right, target)


@kernel
def _pack_lines(K, width, source, down, target):
    """Lines of `width` numbers, padded."""
    for k in range(K):
        line, full = floats(source + k * down), padded(width)
        o = floats(target + k * full * 4)
        for c in range(width):
            o[c] = line[c]
        for c in range(width, full):
            o[c] = 0


@kernel
def _pack_columns(K, width, source, right, target):
    """The same from packed columns: whole squares through registers, the rest one by one."""
    full = padded(width)
    whole_k, whole_width = K // LANES * LANES, width // LANES * LANES
    for c in range(0, whole_width, LANES):
        for k in range(0, whole_k, LANES):
            transpose(source + c * right + k * 4, right, target + (k * full + c) * 4, full * 4)
    o = floats(target)
    for c in range(full):
        column = floats(source + c * right)
        for k in range(whole_k if c < whole_width else 0, K):
            o[k * full + c] = column[k] if c < width else 0


def _multiply(M, K, N, a, a_down, a_right, packed, b, b_down, first, panels, out, out_down, accumulate):
    """Columns before `first` are read from b."""
    block = _block(K)
    for lo in range(0, M, block):
        rows = min(M - lo, block)
        if a_right != 4:
            _pack_tiles(rows, K, a + lo * a_down, a_right, packed)
        for j in range(0, N, WIDE):
            width = min(N - j, WIDE)
            right = (panels + (j - first) * K * 4, padded(width) * 4)
            if j < first:
                right = (b + j * 4, b_down)
            i = 0
            while i < rows:
                height = tile_height(rows - i)
                left = (packed + i * K * 4, 4, height * 4)
                if a_right == 4:
                    left = (a + (lo + i) * a_down, a_down, 4)
                at = (out + (lo + i) * out_down + j * 4, out_down)
                ahead = (right[0] + K * WIDE * 4 * (rows + i) // rows, WIDE * 4 * height // rows)
                if j == 0 and a_right == 4:
                    ahead = (a + (lo + i + height) * a_down, height * a_down // max(K, 1))
                product_tile(height, left, right, at, K, width, accumulate, ahead)
                i += height


@kernel
def product_tile(height, left, right, out, K, width, accumulate, ahead):
    """A tile of `tile_height` rows and up to WIDE columns; as `vector.tile`."""
    if width > LANES:
        if height == TALL:
            tile(TALL, 2, left, right, out, K, width, accumulate, ahead)
        elif height == 4:
            tile(4, 2, left, right, out, K, width, accumulate, ahead)
        else:
            tile(1, 2, left, right, out, K, width, accumulate, ahead)
    elif height == TALL:
        tile(TALL, 1, left, right, out, K, width, accumulate, ahead)
    elif height == 4:
        tile(4, 1, left, right, out, K, width, accumulate, ahead)
    else:
        tile(1, 1, left, right, out, K, width, accumulate, ahead)


@kernel
def _pack_tiles(rows, K, source, right, packed):
    """The rows of each tile k by k, from packed columns."""
    for k0 in range(0, K, FEW):
        i = 0
        while i < rows:
            height = tile_height(rows - i)
            for k in range(k0, min(k0 + FEW, K)):
                at = source + k * right + i * 4
                to = packed + (i * K + k * height) * 4
                if height == TALL:
                    copy(TALL, at, to)
                elif height == 4:
                    copy(4, at, to)
                else:
                    copy(1, at, to)
            i += height


def _as_c(function, *parameters: Any) -> tuple[Any, Any]:
    """(the function by a name of its own, the compiled code, which must be kept)."""
    signature = types.void(*parameters)
    compiled = cfunc(signature, cache=True, error_model="numpy")(function)
    name = f"tesserec{function.__name__}_f32"
    llvm.add_symbol(name, compiled.address)
    return types.ExternalFunction(name, signature), compiled


_call_pack, _compiled_pack = _as_c(_pack, *[types.int64] * 7)
_call_multiply, _compiled_multiply = _as_c(_multiply, *[types.int64] * 13, types.boolean)
