"""HTML out of text: what is not Markup already is escaped, so that no table's name is ever read as HTML."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

VOID = {"input", "meta"}
NONE: Mapping[str, str] = {}


class Markup(str):
    """HTML; any other str is text."""

    __slots__ = ()


@dataclass(frozen=True)
class Figure:
    """Traces and layout as plotly.js takes them, how high it is drawn, and what is to be seen in it."""

    name: str
    says: str
    height: int  # pixels; of a square one the most
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    square: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page: its title, a sentence on what to look for, and what stands below that."""

    title: str
    says: str
    body: Markup
    figures: Sequence[Figure] = field(default=())

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


def text(value: str) -> Markup:
    """`value` as HTML."""
    return value if isinstance(value, Markup) else Markup(escape(value))


def join(parts: Iterable[str]) -> Markup:
    """One after the other."""
    return Markup("".join(text(part) for part in parts))


def tag(name: str, *children: str, cls: str = "", more: Mapping[str, str] = NONE) -> Markup:
    """<name class="cls" more="…">children</name>."""
    attributes = ({"class": cls} if cls else {}) | dict(more)
    opening = " ".join([name, *(f'{key}="{escape(value)}"' for key, value in attributes.items())])
    return Markup(f"<{opening}>" + ("" if name in VOID else f"{join(children)}</{name}>"))


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], words: Collection[int] = (0,), cls: str = ""
) -> Markup:
    """A table that scrolls by itself. words: the columns that hold words; others hold numbers."""
    styles = ["" if i in words else "number" for i in range(len(head))]
    titles = join(tag("th", title, cls=style) for title, style in zip(head, styles, strict=True))
    lines = join(
        tag("tr", *(tag("td", cell, cls=style) for cell, style in zip(row, styles, strict=True)))
        for row in rows
    )
    whole = tag("table", tag("thead", tag("tr", titles)), tag("tbody", lines), cls=cls)
    return tag("div", whole, cls="scroll", more={"tabindex": "0"})


def folded(title: str, body: str) -> Markup:
    """What opens on a click: the numbers behind a picture."""
    return tag("details", tag("summary", title), body, cls="numbers")


def legend(entries: Iterable[tuple[str, str]]) -> Markup:
    """Of (what, colour)."""
    return tag("ul", *(tag("li", swatch(colour), what) for what, colour in entries), cls="legend")


def scale(lowest: str, highest: str) -> Markup:
    """From the palest to the darkest."""
    return tag("p", tag("span", lowest), tag("i"), tag("span", highest), cls="scale")


def swatch(colour: str) -> Markup:
    """A small square of a colour."""
    return tag("i", cls="swatch", more={"style": f"background:{colour}"})


def plot(figure: Figure) -> Markup:
    """The place that page.js draws `figure` in."""
    more = {"data-figure": figure.name, "role": "img", "aria-label": figure.says}
    size = "max-width" if figure.square else "height"
    cls = "plot square" if figure.square else "plot"
    return tag("div", cls=cls, more=more | {"style": f"{size}:{figure.height}px"})
