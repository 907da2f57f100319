"""What to measure, and what the grids of `Kernels` are, given what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tesserec.autograd import num_threads
from tesserec.sharding.planner import measure
from tesserec.sharding.planner.frequencies import Frequencies
from tesserec.sharding.planner.grids import Curve, Kernels
from tesserec.sharding.planner.measure import COLD, SKEW, STAGES, Memory, Point
from tesserec.sharding.planner.speeds import (
    TAIL_WIDTH,
    Speeds,
    passes_of,
    radix_passes,
    reuse,
    surprise,
    tasks_of,
)
from tesserec.sharding.planner.topology import Device, Tier

Numbers = npt.NDArray[np.float64]
Times = Mapping[Point, float]

TYPES = {"float32": 4, "float16": 2}
SETS = tuple(1 << k for k in (14, 16, 18, 20, 21, 22, 23, 24, 25, 26, 28, 30))  # bytes of rows looked up in
WIDTHS = (16, 32, 64, 128, 256)
CACHED_WIDTHS = (4, 8, 16, 24, 32, 40, 48, 64, 80, 96, 100, 112, 128, 200, 256)
CACHED = 1 << 15
SHORT, SHORT_WIDTHS = 4, (16, 64, 80, 112, 256)  # ids of a bag, where bags are what is measured
LENGTH = 16  # ids of a bag, where rows are what is measured
ELEMENTS = 1 << 20  # of rows in a timed lookup
MORE = 8  # times as many on several threads, beside which waking them is little
LEAST = 0.02  # of a time is left at least, whatever is subtracted: other processes may have slowed that more
FORKED = 64  # width of the rows of which a few are looked up too: to wake threads is most of that
OUTPUTS = tuple(1 << k for k in (15, 18, 20, 21, 22, 23, 24, 25, 26))  # bytes, of rows of 64
NARROW_BAGS = 1 << 14  # of rows of 4, where bags are what is measured

UPDATED_SETS = tuple(1 << k for k in (19, 20, 21, 22, 23, 24, 25, 26, 28))
UPDATED_WIDTHS = (16, 64, 256)
TWO_BLOCKS = 48  # a width that kernels cut into two blocks
UPDATED = 1 << 14  # ids of a timed update
FEWEST = 8192  # rows of a table whose updates are measured: with fewer, most ids meet in some row
GRADIENTS = tuple(1 << k for k in (15, 17, 19, 20, 21, 22, 23, 24, 25))  # bytes
GRADIENT_ROWS, GRADIENT_IDS = 256, 1 << 15
AT_ONCE = 1 << 20  # bytes of gradients while updates are measured
RULES = ("sgd", "rowwise_adagrad", "adagrad", "adam")
RULE_SET = 1 << 22

SORTED: tuple[tuple[int, int, int], ...] = (  # rows, ids, ids of a bag
    (1000, 1 << 14, 1),
    (1000, 1 << 15, 16),
    (100_000, 1 << 15, 1),
    (4_000_000, 1 << 15, 1),
    (100_000, 1 << 14, 4),
    (16_000_000, 1 << 15, 1),
    (16_000_000, 1 << 15, 16),
    (4_000_000, 1 << 13, 4),
)
SKEWED = (1_000_000, 1 << 15, 4)
HOT_ROWS, HOT_WIDTH, HOT_BAGS = 1 << 20, 32, 1 << 11  # a lookup of skewed ids
DRIFTS = (0.0, *(float(1 << k) for k in range(3, 13)))  # bytes an id
STAGED: tuple[tuple[int, int, int, int], ...] = (  # tables, samples, ids of a bag, width
    (1, 8, 1, 16),
    (32, 8, 1, 16),
    (8, 2048, 1, 16),
    (8, 2048, 8, 16),
    (8, 2048, 1, 64),
    (26, 1024, 1, 64),
    (8, 1024, 4, 64),
    (1, 4096, 4, 128),
    (4, 256, 2, 32),
    (26, 512, 4, 16),
)
DENSE = {"sgd": 0, "adagrad": 1, "adam": 2}  # optimizer: numbers of state
DENSE_SIZE, SLICES = 1 << 19, 4
GEMM = (512, 512, 256)
CODED = (4096, 64)
CODECS = ("fp16", "bf16", "int8")
MESSAGES = (8, 1_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)


def points(memory: Memory) -> dict[Point, Any]:
    """{point: its timer} of all that is measured of kernels, on `num_threads()` threads."""
    found: dict[Point, Any] = {("nothing", "lookup"): measure.Lookup(memory, 1024, 16, "float32", 8, 1)}
    found["nothing", "update"] = measure.Update(memory, "sgd", 1024, 16, "float32", 8, 1)
    found |= _lookups(memory) | _updates(memory)
    for rows, bags, length in SORTED:
        found["sort", rows, bags, length] = measure.Sort(
            memory, min(rows, memory.size // 64), 16, "float32", bags // length, length
        )
    rows, ids, length = SKEWED
    bags = HOT_BAGS * more(num_threads())
    hot = min(HOT_ROWS, memory.size // (4 * HOT_WIDTH)), HOT_WIDTH, "float32", bags, LENGTH
    found["hot",] = measure.Lookup(memory, *hot, skewed=True)
    for kind in ("even", "skewed"):
        found[kind, *SKEWED] = measure.Sort(
            memory, rows, 16, "float32", ids // length, length, kind == "skewed"
        )
    for shape in STAGED:
        for stage in STAGES:
            found["stage", stage, *shape] = measure.Stage(stage, *shape)
    for name in DENSE:
        found["dense", name] = measure.dense_update(name, DENSE_SIZE)
    for slices in (1, SLICES):
        found["slices", slices] = measure.slice_sums(slices, DENSE_SIZE >> 2)
    found["gemm",] = measure.matrix_products(*GEMM)
    for name in CODECS:
        found["codec", name] = measure.coded(name, *CODED)
    return found


def _lookups(memory: Memory) -> dict[Point, Any]:
    found: dict[Point, Any] = {}
    sets = [size for size in SETS if size <= memory.size]
    cases = [(t, d, size) for t in TYPES for d in WIDTHS for size in sets]
    cases += [(t, d, CACHED) for t in TYPES for d in CACHED_WIDTHS]
    cases += [("float32", TAIL_WIDTH, size) for size in sets]
    threads = num_threads()
    for data_type, width, size in cases:
        bags = lookup_bags(width, threads)
        rows = max(LENGTH, size // (width * TYPES[data_type]))
        found["lookup", data_type, width, size] = measure.Lookup(memory, rows, width, data_type, bags, LENGTH)
    for width in SHORT_WIDTHS:
        bags, rows = lookup_bags(width, threads) * LENGTH // SHORT, CACHED // (4 * width)
        found["short", width] = measure.Lookup(memory, rows, width, "float32", bags, SHORT)
    for size in OUTPUTS:
        found["output", size] = measure.Lookup(memory, 64, 64, "float32", size // 256, 1)
    found["output", 0] = measure.Lookup(memory, 64, 4, "float32", NARROW_BAGS * more(threads), 1)
    rows, bags = CACHED // (4 * FORKED), lookup_bags(FORKED, threads) // more(threads)
    found["fork",] = measure.Lookup(memory, rows, FORKED, "float32", bags, LENGTH)
    return found


def more(threads: int) -> int:
    """Times as many elements of rows are looked up on so many threads."""
    return MORE if threads > 1 else 1


def lookup_bags(width: int, threads: int) -> int:
    """Bags of a timed lookup."""
    return more(threads) * max(64, min(4096, ELEMENTS // width // LENGTH))


def _updates(memory: Memory) -> dict[Point, Any]:
    found: dict[Point, Any] = {}
    for width in UPDATED_WIDTHS:
        for size in GRADIENTS:
            bags, length = gradient_bags(width, size)
            found["gradient", width, size] = measure.Update(
                memory, "sgd", GRADIENT_ROWS, width, "float32", bags, length
            )
        bags = min(UPDATED, AT_ONCE // (4 * width))
        for size in updated_sets(width, memory.size):
            given = size // (4 * width), width, "float32", bags, UPDATED // bags
            found["update", "sgd", width, size] = measure.Update(memory, "sgd", *given)
        rows = max(FEWEST, RULE_SET // (4 * width))
        for rule in RULES:
            given = rows, width, "float32", bags, UPDATED // bags
            found["rule", rule, width] = measure.Update(memory, rule, *given)
        given = rows, width, "float16", bags, UPDATED // bags
        found["half", width] = measure.Update(memory, "sgd", *given)
    bags, length = gradient_bags(TWO_BLOCKS, AT_ONCE)
    rows = RULE_SET // (4 * TWO_BLOCKS)
    for kind, shape in (("gradient", (GRADIENT_ROWS, bags, length)), ("row", (rows, bags, UPDATED // bags))):
        found["two", kind] = measure.Update(
            memory, "sgd", shape[0], TWO_BLOCKS, "float32", shape[1], shape[2]
        )
    return found


def gradient_bags(width: int, size: int) -> tuple[int, int]:
    """(bags, ids of each) so that their gradients have `size` bytes."""
    bags = size // (4 * width)
    return bags, max(1, GRADIENT_IDS // bags)


def updated_sets(width: int, most: int) -> list[int]:
    """Bytes of rows that updates of this width are measured for."""
    return [size for size in UPDATED_SETS if FEWEST * 4 * width <= size <= most >> 2]


def kernels(times: Times, ranks: int, threads: int) -> Kernels:
    """The grids, of what was measured."""
    calls = {name: times["nothing", name] for name in ("lookup", "update")}
    fork = _fork(times, calls["lookup"], threads)
    bag, output = _output(times, calls["lookup"] + fork, threads)
    bags = {"bag": bag, **_bags(times, output, threads)}
    rows = _rows(times, calls["lookup"] + fork, bags, output, threads)
    gradient = _gradient(times, calls["update"])
    update, run = _update(times, calls["update"], gradient)
    cached = {t: {d: _rounded(rows[t, d, CACHED]) for d in CACHED_WIDTHS} for t in TYPES}
    sets = sorted({key[3] for key in times if key[0] == "lookup" and key[3] != CACHED})

    def curve(data_type: str, width: int) -> Curve:
        reached = [looked_up_reach(width, TYPES[data_type], size, threads) for size in sets]
        return _curve(reached, [rows[data_type, width, size] for size in sets])

    lookup = {t: {d: curve(t, d) for d in WIDTHS} for t in TYPES}
    tail = curve("float32", TAIL_WIDTH)
    single = {**calls, "fork": fork, **bags, "run": run, **_sort(times)}
    single |= _rest(times, cached["float32"], fork)
    single |= _two_blocks(times, calls["update"], gradient, update)
    made = Kernels(
        ranks,
        threads,
        lookup,
        cached,
        output,
        gradient,
        update,
        _rules(times),
        {d: _extra(times, ("half", d), d) for d in UPDATED_WIDTHS},
        {name: _rounded(value) for name, value in single.items()},
        tail,
    )
    return replace(made, single={**made.single, "drift": _drift(made, times["hot",])})


def _drift(made: Kernels, taken: float) -> float:
    """What explains the lookup of skewed ids: see `reuse`. Of `DRIFTS`, the one that comes nearest."""
    device = Device("cpu", (Tier("dram", 1e9, 1e9),), 1e9, threads=made.threads * made.ranks, kernels=(made,))
    speeds, bags = Speeds(device, made.ranks), HOT_BAGS * more(made.threads)
    frequencies = Frequencies.zipf(HOT_ROWS, SKEW, ordered=False)

    def missed(drift: float) -> float:
        depth = reuse(frequencies, 4.0 * HOT_WIDTH, bags * LENGTH, COLD, drift)
        return abs(float(speeds.lookup(bags * LENGTH, bags, HOT_WIDTH, 4, depth)) - taken)

    return min(DRIFTS, key=missed)


def looked_up_reach(width: int, item_bytes: int, size: float, threads: int) -> float:
    """How far apart two lookups of a row are, at most, in a table of `size` bytes."""
    bags = lookup_bags(width, threads)
    beside = COLD + 4.0 * bags * width + 8.0 * bags * LENGTH
    return reach(size, float(bags * LENGTH * width * item_bytes), beside)


def reach(size: float, own: float, beside: float) -> float:
    """Bytes between two reads of a row of a table of `size`, at most. A call reads `own`, and `beside`."""
    return size * (1 + beside / own) if size > own else size


def _bags(times: Times, output: Curve, threads: int) -> dict[str, float]:
    """What a bag of several ids takes by itself, for each pass of the kernel and each vector."""
    terms, taken = [], []
    for width in SHORT_WIDTHS:
        long = lookup_bags(width, threads)
        many = long * LENGTH // SHORT
        written = [n * 4 * width * _at(output, n * 4 * width) for n in (long, many)]
        short = times["short", width] - written[1]
        spent = short - (times["lookup", "float32", width, CACHED] - written[0])
        terms.append(((many - long) * passes_of(width), (many - long) * (width // 16.0)))
        taken.append(max(spent, LEAST * times["short", width]))
    return fitted(("bag_pass", "bag_vector"), terms, taken)


def _two_blocks(
    times: Times, call: float, gradient: Mapping[int, Curve], update: Mapping[int, Curve]
) -> dict[str, float]:
    """What a further block costs an id's gradient, and a row, that is updated."""
    share = (TWO_BLOCKS - 16) / (64 - 16)

    def between(curves: Mapping[int, Curve], size: float) -> float:
        return (1 - share) * _at(curves[16], size) + share * _at(curves[64], size)

    bags, length = gradient_bags(TWO_BLOCKS, AT_ONCE)
    each = (times["two", "gradient"] - call) / (bags * length)
    further = max(0.0, each - between(gradient, AT_ONCE))
    distinct = drawn(RULE_SET // (4 * TWO_BLOCKS), bags * (UPDATED // bags))
    spent = times["two", "row"] - call - bags * (UPDATED // bags) * each
    return {"gradient_pass": further, "row_pass": max(0.0, spent / distinct - between(update, RULE_SET))}


def _at(curve: Curve, size: float) -> float:
    return float(np.interp(size, curve.sizes, curve.seconds))


def _fork(times: Times, call: float, threads: int) -> float:
    """What several threads take to be woken: of a lookup, and one `MORE` times as large, what both have."""
    if threads == 1:
        return 0.0
    both = (MORE * times["fork",] - times["lookup", "float32", FORKED, CACHED]) / (MORE - 1)
    return max(0.0, both - call)


def _output(times: Times, call: float, threads: int) -> tuple[float, Curve]:
    """(seconds of a bag, of a byte written by the bytes of the output)."""
    bags = NARROW_BAGS * more(threads)
    narrow = (times["lookup", "float32", 4, CACHED] - call) / (lookup_bags(4, threads) * LENGTH)
    bag = max(0.0, (times["output", 0] - call) / bags - narrow)
    row = (times["lookup", "float32", 64, CACHED] - call) / (lookup_bags(64, threads) * LENGTH)
    # what is one task tells nothing of several threads
    sizes = [size for size in OUTPUTS if threads == 1 or tasks_of(size >> 2) > 1]
    costs = [max(0.0, ((times["output", size] - call) / (size >> 8) - row - bag) / 256) for size in sizes]
    return _rounded(bag), _curve(sizes, np.maximum.accumulate(costs))


def _rows(
    times: Times, call: float, price: Mapping[str, float], output: Curve, threads: int
) -> dict[Point, float]:
    """{(data type, width, working set): seconds of a row}, without what its bag costs."""
    found = {}
    for key, taken in times.items():
        if key[0] == "lookup":
            bags, width = lookup_bags(key[2], threads), key[2]
            written = bags * 4 * width * _at(output, bags * 4 * width)
            bag = price["bag"] + passes_of(width) * price["bag_pass"] + width // 16 * price["bag_vector"]
            spent = taken - call - bags * bag - written
            found[key[1:]] = max(spent, 0.3 * (taken - call), LEAST * taken) / (bags * LENGTH)
    return found


def _gradient(times: Times, call: float) -> dict[int, Curve]:
    found = {}
    for width in UPDATED_WIDTHS:
        ids = [int(np.prod(gradient_bags(width, size))) for size in GRADIENTS]
        calls = [times["gradient", width, size] for size in GRADIENTS]
        taken = [max(each - call, LEAST * each) for each in calls]
        found[width] = _curve(GRADIENTS, np.maximum.accumulate(np.array(taken) / ids))
    return found


def _update(times: Times, call: float, gradient: Mapping[int, Curve]) -> tuple[dict[int, Curve], float]:
    """(SGD's rows, what a row costs on top where the number of its ids cannot be foreseen)."""
    rows: dict[int, list[tuple[int, float, float]]] = {}
    for key, taken in times.items():
        if key[0] == "update":
            width, size = key[2:]
            distinct = drawn(size / (4 * width), UPDATED)
            ids = UPDATED * float(np.interp(AT_ONCE, gradient[width].sizes, gradient[width].seconds))
            share = surprise(UPDATED / distinct)
            rows.setdefault(width, []).append((size, max(0.0, taken - call - ids) / distinct, share))
    first, last = rows[UPDATED_WIDTHS[0]][0], rows[UPDATED_WIDTHS[0]][-1]
    run = max(0.0, (first[1] - last[1]) / (first[2] - last[2]))
    found = {}
    for width, lines in rows.items():
        seconds = [max(one - run * share, 0.3 * one) for _, one, share in lines]
        bags = min(UPDATED, AT_ONCE // (4 * width))
        beside = COLD + 4.0 * bags * width + 24.0 * UPDATED
        reached = [reach(size, 4.0 * width * UPDATED, beside) for size, _, _ in lines]
        found[width] = _curve(reached, np.maximum.accumulate(seconds))
    return found, run


def drawn(rows: float, ids: float) -> float:
    """Distinct ones of `ids` uniform draws among `rows`."""
    return float(rows * -np.expm1(ids * np.log1p(-1 / rows)))


def _rules(times: Times) -> dict[str, dict[int, float]]:
    return {rule: {d: _extra(times, ("rule", rule, d), d) for d in UPDATED_WIDTHS} for rule in RULES}


def _extra(times: Times, key: Point, width: int) -> float:
    """Of a row, on top of one that SGD updates."""
    distinct = drawn(max(FEWEST, RULE_SET // (4 * width)), UPDATED)
    return _rounded(max(0.0, times[key] - times["rule", "sgd", width]) / distinct)


def _sort(times: Times) -> dict[str, float]:
    cases = [(key[1:], taken) for key, taken in times.items() if key[0] == "sort"]
    terms = [(1.0, ids, ids * radix_passes(rows), ids / length) for (rows, ids, length), _ in cases]
    prices = fitted(("sort", "sort_id", "sort_pass", "sort_bag"), terms, [taken for _, taken in cases])
    more = times["skewed", *SKEWED] - times["even", *SKEWED]
    return prices | {"sort_skew": max(0.0, more) / SKEWED[1]}


def _rest(times: Times, cached: Mapping[int, float], fork: float) -> dict[str, float]:
    found = {f"dense_{n}": times["dense", name] / DENSE_SIZE for name, n in DENSE.items()}
    one, several = times["slices", 1], times["slices", SLICES]
    found["slice_sum"] = max(several - one, 0.0) / (SLICES - 1) / (DENSE_SIZE >> 2)
    found["slice_copy"] = one / (DENSE_SIZE >> 2)
    found["flop"] = times["gemm",] / (2.0 * np.prod(GEMM))  # each thread has made one product
    for name in CODECS:
        found[f"codec_{name}"] = times["codec", name] / (2.0 * np.prod(CODED))
    return found | _stages(times, cached, fork)


def _stages(times: Times, cached: Mapping[int, float], fork: float) -> dict[str, float]:
    """Of stages of the exchange: a start, a wire (a piece and a peer), an id, a touched bag, its numbers."""
    terms: list[tuple[float, ...]] = []
    for tables, batch, length, width in STAGED:
        ids, wires = float(tables * batch * length), 2.0 * tables
        touched = 2 * tables * batch * (1 - 0.5**length)
        terms.append((1.0, wires, ids, touched, touched * width))
    taken = {stage: [times["stage", stage, *shape] for shape in STAGED] for stage in STAGES}
    for k, (tables, batch, length, width) in enumerate(STAGED):  # rows are counted as lookups
        ids = tables * batch * length
        rows = cached[width if width in cached else 16] * ids + fork * (tasks_of(ids * width) > 1)
        taken["look_up"][k] = max(taken["look_up"][k] - rows, 0.5 * taken["look_up"][k])
    asked = ("ids", "ids_wire", "ids_id", "ids_bag")
    prices = fitted(asked, [term[:4] for term in terms], taken["input_dist"])
    for stage, name in (("look_up", "vectors"), ("row_grads", "grads")):
        columns = (name, f"{name}_wire", f"{name}_id", f"{name}_bag", f"{name}_number")
        prices |= fitted(columns, terms, taken[stage])
    return prices


def fitted(
    names: Sequence[str], terms: Sequence[Sequence[float]], taken: Sequence[float]
) -> dict[str, float]:
    """{name: seconds of one}, none negative, that come nearest to `taken`, by ratio."""
    scale = np.array(taken)[:, None]
    columns = np.array(terms) / scale
    kept, found = list(range(len(names))), np.zeros(len(names))
    while kept:
        solved = np.linalg.lstsq(columns[:, kept], np.ones(len(taken)), rcond=None)[0]
        if solved.min() >= 0:
            found[kept] = solved
            break
        kept.pop(int(solved.argmin()))
    return dict(zip(names, found.tolist(), strict=True))


def _curve(sizes: Sequence[float], seconds: Any) -> Curve:
    return Curve(tuple(map(float, sizes)), tuple(map(_rounded, seconds)))


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.4g}")
