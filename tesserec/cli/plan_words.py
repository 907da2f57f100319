"""The outcome of planning on the terminal: what a step takes and why, what is where, what comes next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from tesserec.cli.console import console, out
from tesserec.sharding.planner.units import in_bytes, in_seconds

if TYPE_CHECKING:
    from tesserec.sharding.planner.result import (
        Alternative,
        Document,
        Infeasible,
        Lack,
        MovesPart,
        SearchPart,
        StepPart,
        TablePart,
        TierPart,
        Variation,
    )

PHASES = {
    "rows": "update and look up",
    "vectors": "vectors travel",
    "grads": "gradients travel",
    "sums": "sum copies",
    "replicas": "sums travel",
    "split": "sum columns",
    "columns": "columns travel",
    "reduction": "dense sums",
    "input_dist": "ids travel",
    "beside": "what goes on beside",
}
SHOWN = 8  # tables, moves
AUTO = "auto (no plan)"  # as `best_of` names it
BAR = 24  # characters of the longest bar
KINDS = {"data_parallel": "copies", "table_wise": "whole", "row_wise": "rows", "column_wise": "columns"}
KINDS |= {"table_row_wise": "rows of a host", "table_column_wise": "columns of a host"}
KINDS |= {"grid_shard": "grid", "hot_cold": "hot + cold", "mixed": "mixed"}


def show_planned(document: Document) -> None:
    """What a plan does, in ten seconds of reading."""
    out.print(_headline(document), soft_wrap=True)
    if "step" in document:
        _show_step(document["step"], document["topology"]["num_ranks"])
    _show_memory(document["topology"]["tiers"])
    show_tables(document["tables"])
    if "search" in document:
        _show_search(document["search"], document["step"]["seconds"])
    if "moves" in document:
        show_moves(document["moves"])
    show_notes(document["notes"])


def show_infeasible(document: Document) -> None:
    """Who lacks what, and what would help."""
    show_notes(document["notes"])
    reason = document["infeasible"]["message"].partition("; ")[0]
    console.print(f"[bold red]no plan fits:[/] {escape(reason)}", highlight=False, soft_wrap=True)
    _show_lacks(document["infeasible"]["witness"])
    _show_ways_out(document["infeasible"])


def show_notes(notes: Iterable[str]) -> None:
    """What the reader must know, each on a line."""
    for note in notes:
        out.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)


def show_tables(tables: Sequence[TablePart], shown: int = SHOWN) -> None:
    """The tables that take most of a step, as a table."""
    table = _table("table")
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("where", overflow="fold")
    for title in ("time", "memory", "sent"):
        table.add_column(title, justify="right", no_wrap=True)
    placed = sorted(tables, key=lambda t: (-t.get("seconds", 0.0), -t["table_bytes"]))
    tiers = {t.get("tier") for t in tables}
    for t in placed[:shown]:
        table.add_row(
            escape(_own_name(t["name"])),
            f"{t['rows']:,} × {t['dim']}",
            _where(t, len(tiers) > 1),
            in_seconds(t.get("seconds", 0.0)),
            in_bytes(t.get("memory_bytes", float(t["table_bytes"]))),
            in_bytes(t.get("sent_bytes", 0.0)),
        )
    out.print(table)
    if len(tables) > shown:
        out.print(f"  and {len(tables) - shown:,} that take less time")


def show_table(table: TablePart) -> None:
    """One table: how it is read, where it is, what it costs, and what else was possible."""
    read = f"{table['ids']:.3g} ids a sample"
    out.print(f"[bold]{escape(table['name'])}[/]: {table['rows']:,} rows × {table['dim']}, {read}")
    out.print(f"  reads: {_skew(table)}")
    if "words" in table:
        out.print(f"  plan: {_where(table)}, {in_bytes(table.get('memory_bytes', 0.0))} in all")
        stages = ", ".join(f"{name} {in_seconds(s)}" for name, s in table.get("stages", {}).items() if s)
        out.print(f"  time, summed over ranks: {stages}", soft_wrap=True)
        hits = table.get("hits")
        cached = "" if hits is None else f", {hits:.0%} of reads come from a cache"
        busiest = table.get("imbalance", 1.0)
        out.print(f"  busiest holder: {busiest:.2f} × the mean{cached}")
    _show_alternatives(table.get("alternatives", []))


def show_moves(moves: MovesPart) -> None:
    """The pieces that change hands."""
    if not moves["num_moves"]:
        out.print(f"nothing moves from {escape(moves['before'])}")
        return
    out.print(
        f"{moves['num_moves']:,} pieces move from {escape(moves['before'])}: "
        f"{in_bytes(moves['bytes'])}, about {in_seconds(moves['seconds'])}"
    )
    table = _table("table", "rows", "columns", "from", "to")
    table.add_column("bytes", justify="right", no_wrap=True)
    for move in moves["moves"][:SHOWN]:
        (top, bottom), (left, right) = move["rows"], move["cols"]
        spans = f"{top:,} – {bottom:,}", f"{left} – {right}"
        ranks = (_ranks(held) for held in (move["before"], move["after"]))
        table.add_row(escape(move["table"]), *spans, *ranks, in_bytes(move["bytes"]))
    out.print(table)
    if moves["num_moves"] > SHOWN:
        out.print(f"  and {moves['num_moves'] - SHOWN:,} more")


def show_gain(before: float | None, after: float) -> None:
    """What a step takes after moving, beside before."""
    if before is None:
        out.print(f"a step takes {in_seconds(after)} then; the plan before does not fit here")
        return
    change = f"{100 * (after / before - 1):+.1f} %"
    out.print(f"a step takes {in_seconds(before)} before, {in_seconds(after)} after ({change})")


def show_checked(document: Document, lacks: Sequence[Lack]) -> None:
    """Whether a plan can be used."""
    show_notes(document["notes"])
    out.print(_headline(document), soft_wrap=True)
    _show_memory(document["topology"]["tiers"])
    if not lacks:
        out.print("[bold green]the plan fits[/]: every table is tiled, every rank has room")
        return
    out.print("[bold red]the plan does not fit[/]")
    _show_lacks(lacks)


def show_variations(variations: Sequence[Variation]) -> None:
    """What if one thing were different."""
    table = _table("what if")
    for title in ("same plan", "samples/s", "new plan", "samples/s"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    for v in variations:
        same = _seconds(v["step_seconds_same"]), _per_second(v["samples_per_second_same"])
        new = _seconds(v["step_seconds_new"]), _per_second(v["samples_per_second_new"])
        table.add_row(escape(v["label"]), *same, *new, escape(v["note"]))
    out.print(table)


def _headline(document: Document) -> str:
    topology, workload = document["topology"], document["workload"]
    ranks, tables = topology["num_ranks"], workload["num_tables"]
    what = f"{tables:,} tables, {in_bytes(workload['table_bytes'])}, batches of {workload['batch_size']:,}"
    where = f"{ranks:,} rank{'s' * (ranks > 1)} of {escape(topology['name'])}"
    return f"[bold]{escape(document['title'])}[/]: {what}; {where}"


def _show_step(step: StepPart, ranks: int) -> None:
    speed = f"{step['samples_per_second']:,.0f} samples/s"
    bound = f"bound by {escape(step['bound'])}"
    out.print(f"[bold green]step {in_seconds(step['seconds'])}[/] · {speed} · {bound}\n", soft_wrap=True)
    longest = max((phase["seconds"] for phase in step["path"]), default=0.0)
    names = [PHASES.get(phase["name"], phase["name"]) for phase in step["path"]]
    for name, phase in zip(names, step["path"], strict=True):
        bar = "━" * max(1, round(BAR * phase["seconds"] / longest)) if phase["seconds"] else ""
        who = escape(phase["bound"]) if ranks > 1 else ""
        line = f"  {name:<{max(map(len, names))}} {in_seconds(phase['seconds']):>8}  [cyan]{bar:<{BAR}}[/]"
        out.print(f"{line} [dim]{who}[/]", soft_wrap=True)
    out.print()


def _show_memory(tiers: Sequence[TierPart]) -> None:
    """The fullest rank of each tier, beside its limit."""
    for tier in tiers:
        used, limits = tier["used_bytes"], tier["limit_bytes"]
        if not used or not any(used):
            continue
        rank = max(range(len(used)), key=lambda r: used[r] / limits[r] if limits[r] else 0.0)
        mean = sum(used) / len(used)
        share = f"{used[rank] / limits[rank]:.0%}" if limits[rank] else "?"
        fullest = f"fullest rank {rank}: {in_bytes(used[rank])} of {in_bytes(limits[rank])} ({share})"
        out.print(f"  memory, {tier['name']}: {fullest}, mean {in_bytes(mean)}")


def _show_search(search: SearchPart, seconds: float) -> None:
    """How much better the plan is than others, and how the search ended."""
    out.print(f"  tried {search['tried']:,} plans in {search['seconds']:.1f} s; best by {search['proposer']}")
    best_of = {name: s / seconds for name, s in search["best_of"].items() if s is not None}
    same = sorted((ratio, name.partition(" ")[2]) for name, ratio in best_of.items() if "uniform " in name)
    if AUTO in best_of:
        out.print(f"  without a plan (sharding.default: auto) a step takes {_longer(best_of[AUTO])}")
    if same:
        out.print(f"  with one kind for all tables, {same[0][1]}, it takes {_longer(same[0][0])}")
    if search["bound_seconds"]:
        out.print(f"  no plan can take less than {in_seconds(search['bound_seconds'])}")
    if search["stopped"] == "interrupted":
        out.print("[yellow]interrupted:[/] this is the best plan found until then")
    elif search["stopped"] == "budget":
        out.print("  the time was up: --budget gives more")


def _show_lacks(lacks: Sequence[Lack]) -> None:
    table = _table("where")
    for title in ("needs", "has", "lacks"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("tables, largest first")
    for lack in lacks[:SHOWN]:
        needs, has = lack["needs_bytes"], lack["has_bytes"]
        sizes = map(in_bytes, (needs, has, max(0.0, needs - has)))
        table.add_row(lack["where"], *sizes, escape(_some(lack["tables"])))
    out.print(table)
    if len(lacks) > SHOWN:
        out.print(f"  and {len(lacks) - SHOWN} more")


def _show_ways_out(infeasible: Infeasible) -> None:
    if infeasible["ways_out"]:
        out.print("what would help, cheapest first:")
    for way in infeasible["ways_out"]:
        step = "" if way["step_seconds"] is None else f": step {in_seconds(way['step_seconds'])}"
        option = f"  [cyan]{escape(way['option'])}[/]" if way["option"] else ""
        out.print(f"  · {escape(way['words'])}{step}{option}", soft_wrap=True)


def _show_alternatives(alternatives: Sequence[Alternative]) -> None:
    """The best of each kind."""
    if not alternatives:
        return
    table = _table("", "kind", "where")
    for title in ("step", "memory"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("why not", overflow="fold")
    best: dict[str, Alternative] = {}
    for a in alternatives:
        best.setdefault(a["kind"], a)
    for a in best.values():
        kind = KINDS.get(a["kind"], a["kind"])
        sizes = _seconds(a["step_seconds"]), in_bytes(a["memory_bytes"])
        table.add_row("●" if a["chosen"] else "", kind, escape(a["words"]), *sizes, escape(a["why"]))
    out.print(table)
    if len(alternatives) > len(best):
        out.print(f"  and {len(alternatives) - len(best)} more of these kinds: --json lists them")


def _table(*titles: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def _own_name(name: str) -> str:
    """Without the path of the collection."""
    return name.rpartition(".")[2] if not name.rpartition(".")[2].isdigit() else name


def _where(table: TablePart, with_tier: bool = True) -> str:
    tier = table.get("tier") if with_tier else None
    return escape(table.get("words", "")) + (f" ({tier})" if tier else "")


def _skew(table: TablePart) -> str:
    """`80 % of the ids go to 1,200 rows (3 %)`."""
    rows, shares = table["curve"]["rows"], table["curve"]["share"]
    hot = next((r for r, share in zip(rows, shares, strict=True) if share >= 0.8), table["rows"])
    order = "the first ones" if table["curve"]["ordered"] else "strewn over the table"
    return f"at most {hot:,.0f} rows ({hot / table['rows']:.2g} of all) get 80 % of the ids, {order}"


def _ranks(ranks: Sequence[int]) -> str:
    if not ranks:
        return "nobody"
    return ", ".join(map(str, ranks)) if len(ranks) <= 8 else f"{len(ranks)} ranks"


def _some(names: Sequence[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _longer(ratio: float) -> str:
    return f"{100 * (ratio - 1):.1f} % longer" if ratio < 2 else f"{ratio:,.3g} times as long"


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else in_seconds(seconds)


def _per_second(number: float | None) -> str:
    return "–" if number is None else f"{number:,.0f}"
