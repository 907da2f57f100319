"""Raw logs → encoded Parquet → training batches. Import from the modules; they load numba and Arrow when needed."""
