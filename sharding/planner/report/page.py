"""The page around the sections: its style, a few lines of script, plotly.js, and that it may load nothing."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterable
from functools import cache
from hashlib import sha256
from importlib.resources import files

from tesserec.sharding.planner.report import compare, futures, loads, tables, verdict
from tesserec.sharding.planner.report.markup import Markup, Section, join, tag
from tesserec.sharding.planner.result import Document

SECTIONS: tuple[Callable[[Document], Section | None], ...] = (
    verdict.infeasible,
    verdict.ways_out,
    compare.stages,
    compare.memory,
    compare.sent,
    compare.tables,
    loads.path,
    loads.memory,
    loads.times,
    tables.places,
    loads.traffic,
    tables.skew,
    tables.choices,
    futures.sensitivity,
    futures.moves,
    futures.search,
    verdict.sources,
)
CHARSET = tag("meta", more={"charset": "utf-8"})
VIEWPORT = tag("meta", more={"name": "viewport", "content": "width=device-width, initial-scale=1"})


def render(document: Document) -> str:
    """The whole page as HTML: one file, no network, whatever the document holds."""
    sections = [made for section in SECTIONS if (made := section(document)) is not None]
    title = tag("title", f"{document['title']} · tesserec plan")
    style = tag("style", Markup(_ours("page.css")))
    links = join(tag("a", s.title, more={"href": f"#{s.anchor}"}) for s in sections)
    contents = tag("nav", links, more={"aria-label": "Contents"})
    body = tag("main", tag("header", verdict.headline(document), contents), *map(_placed, sections))
    scripts = (_plotly(), _ours("page.js"))
    head = tag("head", CHARSET, _policy(scripts), VIEWPORT, title, style)
    placed = [tag("script", Markup(script)) for script in scripts]
    whole = tag("html", head, tag("body", body, _data(sections), *placed), more={"lang": "en"})
    return f"<!doctype html>\n{whole}\n"


def _placed(section: Section) -> Markup:
    parts = [tag("h2", section.title), tag("p", section.says, cls="says"), section.body]
    return tag("section", *parts, more={"id": section.anchor})


def _data(sections: Iterable[Section]) -> Markup:
    """Traces and layouts for page.js; no name in them can end the element."""
    figures = {f.name: {"data": f.data, "layout": f.layout} for s in sections for f in s.figures}
    written = json.dumps(figures, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return tag("script", Markup(written), more={"type": "application/json", "id": "figures"})


def _policy(scripts: Iterable[str]) -> Markup:
    """Nothing is loaded from anywhere, and no script runs but these."""
    known = " ".join(f"'sha256-{b64encode(sha256(s.encode()).digest()).decode()}'" for s in scripts)
    content = f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {known}"
    return tag("meta", more={"http-equiv": "Content-Security-Policy", "content": content})


@cache
def _ours(name: str) -> str:
    return files(__package__).joinpath(name).read_text()


@cache
def _plotly() -> str:
    """plotly.js, about 5 MB, from plotly's own package."""
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    return source
