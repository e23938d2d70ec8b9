"""The page in a real browser: find a node, read its reason, change the theme; silent and offline."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qcompile.report_page.page import render_page
from tests.report_page.browser import Page, browser, chromium
from tests.report_page.reports import make_report

PROGRAM = chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium (or no POSIX) on this machine")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_page(make_report(blocks=30)), encoding="utf-8")
    with browser(PROGRAM or "") as found:
        found.open(path.as_uri())
        yield found


def test_finds_a_node_and_reads_its_reason(page: Page) -> None:
    page.js("document.getElementById('search').focus()")
    page.type("/block1/Add")
    assert page.js("document.querySelectorAll('#hits li').length") == 1
    page.press("Enter")
    assert page.js("document.getElementById('reason').textContent") == "float is as fast here"
    assert page.js("document.getElementById('hits').hidden")
    text = page.js("document.getElementById('panel').textContent")
    assert "cost in float" in text and "mse" in text and "Comes from" in text


def test_a_click_on_the_graph_selects(page: Page) -> None:
    page.js("document.getElementById('graph').scrollIntoView()")
    page.js("document.getElementById('search').focus()")
    page.js("document.getElementById('search').value = ''")
    page.type("/block0/Conv0")
    page.press("Enter")
    page.settle()
    box = "document.getElementById('canvas').getBoundingClientRect()"
    x, y = page.js(f"[{box}.x + {box}.width / 2, {box}.y + {box}.height / 2]")
    page.click(x, y - 200)  # beside every node: nothing is selected
    assert "Select a node" in page.js("document.getElementById('panel').textContent")
    page.click(x, y)  # a found node stands in the middle
    assert page.js("document.querySelector('#panel h3').textContent") == "/block0/Conv0"


def test_nothing_selected_shows_where_to_look_first(page: Page) -> None:
    page.js("document.getElementById('canvas').focus()")
    page.press("Escape")
    first = "document.querySelectorAll('#panel .first')"
    assert page.js(f"{first}.length") == 3
    name = page.js(f"{first}[0].querySelector('.go').textContent")
    page.js(f"{first}[0].querySelector('.go').click()")
    assert page.js("document.querySelector('#panel h3').textContent") == name
    page.js("document.getElementById('search').value = ''")
    page.js("document.getElementById('search').focus()")
    page.type("/block0/Conv0")
    page.press("Enter")


def test_arrow_keys_follow_the_edges(page: Page) -> None:
    page.js("document.getElementById('canvas').focus()")
    page.press("ArrowDown")
    assert page.js("document.querySelector('#panel h3').textContent") == "/block0/Relu1"


def test_the_theme_changes(page: Page) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.js(background)
    page.js("document.getElementById('theme').click()")
    dark = page.js(background)
    assert dark != light
    assert page.js("document.getElementById('theme').textContent") == "Light"
    page.js("document.getElementById('theme').click()")
    assert page.js(background) == light


def test_the_theme_follows_the_system(page: Page) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    page.js("localStorage.clear()")
    light = page.js(background)
    page.prefer("dark")
    page.settle()
    assert page.js(background) != light
    page.prefer("light")


def test_the_table_is_filtered_and_sorted(page: Page) -> None:
    page.js("document.getElementById('filter').focus()")
    page.type("float is as fast")
    rows = "[...document.querySelectorAll('#layer-table tbody tr')]"
    assert page.js(f"{rows}.length") == 1
    page.js("document.getElementById('filter').value = ''")
    page.js("document.getElementById('filter').dispatchEvent(new Event('input'))")
    page.js("document.querySelector('th[data-key=macs] button').click()")
    page.js("document.querySelector('th[data-key=macs] button').click()")
    assert page.js(f"{rows}[0].cells[2].textContent") == "Conv"


def test_all_charts_are_drawn(page: Page) -> None:
    ids = ["pareto", "depth", "tensor", "weight", "time"]
    pixels = "c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
    for name in ids:
        canvas = f"document.getElementById('{name}-chart')"
        assert page.js(f"(c => {pixels}.some(Boolean))({canvas})"), name


def test_no_complaint_and_no_request(page: Page) -> None:
    page.settle()
    assert page.complaints() == []
    assert page.requests() == []
