"""Numbers with units in files: "80 GB", "450 GB/s", "20 us", "989 TFLOP/s".

A field annotated with one of these types takes a plain number, in the unit named, or text with a unit.
Prefixes are decimal (GB = 10⁹ bytes) or binary (GiB = 2³⁰); "b" is a byte too: write 400 Gbit/s for bits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt

DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
BINARY = {f"{prefix}i": 1024.0**k for k, prefix in enumerate("KMGTP", 1)}
NUMBER = re.compile(r"\s*([-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(.*?)\s*")


@dataclass(frozen=True, eq=False)  # types are hashed, and mappings cannot be
class Unit:
    """How text becomes a number. symbols: {what may stand behind the number: its factor}."""

    name: str
    example: str
    symbols: Mapping[str, float]

    def parse(self, value: Any) -> Any:
        """`value`, or the number that it is the text of. ValueError for another unit."""
        if not isinstance(value, str):
            return value
        found = NUMBER.fullmatch(value)
        if found is None or found[2] not in self.symbols:
            raise ValueError(f"got {value!r}, wanted {self.name}, for example {self.example}")
        return float(found[1].replace("_", "")) * self.symbols[found[2]]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        """For pydantic, which calls `parse` first; this package does without it."""
        function = {"type": "no-info", "function": self.parse}
        return {"type": "function-before", "function": function, "schema": handler(source)}


def _bytes(ending: str) -> dict[str, float]:
    sizes = {f"{p}{b}{ending}": f for p, f in (DECIMAL | BINARY).items() for b in ("B", "b")}
    return sizes | {f"{p}bit{ending}": f / 8 for p, f in DECIMAL.items()}


BYTES = Unit("bytes", "'80 GB'", {"": 1.0} | _bytes(""))
SPEED = Unit("bytes per second", "'450 GB/s'", {"": 1.0} | _bytes("/s") | _bytes("ps"))
TIME = Unit("seconds", "'20 us'", {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9})
FLOPS = Unit(
    "operations per second",
    "'495 TFLOP/s'",
    {"": 1.0} | {f"{p}{w}": f for p, f in DECIMAL.items() for w in ("FLOP/s", "FLOPS", "flop/s")},
)

Bytes = Annotated[float, Gt(0), BYTES]
SomeBytes = Annotated[float, Ge(0), BYTES]  # perhaps none
Bandwidth = Annotated[float, Gt(0), SPEED]
Seconds = Annotated[float, Ge(0), TIME]
Flops = Annotated[float, Gt(0), FLOPS]


def in_bytes(number: float) -> str:
    """12.3 GB."""
    return scaled(number, "B")


def in_seconds(seconds: float) -> str:
    """12.3 ms."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def scaled(number: float, unit: str, digits: int = 4) -> str:
    """`number` with a decimal prefix: 450 GB/s."""
    prefix = next((p for p, f in reversed(DECIMAL.items()) if p != "k" and number >= f), "")
    return f"{number / DECIMAL[prefix]:.{digits}g} {prefix}{unit}"
