"""Which version answers a request: by a hash of its key, so that one key always meets the same version."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence

_WIDTH = 2.0**64


def choose(key: str | None, shares: Sequence[tuple[str, float]]) -> int:
    """The position of the (label, share) that `key` belongs to; without a key, drawn by the shares.

    Raising one share moves keys to its label and moves no others (weighted rendezvous hashing: Schindelhauer
    and Schomaker, "Weighted distributed hash tables", 2005). Shares are above 0; their sum does not matter.
    """
    if key is None:
        return random.choices(range(len(shares)), [share for _, share in shares])[0]
    distances = [-math.log(unit(label, key)) / share for label, share in shares]
    return distances.index(min(distances))


def falls_within(label: str, key: str | None, percent: float) -> bool:
    """Whether `key` is among the `percent` of keys that `label` takes; without a key, by chance."""
    return 100 * (random.random() if key is None else unit(label, key)) <= percent


def unit(label: str, key: str) -> float:
    """A number in (0, 1], as if drawn uniformly: always the same for one label and key, on any machine."""
    text = f"{label}\0{key}".encode(errors="surrogatepass")
    return (int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) + 0.5) / _WIDTH
