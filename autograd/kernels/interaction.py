"""The pairwise dot product of fields, and the matrix form of its gradient: one pass over the samples each."""

from __future__ import annotations

from tesserec.autograd.kernels.jit import dot_kernel, kernel


@dot_kernel
def pairwise_dot(x, out):
    """out[b] = x[b, i]·x[b, j] for i < j in row-major order: (B, N, D) -> (B, N(N-1)/2)."""
    B, N, D = x.shape
    for b in range(B):
        sample, row = x[b], out[b]
        k = 0
        for i in range(N - 1):
            xi = sample[i]
            for j in range(i + 1, N):
                xj = sample[j]
                dot = x.dtype.type(0)
                for d in range(D):
                    dot += xi[d] * xj[d]
                row[k] = dot
                k += 1


@kernel
def symmetric(pairs, out):
    """out[b, i, j] = out[b, j, i] = pairs[b, (i, j)], and 0 for i = j: (B, N(N-1)/2) -> (B, N, N)."""
    B, N, _ = out.shape
    for b in range(B):
        row, matrix = pairs[b], out[b]
        k = 0
        for i in range(N):
            matrix[i, i] = 0
            for j in range(i + 1, N):
                v = row[k]
                matrix[i, j] = v
                matrix[j, i] = v
                k += 1
