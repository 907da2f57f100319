"""Ranges of work: how bags, rows and tables are shared out among threads."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

PIECES = 16  # at most; more than threads, so that a slow one does not keep the others waiting

Span = tuple[int, int]


def even_spans(total: int, least: int) -> list[Span]:
    """range(total) in up to `PIECES` consecutive (lo, hi) of one length, none shorter than about `least`."""
    return list(pairwise(even_bounds(total, least))) if total else []


def even_bounds(total: int, least: int) -> list[int]:
    """Where those begin, and `total`."""
    pieces = max(1, min(PIECES, total // least))
    return [total * k // pieces for k in range(pieces + 1)]


def weighted_spans(ends: npt.NDArray[np.int64], least: int) -> list[Span]:
    """Items whose weights end at `ends` (n,), cumulative, in consecutive (lo, hi) of about equal weight."""
    total = int(ends[-1]) if len(ends) else 0
    marks = [hi for _, hi in even_spans(total, least)]
    cuts = [0, *(np.searchsorted(ends, marks) + 1).tolist()]
    return [(lo, hi) for lo, hi in pairwise(cuts) if lo < hi]
