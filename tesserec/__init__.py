"""Tesserec: a sharded embedding-table engine for recommendation models."""

__version__ = "0.1.0"
