"""The Numba kernels of the planner: loops over arrays, nothing else."""
