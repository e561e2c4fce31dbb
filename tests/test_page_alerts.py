"""Standing questions on the page, as a person uses them: real Chromium, the real server, the model `tiny`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alert_films import CLIP_SECONDS, HEART, OTHER, heart_film
from browsers import arguments, require_chromium, vstream_serve
from test_page import DESKTOP, PHONE, WAIT_MS, is_stray, open_page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

TIMES, SECONDS = ((14, 18), (34, 38)), 42
EVENT_MS = 60_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    heart_film(folder / "hearts.mp4", times=TIMES, seconds=SECONDS)
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    require_chromium()
    with vstream_serve(folder, "--allow", str(folder), "--model", "tiny", "--fps", "1") as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = require_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments())
        yield browser
        browser.close()


@pytest.fixture
def page(request: pytest.FixtureRequest, browser: Any, address: str, folder: Path) -> Iterator[Any]:
    """A page that watches the film as it plays. What it throws or asks of others is a failure."""
    phone = getattr(request, "param", "") == "phone"
    context = browser.new_context(viewport=PHONE if phone else DESKTOP, color_scheme="dark" if phone else "light")
    context.set_default_timeout(WAIT_MS)
    page, strays, errors = context.new_page(), [], []
    page.on("request", lambda asked: strays.append(asked.url) if is_stray(asked.url, address) else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    open_page(page, address)
    page.click("details.more summary")
    page.select_option("#pace", "play")
    page.fill("#source", str(folder / "hearts.mp4"))
    page.click("#open-form button:enabled")
    page.wait_for_selector("#watch .asks")
    yield page
    for stream in page.evaluate("fetch('/v1/streams').then(reply => reply.json())")["data"]:
        page.evaluate("id => fetch(`/v1/streams/${id}`, {method: 'DELETE'})", stream["id"])
    context.close()
    assert (strays, errors) == ([], [])


def tell_me(page: Any, text: str) -> Any:
    """Adds a standing question with keys; its line in the list."""
    page.focus("#tell-text")
    page.keyboard.type(f"{text}\n")
    line = page.locator("#alerts .alert", has_text=text.strip())
    line.wait_for()
    page.wait_for_function("document.getElementById('tell-text').value == ''")
    return line


@pytest.mark.parametrize("page", ["desktop", "phone"], indirect=True)
def test_a_standing_question_is_told_of_shown_and_sought(page: Any) -> None:
    line = tell_me(page, HEART)
    assert "not yet" in line.inner_text()
    assert line.locator(".dot.on").count() == 0
    page.wait_for_selector("#alerts .alert .dot.on", timeout=EVENT_MS)
    page.wait_for_selector(".over .chip.seen", state="visible")
    assert page.locator(".over .chip.seen").inner_text() == HEART
    assert "since 00:1" in line.inner_text()
    event = page.locator("#log .event button")
    event.wait_for()
    assert HEART in event.inner_text()
    page.wait_for_function("document.querySelector('.event img').naturalWidth > 0")

    event.click()
    page.wait_for_selector("html[data-seeking]")
    page.wait_for_function(
        """() => { const video = document.getElementById('replay'), still = document.getElementById('still');
        return video.hidden ? still.naturalWidth > 0 : video.readyState > 1 && !video.seeking }"""
    )
    seconds = float(event.get_attribute("data-seconds"))
    assert TIMES[0][0] <= seconds <= TIMES[0][1]
    if page.locator("#replay").is_visible():
        assert page.evaluate("document.getElementById('replay').currentTime") == pytest.approx(seconds, abs=0.1)
    assert event.get_attribute("aria-pressed") == "true"
    page.keyboard.press("Escape")
    page.wait_for_selector("html:not([data-seeking])")

    page.wait_for_function("document.querySelector('#alerts .alert').innerText.includes('once')", timeout=EVENT_MS)
    page.wait_for_selector(".over .chip.seen", state="detached")
    assert "00:1" in event.inner_text()
    assert " to 00:" in event.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"


def test_they_are_added_and_removed_with_keys_and_refusals_are_said(page: Any) -> None:
    tell_me(page, f"  {HEART} ")
    tell_me(page, OTHER)
    page.focus("#tell-text")
    page.keyboard.type(f"{HEART}\n")
    page.wait_for_selector("#told .trouble")
    assert "is looked for already" in page.locator("#told .trouble").inner_text()
    assert page.locator("#alerts .alert").count() == 2
    page.fill("#tell-text", "")
    page.wait_for_selector("#told .trouble", state="detached")
    page.focus("#alerts .alert:first-child button")
    assert page.locator(":focus").get_attribute("aria-label") == f"Remove: {HEART}"
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('#alerts .alert').length == 1")
    assert OTHER in page.locator("#alerts .alert").inner_text()
    page.locator("#alerts .alert button").click()
    page.wait_for_selector("#alerts .alert", state="detached")
    assert page.is_visible("#tell-form")


def test_markup_in_a_standing_question_is_text(page: Any) -> None:
    evil = '<img src=x onerror="window.evil=1">'
    line = tell_me(page, evil)
    assert evil in line.inner_text()
    assert line.locator("img").count() == 0
    assert page.evaluate("window.evil") is None


def test_a_film_that_is_over_takes_none(page: Any, folder: Path) -> None:
    tell_me(page, OTHER)
    page.click(".tabs >> text=Add")
    page.wait_for_selector("html[data-view=home]")
    page.select_option("#pace", "fast")
    short = heart_film(folder / "short.mp4", times=((2, 4),), seconds=CLIP_SECONDS)
    page.fill("#source", str(short))
    page.click("#open-form button:enabled")
    page.wait_for_selector("#watch .asks")
    page.wait_for_function("document.querySelector('.over').innerText.includes('Seen to its end')")
    page.wait_for_selector("#tell-form", state="hidden")
    assert not page.is_visible("#alerts-box")
