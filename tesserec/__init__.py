"""Tesserec: a sharded embedding-table engine for recommendation models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tesserec.autograd.compiler.model import compile

__version__ = "0.1.0"
__all__ = ["compile"]


def __getattr__(name: str) -> Any:
    """`compile` comes with numba, which takes a second: import it when it is asked for."""
    if name != "compile":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tesserec.autograd.compiler.model import compile

    return compile
