"""The pairwise dot product of fields, and the matrix form of its gradient: one pass over the samples each."""

from __future__ import annotations

from numba import njit

from tesserec.autograd.kernels.jit import kernel


# The one exception to "no fast-math": a dot product is summed in vector lanes. Which lanes is settled when the kernel
# is compiled, so the bits depend on the processor, as those of BLAS do, but never on threads or on the batch.
@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})
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
