"""The answer, first thing on the page; what is lacking where there is none; and what all of it rests on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from tesserec.sharding.planner.report.markup import Markup, Section, join, table, tag
from tesserec.sharding.planner.report.words import (
    of_bytes,
    of_change,
    of_count,
    of_kind,
    of_seconds,
    of_share,
    plural,
)
from tesserec.sharding.planner.result import Comparison, Document, Lack, TierPart, WayOut

Figures = Iterable[tuple[str, str, str]]  # what, the number, what is said below it


def headline(document: Document) -> Markup:
    """The title, one sentence with the answer, and the few numbers that matter."""
    topology = document["topology"]
    where = f"{plural(topology['num_ranks'], 'rank')} on {topology['name']}"
    over = tag("p", f"tesserec plan · {document['title']} · {where}", cls="over")
    answer, figures = _answer(document)
    numbers = join(
        tag("div", tag("dt", what), tag("dd", tag("b", number), tag("span", says)))
        for what, number, says in figures
    )
    notes = join(tag("li", note) for note in document["notes"])
    parts = [over, tag("h1", answer), tag("dl", numbers, cls="figures") if numbers else ""]
    return join([*parts, tag("ul", notes, cls="notes") if notes else ""])


def _answer(document: Document) -> tuple[str, Figures]:
    if (comparison := document.get("comparison")) is not None:
        return _compared(comparison)
    if (step := document.get("step")) is None:
        return "No plan fits.", []
    time, rate = of_seconds(step["seconds"]), of_count(float(f"{step['samples_per_second']:.4g}"))
    rate = rate.replace(" M", " million")
    figures = [
        ("step", time, f"most of all {step['bound']}"),
        ("samples per second", rate, f"batch {document['workload']['batch_size']:,}"),
        *_fullest(document["topology"]["tiers"]),
        ("tables", f"{document['workload']['num_tables']:,}", _kinds(document)),
    ]
    return _unbroken(f"A step takes {time}: {rate} samples per second."), figures


def _compared(comparison: Comparison) -> tuple[str, Figures]:
    estimated, measured = comparison["step"]["estimated"], comparison["step"]["measured"]
    figures = [
        ("estimated", of_seconds(estimated), "a step"),
        ("measured", of_seconds(measured), "a step"),
    ]
    if estimated and measured:
        words = f"estimate over measurement, {plural(comparison['steps'], 'step')}"
        figures.append(("error", of_change(estimated / measured - 1), words))
    answer = f"A step was estimated at {of_seconds(estimated)} and took {of_seconds(measured)}."
    return _unbroken(answer), figures


def _unbroken(sentence: str) -> str:
    """No line ends between a number and its unit."""
    return re.sub(r"(?<=\d) (?=\w)", "\N{NO-BREAK SPACE}", sentence)


def _fullest(tiers: Sequence[TierPart]) -> Figures:
    """The rank that is nearest to the limit of any tier."""
    shares = [
        (used / limit, tier["name"], rank, used, limit)
        for tier in tiers
        for rank, (used, limit) in enumerate(zip(tier["used_bytes"], tier["limit_bytes"], strict=False))
        if limit
    ]
    if shares:
        share, tier_name, rank, used, limit = max(shares, key=lambda entry: entry[0])
        words = f"{of_share(share)} of {of_bytes(limit)} {tier_name}, rank {rank}"
        yield "fullest rank", of_bytes(used), words


def _kinds(document: Document) -> str:
    """`20 table-wise, 4 row-wise`."""
    kinds = Counter(of_kind(part.get("kind", "")) for part in document["tables"])
    return ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())


def infeasible(document: Document) -> Section | None:
    """Who lacks how much."""
    if (part := document.get("infeasible")) is None:
        return None
    rows = [_lack(lack) for lack in part["witness"]]
    head = ("where", "", "needs", "has", "lacks", "for")
    message = part["message"].partition(";")[0] if rows else part["message"]  # its rest is the table
    body = [tag("p", message, cls="message")]
    if rows:
        body.append(table(head, rows, words=(0, 1, 5), cls="flowing witness"))
    says = "A bar is what is needed; its red end is what is not there."
    return Section("What is lacking", says, join(body))


def _lack(lack: Lack) -> Sequence[str]:
    """A bar that ends at what is needed, marked where what is there ends."""
    has = min(1.0, lack["has_bytes"] / lack["needs_bytes"]) if lack["needs_bytes"] else 1.0
    there = tag("i", more={"style": f"width:{100 * has:.1f}%"})
    bar = tag("span", there, cls="need", more={"aria-hidden": "true"})
    more = len(lack["tables"]) - 3
    names = ", ".join(lack["tables"][:3]) + (f" and {more} more" if more > 0 else "")
    lacking = of_bytes(lack["needs_bytes"] - lack["has_bytes"])
    needs, has_words = of_bytes(lack["needs_bytes"]), of_bytes(lack["has_bytes"])
    return lack["where"], bar, needs, has_words, tag("strong", lacking), tag("span", names, cls="words")


def ways_out(document: Document) -> Section | None:
    """What would make it fit."""
    if (part := document.get("infeasible")) is None or not part["ways_out"]:
        return None
    ways = join(_way(way) for way in part["ways_out"])
    says = "Cheapest first; each was tried and gives a plan that fits."
    return Section("Ways out", says, tag("ol", ways, cls="ways"))


def _way(way: WayOut) -> Markup:
    option = tag("code", way["option"]) if way["option"] else ""
    step = f"a step of {of_seconds(way['step_seconds'])}" if way["step_seconds"] else ""
    return tag("li", tag("strong", way["words"]), option, tag("span", step, cls="words"))


def sources(document: Document) -> Section:
    """Where every number came from."""
    workload, topology = document["workload"], document["topology"]
    devices = Counter(topology["devices"])
    seconds = document.get("search", {}).get("seconds")
    facts = {
        "workload": workload["source"],
        "tables": f"{plural(workload['num_tables'], 'table')}, {of_count(workload['rows'])} rows, "
        f"{of_bytes(workload['table_bytes'])}; {of_count(workload['ids'])} ids a sample",
        "batch": f"{workload['batch_size']:,} samples over all ranks",
        "optimizer": workload["optimizer"],
        "on the wire": f"{workload['forward']} forward, {workload['backward']} backward",
        "dense model": f"{of_count(workload['dense_parameters'])} parameters, "
        f"{of_count(workload['dense_flops'])} operations a sample forward",
        "statistics": workload["statistics"],
        "topology": f"{topology['name']} ({topology['source']})",
        "devices": ", ".join(f"{number:,} × {device}" for device, number in devices.items()),
        "hosts": f"{len(set(topology['hosts'])):,}",
        "search": of_seconds(seconds) if seconds is not None else "",
        "fingerprint": workload["fingerprint"],
        "made": f"{document['made']} by tesserec {document['tesserec']}",
    }
    lines = join(join([tag("dt", what), tag("dd", said)]) for what, said in facts.items() if said)
    says = "The same inputs give the same plan; change one of these and it may be another."
    return Section("Provenance", says, tag("dl", lines, cls="sources"))
