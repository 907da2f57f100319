"""Numbers as people read them, and short names for ranks and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

Unit = tuple[float, str]  # what a number is divided by, and what it is called then
BYTES: Sequence[Unit] = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB"), (1.0, "B"))
SECONDS: Sequence[Unit] = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
COUNTS: Sequence[Unit] = ((1e12, "T"), (1e9, "G"), (1e6, "M"))


def of_bytes(size: float | None) -> str:
    """`1.50 GB`; a dash for None."""
    return "–" if size is None else _in(size, unit_of(size, BYTES))


def of_seconds(time: float | None) -> str:
    """`12.3 ms`; a dash for None."""
    return "–" if time is None else _in(time, unit_of(time, SECONDS))


def of_count(number: float | None) -> str:
    """`12,345`, `1.23 M`, `4.06 G`; a dash for None."""
    if number is None:
        return "–"
    if abs(number) < 1e6:
        return significant(number) if number != int(number) else f"{int(number):,}"
    return _in(number, unit_of(number, COUNTS))


def of_share(share: float | None) -> str:
    """`64 %`, `0.3 %`; a dash for None."""
    return "–" if share is None else f"{significant(100 * share, 2)} %"


def of_change(change: float) -> str:
    """`+12 %`, `−0.3 %`; `0 %` for what nobody could tell."""
    if abs(change) < 5e-4:
        return "0 %"
    return ("−" if change < 0 else "+") + of_share(abs(change))


def significant(number: float, digits: int = 3) -> str:
    """So many digits, thousands set apart: `0.012`, `1.23`, `12.3`, `1,234`."""
    if number == 0:
        return "0"
    whole = len(str(int(abs(number)))) if abs(number) >= 1 else 0
    if whole:
        return f"{number:,.{max(0, digits - whole)}f}"
    return f"{number:.{digits}g}" if abs(number) >= 1e-4 else f"{number:.1e}"


def unit_of(largest: float, units: Sequence[Unit]) -> Unit:
    """The unit for numbers, or an axis of them, up to `largest`."""
    return next((unit for unit in units if largest >= unit[0]), units[-1])


def _in(number: float, unit: Unit) -> str:
    return f"{significant(number / unit[0])} {unit[1]}"


def plural(number: int, noun: str) -> str:
    """`1 rank`, `2 ranks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def spans(numbers: Iterable[int]) -> str:
    """`0–3, 7` of [0, 1, 2, 3, 7]."""
    ordered = sorted(set(numbers))
    if not ordered:
        return "–"
    breaks = [i for i, (a, b) in enumerate(pairwise(ordered), 1) if b != a + 1]
    runs = [ordered[lo:hi] for lo, hi in pairwise((0, *breaks, len(ordered)))]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


def of_ranks(ranks: Sequence[int], num_ranks: int) -> str:
    """`rank 3`, `ranks 0–7`, `all 8 ranks`; of many scattered ones how many."""
    if len(ranks) == num_ranks > 1:
        return f"all {num_ranks} ranks" if num_ranks > 2 else "both ranks"
    named = spans(ranks)
    if len(ranks) > 1 and len(named) > 24:
        return plural(len(ranks), "rank")
    return f"rank{'' if len(ranks) == 1 else 's'} {named}"


def common_prefix(names: Sequence[str]) -> str:
    """The dotted prefix that all names share and nobody needs to read: "inputs.sparse."."""
    if len(names) < 2:
        return ""
    parts = [name.split(".")[:-1] for name in names]
    shared = 0
    while all(len(p) > shared and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return "".join(f"{part}." for part in parts[0][:shared])


def of_kind(kind: str) -> str:
    """`row-wise` for `row_wise`."""
    return {"hot_cold": "hot/cold", "grid_shard": "grid"}.get(kind, kind.replace("_", "-"))


def spoken(name: str) -> str:
    """`look up` for `look_up`."""
    return name.replace("_", " ")
