"""Raw logs → encoded Parquet → training batches. Import from the modules, which load numba when needed."""
