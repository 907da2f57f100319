"""The outcome of planning as one JSON document: what `--json` prints, the report draws and the summary tells.

Plain values only: numbers in seconds and bytes, lists by rank, names as in plans. Whoever shows it computes
nothing about plans; whoever plans knows nothing about pictures.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

FORMAT = "tesserec plan report"
VERSION = 1
PIECES = 20_000  # rectangles that are listed one by one; of larger plans each table only says how many

Outcome = Literal["planned", "infeasible", "compared"]


class Document(TypedDict):
    """Everything. Sections that an outcome does not have are absent.

    planned: all but `infeasible`; infeasible: `workload`, `topology`, `tables` (no kind, pieces or seconds)
    and `infeasible`; compared: what `tesserec plan compare` adds is `comparison`.
    """

    format: str
    version: int
    outcome: Outcome
    title: str  # name of the config or workload file
    made: str  # ISO date and time, UTC
    tesserec: str  # version
    notes: list[str]  # what the reader must know: where frequencies came from, how old the calibration is, …
    workload: WorkloadPart
    topology: TopologyPart
    tables: list[TablePart]  # largest first
    step: NotRequired[StepPart]
    ranks: NotRequired[RanksPart]
    search: NotRequired[SearchPart]
    sensitivity: NotRequired[list[Variation]]
    moves: NotRequired[MovesPart]  # with --fix, and in diffs
    infeasible: NotRequired[Infeasible]
    comparison: NotRequired[Comparison]


class WorkloadPart(TypedDict):
    source: str  # path of the config or workload file
    batch_size: int  # of all ranks
    num_tables: int
    rows: int
    table_bytes: int  # rows of all tables, once
    ids: float  # of a sample, all features
    optimizer: str
    forward: str  # codec of vectors on the wire
    backward: str
    dense_parameters: int
    dense_flops: float  # forward, a sample
    statistics: str  # in words: where lengths and frequencies came from
    fingerprint: str


class TopologyPart(TypedDict):
    name: str
    source: str  # path, or the preset's name
    num_ranks: int
    hosts: list[int]  # host of each rank
    devices: list[str]  # device of each rank
    tiers: list[TierPart]  # fastest first


class TierPart(TypedDict):
    name: str  # "hbm", "dram", "ssd"
    limit_bytes: list[float]  # by rank: what may be used
    used_bytes: list[float]  # by rank; [] without a plan


class StepPart(TypedDict):
    seconds: float
    samples_per_second: float
    bound: str  # in words: "compute of rank 1 (64 % of the step)"
    path: list[Phase]  # the critical path, in order; sums to `seconds`


class Phase(TypedDict):
    name: str  # a stage, or stages that overlap: "look_up", "input_dist", "row_grads", …
    seconds: float
    bound: str  # who everybody waits for: "rank 3", "link between hosts"


class RanksPart(TypedDict):
    """stages, memory: by rank, stacked they are the bars. traffic: bytes of a step that rank i sends to j.

    Above 64 ranks traffic is (hosts, hosts) and `traffic_of` says so.
    """

    stages: dict[str, list[float]]  # seconds
    memory: dict[str, list[float]]  # bytes: rows, state, input, output, activations, pipeline, dense, reserve
    traffic: list[list[float]]
    traffic_of: Literal["ranks", "hosts"]


class TablePart(TypedDict):
    name: str
    rows: int
    dim: int
    data_type: str
    table_bytes: int
    features: list[str]
    ids: float  # of a sample
    curve: Curve  # how skewed its reads are
    kind: NotRequired[str]  # "row_wise", "hot_cold", … as in placement.KINDS
    words: NotRequired[str]  # the placement in a few words: "rows over 8 ranks, 5,000 hot rows on all"
    tier: NotRequired[str]
    ranks: NotRequired[list[int]]  # that hold any of it, rising
    num_pieces: NotRequired[int]
    pieces: NotRequired[list[Piece]]  # [] where the plan has more than PIECES in all
    stages: NotRequired[dict[str, float]]  # seconds summed over ranks
    seconds: NotRequired[float]  # of the busiest rank, all stages
    memory_bytes: NotRequired[float]  # rows and state, all ranks
    sent_bytes: NotRequired[float]  # of a step, both ways, between ranks
    imbalance: NotRequired[float]  # busiest rank's ids / mean of those that hold it
    hits: NotRequired[float | None]  # share of reads that the fastest tier or cache answers
    alternatives: NotRequired[list[Alternative]]  # best first; [0] is the chosen one


class Curve(TypedDict):
    """Share of the ids that go to so many hottest rows; both rising, at most 64 points, from (0, 0)."""

    rows: list[float]
    share: list[float]
    ordered: bool  # whether the hottest rows lie first


class Piece(TypedDict):
    rows: tuple[int, int]
    cols: tuple[int, int]
    ranks: list[int]


class Alternative(TypedDict):
    kind: str
    words: str
    chosen: bool
    step_seconds: float | None  # of the whole step with this swapped in; None where it cannot be
    memory_bytes: float  # rows and state of this table, all ranks
    fits: bool
    why: str  # why it lost: "0.8 ms slower: rank 3 would wait for 1.2 MB more", "rank 0 lacks 2.1 GB"


class SearchPart(TypedDict):
    seconds: float
    tried: int  # proposals, or plans looked at
    proposer: str  # who found the best
    stopped: Literal["done", "budget", "interrupted"]
    best_of: dict[str, float | None]  # {proposer: step seconds of its best; None: none fitted}
    bound_seconds: float | None  # no plan can be faster than this, where known


class Variation(TypedDict):
    """What if one thing were different: the same plan where it still applies, and a new one."""

    what: Literal["batch", "ranks", "bandwidth", "several"]
    label: str  # "batch 4,096", "4 ranks", "links × 2"
    factor: float  # to the planned case, which has its own line with factor 1
    samples_per_second_same: float | None
    samples_per_second_new: float | None
    step_seconds_same: float | None  # None: the plan cannot be used so
    step_seconds_new: float | None  # None: nothing fits
    note: str  # why a value is absent, else ""


class MovesPart(TypedDict):
    before: str  # path of the old plan
    bytes: float
    seconds: float
    moves: list[MovePart]  # most bytes first, at most 200
    num_moves: int
    step_seconds_before: float | None  # of the old plan, if it can still be used


class MovePart(TypedDict):
    table: str
    rows: tuple[int, int]
    cols: tuple[int, int]
    before: list[int]
    after: list[int]
    bytes: float


class Infeasible(TypedDict):
    """witness: rows of who lacks what where; ways_out: cheapest first, each of them tried."""

    message: str
    witness: list[Lack]
    ways_out: list[WayOut]


class Lack(TypedDict):
    where: str  # "tier hbm of rank 3", "all ranks together"
    needs_bytes: float
    has_bytes: float
    tables: list[str]  # who needs it, largest first


class WayOut(TypedDict):
    words: str  # "16 ranks instead of 8"
    option: str  # what to type, "" where it is no option of the command: "--ranks 16"
    step_seconds: float | None


class Comparison(TypedDict):
    """Estimate beside measurement; `measured` and `estimated` may be None where one side has no number."""

    run: str
    steps: int
    step: Beside
    stages: dict[str, list[Beside]]  # by rank, seconds
    memory: dict[str, list[Beside]]  # by rank, bytes
    sent_bytes: dict[str, list[Beside]]  # by stage and rank
    tables: dict[str, dict[str, Beside]]  # {table: {quantity: …}}


class Beside(TypedDict):
    estimated: float | None
    measured: float | None
