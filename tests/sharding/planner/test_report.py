"""The page of a plan: it says what the document holds, needs no network, and is quiet in a real browser."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects
import pytest

from tesserec.sharding.planner.report import render, words
from tesserec.sharding.planner.report.page import SECTIONS
from tesserec.sharding.planner.result import Document
from tests.browser import CHROMIUM, Browser, browser
from tests.sharding.planner.documents import compared, infeasible, planned, with_moves

DOCUMENTS: dict[str, Callable[[], Document]] = {
    "planned": lambda: with_moves(planned(26, 2)),
    "hosts": lambda: planned(100, 24),
    "infeasible": infeasible,
    "compared": compared,
}
HOSTILE = '</script><img src=x onerror="alert(1)">&<b>'


class Reader(HTMLParser):
    """Tags that are open at the end or closed out of turn, texts, and what elements have as attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" not in self.open and "style" not in self.open:
            self.texts.append(data)


def figures(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    read: dict[str, Any] = json.loads(found[1])
    return read


@pytest.fixture(params=DOCUMENTS)
def document(request: pytest.FixtureRequest) -> Document:
    return DOCUMENTS[request.param]()


def test_page_is_well_formed_and_each_link_has_its_place(document: Document) -> None:
    reader = Reader(render(document))
    assert reader.open == []
    places = [value for _, name, value in reader.attributes if name == "id"]
    assert len(places) == len(set(places))
    links = [value for tag, name, value in reader.attributes if (tag, name) == ("a", "href")]
    assert links and {link.removeprefix("#") for link in links} <= set(places)


def test_figures_are_what_plotly_knows_and_each_has_a_place(document: Document) -> None:
    page = render(document)
    drawn = figures(page)
    for figure in drawn.values():
        inked = re.sub(r'"(var\(--\w+\)|shade [\d.]+)"', '"#123456"', json.dumps(figure))
        known = inked.replace('"colorscale": "accent"', '"colorscale": "Blues"')
        plotly.graph_objects.Figure(json.loads(known))  # refuses what plotly.js does not have
    places = [value for _, name, value in Reader(page).attributes if name == "data-figure"]
    assert sorted(places) == sorted(drawn)


def test_page_asks_for_nothing_outside_itself(document: Document) -> None:
    page = render(document)
    loading = [v for _, name, v in Reader(page).attributes if name in ("src", "href", "srcset", "data")]
    assert all(value.startswith("#") for value in loading)
    (policy,) = [v for _, name, v in Reader(page).attributes if name == "content" and "src" in v]
    assert policy.startswith("default-src 'none'") and "http" not in policy


@pytest.mark.parametrize("make", DOCUMENTS.values(), ids=DOCUMENTS)
def test_names_are_text_wherever_they_stand(make: Callable[[], Document]) -> None:
    def hostile(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: hostile(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [hostile(inner) for inner in value]
        return value.replace("C1", HOSTILE) if isinstance(value, str) else value

    document = hostile(make())
    if "comparison" in document:
        measured = document["comparison"]["tables"]
        document["comparison"]["tables"] = {hostile(name): of for name, of in measured.items()}
    page = render(document)
    reader = Reader(page)
    assert not [tag for tag, name, _ in reader.attributes if tag == "img" or name.startswith("on")]
    assert any(HOSTILE in text for text in reader.texts)
    assert "<img" not in json.dumps(figures(page))  # plotly reads some tags in labels
    assert page.count("</script>") == 3


def test_the_answer_stands_first() -> None:
    document = planned(26, 2)
    texts = [text for text in Reader(render(document)).texts if text.strip()]
    said = " ".join(texts[:6])
    assert words.of_seconds(document["step"]["seconds"]) in said and "samples per second" in said
    assert "No plan fits." in " ".join(Reader(render(infeasible())).texts[:6])


def test_every_alternative_is_listed_with_why_it_lost() -> None:
    document = planned(26, 2)
    texts = " ".join(Reader(render(document)).texts)
    for table in document["tables"]:
        for alternative in table["alternatives"]:
            assert alternative["why"] in texts


def test_areas_of_the_treemap_are_all_bytes_of_the_plan() -> None:
    document = planned(100, 24)
    (trace,) = figures(render(document))["treemap"]["data"]
    size = dict(zip(trace["ids"], trace["values"], strict=True))
    inside: dict[str, int] = {}
    for parent, value in zip(trace["parents"], trace["values"], strict=True):
        inside[parent] = inside.get(parent, 0) + value
    assert all(inside[node] == size[node] for node in inside if node)
    copies = sum(
        table["table_bytes"] * len(piece["ranks"]) * (piece["rows"][1] - piece["rows"][0]) / table["rows"]
        for table in document["tables"]
        for piece in table["pieces"]
    )
    assert size["all"] == pytest.approx(copies, rel=1e-6)


def test_a_plan_too_large_to_list_is_drawn_by_table() -> None:
    document = planned(26, 2)
    for table in document["tables"]:
        table["pieces"] = []
    (trace,) = figures(render(document))["treemap"]["data"]
    assert len(trace["ids"]) == 27


def test_missing_parts_leave_their_sections_out() -> None:
    document = planned(26, 2)
    whole = sum(section(document) is not None for section in SECTIONS)
    del document["sensitivity"], document["search"]
    assert sum(section(document) is not None for section in SECTIONS) == whole - 2
    assert "What if" not in Reader(render(document)).texts


def test_a_thousand_tables_on_512_ranks_fit_in_ten_megabytes() -> None:
    assert len(render(planned(1000, 512)).encode()) < 10_000_000


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (words.of_seconds(0.0123), "12.3 ms"),
        (words.of_seconds(None), "–"),
        (words.of_seconds(3.2e-7), "320 ns"),
        (words.of_count(12_345), "12,345"),
        (words.of_count(4.06e9), "4.06 G"),
        (words.of_share(0.643), "64 %"),
        (words.of_change(-0.0234), "−2.3 %"),
        (words.of_change(1e-5), "0 %"),
        (words.significant(1234.5), "1,234"),
        (words.spans([7, 0, 1, 2, 3]), "0–3, 7"),
        (words.of_ranks([3], 8), "rank 3"),
        (words.of_ranks(list(range(8)), 8), "all 8 ranks"),
        (words.of_ranks(list(range(0, 64, 2)), 64), "32 ranks"),
        (words.common_prefix(["inputs.sparse.C1", "inputs.sparse.C2"]), "inputs.sparse."),
        (words.common_prefix(["a.b", "c"]), ""),
    ],
)
def test_numbers_read_well(said: str, wanted: str) -> None:
    assert said == wanted


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    with browser() as shown:
        yield shown


WIDEST = """[document.documentElement.scrollWidth, innerWidth,
  Math.max(...[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll') && !e.closest('svg'))
    .map(e => e.getBoundingClientRect().right))]"""
FIND = """(() => { const find = document.getElementById('find'); if (!find) return null;
  find.value = 'zzz'; find.dispatchEvent(new Event('input'));
  const none = document.querySelectorAll('#choices > details:not([hidden])').length;
  find.value = ''; find.dispatchEvent(new Event('input'));
  return [none, document.querySelectorAll('#choices > details:not([hidden])').length]; })()"""


@pytest.mark.parametrize("width", [1280, 390])
def test_browser_shows_all_of_it_without_a_complaint(
    document: Document, width: int, chromium: Browser, tmp_path: Path
) -> None:
    path = tmp_path / "plan.html"
    path.write_text(render(document))
    chromium.open(path, width, dark=width == 390)
    drawn = chromium.value(
        "[...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('svg').length)"
    )
    assert len(drawn) == len(figures(path.read_text())) and all(drawn)
    scroll, inner, right = chromium.value(WIDEST)
    assert scroll <= inner == width and right <= width + 0.5
    if (found := chromium.value(FIND)) is not None:
        assert found == [0, len(document["tables"])]
    assert chromium.complaints() == []
    assert [url for url in chromium.requests() if url != path.as_uri()] == []


def test_browser_shows_a_thousand_tables_on_512_ranks(chromium: Browser, tmp_path: Path) -> None:
    path = tmp_path / "plan.html"
    path.write_text(render(planned(1000, 512)))
    chromium.open(path, 390)
    assert chromium.value("document.querySelectorAll('.treemap path.surface').length") > 500
    assert chromium.complaints() == []


def test_browser_test_notices_an_error_and_a_request(chromium: Browser, tmp_path: Path) -> None:
    path = tmp_path / "broken.html"
    path.write_text(
        "<script src='http://localhost:1/x.js'></script><script>console.error(1); nothing()</script>"
    )
    chromium.open(path, 1280)
    assert len(chromium.complaints()) == 3 and len(chromium.requests()) == 2
