"""The gate and a real browser: logging in, and what the pages of other sites can do."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from fastapi.staticfiles import StaticFiles
from gate_app import make_app
from servers import TOKEN, serving, serving_bare

# A real browser -------------------------------------------------------------------------------------------------


@pytest.fixture
def chromium() -> str:
    """Where Chromium is. Where it is missing, tests fail on CI and are skipped elsewhere."""
    found = shutil.which("chromium")
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("Chromium is not installed (apt-get install chromium)")
    if found is None:
        pytest.skip("Chromium is not installed")
    return found


@contextlib.contextmanager
def browsing(chromium: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        browser.close()


@pytest.mark.slow
def test_a_browser_logs_in_without_scripts(chromium: str) -> None:
    with serving(make_app(page=True), token=TOKEN) as (_, listener), browsing(chromium) as browser:
        page = browser.new_context(java_script_enabled=False).new_page()
        page.goto(listener.url)
        assert page.url == f"{listener.url}/login"
        page.get_by_label("Token").fill("not the token at all")
        page.keyboard.press("Enter")
        page.get_by_role("alert").wait_for()
        page.get_by_label("Token").fill(TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{listener.url}/")
        (cookie,) = page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Strict", "/")


@pytest.mark.slow
def test_gradio_works_behind_the_gate_and_asks_no_other_server(chromium: str) -> None:
    with serving(make_app(page=True)) as (_, listener), browsing(chromium) as browser:
        page = browser.new_page()
        troubles: list[str] = []
        page.on("console", lambda said: troubles.append(said.text) if "Security Policy" in said.text else None)
        page.goto(listener.url)
        page.get_by_text("a page of gradio's").wait_for()
        assert troubles == []
        loads = "u => new Promise(done => {const i = new Image(); i.onload = i.onerror = e => done(e.type); i.src = u})"
        assert page.evaluate(loads, "http://127.0.0.2:9/picture.png") == "error"
        assert len(troubles) == 1, "an answer's text cannot make the page tell others"


ATTACKS = """async (url) => {
  const done = (work) => Promise.race([work, new Promise(later => setTimeout(() => later("late"), 3000))])
  const load = (tag, at) => new Promise(over => {
    const one = document.createElement(tag); one.onload = () => over("loaded"); one.onerror = () => over("refused")
    one.src = url + at; document.body.append(one)
  })
  const say = (over) => new Promise(over)
  const post = fetch(url + "/v1/streams", {method: "POST", mode: "no-cors", body: "x"})
  return {
    read: await done(fetch(url + "/v1/streams").then(r => r.ok ? "read" : "refused", () => "refused")),
    post: await done(post.then(() => "sent", () => "refused")),
    picture: await done(load("img", "/v1/streams/1/frames/2.jpg")),
    socket: await done(say(over => {
      const socket = new WebSocket(url.replace("http", "ws") + "/v1/streams/1/push")
      socket.onopen = () => over("open"); socket.onerror = () => over("refused")
    })),
  }
}"""


@pytest.mark.slow
def test_another_sites_page_in_a_browser_gets_nothing(tmp_path: Path, chromium: str) -> None:
    """The other site is one on this machine, which browsers take for the same site; without the gate it gets all."""
    (tmp_path / "index.html").write_text("<!doctype html><body>")
    apps = [make_app(), make_app()]
    for app in apps:
        app.middleware("http")(_count_posts)
        app.state.posts = 0
    with (
        serving(apps[0]) as (_, listener),
        serving_bare(apps[1]) as bare,
        serving_bare(StaticFiles(directory=tmp_path, html=True)) as elsewhere,
        browsing(chromium) as browser,
    ):
        page = browser.new_page()
        page.goto(elsewhere)
        refused = page.evaluate(ATTACKS, listener.url)
        assert {refused[each] for each in ("read", "picture", "socket")} == {"refused"}
        assert apps[0].state.posts == 0
        open_to_all = page.evaluate(ATTACKS, bare)
        assert (open_to_all["picture"], open_to_all["socket"]) == ("loaded", "open")
        assert apps[1].state.posts == 1


async def _count_posts(request: Request, call_next: Any) -> Any:
    request.app.state.posts += request.method == "POST"
    return await call_next(request)
