"""The service's page: nothing from elsewhere, nothing inline, and in a real browser it does what it says."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tesserec.serve
from tests.browser import CHROMIUM, Browser, browser
from tests.serve.fake import Service, ads, films, serving

PAGE = Path(tesserec.serve.__file__).parent / "page"
FILES = sorted(PAGE.iterdir())
WIDTH = 1280


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.name))
def test_page_asks_nothing_of_others(path: Path) -> None:
    found = set(re.findall(r"(?:https?:)?//[\w.]+\.\w+[^\s\"']*", path.read_text()))
    assert found <= {"http://www.w3.org/2000/svg"}


def test_page_has_nothing_inline() -> None:
    text = (PAGE / "index.html").read_text()
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)", text)


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".js"], ids=lambda path: path.name)
def test_scripts_make_no_markup_of_text(path: Path) -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|\beval\(|document\.write", path.read_text())


def test_every_file_is_asked_for() -> None:
    asked = {"index.html", *re.findall(r'"page/([\w.]+)"', (PAGE / "index.html").read_text())}
    for path in PAGE.glob("*.js"):
        asked |= set(re.findall(r'from "\./([\w.]+)"', path.read_text()))
    assert asked == {path.name for path in FILES}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    with browser() as shown:
        yield shown


@pytest.fixture
def service() -> Service:
    return Service([films(), ads()])


@pytest.fixture
def address(service: Service) -> Iterator[str]:
    with serving(service) as found:
        yield found


def until(shown: Browser, condition: str) -> None:
    """Wait until the expression is true."""
    for _ in range(200):
        if shown.value(f"Boolean({condition})"):
            return
        time.sleep(0.05)
    raise AssertionError(f"never came true: {condition}; {shown.complaints()}")


def opened(shown: Browser, address: str, width: int = WIDTH, dark: bool = False) -> Browser:
    """The page with a model's figures and its playground."""
    shown.open(address, width, dark=dark)
    until(shown, "document.querySelectorAll('#request [data-row]').length > 0")
    return shown


def click(shown: Browser, label: str) -> None:
    """Press the button of this text or name."""
    name = json.dumps(label)
    shown.value(
        "[...document.querySelectorAll('button')]"
        f".find(b => b.ariaLabel === {name} || (!b.ariaLabel && b.textContent === {name})).click()"
    )


def typed(shown: Browser, path: str, text: str) -> None:
    """Put a text into the field of this path."""
    field = f"document.querySelector('[data-path={json.dumps(path)}]')"
    shown.value(f"{field}.value = {json.dumps(text)}; {field}.dispatchEvent(new Event('input'))")


def ranked(shown: Browser) -> list[list[str]]:
    """Names and scores as the page shows them."""
    until(shown, "document.querySelectorAll('#result ol li').length")
    rows = "[...document.querySelectorAll('#result ol li')]"
    found: list[list[str]] = shown.value(
        f"{rows}.map(li => [li.querySelector('b').textContent, li.querySelector('output').textContent])"
    )
    return found


def last(service: Service, suffix: str) -> Any:
    """The body of the latest request to a path that ends so."""
    return [body for _, path, body in service.asked if path.endswith(suffix)][-1]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1280])
@pytest.mark.parametrize("model", ["ml100k", "ads"])
def test_page_fits_and_is_quiet(chromium: Browser, address: str, model: str, width: int, dark: bool) -> None:
    opened(chromium, f"{address}?model={model}", width, dark)
    assert chromium.value("document.getElementById('name').textContent") == model
    until(chromium, "document.querySelectorAll('#live figure:not([hidden]) svg').length === 3")
    click(chromium, "Rank")
    assert len(ranked(chromium)) == chromium.value("document.querySelectorAll('#request [data-row]').length")
    assert chromium.value("document.documentElement.scrollWidth") <= width
    assert chromium.complaints() == []
    assert all(url.startswith(address) for url in chromium.requests())


def test_playground_shows_the_scores_of_what_was_typed(
    chromium: Browser, address: str, service: Service
) -> None:
    opened(chromium, address)
    click(chromium, "Rank")
    before = ranked(chromium)
    typed(chromium, "candidates[0].class", "Drama, Western")
    typed(chromium, "context.age", "")
    typed(chromium, "context.timestamp", "1.5")
    until(chromium, f"document.querySelector('#result ol').textContent !== {json.dumps(before)}")
    time.sleep(0.6)
    body = last(service, ":rank")
    assert body["candidates"][0]["class"] == ["Drama", "Western"]
    assert "age" not in body["context"] and body["context"]["timestamp"] == 1.5
    status, answer = service.rank(service.models["ml100k"], "3", body)
    assert status == 200
    assert [name for name, _ in ranked(chromium)] == [one["id"] for one in answer["results"]]
    for (_, shown), one in zip(ranked(chromium), answer["results"], strict=True):
        assert float(shown) == pytest.approx(one["score"], abs=5e-4)


def test_columns_move_between_context_and_candidates(
    chromium: Browser, address: str, service: Service
) -> None:
    opened(chromium, address)
    click(chromium, "Move age to the candidates")
    click(chromium, "Move release_year to the context")
    click(chromium, "Add a candidate")
    click(chromium, "Remove candidate 1")
    click(chromium, "Rank")
    ranked(chromium)
    body = last(service, ":rank")
    assert body["context"]["release_year"] == "1997" and "age" not in body["context"]
    assert [row["age"] for row in body["candidates"]] == ["49"] * 6
    assert not any("release_year" in row for row in body["candidates"])


def test_a_value_that_is_refused_is_marked(chromium: Browser, address: str) -> None:
    opened(chromium, address)
    typed(chromium, "candidates[2].item_id", "nonsense")
    click(chromium, "Rank")
    until(chromium, "document.querySelector('#result .wrong')")
    assert (
        chromium.value("document.querySelector('[aria-invalid=true]').dataset.path")
        == "candidates[2].item_id"
    )
    typed(chromium, "context.timestamp", "soon")  # never sent
    assert "takes numbers" in chromium.value(
        "document.querySelector('[data-path=\"context.timestamp\"]').title"
    )


def test_a_version_is_promoted_once_that_is_confirmed(
    chromium: Browser, address: str, service: Service
) -> None:
    opened(chromium, address)
    click(chromium, "Promote version 4")
    click(chromium, "Cancel")
    assert service.models["ml100k"]["live"] == "3"
    click(chromium, "Promote version 4")
    click(chromium, "Promote")
    until(chromium, "document.getElementById('says').textContent.startsWith('Version 4 answers all')")
    click(chromium, "Roll back version 4")
    click(chromium, "Roll back")
    until(chromium, "document.getElementById('says').textContent.startsWith('Version 3 answers all')")


def test_traffic_always_sums_to_a_hundred(chromium: Browser, address: str, service: Service) -> None:
    opened(chromium, address)
    slide = "document.querySelector('[aria-label=\"Share of version 4 in percent\"]')"
    for percent in (37, 100, 3, 33):
        chromium.value(f"{slide}.value = {percent}; {slide}.dispatchEvent(new Event('input'))")
        parts = "[...document.querySelectorAll('#traffic-form input[type=range]')].map(i => Number(i.value))"
        assert sum(chromium.value(parts)) == 100
    click(chromium, "Apply")
    until(chromium, "!document.getElementById('toast').hidden")
    body = last(service, "/traffic")
    assert body["split"]["4"] == 33 and sum(body["split"].values()) == 100
    assert body["shadow"] == {"version": "4", "percent": 10}


def test_page_asks_for_a_token_and_says_when_the_service_is_gone(chromium: Browser) -> None:
    service = Service([films()], token="secret")
    with serving(service) as address:
        chromium.open(address, WIDTH)
        until(chromium, "document.getElementById('ask').open")
        chromium.value("document.getElementById('ask-field').value = 'secret'")
        click(chromium, "Use it")
        until(chromium, "document.querySelectorAll('#request [data-row]').length > 0")
        assert chromium.value("document.getElementById('trouble').hidden")
        service.broken = True
        until(chromium, "document.getElementById('trouble').textContent === 'Nothing is loaded yet.'")
        service.broken = False
        until(chromium, "document.getElementById('trouble').hidden")
    until(
        chromium, "document.getElementById('trouble').textContent.startsWith('The service does not answer')"
    )


def test_page_without_models_says_how_to_get_one(chromium: Browser) -> None:
    with serving(Service([])) as address:
        chromium.open(address, WIDTH)
        until(chromium, "!document.getElementById('empty').hidden")
        assert chromium.value("document.getElementById('model').hidden")


def test_names_are_text(chromium: Browser) -> None:
    name = "<img src=x onerror=alert(1)>"
    with serving(Service([films() | {"name": name}, ads()])) as address:
        chromium.open(address, WIDTH)
        until(chromium, "!document.getElementById('model').hidden")
        assert chromium.value("document.getElementById('name').textContent") == name
        assert chromium.value("document.querySelector('img[src=x]')") is None
