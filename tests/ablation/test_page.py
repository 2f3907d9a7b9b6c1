"""Laws of report.html say: one file, no network, valid, complete; a real browser sorts it and looks at it."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser

import pytest

from mixerzoo.ablation.reading.report import write_report
from mixerzoo.ablation.running.store import Store
from tests.ablation.rows import row, study, write

VOID = {"meta", "line", "circle", "path", "use", "image", "rect", "br"}
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Checks that elements nest, and gathers ids, references, addresses and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.outside: list[str] = []
        self.tables = 0
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self._take(tag, attributes)

    def handle_startendtag(self, tag, attributes):
        self._take(tag, attributes)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    def _take(self, tag, attributes):
        self.tables += tag == "table"
        assert tag not in ("link", "iframe") and not (tag == "script" and attributes), "it stands alone"
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            elif name in ("href", "xlink:href", "src") and value.startswith("#"):
                self.references.append(value[1:])
            elif name in ("href", "xlink:href", "src") and not value.startswith("data:"):
                self.outside.append(value)
            self.references += re.findall(r"url\(#(.*?)\)", value or "")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    question = {"question": "How <much> state?", "baseline": "attention"}
    return write_report(Store(write(tmp_path_factory.mktemp("runs") / "study", study(), question)))


@pytest.fixture(scope="module")
def text(report) -> str:
    return (report.directory / "report.html").read_text(encoding="utf-8")


def test_the_page_is_whole_and_stands_alone(text):
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids)), "figures don't share names"
    assert set(page.references) <= set(page.ids)
    assert page.outside == [] and "@import" not in text and "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)


def test_the_page_tells_all(report, text):
    words = " ".join(Page(text).words)
    for said in (
        *("How <much> state?", "hgrn2", "not told apart", "out of memory (RuntimeError: no luck)", "Not converged"),
        *("mixerzoo ablate --seeds 3", "train.batch_size", "Average ranks over 4 tasks", "All tasks"),
    ):
        assert said in words
    assert text.count("<figure") == len(list((report.directory / "figures").glob("*.svg"))) == 12
    assert text.count('<svg class="whisker"') == 24, "one for every arm with an interval, across tables aside"


def test_figures_take_the_pages_colours(text):
    figures = "".join(re.findall(r"<figure.*?</figure>", text, re.DOTALL)).lower()
    assert "var(--c0)" in figures and "var(--ink)" in figures
    assert not {"#0072b2", "#202124", "#9aa0a6"} & set(re.findall(r"#[0-9a-f]{6}", figures))


def test_what_runs_say_is_text_and_never_markup(tmp_path):
    evil = "<script>alert(1)</script>"
    rows = [row(0.5, result_notes=[evil], result_measurements={"values": {evil: 1.0}, "note": evil})]
    rows.append(row(seed=1, status="failed", result_error=f"ValueError: {evil}"))
    report = write_report(Store(write(tmp_path, rows, {"question": evil})), plots=False)
    page = (report.directory / "report.html").read_text()
    assert page.count("<script") == 1 and page.count("&lt;script&gt;alert(1)") >= 5
    assert "\\<script>" in (tmp_path / "results.md").read_text()


@pytest.mark.slow
def test_the_page_works_in_a_browser_without_network(report):
    """Nothing is requested or reported, nothing is wider than the screen, tables sort, dark is dark."""
    from playwright.sync_api import sync_playwright

    assert BROWSER, "this test needs chromium or google-chrome on the path"
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        for width, scheme in ((1280, "light"), (390, "dark")):
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            said, asked = [], []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("pageerror", lambda error, said=said: said.append(str(error)))
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto((report.directory / "report.html").as_uri())
            assert said == [] and len(asked) == 1
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 27)"}[scheme]
            first = page.locator("#task-mqar tbody tr td:first-child")
            column = page.locator("#task-mqar th button", has_text="mixer.expand")
            column.click()
            expands = page.locator("#task-mqar tbody tr td:nth-child(2)").all_inner_texts()[:9]
            assert expands == ["1", "4", "16", "64", "128", "", "", "", ""]
            column.click()
            assert page.locator("#task-mqar tbody tr td:nth-child(2)").all_inner_texts()[0] == "128"
            assert first.all_inner_texts()[0] == "hgrn2"
            assert column.locator("..").get_attribute("aria-sort") == "descending"
        browser.close()
