"""Memory: the bytes that a rank needs at once for its pieces, its part of a batch, and the dense model.

As the engine allocates them; the most at one time is while gradients go back and rows are updated. By part:

rows         height · width · item of every piece
state        height · (element slots · width + row slots) · 4, of the row optimizer
input        ids of the rank's batch as they were read, 8 bytes each, and 8 for each bag; ids that arrived, in
             their message and as 4-byte numbers, 8 for each of their bags; two arrays of 8 bytes for each
             (row, gradient) pair to sort, and 16 for each bag
output       vectors of the rank's batch, their gradients; those that were sent to it, and those it packs;
             what replicas, or holders of other columns, are told and tell
activations  what forward keeps of the slices that are being computed, one for each thread
pipeline     what has arrived of the next batch's ids; decoded rows, and the batches that are made of them
dense        parameters, their optimizer's numbers, gradients of every slice, and their sum
reserve      the process without any table or batch: libraries, kernels, threads
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tesserec.sharding.planner.topology import Device, Topology
from tesserec.sharding.planner.traffic import Traffic
from tesserec.sharding.planner.workload import Workload

Numbers = npt.NDArray[np.float64]

PARTS = ("rows", "state", "input", "output", "activations", "pipeline", "dense", "reserve")
PART = {name: k for k, name in enumerate(PARTS)}
ON_TIER = [PART["rows"], PART["state"]]  # what lies in the tier of its table; the rest is in the first

# What reading takes, measured: times the bytes of a decoded buffer with its batches, and those of the next;
# beside them what Arrow's threads keep to themselves for each stream of lists. It varies by a tenth.
_BUFFER, _NEXT_BUFFER, _DECODERS = 1.63, 1.0, 30e6
_ID, _OFFSET, _NUMBER, _ENTRY, _SOURCE, _PLACE = 8, 8, 4, 16, 16, 4


def piece_bytes(traffic: Traffic) -> tuple[Numbers, Numbers]:
    """(n, M) bytes that each piece needs on every rank, and (n, M) what it needs on each holder on top."""
    pieces, asked, table = traffic.pieces, traffic.asked, traffic.pieces.table
    state = traffic.workload.optimizer.row_bytes(pieces.width, table.compute_bytes)
    everyone, holder = (np.zeros((len(pieces.rows), len(PARTS))) for _ in range(2))
    vectors = asked.bags * pieces.width * table.compute_bytes
    held = {
        "rows": pieces.height * pieces.width * table.item_bytes,
        "state": pieces.height * state,
        "input": _ENTRY * traffic.entries + _SOURCE * traffic.heard * asked.bags,
    }
    split = pieces.is_split & traffic.workload.optimizer.whole_rows
    columns = split * (2 * traffic.column_bytes + traffic.rows_updated * pieces.width * table.compute_bytes)
    told = (traffic.rows_touched + traffic.rows_told) * (pieces.width * table.compute_bytes + _ENTRY)
    everyone[:, PART["input"]] = everyone[:, PART["pipeline"]] = _PLACE * asked.bags
    everyone[:, PART["output"]] = vectors
    holder -= everyone * pieces.whole[:, None]  # who has all rows of a table asks nobody
    others = np.where(pieces.whole, traffic.heard - 1, traffic.heard)
    arrived = others * (asked.id_bytes + _NUMBER * asked.ids + _OFFSET * asked.bags)
    held |= {"pipeline": arrived, "output": others * vectors + told * traffic.summed + columns}
    held["input"] = held["input"] + arrived
    for name, amount in held.items():
        holder[:, PART[name]] += amount
    return everyone, holder


def base_bytes(workload: Workload, topology: Topology, kind: int) -> Numbers:
    """(M,) bytes of a rank on hosts of this kind, whatever the plan is."""
    device = topology.devices[topology.hosts[kind].device]
    samples, dense = workload.batch_size / topology.num_ranks, workload.dense
    found = np.zeros(len(PARTS))
    row = _read_bytes(workload)
    vectors = sum(table.vectors * table.dim * table.compute_bytes for table in workload.tables)
    found[PART["input"]] = samples * row
    found[PART["output"]] = 2 * samples * vectors
    running = min(samples, workload.slice_size * _threads(device, topology.hosts[kind].ranks))
    found[PART["activations"]] = running * dense.activation_bytes
    if workload.reads_data:
        found[PART["pipeline"]] = _read_ahead(workload, topology.num_ranks)
    found[PART["dense"]] = _dense_bytes(workload, samples, topology.num_ranks)
    found[PART["reserve"]] = device.process_bytes
    return found


def _read_bytes(workload: Workload) -> float:
    """Of a sample in a batch: ids, where bags are lists also their offsets, dense features and a label."""
    ids = sum(table.mean_length for table in workload.tables)
    offsets = _OFFSET * workload.num_features * (_lists(workload) > 0)
    return _ID * ids + offsets + 4 * (workload.dense.columns + 1)


def _lists(workload: Workload) -> int:
    """Features that have not one id in every sample."""
    return sum(f.lengths.values.tolist() != [1.0] for table in workload.tables for f in table.features)


def _read_ahead(workload: Workload, ranks: int) -> float:
    """Bytes of decoded buffers and of the batches that are gathered from them, the next ones among them.

    A buffer is decoded while the one before is used, if an epoch has more than one.
    """
    batch, lists = _read_bytes(workload), _lists(workload)
    decoded = batch - _OFFSET * workload.num_features * (lists > 0) + 4 * lists
    streams = workload.streams or ranks
    rest = (workload.epoch_rows / streams / workload.buffer_rows - 1) if workload.epoch_rows else 1.0
    rows = workload.buffer_rows * (_BUFFER + _NEXT_BUFFER * min(1.0, max(0.0, rest)))
    return max(1.0, streams / ranks) * (rows * (decoded + batch) + _DECODERS * (lists > 0))


def _dense_bytes(workload: Workload, samples: float, ranks: int) -> float:
    dense = workload.dense
    slices = max(1.0, np.ceil(samples / workload.slice_size))
    shards = ranks if dense.sharded else 1
    kept = dense.parameters * (dense.state_numbers + dense.sharded) / shards
    return float(4 * (dense.parameters * (1 + slices + (slices > 1)) + kept))


def _threads(device: Device, ranks: int) -> int:
    return max(1, device.threads // ranks) if device.kind == "cpu" else device.threads
