"""A fully connected layer, forward and backward, with what surrounds its matrix products.

Shapes: x (B, I), w (O, I), b (O,), y and its gradient g (B, O). Of x, y and g the rows are packed but may lie
apart, as columns of a wider matrix; w is packed. A kernel never looks at more than it is given: parts of a
batch may run on several threads.
"""

from __future__ import annotations

import math

from tesserec.autograd.kernels.gemm import gemm, in_panels, multiply, pack
from tesserec.autograd.kernels.jit import kernel
from tesserec.autograd.kernels.vector import loose, row

# What follows a layer; its slope is known from its value. A NaN stays one.
IDENTITY, RELU, SIGMOID, TANH = range(4)

ROWS = 128  # of a product, finished while they are near


@kernel
def linear_forward(x, w, b, activation, out):
    """out = f(x·wᵀ + b). b of size 0: none."""
    x, columns, out = loose(x), loose(w.T), loose(out)
    if in_panels(out):
        panels = pack(columns, len(x))
        for lo in range(0, len(x), ROWS):
            part = out[lo : lo + ROWS]
            multiply(x[lo : lo + ROWS], columns, panels, part, False)
            add_bias_activate(part, b, activation)
    else:
        gemm(x, columns, out, False)
        add_bias_activate(out, b, activation)


@kernel
def add_bias_activate(z, b, activation):
    """z = f(z + b) in place: (B, O), (O,) or (0,)."""
    zero, one = z.dtype.type(0), z.dtype.type(1)
    for r in range(z.shape[0]):
        zr = row(z, r)
        if b.shape[0]:
            for j in range(zr.shape[0]):
                zr[j] += b[j]
        if activation == RELU:
            for j in range(zr.shape[0]):
                zr[j] = zero if zr[j] <= zero else zr[j]
        elif activation == SIGMOID:
            for j in range(zr.shape[0]):
                small = math.exp(-abs(zr[j]))
                zr[j] = (one if zr[j] >= zero else small) / (one + small)
        elif activation == TANH:
            for j in range(zr.shape[0]):
                zr[j] = math.tanh(zr[j])


@kernel
def activation_backward(y, activation, g):
    """g = g·f'(z) in place, the slope from y = f(z): (B, O) twice."""
    zero, one = g.dtype.type(0), g.dtype.type(1)
    for r in range(g.shape[0]):
        yr, gr = row(y, r), row(g, r)
        if activation == RELU:
            for j in range(gr.shape[0]):
                v = gr[j]  # read in any case, so that there is no branch
                gr[j] = v if yr[j] > zero else zero
        elif activation == SIGMOID:
            for j in range(gr.shape[0]):
                gr[j] *= yr[j] * (one - yr[j])
        elif activation == TANH:
            for j in range(gr.shape[0]):
                gr[j] *= one - yr[j] * yr[j]


@kernel
def linear_backward_input(g, w, y, activation, accumulate, out):
    """out = (g·w)·f'(z): the gradient of the layer's input, which was y = f(z); (B, O), (O, I) -> (B, I).

    So the activation before the layer is passed on the way; IDENTITY: y is not read. accumulate: added to
    what `out` holds before the slope is applied, where several layers read the same input.
    """
    g, w, y, out = loose(g), loose(w), loose(y), loose(out)
    if in_panels(out):
        panels = pack(w, len(g))
        for lo in range(0, len(g), ROWS):
            part = out[lo : lo + ROWS]
            multiply(g[lo : lo + ROWS], w, panels, part, accumulate)
            if activation != IDENTITY:
                activation_backward(y[lo : lo + ROWS], activation, part)
    else:
        gemm(g, w, out, accumulate)
        if activation != IDENTITY:
            activation_backward(y, activation, out)


@kernel
def linear_backward_weight(g, x, accumulate, gw, gb):
    """gw = gᵀ·x, gb = Σ g over rows; added to if `accumulate`: -> (O, I), (O,). gb of size 0: none."""
    gemm(loose(g.T), loose(x), loose(gw), accumulate)
    if gb.shape[0]:
        if not accumulate:
            gb[:] = 0
        for r in range(g.shape[0]):
            gr = row(g, r)
            for j in range(gb.shape[0]):
                gb[j] += gr[j]
