"""The page in a real headless Chromium: a clip chosen, seen, asked about; presets, key, errors, keyboard, a phone's width."""

from __future__ import annotations

import contextlib
import shutil

import pytest
from http_server import NAME, running

from export.demo import CLIPS
from export.options import ExportOptions
from export.pipeline import export_bundle
from runtime.bundle import Bundle
from runtime.engine import EngineOptions
from runtime.server.models import Models
from runtime.server.options import ServerOptions

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield one
        one.close()


@pytest.fixture(scope="module")
def site(bundle_path, tmp_path_factory):
    """A server with two presets of one checkpoint."""
    other = tmp_path_factory.mktemp("presets") / "topk"
    capacity = Bundle.open(bundle_path).max_context
    export_bundle(ExportOptions(out=str(other), compress="topk:keep=0.125", max_context=capacity))
    options = ServerOptions(batch=2, backend="onnx", engine=EngineOptions(threads=1))
    models = Models.open([bundle_path, other], options)
    assert len(models.llms) == 1  # the presets share one decoder
    with running(models, options) as server:
        yield server
    models.close()


@pytest.fixture
def page(browser, site):
    context = browser.new_context(viewport={"width": 1100, "height": 1300})
    tab = context.new_page()
    problems: list[str] = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    tab.goto(site.url)
    yield tab
    context.close()
    assert [p for p in problems if "status of 4" not in p] == []


def _choose(page, name: str = "shapes.mp4") -> None:
    page.set_input_files("#file", CLIPS / name)
    page.wait_for_selector("#frames li")


def _ask(page, text: str) -> str:
    page.fill("#question", text)
    page.press("#question", "Enter")
    page.wait_for_function("() => document.querySelector('article .cost')?.textContent")
    return page.inner_text("article .answer")


def test_a_clip_is_seen_and_answered(page, tmp_path):
    _choose(page)
    assert page.locator("#frames li").count() == 16
    assert page.inner_text("#tokens") == "1,296 patch tokens → 257 visual tokens (5.0:1)"
    summaries = page.locator("#frames li.summary")
    assert summaries.count() == 2 and "summary, level 1" in summaries.first.inner_text()
    assert page.evaluate("document.querySelector('#frames canvas').width") == 9
    hot = page.evaluate("[...document.querySelector('#frames canvas').getContext('2d').getImageData(0, 0, 9, 9).data]")
    assert len(set(hot[::4])) > 10
    assert _ask(page, "which shape appears last ?") == "cross"
    assert "1,296 → 257 tokens, clip remembered" in page.inner_text("article .cost")
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_the_heat_map_can_be_switched_off(page):
    _choose(page)
    assert page.locator("#frames canvas").first.is_visible()
    page.uncheck("#heat")
    assert not page.locator("#frames canvas").first.is_visible()


def test_another_preset_shows_its_own_counts(page):
    _choose(page)
    assert page.locator("#model option").count() == 2
    page.select_option("#model", "topk")
    page.wait_for_function("() => document.querySelector('#tokens').textContent.includes('161')")
    assert page.locator("#summary-legend").is_hidden()
    assert _ask(page, "what color is the square ?") == "red"


def test_what_is_no_video_is_said_and_the_page_goes_on(page, tmp_path):
    (tmp_path / "notes.mp4").write_text("not a video")
    page.set_input_files("#file", tmp_path / "notes.mp4")
    page.wait_for_selector("#error:not([hidden])")
    assert "the clip is not a video" in page.inner_text("#error")
    _choose(page)
    assert page.locator("#error").is_hidden()


def test_it_works_by_keyboard_alone_and_names_its_parts(page):
    _choose(page)
    page.focus("#question")
    page.keyboard.type("what color is the square ?")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "send"
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('article .cost')?.textContent")
    assert page.inner_text("article .answer") == "red"
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('input, select, textarea, button')]
           .filter(e => !e.labels?.length && !e.textContent.trim() && !e.getAttribute('aria-label')).map(e => e.id)"""
    )
    assert unnamed == []
    assert all(page.locator("#frames img").nth(n).get_attribute("alt") for n in range(16))
    assert page.get_attribute("#answers", "aria-live") == "polite"


def test_a_phone_needs_no_sideways_scrolling(browser, site):
    with contextlib.closing(browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True)) as context:
        tab = context.new_page()
        tab.goto(site.url)
        _choose(tab)
        _ask(tab, "which shape appears last ?")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        assert tab.evaluate("document.querySelector('#send').getBoundingClientRect().height") >= 44


def test_a_key_is_asked_for_where_the_server_wants_one(browser, start):
    server = start(api_key="open sesame")
    with contextlib.closing(browser.new_context()) as context:
        tab = context.new_page()
        tab.goto(server.url)
        tab.wait_for_selector("#key:not([hidden])")
        tab.fill("#key", "open sesame")
        tab.press("#key", "Tab")
        tab.wait_for_function("() => document.querySelector('#model').options.length === 1")
        assert tab.evaluate("document.querySelector('#model').value") == NAME


def test_the_page_loads_nothing_from_elsewhere(browser, site):
    with contextlib.closing(browser.new_context()) as context:
        tab, asked = context.new_page(), []
        tab.on("request", lambda request: asked.append(request.url))
        response = tab.goto(site.url)
        tab.wait_for_load_state("networkidle")
        assert all(url.startswith(site.url) for url in asked) and len(asked) >= 4
        assert "default-src 'none'" in response.headers["content-security-policy"]
