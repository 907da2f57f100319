"""Kernel times of a device that nobody has measured, from the numbers of its data sheet.

Every kernel is taken for one that moves memory: bytes / bandwidth, and a start. Times are those of one rank,
while all `sharing` ranks of a host do the same on its cpu.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tesserec.sharding.planner.grids import LINE, Curve, Kernels

if TYPE_CHECKING:
    from tesserec.sharding.planner.topology import Device

WIDTHS = (16, 256)  # between and beyond them all is linear
SIZES = tuple(2.0**k for k in range(14, 41))
SORT_BYTES = 16  # of memory traffic per id and pass, for grouping ids by row: 8 bytes, in and out


def kernels_of(device: Device, sharing: int) -> Kernels:
    """The grids that `device` would have by its data sheet."""
    byte = sharing / device.tiers[0].bandwidth  # seconds of one that is moved in order
    near = sharing / (device.caches[0].bandwidth if device.caches else device.tiers[0].bandwidth)
    line = {w: max(1.0, w * 4 / LINE) * LINE for w in WIDTHS}  # bytes of a float32 row
    lookup = {w: _rows(device, sharing, line[w]) for w in WIDTHS}
    half = {w: _rows(device, sharing, max(LINE, line[w] / 2)) for w in WIDTHS}
    states = {"sgd": dict.fromkeys(WIDTHS, 0.0), "rowwise_adagrad": dict.fromkeys(WIDTHS, 2 * LINE * near)}
    states |= {"adagrad": {w: 2 * line[w] * near for w in WIDTHS}}
    states |= {"adam": {w: 4 * line[w] * near for w in WIDTHS}}
    return Kernels(
        sharing,
        max(1, device.threads // sharing),
        {"float32": lookup, "float16": half},
        {kind: dict.fromkeys(WIDTHS, 0.0) for kind in ("float32", "float16")},
        Curve((0.0, 1.0), (byte, byte)),
        {w: Curve((0.0, 1.0), (line[w] * byte, line[w] * byte)) for w in WIDTHS},
        {w: Curve(c.sizes, tuple(2 * s for s in c.seconds)) for w, c in lookup.items()},
        states,
        dict.fromkeys(WIDTHS, 0.0),
        _single(device, sharing, byte),
    )


def _rows(device: Device, sharing: int, moved: float) -> Curve:
    """Seconds of a row of which `moved` bytes are moved, by the bytes that uniform ids go to."""
    tier = device.tiers[0]
    at = np.full(len(SIZES), moved / (tier.bandwidth * device.row_share) + tier.latency)
    for i, cache in reversed(list(enumerate(device.caches))):
        shared = sharing if i == len(device.caches) - 1 else 1  # the last one, by all ranks
        at[np.array(SIZES) <= cache.bytes / shared] = moved / cache.bandwidth
    return Curve(SIZES, tuple((over(SIZES, at) * sharing).tolist()))


def over(sizes: tuple[float, ...], at: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What uniform reads of `sizes` bytes take, if one at a reuse distance up to sizes[i] takes at[i]."""
    steps = np.diff(sizes, prepend=0.0)
    taken: npt.NDArray[np.float64] = np.cumsum(at * steps) / np.array(sizes)
    return taken


def _single(device: Device, sharing: int, byte: float) -> dict[str, float]:
    """Bytes moved for one of each; `ids` … are starts of kernels."""
    start = device.launch
    free = (
        "bag_pass",
        "bag_vector",
        "run",
        "gradient_pass",
        "row_pass",
        "sort_skew",
        "vectors_id",
        "grads_id",
    )
    moved = {**dict.fromkeys(free, 0), "bag": 8, "sort_id": 8, "sort_pass": SORT_BYTES, "sort_bag": 16}
    moved |= {"ids_wire": 64, "ids_id": 32, "ids_bag": 24}
    moved |= {"vectors_wire": 64, "vectors_bag": 8, "vectors_number": 12}
    moved |= {"grads_wire": 64, "grads_bag": 8, "grads_number": 8}
    moved |= {"dense_0": 12, "dense_1": 20, "dense_2": 28, "slice_copy": 8, "slice_sum": 4}
    moved |= {"codec_fp16": 6, "codec_bf16": 6, "codec_int8": 5}
    moved |= {"read_row": 16, "read_id": 16, "read_column": 16}
    starts = dict.fromkeys(("lookup", "update", "sort", "ids", "vectors", "grads", "read"), start)
    threads = max(1, device.threads // sharing)
    flop = {"flop": sharing * threads / (device.flops * device.flop_share)}
    return {name: number * byte for name, number in moved.items()} | starts | flop
