"""Grids: what was measured of the kernels of a device, as a file holds it. `Speeds` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt

STRICT = {"extra": "forbid", "allow_inf_nan": False}
Some = Annotated[float, Ge(0)]
LINE = 64  # bytes: what memory moves at least


class TopologyError(ValueError):
    """A topology that cannot be. args: the message, then the path of the key that is wrong."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Curve:
    """Measured seconds at rising sizes, in bytes."""

    sizes: tuple[Some, ...]
    seconds: tuple[Some, ...]

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.seconds) or len(self.sizes) < 2 or not np.all(np.diff(self.sizes) > 0):
            raise TopologyError("a curve wants at least two rising sizes, and seconds for each")


@dataclass(frozen=True)
class Kernels:
    """Seconds of kernels on one rank with `threads` threads, while `ranks` in all do the same.

    lookup:   {data type: {width: of a row, by how many bytes ago uniform ids read it, at most}}.
    cached:   {data type: {width: of a row in the cache}}, also of widths that are no multiple of a line.
    output:   of a byte that a lookup writes, by the bytes of its output.
    gradient: {width: of an id's gradient that is added to its row's, by the bytes of all gradients}.
    update:   {width: of a row that SGD updates, by the same}.
    rules:    {optimizer: {width: of a row on top of SGD, with its state, in the cache}}.
    half:     {width: of a float16 row that is updated, on top of a float32 one}.
    single:   of one thing each, by name: see `Speeds`.
    tail:     of a row of 20 float32, whose last four are a tail to kernels, by the same.
    """

    ranks: Annotated[int, Gt(0)]
    threads: Annotated[int, Gt(0)]
    lookup: Mapping[str, Mapping[int, Curve]]
    cached: Mapping[str, Mapping[int, Some]]
    output: Curve
    gradient: Mapping[int, Curve]
    update: Mapping[int, Curve]
    rules: Mapping[str, Mapping[int, Some]]
    half: Mapping[int, Some]
    single: Mapping[str, Some]
    tail: Curve | None = None

    __pydantic_config__ = STRICT
