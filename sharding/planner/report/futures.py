"""What would change: samples per second in other cases, rows that must move, and how the search went."""

from __future__ import annotations

from collections.abc import Sequence

from tesserec.sharding.planner.report.figures import pairs
from tesserec.sharding.planner.report.markup import Section, folded, join, legend, plot, table, tag
from tesserec.sharding.planner.report.words import (
    of_bytes,
    of_change,
    of_count,
    of_ranks,
    of_seconds,
    of_share,
    plural,
)
from tesserec.sharding.planner.result import Document, MovePart, Variation

WAYS = {"batch": "Batch size", "ranks": "Number of ranks", "bandwidth": "Speed of the links"}
MOVES = 50  # that are listed
ENDS = {
    "done": "The search ended by itself.",
    "budget": "The time budget ended the search: with more of it a better plan may be found.",
    "interrupted": "The search was interrupted: this is the best plan so far.",
}


def sensitivity(document: Document) -> Section | None:
    """Samples per second if one thing were different."""
    if not (variations := document.get("sensitivity")):
        return None
    says = "Where the pale bar is much lower than the blue one, plan again before changing this."
    kinds = {
        what: sorted((v for v in variations if v["what"] == what), key=lambda v: v["factor"]) for what in WAYS
    }
    rates = [r for v in variations for r in (v["samples_per_second_same"], v["samples_per_second_new"]) if r]
    unit = (1e3, "thousand samples/s") if max(rates, default=0.0) < 2e6 else (1e6, "million samples/s")
    figures = [
        pairs(
            f"sensitivity-{what}",
            f"{WAYS[what]}: samples per second with the same plan and with a new one.",
            [v["label"] for v in found],
            {
                "same plan": [v["samples_per_second_same"] for v in found],
                "new plan": [v["samples_per_second_new"] for v in found],
            },
            unit,
        )
        for what, found in kinds.items()
        if found
    ]
    panels = join(tag("div", tag("h3", WAYS[figure.name.split("-")[1]]), plot(figure)) for figure in figures)
    entries = [("this plan", "var(--pale)"), ("planned anew", "var(--bar)")]
    head = ("case", "step", "samples/s", "step, new plan", "samples/s, new plan", "")
    rows = [_variation(variation) for found in kinds.values() for variation in found]
    listed = folded("Every case", table(head, rows, words=(0, 5)))
    body = [legend(entries), tag("div", panels, cls="panels"), listed]
    return Section("What if", says, join(body), figures)


def _variation(variation: Variation) -> Sequence[str]:
    name = variation["label"] + (" (planned)" if variation["factor"] == 1 else "")
    return (
        name,
        of_seconds(variation["step_seconds_same"]),
        of_count(_whole(variation["samples_per_second_same"])),
        of_seconds(variation["step_seconds_new"]),
        of_count(_whole(variation["samples_per_second_new"])),
        tag("span", variation["note"], cls="words"),
    )


def _whole(rate: float | None) -> float | None:
    return None if rate is None else round(rate)


def moves(document: Document) -> Section | None:
    """What must go where to get from the old plan to this one."""
    if (part := document.get("moves")) is None:
        return None
    before, now = part["step_seconds_before"], document.get("step")
    says = f"From {part['before']}: {of_bytes(part['bytes'])} must move, about {of_seconds(part['seconds'])}."
    if not part["num_moves"]:
        says = f"From {part['before']}: every table stays where it is."
    elif before and now:
        change = of_change(now["seconds"] / before - 1)
        says += f" The step goes from {of_seconds(before)} to {of_seconds(now['seconds'])} ({change})."
    num_ranks = document["topology"]["num_ranks"]
    listed = part["moves"][:MOVES]
    rows = [_move(move, num_ranks) for move in listed]
    body = [table(("table", "piece", "from", "to", "bytes"), rows, words=range(4))] if rows else []
    if part["num_moves"] > len(listed):
        left = part["num_moves"] - len(listed)
        body.append(tag("p", f"{left:,} smaller moves are not listed.", cls="facts"))
    return Section("Moves", says, join(body))


def _move(move: MovePart, num_ranks: int) -> Sequence[str]:
    (top, bottom), (left, right) = move["rows"], move["cols"]
    ways = (of_ranks(ranks, num_ranks) if ranks else "nowhere" for ranks in (move["before"], move["after"]))
    piece = f"rows {top:,} to {bottom:,}, columns {left} to {right}"
    return move["table"], piece, *ways, of_bytes(move["bytes"])


def search(document: Document) -> Section | None:
    """Who found the plan, and what the others had."""
    if (part := document.get("search")) is None:
        return None
    bound, step = part["bound_seconds"], document.get("step")
    says = f"Looked at {plural(part['tried'], 'plan')} in {of_seconds(part['seconds'])}. "
    says += ENDS[part["stopped"]]
    if bound and step:
        left = of_share(1 - bound / step["seconds"])
        says += f" No plan can be faster than {of_seconds(bound)}, which is {left} less."
    found = sorted(part["best_of"].items(), key=lambda entry: (entry[1] is None, entry[1] or 0.0))
    rows = [
        (
            tag("strong", f"{name} (chosen)") if name == part["proposer"] else name,
            of_seconds(seconds),
            "nothing fitted" if seconds is None else _behind(seconds, step["seconds"]) if step else "–",
        )
        for name, seconds in found
    ]
    return Section("Search", says, table(("proposer", "step of its best", "slower"), rows))


def _behind(seconds: float, best: float) -> str:
    return "–" if seconds <= best * 1.0005 else of_change(seconds / best - 1)
