"""The page, as a person uses it: real Chromium, the real server, the embedded model."""

from __future__ import annotations

import io
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from browsers import arguments, require_chromium, vstream_serve, write_y4m
from fastapi import FastAPI
from PIL import Image
from servers import TOKEN, serving
from videos import write_video

from vstream.app.serve.allowed import SourcePolicy
from vstream.app.serve.hub import Hub
from vstream.app.serve.library import Library
from vstream.app.serve.page.html import size
from vstream.app.serve.page.map import cover, lanes_of, memory_map
from vstream.app.serve.page.visit import Visits
from vstream.app.serve.server import build_app
from vstream.app.serve.stopping import Stopping
from vstream.memory.columns import COLUMNS
from vstream.memory.levels import DETAIL, DIGEST, GIST

SAMPLE = Path(__file__).parent.parent / "samples" / "sample.mp4"
WAIT_MS = 20_000
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 375, "height": 800}

pytestmark = pytest.mark.timeout(120)


# Without a browser --------------------------------------------------------------------------------------------------


def rows_of(*blocks: tuple[int, float, float]) -> np.ndarray:
    rows = np.zeros(len(blocks), COLUMNS)
    for row, (level, start, end) in zip(rows, blocks, strict=True):
        row["level"], row["start_seconds"], row["end_seconds"] = level, start, end
    return rows


def test_columns_are_covered_by_as_much_as_lies_in_them():
    rng = np.random.default_rng(0)
    starts = np.sort(rng.uniform(0, 95, 30))
    times = np.stack([starts, starts + rng.uniform(0.5, 5, 30)], axis=1)
    got = cover(times[::3], 100.0, 40)
    fine = np.zeros(40 * 1000)
    for start, end in times[::3]:
        fine[int(start * 400) : int(end * 400)] += 1
    assert got == pytest.approx(np.minimum(fine.reshape(40, 1000).mean(axis=1), 1), abs=0.01)
    assert not cover(np.zeros((0, 2)), 100.0).any()


def test_what_was_not_used_is_not_drawn_as_if():
    for end in np.linspace(37.0, 38.0, 50):
        shares = cover(np.array([[0.0, 4.0], [4.0, 8.0]]), float(end))
        assert (shares > 0).sum() == pytest.approx(8 / end * len(shares), abs=1)
        assert not (shares[int(8 / end * len(shares)) + 1 :] > 0).any()


def test_the_map_of_a_long_memory_stays_small_and_shows_what_was_used():
    blocks = [(GIST if k < 4000 else DIGEST if k < 8000 else DETAIL, 4.0 * k, 4.0 * k + 3) for k in range(10_000)]
    began = time.perf_counter()
    figure = memory_map(lanes_of(rows_of(*blocks)), [(4.0 * 9000, 4.0 * 9000 + 3)], 40_000.0)
    assert time.perf_counter() - began < 0.2
    assert len(figure) < 20_000
    assert "10000 blocks" in figure
    assert "brought back for the last answer" in figure
    used = re.findall(r'class="used" d="([^"]*)"', figure)
    assert [bool(path) for path in used] == [True, False, False], "it is a block of detail"
    assert float(used[0].split()[0][1:]) == pytest.approx(900, abs=5)
    nothing = memory_map(lanes_of(rows_of(*blocks)), [], 40_000.0)
    assert "brought back" not in nothing.replace("; 0 brought back for the last answer", "")


def test_sizes_are_said_as_people_say_them():
    assert [size(count) for count in (0, 900, 2048, 5 << 20, 3 << 30)] == [
        "0 B", "900 B", "2.0 KiB", "5.0 MiB", "3.0 GiB",
    ]  # fmt: skip


def test_of_too_many_visits_the_quietest_is_forgotten():
    visits = Visits(most=2)
    for name in "ab":
        visits.keep(name, name)
    assert visits.find("a") == "a"
    visits.keep("c", "c")
    assert [visits.find(name) for name in "abc"] == ["a", None, "c"]
    with pytest.raises(LookupError, match="load it again"):
        visits.found("b")


# With one -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, embedded_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("page")
    (folder / "videos").mkdir()
    shutil.copy(SAMPLE, folder / "videos" / "mine.mp4")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    require_chromium()
    with vstream_serve(folder, "--allow", str(folder / "videos")) as address:
        yield address


@pytest.fixture(scope="module")
def browser(folder: Path) -> Iterator[Any]:
    chromium = require_chromium()
    from playwright.sync_api import sync_playwright

    camera = write_y4m(folder / "camera.y4m", SAMPLE, 15.0)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments(camera))
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A new visitor's page, at the beginning. Whatever it asked of other machines, or threw, is a failure."""
    context = browser.new_context(viewport=DESKTOP, color_scheme="light")
    context.set_default_timeout(WAIT_MS)
    page, strays, errors = context.new_page(), [], []
    page.on("request", lambda request: strays.append(request.url) if is_stray(request.url, address) else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    open_page(page, address)
    yield page
    for stream in page.evaluate("fetch('/v1/streams').then(reply => reply.json())")["data"]:
        page.evaluate("id => fetch(`/v1/streams/${id}`, {method: 'DELETE'})", stream["id"])
    context.close()
    assert (strays, errors) == ([], [])


def is_stray(url: str, address: str) -> bool:
    return not url.startswith((f"{address}/", f"{address.replace('http', 'ws', 1)}/", "data:", "blob:"))


def open_page(page: Any, address: str) -> None:
    page.goto(address, wait_until="domcontentloaded")
    page.wait_for_selector("html[data-view] #page")


def watch_sample(page: Any) -> None:
    page.click("text=Watch the sample")
    page.wait_for_selector("#watch .asks")
    page.wait_for_function("document.getElementById('live').naturalWidth > 0")


def ask(page: Any, question: str) -> str:
    """Asks, and the whole answer."""
    before = page.locator(".turn").count()
    page.fill("#question", question)
    page.keyboard.press("Enter")
    said = page.locator(".turn").nth(before).locator(".said:not([aria-busy])")
    said.wait_for()
    return said.inner_text()


def clock_seconds(page: Any) -> int:
    minutes, seconds = page.locator(".over .chip").first.inner_text().split()[0].split(":")
    return 60 * int(minutes) + int(seconds)


GROWTH = """() => {
  window.lengths = [];
  new MutationObserver(() => {
    const said = document.querySelector('.turn:last-child .said');
    if (said) window.lengths.push(said.textContent.length);
  }).observe(document.getElementById('log-box'), { childList: true, subtree: true, characterData: true });
}"""


@pytest.mark.slow
def test_from_the_sample_in_one_click_to_an_answer_that_shows_its_moment(page):
    watch_sample(page)
    assert page.locator("#watch .tile").count() == 5
    page.wait_for_function("document.querySelectorAll('#map-svg .block-bin[d*=M]').length > 0")
    page.evaluate(GROWTH)
    before = clock_seconds(page)
    assert "espresso" in ask(page, "What drink is shown?").lower()
    lengths = [length for length in page.evaluate("window.lengths") if length]
    assert len(set(lengths)) >= 2, "it grew while it was being made"
    assert lengths == sorted(lengths)

    evidence = page.locator(".turn .evidence button")
    assert evidence.count() >= 1
    assert re.search(r"00:0\d", evidence.first.inner_text())
    page.wait_for_function("[...document.querySelectorAll('.evidence img')].every(image => image.naturalWidth > 0)")
    evidence.first.click()
    page.wait_for_function(
        """() => { const video = document.getElementById('replay'), still = document.getElementById('still');
        return video.hidden ? still.naturalWidth > 0 : video.readyState > 1 && !video.seeking }"""
    )
    if page.locator("#replay").is_visible():
        wanted = float(evidence.first.get_attribute("data-seconds"))
        assert page.evaluate("document.getElementById('replay').currentTime") == pytest.approx(wanted, abs=0.1)
    assert evidence.first.get_attribute("aria-pressed") == "true"
    page.keyboard.press("Escape")
    page.wait_for_selector("#live", state="visible")
    page.wait_for_function(f"!document.querySelector('.over').innerText.startsWith('00:0{before}')")
    assert clock_seconds(page) > before, "the watching went on"


@pytest.mark.slow
def test_everything_can_be_done_with_keys(page):
    watch_sample(page)
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.type("What is shown now?\n")
    page.wait_for_selector(".turn .evidence button")
    page.wait_for_selector(".turn .said:not([aria-busy])")
    page.locator(".evidence button").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("html[data-seeking]")
    if page.locator(".evidence button").count() > 1:
        page.keyboard.press("ArrowRight")
        assert page.locator(".evidence button").nth(1).get_attribute("aria-pressed") == "true"
    page.keyboard.press("Escape")
    page.wait_for_selector("html:not([data-seeking])")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Control+k")
    assert page.evaluate("document.activeElement.id") == "question"


@pytest.mark.slow
def test_several_questions_run_at_once_and_one_can_be_stopped(page):
    watch_sample(page)
    for number in range(6):
        page.fill("#question", f"What drink is shown? {number}")
        page.keyboard.press("Enter")
    last = page.locator(".turn").nth(5)
    last.locator("text=Stop").click()
    page.wait_for_function("document.querySelectorAll('.turn .said:not([aria-busy])').length == 6")
    assert "stopped" in last.locator(".foot").inner_text()
    for number in range(5):
        assert "espresso" in page.locator(".turn .said").nth(number).inner_text().lower()


@pytest.mark.slow
def test_what_will_not_do_is_said_where_one_looks(page, folder):
    for source in ("/etc/passwd", "/nowhere/video.mp4", "rtsp://10.1.2.3/door", "http://10.1.2.3/film.mp4"):
        page.fill("#source", source)
        page.click("#open-form button:enabled")
        notice = page.locator("#home .notice .trouble", has_text=source.partition("//")[0])
        notice.wait_for()
        assert "--allow" in notice.inner_text()
    page.fill("#source", str(folder / "videos" / "mine.mp4"))
    page.click("#open-form button:enabled")
    page.wait_for_selector("#watch .asks")
    assert "mine.mp4" in page.locator(".chat-head h2").inner_text()


@pytest.mark.slow
def test_a_video_is_uploaded_and_watched_as_one_chose(page, tmp_path):
    (tmp_path / "notes.mp4").write_text("no video at all")
    page.set_input_files("#upload", tmp_path / "notes.mp4")
    page.wait_for_selector("#notice .trouble")
    page.click("details.more summary")
    page.select_option("#preset", "rekv")
    page.select_option("#kept", "1")
    page.set_input_files("#upload", SAMPLE)
    page.wait_for_selector("#watch .asks")
    assert page.locator(".chat-head h2").inner_text() == "sample.mp4"
    assert page.locator(".chat-head .what p").inner_text() == "embedded · rekv · kept"
    page.wait_for_function("document.getElementById('live').naturalWidth > 0")


SAME_PICTURE = """() => {
  const [clicked, shown] = [".evidence img", "#still"].map((name) => {
    const image = document.querySelector(name), canvas = document.createElement("canvas");
    Object.assign(canvas, { width: image.naturalWidth, height: image.naturalHeight });
    canvas.getContext("2d").drawImage(image, 0, 0);
    return canvas.toDataURL();
  });
  return clicked === shown;
}"""


@pytest.mark.slow
def test_the_webcam_is_watched_and_asked_about(page):
    page.click("text=Use this webcam")
    page.wait_for_selector("#watch .asks")
    page.wait_for_function("document.getElementById('mine').videoWidth > 0")
    page.wait_for_function("document.querySelectorAll('#map-svg .block-bin[d*=M]').length > 0")
    assert "cat" in ask(page, "What animal is shown?").lower()
    page.wait_for_function("[...document.querySelectorAll('.evidence img')].some(image => image.naturalWidth > 0)")
    evidence = page.locator(".evidence button").first
    evidence.click()
    page.wait_for_function("document.getElementById('still').naturalWidth > 0")
    assert page.locator("#still").is_visible()
    assert page.evaluate(SAME_PICTURE), "the very picture that was clicked"
    assert page.locator("#moment").inner_text().split()[0] == evidence.locator("b").inner_text()
    page.click("#back")
    assert page.locator("#mine").is_visible()


LONG = "1 a " * 500
"""More tokens than a question may have."""


@pytest.mark.slow
def test_a_question_that_is_not_taken_stays_in_its_box(page):
    watch_sample(page)
    ask(page, "What drink is shown?")
    page.wait_for_function("document.getElementById('question').value == ''")
    page.fill("#question", LONG)
    page.keyboard.press("Enter")
    page.wait_for_selector("#told .trouble")
    assert page.input_value("#question") == LONG
    page.keyboard.type("x")
    page.wait_for_selector("#told .trouble", state="detached")

    page.fill("#question", "What is shown now?")
    page.context.set_offline(True)
    page.keyboard.press("Enter")
    page.wait_for_selector("#gone", state="visible")
    assert page.input_value("#question") == "What is shown now?"
    box = page.locator("#ask-box").bounding_box()
    assert box["y"] + box["height"] <= DESKTOP["height"]
    assert not page.locator(".over [role=status]").is_visible()
    with page.expect_event("domcontentloaded"):
        page.context.set_offline(False)
    page.wait_for_function("document.getElementById('question')?.value == 'What is shown now?'")
    assert page.locator(".turn").count() == 1


@pytest.mark.slow
def test_what_is_over_shows_its_newest_picture(page, folder):
    short = folder / "videos" / "short.mp4"
    write_video(short, [k / 5 for k in range(20)])
    page.fill("#source", str(short))
    page.click("#open-form button:enabled")
    page.wait_for_selector(".over >> text=Seen to its end")
    page.reload(wait_until="domcontentloaded")
    page.wait_for_function("document.getElementById('live')?.naturalWidth > 0")
    assert "/frames/" in page.locator("#live").get_attribute("src")
    assert page.locator("#waiting").text_content() == ""
    page.click("#map-svg")
    assert page.locator("#back").inner_text().split() == ["Back", "Esc"]


@pytest.mark.slow
def test_streams_of_one_name_are_told_apart_and_say_that_they_are_not_saved(page):
    watch_sample(page)
    page.click(".brand")
    page.wait_for_selector("#home h1", state="visible")
    watch_sample(page)
    page.wait_for_selector(".chat-head h2:has-text('Sample 2')")
    page.click(".brand")
    memory = page.locator(".memory", has_text="Sample 2")
    memory.wait_for()
    assert "not saved" in memory.inner_text()
    memory.locator("text=Keep").click()
    page.locator(".memory", has_text="Sample 2").filter(has_not_text="not saved").wait_for()
    memory.locator("text=Delete").click()
    page.click("#delete-dialog .danger")
    memory.wait_for(state="detached")


@pytest.mark.slow
def test_a_memory_is_kept_renamed_resumed_exported_and_deleted(page):
    watch_sample(page)
    said = ask(page, "What drink is shown?")
    page.click("text=Keep memory")
    page.wait_for_selector("text=Keep memory", state="detached")
    page.click(".menu summary")
    page.click("text=Rename…")
    page.fill("#new-title", "Morning coffee")
    page.keyboard.press("Enter")
    page.wait_for_selector(".chat-head h2:has-text('Morning coffee')")

    for name, check in {"Markdown": check_markdown, "JSON": check_json}.items():
        page.click(".menu summary")
        with page.expect_download() as download:
            page.click(f"text=Export as {name}")
        assert download.value.suggested_filename.startswith("morning-coffee.")
        check(Path(download.value.path()).read_text("utf-8"), said)

    page.click(".menu summary")
    page.locator(".sheet >> text=Close").click()
    memory = page.locator(".memory:has-text('Morning coffee')")
    memory.wait_for()
    assert "1 question" in memory.inner_text()
    memory.locator("text=Resume").click()
    page.wait_for_selector(".turn .said")
    assert page.locator(".turn .said").inner_text() == said
    page.wait_for_function("document.getElementById('live').naturalWidth > 0")
    page.wait_for_function("[...document.querySelectorAll('.evidence img')].some(image => image.naturalWidth > 0)")

    page.click(".brand")
    page.wait_for_selector("#home h1", state="visible")
    memory.locator("text=Delete").click()
    page.click("#delete-dialog >> text=Cancel")
    assert memory.count() == 1
    memory.locator("text=Delete").click()
    page.click("#delete-dialog .danger")
    memory.wait_for(state="detached")


def check_markdown(text: str, said: str) -> None:
    assert text.startswith("# Morning coffee\n")
    assert said in text
    assert "![picture at 00:0" in text


def check_json(text: str, said: str) -> None:
    turn = json.loads(text)["conversation"][0]
    assert (turn["question"], turn["answer"]) == ("What drink is shown?", said)
    assert turn["evidence"][0]["picture_jpeg_base64"]


@pytest.mark.slow
def test_an_unkept_memory_is_forgotten_only_when_one_says_so(page):
    watch_sample(page)
    page.click(".menu summary")
    page.locator(".sheet >> text=Close…").click()
    page.click("#close-dialog >> text=Cancel")
    assert page.locator("#watch").is_visible()
    page.click(".menu summary")
    page.locator(".sheet >> text=Close…").click()
    page.click("#close-dialog >> text=Forget")
    page.wait_for_selector("#home h1", state="visible")
    assert page.locator(".memory [data-title='Sample']").count() == 0


@pytest.mark.slow
def test_four_windows_of_one_browser_do_not_hold_each_other_up(page):
    watch_sample(page)
    windows = [page.context.new_page() for _ in range(3)]
    for window in windows:
        window.goto(page.url, wait_until="domcontentloaded")
        window.wait_for_function("document.getElementById('live')?.naturalWidth > 0")
    assert "espresso" in ask(windows[-1], "What drink is shown?").lower()
    page.wait_for_selector(".turn .said:not([aria-busy])")


@pytest.mark.slow
def test_a_conversation_is_there_when_the_page_is_opened_again(page, address):
    watch_sample(page)
    page.fill("#question", "What drink is shown?")
    page.keyboard.press("Enter")
    page.locator(".turn").wait_for()
    page.reload(wait_until="domcontentloaded")
    page.wait_for_selector(".turn .said:not([aria-busy])")
    assert "espresso" in page.locator(".turn .said").inner_text().lower()
    page.evaluate("fetch(`/v1/streams/${document.getElementById('state').dataset.stream}`, {method: 'DELETE'})")
    page.wait_for_selector("#home >> text=closed elsewhere")


@pytest.mark.slow
def test_the_live_view_ends_with_its_stream_and_recordings_come_in_ranges(address):
    with httpx.Client(base_url=address, timeout=20) as client:
        stream = client.post("/v1/streams", json={"source": "sample", "realtime": True}).json()["id"]
        base = f"/v1/streams/{stream}"
        with client.stream("GET", f"{base}/live.mjpg") as reply:
            assert reply.headers["content-type"] == "multipart/x-mixed-replace; boundary=picture"
            read, pieces = b"", reply.iter_bytes()
            while read.count(b"--picture\r\n") < 4:
                read += next(pieces)
            head, _, picture = read.split(b"--picture\r\n")[1].partition(b"\r\n\r\n")
            assert f"Content-Length: {len(picture) - 2}".encode() in head
            assert Image.open(io.BytesIO(picture)).size == (640, 360)
            part = client.get(f"{base}/source", headers={"Range": "bytes=100-199"})
            assert (part.status_code, part.content) == (206, SAMPLE.read_bytes()[100:200])
            missing = client.get(f"{base}/turns/1/evidence/0.jpg")
            assert (missing.status_code, missing.json()["error"]["message"]) == (404, "question 1 has no evidence 0")
            client.delete(base)
            assert sum(1 for _ in pieces) < 100, "it ends"
        assert {client.get(f"{base}/{path}").status_code for path in ("live.mjpg", "source", "conversation.md")} == {
            404
        }


@pytest.mark.slow
def test_a_request_to_elsewhere_would_be_noticed_and_go_nowhere(browser, address):
    context = browser.new_context()
    page, strays = context.new_page(), []
    page.on("request", lambda request: strays.append(request.url) if is_stray(request.url, address) else None)
    page.goto("about:blank")
    fetched = page.evaluate("fetch('https://fonts.example.com/').then(() => 'came', error => error.message)")
    context.close()
    assert (fetched, strays) == ("Failed to fetch", ["https://fonts.example.com/"])


CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const ground = (one) => {
    for (; one; one = one.parentElement) {
      const found = rgba(getComputedStyle(one).backgroundColor);
      if (found[3] == 255) return found;
    }
    return [255, 255, 255];
  };
  const light = (colour) => colour.slice(0, 3)
    .map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const hasText = (one) => [...one.childNodes].some((node) => node.nodeType == 3 && node.textContent.trim());
  return [...document.querySelectorAll('#top *, #home *, #gauges *, #map *, #right *')]
    .filter((one) => one.checkVisibility() && !one.disabled && hasText(one))
    .map((one) => {
      const pair = [light(rgba(getComputedStyle(one).color)), light(ground(one))].sort((a, b) => b - a);
      return [(pair[0] + 0.05) / (pair[1] + 0.05), one.textContent.trim().slice(0, 40)];
    });
}"""


@pytest.mark.slow
def test_texts_stand_out_and_fit_on_a_phone_in_light_and_dark(page):
    check_texts(page, at_least=10)
    page.emulate_media(color_scheme="dark")
    check_texts(page, at_least=10)
    watch_sample(page)
    ask(page, "What drink is shown?")
    check_texts(page, at_least=20)
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("[data-do=theme]")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    check_texts(page, at_least=20)
    page.add_style_tag(content="#page .tile dt { color: #7a7a7a }")
    with pytest.raises(AssertionError, match="Watching"):
        check_texts(page, at_least=20)


def check_texts(page: Any, at_least: int) -> None:
    for viewport in (DESKTOP, PHONE):
        page.set_viewport_size(viewport)
        page.wait_for_timeout(300)  # colours fade
        found = page.evaluate(CONTRAST)
        assert len(found) >= at_least
        assert [one for one in found if one[0] < 4.5] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    page.set_viewport_size(DESKTOP)


@pytest.mark.slow
def test_the_page_says_that_the_server_is_gone_and_comes_back_with_it(browser, tmp_path):
    context = browser.new_context(viewport=DESKTOP)
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    with serving(small_app(tmp_path)) as (_, listener):
        open_page(page, listener.url)
        assert page.locator("#gone").is_hidden()
        port = listener.socket.getsockname()[1]
    page.wait_for_selector("#gone", state="visible")
    with serving(small_app(tmp_path), port=port):
        page.wait_for_selector("#gone", state="hidden")
        page.wait_for_selector("#home h1", state="visible")
        context.close()


@pytest.mark.slow
def test_a_stranger_logs_in_with_the_token_and_then_it_is_the_same_page(browser, tmp_path):
    context = browser.new_context(viewport=PHONE)
    page = context.new_page()
    with serving(small_app(tmp_path), token=TOKEN) as (_, listener):
        page.goto(listener.url, wait_until="domcontentloaded")
        assert page.url.endswith("/login")
        page.fill("input[type=password]", TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector("#home h1", state="visible")
        page.fill("#source", "/etc/passwd")
        page.click("#open-form button:enabled")
        page.wait_for_selector("#home .notice .trouble")
        context.close()


def small_app(folder: Path) -> FastAPI:
    """All that the server has, but no model is loaded."""
    from vstream.app.serve.page.page import mount_page

    policy, library = SourcePolicy(()), Library(folder)
    hub = Hub(lambda source, max_side: policy.open(source, max_side=max_side), library, models=("tiny",))
    return mount_page(build_app(hub, policy=policy, stopping=Stopping()), hub, policy)
