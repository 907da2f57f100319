"""What ranks and links have to bear: the parts of a step, memory and time of each rank, and the traffic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from tesserec.sharding.planner.report.figures import Stack, colours, matrix, stacked
from tesserec.sharding.planner.report.glossary import PARTS, PHASES, STAGES, glossary
from tesserec.sharding.planner.report.markup import (
    Markup,
    Section,
    folded,
    join,
    legend,
    plot,
    scale,
    swatch,
    table,
    tag,
)
from tesserec.sharding.planner.report.words import (
    BYTES,
    SECONDS,
    of_bytes,
    of_seconds,
    of_share,
    spoken,
    unit_of,
)
from tesserec.sharding.planner.result import Document, Phase, TierPart

LISTED = 16  # ranks in the tables beside pictures


def path(document: Document) -> Section | None:
    """What a step's time goes into, and who everybody waits for."""
    if (step := document.get("step")) is None or not step["path"]:
        return None
    stages = document["ranks"]["stages"] if "ranks" in document else {}
    inks = colours([*_present(stages), *(phase["name"] for phase in step["path"])])
    bars = join(_bar(phase, step["seconds"], inks[phase["name"]]) for phase in step["path"])
    rows = [
        (
            _named(phase["name"], inks[phase["name"]]),
            phase["bound"],
            of_seconds(phase["seconds"]),
            of_share(round(phase["seconds"] / step["seconds"], 3)),
        )
        for phase in step["path"]
    ]
    says = "What everybody waits for, from left to right: a step gets shorter only with one of these."
    body = [tag("ol", bars, cls="path", more={"aria-hidden": "true"})]
    body.append(table(("part of the step", "waits for", "time", "share"), rows, words=(0, 1)))
    return Section("Critical path", says, join(body))


def _named(phase: str, ink: str) -> Markup:
    meaning = tag("span", PHASES.get(phase, ""), cls="meaning")
    return join([swatch(ink), tag("span", spoken(phase), cls="phase"), meaning])


def _bar(phase: Phase, step: float, ink: str) -> Markup:
    style = f"flex-grow:{phase['seconds'] / step:.5f};background:{ink}"
    words = f"{spoken(phase['name'])}: {of_seconds(phase['seconds'])}"
    return tag("li", more={"style": style, "title": words})


def memory(document: Document) -> Section | None:
    """Bytes by part on each rank, against what may be used."""
    if (ranks := document.get("ranks")) is None:
        return None
    parts = _present(ranks["memory"])
    totals = _totals(parts)
    limits = _limits(document)
    unit = unit_of(max([*totals, *(limits if _near(limits, totals) else [])]), BYTES)
    says = "Every bar must end before the dashed line; even bars mean that no rank fills up first."
    if not _near(limits, totals):
        says = f"No rank is near its limit of {of_bytes(min(limits))}, which is far outside the picture."
    drawn = limits if _near(limits, totals) else []
    figure = stacked("memory", says, parts, unit, drawn, f"limit {of_bytes(min(limits))}")
    rows = _by_rank(parts, of_bytes, limits)
    numbers = table(("rank", *map(spoken, parts), "in all", "limit"), rows)
    body = [legend_of(parts), plot(figure), _tiers(document)]
    body += [folded(_title(totals), numbers), glossary(parts, PARTS)]
    return Section("Memory of each rank", says, join(body), [figure])


def times(document: Document) -> Section | None:
    """Seconds by stage on each rank, against the step's."""
    if (ranks := document.get("ranks")) is None or (step := document.get("step")) is None:
        return None
    stages = _present(ranks["stages"])
    totals = _totals(stages)
    unit = unit_of(max(*totals, step["seconds"]), SECONDS)
    says = (
        "What each rank is busy with in a step. A bar that ends before the line waits for others; "
        "one that passes it does several things at once."
    )
    limits = [step["seconds"]] * len(totals)
    figure = stacked("times", says, stages, unit, limits, f"step {of_seconds(step['seconds'])}")
    numbers = table(("rank", *map(spoken, stages), "in all"), _by_rank(stages, of_seconds, []))
    body = [legend_of(stages), plot(figure)]
    body += [folded(_title(totals), numbers), glossary(stages, STAGES)]
    return Section("Time of each rank", says, join(body), [figure])


def traffic(document: Document) -> Section | None:
    """Bytes that go from whom to whom in a step."""
    if (ranks := document.get("ranks")) is None or not any(map(any, ranks["traffic"])):
        return None
    sent, of = ranks["traffic"], ranks["traffic_of"][:-1]
    unit = unit_of(max(map(max, sent)), BYTES)
    says = f"Bytes of a step from each {of} (row) to each other (column): strong rows and columns are busy."
    figure = matrix("traffic", says, sent, unit, of)
    most = of_bytes(max(map(max, sent)))
    got = [sum(column) for column in zip(*sent, strict=True)]
    gave = [sum(line) for line in sent]
    order = sorted(range(len(sent)), key=lambda i: -gave[i] - got[i])[:LISTED]
    rows = [(f"{of} {i}", of_bytes(gave[i]), of_bytes(got[i])) for i in sorted(order)]
    title = f"The {len(rows)} busiest" if len(rows) < len(sent) else f"Every {of}"
    listed = tag("div", tag("h3", title), table((of, "sends", "gets"), rows))
    drawn = tag("div", scale("0", most), plot(figure))
    return Section("Traffic", says, tag("div", drawn, listed, cls="beside"), [figure])


def legend_of(parts: Iterable[str]) -> Markup:
    """Of the parts of a stack."""
    return legend((spoken(part), colour) for part, colour in colours(parts).items())


def _present(parts: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """Without those that nobody has."""
    kept = {part: values for part, values in parts.items() if any(values)}
    return kept or dict(parts)


def _totals(parts: Stack) -> list[float]:
    return [sum(values) for values in zip(*parts.values(), strict=True)]


def _limits(document: Document) -> list[float]:
    """By rank what all tiers that are used may hold."""
    tiers = document["topology"]["tiers"]
    used = [tier for tier in tiers if any(tier["used_bytes"])] or tiers[:1]
    return [sum(values) for values in zip(*(tier["limit_bytes"] for tier in used), strict=True)]


def _near(limits: Sequence[float], totals: Sequence[float]) -> bool:
    """Whether a picture can show both without making slivers of the bars."""
    return max(limits) < 5 * max(totals)


def _tiers(document: Document) -> Markup:
    """How full each tier is, where there is more than one."""
    tiers = [tier for tier in document["topology"]["tiers"] if tier["used_bytes"]]
    if len(tiers) < 2:
        return Markup()
    head = ("tier", "fullest", "used", "limit", "share")
    return table(head, map(_tier, tiers), words=(0, 1))


def _tier(tier: TierPart) -> Sequence[str]:
    pairs = list(zip(tier["used_bytes"], tier["limit_bytes"], strict=True))
    share, rank = max((used / limit if limit else 0.0, -rank) for rank, (used, limit) in enumerate(pairs))
    used, limit = pairs[-rank]
    return tier["name"], f"rank {-rank}", of_bytes(used), of_bytes(limit), of_share(share)


def _by_rank(parts: Stack, words: Callable[[float], str], limits: Sequence[float]) -> list[tuple[str, ...]]:
    """The highest ranks: each part, the sum, and the limit if there is one."""
    totals = _totals(parts)
    order = sorted(range(len(totals)), key=lambda rank: -totals[rank])[:LISTED]
    return [
        (
            f"rank {rank}",
            *(words(values[rank]) for values in parts.values()),
            words(totals[rank]),
            *(words(limit) for limit in limits[rank : rank + 1]),
        )
        for rank in (sorted(order) if len(order) == len(totals) else order)
    ]


def _title(totals: Sequence[float]) -> str:
    return f"The {LISTED} highest of {len(totals)} ranks" if len(totals) > LISTED else "Numbers of every rank"
